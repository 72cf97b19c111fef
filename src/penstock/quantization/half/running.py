"""Running: whether the runtimes load and run a 16-bit model, in which type they compute, and how close the result is.

Nothing is believed of a runtime: it is tried, each in a process of its own, where it may crash. Where the runtime that
a model is meant for refuses it, its operators are tried one by one, and those without a kernel stay in fp32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from penstock import custom_domains, handover, metrics, registry, store, worker
from penstock.backends import only_stored
from penstock.errors import InputError, PenstockError
from penstock.jsonable import Json, to_json
from penstock.quantization.half.types import Half

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from penstock.backends import Backend, Loadable
    from penstock.deployment import Deployment

RUNTIMES = ("onnxruntime", "openvino")
LABELS = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
RUNS = {"ort-cpu": "onnxruntime", "openvino": "openvino"}  # which runtime a consumer is
SECONDS = 300.0  # for loading and running a model once


def kernelless(
    model: ir.Model, float_model: ir.Model, half: Half, consumer: str, names: Sequence[str]
) -> dict[str, str]:
    """Return which of the named nodes the consumer's runtime has no kernel for in 16 bits, and says so when asked.

    ``model`` holds 16-bit types already. One node of each operator and types is tried alone, in 16 bits and in fp32.
    """
    from penstock.rewriting.extract import extract

    backend = RUNS[consumer]
    kinds: dict[tuple[object, ...], list[str]] = {}
    for node in model.graph:
        if node.name in names:
            types = tuple(None if value is None else value.dtype for value in (*node.inputs, *node.outputs))
            kinds.setdefault((node.domain, node.op_type, *types), []).append(str(node.name))
    firsts = [alike[0] for alike in kinds.values()]
    with store.scratch() as work:
        paths: list[str] = []
        for number, one in enumerate((model, float_model)):
            found = {str(node.name): node for node in one.graph}
            for name in firsts:
                paths.append(str(work / f"{number}-{len(paths)}.onnx"))
                store.write_bytes(Path(paths[-1]), extract(one, [found[name]]))
        told = _called(backend, half, paths, [])
    refused: dict[str, str] = {}
    for number, ((_, op, *_types), alike) in enumerate(kinds.items()):
        if not told[number]["runs"] and told[number + len(firsts)]["runs"]:
            text = f"{LABELS[backend]} has no {half.onnx.lower()} kernel for {op} on a CPU"
            refused |= dict.fromkeys(alike, text)
    return refused


def runs(path: Path, half: Half, consumer: str, feeds: Sequence[Mapping[str, np.ndarray]]) -> bool:
    """Whether the consumer's runtime runs a model, whatever comes of it."""
    return bool(_called(RUNS[consumer], half, [str(path)], feeds)[0]["runs"])


def runs_on(
    path: Path, half: Half, feeds: Sequence[Mapping[str, np.ndarray]], wanted: Sequence[Sequence[np.ndarray]],
    names: Sequence[str],
) -> dict[str, Json]:  # fmt: skip
    """Run a model in every runtime there is on ``feeds``, and compare with what the float model gave (``wanted``).

    Returns, by runtime: whether it runs, why not, the types it computes in, and the SQNR of each float output in dB.
    """
    found: dict[str, Json] = {}
    for backend in RUNTIMES:
        if problem := _missing(backend):
            found[backend] = {"runs": None, "reason": f"not tried: {problem}"}
            continue
        told = _called(backend, half, [str(path)], feeds, wanted, names)[0]
        found[backend] = cast(Json, told)
    return found


def notes(told: Mapping[str, Json], half: Half) -> list[str]:
    """Say of each runtime that was tried what a user has to know: it doesn't run the model, or only stores 16 bits."""
    found = []
    for backend, entry in told.items():
        if not isinstance(entry, dict):
            continue
        if entry.get("runs") is False:
            found.append(f"{LABELS[backend]} doesn't run the result: {entry['reason']}")
        elif said := only_stored(half.name, entry):
            found.append(f"{LABELS[backend]}: {said}")
    return found


def _missing(backend: str) -> str:
    return cast("Backend", registry.load("backends", backend)).available()


def _called(
    backend: str, half: Half, paths: Sequence[str], feeds: Sequence[Mapping[str, np.ndarray]],
    wanted: Sequence[Sequence[np.ndarray]] = (), names: Sequence[str] = (),
) -> list[dict[str, Json]]:  # fmt: skip
    with store.scratch() as given, store.scratch() as expected:
        named = [dict(zip(names, outputs, strict=True)) for outputs in wanted] or [{} for _ in feeds]
        argument: dict[str, Json] = {
            "backend": backend, "precision": half.name, "paths": [*paths],
            "feeds": handover.save(feeds, given), "wanted": handover.save(named, expected),
        }  # fmt: skip
        try:
            answer = worker.call("penstock.quantization.half.running:serve", argument, timeout_s=SECONDS)
        except InputError as error:  # it crashed, or never ended
            if len(paths) == 1:
                return [{"runs": False, "reason": error.what}]
            return [one for path in paths for one in _called(backend, half, [path], feeds, wanted, names)]
    return cast("list[dict[str, Json]]", answer)


def serve(argument: Json) -> list[Json]:
    """Load each of the models and run it on the feeds: the worker's side."""
    from penstock.backends import Loadable
    from penstock.deployment import Deployment

    asked = cast("dict[str, Json]", argument)
    name, precision = str(asked["backend"]), str(asked["precision"])
    backend = cast("Backend", registry.load("backends", name))
    deployment = Deployment("half", "half", "", "fp16" if precision == "fp16" else "bf16", name)
    told: list[Json] = []
    for path in cast("list[str]", asked["paths"]):
        model = Loadable(Path(path), libraries=custom_domains.libraries(Path(path)))
        try:
            told.append(_tried(backend, model, deployment, asked))
        except PenstockError as error:
            told.append({"runs": False, "reason": error.what})
    return told


def _sqnr(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> float | None:
    """Compare what was got with what was wanted, in dB; ``None`` for what isn't a float."""
    import numpy as np

    got, wanted = (np.concatenate([pair[index].reshape(-1) for pair in pairs]) for index in (0, 1))
    return metrics.compare(got, wanted, logits=False).sqnr_db


def _tried(backend: Backend, model: Loadable, deployment: Deployment, asked: dict[str, Json]) -> dict[str, Json]:
    session = backend.load(model, deployment)
    found: dict[str, Json] = {"runs": True}
    parts: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for feeds, wanted in zip(handover.Saved(asked["feeds"]), handover.Saved(asked["wanted"]), strict=True):
        outputs = session.run(feeds)
        for (name, want), got in zip(wanted.items(), outputs if wanted else (), strict=True):
            if want.dtype.kind == "f":
                parts.setdefault(name, []).append((got, want))
    if parts:
        found["sqnr_db"] = {name: to_json(_sqnr(pairs)) for name, pairs in parts.items()}
        actual = session.actual()
        found |= {key: actual[key] for key in ("computes_in", "casts") if key in actual}
    session.close()
    return found

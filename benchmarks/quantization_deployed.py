"""What quantized models are worth in use: accuracy on the whole test set, latency in two runtimes, and every model."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import quantization_data as data
import quantization_nets as nets
from optimizer_tables import cell_text
from quantization_tools import MADE, run, session, tools
from raw_exports import time_side_by_side

from penstock import api, graph, intervals, precheck
from penstock.data import DataSettings
from penstock.errors import PenstockError
from penstock.rewriting.walk import bodies_in
from penstock.stages.quantize import QuantizeSettings
from penstock.timing.figures import ratio

PLAIN = {"equalize": False, "smooth": False, "correct_bias": "none", "rounding": "nearest", "guard": False}
WAYS: dict[str, dict[str, Any]] = {  # of Penstock; those that a version doesn't have are left out
    "fp16": {"method": "fp16"},
    "bf16": {"method": "bf16"},
    "dynamic": {"method": "dynamic"},
    "static": {"method": "static", **PLAIN},
    "static and repair": {"method": "static"},
    "static, QOperator": {"method": "static", "format": "qoperator"},
    "static, uint16 activations": {"method": "static", "activations": "uint16"},
}
PEERS = ("ort-minmax", "ort-percentile", "nncf")
LADDER: dict[str, dict[str, Any]] = {  # what a model is quantized by, until one is verified
    "static": {},
    "static, uint16 activations": {"activations": "uint16"},
    "dynamic": {"method": "dynamic", "force_small": True},
    "weight-only, 8 bits": {"method": "weight-only", "weight_bits": 8, "least_weights": 0},
}
LEAST_SHARE = 50.0  # percent of the weights in 8 bits
FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE)
LEAST_DB = 20.0  # what verify asks of a quantized model
BACKENDS = ("onnxruntime", "openvino")
Part = tuple[list[list[str]], str, Mapping[str, Any]]


def variants(peers: Path) -> dict[str, Path]:
    """Make the reference net in every way there is; the float model first, then Penstock's, then peers'."""
    case = data.net_case("cifar10")
    found = {"fp32": case.model}
    for name, settings in WAYS.items():
        path = MADE / f"cifar10-{name.replace(', ', '-').replace(' ', '-')}.onnx"
        try:
            api.quantize(case.model, path, QuantizeSettings(**settings), data=real())
        except (TypeError, PenstockError) as error:  # no such setting, no such method
            print(f"{name} is left out: {str(error).splitlines()[0]}", file=sys.stderr)
            continue
        found[name] = path
    if trained := trained_with_grids():
        found["QAT"] = trained
    with tools(PEERS, peers) as running:
        for tool in PEERS:
            path, answer = running.quantize(case, tool)
            if "error" not in answer:
                found[tool] = path
    return found


def trained_with_grids() -> Path | None:
    """Return the net after quantization-aware training by its defaults, which is kept; ``None`` without that."""
    path = nets.BUILD / "cifar10-qat.onnx"
    if not path.exists():
        try:
            from penstock import qat
        except ImportError:
            return None
        qat.run("zoo:cifar10", path, real(), threads=1)
    return path


def real() -> DataSettings:
    """Return the whole of CIFAR-10, of which 512 training images calibrate."""
    return DataSettings(data=str(nets.data_folder()))


def accuracy(peers: Path) -> Part:
    """Read the test set once for each variant, in ONNX Runtime; pair the answers with the float model's."""
    pixels, labels = nets.pixels("test")
    made = variants(peers)
    right = {}
    for name, path in made.items():
        loaded = session(path)
        answers = [next(iter(run(loaded, {"x": nets.normalised(pixels[at : at + 500])}).values())).argmax(1)
                   for at in range(0, len(pixels), 500)]  # fmt: skip
        right[name] = np.concatenate(answers) == labels
    rows = [["variant", "right", "less than fp32 (points, 95 %)", "bytes", "fp32's bytes to it", "of the weights"]]
    facts: dict[str, Any] = {}
    whole, weights = made["fp32"].stat().st_size, weight_bytes(made["fp32"])
    for name, hits in right.items():
        drop, low, high = (100 * one for one in intervals.paired_difference(right["fp32"], hits))
        size = made[name].stat().st_size
        held = weight_bytes(made[name])
        facts[name] = {"right": int(hits.sum()), "of": len(hits), "drop_points": [drop, low, high], "bytes": size,
                       "weight_bytes": held}  # fmt: skip
        told = "" if name == "fp32" else f"{drop:+.2f} ({low:+.2f} to {high:+.2f})"
        rows.append([name, f"{hits.mean():.2%}", told, f"{size:,}", f"{whole / size:.2f}", f"{weights / held:.2f}"])
    note = (
        f"CIFAR-10's {len(labels):,} test images, read once for each variant, in ONNX Runtime; the interval is Tango's "
        "for paired answers. Calibrated on 512 training images. The last column counts what the file's constants hold, "
        "scales and biases included; the one before it counts the whole file."
    )
    return rows, note, facts


def latency(peers: Path, seconds: float) -> Part:
    """Time the variants of the reference net in both runtimes, batch 1, one thread, in interleaved rounds."""
    made = variants(peers)
    timed = {backend: time_side_by_side(made, seconds, backend) for backend in BACKENDS}
    rows = [["variant", *BACKENDS]]
    facts: dict[str, Any] = {}
    for name in made:
        cells = []
        for backend, rounds in timed.items():
            if name not in rounds:
                cells.append("!")
            elif name == "fp32":
                cells.append(f"{statistics.median(rounds[name]) / 1e6:.3f} ms")
            else:
                one = ratio(rounds[name], rounds["fp32"], 0)
                cells.append(one.text())
                facts.setdefault(name, {})[backend] = [one.ratio, one.low, one.high, one.rounds]
        rows.append([name, *cells])
    count = len(next(iter(timed["onnxruntime"].values())))
    return rows, f"Batch 1, one thread, {count} interleaved rounds or more; ratios with 95 % intervals.", facts


def models(chosen: str) -> Part:
    """Quantize every float model of the shared folder as it is, and verify what comes out against it."""
    rows = [["model", "quantized by", "what came of it", "worst output (dB)", "weights in 8 bits", "bytes to fp32's"]]
    facts: dict[str, Any] = {}
    for name, case in data.cases().items():
        if name not in nets.NETS and fnmatch(name, chosen) and has_floats(case.model):
            tried = list(_tried(case))
            verified = any(one["state"] == "verified" for one in tried)
            facts[name] = {"tried": tried, "state": "verified" if verified else tried[-1]["state"]}
            for one in tried if verified else tried[:1]:
                cells = [one["by"], one["told"], *(one.get(key, "") for key in ("db", "share", "size"))]
                rows.append([name, *(cells if one["state"] != "refused" else ["", one["told"], "", "", ""])])
                print(*rows[-1], sep=" | ", file=sys.stderr, flush=True)
    states = [one["state"] for one in facts.values()]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    told = (
        f"{len(states)} models that have floats: {counts}, by `penstock quantize` and `penstock verify` as a user runs "
        "them. What the static method leaves unverified, or with less than half of its weights in 8 bits, is tried "
        f"with 16-bit activations, dynamic quantization and 8-bit weights; verified is {LEAST_DB:g} dB or more at "
        "each output. The samples of silero-vad-if and tiny-gpt2-genai come from a data function that yields what a "
        "run reads as a whole; those of models without real data are made from the signature."
    )
    return rows, told, facts


def has_floats(model: Path) -> bool:
    """Whether a model reads, makes or holds a float32."""
    main = graph.load(model).graph
    return any(value.dtype is ir.DataType.FLOAT for value in (*main.inputs, *main.outputs, *main.initializers.values()))


def _tried(case: data.Case) -> Iterator[dict[str, str]]:
    """Quantize a model, by what may do it more justice where that isn't verified."""
    for by, settings in LADDER.items():
        found = {"by": by} | _one(case, QuantizeSettings(**settings))
        yield found
        done = found["state"] == "verified" and float(found["share"].rstrip("%")) >= LEAST_SHARE
        if done or found["state"] == "crashed":
            return


def _one(case: data.Case, settings: QuantizeSettings) -> dict[str, str]:
    out = MADE / f"{case.name}-shared.onnx"
    try:
        api.quantize(case.model, out, settings, data=case.settings, seed=data.SEED)
        checked = api.verify(out, str(case.model), data=case.settings, seed=data.SEED)
        levels = [one.sqnr_db for one in checked.outputs.values() if one.sqnr_db is not None]
        passed = checked.outcome.passed
        told = "verified" if passed else f"not verified: {checked.outcome.reason}"
    except PenstockError as error:
        return {"state": "refused", "told": f"refused ({error.id}): {cell_text(error.what)}"}
    except Exception as error:  # what the benchmark looks for
        return {"state": "crashed", "told": cell_text(f"crashed: {type(error).__name__}: {error}")}
    size = f"{size_bytes(out) / size_bytes(case.model):.2f}"
    db = f"{min(levels):.1f}" if levels else ""
    share = f"{share_of_integers(out):.0f}%"
    return {"state": "verified" if passed else "not verified", "told": told, "db": db, "share": share, "size": size}


def share_of_integers(model: Path) -> float:
    """Return how many percent of a model's weights are integers of 8 bits or fewer; bodies' are counted."""
    narrow = wide = 0
    loaded = graph.load(model)
    graphs = [loaded.graph, *(body for node in loaded.graph.all_nodes() for body in bodies_in(node))]
    held = [value.const_value for one in graphs for value in one.initializers.values()]
    for node in loaded.graph.all_nodes():
        constant = node.attributes.get("value") if node.op_type == "Constant" else None
        held += [constant.as_tensor()] if constant is not None else []
    for tensor in held:
        if tensor is not None and tensor.size > 1:
            narrow += tensor.size * (tensor.dtype.bitwidth <= 8)
            wide += tensor.size * (tensor.dtype in FLOATS)
    return 100 * narrow / max(narrow + wide, 1)


def weight_bytes(model: Path) -> int:
    """Return the bytes of all constants of a model."""
    held = [value.const_value for value in graph.load(model).graph.initializers.values()]
    return sum(tensor.nbytes for tensor in held if tensor is not None)


def size_bytes(model: Path) -> int:
    """Return the bytes of a model and of the weights in files beside it."""
    return sum(file.stat().st_size for file in (model, *precheck.files_beside(model)))

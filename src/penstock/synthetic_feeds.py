"""Synthetic feeds: made-up inputs brought to what the model's BatchNormalizations remember, where it has any."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from penstock import feeds as feeds_module
from penstock import golden, graph, machine, passes, precheck, quantization, rewriting, store
from penstock.errors import PenstockError
from penstock.feeds import SEEDED_LIMIT_BYTES
from penstock.progress import SILENT, Progress
from penstock.store import Cache, Made, digest_of

if TYPE_CHECKING:
    import numpy as np

    from penstock.data import DataSettings
    from penstock.feeds import Feeds, RoleFeeds
    from penstock.jsonable import Json
    from penstock.quantization.synthetic import Asked
    from penstock.signature import Signature

FILE = "samples.npz"
NOTE = "made from the input signature and the model's BatchNorm statistics, not real data"
MOST_SAMPLES = 128
LEAST_MACS = 1e5  # of a sample: what a run costs beside its products


def of_model(
    path: Path, roles: RoleFeeds, settings: DataSettings, seed: int, cache: Cache, progress: Progress = SILENT
) -> RoleFeeds:
    """Return the roles with calibration and golden inputs that meet the statistics of the model file ``path``.

    ``roles`` are those of :func:`penstock.feeds.from_seed`. Without statistics they stay as they are, and the
    calibration's description says why (``no_statistics``). Real data is left alone.
    """
    calibrate = roles.calibrate
    if calibrate.description.get("kind") != "seeded":
        return roles
    count = _count(roles, settings)
    key = _key(path, roles, count, seed)
    if (entry := cache.get(key)) is None:
        progress.begin("samples", "made up to meet the model's BatchNorm statistics")
        entry = cache.put(key, lambda into: _make(path, roles, count, seed, into))
        progress.end(str(entry.facts.get("absent", "")))
    if "absent" in entry.facts:
        described = {**calibrate.description, "no_statistics": entry.facts["absent"]}
        return replace(roles, calibrate=replace(calibrate, description=described))
    import numpy as np

    with np.load(cache.folder(key) / "files" / FILE, allow_pickle=False) as held:
        arrays = {name: held[name] for name in held.files}
    statistics = entry.facts
    named = cast("list[str]", statistics["fitted_inputs"])
    digest = entry.files[0].sha256

    def made(role: Feeds, letter: str) -> Feeds:
        own = {name: arrays[f"{letter}{number}"] for number, name in enumerate(named)}
        described: dict[str, Json] = {**role.description, "note": NOTE, "samples_sha256": digest}
        if role is not calibrate:
            return replace(role, description=described, rows=_instead(role, own))
        described |= {"samples": count, "statistics": dict(statistics)}
        return replace(role, description=described, rows=_instead(role, own), count=count)

    return replace(roles, calibrate=made(calibrate, "c"), golden=made(roles.golden, "g"))


def _instead(role: Feeds, own: Mapping[str, np.ndarray]) -> Callable[[int, int], dict[str, np.ndarray]]:
    """Return the rows of a role with the inputs that were fitted in place of the seeded ones."""

    def rows(start: int, stop: int) -> dict[str, np.ndarray]:
        end = start + role.fixed_batch if role.fixed_batch else stop
        return {**role.rows(start, stop), **{name: array[start:end] for name, array in own.items()}}

    return rows


def _count(roles: RoleFeeds, settings: DataSettings) -> int:
    """Return how many calibration samples to make: more than random ones, for they are worth it, within the memory."""
    size = sum(array.nbytes for array in roles.calibrate.rows(0, 1).values()) // (roles.calibrate.fixed_batch or 1)
    return max(roles.calibrate.count, min(settings.calibrate, MOST_SAMPLES, SEEDED_LIMIT_BYTES // max(size, 1)))


def _key(path: Path, roles: RoleFeeds, count: int, seed: int) -> str:
    files = [path, *sorted(precheck.files_beside(path))]
    # the model is looked at as the passes leave it
    folders = [Path(str(package.__file__)).parent for package in (quantization, passes, rewriting)]
    sources = [Path(__file__), Path(feeds_module.__file__)]
    sources += [source for folder in folders for source in sorted(folder.rglob("*.py"))]
    code = [store.file_digest(source) for source in sources]
    # statistics come out of a runtime, whose sums differ between instruction sets and numbers of threads
    here: list[Json] = [machine.instruction_set(), os.cpu_count(), machine.threads(), *_versions()]
    told = [dict(roles.calibrate.description), dict(roles.golden.description)]
    return digest_of(["synthetic", [store.file_digest(one) for one in files], told, count, seed, code, here])


def _versions() -> list[str]:
    from importlib.metadata import version

    return [version("onnxruntime"), version("numpy")]


def _make(path: Path, roles: RoleFeeds, count: int, seed: int, into: Path) -> Made:
    """Make the samples in a folder; the facts say why there are none."""
    from penstock.quantization import normalizations, synthetic

    found = normalizations.found_or_why(path)
    if isinstance(found, str):
        return Made({"absent": found})
    asked = _asked(path, roles, count, seed)
    if not asked.parts:
        return Made({"absent": "the model has no input of floats that could be fitted to its statistics"})
    done = synthetic.make(found, asked)
    if isinstance(done, str):
        return Made({"absent": done})
    arrays = {f"c{i}": done.calibrate[part.name] for i, part in enumerate(asked.parts)}
    arrays |= {f"g{i}": done.golden[part.name] for i, part in enumerate(asked.parts)}
    store.write_bytes(into / FILE, golden.pack(arrays))
    return Made(done.facts)


def _asked(path: Path, roles: RoleFeeds, count: int, seed: int) -> Asked:
    """Return what samples the roles want of a model: of every float input whose first axis counts samples."""
    from penstock.quantization.synthetic import Asked, Part

    signature, role = graph.signature(graph.load(path)), roles.calibrate
    batch = signature.fixed_batch
    first = role.rows(0, 1)
    parts = [
        Part(spec.name, first[spec.name].shape[1:], spec.dtype)
        for spec in signature.inputs
        if spec.dtype in ("float16", "float32", "float64") and spec.shape is not None and len(spec.shape) > 1
        and (not isinstance(spec.shape[0], int) or spec.shape[0] == batch)
    ]  # fmt: skip
    return Asked(
        parts, role.rows, count, roles.golden.count, batch, len(parts) < len(signature.inputs),
        _macs(path, signature, first), seed,
    )  # fmt: skip


def _macs(path: Path, signature: Signature, first: Mapping[str, np.ndarray]) -> float:
    """Return the multiply-accumulates of one sample, as far as they are known."""
    from penstock.quantization.synthetic import UNKNOWN_MACS
    from penstock.stages.inspect import inspect

    sizes = {
        dim: size for spec in signature.inputs
        for dim, size in zip(spec.shape or (), first[spec.name].shape, strict=False) if isinstance(dim, str)
    }  # fmt: skip
    try:
        found = inspect(path, sizes).macs
    except PenstockError:
        found = 0
    return max(found / (signature.fixed_batch or 1), LEAST_MACS) if found else UNKNOWN_MACS

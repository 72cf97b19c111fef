"""Doctor: what this machine has for the work, what clashes, what is missing, and the line that mends it.

Runtimes are looked at in processes of their own: one that crashes when it is imported is a finding, not our end.
"""

from __future__ import annotations

import contextlib
import os
import platform
import sys
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal, cast

from penstock import machine, preflight, registry, store, worker
from penstock.build_settings import BuildSettings
from penstock.errors import MissingError, PenstockError, missing_extra
from penstock.frontends import Source
from penstock.jsonable import Json
from penstock.stages import export

PROBE_SECONDS = 60.0
# feature → the CPU flags that have it, on x86 and ARM, and what it means for the work
FEATURES: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("avx2", ("avx2",), "float kernels at full width; the least for fast int8 on x86"),
    ("avx512", ("avx512f", "avx512bw"), "twice the width of avx2"),
    ("vnni", ("avx512_vnni", "avx_vnni"), "int8 products without saturation: int8 pays off most"),
    ("bf16", ("avx512_bf16", "bf16"), "bfloat16 kernels"),
    ("amx", ("amx_int8", "amx_tile"), "matrix units for int8 and bfloat16"),
    ("dotprod", ("asimddp",), "int8 products on ARM"),
    ("i8mm", ("i8mm",), "int8 matrix products on ARM"),
    ("sve", ("sve",), "wide vectors on ARM"),
)
EXTRAS = {"torch": "torch", "openvino": "openvino", "pillow": "images", "scikit-learn": "demo"}
NEEDED_FOR = {
    "torch": "for PyTorch sources", "openvino": "for the backend openvino", "pillow": "for folders of images",
    "scikit-learn": "for the data set digits",
}  # fmt: skip
Level = Literal["clash", "missing", "broken", "note"]


@dataclass(frozen=True, slots=True)
class Feature:
    """A feature of the CPU, whether it is there, and what it is good for."""

    name: str
    present: bool
    good_for: str


@dataclass(frozen=True, slots=True)
class Runtime:
    """A runtime as found: version, newest opset and IR version that it takes (``None``: not told), or what is wrong."""

    name: str
    version: str
    opset: int | None
    ir: int | None
    detail: Mapping[str, Json]
    problem: str
    absent: bool = False  # it isn't installed, or has nothing to run on here: ``problem`` says what would change that


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something to know of: what it is, and what mends it."""

    level: Level
    what: str
    do: str


@dataclass(frozen=True, slots=True)
class Blocked:
    """Something in the given settings that can't run here, and the exit code that a build would end with."""

    what: str
    where: str
    do: str
    exit_code: int


@dataclass(frozen=True, slots=True)
class Report:
    """All that was found."""

    host: Mapping[str, Json]
    features: tuple[Feature, ...]
    space: Mapping[str, Json]  # folder → free bytes
    runtimes: tuple[Runtime, ...]
    telemetry: Mapping[str, str]
    troubles: tuple[Trouble, ...]


def examine(root: Path = machine.ROOT) -> Report:
    """Look at the machine; ``root`` is where ``/proc`` and ``/sys`` are found."""
    runtimes = _runtimes()
    troubles = [*_clashes(metadata.distributions()), *_missing(), *_broken(runtimes), *_unmet()]
    return Report(_host(root), _features(root), _space(), runtimes, _telemetry(), tuple(troubles))


def _host(root: Path) -> dict[str, Json]:
    host = {key: value for key, value in machine.describe(root).items() if key not in ("cpu_flags", "load_1min")}
    limit = machine.memory_limit_bytes(root)
    return host | ({"memory_limit_bytes": limit} if limit is not None else {})


def _features(root: Path) -> tuple[Feature, ...]:
    flags = set(machine.all_flags(root))
    return tuple(Feature(name, bool(flags & {*wanted}), use) for name, wanted, use in FEATURES if _fits(name))


def _fits(feature: str) -> bool:
    arm = platform.machine().lower() in ("arm64", "aarch64")
    return (feature in ("dotprod", "i8mm", "sve")) == arm or feature == "bf16"


def _space() -> dict[str, Json]:
    places = {"cache": store.default_cache(), "current folder": Path.cwd(), "scratch": store.scratch_home()}
    return {f"{name} ({path})": _free(path) for name, path in places.items()}


def _free(path: Path) -> int | None:
    while not path.exists() and path != path.parent:
        path = path.parent
    try:
        found = os.statvfs(path)
        return found.f_bavail * found.f_frsize
    except OSError:
        return None


def _runtimes() -> tuple[Runtime, ...]:
    """Look at every backend and at onnx itself, all at once, each in a process of its own."""
    names = ["onnx", *registry.names("backends")]
    with ThreadPoolExecutor(len(names)) as pool:
        return tuple(pool.map(probe, names))


def probe(name: str) -> Runtime:
    """Look at one backend, or at onnx, in a process of its own."""
    package = "onnx" if name == "reference" else name
    version = _version(package)
    try:
        answer = worker.call("penstock.doctor_probes:serve", name, timeout_s=PROBE_SECONDS)
    except PenstockError as error:
        missing = not version and package in EXTRAS
        problem = "not installed" if missing else f"it can't be used: {error.what}"
        return Runtime(name, version, None, None, {}, problem, missing)
    found = dict(cast("dict[str, Json]", answer))
    opset, ir, problem = found.pop("opset", None), found.pop("ir", None), str(found.pop("problem", ""))
    version = str(found.pop("version", "") or version)
    if problem and not _version(package) and package in EXTRAS:
        problem = "not installed"
    # of our own, what has no environment or no device here; a wheel that doesn't import is broken
    absent = problem == "not installed" or (
        problem != "" and "doesn't import" not in problem and name not in registry.origins("backends")
    )
    numbers = [number if isinstance(number, int) else None for number in (opset, ir)]
    return Runtime(name, version, numbers[0], numbers[1], found, problem, absent)


def _version(name: str) -> str:
    names = [name] if name != "onnxruntime" else list(_wheels(metadata.distributions())) or [name]
    for one in names:
        try:
            return metadata.version(one)
        except metadata.PackageNotFoundError:
            continue
    return ""


def _wheels(distributions: Iterable[metadata.Distribution]) -> dict[str, str]:
    """Find the wheels that bring the package ``onnxruntime``: they overwrite each other's files."""
    found = {}
    for distribution in distributions:
        name = (distribution.metadata["Name"] or "").lower().replace("_", "-")
        if name == "onnxruntime" or (name.startswith("onnxruntime-") and _brings(distribution, "onnxruntime/")):
            found[name] = distribution.version
    return found


def _brings(distribution: metadata.Distribution, prefix: str) -> bool:
    return any(str(file).startswith(prefix) for file in distribution.files or ())


def _clashes(distributions: Iterable[metadata.Distribution]) -> list[Trouble]:
    wheels = _wheels(distributions)
    if len(wheels) < 2:
        return []
    named = " and ".join(f"{name} {version}" for name, version in sorted(wheels.items()))
    what = f"{named} are both installed: they overwrite each other's files, and which one runs is chance"
    keep = sorted(wheels)[-1]
    do = f"pip uninstall -y {' '.join(sorted(wheels))}; pip install {keep}  # or the one that you mean"
    return [Trouble("clash", what, do)]


def _missing() -> list[Trouble]:
    found = []
    for package, extra in EXTRAS.items():
        if not _version(package):
            told = missing_extra(package, extra, "")
            found.append(Trouble("missing", f"{package} is not installed; it is needed {NEEDED_FOR[package]}", told.do))
    return found


def _broken(runtimes: Iterable[Runtime]) -> list[Trouble]:
    absent = {name for name in ("onnx", "onnxruntime") if not _version(name)}  # told as a requirement that is not met
    return [
        Trouble("broken", f"{runtime.name}: {runtime.problem}", "install it anew, or uninstall what brings it")
        for runtime in runtimes
        if runtime.problem and not runtime.absent and runtime.name not in absent
    ]


def _unmet() -> list[Trouble]:
    """Hold Penstock's own requirements against what is installed."""
    try:
        from packaging.requirements import Requirement
    except ImportError:
        return []
    found = []
    try:
        wanted = metadata.requires("penstock") or []
    except metadata.PackageNotFoundError:
        return []
    for text in wanted:
        requirement = Requirement(text)
        version = _version(requirement.name)
        extra = "extra" in str(requirement.marker or "")
        if version and not requirement.specifier.contains(version.split("+")[0], prereleases=True):
            what = f"{requirement.name} {version} is installed, penstock wants {requirement.specifier}"
            found.append(Trouble("clash", what, f"pip install '{requirement.name}{requirement.specifier}'"))
        elif not version and not extra:
            found.append(Trouble("broken", f"{requirement.name} is not installed", f"pip install {requirement.name}"))
    return found


def _telemetry() -> dict[str, str]:
    """Say who might send something home, and whether it is kept from it."""
    found = {"penstock": "sends nothing: there is no such code in it"}
    off = os.environ.get("ORT_DISABLE_TELEMETRY") == "1"
    found["onnxruntime"] = "off: ORT_DISABLE_TELEMETRY is set" if off else "on: ORT_DISABLE_TELEMETRY is not 1"
    if _version("openvino"):
        sender = _version("openvino-telemetry")
        found["openvino"] = "off: kept from starting when Penstock imports it" if sender else "off: no sender installed"
    return found


def check_settings(settings: BuildSettings, runtimes: Iterable[Runtime] = ()) -> list[Blocked]:
    """Say what of the given settings can't run here; without a source, all but the source.

    ``runtimes`` are those that were found: one that is there and doesn't import stands in the way of a source for it.
    """
    found = [
        Blocked(error.what, error.where, error.do, error.exit_code)
        for error in preflight.problems(settings)
        if error.id != "no-example"  # which is for the command that exports
    ]
    if settings.source and not any(one.exit_code == MissingError.exit_code for one in found):
        with contextlib.suppress(PenstockError):  # no frontend claims the source, which stands in the list by now
            name, _ = export.frontend(Source(settings.source, settings.weights))
            found += [
                Blocked(f"{one.name}: {one.problem}", settings.source, "install it anew", MissingError.exit_code)
                for one in runtimes if one.name == name and one.problem
            ]  # fmt: skip
    return found


def python() -> str:
    """Return the interpreter and where it lies."""
    return f"{platform.python_implementation()} {platform.python_version()} ({sys.executable})"

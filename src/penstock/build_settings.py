"""The settings of a whole build: the source, and one section per stage."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from penstock import settings
from penstock.data import DataSettings
from penstock.errors import UsageError
from penstock.jsonable import Json, to_json
from penstock.precheck import CheckSettings
from penstock.stages.bench import BenchSettings
from penstock.stages.evaluate import EvaluateSettings
from penstock.stages.export import ExportSettings
from penstock.stages.optimize import OptimizeSettings
from penstock.stages.quantize import QuantizeSettings
from penstock.stages.select import SelectSettings
from penstock.stages.verify import VerifySettings


@dataclass(frozen=True, slots=True)
class BuildSettings:
    """Everything that a build is told. ``backends`` empty: all that can run here."""

    source: str
    weights: str = ""
    backends: tuple[str, ...] = ()
    seed: int = 0
    check: CheckSettings = field(default_factory=CheckSettings)
    data: DataSettings = field(default_factory=DataSettings)
    export: ExportSettings = field(default_factory=ExportSettings)
    optimize: OptimizeSettings = field(default_factory=OptimizeSettings)
    quantize: QuantizeSettings = field(default_factory=QuantizeSettings)
    verify: VerifySettings = field(default_factory=VerifySettings)
    evaluate: EvaluateSettings = field(default_factory=EvaluateSettings)
    bench: BenchSettings = field(default_factory=BenchSettings)
    select: SelectSettings = field(default_factory=SelectSettings)

    def to_toml(self) -> dict[str, Json]:
        """Return the settings as tables for a settings file; what is ``None`` is left out, as TOML has no null."""
        found = to_json(self)
        assert isinstance(found, dict)
        return {
            key: {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else value
            for key, value in found.items()
        }


def lock_text(
    settings: BuildSettings,
    export: Mapping[str, Json],
    tools: Mapping[str, str],
    base: str,
    read: Mapping[str, str],
    libraries: Sequence[Sequence[str]] = (),
) -> str:
    """Return the text of ``penstock.lock.toml``: the settings as resolved, the inputs, the tools' versions.

    ``export`` says with which opset and exporter the model was written; ``base`` is the way from the lock file to the
    folder that relative paths count from, ``read`` the digests of the files that the export read, by name;
    ``libraries`` are the domains of custom operators, each with the name and the SHA-256 of its library.
    """
    import tomli_w

    table: dict[str, Any] = settings.to_toml()
    resolved = []  # what the export chose, where the settings leave it to it
    for name in ("opset", "exporter"):
        known = name == "opset" or export.get(name) in ("dynamo", "torchscript")
        if known and export.get(name) not in (None, table["export"].get(name)):
            table["export"][name] = export[name]
            resolved.append(f"export.{name}")
    table["inputs"] = {"base": base, "resolved": resolved, "read": dict(read)}
    table["tools"] = dict(tools)
    if libraries:
        table["libraries"] = {domain: sha256 for domain, _, sha256 in libraries if sha256}
    return "# The settings of this build as resolved, with the versions of its tools.\n" + tomli_w.dumps(table)


def resolve(
    flags: Mapping[str, Mapping[str, Any]],
    *,
    file: Path | None = None,
    environ: Mapping[str, str] | None = None,
    need_source: bool = True,
) -> BuildSettings:
    """Build the settings from ``flags`` (section → field → value; top-level ones under ""), environment and file.

    Raises ``UsageError`` for anything unknown or of a wrong type, and when a source is needed and none is named.
    """
    environ = os.environ if environ is None else environ
    table = settings.read_file(file) if file else {}
    top: dict[str, Any] = {key: table[key] for key in ("source", "weights", "backends", "seed") if key in table}
    top |= dict(flags.get("", {}))
    source, weights = top.get("source", ""), top.get("weights", "")
    if not isinstance(weights, str):
        raise UsageError("bad-setting", f"weights wants a path, got {weights!r}", where="weights")
    if not isinstance(source, str) or (need_source and not source):
        do = "give model.onnx, file.py:Class, package.module:factory, program.pt2 or zoo:cifar10"
        raise UsageError("no-source", "no source is given", do=do)
    seed = top.get("seed", 0)
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**31:
        raise UsageError("bad-setting", f"seed wants a whole number from 0 to 2147483647, got {seed!r}", where="seed")

    def section(name: str, cls: type[Any]) -> Any:
        return settings.resolve(name, flags.get(name, {}), environ, table, cls)

    return BuildSettings(
        source,
        weights,
        _names(top.get("backends", ())),
        seed,
        section("check", CheckSettings),
        section("data", DataSettings),
        section("export", ExportSettings),
        section("optimize", OptimizeSettings),
        section("quantize", QuantizeSettings),
        section("verify", VerifySettings),
        section("evaluate", EvaluateSettings),
        section("bench", BenchSettings),
        section("select", SelectSettings),
    )


def _names(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        return tuple(settings.split(value))
    if isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
        return tuple(value)
    raise UsageError("bad-setting", f"backends wants a list of names, got {value!r}", where="backends")

"""Penstock: from a trained model to a verified, measured, chosen deployment.

The verbs are functions here, as they are commands of ``penstock``; nothing heavy is imported before one is used.
"""

import importlib as _importlib
import os as _os
from typing import TYPE_CHECKING as _TYPE_CHECKING

if _TYPE_CHECKING:
    from penstock.api import (
        bench,
        build,
        convert,
        evaluate,
        export,
        inspect,
        optimize,
        quantize,
        select,
        verify,
        write,
    )  # fmt: skip
    from penstock.build_settings import BuildSettings
    from penstock.data import DataSettings
    from penstock.deployment import Deployment
    from penstock.errors import GateError, InputError, MissingError, PenstockError, StoreError, UsageError
    from penstock.pipeline import BuildResult
    from penstock.record import Record
    from penstock.searching import search
    from penstock.stages.bench import BenchSettings
    from penstock.stages.convert import ConvertSettings
    from penstock.stages.evaluate import EvaluateSettings
    from penstock.stages.export import ExportSettings
    from penstock.stages.optimize import OptimizeSettings
    from penstock.stages.quantize import QuantizeSettings
    from penstock.stages.search import SearchSettings
    from penstock.stages.select import SelectSettings
    from penstock.stages.verify import VerifySettings
    from penstock.targets.tflite import TfliteSettings
    from penstock.variant import Variant
    from penstock.verdict import Verdict

# before anyone imports ONNX Runtime: its later switch comes too late, it has sent by then
_os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"

_HOMES = {
    "penstock.api": (
        "bench", "build", "convert", "evaluate", "export", "inspect", "optimize", "quantize", "select", "verify",
        "write",
    ),
    "penstock.build_settings": ("BuildSettings",),
    "penstock.data": ("DataSettings",),
    "penstock.deployment": ("Deployment",),
    "penstock.errors": ("GateError", "InputError", "MissingError", "PenstockError", "StoreError", "UsageError"),
    "penstock.pipeline": ("BuildResult",),
    "penstock.record": ("Record",),
    "penstock.searching": ("search",),
    "penstock.stages.bench": ("BenchSettings",),
    "penstock.stages.convert": ("ConvertSettings",),
    "penstock.stages.evaluate": ("EvaluateSettings",),
    "penstock.stages.export": ("ExportSettings",),
    "penstock.stages.optimize": ("OptimizeSettings",),
    "penstock.stages.quantize": ("QuantizeSettings",),
    "penstock.stages.search": ("SearchSettings",),
    "penstock.stages.select": ("SelectSettings",),
    "penstock.stages.verify": ("VerifySettings",),
    "penstock.targets.tflite": ("TfliteSettings",),
    "penstock.variant": ("Variant",),
    "penstock.verdict": ("Verdict",),
}  # fmt: skip

__all__ = [  # noqa: RUF022  # grouped by what they are: the verbs in order, the nouns, the settings, the errors
    "build", "export", "inspect", "optimize", "convert", "quantize", "search", "write", "verify", "evaluate",
    "bench", "select",
    "Variant", "Deployment", "Record", "Verdict", "BuildResult",
    "BuildSettings", "DataSettings", "ExportSettings", "OptimizeSettings", "ConvertSettings", "QuantizeSettings",
    "SearchSettings", "VerifySettings",
    "EvaluateSettings", "BenchSettings", "SelectSettings", "TfliteSettings",
    "PenstockError", "GateError", "UsageError", "InputError", "StoreError", "MissingError",
]  # fmt: skip


def __getattr__(name: str) -> object:
    """Import a public name when it is first used."""
    for home, names in _HOMES.items():
        if name in names:
            return getattr(_importlib.import_module(home), name)
    raise AttributeError(f"module 'penstock' has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the public names."""
    return sorted([*__all__, "__version__"])

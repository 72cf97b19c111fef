"""Quantization-aware training: a module fine-tuned on the grids that the static quantizer would give it.

::

    prepared = qat.prepare(module, example, calibration)   # export, fold, place, calibrate
    qat.fit(prepared, batches)                             # or train prepared.module in a loop of your own
    qat.convert(prepared, "int8.onnx")                     # weights and ranges go to the static quantizer's emitter

What is trained is the exported float graph, rebuilt of torch's operators, with values rounded at the placement's
tensors. Folding, placement and names are those of the file that is written, and there is nothing to map back. No node
that only imitates quantization is ever exported. Everything here but the settings imports torch, when it is first used.
"""

import importlib as _importlib
from typing import TYPE_CHECKING as _TYPE_CHECKING

if _TYPE_CHECKING:
    from penstock.qat.agreeing import Agreement, agreement
    from penstock.qat.conversion import Converted, convert
    from penstock.qat.loop import Epoch, Fitted, fit
    from penstock.qat.network import Network
    from penstock.qat.preparation import Prepared, prepare, prepare_model
    from penstock.qat.settings import QatSettings, Recipe
    from penstock.qat.whole import Result, run

_HOMES = {
    "penstock.qat.agreeing": ("Agreement", "agreement"),
    "penstock.qat.conversion": ("Converted", "convert"),
    "penstock.qat.loop": ("Epoch", "Fitted", "fit"),
    "penstock.qat.network": ("Network",),
    "penstock.qat.preparation": ("Prepared", "prepare", "prepare_model"),
    "penstock.qat.settings": ("QatSettings", "Recipe"),
    "penstock.qat.whole": ("Result", "run"),
}

__all__ = [  # noqa: RUF022  # in the order of use
    "prepare", "prepare_model", "fit", "convert", "agreement", "run",
    "QatSettings", "Recipe", "Prepared", "Network", "Epoch", "Fitted", "Converted", "Agreement", "Result",
]  # fmt: skip


def __getattr__(name: str) -> object:
    """Import a public name when it is first used. Raises ``MissingError`` without torch."""
    for home, names in _HOMES.items():
        if name in names:
            if not home.endswith(".settings"):
                from penstock.frontends.torch import need_torch

                need_torch()
            return getattr(_importlib.import_module(home), name)
    raise AttributeError(f"module 'penstock.qat' has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the public names."""
    return sorted(__all__)

"""Prepare: from a module, or a float model, to a module that rounds where the int8 model will. Imports torch."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from penstock import graph, store
from penstock.errors import InputError
from penstock.frontends._torch_lines import Home
from penstock.frontends._torch_module import arrays_of
from penstock.frontends._torch_source import Loaded
from penstock.qat import batches
from penstock.qat.network import Network, Rounding
from penstock.qat.settings import QatSettings
from penstock.quantization import automatic, notices, saturation
from penstock.quantization import prepare as float_model
from penstock.quantization.placement import WEIGHTED, Placement
from penstock.quantization.study import Choice
from penstock.quantization.studying import of_settings, studied
from penstock.signature import Signature
from penstock.stages.export import ExportSettings

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A module to train, and the float graph that it was made of, with the weights as they were."""

    module: Network
    model: ir.Model
    placement: Placement
    choice: Choice
    signature: Signature
    calibration_samples: int
    named: frozenset[str]  # initializers that are parameters of the module that was exported
    target_cpu: str
    notes: tuple[str, ...]  # what a user should know of the calibration samples, and of the weights

    def reference(self) -> Network:
        """Build the float network with the weights as they were before training: what to distill from."""
        return Network(self.model).requires_grad_(False).eval()

    def float_module(self) -> Network:
        """Build the network with the weights as they are now, not rounded: what the trained module is in float."""
        return Network(self.trained_model(), named=self.named)

    def trained_model(self) -> ir.Model:
        """Return the float graph with the weights as they are now. Raises ``InputError`` for NaN or infinity."""
        import onnx_ir as ir

        made = self.model.clone()
        for name, array in self.module.arrays().items():
            if not np.isfinite(array).all():
                what = f"the trained weights {name!r} aren't finite: the training diverged"
                raise InputError("training-diverged", what, do="prepare again, and train at a lower learning rate")
            held = made.graph.initializers[name]
            if held.const_value is None or not np.array_equal(held.const_value.numpy(), array):
                held.const_value = ir.tensor(array, name=name)
        return made


def prepare(
    module: nn.Module, example: Any, calibration: Iterable[Any], settings: QatSettings | None = None,
    *, export: ExportSettings | None = None,
) -> Prepared:  # fmt: skip
    """Export ``module``, fold and place it as the static quantizer does, and choose the first grids.

    ``example`` is one batch of inputs: a tensor, several in the order of forward, or a mapping by name. ``calibration``
    are batches of some hundred samples in all, as a loader yields them; labels in them are left out. The module itself
    stays as it is. BatchNormalization is folded into the weights, and dropout isn't in an exported graph: the module
    that comes back has neither, in training as in evaluation.

    Raises ``InputError`` for a module that can't be exported, quantized or trained, ``GateError`` where its export
    computes something else.
    """
    from penstock.frontends import _torch_export

    held = example if isinstance(example, (dict, tuple, list)) else (example,)
    named = held.items() if isinstance(held, dict) else enumerate(held)
    feeds = arrays_of({str(name): value for name, value in named}, "bad-example", "the example's", "example")
    modes = {part: part.training for part in module.modules()}
    loaded = Loaded(module.eval(), None, None, (), {}, Home(Path.cwd()))
    try:
        with store.scratch() as work:
            path = work / "model.onnx"
            _torch_export.run(loaded, export or ExportSettings(), feeds, path)
            return prepare_model(path, calibration, settings, named=dict(module.named_parameters()))
    finally:
        for part, training in modes.items():
            part.training = training


def prepare_model(
    path: str | Path, calibration: Iterable[Any], settings: QatSettings | None = None, *, named: Collection[str] = (),
) -> Prepared:  # fmt: skip
    """Prepare a float .onnx file. ``named`` are initializers that are known to be parameters.

    Raises ``InputError`` for a model that can't be quantized or trained.
    """
    import onnx_ir as ir

    settings = settings or QatSettings()
    choice, path = of_settings(settings.static()), Path(path)
    Network(float_model.prepared(path, exclude=settings.exclude))  # what can't be trained is refused before all else
    signature = graph.signature(graph.load(path))
    samples = batches.calibration(calibration, signature)
    study, _ = studied(path, samples, choice)
    ir.external_data.load_to_model(study.model)
    placement = study.placed(choice)
    if not placement.weights:
        reasons = {layer.reason for layer in placement.layers if layer.reason and layer.op in WEIGHTED}
        what = "there is nothing worth quantizing" + (f": {'; '.join(sorted(reasons))}" if reasons else "")
        raise InputError("nothing-to-quantize", what, where=str(path), do="leave the model in float")
    choice, _ = automatic.resolved(study, choice)
    grids = study.grids(placement, choice)
    rounding = Rounding(placement, grids, study.weights(placement, grids, choice), settings.scales == "learned")
    known = frozenset(named)
    module = Network(study.model, rounding, known)
    narrow = [saturation.unmeasured(settings.target_cpu)] if choice.weight_bits == saturation.SAFE_BITS else []
    notes = (*study.notes, *narrow, *notices.few(samples, study.statistics), *notices.of_samples(path, samples))
    return Prepared(module, study.model, placement, choice, signature, samples.count, known, settings.target_cpu, notes)


def device_of(module: nn.Module) -> torch.device:
    """Return the device that a module's parameters are on."""
    found = next(iter(module.parameters()), None)
    return torch.device("cpu") if found is None else found.device

"""Convert: the learned weights and ranges go to the static quantizer's emitter. Imports torch."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from penstock import graph, store
from penstock.quantization.emit import Weights, emit
from penstock.quantization.study import parameters

if TYPE_CHECKING:
    from penstock.jsonable import Json
    from penstock.qat.preparation import Prepared


@dataclass(frozen=True, slots=True)
class Converted:
    """What was written: the files, the size of the int8 one, and facts on each layer."""

    output: str
    float_output: str
    size_bytes: int
    facts: Mapping[str, Json]


def convert(prepared: Prepared, output: str | Path, *, float_output: str | Path | None = None) -> Converted:
    """Write the int8 model to ``output``, and the trained float one to ``float_output`` if that is named.

    Raises ``InputError`` where the trained weights aren't finite, ``StoreError`` where a file can't be written.
    """
    model = prepared.trained_model()
    module, placement = prepared.module, prepared.placement
    grids, rounded = module.tensor_grids(), module.weight_grids()
    weights = {}
    for node in model.graph:
        if (grid := rounded.get(str(node.name))) is not None:
            real, bias = parameters(node, placement.weights[str(node.name)])
            weights[str(node.name)] = Weights(grid.quantize(real), grid, bias)
    made = emit(model, placement, grids, weights)
    wanted = [(made, Path(output)), *([(model, Path(float_output))] if float_output else [])]
    with contextlib.ExitStack() as stack:
        written = []
        for one, target in wanted:
            graph.tidy(one)
            folder = stack.enter_context(store.scratch())
            graph.save(one, folder / target.name)
            written.append((folder, target))
        for folder, target in written:
            for file in sorted(folder.iterdir(), key=lambda path: path.suffix == ".onnx"):
                store.copy_file(file, target.parent / file.name)
    ranges: dict[str, Json] = {
        name: {"low": grid.bottom, "high": grid.top, "scale": float(grid.scale)} for name, grid in grids.items()
    }
    facts: dict[str, Json] = {
        "method": "qat", "precision": "int8", "consumer": prepared.choice.consumer,
        "activations": prepared.choice.dtype, "target_cpu": prepared.target_cpu,
        "weight_bits": prepared.choice.weight_bits, "calibration_samples": prepared.calibration_samples,
        "ranges": ranges,
        "layers": cast("list[Json]", [
            {"node": one.node, "op": one.op, "state": one.state, "reason": one.reason} for one in placement.layers
        ]),
    }  # fmt: skip
    return Converted(str(output), str(float_output or ""), Path(output).stat().st_size, facts)

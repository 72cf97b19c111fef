"""The ONNX reference evaluator: slow, literal, the oracle that others are held against."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from penstock import graph
from penstock.backends import Loadable
from penstock.deployment import Deployment, Role
from penstock.errors import InputError
from penstock.graph import first_line
from penstock.jsonable import Json
from penstock.variant import Format

if TYPE_CHECKING:
    import numpy as np
    import onnx
    import onnx_ir as ir

QUANTIZED = 19  # the first opset whose DequantizeLinear it has
ROLE: Role = "oracle"
FORMATS: tuple[Format, ...] = ("onnx",)


def available() -> str:
    """Return "": onnx is always there."""
    return ""


def facts() -> Mapping[str, Json]:
    """Return the version of onnx."""
    import onnx

    return {"version": onnx.__version__}


def load(model: Loadable, deployment: Deployment) -> ReferenceSession:
    """Read the model for evaluation in numpy."""
    from onnx.reference import ReferenceEvaluator

    assert model.path is not None
    loaded = graph.load(model.path)
    old = (loaded.opset_imports.get("") or 1) < 14
    if old and any(node.op_type == "BatchNormalization" for node in loaded.graph.all_nodes()):
        # below opset 14 it takes the statistics of the batch, as in training: an oracle that is wrong is none
        what = "the ONNX reference evaluator computes BatchNormalization below opset 14 as in training"
        raise InputError("runtime-refuses", what, where=str(model.path), do="compare with another runtime")
    source: Any = str(model.path)
    opset = loaded.opset_imports.get("") or 1
    if opset < QUANTIZED and any(node.op_type == "DequantizeLinear" for node in loaded.graph.all_nodes()):
        source = _newer(loaded) or source
    try:
        return ReferenceSession(ReferenceEvaluator(source), opset if source == str(model.path) else QUANTIZED)
    except Exception as error:  # the evaluator raises many types, all about this model
        what = f"the ONNX reference evaluator can't load the model: {first_line(error)}"
        raise InputError("runtime-refuses", what, where=str(model.path)) from error


def _newer(model: ir.Model) -> onnx.ModelProto | None:
    """Return the model in an opset whose DequantizeLinear the evaluator has; ``None`` where that can't be."""
    import onnx_ir as ir

    from penstock.opsets.whole import converted

    newer, done, _ = converted(model, QUANTIZED)
    if done.refused:
        return None
    ir.external_data.load_to_model(newer)
    return ir.to_proto(newer)


class ReferenceSession:
    """A model in the ONNX reference evaluator, as it is or in another opset."""

    def __init__(self, evaluator: Any, opset: int) -> None:
        self._evaluator, self._opset = evaluator, opset

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Evaluate one batch."""
        import numpy as np

        try:
            with np.errstate(all="ignore"):
                found: list[Any] = self._evaluator.run(None, dict(feeds))
            made: list[Any] = [one if one is None or isinstance(one, list) else np.asarray(one) for one in found]
            return made
        except Exception as error:  # as at loading
            what = f"the ONNX reference evaluator can't run the model: {first_line(error)}"
            raise InputError("run-failed", what) from error

    def actual(self) -> Mapping[str, Json]:
        """Return that it runs in numpy, and in which opset."""
        return {"device": "cpu", "precision": "as written", "opset": self._opset}

    def close(self) -> None:
        """Drop the evaluator."""
        self._evaluator = None

"""Models written down in a few lines, rewritten by all passes, and run before and after by two runtimes."""

import re
from collections import Counter
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from penstock import registry
from penstock.passes._order import in_order, run_unasked
from penstock.rewriting.run import rewrite

BOUNDS = {np.dtype(np.float64): 1e-9, np.dtype(np.float32): 2e-5, np.dtype(np.float16): 5e-3}


@dataclass
class Outcome:
    """What came of a model: operators, reasons by pass, and the two models."""

    before: onnx.ModelProto
    after: onnx.ModelProto
    reasons: dict[str, list[str]]

    @property
    def operators(self) -> dict[str, int]:
        return dict(Counter(node.op_type for node in self.after.graph.node))

    def node(self, operator: str) -> onnx.NodeProto:
        (found,) = (node for node in self.after.graph.node if node.op_type == operator)
        return found

    def attributes(self, operator: str) -> dict[str, object]:
        return {one.name: onnx.helper.get_attribute_value(one) for one in self.node(operator).attribute}


def model(text: str, opset: int, weights: dict[str, np.ndarray] | None = None) -> onnx.ModelProto:
    """Read a graph in onnx's text form; ``{name}`` in it is a scalar constant of type float of that value."""
    numbers = dict.fromkeys(re.findall(r"\{(-?[\d.e-]+|inf|-inf)\}", text))
    constants = {f"n{place}": np.array(float(number), np.float32) for place, number in enumerate(numbers)}
    for name, number in zip(constants, numbers, strict=True):
        text = text.replace("{" + number + "}", name)
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}]>\ng {text}')
    for name, array in {**constants, **(weights or {})}.items():
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    return proto


def wide(proto: onnx.ModelProto) -> None:
    """Turn the constants of type float into doubles."""
    for one in proto.graph.initializer:
        array = numpy_helper.to_array(one)
        if array.dtype == np.float32:
            one.CopyFrom(numpy_helper.from_array(array.astype(np.float64), one.name))


def rewritten(proto: onnx.ModelProto, *also: str) -> Outcome:
    """Rewrite it with all passes to a fixpoint; nothing may fail, and a second time must change nothing."""
    onnx.checker.check_model(proto, full_check=True)
    passes = in_order({name: registry.load("passes", name) for name in (*run_unasked(), *also)})
    found = rewrite(ir.serde.deserialize_model(proto), passes, max_rounds=20)
    assert found.settled
    assert not [(turn.name, turn.failures) for turn in found.turns if turn.failures]
    after = ir.serde.serialize_model(found.model)
    onnx.checker.check_model(after, full_check=True)
    reasons = {turn.name: [one.reason for one in turn.declined.values()] for turn in found.turns if turn.declined}
    again = rewrite(ir.serde.deserialize_model(after), passes, max_rounds=20)
    assert not again.trace.events
    return Outcome(proto, after, reasons)


def hold(outcome: Outcome, *feeds: dict[str, np.ndarray], bound: float | None = None, reference: bool = True) -> None:
    """Run both models on each of the inputs, in the reference evaluator and in ONNX Runtime, and compare."""
    for one in feeds:
        wanted = _runtime(outcome.before, one)
        results = [_runtime(outcome.after, one)]
        if reference:
            results.append(ReferenceEvaluator(outcome.after).run(None, one))
            for a, b in zip(ReferenceEvaluator(outcome.before).run(None, one), wanted, strict=True):
                _close(a, b, bound)
        for got in results:
            for a, b in zip(got, wanted, strict=True):
                assert np.isfinite(b.astype(np.float64)).all()
                _close(a, b, bound)


def _close(a: np.ndarray, b: np.ndarray, bound: float | None) -> None:
    assert a.shape == b.shape and a.dtype == b.dtype
    scale = max(float(np.abs(b.astype(np.float64)).max()), 1e-3)
    limit = bound or BOUNDS.get(b.dtype, 0.0)
    assert float(np.abs(a.astype(np.float64) - b.astype(np.float64)).max()) <= limit * scale


def _runtime(proto: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def some(*shape: int, seed: int = 0, dtype: type = np.float32) -> np.ndarray:
    """Return normally distributed numbers."""
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)

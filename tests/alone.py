"""Models written as text, rewritten by a few passes alone, and held against the oracle and ONNX Runtime."""

from collections import Counter
from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from onnx import numpy_helper, parser
from onnx.reference import ReferenceEvaluator

from penstock import registry
from penstock.passes._order import in_order
from penstock.rewriting.run import Rewritten, rewrite
from penstock.rewriting.trace import snapshot


def model(text: str, opset: int = 17, **weights: np.ndarray) -> onnx.ModelProto:
    """Parse ``(inputs) => (outputs) { nodes }``."""
    made = parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}]> g {text}')
    made.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
    onnx.checker.check_model(made)
    return made


def rewritten(proto: onnx.ModelProto, *passes: str) -> tuple[onnx.ModelProto, Rewritten]:
    """Run some passes, and what removes dead weights, to their fixpoint."""
    names = (*passes, "remove-unused", "sort-nodes")
    result = rewrite(
        ir.from_proto(proto), in_order({name: registry.load("passes", name) for name in names}), max_rounds=20
    )
    assert result.settled
    for turns in result.turns:
        assert not turns.failures, (turns.name, turns.failures)
    after = ir.to_proto(result.model)
    onnx.checker.check_model(after)
    replayed = snapshot(result.trace.base, result.trace.events)
    assert [row.outputs for row in replayed[""]] == [tuple(node.output) for node in after.graph.node]
    return after, result


def reasons(result: Rewritten, name: str) -> list[str]:
    return [place.reason for turns in result.turns if turns.name == name for place in turns.declined.values()]


def ops(proto: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in proto.graph.node if node.op_type != "Constant")


def feeds(proto: onnx.ModelProto, batch: int = 2, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    constants = {one.name for one in proto.graph.initializer}
    made = {}
    for value in proto.graph.input:
        if value.name in constants:
            continue
        info = value.type.tensor_type
        shape = [dim.dim_value if dim.dim_value > 0 else batch for dim in info.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(info.elem_type)
        integers = np.dtype(dtype).kind in "iub"
        made[value.name] = (
            rng.integers(0, 100, shape).astype(dtype) if integers else rng.normal(0, 2, shape).astype(dtype)
        )
    return made


def run_reference(proto: onnx.ModelProto, given: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    return list(ReferenceEvaluator(proto).run(None, dict(given)))


def run_ort(proto: onnx.ModelProto, given: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, dict(given)))


def agree(
    before: onnx.ModelProto, after: onnx.ModelProto, *, exactly: bool = False, by: str = "both", batch: int = 2
) -> None:
    """Both runtimes give for the new model what they gave for the old one."""
    assert [value.name for value in before.graph.output] == [value.name for value in after.graph.output]
    given = feeds(before, batch)
    runners = {"reference": [run_reference], "ort": [run_ort], "both": [run_reference, run_ort]}[by]
    for run in runners:
        for old, new in zip(run(before, given), run(after, given), strict=True):
            assert (old.shape, old.dtype) == (new.shape, new.dtype)
            if exactly or old.dtype.kind in "iub":
                np.testing.assert_array_equal(old, new)
            else:
                np.testing.assert_allclose(old, new, rtol=1e-5, atol=1e-5)

"""The indexed rewrite rules find what the library's own search finds, in a time that grows with the graph."""

import time
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from penstock.passes._rules import MAX_READERS, indexed


def halves(count: int, readers: int = 1) -> onnx.ModelProto:
    """Split x (2, 8) into two halves with two Slices, ``count`` times over; each value is sliced ``readers`` times."""
    nodes, outputs = [], []
    for i in range(count):
        nodes.append(helper.make_node("Abs", ["x"], [f"a{i}"]))
        for j in range(readers):
            nodes += [
                helper.make_node("Slice", [f"a{i}", "middle", "end", "axis"], [f"high{i}_{j}"]),
                helper.make_node("Slice", [f"a{i}", "start", "middle", "axis"], [f"low{i}_{j}"]),
                helper.make_node("Sub", [f"high{i}_{j}", f"low{i}_{j}"], [f"y{i}_{j}"]),
            ]
            outputs.append(helper.make_tensor_value_info(f"y{i}_{j}", TensorProto.FLOAT, [2, 4]))
    held = {"start": 0, "middle": 4, "end": 8, "axis": 1}
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 8])], outputs,
        [numpy_helper.from_array(np.array([value], np.int64), name) for name, value in held.items()],
        value_info=[helper.make_tensor_value_info(f"a{i}", TensorProto.FLOAT, [2, 8]) for i in range(count)],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def rules() -> list:
    from onnxscript import rewriter

    return [*rewriter._DEFAULT_REWRITE_RULES]


def rewritten(model: onnx.ModelProto, chosen: list) -> onnx.ModelProto:
    from onnxscript.rewriter import pattern

    graph = ir.serde.deserialize_model(model)
    pattern.RewriteRuleSet(chosen).apply_to_model(graph)
    return ir.serde.serialize_model(graph)


@pytest.mark.parametrize("count", [1, 5])
def test_two_halves_become_a_split(count: int, tiny: ModuleType) -> None:
    model = halves(count)
    found, want = rewritten(model, indexed(rules())), rewritten(model, rules())
    assert [node.op_type for node in found.graph.node] == [node.op_type for node in want.graph.node]
    assert sum(node.op_type == "Split" for node in found.graph.node) == count
    x = np.random.default_rng(0).normal(size=(2, 8)).astype(np.float32)
    for a, b in zip(tiny.oracle(model, {"x": x}), tiny.oracle(found, {"x": x}), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_librarys_rules_stay_as_they_are() -> None:
    before = [(rule, rule._matcher) for rule in rules()]
    indexed(rules())
    assert all(rule._matcher is matcher for rule, matcher in before)


@pytest.mark.parametrize(("count", "readers"), [(3000, 1), (1, 3000)])
def test_thousands_of_slices_take_seconds(count: int, readers: int) -> None:
    """The library's own search tries all pairs: with these it takes minutes."""
    began = time.process_time()
    found = rewritten(halves(count, readers), indexed(rules()))
    assert time.process_time() - began < 20
    splits = sum(node.op_type == "Split" for node in found.graph.node)
    assert splits == (count if readers <= MAX_READERS else 0)


@pytest.mark.shared
def test_the_largest_model_takes_seconds(shared: Path, tmp_path: Path) -> None:
    from penstock.stages.optimize import OptimizeSettings, optimize

    began = time.process_time()
    done = optimize(shared / "models" / "bert-tf-qa" / "model.onnx", OptimizeSettings(), tmp_path)
    assert time.process_time() - began < 10
    assert (done.nodes_before, done.nodes_after, done.settled) == (3836, 2895, True)

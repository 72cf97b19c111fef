"""The passes that need the whole model: sorting, listing, deduplicating, inlining, removing; and constants lifted."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from penstock import graph
from penstock.errors import InputError
from penstock.graph import KEPT_DOMAIN
from penstock.passes import inline_functions
from rewriting_cases import apply, assert_becomes, assert_same, assert_stays, floats, in_branch, model, node, tensor

X = {"x": ("batch", 4)}


# --- sort-nodes


def shuffled(proto: onnx.ModelProto) -> onnx.ModelProto:
    nodes = list(proto.graph.node)[::-1]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    return proto


def test_nodes_come_after_what_they_read() -> None:
    proto = model([node("Relu", ["x"], ["a"]), node("Exp", ["a"], ["b"]), node("Add", ["a", "b"], ["y"])], X, ["y"])
    sorted_ = apply(shuffled(proto), "sort-nodes")
    assert sorted_.operators == ["Relu", "Exp", "Add"]
    onnx.checker.check_model(sorted_.proto)
    assert_stays(sorted_.proto, "sort-nodes")


def test_a_node_comes_after_what_its_body_reads() -> None:
    inner = in_branch(model([node("Neg", ["a"], ["y"])], {"a": ("batch", 4)}, ["y"]))
    proto = model([node("Relu", ["x"], ["a"])], X, ["a"])
    proto.graph.node.insert(0, inner.graph.node[0])
    proto.graph.input.append(inner.graph.input[-1])
    assert apply(proto, "sort-nodes").operators[0] == "Relu"


def test_what_is_sorted_keeps_its_order() -> None:
    proto = model([node("Exp", ["x"], ["b"]), node("Relu", ["x"], ["a"]), node("Add", ["a", "b"], ["y"])], X, ["y"])
    assert_stays(proto, "sort-nodes")
    assert_stays(in_branch(proto), "sort-nodes")


# --- unlist-initializers


def test_initializers_are_taken_off_the_inputs() -> None:
    proto = model([node("Add", ["x", "w"], ["y"])], {**X, "w": (4,)}, ["y"], {"w": floats(0, 4)})
    found = apply(proto, "unlist-initializers")
    assert [value.name for value in found.proto.graph.input] == ["x"] and found.proto.ir_version == 10
    proto.ir_version = 3
    assert apply(proto, "unlist-initializers").proto.ir_version == 4
    assert_stays(found.proto, "unlist-initializers")


# --- deduplicate-initializers


def test_equal_initializers_are_one() -> None:
    held = {"a": floats(0, 4), "b": floats(0, 4), "c": floats(1, 4)}
    nodes = [node("Add", ["x", "a"], ["p"]), node("Mul", ["p", "b"], ["q"]), node("Sub", ["q", "c"], ["y"])]
    proto = model(nodes, X, ["y"], held)
    found = apply(proto, "deduplicate-initializers")
    assert [one.input[1] for one in found.proto.graph.node] == ["a", "a", "c"]
    assert found.turns["deduplicate-initializers"].rewrites == 1
    assert_same(proto, found.proto)
    assert_stays(found.proto, "deduplicate-initializers")


def test_large_ones_as_well() -> None:
    big = floats(0, 100, 4)
    proto = model(
        [node("Add", ["x", "a"], ["p"]), node("Add", ["p", "b"], ["y"])], {"x": (100, 4)}, ["y"], {"a": big, "b": big}
    )
    assert len(apply(proto, "deduplicate-initializers").proto.graph.initializer) == 1


@pytest.mark.parametrize(("a", "b"), [
    (np.zeros(4, np.float32), np.zeros(4, np.int32)), (np.zeros((1, 4), np.float32), np.zeros(4, np.float32)),
    (np.float32([0, 1, 2, 3]), np.float32([0, 1, 2, 4])), (np.float32([0.0] * 4), np.float32([-0.0] * 4)),
])  # fmt: skip
def test_other_types_shapes_and_numbers_stay(a: np.ndarray, b: np.ndarray) -> None:
    nodes = [node("Identity", ["a"], ["p"]), node("Identity", ["b"], ["q"])]
    assert_stays(model(nodes, X, ["p", "q"], {"a": a, "b": b}), "deduplicate-initializers")


def test_inputs_and_outputs_keep_theirs() -> None:
    held = {"a": floats(0, 4), "b": floats(0, 4)}
    proto = model([node("Add", ["x", "a"], ["p"]), node("Add", ["p", "b"], ["y"])], {**X, "b": (4,)}, ["y"], held)
    assert_stays(proto, "deduplicate-initializers")


# --- inline-functions


def calls(depth: int = 1, kept: bool = False) -> onnx.ModelProto:
    domain = KEPT_DOMAIN if kept else "own"
    imports = [helper.make_opsetid("", 21), helper.make_opsetid(domain, 1)]
    made = []
    for level in range(depth):
        inner = "Relu" if level + 1 == depth else f"F{level + 1}"
        of = "" if inner == "Relu" else domain
        body = [node(inner, ["a"], ["t"], domain=of), node(inner, ["t"], ["b"], domain=of)]
        made.append(helper.make_function(domain, f"F{level}", ["a"], ["b"], body, imports))
    proto = model([node("Relu", ["x"], ["y"])], X, ["y"], imports={domain: 1})  # inference would expand all calls
    proto.graph.node[0].CopyFrom(node("F0", ["x"], ["y"], domain=domain))
    proto.functions.extend(reversed(made))
    return proto


def test_calls_are_replaced_by_bodies() -> None:
    found = apply(calls(3), "inline-functions")
    assert found.operators == ["Relu"] * 8 and not found.proto.functions
    x = {"x": floats(0, 2, 4)}
    want, got = (onnx.reference.ReferenceEvaluator(proto).run(None, x)[0] for proto in (calls(3), found.proto))
    np.testing.assert_array_equal(got, want)


def test_what_the_user_keeps_stays() -> None:
    assert_stays(calls(1, kept=True), "inline-functions")


def test_a_bomb_is_not_inlined() -> None:
    found = apply(calls(30), "inline-functions")
    assert not found.done.trace.events
    assert found.reasons == [f"inlining all functions would make {inline_functions.MAX_NODES:,} nodes or more"]


def test_a_function_of_another_opset_is_not_inlined() -> None:
    """Softmax of opset 11 flattens, and that of the model's 21 doesn't."""
    proto = calls(1)
    for entry in proto.functions[0].opset_import:
        if entry.domain == "":
            entry.version = 11
    found = apply(proto, "inline-functions")
    assert not found.done.trace.events
    assert found.reasons == ["the function 'F0' (called by y) is of opset 11, the model of 21"]
    with pytest.raises(InputError, match=r"can't be inlined: the function 'F0' .* is of opset 11"):
        graph.inline(found.done.model)


def test_a_crowd_of_functions_is_not_inlined_but_what_nobody_calls_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    proto = calls(3)
    spare = helper.make_function("own", "Spare", ["a"], ["b"], [node("Neg", ["a"], ["b"])], proto.opset_import)
    proto.functions.append(spare)
    monkeypatch.setattr(inline_functions, "MAX_FUNCTIONS", 2)
    found = apply(proto, "inline-functions")
    assert [one.name for one in found.proto.functions] == ["F2", "F1", "F0"]
    assert found.reasons == ["3 functions are in use, 2 are inlined at most"]
    monkeypatch.setattr(inline_functions, "MAX_FUNCTIONS", 3)
    assert apply(proto, "inline-functions").operators == ["Relu"] * 8


# --- lift-constants


@pytest.mark.parametrize("value", [
    {"value": tensor("", floats(0, 4))}, {"value_float": 2.0}, {"value_floats": [1.0, 2.0, 3.0, 4.0]},
])  # fmt: skip
def test_a_constant_becomes_an_initializer(value: dict) -> None:
    proto = model([node("Constant", [], ["k"], **value), node("Add", ["x", "k"], ["y"])], X, ["y"])
    found = apply(proto, "lift-constants")
    assert found.operators == ["Add"] and len(found.proto.graph.initializer) == 1
    assert_same(proto, found.proto)
    inside = apply(in_branch(proto), "lift-constants")
    assert inside.operators == ["If", "Constant", "Add"], "the else branch hands its constant out"


def test_whole_numbers_and_texts_as_well() -> None:
    nodes = [node("Constant", [], ["s"], value_ints=[0, -1]), node("Reshape", ["x", "s"], ["y"])]
    assert_becomes(model(nodes, X, ["y"]), "lift-constants", ["Reshape"], branch=False)
    scalar = [node("Constant", [], ["i"], value_int=1), node("Gather", ["x", "i"], ["y"], axis=1)]
    found = assert_becomes(model(scalar, X, ["y"]), "lift-constants", ["Gather"], branch=False)
    assert found.weight(found.proto.graph.node[0].input[1]).shape == ()


def test_a_constant_that_is_an_output_stays() -> None:
    proto = model([node("Constant", [], ["y"], value_float=1.0)], X, ["y"])
    assert_stays(proto, "lift-constants", "it hands out, as an output of its graph, an input or a constant")


# --- remove-unused


def test_what_nobody_reads_goes() -> None:
    nodes = [
        node("Relu", ["x"], ["y"]),
        node("Exp", ["x"], ["dead"]),
        node("Neg", ["dead"], ["deader"]),
        node("Add", ["x", "w"], ["z"]),
    ]
    proto = model(nodes, X, ["y"], {"w": floats(0, 4), "v": floats(1, 4)}, imports={"com.acme": 1})
    found = apply(proto, "remove-unused")
    assert found.operators == ["Relu"] and not found.proto.graph.initializer
    assert [entry.domain for entry in found.proto.opset_import] == [""]
    assert_same(proto, found.proto)
    assert_stays(found.proto, "remove-unused")


def test_inputs_stay_used_or_not() -> None:
    proto = model([node("Relu", ["x"], ["y"])], {**X, "unused": (3,), "w": (4,)}, ["y"], {"w": floats(0, 4)})
    assert_stays(proto, "remove-unused")


def test_a_dead_if_goes_with_what_only_its_bodies_read() -> None:
    inner = in_branch(model([node("Neg", ["a"], ["y"])], {"a": ("batch", 4)}, ["y"]))
    proto = model([node("Relu", ["x"], ["a"]), node("Exp", ["x"], ["z"])], X, ["z"])
    proto.graph.node.append(inner.graph.node[0])
    proto.graph.input.append(inner.graph.input[-1])
    assert apply(proto, "remove-unused").operators == ["Exp"]


def test_dead_nodes_in_bodies_and_functions_go() -> None:
    inner = model([node("Neg", ["x"], ["y"]), node("Exp", ["x"], ["dead"])], X, ["y"])
    assert apply(in_branch(inner), "remove-unused").operators == ["If", "Constant", "Neg"]
    imports = [helper.make_opsetid("", 21)]
    body = [node("Abs", ["a"], ["b"]), node("Exp", ["a"], ["dead"])]
    used = helper.make_function("own", "F", ["a"], ["b"], body, imports)
    unused = helper.make_function("own", "G", ["a"], ["b"], body, imports)
    proto = model([node("F", ["x"], ["y"], domain="own")], X, ["y"], functions=[used, unused], imports={"own": 1})
    found = apply(proto, "remove-unused").proto
    assert [function.name for function in found.functions] == ["F"] and [
        one.op_type for one in found.functions[0].node
    ] == ["Abs"]


def test_optional_outputs_at_the_end_go() -> None:
    dropout = model([node("Dropout", ["x"], ["y", "mask"])], X, ["y"])
    assert list(apply(dropout, "remove-unused").proto.graph.node[0].output) == ["y"]
    weights = {"w": floats(0, 1, 16, 3), "r": floats(1, 1, 16, 4)}
    lstm = model([node("LSTM", ["x", "w", "r"], ["y", "h", "c"], hidden_size=4)], {"x": ("t", 2, 3)}, ["h"], weights)
    assert list(apply(lstm, "remove-unused").proto.graph.node[0].output) == ["y", "h"], (
        "the one in the middle has its place"
    )


def test_outputs_that_say_something_stay() -> None:
    split = model([node("Split", ["x"], ["y", "z"], axis=1, num_outputs=2)], X, ["y"])
    assert_stays(split, "remove-unused")
    held = {name: np.ones(4, np.float32) for name in "sbmv"}
    five = [node("BatchNormalization", ["x", *"sbmv"], ["y", "m1", "v1", "m2", "v2"])]
    assert_stays(model(five, X, ["y"], held, opset=9), "remove-unused")


def test_attention_keeps_what_it_remembers() -> None:
    """ONNX Runtime doesn't run one that is given a memory and hands none out."""
    shapes = dict.fromkeys("qkv", (1, 2, 3, 4)) | {"a": (1, 2, 5, 4), "b": (1, 2, 5, 4)}
    one = node("Attention", ["q", "k", "v", "", "a", "b"], ["y", "pk", "pv"])
    assert_stays(model([one], shapes, ["y"], opset=23), "remove-unused")


# --- eliminate-common-subexpressions


CSE = "eliminate-common-subexpressions"


def test_the_same_twice_is_computed_once() -> None:
    nodes = [node("Relu", ["x"], ["a"]), node("Relu", ["x"], ["b"]), node("Softmax", ["a"], ["c"], axis=1),
             node("Softmax", ["b"], ["d"], axis=1), node("Add", ["c", "d"], ["y"])]  # fmt: skip
    assert_becomes(model(nodes, X, ["y"]), CSE, ["Relu", "Softmax", "Add"])


def test_several_outputs_at_once() -> None:
    cut = {"axis": 1, "num_outputs": 2}
    nodes = [node("Split", ["x"], ["a", "b"], **cut), node("Split", ["x"], ["c", "d"], **cut),
             node("Add", ["a", "d"], ["p"]),
             node("Mul", ["c", "b"], ["q"]), node("Add", ["p", "q"], ["y"])]  # fmt: skip
    assert_becomes(model(nodes, X, ["y"]), CSE, ["Split", "Add", "Mul", "Add"])


@pytest.mark.parametrize("twin", [
    node("Softmax", ["x"], ["b"], axis=0), node("Relu", ["x"], ["b"]), node("Softmax", ["x"], ["b"]),
    node("Softmax", ["x"], ["b"], axis=1, domain="own"),
])  # fmt: skip
def test_what_differs_stays(twin: onnx.NodeProto) -> None:
    nodes = [node("Softmax", ["x"], ["a"], axis=1), twin, node("Concat", ["a", "b"], ["y"], axis=1)]
    assert_stays(model(nodes, X, ["y"], imports={"own": 1}), CSE)


def test_chance_is_not_the_same_twice() -> None:
    """Case 1."""
    for op in ("RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial"):
        nodes = [node(op, ["x"], ["a"]), node(op, ["x"], ["b"]), node("Concat", ["a", "b"], ["y"], axis=1)]
        assert_stays(model(nodes, X, ["y"]), CSE)
    dropout = [node("Dropout", ["x", "r", "t"], [name]) for name in "ab"]
    proto = model([*dropout, node("Concat", ["a", "b"], ["y"], axis=1)], X, ["y"], {"r": 0.5, "t": np.array(True)})
    assert_stays(proto, CSE)


def test_an_output_of_its_graph_stays() -> None:
    assert_stays(
        model([node("Relu", ["x"], ["y"]), node("Relu", ["x"], ["z"])], X, ["y", "z"]),
        CSE,
        "it is an output of its graph",
    )


def test_in_other_graphs_they_stay_apart() -> None:
    proto = in_branch(model([node("Relu", ["x"], ["a"]), node("Neg", ["a"], ["y"])], X, ["y"]))
    proto.graph.node.insert(0, node("Relu", ["x"], ["o"]))
    proto.graph.output.append(helper.make_tensor_value_info("o", TensorProto.FLOAT, ["batch", 4]))
    assert_stays(proto, CSE)


def test_bodies_are_not_compared() -> None:
    one = in_branch(model([node("Neg", ["x"], ["y"])], X, ["y"]))
    twin = onnx.NodeProto()
    twin.CopyFrom(one.graph.node[0])
    twin.output[0] = "other"
    one.graph.node.append(twin)
    one.graph.output.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, [None, None]))
    assert_stays(one, CSE)


def test_tensors_in_attributes_are_compared() -> None:
    def filled(a: float, b: float) -> onnx.ModelProto:
        shape = [node("Shape", ["x"], ["s"])]
        both = [node("ConstantOfShape", ["s"], [name], value=helper.make_tensor("t", 1, [1], [number]))
                for name, number in (("a", a), ("b", b))]  # fmt: skip
        return model([*shape, *both, node("Add", ["a", "b"], ["c"]), node("Add", ["x", "c"], ["y"])], X, ["y"])

    assert_becomes(filled(2.0, 2.0), CSE, ["Shape", "ConstantOfShape", "Add", "Add"])
    assert_stays(filled(2.0, 3.0), CSE)


def test_no_pass_changes_a_loaded_model_that_it_declines() -> None:
    proto = model([node("Relu", ["x"], ["y"])], X, ["y"])
    loaded = ir.from_proto(proto)
    before = ir.to_proto(loaded).SerializeToString(deterministic=True)
    for one in (inline_functions,):
        assert not one.run(loaded).modified
    assert ir.to_proto(loaded).SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("training", [None, 0, 1])
def test_equal_statistics_are_one_but_in_training(training: int | None) -> None:
    """PyTorch writes training_mode = 0; in training ONNX Runtime writes over what it was given."""
    attributes = {} if training is None else {"training_mode": training}
    outputs = ["y", "m2", "v2"] if training else ["y"]
    norm = node("BatchNormalization", ["x", "s", "b", "m", "v"], outputs, **attributes)
    ones = np.ones(4, np.float32)
    proto = model([norm], X, ["y"], {"s": ones, "b": ones, "m": ones, "v": ones}, opset=15)
    found = apply(proto, "deduplicate-initializers", "remove-unused")
    assert len(found.proto.graph.initializer) == (4 if training else 1)
    assert len(found.proto.graph.node[0].output) == (3 if training else 1)

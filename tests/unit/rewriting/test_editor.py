"""The editor: a rewrite is carried out whole or not at all, wherever the node lies."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from penstock import source_lines
from penstock.rewriting import Refusal, Rewrite
from penstock.rewriting.editor import Editor
from penstock.rewriting.site import Site
from penstock.rewriting.trace import Trace
from penstock.rewriting.walk import nodes_of
from rewriting_cases import apply, assert_same, floats, model, node, operators, rule, stripped

X = {"x": ("batch", 4)}


def chain() -> onnx.ModelProto:
    nodes = [node("Relu", ["x"], ["a"], name="first"), node("Neg", ["a"], ["b"]), node("Abs", ["b"], ["y"])]
    return model(nodes, X, ["y"])


def edited(proto: onnx.ModelProto) -> tuple[ir.Model, Editor]:
    loaded = ir.from_proto(proto)
    trace = Trace()
    trace.begin(loaded)
    editor = Editor(loaded, trace)
    editor.learn()
    return loaded, editor


def find(loaded: ir.Model, op: str) -> ir.Node:
    return next(one for one in nodes_of(loaded) if one.op_type == op)


def bytes_of(loaded: ir.Model | onnx.ModelProto) -> bytes:
    proto = loaded if isinstance(loaded, onnx.ModelProto) else ir.to_proto(loaded)
    return stripped(proto).SerializeToString(deterministic=True)


def square(one: ir.Node, site: Site) -> Rewrite:
    """|−x| is the root of x², here with a constant and two nodes more than it needs."""
    site.make("Exp", [one.inputs[0]])
    double = site.make("Mul", [one.inputs[0], one.inputs[0]])
    return site.instead(one, site.make("Pow", [double, site.constant(np.float32(0.5))]), "roots")


# --- whole or not at all


@pytest.mark.parametrize("error", [ValueError("midway"), Refusal("no"), RecursionError(), AssertionError()])
def test_a_rule_that_stops_midway_leaves_everything_as_it_was(error: Exception) -> None:
    def stops(one: ir.Node, site: Site) -> Rewrite | None:
        square(one, site)
        raise error

    before = chain()
    found = apply(before, rule(stops, "Abs", "Neg"), failures=True)
    assert bytes_of(found.proto) == bytes_of(ir.from_proto(before)) and not found.done.trace.events
    assert len(found.failures if not isinstance(error, Refusal) else found.reasons) >= 2
    assert [len(v.uses()) for one in found.done.model.graph for v in one.outputs] == [1, 1, 0], "nothing hangs on"


def test_a_rule_that_thinks_better_of_it_leaves_everything_as_it_was() -> None:
    def nothing(one: ir.Node, site: Site) -> Rewrite | None:
        square(one, site)

    found = apply(chain(), rule(nothing, "*"))
    assert bytes_of(found.proto) == bytes_of(ir.from_proto(chain()))
    assert not found.failures and not found.reasons and found.done.settled
    assert [len(v.uses()) for one in found.done.model.graph for v in one.outputs] == [1, 1, 0]


def test_a_rewrite_that_is_refused_leaves_everything_as_it_was() -> None:
    """The output of the graph must not become an input, however much was built for another one."""
    nodes = [node("Split", ["x"], ["a", "y"], num_outputs=2, axis=1, name="cut"), node("Neg", ["a"], ["z"])]
    before = model(nodes, X, ["y", "z"])

    def half(one: ir.Node, site: Site) -> Rewrite | None:
        first, second = one.outputs
        return Rewrite({first: site.make("Exp", [one.inputs[0]]), second: one.inputs[0]}, "half of it")

    found = apply(before, rule(half, "Split"))
    assert found.reasons == ["it hands out, as an output of its graph, an input or a constant"]
    assert bytes_of(found.proto) == bytes_of(ir.from_proto(before)) and not found.done.trace.events


def test_only_what_is_needed_comes_in() -> None:
    before = chain()
    found = apply(before, rule(square, "Abs"))
    assert found.operators == ["Relu", "Neg", "Mul", "Pow"]
    assert_same(before, found.proto, tolerance=1e-5)


# --- refusals


def outputs_of_relu(wanted: str) -> onnx.ModelProto:
    nodes = [node("Relu", ["x"], ["y"]), node("Identity", ["y"], ["z"]), node("Identity", [wanted], ["w"])]
    return model(nodes, X, ["y", "z", "w"], {"c": floats(0, 4)})


def skip(one: ir.Node, site: Site) -> Rewrite:
    return site.instead(one, one.inputs[0], "skipped")


@pytest.mark.parametrize("wanted", ["x", "c"])
def test_an_output_needs_a_node_that_makes_it(wanted: str) -> None:
    found = apply(outputs_of_relu(wanted), rule(skip, "Identity"))
    assert sorted(found.reasons) == [
        "it hands out, as an output of its graph, an input or a constant",
        "its input is an output of its graph too",
    ]
    assert found.operators == ["Relu", "Identity", "Identity"]


def branches(then: list[onnx.NodeProto], other: list[onnx.NodeProto], after: list[onnx.NodeProto] | None = None,
             before: list[onnx.NodeProto] | None = None) -> onnx.ModelProto:  # fmt: skip
    def branch(name: str, nodes: list[onnx.NodeProto]) -> onnx.GraphProto:
        return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(nodes[-1].output[0], 1, None)])

    choice = node("If", ["c"], ["y"], then_branch=branch("then", then), else_branch=branch("else", other), name="if")
    return model([*(before or []), choice, *(after or [])], {**X, "c": ("bool", ())},
                 [after[-1].output[0] if after else "y"])  # fmt: skip


def test_a_branch_hands_out_what_it_makes() -> None:
    proto = branches([node("Identity", ["a"], ["t"])], [node("Neg", ["a"], ["e"])], before=[node("Relu", ["x"], ["a"])])
    found = apply(proto, rule(skip, "Identity"))
    assert found.reasons == ["it hands out a value of an outer graph"]
    assert_same(proto, found.proto)


def test_a_function_holds_no_constants() -> None:
    imports = [helper.make_opsetid("", 21)]
    body = [node("Abs", ["a"], ["b"]), node("Neg", ["b"], ["c"]), node("Neg", ["c"], ["d"])]
    function = helper.make_function("own", "F", ["a"], ["d"], body, imports)
    proto = model([node("F", ["x"], ["y"], domain="own")], X, ["y"], functions=[function], imports={"own": 1})

    def cancel(one: ir.Node, site: Site) -> Rewrite | None:
        before = site.maker(one.inputs[0], "Neg")
        return None if before is None else site.instead(one, site.make("Identity", [before.inputs[0]]), "cancel")

    found = apply(proto, rule(square, "Abs"), rule(cancel, "Neg", name="cancel"))
    assert found.reasons == ["it lies in a function, which can't hold constants"]
    assert [one.op_type for one in found.proto.functions[0].node] == ["Abs", "Identity"]
    assert found.proto.functions[0].output == ["d"]
    assert_same(proto, found.proto)


# --- names, types, outputs


def test_a_graph_output_keeps_its_name_type_and_shape() -> None:
    before = chain()
    found = apply(before, rule(square, "Abs"))
    assert found.proto.graph.output == before.graph.output
    assert found.proto.graph.node[-1].output == ["y"]


def test_an_output_takes_over_a_value_that_others_read() -> None:
    nodes = [node("Relu", ["x"], ["a"]), node("Neg", ["a"], ["z"]), node("Identity", ["a"], ["y"])]
    proto = model(nodes, X, ["y", "z"])
    found = apply(proto, rule(skip, "Identity"))
    assert [(list(one.input), list(one.output)) for one in found.proto.graph.node] == [(["x"], ["y"]), (["y"], ["z"])]
    assert_same(proto, found.proto)


def test_names_are_unique_over_all_graphs() -> None:
    """Ten values in a body already have the names that come to mind first."""
    taken = [node("Relu", ["x"], ["a"]), node("Abs", ["a"], ["y_const"]), node("Neg", ["y_const"], ["y_2"])]
    proto = branches(
        [*taken, node("Abs", ["y_2"], ["t"])], [node("Neg", ["x"], ["e"])], after=[node("Abs", ["y"], ["o"])]
    )
    found = apply(proto, rule(square, "Abs"))
    assert operators(found.proto).count("Pow") == 3
    named: list[str] = []
    for held in found.done.model.graphs():
        named += [value.name for value in (*held.inputs, *held.initializers.values())]
    named += [value.name for one in nodes_of(found.done.model) for value in one.outputs]
    assert len(named) == len(set(named)) and "" not in named and None not in named
    assert_same(proto, found.proto, tolerance=1e-5)


def test_a_copy_keeps_the_name_of_what_went() -> None:
    def again(one: ir.Node, site: Site) -> Rewrite | None:
        return site.instead(one, site.copy(one, [site.make("Abs", one.inputs)]), "again") if len(done) == 0 else None

    done: list[int] = []

    def once(one: ir.Node, site: Site) -> Rewrite | None:
        found = again(one, site)
        done.append(1)
        return found

    found = apply(chain(), rule(once, "Relu"))
    assert [(one.op_type, one.name) for one in found.proto.graph.node][:2] == [("Abs", "a_2"), ("Relu", "first")]


def test_the_line_of_the_users_code_is_handed_on() -> None:
    before = chain()
    before.graph.node[2].metadata_props.add(key=source_lines.KEY, value="net.py:7")
    found = apply(before, rule(square, "Abs"))
    lines = [source_lines.line_of(one) for one in found.done.model.graph]
    assert lines == ["", "", "net.py:7", "net.py:7"]
    assert found.done.trace.events[0].lines == ("net.py:7",)


# --- bodies


def test_what_a_body_captures_is_rewired() -> None:
    proto = branches(
        [node("Exp", ["b"], ["t"])], [node("Neg", ["b"], ["e"])],
        before=[node("Relu", ["x"], ["a"]), node("Identity", ["a"], ["b"])],
    )  # fmt: skip
    found = apply(proto, rule(skip, "Identity"))
    assert found.operators == ["Relu", "If", "Neg", "Exp"] or found.operators == ["Relu", "If", "Exp", "Neg"]
    assert_same(proto, found.proto)


def loop(body: list[onnx.NodeProto], before: list[onnx.NodeProto]) -> onnx.ModelProto:
    info = helper.make_tensor_value_info
    inner = helper.make_graph(
        [node("Identity", ["go"], ["on"], name="kept"), *body], "body",
        [info("i", TensorProto.INT64, []), info("go", TensorProto.BOOL, []), info("s", 1, ["batch", 4])],
        [info("on", TensorProto.BOOL, []), info(body[-1].output[0], 1, ["batch", 4])],
    )  # fmt: skip
    proto = model([*before, node("Loop", ["n", "", "x"], ["y"], body=inner, name="loop")], X, ["y"], {"n": 3})
    proto.graph.output[0].CopyFrom(info("y", 1, ["batch", 4]))
    return proto


def test_a_loop_body_is_rewritten_where_it_lies() -> None:
    proto = loop([node("Add", ["s", "b"], ["t"]), node("Abs", ["t"], ["u"])],
                 [node("Relu", ["x"], ["a"]), node("Identity", ["a"], ["b"])])  # fmt: skip
    found = apply(proto, rule(skip, "Identity"), rule(square, "Abs", name="square"))
    assert found.operators == ["Relu", "Loop", "Identity", "Add", "Mul", "Pow"], "go_on is handed from an input"
    inner = found.proto.graph.node[1].attribute[0].g
    assert len(inner.initializer) == 1 and not any(
        t.name == inner.initializer[0].name for t in found.proto.graph.initializer
    )
    assert_same(proto, found.proto, tolerance=1e-4)


def test_a_node_goes_with_its_bodies_and_with_what_only_they_read() -> None:
    def relu(one: ir.Node, site: Site) -> Rewrite:
        return site.instead(one, site.make("Relu", [one.inputs[2]]), "no loop")

    proto = loop([node("Add", ["s", "b"], ["u"])], [node("Exp", ["x"], ["a"]), node("Neg", ["a"], ["b"])])
    found = apply(proto, rule(relu, "Loop"))
    assert found.operators == ["Relu"]
    event = found.done.trace.events[0]
    assert len(event.removed) == 5, "the Loop, two nodes in it, and the two before it"
    assert {row.id for row in found.done.trace.base} == set(event.removed)


def test_a_body_that_came_in_is_rewritten_like_one_that_was_there() -> None:
    """Before anything is learnt anew: what lies in a copied body sees the values around it."""
    proto = branches([node("Exp", ["a"], ["t1"]), node("Abs", ["t1"], ["t"])], [node("Neg", ["a"], ["e"])],
                     before=[node("Relu", ["x"], ["a"])])  # fmt: skip
    loaded, editor = edited(proto)
    old = find(loaded, "If")
    attributes = [ir.AttrGraph(name, held.as_graph().clone(allow_outer_scope_values=True))
                  for name, held in old.attributes.items()]  # fmt: skip
    new = ir.Node("", "If", old.inputs, attributes)
    editor.site.made.append(new)
    editor.carry_out(old, editor.site.instead(old, new.outputs[0], "a copy"), "rule")
    inner = find(loaded, "Abs")
    outer = find(loaded, "Relu").outputs[0]
    editor.carry_out(
        inner, editor.site.instead(inner, editor.site.make("Tanh", [outer]), "reads what is outside"), "rule"
    )
    assert operators(ir.to_proto(loaded)) == ["Relu", "If", "Neg", "Tanh"]


def test_nodes_of_another_graph_are_out_of_reach() -> None:
    """A rule must not take a value out of a body."""

    def out(one: ir.Node, site: Site) -> Rewrite:
        inner = one.attributes["then_branch"].as_graph().outputs[0]
        return site.instead(one, site.make("Abs", [inner]), "out of the branch")

    proto = branches([node("Exp", ["x"], ["t"])], [node("Neg", ["x"], ["e"])])
    found = apply(proto, rule(out, "If"), failures=True)
    assert bytes_of(found.proto) == bytes_of(ir.from_proto(proto)) and not found.done.trace.events
    assert found.failures == ["ValueError: a new node reads 't', which is not to be seen from its graph"]


def test_a_new_node_does_not_read_what_it_takes_the_place_of() -> None:
    def around(one: ir.Node, site: Site) -> Rewrite:
        return site.instead(one, site.make("Abs", [one.outputs[0]]), "around")

    found = apply(chain(), rule(around, "Neg"), failures=True)
    assert bytes_of(found.proto) == bytes_of(ir.from_proto(chain())) and not found.done.trace.events
    assert found.failures == ["ValueError: a new node reads 'b', in whose place it is put"]


# --- from within


def test_the_place_of_new_nodes_can_be_chosen() -> None:
    """Both Negs are served by one Mul before the first of them."""
    nodes = [node("Relu", ["x"], ["a"]), node("Neg", ["a"], ["b"]), node("Exp", ["b"], ["p"]),
             node("Neg", ["a"], ["c"]), node("Add", ["p", "c"], ["y"])]  # fmt: skip
    proto = model(nodes, X, ["y"])

    def both(one: ir.Node, site: Site) -> Rewrite | None:
        twins = [use.node for use in one.inputs[0].uses() if use.node.op_type == "Neg"]
        if len(twins) < 2:
            return None
        made = site.make("Mul", [one.inputs[0], site.constant(np.float32(-1))])
        return Rewrite({twin.outputs[0]: made for twin in twins}, "one for two", before=site.first_of(twins))

    found = apply(proto, rule(both, "Neg"))
    assert found.operators == ["Relu", "Mul", "Exp", "Add"]
    assert_same(proto, found.proto)


def test_which_node_comes_first_is_known_after_changes_too() -> None:
    """Among old ones, ones that were put in the place of others, and ones that were put before those."""
    proto = model([node("Neg", ["x"], [f"v{i}"], name=f"n{i}") for i in range(6)]
                  + [node("Sum", [f"v{i}" for i in range(6)], ["y"])], X, ["y"])  # fmt: skip
    wrong: list[str] = []

    def once(one: ir.Node, site: Site) -> Rewrite | None:
        order = [each for each in one.graph if each.op_type != "Sum"]
        for _ in range(20):
            some = [order[int(i)] for i in rng.permutation(len(order))[: int(rng.integers(1, len(order) + 1))]]
            wrong.extend(str(each) for each in some if site.first_of(some) is not min(some, key=order.index))
        first = site.make("Abs", one.inputs)
        return Rewrite({one.outputs[0]: site.make("Exp" if one.op_type == "Neg" else "Sin", [first])}, "two for one")

    rng = np.random.default_rng(0)
    found = apply(proto, rule(once, "Neg", "Exp"))
    assert len(found.done.trace.events) == 12 and wrong == []


def test_put_back_keeps_the_ids() -> None:
    loaded, editor = edited(chain())
    ids = [editor.trace.id_of(one) for one in nodes_of(loaded)]
    backup, before = loaded.clone(), list(nodes_of(loaded))
    loaded.graph.remove(before[-1])
    editor.put_back(backup, before)
    assert [editor.trace.id_of(one) for one in nodes_of(editor.model)] == ids


def test_free_names() -> None:
    _, editor = edited(chain())
    assert [editor.free_name("a"), editor.free_name("a"), editor.free_name("new"), editor.free_name("new")] == [
        "a_2", "a_3", "new", "new_2"
    ]  # fmt: skip


def test_bytes_that_a_rewrite_saves() -> None:
    """Two float tensors of (batch, 4) go and one comes: 16 bytes less for each row."""
    nodes = [node("Neg", ["x"], ["a"]), node("Neg", ["a"], ["b"]), node("Abs", ["b"], ["y"])]

    def cancel(one: ir.Node, site: Site) -> Rewrite | None:
        before = site.maker(one.inputs[0], "Neg")
        return None if before is None else site.instead(one, site.make("Identity", [before.inputs[0]]), "cancel")

    found = apply(model(nodes, X, ["y"]), rule(cancel, "Neg"))
    assert [event.saved_bytes for event in found.done.trace.events] == [16]
    assert (found.turns["rule"].saved_bytes, found.turns["rule"].nodes_gone) == (16, 1)


@pytest.mark.parametrize(("made", "opset"), [("HardSwish", 14), ("Mish", 18), ("Softplus", 13)])
def test_what_the_opset_does_not_take_is_not_made(made: str, opset: int) -> None:
    """These take bfloat16 from opset 22 on."""

    def once(one: ir.Node, site: Site) -> Rewrite:
        return site.instead(one, site.make(made, one.inputs), "another")

    for kind, at in (("bfloat16", opset), ("float32", opset), ("bfloat16", 22)):
        proto = model([node("Neg", ["x"], ["y"])], X, ["y"], opset=at)
        if kind == "bfloat16":
            for value in (proto.graph.input[0], proto.graph.output[0]):
                value.type.tensor_type.elem_type = onnx.TensorProto.BFLOAT16
        found = apply(proto, rule(once, "Neg"))
        fits = kind == "float32" or at == 22
        assert found.operators == [made if fits else "Neg"]
        assert found.reasons == ([] if fits else [f"{made} of opset {opset} takes no bfloat16"])


def test_a_transpose_outside_a_body_is_made_anew_inside() -> None:
    """The one above lies in the outer graph, and what is turned in the body of the branch."""
    then = helper.make_graph(
        [node("Sigmoid", ["v1"], ["v2"]), node("Transpose", ["v2"], ["v3"], perm=[2, 0, 1]),
         node("Transpose", ["v3"], ["v4"], perm=[1, 0, 2])],
        "then", [], [helper.make_tensor_value_info("v4", 1, None)],
    )  # fmt: skip
    other = helper.make_graph([node("Relu", ["x"], ["e"])], "else", [], [helper.make_tensor_value_info("e", 1, None)])
    nodes = [
        node("Transpose", ["x"], ["v1"], perm=[1, 2, 0]),
        node("If", ["p"], ["y"], then_branch=then, else_branch=other),
    ]
    proto = model(nodes, {"x": (2, 6, 8), "p": ("bool", ())}, ["y"])
    for taken in (True, False):
        feeds = {"x": floats(0, 2, 6, 8), "p": np.array(taken)}
        found = apply(proto, "merge-transposes", "push-transposes")
        assert_same(proto, found.proto, feeds=feeds)
    assert found.operators.count("Transpose") == 1 and not found.failures

"""The log: base and events give the graph after every change; ids stay."""

from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from penstock import registry, source_lines
from penstock.jsonable import dumps, from_json, to_json
from penstock.passes import PassResult
from penstock.passes._order import in_order, run_unasked
from penstock.rewriting import Rewrite
from penstock.rewriting.editor import Editor
from penstock.rewriting.run import rewrite
from penstock.rewriting.site import Site
from penstock.rewriting.trace import Event, NodeRow, Trace, read, snapshot
from penstock.rewriting.walk import nodes_of
from rewriting_cases import apply, floats, in_branch, model, node


def rows(trace: Trace, loaded: ir.Model) -> dict[str, list[tuple]]:
    """The graph as it is: scope → nodes in order."""
    found: dict[str, list[tuple]] = {}
    for one in nodes_of(loaded):
        row = trace.rows[one]
        assert row.inputs == tuple("" if v is None else v.name for v in one.inputs)
        assert row.outputs == tuple(v.name or "" for v in one.outputs) and row.name == (one.name or "")
        found.setdefault(row.scope, []).append((row.id, row.op, row.inputs, row.outputs))
    return found


def replayed(trace: Trace) -> dict[str, list[tuple]]:
    final = snapshot(trace.base, trace.events)
    return {scope: [(row.id, row.op, row.inputs, row.outputs) for row in held] for scope, held in final.items()}


def all_passes() -> list:
    return in_order({name: registry.load("passes", name) for name in run_unasked()})


def watched(proto: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch) -> Trace:
    """Run all passes; after every single event, hold the replay against the graph as it is then."""
    states: list[bool] = []
    add, compare = Trace.add, Trace.compare

    def check(trace: Trace, loaded: ir.Model) -> None:
        assert replayed(trace) == rows(trace, loaded)
        states.append(True)

    held = SimpleNamespace(model=None)
    begin = Trace.begin

    def began(trace: Trace, loaded: ir.Model) -> None:
        held.model = loaded
        begin(trace, loaded)

    def added(trace: Trace, *given: object, **named: object) -> Event:
        event = add(trace, *given, **named)
        check(trace, held.model)
        return event

    def compared(trace: Trace, loaded: ir.Model, *given: object) -> Event:
        event = compare(trace, loaded, *given)
        check(trace, loaded)
        return event

    monkeypatch.setattr(Trace, "begin", began)
    monkeypatch.setattr(Trace, "add", added)
    monkeypatch.setattr(Trace, "compare", compared)
    done = rewrite(ir.from_proto(proto), all_passes(), max_rounds=20)
    assert states and len(states) >= len(done.trace.events)
    return done.trace


def messy() -> onnx.ModelProto:
    nodes = [
        node("Constant", [], ["half"], value_float=0.5, name="half"),
        node("Identity", ["x"], ["x1"]),
        node("Conv", ["x1", "w"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        node("BatchNormalization", ["c", "s", "s", "s", "s"], ["n"], name="bn"),
        node("Transpose", ["n"], ["t1"], perm=[0, 2, 3, 1]), node("Transpose", ["t1"], ["t2"], perm=[0, 3, 1, 2]),
        node("Relu", ["t2"], ["r1"]), node("Relu", ["t2"], ["r2"]), node("Add", ["r1", "r2"], ["a"]),
        node("Mul", ["a", "half"], ["m"]), node("Shape", ["m"], ["shape"]),
        node("Gather", ["shape", "zero"], ["batch"]),
        node("Concat", ["batch", "minus"], ["wanted"], axis=0), node("Reshape", ["m", "wanted"], ["y"]),
        node("Sigmoid", ["a"], ["dead"]),
    ]  # fmt: skip
    weights = {"w": floats(0, 4, 3, 3, 3), "s": np.ones(4, np.float32), "zero": [0], "minus": [-1]}
    return model(nodes, {"x": ("batch", 3, 8, 8)}, ["y"], weights)


@pytest.mark.parametrize("inside", [False, True])
def test_every_event_leads_to_the_graph_as_it_was_then(monkeypatch: pytest.MonkeyPatch, inside: bool) -> None:
    proto = in_branch(messy()) if inside else messy()
    trace = watched(proto, monkeypatch)
    assert len(trace.events) > 5
    assert {event.rule for event in trace.events} >= {"fold-batchnorm", "merge-transposes", "eliminate-noops"}


def test_every_prefix_of_the_log_is_a_whole_graph() -> None:
    trace = rewrite(ir.from_proto(messy()), all_passes(), max_rounds=20).trace
    for length in range(len(trace.events) + 1):
        (held,) = snapshot(trace.base, trace.events[:length]).values()
        made = {"x", "w", "s", "zero", "minus"}
        for row in held:
            unknown = [name for name in row.inputs if name and name not in made and "const" not in name]
            assert not unknown, (length, row)
            made |= {*row.outputs}
        assert "y" in made


def test_ids_stay_and_are_never_given_twice() -> None:
    done = rewrite(ir.from_proto(messy()), all_passes(), max_rounds=20)
    ids = [row.id for row in done.trace.base] + [row.id for event in done.trace.events for row in event.added]
    assert len(set(ids)) == len(ids)
    relu = next(row.id for row in done.trace.base if row.op == "Relu")
    assert done.trace.id_of(next(one for one in done.model.graph if one.op_type == "Relu")) == relu
    gone = {id for event in done.trace.events for id in event.removed}
    assert gone <= set(ids) and not gone & {done.trace.id_of(one) for one in done.model.graph}
    assert [event.number for event in done.trace.events] == list(range(len(done.trace.events)))


def test_the_log_survives_json() -> None:
    trace = rewrite(ir.from_proto(in_branch(messy())), all_passes(), max_rounds=20).trace
    base = tuple(from_json(NodeRow, to_json(row)) for row in trace.base)
    events = [from_json(Event, to_json(event)) for event in trace.events]
    assert snapshot(base, events) == snapshot(trace.base, trace.events)


def test_what_lies_where_and_what_is_written_of_attributes() -> None:
    held = node("Constant", [], ["k"], value=helper.make_tensor("t", TensorProto.FLOAT, [2, 3], [0.0] * 6))
    held.metadata_props.add(key=source_lines.KEY, value="net.py:3")
    proto = model([held, node("LeakyRelu", ["k"], ["a"], alpha=0.5), node("Tile", ["a", "n"], ["y"]),
                   node("Transpose", ["x"], ["z"], perm=list(range(10)))],
                  {"x": [1] * 10}, ["y", "z"], {"n": [1, 1]})  # fmt: skip
    loaded = ir.from_proto(in_branch(proto))
    trace = Trace()
    trace.begin(loaded)
    found = {row.op: row for row in trace.base}
    assert found["If"].scope == "" and found["If"].attributes == {"then_branch": "graph", "else_branch": "graph"}
    assert found["Tile"].scope == f"{found['If'].id}/then_branch"
    assert found["LeakyRelu"].attributes == {"alpha": "0.5"}
    assert found["Transpose"].attributes == {"perm": "[0, 1, 2, 3, 4, 5, 6, 7, …]"}
    first = next(row for row in trace.base if row.outputs == ("k",))
    assert first.attributes == {"value": "FLOAT[2, 3]"} and first.line == "net.py:3"
    assert "weights" not in asdict(first)


def whole(change: object) -> Trace:
    """Log what one pass over the whole model did."""
    loaded = ir.from_proto(messy())
    trace = Trace()
    trace.begin(loaded)
    change(loaded.graph)
    trace.compare(loaded, "a pass", "changed")
    assert replayed(trace) == rows(trace, loaded)
    return trace


def test_a_pass_over_the_whole_model_is_logged_by_comparing() -> None:
    def append(held: ir.Graph) -> None:
        made = ir.Node("", "Neg", [held.inputs[0]], name="new")
        made.outputs[0].name = "fresh"
        held.append(made)

    assert [row.name for row in whole(append).events[0].added] == ["new"]

    def move(held: ir.Graph) -> None:
        dead = next(one for one in held if one.op_type == "Sigmoid")
        held.remove(dead)
        held.insert_after(next(one for one in held if one.op_type == "Add"), dead)

    trace = whole(move)
    assert trace.events[0].removed == () and trace.events[0].order[""]

    def rename(held: ir.Graph) -> None:
        next(one for one in held if one.op_type == "Sigmoid").outputs[0].name = "other"

    assert len(whole(rename).events[0].rewired) == 1

    def retype(held: ir.Graph) -> None:
        next(one for one in held if one.op_type == "Sigmoid").op_type = "Tanh"

    assert whole(retype).events[0].rewired == ()

    def remove(held: ir.Graph) -> None:
        held.remove(next(one for one in held if one.op_type == "Sigmoid"))

    assert len(whole(remove).events[0].removed) == 1


def test_comparing_what_is_equal_logs_an_event_without_nodes() -> None:
    (event,) = whole(lambda held: None).events
    assert not (event.removed or event.added or event.rewired)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 11), min_size=1, max_size=8))
def test_any_sequence_of_edits_is_replayed(choices: list[int]) -> None:
    """Each number chooses a node, and what happens to it: it is replaced, doubled, or passed by."""
    proto = model(
        [node("Relu", ["x"], ["a"]), node("Neg", ["a"], ["b"]), node("Add", ["a", "b"], ["c"]),
         node("Abs", ["c"], ["y"])],
        {"x": (3,)}, ["y", "b"],
    )  # fmt: skip
    loaded = ir.from_proto(proto)
    trace = Trace()
    trace.begin(loaded)
    editor = Editor(loaded, trace)
    editor.learn()
    from penstock.rewriting import Refusal

    for choice in choices:
        one = list(loaded.graph)[choice % len(list(loaded.graph))]
        kind = choice // 4
        value = one.inputs[0] if kind == 2 else editor.site.make(["Exp", "Sqrt"][kind], one.inputs[:1])
        try:
            editor.carry_out(one, editor.site.instead(one, value, "edit"), "edit")
        except Refusal:
            editor.drop()
        assert replayed(trace) == rows(trace, loaded)
    onnx.checker.check_model(ir.to_proto(loaded))


def test_a_foreign_pass_that_is_taken_back_leaves_no_event() -> None:
    def spoil(loaded: ir.Model) -> PassResult:
        loaded.graph.remove(list(loaded.graph)[-1])
        raise RuntimeError("no")

    loaded = ir.from_proto(messy())
    one = SimpleNamespace(PHASE="fold", AFTER=(), run=spoil)
    done = rewrite(loaded, [("spoil", one)], max_rounds=3, foreign=frozenset(["spoil"]))
    assert done.trace.events == [] and replayed(done.trace) == rows(done.trace, done.model)
    assert [place.reason for place in done.turns[0].failures] == ["taken back: RuntimeError: no"]


def test_the_passes_after_one_that_is_taken_back_see_the_copy() -> None:
    """The model was put back as a copy, whose nodes are others than those that were found before."""

    def spoil(loaded: ir.Model) -> PassResult:
        raise SystemExit(0)

    loaded = ir.from_proto(model([node("Neg", ["x"], ["a"]), node("Neg", ["a"], ["y"])], {"x": (3,)}, ["y"]))
    one = SimpleNamespace(PHASE="fold", AFTER=(), run=spoil)

    def exp(found: ir.Node, site: Site) -> Rewrite:
        return site.instead(found, site.make("Exp", found.inputs), "another")

    other = SimpleNamespace(PHASE="fuse", AFTER=(), OPERATORS=("Neg",), rewrite=exp)
    done = rewrite(loaded, [("spoil", one), ("other", other)], max_rounds=3, foreign=frozenset(["spoil"]))
    assert [found.op_type for found in done.model.graph] == ["Exp", "Exp"]
    assert [place.reason for place in done.turns[0].failures] == ["taken back: SystemExit: 0"]


def test_what_is_written_is_read_back() -> None:
    """``penstock optimize --trace`` writes base and events as JSON; a snapshot of what is read is the graph itself."""
    found = apply(messy(), *run_unasked()).done
    base, events = read(dumps({"schema": 1, "base": found.trace.base, "events": found.trace.events}))
    for count in range(len(events) + 1):
        assert snapshot(base, events[:count]) == snapshot(found.trace.base, found.trace.events[:count])
    for text in ("{}", "[]", '{"base": [], "events": [{}]}', '{"base": 3}'):
        with pytest.raises(ValueError, match="e"):
            read(text)


def test_a_model_that_is_good_has_no_events() -> None:
    found = apply(model([node("Relu", ["x"], ["y"])], {"x": (3,)}, ["y"]), *run_unasked())
    assert found.done.trace.events == [] and found.done.rounds == 1 and found.done.settled

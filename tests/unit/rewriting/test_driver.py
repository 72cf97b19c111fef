"""The driver: to a fixpoint, within its bounds, in an order that doesn't depend on chance."""

import sys

import numpy as np
import onnx_ir as ir
import pytest

from penstock import registry
from penstock.passes import PassResult
from penstock.passes._order import run_unasked
from penstock.rewriting import Refusal, Rewrite
from penstock.rewriting.driver import MOST_DECLINED, MOST_FAILURES
from penstock.rewriting.run import PassBroke, count, rewrite, weight_bytes
from penstock.rewriting.site import Site
from rewriting_cases import apply, assert_same, floats, in_branch, model, node, rule

X = {"x": ("batch", 4)}


def chain(*ops: str) -> object:
    names = ["x", *(f"v{i}" for i in range(len(ops) - 1)), "y"]
    nodes = [node(op, [names[i]], [names[i + 1]], name=f"n{i}") for i, op in enumerate(ops)]
    return model(nodes, X, ["y"])


def becomes(new: str) -> object:
    def function(one: ir.Node, site: Site) -> Rewrite:
        return site.instead(one, site.make(new, one.inputs), f"{one.op_type} becomes {new}")

    return function


def cancel(one: ir.Node, site: Site) -> Rewrite | None:
    before = site.maker(one.inputs[0], one.op_type)
    return None if before is None else site.instead(one, site.make("Identity", before.inputs[:1]), "cancel")


def gone(one: ir.Node, site: Site) -> Rewrite | None:
    return site.instead(one, one.inputs[0], "gone")


def test_one_rewrite_makes_room_for_the_next() -> None:
    """Neg Exp… only the innermost pair is a pair; each that goes makes another one."""
    proto = chain("Relu", "Neg", "Abs", "Neg", "Neg", "Abs", "Neg", "Relu")
    found = apply(proto, rule(cancel, "Neg", name="a"), rule(gone, "Identity", name="b"), rule(cancel, "Abs", name="c"))
    assert found.operators == ["Relu", "Relu"]
    assert found.done.settled
    assert [event.rule for event in found.done.trace.events][:2] == ["a", "b"]


def test_a_pass_that_comes_earlier_sees_what_a_later_one_made() -> None:
    found = apply(
        chain("Relu", "Abs"), rule(becomes("Exp"), "Neg", name="first"), rule(becomes("Neg"), "Abs", name="later")
    )
    assert found.operators == ["Relu", "Exp"] and found.done.settled


def test_what_nobody_reads_goes_first_and_where_the_run_ends_early() -> None:
    """The work ends the run after the first change. A weight that it leaves unread goes; two nodes were that before."""
    nodes = [node("Exp", ["x"], ["a"]), node("Relu", ["a"], ["b"]), node("Add", ["x", "w"], ["y"])]
    proto = model(nodes, X, ["y"], {"w": np.ones(4, np.float32)})

    def dropped(one: ir.Node, site: Site) -> Rewrite:
        return site.instead(one, site.make("Abs", one.inputs[:1]), "dropped")

    passes = [rule(dropped, "Add", name="drop"), ("remove-unused", registry.load("passes", "remove-unused"))]

    def events(stop: int | None, weights: int) -> list[str]:
        done = rewrite(ir.from_proto(proto), passes, max_rounds=9, max_work=1, stop_after=stop)
        assert not done.settled and len(done.model.graph.initializers) == weights
        return [event.rule for event in done.trace.events]

    assert events(None, 0) == ["remove-unused", "drop", "remove-unused"] == events(3, 0)
    assert events(2, 1) == ["remove-unused", "drop"], "each step can be shown"
    assert events(1, 1) == ["remove-unused"] and events(0, 1) == []


def test_it_ends_where_nothing_is_found_in_one_more_look() -> None:
    assert apply(chain("Relu"), rule(cancel, "Relu")).done.rounds == 1
    found = apply(chain("Abs"), rule(becomes("Exp"), "Abs"))
    assert found.done.settled and found.done.rounds == 3, "it finds, it finds no more around there, nor anywhere"


def test_rules_that_undo_each_other_end_at_the_most_rounds() -> None:
    proto = chain("Relu")
    found = apply(proto, rule(becomes("Abs"), "Relu", name="a"), rule(becomes("Relu"), "Abs", name="b"), max_rounds=9)
    assert not found.done.settled and found.done.rounds == 9
    assert found.turns["a"].rewrites == found.turns["b"].rewrites > 4 and found.operators == ["Relu"]
    assert_same(proto, found.proto)


@pytest.mark.parametrize("stop", [0, 1, 3])
def test_it_stops_after_so_many_changes(stop: int) -> None:
    loaded = ir.from_proto(chain("Abs", "Abs", "Abs", "Abs", "Abs"))
    done = rewrite(loaded, [rule(becomes("Exp"), "Abs")], max_rounds=9, stop_after=stop)
    assert len(done.trace.events) == stop
    assert [one.op_type for one in loaded.graph] == ["Exp"] * stop + ["Abs"] * (5 - stop)


def test_what_was_done_before_a_stop_is_what_a_whole_run_begins_with() -> None:
    proto, names = in_branch(chain("Identity", "Relu", "Relu", "Dropout", "Identity", "Neg")), run_unasked()
    whole = rewrite(ir.from_proto(proto), [(n, registry.load("passes", n)) for n in names], max_rounds=20).trace.events
    assert len(whole) > 3
    for stop in range(len(whole)):
        done = rewrite(ir.from_proto(proto), [(n, registry.load("passes", n)) for n in names], max_rounds=20,
                       stop_after=stop)  # fmt: skip
        assert done.trace.events == whole[:stop]


def test_a_rule_sees_its_operators_alone_and_every_node_once() -> None:
    seen: list[str] = []

    def look(one: ir.Node, site: Site) -> None:
        seen.append(one.op_type)

    apply(in_branch(chain("Relu", "Neg", "Abs")), rule(look, "Neg", "If"))
    assert sorted(seen) == ["If", "Neg"]
    seen.clear()
    apply(chain("Relu", "Neg", "Abs"), rule(look, "*"))
    assert seen == ["Relu", "Neg", "Abs"]


def test_operators_of_other_domains_are_not_shown() -> None:
    seen: list[str] = []
    custom = node("Neg", ["x"], ["a"], domain="own")
    proto = model([custom, node("Neg", ["a"], ["y"])], X, ["y"], imports={"own": 1})
    apply(proto, rule(lambda one, site: seen.append(one.domain), "Neg"))
    assert seen == [""]


def test_the_latest_reason_of_each_node_is_kept() -> None:
    turns = iter(range(100))

    def no(one: ir.Node, site: Site) -> Rewrite:
        raise Refusal(f"reason {next(turns)}")

    found = apply(chain("Neg", "Neg", "Abs"), rule(no, "Neg"), rule(becomes("Exp"), "Abs", name="other"))
    assert len(found.declined) == 2 and [place.node for place in found.declined] == ["n0", "n1"]
    assert found.reasons == [f"reason {next(turns) - 2}", f"reason {next(turns) - 2}"]


def test_reasons_and_failures_are_bounded() -> None:
    def no(one: ir.Node, site: Site) -> Rewrite:
        raise Refusal("no")

    def fails(one: ir.Node, site: Site) -> Rewrite:
        raise ZeroDivisionError

    found = apply(chain(*["Neg"] * 300), rule(no, "Neg"), rule(fails, "Neg", name="fails"), failures=True)
    assert len(found.declined) == MOST_DECLINED and len(found.failures) == MOST_FAILURES


def test_a_pass_of_our_own_that_raises_ends_the_run() -> None:
    def broken(loaded: ir.Model) -> PassResult:
        raise LookupError("lost\nand found")

    from types import SimpleNamespace

    with pytest.raises(PassBroke) as caught:
        rewrite(
            ir.from_proto(chain("Relu")), [("bad", SimpleNamespace(PHASE="fold", AFTER=(), run=broken))], max_rounds=3
        )
    assert (caught.value.name, caught.value.reason) == ("bad", "LookupError: lost")


def test_what_each_pass_did_is_counted() -> None:
    found = apply(chain("Relu", "Neg", "Neg", "Identity"), rule(cancel, "Neg"), rule(gone, "Identity", name="other"))
    assert (found.turns["rule"].rewrites, found.turns["rule"].nodes_gone) == (1, 1)
    assert (found.turns["other"].rewrites, found.turns["other"].nodes_gone) == (2, 2), "one was made by the other rule"


def test_nodes_and_bytes_are_counted_wherever_they_lie() -> None:
    proto = in_branch(model([node("Constant", [], ["c"], value_float=1.0), node("Add", ["x", "c"], ["s"]),
                             node("Add", ["s", "w"], ["y"])], X, ["y"], {"w": floats(0, 4)}))  # fmt: skip
    loaded = ir.from_proto(proto)
    assert count(loaded) == 3, "an If and two Adds"
    assert weight_bytes(loaded) == 16


def test_a_long_chain_takes_time_in_proportion() -> None:
    """Ten times the nodes take at most eleven times the calls of functions, which no load on the machine changes."""

    def calls(length: int) -> int:
        loaded = ir.from_proto(chain(*["Relu", "Neg"] * (length // 2)))
        counted = 0

        def count_one(frame: object, event: str, argument: object) -> None:
            nonlocal counted
            counted += event in ("call", "c_call")

        sys.setprofile(count_one)
        try:
            rewrite(loaded, [("merge-clips", registry.load("passes", "merge-clips"))], max_rounds=5)
        finally:
            sys.setprofile(None)
        return counted

    calls(400)  # what is made once
    assert calls(4000) < 11 * calls(400)

"""Many inputs changed at once: the same as one after the other."""

from collections.abc import Callable

import onnx_ir as ir
import pytest

from penstock.rewriting import wiring

COUNT = 3 * wiring.FEW


def wide() -> tuple[list[ir.Value], ir.Node, ir.Graph]:
    """Return values, a node that reads each of them twice, in turn, and nothing at one place, and their graph."""
    values = [ir.Value(name=f"v{number}") for number in range(COUNT)]
    node = ir.Node("", "Sum", [*values, None, *values])
    return values, node, ir.Graph(values, [node.outputs[0]], nodes=[node])


def one_by_one(node: ir.Node, changes: dict[int, ir.Value | None]) -> None:
    for place, value in changes.items():
        node.replace_input_with(place, value)


def uses(value: ir.Value) -> set[tuple[str, int]]:
    return {(use.node.op_type, use.idx) for use in value.uses()}


@pytest.mark.parametrize("change", [wiring.read_instead, one_by_one])
@pytest.mark.parametrize("many", [2, wiring.FEW, wiring.FEW + 1, COUNT])
def test_changes_of_one_node(change: Callable[..., None], many: int) -> None:
    values, node, _ = wide()
    other = ir.Value(name="other")
    change(node, {place: other if place % 2 else None for place in range(many)} | {COUNT: values[0]})
    names = [None if value is None else value.name for value in node.inputs]
    assert names[:many] == ["other" if place % 2 else None for place in range(many)]
    assert names[many:COUNT] == [value.name for value in values[many:]] and names[COUNT] == "v0"
    assert uses(other) == {("Sum", place) for place in range(1, many, 2)}
    assert uses(values[0]) == {("Sum", COUNT), ("Sum", COUNT + 1)}
    assert uses(values[-1]) == {("Sum", 2 * COUNT)} | ({("Sum", COUNT - 1)} if many < COUNT else set())


def test_a_node_that_reads_nothing_any_more() -> None:
    values, node, _ = wide()
    wiring.let_go(node)
    assert set(node.inputs) == {None} and not any(value.uses() for value in values)


def test_no_place_beyond_the_end() -> None:
    _, node, _ = wide()
    with pytest.raises(ValueError, match="out of range"):
        wiring.read_instead(node, dict.fromkeys(range(2 * COUNT + 1, 3 * COUNT)))


def test_readers_and_outputs_take_other_values() -> None:
    values, node, graph = wide()
    new, result = [ir.Value(name=f"n{number}") for number in range(COUNT)], ir.Value(name="r")
    ir.Node("", "Neg", [values[0]], outputs=[result])
    wiring.take_over(dict(zip(values, new, strict=True)) | {node.outputs[0]: result})
    assert list(node.inputs) == [*new, None, *new] and list(graph.outputs) == [result]
    assert not any(value.uses() for value in values) and result.is_graph_output()


def test_how_often_a_value_is_read() -> None:
    values, node, _ = wide()
    assert wiring.read_count(values[0]) == 2 == len(values[0].uses())
    assert wiring.read_count(node.outputs[0]) == 0, "what a graph hands out is not read"

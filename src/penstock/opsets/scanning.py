"""Scan: the batch axis of opset 8 (9), axes counted from the back (11)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from penstock.opsets import down, up
from penstock.rewriting import Refusal, Rewrite

if TYPE_CHECKING:
    import onnx_ir as ir

    from penstock.opsets.place import Place


@up(9, "Scan")
def batch_of_one_dropped(node: ir.Node, place: Place) -> Rewrite:
    """A batch of one sequence loses its axis. Refused: more of them, and lengths of their own."""
    if node.inputs[0] is not None:
        raise Refusal("its sequences have lengths of their own, which opset 9 has no longer")
    inputs = [_sequence(value, place) for value in node.inputs[1:] if value is not None]
    directions = place.attribute(node, "directions")
    made = place.anew(node, inputs, directions=None, scan_input_directions=directions)
    values = {old: place.make("Unsqueeze", [new], axes=[0]) for old, new in zip(node.outputs, made, strict=True)}
    return Rewrite(values, "its batch of one is taken off and put back")


def _sequence(value: ir.Value, place: Place) -> ir.Value:
    """Return the one sequence of a batch."""
    maker = place.maker(value, "Unsqueeze")
    if maker is not None and list(place.attribute(maker, "axes", ())) == [0] and maker.inputs[0] is not None:
        return maker.inputs[0]
    shape = place.shape(value)
    if not shape or shape[0] != 1:
        raise Refusal("its batch isn't known to be 1, and opset 9 has no batch axis here")
    return place.axes("Squeeze", value, [0])


@down(9, "Scan")
def batch_of_one_added(node: ir.Node, place: Place) -> Rewrite:
    """It scans a batch of one sequence. Refused: outputs along other axes, or in the reverse direction."""
    count = place.attribute(node, "num_scan_inputs")
    axes = list(place.attribute(node, "scan_input_axes") or [0] * count)
    for name in ("scan_output_axes", "scan_output_directions"):
        if any(place.attribute(node, name) or ()):
            raise Refusal(f"{name} can be said from opset 9 on only")
    states = len(node.inputs) - count
    inputs: list[ir.Value | None] = [None]
    for index, value in enumerate(node.inputs):
        assert value is not None
        if index >= states and (axis := axes[index - states]):
            rank = place.need_rank(value)
            order = [axis, *(i for i in range(rank) if i != axis)]
            value = place.typed(place.make("Transpose", [value], perm=order), place.dtype(value))
        inputs.append(place.axes("Unsqueeze", value, [0]))
    directions = place.attribute(node, "scan_input_directions")
    named: dict[str, Any] = dict.fromkeys(
        ("scan_input_axes", "scan_input_directions", "scan_output_axes", "scan_output_directions")
    )
    made = place.anew(node, inputs, directions=directions, **named)
    values = {old: place.make("Squeeze", [new], axes=[0]) for old, new in zip(node.outputs, made, strict=True)}
    return Rewrite(values, "it scans a batch of one")


@down(11, "Scan")
def scan_axes_from_the_front(node: ir.Node, place: Place) -> Rewrite | None:
    """Axes of the inputs counted from the back are counted from the front. Refused: those of outputs."""
    axes = place.attribute(node, "scan_input_axes") or ()
    if any(axis < 0 for axis in place.attribute(node, "scan_output_axes") or ()):
        raise Refusal("an axis of its outputs is counted from the back, which opset 10 doesn't allow")
    if all(axis >= 0 for axis in axes):
        return None
    given = node.inputs[len(node.inputs) - len(axes) :]
    front = [axis % place.need_rank(value) for axis, value in zip(axes, given, strict=True)]
    return place.renew(node, f"scan_input_axes={front} are counted from the front", scan_input_axes=front)

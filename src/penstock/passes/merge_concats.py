"""Join Concats, and cut what they joined without a detour.

1. A Concat that alone is read by a Concat along the same axis: its inputs stand in its place.
2. Neighbouring constants among the inputs become one, where that doesn't make the file larger.
3. A Slice (or a part of a Split) of a Concat, along its axis, that cuts out just one input reads that input; one that
   covers several inputs becomes a Concat of these, if the Concat goes with it.
4. All parts of a Split, in their order, that a Concat puts together again along the same axis are what was split.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.passes import Phase
from penstock.rewriting import Refusal, Rewrite
from penstock.rewriting.shape_rules import slices
from penstock.rewriting.site import Site, attribute
from penstock.rewriting.sizes import plus

if TYPE_CHECKING:
    import onnx_ir as ir

PHASE: Phase = "fuse"
AFTER: tuple[str, ...] = ()
OPERATORS: tuple[str, ...] = ("Concat", "Slice", "Split")
MOST_INPUTS = 1024
MOST_BYTES = 1 << 16  # of constants that are joined


def rewrite(node: ir.Node, site: Site) -> Rewrite | None:
    """Join a Concat with those before it, or cut from the inputs of one."""
    if node.op_type == "Concat":
        return _nested(node, site) or _parts(node, site) or _constants(node, site)
    return _cut(node, site)


def _axis(node: ir.Node, site: Site, default: int = 0) -> int | None:
    axis, rank = int(attribute(node, "axis", default)), site.rank(node.outputs[0])
    return axis if axis >= 0 else None if rank is None else axis + rank


def _nested(node: ir.Node, site: Site) -> Rewrite | None:
    axis = _axis(node, site)
    inputs: list[ir.Value | None] = []
    joined = 0
    for value in node.inputs:
        before = site.maker(value, "Concat")
        if before is not None and value is not None and site.sole_reader(value) and _axis(before, site) == axis:
            inputs.extend(before.inputs)
            joined += 1
        else:
            inputs.append(value)
    if not joined or axis is None or len(inputs) > MOST_INPUTS:
        return None
    return site.instead(node, site.make("Concat", inputs, axis=axis), f"{joined + 1} Concats join")


def _parts(node: ir.Node, site: Site) -> Rewrite | None:
    """Put what was split in the place of all its parts."""
    axis, inputs, place = _axis(node, site), list(node.inputs), 0
    joined = False
    while place < len(inputs):
        split = site.maker(inputs[place], "Split")
        if split is not None and axis is not None and _axis(split, site) == axis:
            parts = list(split.outputs)
            if len(parts) > 1 and inputs[place : place + len(parts)] == parts:
                inputs[place : place + len(parts)] = [split.inputs[0]]
                joined = True
        place += 1
    if not joined or axis is None:
        return None
    what = "a Concat of all parts of a Split"
    if len(inputs) == 1 and inputs[0] is not None:
        return site.instead(node, inputs[0], what)
    return site.instead(node, site.make("Concat", inputs, axis=axis), what)


def _constants(node: ir.Node, site: Site) -> Rewrite | None:
    import numpy as np

    axis = _axis(node, site)
    inputs: list[ir.Value | None] = []
    run: list[ir.Value] = []
    joined = False

    def close() -> None:
        nonlocal joined
        if len(run) > 1:
            arrays = [site.array(value) for value in run]
            inputs.append(site.constant(np.concatenate([a for a in arrays if a is not None], axis), run[0].dtype))
            joined = True
        else:
            inputs.extend(run)
        run.clear()

    for value in node.inputs:
        tensor = site.tensor(value)
        if value is not None and tensor is not None and tensor.nbytes <= MOST_BYTES and not tensor.dtype.is_string():
            run.append(value)
        else:
            close()
            inputs.append(value)
    close()
    if not joined or len(inputs) < 2:
        return None
    return site.instead(node, site.make("Concat", inputs, axis=attribute(node, "axis")), "constants join")


def _cut(node: ir.Node, site: Site) -> Rewrite | None:
    source = node.inputs[0]
    concat = site.maker(source, "Concat")
    if concat is None or source is None:
        return None
    axis, rank = _axis(concat, site), site.rank(source)
    if axis is None or rank is None:
        return None
    ends = _ends(concat, axis, site)
    if ends is None:
        raise Refusal("the sizes of the Concat's inputs aren't known")
    pieces = _pieces(node, site, axis, rank, ends[-1])
    if pieces is None:
        return None
    values, whole = {}, len(concat.inputs)
    for value, (start, end) in zip(node.outputs, pieces, strict=True):
        if start not in ends or end not in ends:
            raise Refusal("it doesn't cut between the Concat's inputs")
        parts = concat.inputs[ends.index(start) : ends.index(end)]
        if len(parts) == 1 and parts[0] is not None:
            values[value] = parts[0]
        elif len(parts) == whole or not parts:
            return None
        else:
            site.need_sole_reader(source, "the Concat")
            values[value] = site.make("Concat", parts, axis=axis)
    return Rewrite(values, f"{node.op_type} takes what the Concat before it joined")


def _ends(concat: ir.Node, axis: int, site: Site) -> list[int] | None:
    """Return where the inputs of a Concat begin along its axis, and where the last one ends."""
    total, found = 0, [0]
    for value in concat.inputs:
        shape = site.shape(value)
        size = None if shape is None else shape[axis]
        if not isinstance(size, int) or size == 0:
            return None
        total += size
        found.append(total)
    return found


def _pieces(node: ir.Node, site: Site, axis: int, rank: int, length: int) -> list[tuple[int, int]] | None:
    """Return (start, end) of each output along the axis."""
    if node.op_type == "Split":
        if _axis(node, site) != axis:
            return None
        found: list[tuple[int, int]] = []
        place = 0
        for value in node.outputs:
            shape = site.shape(value)
            end = None if shape is None else plus(place, shape[axis])
            if not isinstance(end, int):
                return None
            found.append((place, end))
            place = end
        return found
    try:
        cuts = slices(node, site.known, rank)
    except Exception:  # axes or steps that aren't known
        return None
    shape, source = site.shape(node.outputs[0]), site.shape(node.inputs[0])
    if shape is None or source is None:
        return None
    for other, start, end, step in cuts:
        if step != 1 or not isinstance(start, int) or not isinstance(end, int):
            return None
        if other != axis and (shape[other] is None or shape[other] != source[other]):
            return None
    chosen = [cut for cut in cuts if cut[0] == axis]
    if len(chosen) != 1:
        return None
    _, start, end, _ = chosen[0]
    assert isinstance(start, int) and isinstance(end, int)
    begin, stop, _ = slice(start, end, 1).indices(length)
    return [(begin, stop)]

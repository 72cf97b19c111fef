"""Numbers in a model that hold a size of the example: which nodes take them, and other ones in their place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx_ir as ir

# operators that take a shape, or a number of steps
SHAPING = ("Reshape", "Expand", "Slice", "ConstantOfShape", "Range", "Tile", "Concat", "Split", "Pad", "Gather")


def holders(model: ir.Model, new: Mapping[int, int]) -> Iterator[tuple[ir.Node, int, np.ndarray]]:
    """Yield the nodes that take a shape which holds one of these sizes, with the input and its value."""
    for node in model.graph.all_nodes():
        for place, value in enumerate(node.inputs if node.op_type in SHAPING else ()):
            held = constant_of(value)
            if held is not None and held.dtype == np.int64 and set(new) & set(held.reshape(-1).tolist()):
                yield node, place, held


def put(node: ir.Node, place: int, held: np.ndarray, new: Mapping[int, int], name: str) -> None:
    """Give a node a constant of the name ``name`` with the new sizes in place of the old ones."""
    changed = np.array(held)
    for size, other in new.items():
        changed[held == size] = other
    constant = ir.Node("", "Constant", [], [ir.AttrTensor("value", ir.tensor(changed))], num_outputs=1, name=name)
    constant.outputs[0].name = name
    home = node.graph
    assert home is not None  # it was found in one
    home.insert_before(node, constant)
    node.replace_input_with(place, constant.outputs[0])


def constant_of(value: ir.Value | None) -> np.ndarray | None:
    """Return the array of an initializer or of a Constant; ``None`` for what is computed."""
    if value is None:
        return None
    if value.const_value is not None:
        return value.const_value.numpy()
    producer = value.producer()
    if producer is not None and producer.op_type == "Constant" and "value" in producer.attributes:
        return producer.attributes["value"].as_tensor().numpy()
    return None

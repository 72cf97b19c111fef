"""Sound graphs that ask the optimizer for as much work as they can: each change beside a wide node, or thousands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from hostile import attack, body, model, node, save, tensor, value
from onnx import ModelProto, NodeProto, TensorProto

WIDE = 10_000
COPIES = [f"v{number}" for number in range(WIDE)]
MADE = [f"w{number}" for number in range(WIDE)]


def graph(build: Callable[[], ModelProto]) -> None:
    def made(folder: Path) -> Path:
        return save(build(), folder)

    made.__name__ = build.__name__
    attack(opened=True)(made)


def each(op: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: object) -> list[NodeProto]:
    return [node(op, [a], [b], **attributes) for a, b in zip(inputs, outputs, strict=True)]


def chain(*steps: tuple[str, list[str], dict[str, object]], held: dict[str, object]) -> ModelProto:
    """A chain of these operators over and over, each with the constants that it reads beside the value."""
    places = ["x", *COPIES[1:], "y"]
    nodes = []
    for number in range(WIDE):
        op, more, attributes = steps[number % len(steps)]
        nodes.append(node(op, [places[number], *more], [places[number + 1]], **attributes))
    return model(nodes, held=[tensor(array, name) for name, array in held.items()])


@graph
def copies_into_one_node() -> ModelProto:
    """Each copy that goes changes what the one node reads."""
    return model([*each("Sin", ["x"] * WIDE, MADE), *each("Identity", MADE, COPIES), node("Sum", COPIES, ["y"])])


@graph
def equals_into_one_node() -> ModelProto:
    return model([*each("Sin", ["x"] * WIDE, COPIES), node("Sum", COPIES, ["y"])])


@graph
def equal_weights_into_one_node() -> ModelProto:
    return model([node("Sum", ["x", *COPIES], ["y"])], held=[tensor(np.float32([2]), name) for name in COPIES])


@graph
def copies_that_are_outputs() -> ModelProto:
    nodes = [*each("Sin", ["x"] * WIDE, MADE), *each("Identity", MADE, COPIES)]
    return model(nodes, outputs=[value(name) for name in COPIES])


@graph
def branches_that_are_known() -> ModelProto:
    """Each If goes, and what is in its branch comes in beside the wide node."""
    inner = body([node("Sin", ["x"], ["o"])], ["o"])
    ifs = [node("If", ["c"], [name], then_branch=inner, else_branch=inner) for name in COPIES[: WIDE // 2]]
    return model([*ifs, node("Sum", COPIES[: WIDE // 2], ["y"])], held=[tensor(np.array(True), "c")])


@graph
def many_small_bodies() -> ModelProto:
    inner = body([node("Relu", ["x"], ["o"])], ["o"])
    ifs = [node("If", ["c"], [name], then_branch=inner, else_branch=inner) for name in COPIES[: WIDE // 2]]
    nodes = [node("Cast", ["x"], ["c"], to=TensorProto.BOOL), *ifs, node("Sum", COPIES[: WIDE // 2], ["y"])]
    return model(nodes)


@graph
def readers_of_one_value() -> ModelProto:
    nodes = [node("Elu", ["x"], [name], alpha=1 + number / WIDE) for number, name in enumerate(MADE)]
    return model([*nodes, *each("Relu", MADE, COPIES), node("Sum", COPIES, ["y"])])


@graph
def a_chain_of_constants() -> ModelProto:
    places = ["c", *MADE]
    nodes = each("Sin", places[:-1], places[1:])
    return model([*nodes, node("Add", ["x", places[-1]], ["y"])], held=[tensor(np.float32([1]), "c")])


@graph
def a_chain_of_copies() -> ModelProto:
    return chain(("Identity", [], {}), held={})


@graph
def a_chain_of_zeros() -> ModelProto:
    return chain(("Add", ["c"], {}), held={"c": np.float32(0)})


@graph
def a_chain_of_additions() -> ModelProto:
    return chain(("Add", ["c"], {}), held={"c": np.float32(1.5)})


@graph
def a_chain_of_casts() -> ModelProto:
    there, back = {"to": TensorProto.DOUBLE}, {"to": TensorProto.FLOAT}
    return chain(("Cast", [], there), ("Cast", [], back), held={})


@graph
def a_chain_of_reshapes() -> ModelProto:
    return chain(("Reshape", ["s"], {}), held={"s": np.array([-1])})


@graph
def a_chain_of_slices() -> ModelProto:
    return chain(("Slice", ["a", "b"], {}), held={"a": np.array([0]), "b": np.array([100])})


@graph
def a_chain_of_transposes() -> ModelProto:
    return chain(("Transpose", [], {"perm": [0]}), ("Sin", [], {}), held={})


@graph
def a_chain_of_axes() -> ModelProto:
    return chain(("Unsqueeze", ["s"], {}), ("Squeeze", ["s"], {}), held={"s": np.array([0])})


@graph
def a_web_of_transposes() -> ModelProto:
    """Each Transpose looks at hundreds of nodes around it, and few of them cancel."""
    rng = np.random.default_rng(0)
    names, nodes = ["x"], []
    for number in range(2 * WIDE):
        op = ("Sin", "Add", "Mul", "Neg", "Transpose", "Sigmoid", "Max")[int(rng.integers(7))]
        near = [names[-1 - int(step) % len(names)] for step in rng.exponential(3.0, 2)]
        several = op in ("Add", "Mul", "Max")
        nodes.append(
            node(op, near if several else near[:1], [f"v{number}"], **({"perm": [1, 0]} if op == "Transpose" else {}))
        )
        names.append(f"v{number}")
    nodes.append(node("Sum", names[-50:], ["y"]))
    return model(nodes, inputs=[value("x", (8, 8))], outputs=[value("y", (8, 8))])

"""How two models differ: the nodes, attributes and shapes, the weights and by how much, and what they compute.

Nodes are the same where they make a value of the same name by the same operator; what passes leave alone keeps its
name. Weights are the same where they have the same name, or the same numbers under another name. Functions are inlined
first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from penstock import graph
from penstock.rewriting.knowledge import Knowledge
from penstock.rewriting.walk import bodies_of

if TYPE_CHECKING:
    import onnx_ir as ir

    from penstock.metrics import Difference as OutputDifference

LARGEST_COMPARED = 1 << 28  # bytes of one weight that are compared number by number
NUMBERS = 8  # of an attribute that are shown


@dataclass(frozen=True, slots=True)
class Place:
    """A node: the graph it lies in ("" for the main one), its operator, its name, the values it makes."""

    scope: str
    op: str
    name: str
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Changed:
    """A node of both models that isn't the same: what (an attribute, its inputs, a shape), in A and in B."""

    node: Place
    what: str
    a: str
    b: str


@dataclass(frozen=True, slots=True)
class Weight:
    """A weight that differs, and how in words.

    ``max_abs``, ``relative`` (to the largest number of A) and the ``share`` of unequal numbers where both have one
    shape.
    """

    name: str
    what: str
    max_abs: float | None = None
    relative: float | None = None
    share: float | None = None


@dataclass(frozen=True, slots=True)
class ModelDifference:
    """All that differs between two models. ``outputs`` is what was found by running both, empty where they weren't."""

    interface: tuple[str, ...]
    opsets: tuple[str, ...]
    operators: Mapping[str, tuple[int, int]]  # operator → how many in A and in B, where that differs
    only_a: tuple[Place, ...]
    only_b: tuple[Place, ...]
    changed: tuple[Changed, ...]
    weights: tuple[Weight, ...]
    same_weights: int
    outputs: Mapping[str, OutputDifference]
    samples: int
    not_run: str  # why the two weren't run

    @property
    def same(self) -> bool:
        """Whether nothing differs."""
        found = (self.interface, self.opsets, self.only_a, self.only_b, self.changed, self.weights)
        return not any(found) and all(one.equal for one in self.outputs.values())


def compare(a: Path, b: Path) -> ModelDifference:
    """Compare two model files without running them. Raises ``InputError`` for one that can't be read."""
    one, two = _read(a), _read(b)
    shared = [key for key in one.nodes if key in two.nodes]
    changed = [change for key in shared for change in _changes(one, two, key)]
    weights, same = _weights(one.weights, two.weights)
    counts = {op: (one.count(op), two.count(op)) for op in sorted({*one.operators, *two.operators})}
    return ModelDifference(
        tuple(_interface(one.model, two.model)),
        tuple(_opsets(one.model, two.model)),
        {op: pair for op, pair in counts.items() if pair[0] != pair[1]},
        tuple(_place(*one.nodes[key]) for key in one.nodes if key not in two.nodes),
        tuple(_place(*two.nodes[key]) for key in two.nodes if key not in one.nodes),
        tuple(changed), tuple(weights), same, {}, 0, "",
    )  # fmt: skip


class _Model:
    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.known = Knowledge(model)
        self.known.learn(model.graph)
        self.nodes: dict[tuple[str, str, str], tuple[str, ir.Node]] = {}
        self.operators: dict[str, int] = {}
        for scope, node in _walk(model.graph, ""):
            op = _op(node)
            self.operators[op] = self.operators.get(op, 0) + 1
            first = next((value.name for value in node.outputs if value.name), node.name) or ""
            self.nodes[scope, op, first] = (scope, node)
        self.weights = {
            name: value.const_value for one in model.graphs() for name, value in one.initializers.items()
            if value.const_value is not None
        }  # fmt: skip

    def count(self, op: str) -> int:
        return self.operators.get(op, 0)


def _read(path: Path) -> _Model:
    model = graph.load(path)
    graph.inline(model)
    return _Model(model)


def _walk(body: ir.Graph, scope: str) -> Iterator[tuple[str, ir.Node]]:
    for node in body:
        if node.op_type != "Constant" or node.domain:
            yield scope, node
        for attribute in node.attributes.values():
            for inner in bodies_of(attribute):
                owner = next((value.name for value in node.outputs if value.name), node.name)
                yield from _walk(inner, f"{scope}{owner}/{attribute.name}/")


def _op(node: ir.Node) -> str:
    return f"{node.domain}::{node.op_type}" if node.domain else node.op_type


def _place(scope: str, node: ir.Node) -> Place:
    return Place(scope, _op(node), node.name or "", tuple(value.name or "" for value in node.outputs))


def _changes(one: _Model, two: _Model, key: tuple[str, str, str]) -> Iterator[Changed]:
    scope, a = one.nodes[key]
    _, b = two.nodes[key]
    place = _place(scope, a)
    inputs = [tuple("" if value is None else value.name or "" for value in node.inputs) for node in (a, b)]
    if inputs[0] != inputs[1]:
        yield Changed(place, "inputs", ", ".join(inputs[0]), ", ".join(inputs[1]))
    for name in sorted({*a.attributes, *b.attributes}):
        texts = [_attribute(node.attributes.get(name)) for node in (a, b)]
        if texts[0] != texts[1]:
            yield Changed(place, f"attribute {name}", *texts)
    shapes = [_shape(model.known.shape(node.outputs[0])) for model, node in ((one, a), (two, b)) if node.outputs]
    if len(shapes) == 2 and shapes[0] != shapes[1]:
        yield Changed(place, "shape", *shapes)


def _attribute(attribute: ir.Attr | None) -> str:
    if attribute is None:
        return "absent"
    if attribute.is_ref() or bodies_of(attribute):
        return "graph" if not attribute.is_ref() else f"@{attribute.ref_attr_name}"
    value = attribute.value
    if attribute.type.name == "TENSOR":
        return f"{value.dtype.name}{list(value.shape.numpy())} {hashlib.sha256(value.tobytes()).hexdigest()[:8]}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(str, value[:NUMBERS]))}{', …' if len(value) > NUMBERS else ''}] ({len(value)})"
    return str(value)


def _shape(shape: tuple[object, ...] | None) -> str:
    return "unknown" if shape is None else f"({', '.join('?' if size is None else str(size) for size in shape)})"


def _interface(a: ir.Model, b: ir.Model) -> Iterator[str]:
    one, two = graph.signature(a), graph.signature(b)
    for kind, ours, theirs in (("input", one.inputs, two.inputs), ("output", one.outputs, two.outputs)):
        left, right = ({spec.name: spec.text() for spec in specs} for specs in (ours, theirs))
        for name in dict.fromkeys((*left, *right)):
            if left.get(name) != right.get(name):
                yield f"{kind} {name}: {left.get(name, 'absent')} → {right.get(name, 'absent')}"
        if list(left) != list(right) and sorted(left) == sorted(right):
            yield f"{kind}s in another order: {', '.join(left)} → {', '.join(right)}"


def _opsets(a: ir.Model, b: ir.Model) -> Iterator[str]:
    for domain in sorted({*a.opset_imports, *b.opset_imports}):
        left, right = a.opset_imports.get(domain), b.opset_imports.get(domain)
        if left != right:
            yield f"{domain or 'ai.onnx'}: {left or 'absent'} → {right or 'absent'}"
    if a.ir_version != b.ir_version:
        yield f"IR version: {a.ir_version} → {b.ir_version}"


def _weights(a: Mapping[str, ir.TensorProtocol], b: Mapping[str, ir.TensorProtocol]) -> tuple[list[Weight], int]:
    """Compare by name; what is left is paired by its numbers."""
    found: list[Weight] = []
    same = 0
    for name in a:
        if name not in b:
            continue
        weight = _weight(name, a[name], b[name])
        if weight is None:
            same += 1
        else:
            found.append(weight)
    lost = {_digest(a[name]): name for name in a if name not in b}
    for name in b:
        if name in a:
            continue
        if (old := lost.pop(_digest(b[name]), None)) is not None:
            found.append(Weight(name, f"was called {old}", 0.0, 0.0, 0.0))
        else:
            found.append(Weight(name, f"only in B: {_form(b[name])}"))
    found += [Weight(name, f"only in A: {_form(a[name])}") for name in lost.values()]
    return found, same


def _weight(name: str, a: ir.TensorProtocol, b: ir.TensorProtocol) -> Weight | None:
    import numpy as np

    if _form(a) != _form(b):
        return Weight(name, f"{_form(a)} → {_form(b)}")
    if a.nbytes > LARGEST_COMPARED or a.dtype.is_string():
        return None if _digest(a) == _digest(b) else Weight(name, f"other numbers in {_form(a)}")
    left, right = a.numpy(), b.numpy()
    unequal = left != right
    if left.dtype.kind == "f":
        unequal &= ~(np.isnan(left) & np.isnan(right))
    if not unequal.any():
        return None
    gap = float(np.nanmax(np.abs(left.astype(np.float64) - right.astype(np.float64)), initial=0.0))
    largest = float(np.nanmax(np.abs(left.astype(np.float64)), initial=0.0))
    return Weight(name, f"other numbers in {_form(a)}", gap, gap / largest if largest else None, float(unequal.mean()))


def _form(tensor: ir.TensorProtocol) -> str:
    return f"{tensor.dtype.name.lower()}{[int(dim) for dim in tensor.shape.numpy()]}"


def _digest(tensor: ir.TensorProtocol) -> str:
    data = b"".join(tensor.string_data()) if tensor.dtype.is_string() else tensor.tobytes()  # type: ignore[attr-defined]
    return hashlib.sha256(_form(tensor).encode() + data).hexdigest()

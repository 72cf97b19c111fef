"""Take out of a parsed model once what the checks go by: nodes with their names and bodies, and every tensor.

Reading a field of a protobuf message makes a Python object each time. A model of 100,000 nodes is read once here, and
everything after that works on plain tuples.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import onnx


class Node(NamedTuple):
    """One node, and the graphs that it holds as attributes."""

    name: str
    op_type: str
    domain: str
    overload: str
    inputs: Sequence[str]
    outputs: Sequence[str]
    bodies: Sequence[Graph]


class Graph(NamedTuple):
    """The main graph or a body. ``held`` are the names of its initializers, sparse ones too."""

    inputs: Sequence[str]
    held: Sequence[str]
    outputs: Sequence[str]
    nodes: Sequence[Node]


class Function(NamedTuple):
    """A function; ``imports`` are the domains of its opsets."""

    name: str
    domain: str
    overload: str
    inputs: Sequence[str]
    outputs: Sequence[str]
    nodes: Sequence[Node]
    imports: Sequence[str]


@dataclass(slots=True)
class Outline:
    """A model's graph, functions and opsets, its tensors wherever the format allows one, and a name that is no text."""

    graph: Graph
    functions: list[Function] = field(default_factory=list)
    opsets: list[tuple[str, int]] = field(default_factory=list)
    tensors: list[onnx.TensorProto] = field(default_factory=list)
    sparse: list[onnx.SparseTensorProto] = field(default_factory=list)
    no_text: str | bytes | None = None  # protobuf gives bytes for a name that isn't UTF-8


def domain_of(name: str) -> str:
    """Return the domain's one name: that of ONNX itself has two."""
    return "" if name == "ai.onnx" else name


def read(model: onnx.ModelProto) -> Outline:
    """Take the outline of a model."""
    found = Outline(Graph((), (), (), ()))
    reader = _Reader(found)
    found.opsets = [(domain_of(entry.domain), entry.version) for entry in model.opset_import]
    reader.texts([entry.domain for entry in model.opset_import])
    found.graph = reader.graph(model.graph)
    for function in model.functions:
        imports = [domain_of(entry.domain) for entry in function.opset_import]
        inputs, outputs = [*function.input], [*function.output]
        reader.texts([function.name, function.domain, function.overload, *imports, *inputs, *outputs])
        reader.attributes(function.attribute_proto)
        domain, nodes = domain_of(function.domain), reader.nodes(function.node)
        found.functions.append(Function(function.name, domain, function.overload, inputs, outputs, nodes, imports))
    for training in model.training_info:
        reader.graph(training.initialization)
        reader.graph(training.algorithm)
    return found


class _Reader:
    def __init__(self, found: Outline) -> None:
        self.found = found

    def texts(self, names: Sequence[str | bytes]) -> None:
        """Note the first name that is no text."""
        try:
            "".join(names)  # type: ignore[arg-type]  # that is the question, and this the quickest answer
        except TypeError:
            self.found.no_text = self.found.no_text or next(name for name in names if isinstance(name, bytes))

    def graph(self, graph: onnx.GraphProto) -> Graph:
        self.found.tensors += graph.initializer
        for sparse in graph.sparse_initializer:
            self.sparse(sparse)
        held = [t.name for t in graph.initializer] + [sparse.values.name for sparse in graph.sparse_initializer]
        inputs, outputs = [value.name for value in graph.input], [value.name for value in graph.output]
        self.texts([*inputs, *held, *outputs])
        self.texts([value.name for value in graph.value_info])
        return Graph(inputs, held, outputs, self.nodes(graph.node))

    def sparse(self, sparse: onnx.SparseTensorProto) -> None:
        self.found.sparse.append(sparse)
        self.found.tensors += (sparse.values, sparse.indices)

    def nodes(self, nodes: Iterable[onnx.NodeProto]) -> list[Node]:
        made = []
        for node in nodes:
            inputs, outputs = tuple(node.input), tuple(node.output)
            name, op, domain, overload = node.name, node.op_type, node.domain, node.overload
            try:
                "".join((name, op, domain, overload, *inputs, *outputs))
            except TypeError:
                self.texts([name, op, domain, overload, *inputs, *outputs])
            bodies = self.attributes(node.attribute) if node.attribute else ()
            made.append(Node(name, op, domain_of(domain), overload, inputs, outputs, bodies))
        return made

    def attributes(self, attributes: Iterable[onnx.AttributeProto]) -> Sequence[Graph]:
        """Take tensors and bodies, whatever type an attribute claims to have; return the bodies."""
        bodies: list[Graph] = []
        for attribute in attributes:
            self.texts((attribute.name,))
            if attribute.HasField("t"):
                self.found.tensors.append(attribute.t)
            if attribute.HasField("g"):
                bodies.append(self.graph(attribute.g))
            if attribute.HasField("sparse_tensor"):
                self.sparse(attribute.sparse_tensor)
            if attribute.tensors:
                self.found.tensors += attribute.tensors
            if attribute.graphs:
                bodies += [self.graph(graph) for graph in attribute.graphs]
            for sparse in attribute.sparse_tensors:
                self.sparse(sparse)
        return bodies or ()


def all_nodes(nodes: Iterable[Node]) -> Iterator[Node]:
    """Yield nodes and those of their bodies."""
    stack = [iter(nodes)]
    while stack:
        node = next(stack[-1], None)
        if node is None:
            stack.pop()
            continue
        yield node
        if node.bodies:
            stack.extend(iter(body.nodes) for body in node.bodies)

"""Writing: new nodes, values and initializers of a graph, under names that nothing in the model has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from penstock.rewriting.walk import graphs_of

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    Array = np.ndarray[Any, np.dtype[Any]]

MICROSOFT = "com.microsoft"


class Writer:
    """Gives out names that are free in one model, and what is named by them."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self._taken: set[str | None] = set()
        for graph in graphs_of(model):
            self._taken |= {value.name for value in graph.inputs} | set(graph.initializers)
            for node in graph:
                self._taken |= {node.name, *(value.name for value in node.outputs)}

    def free(self, name: str) -> str:
        """Return the name, with a number behind it where it is taken."""
        found, number = name, 0
        while found in self._taken:
            number += 1
            found = f"{name}_{number}"
        self._taken.add(found)
        return found

    def hold(self, graph: ir.Graph, name: str, array: Array, dtype: ir.DataType | None = None) -> ir.Value:
        """Make an initializer of ``graph``, of the array's own type if none is given."""
        import onnx_ir as ir

        name = self.free(name)
        tensor = ir.Tensor(array, name=name) if dtype is None else ir.tensor(array, dtype=dtype, name=name)
        value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        graph.register_initializer(value)
        return value

    def node(
        self, op: str, inputs: Sequence[ir.Value | None], name: str, kinds: Sequence[str], *,
        domain: str = "", shape: ir.Shape | None = None, **attributes: int | float | str | Sequence[int],
    ) -> ir.Node:  # fmt: skip
        """Make a node that lies in no graph yet, with an output of each of the types ``kinds``.

        The first has ``shape``.
        """
        import onnx_ir as ir

        name = self.free(name)
        node = ir.node(op, inputs, attributes, domain=domain, num_outputs=len(kinds), name=name)
        for index, (value, kind) in enumerate(zip(node.outputs, kinds, strict=True)):
            value.name = name if not index else self.free(f"{name}_{index}")
            value.type = ir.TensorType(ir.DataType[kind])
        node.outputs[0].shape = shape
        if domain:
            self.model.opset_imports.setdefault(domain, 1)
        return node


def take_over(old: ir.Value, new: ir.Value) -> None:
    """Let all who read ``old``, callers of the graph too, read ``new``, which gets its name, type and shape."""
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    new.type, new.shape = old.type or new.type, old.shape or new.shape
    name, old.name = old.name, None
    new.name = name


def drop_unused(model: ir.Model) -> None:
    """Take initializers out that nobody reads any more."""
    for graph in graphs_of(model):
        for name in [n for n, value in graph.initializers.items() if not value.uses() and not value.is_graph_output()]:
            if not graph.initializers[name].is_graph_input():
                del graph.initializers[name]

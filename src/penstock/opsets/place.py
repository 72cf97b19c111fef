"""What an adapter sees of the graph around a node, and with what it builds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from penstock.rewriting import Refusal, Rewrite
from penstock.rewriting.site import Site

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    Array = np.ndarray[tuple[int, ...], np.dtype[Any]]

KEEP: Any = object()


class Place(Site):
    """A site whose ``opset`` is the one that is converted to. In a function constants are nodes."""

    node: ir.Node | None = None  # the one that is converted
    free_name: Callable[[str], str]  # returns a name that no value has

    def constant(self, array: Array, dtype: ir.DataType | None = None) -> ir.Value:
        """Make a constant: an initializer, or a node where there are none."""
        value = super().constant(array, dtype)
        if self.node is None or not self.in_function(self.node):
            return value
        made = self.make("Constant", [], value=value.const_value)
        made.type, made.shape = value.type, value.shape
        return made

    def scalar_constant(self, number: float, dtype: ir.DataType) -> ir.Value:
        """Make a constant ``()`` of a type."""
        import numpy as np

        return self.constant(np.array(number).astype(dtype.numpy()), dtype)

    def fixed(self, node: ir.Node, array: Array, dtype: ir.DataType, what: str) -> Rewrite:
        """Put a constant in the place of a node; what a graph hands out has to be a node's."""
        value = self.constant(array, dtype)
        if node.outputs[0].is_graph_output():
            value = self.typed(self.make("Identity", [value]), dtype, value)
        return Rewrite({node.outputs[0]: value}, what)

    def attribute(self, node: ir.Node, name: str, default: Any = None) -> Any:
        """Return an attribute's value, or the default. Refuses one that the function's caller gives."""
        found = node.attributes.get(name)
        if found is None:
            return default
        if found.is_ref():
            raise Refusal(f"its {name} is given by the caller of the function")
        return found.value

    def dtype(self, value: ir.Value | None) -> ir.DataType:
        """Return a value's element type. Refuses where it isn't known."""
        tensor = self.tensor(value)
        found = tensor.dtype if tensor is not None else None if value is None else value.dtype
        if found is None:
            raise Refusal(f"the type of {'nothing' if value is None else repr(value.name)} isn't known")
        return found

    def need_rank(self, value: ir.Value | None) -> int:
        """Return the rank. Refuses where it isn't known."""
        rank = self.rank(value)
        if rank is None:
            raise Refusal(f"the rank of {'nothing' if value is None else repr(value.name)} isn't known")
        return rank

    def need_static(self, value: ir.Value | None) -> tuple[int, ...]:
        """Return the shape. Refuses where a size isn't a known number."""
        shape = self.static(value)
        if shape is None:
            raise Refusal(f"the sizes of {'nothing' if value is None else repr(value.name)} aren't fixed")
        return shape

    def need_ints(self, value: ir.Value | None, what: str) -> tuple[int, ...]:
        """Return the numbers of a constant. Refuses a computed one: it is to become an attribute."""
        numbers = self.ints(value)
        if numbers is None and (tensor := self.tensor(value)) is not None and tensor.size <= 1 << 16:
            numbers = tuple(int(item) for item in tensor.numpy().reshape(-1))
        if numbers is None:
            raise Refusal(f"its {what} {'are' if what.endswith('s') else 'is'} computed, and an attribute is fixed")
        return numbers

    def need_number(self, value: ir.Value | None, what: str) -> float:
        """Return the number of a constant of one element. Refuses a computed one."""
        number = self.scalar(value)
        if number is None:
            raise Refusal(f"its {what} is computed, and an attribute is fixed")
        return number

    def input(self, node: ir.Node, index: int) -> ir.Value | None:
        """Return an input, ``None`` where it is left out."""
        return node.inputs[index] if index < len(node.inputs) else None

    def reads(self, node: ir.Node, index: int) -> bool:
        """Whether an output is there and somebody reads it."""
        if index >= len(node.outputs):
            return False
        return bool(node.outputs[index].uses()) or node.outputs[index].is_graph_output()

    def cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """Make a Cast."""
        made = self.make("Cast", [value], to=int(dtype))
        return self.typed(made, dtype, value)

    def typed(self, value: ir.Value, dtype: ir.DataType, like: ir.Value | None = None) -> ir.Value:
        """Note a new value's type, and the shape of another one."""
        self.known.put(value, self.shape(like), dtype)
        return value

    def axes(self, op: str, value: ir.Value, axes: Sequence[int], **attributes: Any) -> ir.Value:
        """Make a Squeeze, Unsqueeze or reduction as the opset writes it; its type is known at once."""
        made = self.with_axes(op, value, axes, **attributes)
        if value.dtype is not None:
            self.known.put(made, None, value.dtype)
        return made

    def renew(
        self, node: ir.Node, what: str, inputs: Any = KEEP, *, op: str = "", outputs: int = 0, **changed: Any
    ) -> Rewrite:
        """Make a node like this one, with other inputs, attributes (``None``: left out) or operator."""
        made = self.anew(node, inputs, op=op, outputs=outputs, **changed)
        return Rewrite(dict(zip(node.outputs, made, strict=False)), what)

    def anew(
        self, node: ir.Node, inputs: Any = KEEP, *, op: str = "", outputs: int = 0, **changed: Any
    ) -> Sequence[ir.Value]:
        """Make a node like this one; return its outputs. Bodies are copied."""
        import onnx_ir as ir

        attributes: dict[str, Any] = {}
        for name, attribute in node.attributes.items():
            if name in changed:
                continue
            if not attribute.is_ref() and attribute.type == ir.AttributeType.GRAPH:
                body = attribute.as_graph().clone(allow_outer_scope_values=True)
                attribute = ir.AttrGraph(name, body)
            attributes[name] = attribute
        made = self.make(
            op or node.op_type, list(node.inputs) if inputs is KEEP else inputs, outputs=outputs or len(node.outputs),
            **attributes, **changed,
        )  # fmt: skip
        producer = made.producer()
        assert producer is not None
        return producer.outputs

"""Reasons: which nodes have to stay in fp32, each with the figure that says so.

1. What the user or the format wants: excluded nodes, operators that take no 16-bit floats, bodies of If, Loop and Scan.
2. What is no use in so few bits: random numbers, windows and transforms; in bf16 all that adds up many numbers.
3. Range: a constant, an input or a result beyond what the type holds, with a margin for samples that weren't seen; the
   same for sums inside an operator.
4. Underflow: a constant that becomes 0 (an epsilon of 1e-12), with the root, logarithm or division after it.
5. Whole numbers beyond those that the type holds, and what an integer is made of.
6. Delicate operators: rounding their inputs costs more than their result can bear. What makes these inputs stays too.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from penstock.quantization.half import sums
from penstock.quantization.half.binding import Binding, is_float32
from penstock.quantization.half.operators import ADDING, AFTER_ZERO, COMPUTING, FINE, HANDS_ON, SHARP, WHOLE, behind
from penstock.quantization.half.rounding import Loss
from penstock.quantization.half.seen import Constant, Seen
from penstock.quantization.half.types import Half
from penstock.quantization.placement import constant

if TYPE_CHECKING:
    import onnx_ir as ir

# what of a node's weights: kept as they are, or stored in 16 bits all the same, as their values aren't the reason
Kind = Literal["keep", "store"]


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a node stays in fp32, the tensor that says so, and the range that was measured of it."""

    text: str
    kind: Kind = "keep"
    tensor: str = ""
    low: float | None = None
    high: float | None = None


class Reasons:
    """Collects the first reason of every node; the nodes are those of the main graph."""

    def __init__(
        self, model: ir.Model, half: Half, seen: Mapping[str, Seen], bindings: Mapping[str, Binding], margin: float
    ) -> None:
        self.nodes = {str(node.name): node for node in model.graph}
        self.half, self.seen, self.bindings, self.margin = half, seen, bindings, margin
        self.limit = half.largest / margin
        self.found: dict[str, Reason] = {}
        self.notes: dict[str, str] = {}  # of nodes that compute in 16 bits all the same
        self._constants: dict[ir.Value, Constant] = {}

    def add(self, node: ir.Node, reason: Reason) -> bool:
        """Note a reason where the node has none yet; whether it is new."""
        if str(node.name) in self.found:
            return False
        self.found[str(node.name)] = reason
        return True

    def constant(self, value: ir.Value) -> Constant:
        """Return what a constant would lose."""
        if value not in self._constants:
            assert value.const_value is not None
            self._constants[value] = Constant(value.const_value.numpy(), self.half)
        return self._constants[value]

    def formal(self, exclude: Collection[str]) -> None:
        """Take in what needs no samples: 1, 2 and constants."""
        for name, node in self.nodes.items():
            binding = self.bindings[name]
            if name in exclude:
                self.add(node, Reason("it was excluded"))
            elif not binding.possible and binding.reason:
                self.add(node, Reason(binding.reason, "store"))
            elif node.op_type in FINE and binding.possible:
                self.add(node, Reason(f"it makes {FINE[node.op_type]}, which want more than 16 bits"))
            elif self.half.name == "bf16" and node.op_type in ADDING and binding.possible:
                self.add(node, Reason("it adds up many numbers, and the 8 bits of bf16 are too few for a sum"))
            elif binding.possible and (reason := self._constants_of(node, binding)) is not None:
                self.add(node, reason)
        self._after_zero()

    def _constants_of(self, node: ir.Node, binding: Binding) -> Reason | None:
        half = self.half
        for index in binding.inputs:
            value = node.inputs[index]
            if value is None or not constant(value):
                continue
            lost, label = self.constant(value), f"its constant {value.name}"
            if lost.reach > half.largest and node.op_type == "Clip":  # what is beyond the range is no bound in 16 bits
                self.notes[str(node.name)] = (
                    f"{label} of {lost.reach:g} is infinite in {half.name}, which bounds as little"
                )
                continue
            if lost.reach > half.largest:
                text = f"{label} reaches {lost.reach:g}, and {half.name} holds {half.largest:g}"
                return Reason(text, "keep", str(value.name), -lost.reach, lost.reach)
            if lost.counts:
                return Reason(f"{label} {self._whole(lost.reach)}", "keep", str(value.name))
            if lost.flushed and lost.sqnr_db < half.least_db:
                which = f"{lost.flushed} of its {lost.size} numbers become"
                which = f"{lost.smallest:g} becomes" if lost.size == 1 else which
                return Reason(f"{label}: {which} 0 in {half.name}", "keep", str(value.name))
            if lost.sqnr_db < half.least_db and lost.size > 1:
                text = f"{label} keeps only {lost.sqnr_db:.1f} dB: it lies where {half.name} has few bits"
                return Reason(text, "keep", str(value.name))
        epsilon = node.attributes.get("epsilon")
        if epsilon is not None and not epsilon.is_ref() and 0 < epsilon.as_float() < half.least and (
            node.attributes.get_int("stash_type", 0) != 1 and node.op_type not in ("LayerNormalization",)
        ):  # fmt: skip
            return Reason(f"its epsilon of {epsilon.as_float():g} becomes 0 in {half.name}", "store")
        return None

    def _after_zero(self) -> None:
        """Keep what takes the root, the logarithm or the inverse behind a constant that becomes 0."""
        work = [
            node for name, node in self.nodes.items()
            if name in self.found and any(
                value is not None and is_float32(value) and constant(value) and self.constant(value).flushed
                for value in node.inputs
            )
        ]  # fmt: skip
        while work:
            node = work.pop()
            for out in node.outputs:
                for use in out.uses():
                    after = use.node
                    if self.nodes.get(str(after.name)) is not after or not self.bindings[str(after.name)].possible:
                        continue
                    if after.op_type in AFTER_ZERO and not (after.op_type == "Div" and use.idx == 0):
                        text = f"it reads what {node.name} makes, of which {self.half.name} makes 0 where it is small"
                        if self.add(after, Reason(text, "keep", str(out.name))) and after.op_type != "Div":
                            work.append(after)
                    elif after.op_type in HANDS_ON and after.name not in self.found:
                        self.add(after, Reason(f"it hands on what {node.name} makes", "keep", str(out.name)))
                        work.append(after)

    def ranges(self) -> None:
        """Take in 3 and 5, from what was seen of the tensors that a node would have in 16 bits."""
        for name, node in self.nodes.items():
            binding = self.bindings[name]
            if not binding.possible or name in self.found:
                continue
            tensors = [(node.outputs[i], "its result") for i in binding.outputs]
            reads = [value for i in binding.inputs if (value := node.inputs[i]) is not None]
            tensors += [(value, f"its input {value.name}") for value in reads]
            for value, label in tensors:
                if constant(value) or (one := self.seen.get(str(value.name))) is None:
                    continue
                if one.reach > self.limit and self.add(node, self._beyond(label, str(value.name), one.low, one.high)):
                    break
                if one.counts():
                    text = f"{label} {self._whole(one.reach)}"
                    self.add(node, Reason(text, "keep", str(value.name), one.low, one.high))
                    break
        self._indices()

    def _whole(self, reach: float) -> str:
        return f"holds whole numbers up to {reach:g}, and {self.half.name} has all of them only to {self.half.exact}"

    def _beyond(self, label: str, tensor: str, low: float, high: float) -> Reason:
        half = self.half
        held = f"{half.name} holds {half.largest:g}"
        if max(high, -low) <= half.largest:
            held += f", and with a margin of {self.margin:g} for other samples {self.limit:g}"
        text = f"{label} spans {low:g} to {high:g} on the calibration samples; {held}"
        return Reason(text, "store", tensor, low, high)

    def _indices(self) -> None:
        """Keep what an integer is computed of, back to where a matrix product or a convolution made it."""
        work = [
            node for node in self.nodes.values()
            if node.op_type in WHOLE or (node.op_type == "Cast" and node.outputs[0].dtype is not None
                                          and node.outputs[0].dtype.is_integer())
        ]  # fmt: skip
        met = set(work)
        while work:
            node = work.pop()
            if self.bindings[str(node.name)].possible:
                self.add(node, Reason("whole numbers are made of it"))
            for value in node.inputs:
                maker = value.producer() if is_float32(value) and value is not None else None
                if maker is None or str(maker.name) not in self.nodes or maker.op_type in COMPUTING or maker in met:
                    continue
                met.add(maker)
                work.append(maker)

    def questionable(self) -> tuple[dict[str, float], list[str]]:
        """Return the bounds of sums that are beyond the limit, and which of these nodes are to be measured."""
        bounds = {
            name: reach for name, node in self.nodes.items()
            if name not in self.found and self.bindings[name].possible
            and (reach := sums.bound(node, self.seen)) > self.limit
        }  # fmt: skip
        return bounds, [name for name in bounds if self.nodes[name].op_type in sums.MEASURED]

    def sums(self, bounds: Mapping[str, float], measured: Mapping[str, float]) -> None:
        """Take in sums inside operators: ``bounds`` that are beyond the limit, replaced by what was ``measured``."""
        half = self.half
        for name, reach in bounds.items():
            how = "on the calibration samples" if name in measured else "at most"
            if (found := measured.get(name, reach)) > self.limit:
                text = f"what it adds up reaches {found:g} {how}, and {half.name} holds {half.largest:g}"
                self.add(self.nodes[name], Reason(text, "store", "", None, found))
        for name, node in self.nodes.items():
            if node.op_type in sums.REDUCTIONS and self.bindings[name].possible:
                count = sums.terms(node, self.seen)
                if count > half.exact:
                    text = f"it adds up {count} numbers, and in {half.name} a sum of ones stands still at {half.exact}"
                    self.add(node, Reason(text, "store"))

    def delicate(self, losses: Mapping[str, Loss]) -> dict[str, str]:
        """Take in 6, and return the delicate nodes: behind which chains stay too."""
        made = {str(out.name): str(node.name) for node in self.nodes.values() for out in node.outputs if out.name}
        found = {}
        for name, loss in losses.items():
            if name.startswith(":"):
                name = made[name[1:]]
                poor = loss.sqnr_db < self.half.least_db
                text = f"rounding its result to {self.half.name} leaves {loss.sqnr_db:.1f} dB of it" if poor else ""
            else:
                text = loss.excessive(self.nodes[name].op_type, self.half)
            if text and self.bindings[name].possible:
                self.add(self.nodes[name], Reason(text))
                found[name] = text
        return found

    def roots(self) -> list[str]:
        """Return nodes that need a closer look, beyond what rounding their own inputs does.

        Roots, logarithms and inverses of what is made of very small numbers, and sharp operators that are in fp32.
        """
        return [
            name for name, node in self.nodes.items() if self.bindings[name].possible and (
                (node.op_type in SHARP and name in self.found) or (node.op_type in AFTER_ZERO and any(
                    self.seen[tensor].small for tensor in behind(node) if tensor in self.seen
                ))
            )
        ]  # fmt: skip

    def chains(self, islands: Mapping[str, frozenset[str]]) -> None:
        """Take in what has to be in fp32 for the sake of a delicate node."""
        for name, island in islands.items():
            for other in sorted(island - {name}):
                text = f"{name} reads what is made of it, and can't bear that rounded to {self.half.name}"
                self.add(self.nodes[other], Reason(text))

"""Inspect: say what a model is made of and what it costs, without running it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from penstock import custom_domains, graph, guard, precheck
from penstock.analysis.cost import cost
from penstock.analysis.memory import Peak, constant_values, peak, value_bytes
from penstock.analysis.shapes import DynamicDim, Shape, fix_inputs, infer
from penstock.analysis.weights import constants, origin, role
from penstock.custom_domains import DomainUse
from penstock.errors import InputError, PenstockError
from penstock.passes._library import expanded_size, node_label, quiet
from penstock.rewriting import layout
from penstock.rewriting.layout import Turn
from penstock.signature import Signature

if TYPE_CHECKING:
    import onnx_ir as ir

MAX_NODES = 10_000  # functions that stand for more nodes than this are not looked into
MAX_FUNCTIONS = 2_000  # nor are more functions than this
MOST_DETAILED = 20_000  # results of nodes, initializers and bodies of a model whose layers and shapes are looked into


@dataclass(frozen=True, slots=True)
class OperatorUse:
    """One operator: how many nodes use it, and since which opset its meaning is this one (``None``: not ONNX's)."""

    domain: str
    op: str
    count: int
    since_version: int | None


@dataclass(frozen=True, slots=True)
class WeightBytes:
    """All constant tensors of one element type, whatever they are for."""

    dtype: str
    tensors: int
    elements: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Layer:
    """One node that isn't a Constant; ``None`` is unknown. ``shape`` and ``dtype`` are its first output's.

    ``parameters`` counts a weight at its first reader (behind any
    Identity); ``activation_bytes`` are all its outputs together, and 0 for
    one that depends on constants alone.
    """

    name: str
    op: str
    domain: str
    shape: Shape | None
    dtype: str
    parameters: int
    macs: int | None
    flops: int | None
    activation_bytes: int | None


@dataclass(frozen=True, slots=True)
class Unknown:
    """A node whose cost isn't in the sums, and why."""

    node: str
    op: str
    reason: str


@dataclass(frozen=True, slots=True)
class ChannelsLast:
    """What a target that keeps images channels-last has to transpose: see :mod:`penstock.rewriting.layout`."""

    images: int  # operators of images
    placed: int  # of them: those that can work on the layout, as far as ranks are known
    transposes: tuple[Turn, ...]


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a file holds. Sums leave out what is listed as unknown, and say so by listing it.

    ``parameters`` counts elements as :func:`penstock.analysis.weights.role` defines them. It is a number of the file: a
    BatchNormalization folded into a Conv takes its scale and bias with it, so that an export with folding has two
    parameters a channel fewer than the module it was made of. ``statistics`` are the running means and variances.
    """

    file: str
    size_bytes: int  # with external data
    ir_version: int
    producer: str
    opsets: Mapping[str, int]
    custom_domains: tuple[str, ...]
    custom: tuple[DomainUse, ...]  # those that no runtime knows by itself, with the library that was named
    signature: Signature
    initializers: int
    overridable_inputs: tuple[str, ...]  # initializers that are listed as inputs as well
    functions: tuple[str, ...]
    subgraphs: int
    nodes: int
    operators: tuple[OperatorUse, ...]
    parameters: int
    statistics: int
    weights: tuple[WeightBytes, ...]
    weight_bytes: int
    macs: int
    flops: int
    unknown: tuple[Unknown, ...]
    activation_bytes: int
    peak: Peak
    dynamic: tuple[DynamicDim, ...]
    layers: tuple[Layer, ...]
    channels_last: ChannelsLast | None  # ``None`` where there are no images, or too much to look into
    notes: tuple[str, ...]


def inspect(model_path: Path, sizes: Mapping[str, int] | None = None) -> Inspection:
    """Inspect a model file. Raises ``InputError`` where it can't be read, and for nothing else.

    ``sizes`` gives dynamic dimensions a size for the figures, by name; the others count as 1. Nodes and operators are
    those of the file; layers, costs and memory are those after inlining its functions. A model of more than
    ``MOST_DETAILED`` results, initializers and bodies has neither: all its operators are of unknown cost.
    """
    with guard.rare_collection():
        try:
            return _inspect(model_path, sizes or {})
        except PenstockError:
            raise
        except Exception as error:  # the libraries raise what they like about a damaged graph
            what = f"the model can't be inspected: {graph.first_line(error)}"
            do = "check it with onnx.checker, or export it again"
            raise InputError("unreadable-model", what, where=str(model_path), do=do) from error


def _inspect(model_path: Path, sizes: Mapping[str, int]) -> Inspection:
    checked = precheck.check(model_path, weights=False)
    model = graph.parse(model_path)
    nodes = graph.all_nodes(model)
    uses = Counter((node.domain, node.op_type) for node in nodes)
    notes: list[str] = []
    signature = graph.signature(model)
    scopes = [scope.initializers for scope in model.graphs()]
    initializers, subgraphs = sum(map(len, scopes)), len(scopes) - 1
    detailed = sum(max(len(node.outputs), 1) for node in nodes) + initializers + subgraphs <= MOST_DETAILED
    flat = _inlined(model, notes) if detailed else model
    held = list(constants(flat))
    roles = {value: role(value, tensor) for value, tensor in held}
    sized = {value: tensor.size for value, tensor in held}
    turned = _channels_last(flat) if detailed else None
    dynamic = fix_inputs(flat, sizes)
    parameters = {value: sized[value] for value in sized if roles[value] == "parameter"}
    found = _details(flat, dynamic, parameters, notes) if detailed else _outline(uses)
    if dynamic:
        notes.append("figures hold for the sizes given for the dynamic dimensions")
    if subgraphs:
        notes.append("each body of If, Loop and Scan counts once, however often it runs")
    if found.unknown:
        left_out = "all" if not detailed else f"{len(found.unknown):,}"
        notes.append(f"{left_out} nodes of unknown cost are not in the sums")
    weights = _weights(held, sized)
    return Inspection(
        file=model_path.name,
        size_bytes=model_path.stat().st_size + sum(path.stat().st_size for path in checked.external),
        ir_version=model.ir_version or 0,
        producer=" ".join(filter(None, (model.producer_name, model.producer_version))),
        opsets=dict(sorted(model.opset_imports.items())),
        custom_domains=tuple(sorted({domain for domain, _ in uses} - {"", "ai.onnx", "ai.onnx.ml"})),
        custom=custom_domains.used(model),
        signature=signature,
        initializers=initializers,
        overridable_inputs=tuple(str(value.name) for value in model.graph.inputs if value.is_initializer()),
        functions=tuple(sorted("::".join(filter(None, key)) for key in model.functions)),
        subgraphs=subgraphs,
        nodes=sum(uses.values()),
        operators=tuple(
            OperatorUse(domain or "ai.onnx", op, count, _since(op, domain, model.opset_imports))
            for (domain, op), count in sorted(uses.items(), key=lambda item: (-item[1], item[0]))
        ),
        parameters=sum(parameters.values()),
        statistics=sum(sized[value] for value in sized if roles[value] == "statistic"),
        weights=weights,
        weight_bytes=sum(entry.bytes for entry in weights),
        macs=sum(layer.macs or 0 for layer in found.layers),
        flops=sum(layer.flops or 0 for layer in found.layers),
        unknown=found.unknown,
        activation_bytes=sum(layer.activation_bytes or 0 for layer in found.layers),
        peak=found.peak,
        dynamic=dynamic,
        layers=found.layers,
        channels_last=turned,
        notes=tuple(notes),
    )


def _channels_last(model: ir.Model) -> ChannelsLast | None:
    images = [node for node in model.graph if node.op_type in layout.OF_IMAGES and node.domain == ""]
    if not images:
        return None
    plan = layout.channels_last(model)
    return ChannelsLast(len(images), sum(node.outputs[0].name in plan.inputs for node in images), plan.transposes)


@dataclass(frozen=True, slots=True)
class _Details:
    """What is known of each node."""

    layers: tuple[Layer, ...]
    unknown: tuple[Unknown, ...]
    peak: Peak


def _details(
    model: ir.Model, dynamic: tuple[DynamicDim, ...], parameters: Mapping[ir.Value, int], notes: list[str]
) -> _Details:
    shapes, problem = infer(model, dynamic)
    if problem:
        notes.append(problem)
    layers, unknown = _layers(model, shapes, parameters)
    return _Details(tuple(layers), tuple(unknown), peak(model.graph, shapes))


def _outline(uses: Mapping[tuple[str, str], int]) -> _Details:
    """Say of each operator of a very large model that its cost isn't known."""
    reason = f"the model has more than {MOST_DETAILED:,} results of nodes, initializers and bodies"
    unknown = tuple(Unknown(f"{count:,} nodes", op, reason) for (_, op), count in sorted(uses.items()))
    return _Details((), unknown, Peak(0, "", sum(uses.values())))


def _inlined(model: ir.Model, notes: list[str]) -> ir.Model:
    from onnx_ir.passes.common import InlinePass

    try:
        flat = model.clone()
        if len(flat.functions) > MAX_FUNCTIONS:
            notes.append(f"it has more than {MAX_FUNCTIONS:,} functions, which are not looked into")
        elif flat.functions and expanded_size(flat, MAX_NODES) >= MAX_NODES:
            notes.append(f"its functions stand for {MAX_NODES} nodes or more and are not looked into")
        elif flat.functions:
            with quiet():
                InlinePass()(flat)
        flat.graph.sort()
        return flat
    except Exception as error:  # onnx-ir refuses some graphs that it has read; the file is inspected as it is
        notes.append(f"its functions can't be inlined, or it can't be sorted: {graph.first_line(error)}")
        return model


def _layers(
    model: ir.Model, shapes: Mapping[ir.Value, Shape], parameters: Mapping[ir.Value, int]
) -> tuple[list[Layer], list[Unknown]]:
    layers: list[Layer] = []
    unknown: list[Unknown] = []
    counted: set[ir.Value] = set()
    fixed = constant_values(model.graph)
    for node in model.graph.all_nodes():
        if node.op_type == "Constant" and node.domain == "":
            continue
        figures = cost(node, shapes)
        if figures.macs is None:
            unknown.append(Unknown(node_label(node), node.op_type, figures.reason))
        read = () if node.op_type == "Identity" else dict.fromkeys(origin(value) for value in node.inputs)
        own = [value for value in read if value in parameters and value not in counted]
        counted.update(value for value in own if value is not None)
        sizes = [value_bytes(value, shapes) for value in node.outputs if value.name and value not in fixed]
        first = node.outputs[0] if node.outputs else None
        layers.append(
            Layer(
                name=node_label(node), op=node.op_type, domain=node.domain,
                shape=None if first is None else shapes.get(first),
                dtype="unknown" if first is None else graph.dtype_name(first),
                parameters=sum(parameters[value] for value in own if value is not None),
                macs=figures.macs, flops=figures.flops,
                activation_bytes=None if None in sizes else sum(size or 0 for size in sizes),
            )
        )  # fmt: skip
    return layers, unknown


def _weights(held: list[tuple[ir.Value, ir.TensorProtocol]], sized: Mapping[ir.Value, int]) -> tuple[WeightBytes, ...]:
    sums: dict[str, list[int]] = {}
    for value, tensor in held:
        size, dtype = sized[value], tensor.dtype
        entry = sums.setdefault(dtype.name.lower(), [0, 0, 0])
        held_bytes = _text_bytes(tensor) if dtype.name == "STRING" else math.ceil(size * dtype.itemsize)
        for index, amount in enumerate((1, size, held_bytes)):
            entry[index] += amount
    found = [WeightBytes(name, *amounts) for name, amounts in sums.items()]
    return tuple(sorted(found, key=lambda entry: (-entry.bytes, entry.dtype)))


def _text_bytes(tensor: ir.TensorProtocol) -> int:
    texts = tensor.numpy().reshape(-1).tolist()
    return sum(len(text if isinstance(text, bytes) else str(text).encode()) for text in texts)


def _since(op: str, domain: str, opsets: Mapping[str, int]) -> int | None:
    import onnx

    try:
        return onnx.defs.get_schema(op, opsets.get(domain, 1), "" if domain == "ai.onnx" else domain).since_version
    except (onnx.defs.SchemaError, TypeError):  # the latter: a version beyond C's int
        return None

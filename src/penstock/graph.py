"""ONNX models on onnx-ir: load behind the pre-check, save, signatures, digests."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from penstock import precheck, source_lines
from penstock.errors import InputError
from penstock.signature import Dim, Signature, TensorSpec

if TYPE_CHECKING:
    import onnx_ir as ir

    from penstock.variant import Precision


SMALL_BYTES = 256  # of a tensor that is always inside
NBITS = "MatMulNBits"  # ONNX Runtime's product with weights in blocks of few bits
KEPT_DOMAIN = "penstock.modules"  # of functions that the user asked to keep; no pass inlines them


def load(path: Path, *, weights: bool = True) -> ir.Model:
    """Load a model that the pre-check lets through; external data stays on disk. Raises ``InputError``.

    ``weights`` says that they will be read, so that a model whose weights can't be held here is refused.
    """
    precheck.check(path, weights=weights)
    return parse(path)


def parse(path: Path) -> ir.Model:
    """Load a model that has been checked; sparse tensors become dense. Raises ``InputError``."""
    import onnx
    import onnx_ir as ir

    from penstock.analysis.sparse import make_dense
    from penstock.passes._library import quiet

    try:
        with quiet():
            proto = onnx.load(path, format="protobuf", load_external_data=False)
            make_dense(proto, str(path.parent))
            model = ir.from_proto(proto)
            _one_name_for_the_standard(model)
            ir.external_data.set_base_dir(model.graph, path.parent)
    except InputError as error:
        raise InputError(error.id, error.what, where=str(path), do=error.do) from error
    except Exception as error:  # a parser meets arbitrary bytes: whatever it raises is about the file
        raise InputError(
            "unreadable-model",
            f"the model can't be read: {first_line(error)}",
            where=str(path),
            do="check it with onnx.checker, or export it again",
        ) from error
    return model


def _one_name_for_the_standard(model: ir.Model) -> None:
    """Let imports of "ai.onnx" be of "", as onnx-ir calls the domain of such nodes."""
    for imports in (model.opset_imports, *(function.opset_imports for function in model.functions.values())):
        if (version := imports.pop("ai.onnx", None)) is not None:
            imports.setdefault("", version)


def has_narrow_floats(path: Path) -> bool:
    """Whether a model's weights, inputs, outputs or Casts have floats of fewer than 32 bits. Raises ``InputError``."""
    import onnx_ir as ir

    loaded = load(path, weights=False)
    narrow = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
    held = [value for one in loaded.graphs() for value in (*one.initializers.values(), *one.inputs, *one.outputs)]
    if any(value.dtype in narrow or getattr(value.const_value, "dtype", None) in narrow for value in held):
        return True
    return any(
        attribute.value in narrow or getattr(attribute.value, "dtype", None) in narrow
        for node in all_nodes(loaded) for attribute in node.attributes.values()
        if attribute.name in ("to", "value", "dtype", "output_dtype")
    )  # fmt: skip


def save(
    model: ir.Model, path: Path, *, inline_limit_bytes: int = 1 << 30, data: str = "", beside: bool = False
) -> None:
    """Save a model: one file, or with the weights beside it, in the file ``data``, where they exceed the limit.

    Into a scratch folder the weights are copied. ``beside``: the result lies in the folder of the model it came from,
    and tensors that still lie in a file there stay where they are, unread; the others count for the limit.
    """
    import onnx_ir as ir

    data = data or path.name + ".data"
    tensors = [
        value.const_value
        for graph in ((*model.graphs(),) if beside else (model.graph,))
        for value in graph.initializers.values()
        if value.const_value is not None
    ]
    own = [tensor for tensor in tensors if not (beside and isinstance(tensor, ir.ExternalTensor))]
    large = sum(tensor.nbytes for tensor in own) > inline_limit_bytes
    if beside:
        if large:
            _move_out(model, own, path.parent, data)
        ir.save(model, path)
    elif large:
        ir.save(model, path, external_data=data)
    else:
        # external tensors are read in first, because the result may lie in another folder
        ir.external_data.load_to_model(model)
        ir.save(model, path)


def _move_out(model: ir.Model, tensors: list[ir.TensorProtocol], folder: Path, data: str) -> None:
    """Write tensors into a file, and let the model's initializers refer to it."""
    import onnx_ir as ir

    held = [tensor for tensor in tensors if tensor.nbytes > SMALL_BYTES]
    moved = dict(zip(map(id, held), ir.external_data.convert_tensors_to_external(held, folder, data), strict=True))
    for scope in model.graphs():
        for value in scope.initializers.values():
            if value.const_value is not None and id(value.const_value) in moved:
                value.const_value = moved[id(value.const_value)]


def inline(model: ir.Model) -> bool:
    """Replace calls of functions by their bodies, for what can't read them; tell whether there were any.

    Raises ``InputError`` for functions of other opsets than the model: operators mean something else in them.
    """
    from onnx_ir.passes.common import InlinePass

    if not model.functions:
        return False
    if reason := mixed_opsets(model):
        do = "say the model and its functions in one opset where they are made"
        raise InputError("mixed-opsets", f"its functions can't be inlined: {reason}", do=do)
    InlinePass()(model)
    return True


def mixed_opsets(model: ir.Model) -> str:
    """Tell which function is of another opset than the model; nothing where none is."""
    for function in model.functions.values():
        for domain, version in function.opset_imports.items():
            own = model.opset_imports.get(domain, version)
            if own != version:
                kind = f" of {domain!r}" if domain else ""
                caller = next((n for n in all_nodes(model) if n.op_identifier() == function.identifier()), None)
                called = f" (called by {caller.name or caller.outputs[0].name})" if caller is not None else ""
                return f"the function {function.name!r}{called} is of opset {version}{kind}, the model of {own}"
    return ""


def signature(model: ir.Model) -> Signature:
    """Return the inputs and outputs; an initializer that is also listed as an input is not one."""
    held = set(model.graph.initializers)
    inputs = tuple(_spec(value) for value in model.graph.inputs if value.name not in held)
    return Signature(inputs, tuple(_spec(value) for value in model.graph.outputs))


def _spec(value: ir.Value) -> TensorSpec:
    shape: tuple[Dim, ...] | None = None
    if value.shape is not None:
        # a negative size is no size: some exporters write -1 for a dynamic one
        shape = tuple((dim if dim >= 0 else None) if isinstance(dim, int) else dim.value for dim in value.shape)
    return TensorSpec(value.name or "", dtype_name(value), shape)


def dtype_name(value: ir.Value) -> str:
    """Return numpy's name of a value's element type; ``object`` for strings, ``unknown`` where there is none."""
    import onnx_ir as ir

    if value.dtype is None:
        return "unknown"
    if value.dtype == ir.DataType.STRING:
        return "object"
    return str(value.dtype.numpy())


def precision(model: ir.Model) -> Precision:
    """Tell what a model is made of: int8 or int4 where it has quantized operators, else the type of most weights."""
    import onnx_ir as ir

    quantized = {
        "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "QuantizeLinear", "DequantizeLinear",
        "DynamicQuantizeLinear", "DynamicQuantizeLSTM", "QGemm", "MatMulIntegerToFloat",
    }  # fmt: skip
    nodes = all_nodes(model)
    if any(node.op_type == NBITS and node.attributes.get_int("bits", 4) == 4 for node in nodes):
        return "int4"
    if any(node.op_type in quantized or node.op_type == NBITS for node in nodes):
        fours = {ir.DataType.INT4, ir.DataType.UINT4}
        return "int4" if any(v.dtype in fours for g in model.graphs() for v in g.initializers.values()) else "int8"
    held = dict.fromkeys((ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16), 0)
    for scope in model.graphs():
        for value in scope.initializers.values():
            if value.dtype in held and value.const_value is not None:
                held[value.dtype] += value.const_value.size
    names: dict[ir.DataType, Precision] = {ir.DataType.FLOAT16: "fp16", ir.DataType.BFLOAT16: "bf16"}
    return names.get(max(held, key=lambda kind: held[kind]), "fp32")


def weight_only(model: ir.Model, *, nbits: bool) -> bool:
    """Tell whether products of float activations read weights that are stored as integers.

    ``nbits``: MatMulNBits counts too, which says itself how it is to be computed.
    """
    for node in all_nodes(model):
        if nbits and node.op_type == NBITS:
            return True
        if node.op_type in ("MatMul", "Gemm") and len(node.inputs) > 1:
            data, weights = (value.producer() if value is not None else None for value in node.inputs[:2])
            stored = weights.inputs[0] if weights is not None and weights.op_type == "DequantizeLinear" else None
            whole = data is not None and data.op_type == "DequantizeLinear"
            if stored is not None and stored.const_value is not None and not whole:
                return True
    return False


def tidy(model: ir.Model) -> None:
    """Bring a model into the form that we ship: no exporter's traces, no unused opset imports, stable order.

    Exporters leave stack traces with absolute paths in the metadata: they would name the user's folders and make two
    builds of the same source differ. A node keeps its line of source code (see ``source_lines``).
    """
    used = {""} | {node.domain for node in all_nodes(model)} | {key[0] for key in model.functions}
    for domain in [d for d in model.opset_imports if d not in used]:
        del model.opset_imports[domain]
    model.metadata_props.clear()
    model.doc_string = None
    model.graph.metadata_props.clear()
    model.graph.doc_string = None
    for function in model.functions.values():
        function.metadata_props.clear()
        function.doc_string = None
    for node in all_nodes(model):
        place = source_lines.line_of(node)
        node.metadata_props.clear()
        if place:
            node.metadata_props[source_lines.KEY] = place
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
            value.doc_string = None
    for value in [*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()]:
        value.metadata_props.clear()
        value.doc_string = None


def all_nodes(model: ir.Model) -> list[ir.Node]:
    """List the nodes of the graph, of the subgraphs in it and of the functions."""
    nodes = list(model.graph.all_nodes())
    for function in model.functions.values():
        nodes.extend(function.all_nodes())
    return nodes


def first_line(error: BaseException, limit: int = 300) -> str:
    """Return the first line of a library's error, for a message of our own."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return text if len(text) <= limit else text[: limit - 1] + "…"

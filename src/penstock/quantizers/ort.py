"""Static int8 through onnxruntime.quantization: MinMax ranges; with Q/DQ pairs the last layer's output left in float.

What it adds to the library: models below opset 13 are brought to 13 first (per-channel scales need it), the pair of
QuantizeLinear and DequantizeLinear before each output of the model is taken out again (it would clip the logits), and
the opset imports that the library leaves behind are dropped.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penstock import custom_domains, graph, store
from penstock.calibration import Batches
from penstock.errors import InputError, UsageError
from penstock.graph import first_line
from penstock.quantizers import FLOAT

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from penstock.jsonable import Json
    from penstock.stages.quantize import QuantizeSettings

_HEAVY = {"Conv", "ConvTranspose", "MatMul", "Gemm"}
_OPSET = 13
READS = frozenset({"consumer", "activations", "quantize_outputs", "format", "per_channel", "target_cpu"})
_UNSERVED = {
    "openvino": "it places its pairs for ONNX Runtime",
    "integer-only": "it leaves what it has no integers for in float",
    "tensorrt": "TensorRT takes symmetric int8 activations alone",
}
_TYPES = ("uint8", "int8")


def available() -> str:
    """Return "" when onnxruntime.quantization imports here."""
    try:
        import onnxruntime.quantization  # noqa: F401  # imported to see whether it loads
    except Exception as error:  # a broken wheel raises more than ImportError
        return f"pip install onnxruntime ({first_line(error)})"
    return ""


def quantize(
    model: Path, batches: Iterable[Mapping[str, np.ndarray]], settings: QuantizeSettings, into: Path
) -> Mapping[str, Json]:
    """Quantize ``model``; see :class:`penstock.quantizers.Quantizer`."""
    import onnxruntime
    from onnxruntime import quantization

    from penstock.quantization import finite, prepare, saturation

    need(settings)
    bits = saturation.bits(settings.target_cpu)
    form = {"qdq": quantization.QuantFormat.QDQ, "qoperator": quantization.QuantFormat.QOperator}[settings.format]
    onnxruntime.set_default_logger_severity(4)  # what goes wrong arrives as an exception
    loaded = graph.load(model)
    graph.inline(loaded)  # the library looks into no function, and would leave all of it in float
    _refuse_hopeless(loaded, model)
    exclude = sorted(prepare.known_names(loaded, settings.exclude))
    finite.check(loaded, model)
    counter = _Counted(batches.whole() if isinstance(batches, Batches) else batches)
    with store.scratch() as work:
        source = work / "source.onnx"
        converted = _raise_opset(loaded, model)
        _flatten_biases(converted)
        graph.save(converted, source)
        with _quiet():
            try:
                quantization.quantize_static(
                    str(source),
                    str(work / "quantized.onnx"),
                    counter,
                    quant_format=form,
                    per_channel=settings.per_channel,
                    reduce_range=bits < 8,
                    activation_type={
                        "uint8": quantization.QuantType.QUInt8,
                        "int8": quantization.QuantType.QInt8,
                    }[settings.activations or "uint8"],
                    weight_type=quantization.QuantType.QInt8,
                    nodes_to_exclude=exclude,
                    calibrate_method=quantization.CalibrationMethod.MinMax,
                    calibration_providers=["CPUExecutionProvider"],
                    extra_options={"ActivationSymmetric": False, "WeightSymmetric": True},
                )
            except Exception as error:  # the library raises many types, all about this model
                what = f"onnxruntime.quantization can't quantize this model: {first_line(error)}"
                raise InputError("cannot-quantize", what, where=str(model), do="choose --method static") from error
        result = graph.load(work / "quantized.onnx")
        before = {value.name: _producer_type(value) for value in converted.graph.outputs}
        floated = _float_outputs(result, before)
        left = sorted({n.op_type for n in result.graph.all_nodes() if n.op_type in _HEAVY and not _is_quantized(n)})
        graph.tidy(result)
        graph.save(result, into)
    return {
        "method": "static", "format": settings.format.upper(), "calibration": "MinMax",
        "calibration_batch": counter.size, "target_cpu": settings.target_cpu, "weight_bits": bits,
        "notes": [saturation.unmeasured(settings.target_cpu)] if bits < 8 else [],
        "calibration_samples": counter.samples, "activations": settings.activations or "uint8", "weights": "int8",
        "per_channel": settings.per_channel, "outputs_left_in_float": list(floated),
        "opset_raised_from": loaded.opset_imports.get("") if converted is not loaded else None,
        "operators_left_in_float": list(left),
    }  # fmt: skip


def need(settings: QuantizeSettings) -> None:
    """Raise ``UsageError`` for settings that the library isn't asked for here."""
    do = "leave it out, or choose --method static"
    if settings.consumer in _UNSERVED:
        what = f"the method 'ort' can't serve {settings.consumer!r}: {_UNSERVED[settings.consumer]}"
        raise UsageError("wrong-consumer", what, where="--consumer", do="choose --method static")
    if settings.activations not in ("", *_TYPES):
        what = f"the method 'ort' makes activations of {', '.join(_TYPES)}, not {settings.activations}"
        raise UsageError("cannot-serve", what, where="--activations", do=do)
    if settings.quantize_outputs and settings.format == "qdq":
        what = "with pairs the method 'ort' leaves the last layer's result in float"
        raise UsageError("cannot-serve", what, where="--quantize-outputs", do=do)


class _Counted:
    """The library's reader protocol over an iterable of feeds, counting what it hands out."""

    def __init__(self, batches: Iterable[Mapping[str, np.ndarray]]) -> None:
        self._feeds = iter(batches)
        self.size = 0
        self.samples = 0

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the next batch, ``None`` at the end."""
        feeds = next(self._feeds, None)
        if feeds is None:
            return None
        self.size = max((len(array) for array in feeds.values() if array.ndim), default=1)
        self.samples += self.size
        return dict(feeds)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        while (feeds := self.get_next()) is not None:
            yield feeds

    def __next__(self) -> dict[str, np.ndarray]:
        if (feeds := self.get_next()) is None:
            raise StopIteration
        return feeds

    def set_range(self, start_index: int, end_index: int) -> None:
        """Take no part in strided calibration."""


def _refuse_hopeless(model: ir.Model, path: Path) -> None:
    from penstock.quantization import prepare

    operators = {node.op_type for node in model.graph.all_nodes()}
    if custom := custom_domains.used(model):
        what = f"calibrating would run operators of {custom[0].domain!r}, and the library loads none of others"
        raise InputError(
            "cannot-quantize", what, where=str(path), do="choose --method static, which loads those you name"
        )
    prepare.refuse_quantized(model, path)
    if not operators & _HEAVY:
        what = f"there is nothing worth quantizing: no {', '.join(sorted(_HEAVY))}"
        raise InputError("nothing-to-quantize", what, where=str(path), do=f"{FLOAT}, or try --method dynamic")


def _raise_opset(model: ir.Model, path: Path) -> ir.Model:
    """Return the model at opset 13 or later; itself if it is there already."""
    import onnx
    import onnx_ir as ir

    version = model.opset_imports.get("") or 1
    if version >= _OPSET:
        return model
    try:
        ir.external_data.load_to_model(model)
        return ir.from_proto(onnx.version_converter.convert_version(ir.to_proto(model), _OPSET))
    except Exception as error:  # the converter raises many types, all about this model
        what = f"opset {version} can't be raised to {_OPSET}, which per-channel scales need: {first_line(error)}"
        raise InputError("cannot-raise-opset", what, where=str(path), do="export again at opset 13 or later") from error


def _flatten_biases(model: ir.Model) -> None:
    """Let the biases of Gemms have one axis, which the library asks for; ``(1, n)`` is added as ``(n,)`` is."""
    import onnx_ir as ir

    taken = {
        value.name for node in graph.all_nodes(model) for value in (*node.inputs, *node.outputs) if value is not None
    }
    for scope in model.graphs():
        made: dict[ir.Value, ir.Value] = {}
        for node in list(scope):
            bias = node.inputs[2] if node.op_type == "Gemm" and node.domain == "" and len(node.inputs) > 2 else None
            tensor = None if bias is None else bias.const_value
            if bias is None or tensor is None or bias.is_graph_input() or bias.graph is not scope:
                continue
            if len(tensor.shape) != 2 or tensor.shape[0] != 1:
                continue
            if bias not in made:
                name = next(n for i in itertools.count() if (n := f"{bias.name}_flat{i or ''}") not in taken)
                taken.add(name)
                flat = ir.Tensor(tensor.numpy().reshape(-1).copy(), name=name)
                made[bias] = ir.Value(name=name, shape=flat.shape, type=ir.TensorType(flat.dtype), const_value=flat)
                scope.register_initializer(made[bias])
            node.replace_input_with(2, made[bias])
        for old in made:
            if not old.uses() and not old.is_graph_output():
                del scope.initializers[str(old.name)]


def _producer_type(value: ir.Value) -> str:
    node = value.producer()
    return node.op_type if node is not None else ""


def _float_outputs(model: ir.Model, before: Mapping[str | None, str]) -> tuple[str, ...]:
    """Take out the Q/DQ pair in front of each of the model's outputs; return the outputs that lost theirs.

    ``before`` is the operator that made each output in the float model. Where another one makes it now, the library has
    folded that operator (a Relu, a Clip) into the pair's clipping, and the pair has to stay.
    """
    done = []
    for index, output in enumerate(model.graph.outputs):
        dequantize = output.producer()
        if dequantize is None or dequantize.op_type != "DequantizeLinear" or dequantize.inputs[0] is None:
            continue
        quantized = dequantize.inputs[0]
        quantize_node = quantized.producer()
        if quantize_node is None or quantize_node.op_type != "QuantizeLinear" or len(quantized.uses()) != 1:
            continue
        real = quantize_node.inputs[0]
        if real is None or real.is_graph_input() or real in model.graph.outputs:
            continue
        if _producer_type(real) != before.get(output.name):
            continue
        name, shape = output.name, output.shape
        model.graph.outputs[index] = real
        if not output.uses():  # else somebody inside reads the rounded values, and goes on reading them
            model.graph.remove([dequantize], safe=True)
            model.graph.remove([quantize_node], safe=True)
        output.name = f"{name}_dequantized"
        real.name = name
        real.shape = real.shape or shape
        real.dtype = real.dtype or output.dtype  # type: ignore[assignment]  # its setter takes None too
        done.append(name or "")
    if done:
        _drop_unused_initializers(model)
    return tuple(done)


def _drop_unused_initializers(model: ir.Model) -> None:
    for name in [n for n, v in model.graph.initializers.items() if not v.uses() and not v.is_graph_output()]:
        del model.graph.initializers[name]


def _is_quantized(node: Any) -> bool:
    first = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
    return first is not None and first.op_type == "DequantizeLinear"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the library's advice (it logs that the model should be pre-processed, which our passes have done) away."""
    previous = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(previous)

"""Small models for the 16-bit tests, and ways to run what becomes of them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, numpy_helper

from penstock import calibration
from penstock.quantization.half.convert import convert
from penstock.quantization.half.types import HALVES
from penstock.stages.quantize import QuantizeSettings

_RNG = [np.random.default_rng(0)]


def seed(number: int) -> None:
    """Begin anew, so that a test's numbers don't depend on the tests before it."""
    _RNG[0] = np.random.default_rng(number)


def floats(*shape: int, scale: float = 1.0) -> np.ndarray:
    """Return normal numbers."""
    return (_RNG[0].normal(size=shape) * scale).astype(np.float32)


def model(text: str, opset: int = 17, **weights: np.ndarray | float) -> onnx.ModelProto:
    """Return a model of a graph in ONNX's text form, whose weights are given by name."""
    made = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": {opset}]> {text}')
    for name, array in weights.items():
        held = np.asarray(array, np.float32) if isinstance(array, float) else np.asarray(array)
        made.graph.initializer.append(numpy_helper.from_array(held, name))
    for number, node in enumerate(made.graph.node):
        node.name = node.name or f"{node.op_type.lower()}_{number}"
    onnx.checker.check_model(made, full_check=True)
    return made


def named(made: onnx.ModelProto, **names: str) -> onnx.ModelProto:
    """Name the nodes that make tensors: ``tensor="node"``."""
    for node in made.graph.node:
        node.name = names.get(node.output[0], node.name)
    return made


class Done:
    """A converted model with its facts, and what becomes of samples in it and in the float model."""

    def __init__(self, made: onnx.ModelProto, facts: dict, source: onnx.ModelProto) -> None:
        self.made, self.facts, self.source = made, facts, source
        self.layers = {layer["node"]: layer for layer in facts["layers"]}

    def state(self, node: str) -> str:
        """Return what became of a node."""
        return self.layers[node]["state"]

    def reason(self, node: str) -> str:
        """Return why."""
        return self.layers[node]["reason"]

    def casts(self) -> list[onnx.NodeProto]:
        """Return the Casts of the main graph."""
        return [node for node in self.made.graph.node if node.op_type == "Cast"]

    def held(self) -> dict[str, onnx.TensorProto]:
        """Return the initializers by name."""
        return {tensor.name: tensor for tensor in self.made.graph.initializer}


def converted(
    tmp_path: Path, source: onnx.ModelProto, samples: Sequence[dict[str, np.ndarray]], half: str = "fp16",
    **settings: object,
) -> Done:  # fmt: skip
    """Convert; the result is checked as a whole, and has the inputs and outputs of its source."""
    settings.setdefault("consumer", "tensorrt")  # which isn't here to be asked what it runs
    path = tmp_path / "source.onnx"
    path.write_bytes(source.SerializeToString())
    batches = calibration.of_list(list(samples))
    done = convert(path, batches, HALVES[half], QuantizeSettings(method=half, **settings))  # type: ignore[arg-type]
    made = ir.to_proto(done.model)
    onnx.checker.check_model(made, full_check=True)
    for before, after in ((source.graph.input, made.graph.input), (source.graph.output, made.graph.output)):
        assert [(v.name, v.type.tensor_type.elem_type) for v in before] == [
            (v.name, v.type.tensor_type.elem_type) for v in after
        ]
    no_cast_after_a_cast(made)
    return Done(made, dict(done.facts), source)


def no_cast_after_a_cast(made: onnx.ModelProto) -> None:
    """Check that no Cast reads what a Cast made, and that no tensor is cast twice to one type."""
    inner = [*made.graph.value_info, *made.graph.input, *made.graph.output]
    kinds = {value.name: value.type.tensor_type.elem_type for value in inner}
    kinds |= {tensor.name: tensor.data_type for tensor in made.graph.initializer}
    casts = {node.output[0]: node for node in made.graph.node if node.op_type == "Cast"}
    floats = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
    to = {name: onnx.helper.get_node_attr_value(node, "to") for name, node in casts.items()}
    between = {name for name, node in casts.items() if to[name] in floats and kinds.get(node.input[0]) in floats}
    assert not [name for name in between if casts[name].input[0] in between]
    pairs = [(node.input[0], to[name]) for name, node in casts.items()]
    assert len(pairs) == len(set(pairs))


def reference(made: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Run ONNX's reference evaluator, which computes in the types that are written."""
    from onnx.reference import ReferenceEvaluator

    with np.errstate(all="ignore"):
        return [np.asarray(output) for output in ReferenceEvaluator(made).run(None, feeds)]


def decibels(got: np.ndarray, want: np.ndarray) -> float:
    """Return the SQNR in dB; minus infinity for what isn't finite."""
    noise, signal = float(np.sum((got.astype(np.float64) - want) ** 2)), float(np.sum(want.astype(np.float64) ** 2))
    if not np.isfinite(noise):
        return -np.inf
    return np.inf if noise == 0 else 10 * np.log10(signal / noise)

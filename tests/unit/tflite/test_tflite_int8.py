"""Integer models: LiteRT gives ONNX Runtime's own integers, operator by operator and as whole nets."""

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from ai_edge_litert import interpreter
from onnx import TensorProto, helper, numpy_helper

from penstock import calibration
from penstock.errors import InputError
from penstock.stages.quantize import QuantizeSettings, quantize
from penstock.tflite.writing import Written, written

RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 3, 8, 8)).astype(np.float32)


def pair(name: str, made: str, scale: float, zero: int, kind: type = np.int8) -> tuple[list[onnx.NodeProto], list[Any]]:
    """Return a QuantizeLinear and a DequantizeLinear behind a value, and their constants."""
    names = [f"{made}_s", f"{made}_z"]
    nodes = [
        helper.make_node("QuantizeLinear", [name, *names], [f"{made}_q"], f"{made}_quantize"),
        helper.make_node("DequantizeLinear", [f"{made}_q", *names], [made], f"{made}_dequantize"),
    ]
    held = [numpy_helper.from_array(np.array(scale, np.float32), names[0])]
    return nodes, [*held, numpy_helper.from_array(np.array(zero, kind), names[1])]


def between_pairs(
    node: onnx.NodeProto, ins: dict[str, tuple[float, int]], out: tuple[float, int], kind: type = np.int8,
    shape: tuple[int, ...] = (4, 3, 8, 8),
) -> onnx.ModelProto:  # fmt: skip
    """Return a model of one node that reads integers and makes some."""
    nodes: list[onnx.NodeProto] = []
    held: list[Any] = []
    for name, grid in ins.items():
        some, constants = pair(f"in_{name}", name, *grid, kind)
        nodes, held = nodes + some, held + constants
    last, constants = pair(node.output[0], "out", *out, kind)
    graph = helper.make_graph(
        [*nodes, node, *last], "g",
        [helper.make_tensor_value_info(f"in_{name}", TensorProto.FLOAT, shape) for name in ins],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)], held + constants,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def in_litert(done: Written, feeds: list[np.ndarray]) -> np.ndarray:
    session = interpreter.Interpreter(model_content=done.data)
    session.allocate_tensors()
    for detail, array in zip(session.get_input_details(), feeds, strict=True):
        session.set_tensor(detail["index"], array)
    session.invoke()
    return np.asarray(session.get_tensor(session.get_output_details()[0]["index"]))


def in_onnxruntime(path: Path, feeds: list[np.ndarray]) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    given = dict(zip([one.name for one in session.get_inputs()], feeds, strict=True))
    return np.asarray(session.run(None, given)[0])


@pytest.mark.parametrize("kind", [np.int8, np.uint8])
@pytest.mark.parametrize(("op", "grids", "out", "steps"), [
    ("Add", [(0.02, 3), (0.05, -7)], (0.06, 5), 1), ("Mul", [(0.02, 3), (0.05, -7)], (0.04, 0), 1),
    ("Sub", [(0.02, 3), (0.05, -7)], (0.06, 5), 1), ("Concat", [(0.02, 3), (0.05, -7)], (0.05, -7), 1),
    ("Concat", [(0.02, 3), (0.05, -7)], (0.06, 1), 1), ("MaxPool", [(0.03, 4)], (0.03, 4), 0),
    ("AveragePool", [(0.03, 4)], (0.03, 4), 1), ("AveragePool", [(0.03, 4)], (0.02, 9), 2),
    ("AveragePool over all", [(0.03, 4)], (0.01, 2), 1),
    ("GlobalAveragePool", [(0.03, 4)], (0.01, 2), 1), ("Relu", [(0.03, 4)], (0.015, -128), 1),
    ("Sigmoid", [(0.03, 4)], (1 / 256, -128), 1), ("Sigmoid", [(0.03, 4)], (1 / 200, -128), 1),
    ("Tanh", [(0.03, 4)], (1 / 128, 0), 1), ("HardSwish", [(0.03, 4)], (0.02, -100), 1),
    ("LeakyRelu", [(0.03, 4)], (0.02, -100), 1), ("Transpose", [(0.03, 4)], (0.03, 4), 0),
    ("Flatten", [(0.03, 4)], (0.03, 4), 0), ("Softmax", [(0.03, 4)], (1 / 256, -128), 1),
], ids=lambda value: value if isinstance(value, str) else "")  # fmt: skip
def test_one_operator(
    op: str, grids: list[tuple[float, int]], out: tuple[float, int], steps: int, kind: type, tmp_path: Path
) -> None:
    """``steps`` of the result's grid are allowed where both round in their own way; nothing is left in float."""
    shift = 128 if kind is np.uint8 else 0
    ins = {name: (scale, zero + shift) for name, (scale, zero) in zip("ab", grids, strict=False)}
    over_all, op = op.endswith(" over all"), op.partition(" ")[0]
    given: dict[str, Any] = {"kernel_shape": [8, 8]} if over_all else {
        "Concat": {"axis": 1}, "MaxPool": {"kernel_shape": [2, 2]}, "AveragePool": {"kernel_shape": [2, 2]},
        "Transpose": {"perm": [0, 2, 3, 1]}, "Softmax": {"axis": -1},
    }.get(op, {})  # fmt: skip
    model = between_pairs(helper.make_node(op, [*ins], ["y"], op.lower(), **given), ins, (out[0], out[1] + shift), kind)
    onnx.save(model, tmp_path / "m.onnx")
    feeds = [RNG.normal(size=(4, 3, 8, 8)).astype(np.float32) for _ in ins]
    done = written(tmp_path / "m.onnx", batch=4)
    # with its own optimizations off ONNX Runtime computes in float between the grids: the literal meaning
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", options, providers=["CPUExecutionProvider"])
    want = np.asarray(session.run(None, dict(zip([f"in_{name}" for name in ins], feeds, strict=True)))[0])
    got = in_litert(done, feeds)
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= (steps + 1e-3) * out[0]
    assert done.facts["operators_in_float"] == 0, done.facts


def quantized(tiny: ModuleType, folder: Path, **settings: Any) -> Path:
    source = tiny.save(tiny.conv(), folder / "m.onnx")
    made = folder / "q.onnx"
    quantize(source, calibration.of_list([{"x": X}]), QuantizeSettings(**settings), made)
    return made


@pytest.mark.parametrize("consumer", ["ort-cpu", "integer-only"])
@pytest.mark.parametrize("batch", [1, 5])
def test_a_net_gives_the_integers_of_onnxruntime(consumer: str, batch: int, tiny: ModuleType, tmp_path: Path) -> None:
    path = quantized(tiny, tmp_path, consumer=consumer)
    done = written(path, batch=batch)
    want = in_onnxruntime(path, [X[:batch]])
    got = in_litert(done, [X[:batch]])
    assert np.abs(got - want).max() <= 1e-6 * np.abs(want).max(), "what it makes of integers is the same"
    counted = done.facts["operators"]
    assert isinstance(counted, dict) and counted["CONV_2D"] >= 1
    if consumer == "integer-only":
        assert done.facts["operators_in_float"] == 0
        assert _constant_types(done) == {"INT8", "INT32"}, "weights and biases are held as integers"


def _constant_types(done: Written) -> set[str]:
    """Return the types of the file's constants, by the classes that LiteRT generates from the schema."""
    from ai_edge_litert import schema_py_generated as schema

    names = {number: name for name, number in vars(schema.TensorType).items() if isinstance(number, int)}
    read = schema.ModelT.InitFromPackedBuf(bytearray(done.data), 0)
    held = [tensor for tensor in read.subgraphs[0].tensors if read.buffers[tensor.buffer].data is not None]
    return {names[tensor.type] for tensor in held}


def test_integers_may_go_in_and_come_out(tiny: ModuleType, tmp_path: Path) -> None:
    path = quantized(tiny, tmp_path, consumer="integer-only")
    floats, whole = written(path, batch=4), written(path, batch=4, ends="int8", layout="nhwc")
    session = interpreter.Interpreter(model_content=whole.data)
    session.allocate_tensors()
    (given,), (made,) = session.get_input_details(), session.get_output_details()
    assert given["dtype"] is np.int8 and made["dtype"] is np.int8 and list(given["shape"]) == [4, 8, 8, 3]
    scale, zero = given["quantization"]
    rows = np.clip(np.rint(X[:4].transpose(0, 2, 3, 1) / np.float32(scale)) + zero, -128, 127).astype(np.int8)
    session.set_tensor(given["index"], rows)
    session.invoke()
    scale, zero = made["quantization"]
    got = (session.get_tensor(made["index"]).astype(np.float32) - zero) * np.float32(scale)
    np.testing.assert_allclose(got, in_litert(floats, [X[:4]]), rtol=1e-6, atol=1e-7)
    assert "QUANTIZE" not in whole.facts["operators"] and "TRANSPOSE" not in whole.facts["operators"]  # type: ignore[operator]


def test_float_ends_can_t_be_integers(tiny: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="isn't quantized by one QuantizeLinear"):
        written(tiny.save(tiny.conv(), tmp_path / "m.onnx"), ends="int8")


@pytest.mark.parametrize("op", ["Relu", "Add", "Gather", "Pad", "Cast", "output", "MaxPool"])
def test_arithmetic_on_the_whole_numbers_themselves_is_refused(op: str, tmp_path: Path) -> None:
    """ONNX computes max(0, q) and q + q there, which is something else on a grid whose zero isn't 0."""
    nodes, held = pair("x", "y", 0.03, 4)
    quantize_node, dequantize_node = nodes
    if op == "output":
        graph_nodes, made = [quantize_node], "y_q"
    else:
        inputs = {"Add": ["y_q", "y_q"], "Gather": ["y_q", "index"], "Pad": ["y_q", "pads"]}.get(op, ["y_q"])
        given: dict[str, Any] = {"MaxPool": {"kernel_shape": [2, 2]}, "Cast": {"to": TensorProto.INT32}}.get(op, {})
        between, made = helper.make_node(op, inputs, ["z"], op.lower(), **given), "z" if op == "Cast" else "y"
        dequantize_node.input[0] = "z"
        graph_nodes = [quantize_node, between] if op == "Cast" else [quantize_node, between, dequantize_node]
    held += [
        numpy_helper.from_array(np.array([0], np.int64), "index"),
        numpy_helper.from_array(np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64), "pads"),
    ]
    kind = {"output": TensorProto.INT8, "Cast": TensorProto.INT32}.get(op, TensorProto.FLOAT)
    graph = helper.make_graph(
        graph_nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, 4, 4])],
        [helper.make_tensor_value_info(made, kind, None)], held,
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), tmp_path / "m.onnx")
    if op == "MaxPool":  # it moves them
        x = RNG.normal(size=(1, 2, 4, 4)).astype(np.float32)
        assert np.array_equal(in_litert(written(tmp_path / "m.onnx"), [x]), in_onnxruntime(tmp_path / "m.onnx", [x]))
        return
    with pytest.raises(InputError, match=r"whole numbers themselves|no DequantizeLinear reads"):
        written(tmp_path / "m.onnx")


def test_weights_in_blocks_and_operators_on_integers_are_refused_by_node(tiny: ModuleType, tmp_path: Path) -> None:
    path = quantized(tiny, tmp_path, format="qoperator")
    with pytest.raises(InputError, match="QLinearConv") as caught:
        written(path)
    assert caught.value.id == "cannot-write-tflite"

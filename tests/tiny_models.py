"""Tiny ONNX models whose answers the reference evaluator gives."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def _model(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, tuple[int, list]],
    outputs: dict[str, tuple[int, list]],
    weights: dict[str, np.ndarray],
    opset: int,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(name, *spec) for name, spec in inputs.items()],
        [helper.make_tensor_value_info(name, *spec) for name, spec in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def _floats(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.normal(0, 0.5, shape).astype(np.float32)


def conv(batch: str | int = "batch", opset: int = 17, seed: int = 0, classes: int = 5) -> onnx.ModelProto:
    """x (N, 3, 8, 8) → Conv, BatchNormalization, Relu, pooling, Gemm → y (N, classes)."""
    rng = np.random.default_rng(seed)
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c", "scale", "shift", "mean", "var"], ["n"], name="bn"),
        helper.make_node("Relu", ["n"], ["r"], name="relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "fc", "fb"], ["y"], name="gemm"),
    ]
    weights = {"w": _floats(rng, 8, 3, 3, 3), "b": _floats(rng, 8), "scale": 1 + _floats(rng, 8) / 4}
    weights |= {"shift": _floats(rng, 8), "mean": _floats(rng, 8), "var": np.full(8, 1.5, np.float32)}
    weights |= {"fc": _floats(rng, 8, classes), "fb": _floats(rng, classes)}
    io = TensorProto.FLOAT
    return _model(nodes, {"x": (io, [batch, 3, 8, 8])}, {"y": (io, [batch, classes])}, weights, opset)


def mlp(batch: str | int = "batch", opset: int = 17, seed: int = 0, classes: int = 3) -> onnx.ModelProto:
    """x (N, 6) → Gemm, Relu, Gemm → y (N, classes)."""
    rng = np.random.default_rng(seed)
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h"], name="first"),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("Gemm", ["r", "w2", "b2"], ["y"], name="second"),
    ]
    weights = {"w1": _floats(rng, 6, 16), "b1": _floats(rng, 16)}
    weights |= {"w2": _floats(rng, 16, classes), "b2": _floats(rng, classes)}
    io = TensorProto.FLOAT
    return _model(nodes, {"x": (io, [batch, 6])}, {"y": (io, [batch, classes])}, weights, opset)


def branching() -> onnx.ModelProto:
    """x (N, 3, 10, 10) → Conv, Relu, MaxPool → two Convs that read one tensor, added → pooling, Gemm → y (N, 4)."""
    rng = np.random.default_rng(1)

    def he(*shape: int) -> np.ndarray:
        return (rng.normal(size=shape) * np.sqrt(2 / np.prod(shape[1:]))).astype(np.float32)

    held = {"w1": he(6, 3, 3, 3), "w2": he(6, 6, 3, 3), "w3": he(6, 6, 3, 3), "fc": he(4, 6)}
    held |= {"b1": he(6, 1)[:, 0], "b2": he(6, 1)[:, 0], "b3": he(6, 1)[:, 0], "b4": he(4, 1)[:, 0]}
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], "first", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], "relu"),
        helper.make_node("MaxPool", ["r1"], ["p"], "maxpool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["p", "w2", "b2"], ["c2"], "left", pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["p", "w3", "b3"], ["c3"], "right", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["c2", "c3"], ["a"], "add"),
        helper.make_node("GlobalAveragePool", ["a"], ["g"], "pool"),
        helper.make_node("Flatten", ["g"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "fc", "b4"], ["y"], "gemm", transB=1),
    ]
    io = TensorProto.FLOAT
    return _model(nodes, {"x": (io, ["n", 3, 10, 10])}, {"y": (io, ["n", 4])}, held, 17)


def products(seed: int = 0) -> onnx.ModelProto:
    """x (N, 5, 16) → normalization → two MatMuls with bias, one gated, joined → MatMul, + x → MatMul → y (N, 5, 4)."""
    rng = np.random.default_rng(seed)
    nodes = [
        helper.make_node("LayerNormalization", ["x", "scale", "shift"], ["l"], "normal"),
        helper.make_node("MatMul", ["l", "w1"], ["q0"], "first"),
        helper.make_node("Add", ["q0", "b1"], ["q"], "first_bias"),
        helper.make_node("MatMul", ["l", "w2"], ["k0"], "second"),
        helper.make_node("Add", ["k0", "b2"], ["k"], "second_bias"),
        helper.make_node("Sigmoid", ["k"], ["s"], "gate"),
        helper.make_node("Mul", ["s", "k"], ["gated"], "gated"),
        helper.make_node("Concat", ["q", "gated"], ["c"], "join", axis=2),
        helper.make_node("MatMul", ["c", "w3"], ["o"], "third"),
        helper.make_node("Add", ["o", "x"], ["r"], "residual"),
        helper.make_node("MatMul", ["r", "w4"], ["y"], "last"),
    ]
    weights = {"w1": _floats(rng, 16, 16), "w2": _floats(rng, 16, 16), "w3": _floats(rng, 32, 16)}
    weights |= {"w4": _floats(rng, 16, 4), "b1": _floats(rng, 16), "b2": _floats(rng, 16), "shift": _floats(rng, 16)}
    weights |= {"scale": np.abs(_floats(rng, 16)) + np.float32(0.5)}
    io = TensorProto.FLOAT
    return _model(nodes, {"x": (io, ["n", 5, 16])}, {"y": (io, ["n", 5, 4])}, weights, 17)


def gather(batch: str | int = "batch", rows: int = 11) -> onnx.ModelProto:
    """ids (N, 4) int64 → rows of a table (rows, 6) → Gemm → y (N, 3)."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["g"], name="lookup"),
        helper.make_node("Flatten", ["g"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "w"], ["y"], name="gemm"),
    ]
    weights = {"table": _floats(rng, rows, 6), "w": _floats(rng, 24, 3)}
    return _model(nodes, {"ids": (TensorProto.INT64, [batch, 4])}, {"y": (TensorProto.FLOAT, [batch, 3])}, weights, 17)


def several(batch: str | int = "batch") -> onnx.ModelProto:
    """a, b (N, 4) → z = 2a - b, arg (N,) int64 = argmax z, all_sum () = sum of z; outputs in no alphabetical order."""
    nodes = [
        helper.make_node("Mul", ["a", "two"], ["a2"], name="double"),
        helper.make_node("Sub", ["a2", "b"], ["z"], name="minus"),
        helper.make_node("ArgMax", ["z"], ["arg"], name="argmax", axis=1, keepdims=0),
        helper.make_node("ReduceSum", ["z"], ["all_sum"], name="sum", keepdims=0),
    ]
    io = TensorProto.FLOAT
    return _model(
        nodes,
        {"a": (io, [batch, 4]), "b": (io, [batch, 4])},
        {"z": (io, [batch, 4]), "arg": (TensorProto.INT64, [batch]), "all_sum": (io, [])},
        {"two": np.array(2.0, np.float32)},
        17,
    )


def through_float32(kind: str, shape: tuple[int, ...]) -> tuple[onnx.ModelProto, np.dtype]:
    """Return x of a type ("BFLOAT16") cast to f in float32 and back to y, and the type as numpy has it."""
    number = TensorProto.DataType.Value(kind)
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["f"], ["y"], to=number),
    ]
    x, y = (helper.make_tensor_value_info(name, number, list(shape)) for name in "xy")
    f = helper.make_tensor_value_info("f", TensorProto.FLOAT, list(shape))
    opset = 25 if kind.endswith("INT2") else 21
    imports = [helper.make_opsetid("", opset)]
    model = helper.make_model(helper.make_graph(nodes, "g", [x], [f, y]), opset_imports=imports, ir_version=10)
    return model, np.dtype(helper.tensor_dtype_to_np_dtype(number))


def save(model: onnx.ModelProto, path: Path) -> Path:
    """Write a model, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString())
    return path


def with_external(model: onnx.ModelProto, path: Path, location: str = "w.data") -> Path:
    """Write a model whose weights lie in a file beside it."""
    blob = b""
    for tensor in model.graph.initializer:
        start = len(blob)
        blob += tensor.raw_data
        entries = {"location": location, "offset": str(start), "length": str(len(tensor.raw_data))}
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.extend(onnx.StringStringEntryProto(key=k, value=v) for k, v in entries.items())
    save(model, path)
    (path.parent / location).parent.mkdir(parents=True, exist_ok=True)
    (path.parent / location).write_bytes(blob)
    return path


def oracle(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Run the ONNX reference evaluator."""
    from onnx.reference import ReferenceEvaluator

    return [np.asarray(output) for output in ReferenceEvaluator(model).run(None, feeds)]

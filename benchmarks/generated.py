"""Models that are made for their size: a chain of many nodes, and weights of gigabytes beside a small file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

WIDTH = 16
BLOCK = (  # of a chain; every other one of these can be rewritten in some way
    ("Relu", {}), ("Transpose", {"perm": [1, 0]}), ("Sigmoid", {}), ("Transpose", {"perm": [1, 0]}),
    ("Mul", "scale"), ("Identity", {}), ("Add", "shift"), ("Reshape", "shape"), ("Reshape", "shape"), ("Tanh", {}),
)  # fmt: skip
CHUNK_BYTES = 64 << 20


def chain(nodes: int, path: Path) -> Path:
    """Write a chain of so many nodes, on (8, 16) numbers."""
    held = [
        numpy_helper.from_array(np.float32(1.01), "scale"),
        numpy_helper.from_array(np.full(WIDTH, 0.01, np.float32), "shift"),
        numpy_helper.from_array(np.int64([8, WIDTH]), "shape"),
    ]
    made, last = [], "x"
    for i in range(nodes):
        op, extra = BLOCK[i % len(BLOCK)]
        out = "y" if i == nodes - 1 else f"v{i}"
        inputs = [last, extra] if isinstance(extra, str) else [last]
        made.append(helper.make_node(op, inputs, [out], f"n{i}", **(extra if isinstance(extra, dict) else {})))
        last = out
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [8, WIDTH]) for name in "xy")
    graph = helper.make_graph(made, "chain", [x], [y], held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString())
    return path


def heavy(size_bytes: int, path: Path, layers: int = 24) -> Path:
    """Write a chain of MatMul, Add, Identity and Relu whose weights, in a file beside it, have this size in all."""
    width = int((size_bytes / layers / 4) ** 0.5) // 64 * 64
    path.parent.mkdir(parents=True, exist_ok=True)
    data, held, made, last, offset = path.with_name(path.name + ".data"), [], [], "x", 0
    numbers = np.random.default_rng(0).standard_normal(CHUNK_BYTES // 4, np.float32) / np.float32(width**0.5)
    with data.open("wb") as out:
        for i in range(layers):
            length = width * width * 4
            for begin in range(0, length, CHUNK_BYTES):
                out.write(memoryview(np.roll(numbers, i)).cast("B")[: min(CHUNK_BYTES, length - begin)])
            tensor = TensorProto(name=f"w{i}", data_type=TensorProto.FLOAT, dims=[width, width])
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", data.name), ("offset", str(offset)), ("length", str(length))):
                tensor.external_data.add(key=key, value=value)
            held += [tensor, numpy_helper.from_array(np.full(width, 0.1, np.float32), f"b{i}")]
            made += [
                helper.make_node("MatMul", [last, f"w{i}"], [f"m{i}"]),
                helper.make_node("Add", [f"m{i}", f"b{i}"], [f"a{i}"]),
                helper.make_node("Identity", [f"a{i}"], [f"i{i}"]),
                helper.make_node("Relu", [f"i{i}"], [f"r{i}"]),
            ]
            offset, last = offset + length, f"r{i}"
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", width]) for name in ("x", last))
    graph = helper.make_graph(made, "heavy", [x], [y], held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path

"""What a quantized file says of its layers: of ONNX Runtime's quantizer, whose result is read back."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from penstock import calibration
from penstock.quantization import written
from penstock.stages.quantize import QuantizeSettings, quantize

RNG = np.random.default_rng(0)
IMAGES = RNG.random((64, 3, 8, 8)).astype(np.float32)


def told(tiny: ModuleType, tmp_path: Path, **settings: object) -> dict[str, dict]:
    source = tiny.save(tiny.conv(), tmp_path / "m.onnx")
    samples = calibration.of_list([{"x": IMAGES[i : i + 16]} for i in range(0, 64, 16)])
    facts = quantize(source, samples, QuantizeSettings(method="ort", **settings), tmp_path / "q.onnx")
    layers = facts["layers"]
    assert isinstance(layers, list)
    return {str(layer["node"]): layer for layer in layers}


def test_layers_of_pairs(tiny: ModuleType, tmp_path: Path) -> None:
    found = told(tiny, tmp_path)
    conv = next(layer for layer in found.values() if layer["op"] == "Conv")
    assert conv["state"] == "integer" and conv["weights"] == {
        "dtype": "int8", "shape": [8, 3, 3, 3], "scales": 8, "sqnr_db": None,
    }  # fmt: skip
    (read,) = conv["reads"]
    assert read["tensor"].startswith("x") and read["dtype"] == "uint8"
    assert read["low"] == 0 and read["high"] == pytest.approx(IMAGES.max(), rel=1e-3)  # the grid is that of min-max
    gemm = next(layer for layer in found.values() if layer["op"] == "Gemm")
    assert gemm["state"] == "integer" and gemm["makes"] == []  # the output is in float


def test_what_is_left_out_is_told_with_the_tensor(tiny: ModuleType, tmp_path: Path) -> None:
    found = told(tiny, tmp_path, exclude=("gemm",))
    assert found["gemm"]["state"] == "float" and found["gemm"]["reason"] == "ort left its weights in float"
    assert "weights" not in found["gemm"]


def test_layers_of_operators_on_integers(tiny: ModuleType, tmp_path: Path) -> None:
    found = told(tiny, tmp_path, format="qoperator")
    conv = next(layer for layer in found.values() if layer["op"] == "QLinearConv")
    assert conv["state"] == "integer" and conv["weights"]["scales"] == 8
    pool = next(layer for layer in found.values() if layer["op"] == "GlobalAveragePool")
    assert pool["state"] == "float"  # the library stops at a BatchNormalization


def test_a_result_left_in_float(tmp_path: Path) -> None:
    """Q → DQ → Relu → Neg: the Relu reads integers, and what it makes is no grid's."""
    held = {"s": np.array(0.1, np.float32), "z": np.array(3, np.uint8)}
    scale = [numpy_helper.from_array(array, name) for name, array in held.items()]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="q"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], name="d"),
        helper.make_node("Relu", ["d"], ["r"], name="relu"),
        helper.make_node("Neg", ["r"], ["y"], name="neg"),
    ]
    io = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", io[:1], io[1:], scale)
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    relu, neg = written.layers(path, "somebody")
    assert isinstance(relu, dict) and isinstance(neg, dict)
    assert (relu["state"], relu["reason"]) == ("float", "somebody left its result 'r' in float")
    assert relu["reads"] == [
        {"tensor": "d", "dtype": "uint8", "scale": pytest.approx(0.1), "zero_point": 3, "low": pytest.approx(-0.3),
         "high": pytest.approx(25.2)},
    ]  # fmt: skip
    assert (neg["state"], neg["reason"]) == ("float", "somebody left its input 'r' in float")

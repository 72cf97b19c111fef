"""ONNX Runtime's FusedConv is taken apart for the quantizer: the same results, of standard operators alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from penstock import calibration, graph
from penstock.quantization.unfuse import unfuse
from penstock.stages.quantize import QuantizeSettings, quantize

RANDOM = np.random.default_rng(7)


def fused(path: Path, activation: str, params: tuple[float, ...] = (), *, added: bool = False, opset: int = 17) -> Path:
    """Save a net of two convolutions, the first of them fused with an activation and, with ``added``, a sum."""
    weights = {
        "w": RANDOM.normal(size=(8, 3, 3, 3)) * 0.4,
        "b": RANDOM.normal(size=8),
        "v": RANDOM.normal(size=(4, 8, 1, 1)),
    }
    held = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()]
    inputs = ["x", "w", "b", *(["z"] if added else [])]
    told = {"activation": activation} | ({"activation_params": list(params)} if params else {}) if activation else {}
    nodes = [
        *([helper.make_node("Conv", ["x", "w"], ["z"], pads=[1] * 4)] if added else []),
        helper.make_node("FusedConv", inputs, ["h"], domain="com.microsoft", name="first", pads=[1] * 4, **told),
        helper.make_node("Conv", ["h", "v"], ["y"], name="second"),
    ]
    given = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])]
    wanted = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size, 8, 8]) for name, size in (("h", 8), ("y", 4))
    ]
    made = helper.make_graph(nodes, "fused", given, wanted, held)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(made, opset_imports=opsets, ir_version=8), path)
    return path


def results(path: Path, x: np.ndarray) -> list[np.ndarray]:
    return onnxruntime.InferenceSession(str(path)).run(None, {"x": x})


@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize(
    ("activation", "params", "opset"),
    [
        ("Relu", (), 17), ("Tanh", (), 17), ("Sigmoid", (), 17), ("LeakyRelu", (0.3,), 17),
        ("HardSigmoid", (0.25, 0.4), 17), ("Clip", (0.0, 1.5), 17), ("Clip", (-0.5, 6.0), 9), ("", (), 17),
    ],
)  # fmt: skip
def test_it_computes_the_same(
    activation: str, params: tuple[float, ...], opset: int, added: bool, tmp_path: Path
) -> None:
    source = fused(tmp_path / "fused.onnx", activation, params, added=added, opset=opset)
    model = graph.load(source)
    assert unfuse(model) == 1
    assert {node.domain for node in model.graph} == {""}
    assert [node.name for node in model.graph if node.name == "first"] == ["first"], "the name to exclude it by stays"
    graph.save(model, tmp_path / "apart.onnx")
    onnx.checker.check_model(str(tmp_path / "apart.onnx"), full_check=True)
    x = RANDOM.normal(size=(2, 3, 8, 8)).astype(np.float32)
    for want, got in zip(results(source, x), results(tmp_path / "apart.onnx", x), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_an_activation_that_is_not_known_stays_fused(tmp_path: Path) -> None:
    model = graph.load(fused(tmp_path / "fused.onnx", "Softplus"))
    assert unfuse(model) == 0
    assert [node.op_type for node in model.graph] == ["FusedConv", "Conv"]


def test_it_is_quantized(tmp_path: Path) -> None:
    source = fused(tmp_path / "fused.onnx", "Relu")
    x = RANDOM.normal(size=(32, 3, 8, 8)).astype(np.float32)
    settings = QuantizeSettings(quantize_outputs=True)
    facts = quantize(source, calibration.of_list([{"x": x}]), settings, tmp_path / "q.onnx")
    assert {layer["state"] for layer in facts["layers"] if layer["op"] == "Conv"} == {"integer"}, facts["layers"]
    for want, got in zip(results(source, x), results(tmp_path / "q.onnx", x), strict=True):
        assert 10 * np.log10((want**2).sum() / ((want - got) ** 2).sum()) > 30

"""Weights with NaN or infinity are refused by tensor and node, whatever reads them, before anything else runs."""

from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from penstock import calibration
from penstock.errors import InputError
from penstock.quantization.prepare import prepared
from penstock.stages.quantize import QuantizeSettings, quantize

RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(32, 6)).astype(np.float32)
HEADER = '<ir_version: 8, opset_import: ["" : 17]> net'
MODELS = {
    "Gemm": "(float[N, 6] x) => (float[N, 4] y) { h = Gemm(x, w, b) r = Relu(h) y = Gemm(r, v) }",
    "a row behind a MatMul": """(float[N, 6] x) => (float[1, N, 4] y)
        { zero = Constant<value = int64[1] {0}>() u = Unsqueeze(x, zero) h = MatMul(u, w) a = Add(h, b) r = Relu(a)
          y = MatMul(r, v) }""",
    "moved first": "(float[N, 6] x) => (float[N, 4] y) { t = Transpose<perm = [1, 0]>(turned) h = MatMul(x, t) y = MatMul(h, v) }",  # noqa: E501
    "Conv": """(float[N, 6] x) => (float[N, 4] y)
        { s = Constant<value = int64[4] {0, 6, 1, 1}>() i = Reshape(x, s) h = Conv(i, k, b) f = Flatten(h)
          y = MatMul(f, v) }""",
    "BatchNormalization": """(float[N, 6] x) => (float[N, 4] y)
        { s = Constant<value = int64[4] {0, 6, 1, 1}>() i = Reshape(x, s) h = Conv(i, k)
          n = BatchNormalization(h, b, c, c, d) f = Flatten(n) y = MatMul(f, v) }""",
    "Constant": "(float[N, 6] x) => (float[N, 4] y) { h = Gemm(x, w, b) m = Identity(held) y = MatMul(h, m) }",
}
CASES = [
    ("Gemm", "w", "Gemm"), ("Gemm", "b", "Gemm"), ("Gemm", "v", "Gemm"), ("a row behind a MatMul", "b", "MatMul"),
    ("moved first", "turned", "MatMul"), ("Conv", "k", "Conv"), ("Conv", "b", "Conv"),
    ("BatchNormalization", "d", "BatchNormalization"), ("BatchNormalization", "b", "BatchNormalization"),
    ("Constant", "held", "MatMul"),
]  # fmt: skip


def floats(*shape: int) -> np.ndarray:
    return (RNG.normal(size=shape) / np.sqrt(shape[0])).astype(np.float32)


def model(kind: str, tensor: str = "", value: float = 0.0) -> onnx.ModelProto:
    made = onnx.parser.parse_model(HEADER + MODELS[kind])
    held = {
        "w": floats(6, 8), "b": floats(8), "v": floats(8, 4), "turned": floats(8, 6), "k": floats(8, 6, 1, 1),
        "c": floats(8), "d": np.abs(floats(8)) + 1, "held": floats(8, 4),
    }  # fmt: skip
    if tensor:
        held[tensor].flat[1] = value
    used = {name for node in made.graph.node for name in node.input}
    for name in sorted(used & {*held}):
        constant = numpy_helper.from_array(held[name], name)
        if name == "held":
            made.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["held"], value=constant))
        else:
            made.graph.initializer.append(constant)
    for number, node in enumerate(made.graph.node):
        node.name = f"node{number}"
    onnx.checker.check_model(made, full_check=True)
    return made


@pytest.mark.parametrize(("value", "kind"), [(np.nan, "NaN"), (np.inf, "infinity"), (-np.inf, "infinity")])
@pytest.mark.parametrize(("net", "tensor", "op"), CASES)
def test_it_is_told_where(
    net: str, tensor: str, op: str, value: float, kind: str, tiny: ModuleType, tmp_path: Path
) -> None:
    source = model(net, tensor, value)
    with pytest.raises(InputError) as caught:
        prepared(tiny.save(source, tmp_path / "m.onnx"))
    assert caught.value.id == "not-finite" and caught.value.where == str(tmp_path / "m.onnx")
    node = next(one for one in source.graph.node if one.op_type == op and (op != "Gemm" or tensor in one.input))
    if net == "Constant":
        node = source.graph.node[-1]
    assert f"{tensor!r}, which {op} {node.name!r} reads, holds {kind} (1 of " in caught.value.what


@pytest.mark.parametrize("net", MODELS)
def test_what_is_finite_is_taken(net: str, tiny: ModuleType, tmp_path: Path) -> None:
    assert prepared(tiny.save(model(net), tmp_path / "m.onnx"))


@pytest.mark.parametrize("method", ["static", "ort", "fp16", "bf16"])
def test_each_method_refuses(method: str, tiny: ModuleType, tmp_path: Path) -> None:
    path = tiny.save(model("Gemm", "w", np.nan), tmp_path / "m.onnx")
    with pytest.raises(InputError) as caught:
        quantize(path, calibration.of_list([{"x": ROWS}]), QuantizeSettings(method=method), tmp_path / "q.onnx")
    assert caught.value.id == "not-finite" and "'w', which Gemm 'node0' reads" in caught.value.what and caught.value.do


def test_a_mask_of_infinities_is_meant(tiny: ModuleType, tmp_path: Path) -> None:
    source = onnx.parser.parse_model(f"""{HEADER} (float[6, 6] x) => (float[6, 6] y)
        {{ q = MatMul(x, w) k = Transpose(q) h = MatMul(q, k) m = Add(h, mask) s = Softmax(m) y = MatMul(s, q) }}""")
    mask = np.array([0, 0, 0, 0, 0, -np.inf], np.float32)
    for name, array in (("w", floats(6, 6)), ("mask", mask)):
        source.graph.initializer.append(numpy_helper.from_array(array, name))
    assert prepared(tiny.save(source, tmp_path / "m.onnx"))


def test_weights_that_folding_makes_infinite(tiny: ModuleType, tmp_path: Path) -> None:
    source = model("Gemm", "w", 1e5)
    source.graph.node.insert(0, onnx.helper.make_node("Mul", ["w", "large"], ["scaled"], "scaling"))
    source.graph.node[1].input[1] = "scaled"
    source.graph.initializer.append(numpy_helper.from_array(np.array(1e38, np.float32), "large"))
    with pytest.raises(InputError, match="which Gemm 'node0' reads, holds infinity"):
        prepared(tiny.save(source, tmp_path / "m.onnx"))

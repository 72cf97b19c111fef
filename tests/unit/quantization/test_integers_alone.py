"""``--consumer integer-only``: what would stay in float is refused by name, and all that is left is on integers."""

from collections import Counter
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from penstock import calibration
from penstock.errors import InputError
from penstock.metrics import compare
from penstock.stages.quantize import QuantizeSettings, quantize

RNG = np.random.default_rng(0)
HEADER = '<ir_version: 8, opset_import: ["" : 17]> net'
IMAGES = {"x": RNG.normal(size=(48, 3, 8, 8)).astype(np.float32)}
ROWS = {"x": RNG.normal(size=(48, 5, 6)).astype(np.float32)}
IDS = {"x": RNG.integers(0, 20, size=(48, 5))}
HEAD = "(float[N, 3, 8, 8] x) => (float[N, 4] y) { c = Conv<pads = [1, 1, 1, 1]>(x, k) r = Relu(c)"
REFUSED = {
    "LSTM": ("(float[N, 5, 6] x) => (float[N, 5, 4] y) { l, h, c = LSTM<hidden_size = 8, layout = 1>(x, lw, lr) d = Squeeze(l, two) y = MatMul(d, v) }", {"LSTM": 1, "Squeeze": 0}),  # noqa: E501
    "LayerNormalization": ("(float[N, 5, 6] x) => (float[N, 5, 4] y) { h = MatMul(x, w) n = LayerNormalization(h, b, b) y = MatMul(n, v) }", {"LayerNormalization": 1}),  # noqa: E501
    "GELU": ("(float[N, 5, 6] x) => (float[N, 5, 4] y) { h = MatMul(x, w) d = Div(h, two_f) e = Erf(d) a = Add(e, two_f) p = Mul(h, a) s = Sqrt(p) y = MatMul(s, v) }", {"Erf": 1, "Sqrt": 1}),  # noqa: E501
    "attention": ("(float[N, 5, 6] x) => (float[N, 5, 4] y) { q = MatMul(x, w) t = Transpose<perm = [0, 2, 1]>(q) a = MatMul(q, t) s = Softmax(a) h = MatMul(s, q) y = MatMul(h, v) }", {"MatMul": 2}),  # noqa: E501
    "padded with ones": (f"{HEAD} p = Pad(r, pads, one) g = GlobalAveragePool(p) f = Flatten(g) y = MatMul(f, v) }}", {"Pad": 1}),  # noqa: E501
    "a comparison": (f"{HEAD} g = GlobalAveragePool(r) f = Flatten(g) m = Greater(f, two_f) i = Cast<to = 1>(m) y = MatMul(i, v) }}", {"Greater": 1, "Cast": 1}),  # noqa: E501
}  # fmt: skip
TAKEN = {
    "Softmax": (IMAGES, f"{HEAD} g = GlobalAveragePool(r) f = Flatten(g) l = Gemm(f, v, row) y = Softmax(l) }}"),
    "ReduceMean": (IMAGES, f"{HEAD} g = ReduceMean<axes = [2, 3], keepdims = 0>(r) y = Gemm(g, v, row) }}"),
    "shapes": (IMAGES, f"""{HEAD} g = GlobalAveragePool(r) s = Shape(g) n = Gather(s, zero)
                t = Concat<axis = 0>(n, rest) f = Reshape(g, t) y = MatMul(f, v) }}"""),
    "Pad": (IMAGES, f"{HEAD} p = Pad(r, pads) g = GlobalAveragePool(p) f = Flatten(g) y = MatMul(f, v) }}"),
    "Gather": (IDS, "(int64[N, 5] x) => (float[N, 5, 4] y) { e = Gather(table, x) y = MatMul(e, v) }"),
}  # fmt: skip


def floats(*shape: int) -> np.ndarray:
    return (RNG.normal(size=shape) / np.sqrt(max(1, np.prod(shape[1:])))).astype(np.float32)


def model(text: str) -> onnx.ModelProto:
    made = onnx.parser.parse_model(HEADER + text)
    held = {
        "k": floats(8, 3, 3, 3), "w": floats(6, 8), "v": floats(8, 4), "row": floats(4),
        "b": floats(8), "lw": floats(1, 32, 6), "lr": floats(1, 32, 8), "table": floats(20, 8), "two": np.array([2]),
        "two_f": np.array(2.0, np.float32), "one": np.array(1.0, np.float32), "zero": np.array([0]),
        "rest": np.array([8]), "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
    }  # fmt: skip
    used = {name for node in made.graph.node for name in node.input}
    made.graph.initializer.extend(numpy_helper.from_array(held[name], name) for name in held if name in used)
    for node in made.graph.node:
        node.name = f"{node.output[0]}_node"
    onnx.checker.check_model(made, full_check=True)
    return made


def made(
    source: onnx.ModelProto, feeds: dict[str, np.ndarray], tiny: ModuleType, folder: Path, **settings: object
) -> dict:
    given = QuantizeSettings(consumer="integer-only", rounding="nearest", **settings)  # type: ignore[arg-type]
    path = tiny.save(source, folder / "m.onnx")
    return dict(quantize(path, calibration.of_list([feeds]), given, folder / "q.onnx"))


@pytest.mark.parametrize("case", REFUSED)
def test_what_stays_in_float_is_refused_by_name(case: str, tiny: ModuleType, tmp_path: Path) -> None:
    text, named = REFUSED[case]
    with pytest.raises(InputError) as caught:
        made(model(text), ROWS if "5, 6" in text else IMAGES, tiny, tmp_path)
    error = caught.value
    assert error.id == "stays-in-float" and error.where == str(tmp_path / "m.onnx") and "--consumer" in error.do
    found = Counter(word for word in error.what.replace("(", " ").split() if word in named)
    assert all((found[op] > 0) == (count > 0) for op, count in named.items()), error.what
    assert "in float: " in error.what and "computes LSTM in float" not in error.what
    assert not (tmp_path / "q.onnx").exists()


def test_the_first_few_are_listed_and_all_are_counted(tiny: ModuleType, tmp_path: Path) -> None:
    steps = [f"h{i + 1} = Erf(h{i})" for i in range(5)]
    text = f"(float[N, 5, 6] x) => (float[N, 5, 4] y) {{ h0 = MatMul(x, w) {' '.join(steps)} y = MatMul(h5, v) }}"
    with pytest.raises(InputError) as caught:
        made(model(text), ROWS, tiny, tmp_path)
    assert "5 nodes would stay in float: Erf 'h1_node' (integer-only has no Erf on integers), " in caught.value.what
    assert caught.value.what.endswith(" and 2 more")


def test_a_node_that_is_excluded_is_one(tiny: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"1 node would stay in float: Conv 'c_node' \(it was excluded\)"):
        made(model(TAKEN["Softmax"][1]), IMAGES, tiny, tmp_path, exclude=("c_node",))


@pytest.mark.parametrize("case", TAKEN)
def test_the_rest_is_on_integers_alone(case: str, tiny: ModuleType, tmp_path: Path) -> None:
    feeds, text = TAKEN[case]
    source = model(text)
    facts = made(source, feeds, tiny, tmp_path)
    done = onnx.load(tmp_path / "q.onnx")
    onnx.checker.check_model(done, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(done).graph
    types = {one.name: one.type.tensor_type.elem_type for one in (*inferred.value_info, *inferred.input)}
    types |= {one.name: one.data_type for one in done.graph.initializer}
    makers = {name: node.op_type for node in done.graph.node for name in node.output}
    for node in done.graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            read = [name for name in node.input if name and types[name] == onnx.TensorProto.FLOAT]
            assert {makers.get(name) for name in read} <= {"DequantizeLinear"}, node
    assert case not in ("Pad", "Gather") or case in makers.values(), "else the case is none"
    assert makers["y"] == "DequantizeLinear" and facts["outputs_left_in_float"] == []
    session = onnxruntime.InferenceSession(tmp_path / "q.onnx", providers=["CPUExecutionProvider"])
    found = compare(session.run(None, feeds)[0], tiny.oracle(source, feeds)[0], logits=False).sqnr_db
    assert found is not None and found > 25


def test_the_greatest_is_found_in_the_integers(tiny: ModuleType, tmp_path: Path) -> None:
    text = HEAD.replace("float[N, 4] y", "int64[N, 1] y")
    source = model(f"{text} g = GlobalAveragePool(r) f = Flatten(g) l = MatMul(f, v) y = ArgMax<axis = 1>(l) }}")
    made(source, IMAGES, tiny, tmp_path)
    operators = {node.output[0]: node for node in onnx.load(tmp_path / "q.onnx").graph.node}
    assert operators[operators["y"].input[0]].op_type == "DequantizeLinear"

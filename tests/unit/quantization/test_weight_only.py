"""Weight-only quantization of whole models: what comes out is valid, and is what its weights say."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import block_oracle
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from penstock import calibration, graph, running
from penstock.backends import Loadable
from penstock.backends import onnxruntime as backend
from penstock.deployment import Deployment
from penstock.errors import InputError, UsageError
from penstock.jsonable import to_json
from penstock.metrics import compare
from penstock.quantization import block_rounding
from penstock.stages.quantize import QuantizeSettings, quantize

EXACT = {backend.ACCURACY: "1"}
OFF = {"optimization": "disabled"}


def rows(*shape: int, seed: int = 1) -> np.ndarray:
    """Inputs that a few causes make."""
    rng = np.random.default_rng(seed)
    causes = rng.normal(size=(*shape[:-1], max(2, shape[-1] // 8)))
    return (causes @ np.random.default_rng(7).normal(size=(causes.shape[-1], shape[-1]))).astype(np.float32)


def run(path: Path, feeds: Mapping[str, np.ndarray], options: Mapping[str, str] = EXACT) -> list[np.ndarray]:
    session = backend.load(Loadable(path), Deployment("m", "m", "", "int4", "onnxruntime", options=options))
    try:
        return session.run(feeds)
    finally:
        session.close()


class Made:
    """A model, its quantized form, and what the quantizer says."""

    def __init__(self, tmp: Path, tiny: ModuleType, model: onnx.ModelProto, **settings: Any) -> None:
        self.source, self.path = tiny.save(model, tmp / "in" / "m.onnx"), tmp / "out" / "q.onnx"
        self.path.parent.mkdir(exist_ok=True)
        feeds = settings.pop("feeds", None) or {"x": rows(48, 64)}
        count, size = len(next(iter(feeds.values()))), settings.pop("batch", 10)
        batches = [{name: array[i : i + size] for name, array in feeds.items()} for i in range(0, count, size)]
        chosen = {"least_weights": 0, **settings}
        self.facts: Any = quantize(self.source, batches, QuantizeSettings(method="weight-only", **chosen), self.path)
        assert json.loads(json.dumps(to_json(self.facts)))
        self.made = onnx.load(self.path)
        onnx.checker.check_model(self.made, full_check=True)
        self.before = graph.load(self.source)

    @property
    def ops(self) -> list[str]:
        return [node.op_type for node in self.made.graph.node]

    def layer(self, node: str) -> Any:
        return next(layer for layer in self.facts["layers"] if layer["node"] == node)

    def check(self, feeds: Mapping[str, np.ndarray], least_db: float, tmp: Path) -> None:
        """The runtime computes what the weights in the file say, and that is near what the float model computes."""
        got, float_model = run(self.path, feeds), block_oracle.floats(self.made)
        (tmp / "floats.onnx").write_bytes(float_model.SerializeToString())
        want = run(tmp / "floats.onnx", feeds, OFF)
        for ours, theirs, first in zip(got, want, run(self.source, feeds, OFF), strict=True):
            assert ours.shape == theirs.shape == first.shape
            scale = np.abs(theirs).max()
            np.testing.assert_allclose(ours, theirs, atol=2e-5 * scale)
            assert (compare(ours, first, logits=False).sqnr_db or 999) > least_db


BOTH = [
    (4, 32, "none"), (4, 16, "integer"), (4, 0, "none"), (4, 0, "integer"), (8, 32, "none"), (8, 64, "integer"),
    (8, 0, "none"),
]  # fmt: skip
FORMS = [(*form, layout) for form in BOTH for layout in ("standard", "matmulnbits")] + [(4, 32, "float", "matmulnbits")]


@pytest.mark.parametrize("inputs", [64, 50, 20, 7])
@pytest.mark.parametrize(("bits", "size", "zero", "layout"), FORMS)
def test_the_runtime_computes_what_the_weights_say(
    bits: int, size: int, zero: str, inputs: int, layout: str, tiny: ModuleType, tmp_path: Path
) -> None:
    """Whole blocks, a last one that is not full, fewer inputs than a block, and odd ones; in both formats."""
    model, feeds = block_oracle.product(inputs), {"x": rows(48, inputs)}
    made = Made(
        tmp_path, tiny, model, weight_bits=bits, block_size=size, zero_points=zero, weight_format=layout, feeds=feeds,
        weight_rounding="hqq",
    )  # fmt: skip
    made.check({"x": rows(9, inputs, seed=3)}, 15 if bits == 4 else 38, tmp_path)
    assert graph.precision(graph.load(made.path)) == made.facts["precision"] == f"int{bits}"
    if layout == "standard":
        assert made.ops == ["DequantizeLinear", "MatMul"]
        if made.made.opset_import[0].version < 19:
            assert (bits, size) == (8, 0), "the one form that older opsets have; the evaluator has none of theirs"
            return
        oracle = tiny.oracle(made.made, {"x": feeds["x"]})[0]
        np.testing.assert_allclose(run(made.path, feeds)[0], oracle, atol=2e-5 * np.abs(oracle).max())
    else:
        assert made.ops == ["MatMulNBits"] and made.made.opset_import[0].version == 17
    stored = made.made.graph.initializer
    kept, told = sum(len(t.raw_data) for t in stored), made.facts["weight_bytes_after"]
    assert kept >= told and made.facts["weight_bytes_before"] == inputs * 24 * 4
    if inputs == 64:
        assert kept - told <= 12, "MatMulNBits fills a column's zero points up to a byte"


def test_columns_of_one_weight_would_grow(tiny: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no smaller"):
        Made(tmp_path, tiny, block_oracle.product(1), feeds={"x": rows(48, 1)})


def test_types_and_shapes_are_those_of_the_standard(tiny: ModuleType, tmp_path: Path) -> None:
    made = Made(tmp_path, tiny, block_oracle.product(50), feeds={"x": rows(48, 50)})
    held = {t.name: t for t in made.made.graph.initializer}
    back = made.made.graph.node[0]
    whole, scale = (held[name] for name in back.input)
    assert (whole.data_type, list(whole.dims), len(whole.raw_data)) == (TensorProto.INT4, [50, 24], 600)
    assert list(scale.dims) == [2, 24]
    assert {a.name: a.i for a in back.attribute} == {"axis": 0, "block_size": 32}
    assert made.made.opset_import[0].version == 21 and made.made.ir_version >= 10
    assert made.facts["opset_raised_from"] == 17


@pytest.mark.parametrize("rounding", ["rtn", "hqq", "gptq"])
def test_what_is_told(rounding: str, tiny: ModuleType, tmp_path: Path) -> None:
    made = Made(tmp_path, tiny, block_oracle.product(), weight_rounding=rounding)
    facts = made.facts
    assert (facts["method"], facts["precision"], facts["rounding"]) == ("weight-only", "int4", rounding)
    assert facts["calibration_samples"] == (48 if rounding == "gptq" else 0)
    layer, held = made.layer("product"), made.layer("product")["weights"]
    assert (layer["state"], held["shape"], held["rounding"]) == ("weights", [64, 24], rounding)
    assert (held["name"], held["dtype"], held["scales"]) == ("w", "int4", 48)
    assert held["sqnr_db"] > 14 and (held["output_sqnr_db"] is not None) == (rounding == "gptq")


def test_gptq_is_the_best_on_what_a_layer_really_reads(tiny: ModuleType, tmp_path: Path) -> None:
    """Two layers in a row with a Relu between them, on samples that were not seen."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"], name="first"), helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "b"], ["y"], name="second"),
    ]  # fmt: skip
    weights = {"a": rng.normal(size=(64, 96)).astype(np.float32), "b": rng.normal(size=(96, 32)).astype(np.float32)}
    model, feeds = block_oracle.model(nodes, weights, {"x": ["n", 64]}), {"x": rows(100, 64, seed=9)}
    want, found = tiny.oracle(model, feeds)[0], {}
    for rounding in ("rtn", "hqq", "gptq"):
        made = Made(tmp_path, tiny, model, weight_rounding=rounding, feeds={"x": rows(400, 64)})
        found[rounding] = compare(run(made.path, feeds)[0], want, logits=False).sqnr_db or 0
    assert found["gptq"] > max(found["rtn"], found["hqq"]) + 4, found


@pytest.mark.parametrize("layout", ["standard", "matmulnbits"])
@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("bias", ["row", "matrix", "scalar", "given", ""])
def test_gemm(transposed: int, bias: str, layout: str, tiny: ModuleType, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shape = (24, 64) if transposed else (64, 24)
    weights = {"w": rng.normal(size=shape).astype(np.float32)}
    shapes = {"row": (24,), "matrix": (1, 24), "scalar": ()}
    if bias in shapes:
        weights["b"] = np.asarray(rng.normal(size=shapes[bias]) * 5, np.float32)
    inputs = {"x": ["n", 64]} | ({"b": [24]} if bias == "given" else {})
    node = helper.make_node("Gemm", ["x", "w", "b"] if bias else ["x", "w"], ["y"], name="gemm", transB=transposed)
    model = block_oracle.model([node], weights, inputs)
    extra = {"b": np.full(24, 3.0, np.float32)} if bias == "given" else {}
    made = Made(tmp_path, tiny, model, weight_format=layout, weight_rounding="rtn")
    made.check({"x": rows(9, 64, seed=3), **extra}, 15, tmp_path)
    if layout == "standard":
        assert "Gemm" in made.ops
        gemm = next(n for n in made.made.graph.node if n.op_type == "Gemm")
        assert all(a.i == 0 for a in gemm.attribute if a.name == "transB"), "the runtime fuses columns alone"
    else:
        assert made.ops == (["MatMulNBits", "Add"] if bias == "given" else ["MatMulNBits"])


def test_other_gemms_stay_standard(tiny: ModuleType, tmp_path: Path) -> None:
    """Factors and a transposed first factor remain with the Gemm; MatMulNBits has none, and says so."""
    rng = np.random.default_rng(0)
    weights = {"w": rng.normal(size=(64, 24)).astype(np.float32), "b": rng.normal(size=24).astype(np.float32)}
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="gemm", alpha=0.5, beta=2.0, transA=1)
    model, feeds = block_oracle.model([node], weights, {"x": [64, 10]}), {"x": rows(10, 64, seed=3).T.copy()}
    made = Made(tmp_path, tiny, model, feeds=feeds)
    made.check(feeds, 15, tmp_path)
    assert made.layer("gemm")["weights"]["rounding"] == "rtn" and "transposed" in made.layer("gemm")["reason"]
    with pytest.raises(InputError, match="which MatMulNBits"):
        Made(tmp_path, tiny, model, feeds=feeds, weight_format="matmulnbits")


@pytest.mark.parametrize("layout", ["standard", "matmulnbits"])
def test_shared_weights_are_stored_once(layout: str, tiny: ModuleType, tmp_path: Path) -> None:
    """Two readers in one orientation share one copy; GPTQ looks at the inputs of both."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="one"), helper.make_node("Tanh", ["h"], ["t"]),
        helper.make_node("MatMul", ["t", "w"], ["y"], name="two"),
    ]  # fmt: skip
    model = block_oracle.model(nodes, {"w": rng.normal(size=(64, 64)).astype(np.float32)}, {"x": ["n", 64]})
    made = Made(tmp_path, tiny, model, weight_format=layout)
    made.check({"x": rows(9, 64, seed=3)}, 12, tmp_path)
    assert len(made.made.graph.initializer) == 2 and made.facts["weight_bytes_before"] == 64 * 64 * 4
    assert made.layer("one")["weights"]["output_sqnr_db"] == made.layer("two")["weights"]["output_sqnr_db"]
    alone = made.layer("one")["weights"]["output_sqnr_db"]
    excluded = [node.name for node in made.made.graph.node if node.op_type == "Tanh"]
    assert excluded and alone


def test_both_orientations_of_one_matrix(tiny: ModuleType, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="there"), helper.make_node("Tanh", ["h"], ["t"]),
        helper.make_node("Gemm", ["t", "w"], ["y"], name="back", transB=1),
    ]  # fmt: skip
    model = block_oracle.model(nodes, {"w": rng.normal(size=(64, 40)).astype(np.float32)}, {"x": ["n", 64]})
    made = Made(tmp_path, tiny, model)
    made.check({"x": rows(9, 64, seed=3)}, 12, tmp_path)
    assert made.ops.count("DequantizeLinear") == 2
    assert made.facts["weight_bytes_before"] == 64 * 40 * 4 < 4 * made.facts["weight_bytes_after"]


@pytest.mark.parametrize("other", ["exclude", "operator", "output", "gather"])
def test_weights_that_somebody_reads_in_float_stay(other: str, tiny: ModuleType, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="one"), helper.make_node("Tanh", ["h"], ["t"]),
        helper.make_node("MatMul", ["t", "w"], ["y"], name="two"),
        helper.make_node("MatMul", ["y", "v"], ["last"], name="third"),
    ]  # fmt: skip
    outputs = ("last",)
    if other == "operator":
        nodes[2] = helper.make_node("Sub", ["w", "t"], ["y"], name="two")
    elif other == "gather":
        nodes[2:3] = [
            helper.make_node("Gather", ["w", "i"], ["g"], name="two"),
            helper.make_node("Add", ["g", "t"], ["y"]),
        ]
    elif other == "output":
        outputs = ("last", "w")
    weights = {name: rng.normal(size=(64, 64)).astype(np.float32) for name in "wv"} | {"i": np.arange(64)}
    model = block_oracle.model(nodes, weights, {"x": [64, 64]}, outputs)
    made = Made(
        tmp_path, tiny, model, exclude=("two",) if other == "exclude" else (), feeds={"x": rows(64, 64)}, batch=64
    )
    assert made.layer("one")["state"] == "float"
    who = {"exclude": "'two'", "operator": "Sub 'two'", "output": "the caller", "gather": "Gather 'two'"}[other]
    assert who in made.layer("one")["reason"] and made.layer("third")["state"] == "weights"
    if other == "exclude":
        assert made.layer("two")["reason"] == "it was excluded"


def test_what_stays_in_float_says_why(tiny: ModuleType, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    names = ("conv", "batched", "vector", "left", "two", "kept", "small")
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="kept"),
        helper.make_node("MatMul", ["a", "cube"], ["b"], name="batched"),
        helper.make_node("MatMul", ["square", "b"], ["c"], name="left"),
        helper.make_node("MatMul", ["c", "b"], ["d"], name="two"),
        helper.make_node("MatMul", ["d", "few"], ["e"], name="small"),
        helper.make_node("Reshape", ["e", "shape"], ["f"], name="reshape"),
        helper.make_node("Conv", ["f", "kernel"], ["y"], name="conv"),
    ]
    weights = {
        "w": rng.normal(size=(64, 48)).astype(np.float32), "cube": rng.normal(size=(3, 48, 48)).astype(np.float32),
        "square": rng.normal(size=(48, 48)).astype(np.float32), "few": rng.normal(size=(48, 2)).astype(np.float32),
        "shape": np.array([3, 1, 48, 2]), "kernel": rng.normal(size=(40, 1, 1, 1)).astype(np.float32),
    }  # fmt: skip
    model = block_oracle.model(nodes, weights, {"x": [48, 64]}, ("y:4",))
    made = Made(tmp_path, tiny, model, feeds={"x": rows(48, 64)}, least_weights=100, batch=48)
    reasons = {layer["node"]: layer["reason"] for layer in made.facts["layers"] if layer["state"] == "float"}
    assert "3 axes" in reasons["batched"] and "isn't the right one" in reasons["left"]
    assert "none of its factors is constant" in reasons["two"] and "--least-weights 96" in reasons["small"]
    assert "--method static" in reasons["conv"]
    assert {layer["node"] for layer in made.facts["layers"]} >= set(names) - {"vector"}
    made.check({"x": rows(48, 64, seed=3)}, 15, tmp_path)


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.DOUBLE])
def test_other_types_stay(kind: int, tiny: ModuleType, tmp_path: Path) -> None:
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="product")
    model = block_oracle.model([node], {"w": np.ones((64, 24), dtype)}, {"x": ["n", 64]}, kind=kind)
    with pytest.raises(InputError, match=r"its weights are (FLOAT16|DOUBLE), not FLOAT"):
        Made(tmp_path, tiny, model, feeds={"x": rows(48, 64).astype(dtype)})


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("rounding", ["rtn", "gptq"])
def test_weights_that_are_not_finite_are_named(bad: float, rounding: str, tiny: ModuleType, tmp_path: Path) -> None:
    model = block_oracle.product()
    array = numpy_helper.to_array(model.graph.initializer[0]).copy()
    array[3, 4] = bad
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(array, "w"))
    with pytest.raises(InputError) as caught:
        Made(tmp_path, tiny, model, weight_rounding=rounding)
    assert caught.value.id == "not-finite" and "'w' of MatMul 'product'" in caught.value.what


def test_samples_and_activations_that_are_not_finite(tiny: ModuleType, tmp_path: Path) -> None:
    feeds = {"x": rows(48, 64)}
    feeds["x"][13, 2] = np.nan
    with pytest.raises(InputError, match="sample 13 has NaN"):
        Made(tmp_path, tiny, block_oracle.product(), feeds=feeds)
    nodes = [
        helper.make_node("Log", ["x"], ["l"], name="log"), helper.make_node("MatMul", ["l", "w"], ["y"], name="product")
    ]  # fmt: skip
    weights = {"w": np.random.default_rng(0).normal(size=(64, 24)).astype(np.float32)}
    with pytest.raises(InputError, match="makes the tensor 'l' NaN"):
        Made(tmp_path, tiny, block_oracle.model(nodes, weights, {"x": ["n", 64]}))
    Made(tmp_path, tiny, block_oracle.model(nodes, weights, {"x": ["n", 64]}), weight_rounding="hqq")


def test_no_samples(tiny: ModuleType, tmp_path: Path) -> None:
    source = tiny.save(block_oracle.product(), tmp_path / "m.onnx")
    with pytest.raises(InputError, match="no calibration samples"):
        quantize(source, [], QuantizeSettings(method="weight-only"), tmp_path / "q.onnx")
    facts = quantize(source, [], QuantizeSettings(method="weight-only", weight_rounding="rtn"), tmp_path / "q.onnx")
    assert facts["rounding"] == "rtn"


@pytest.mark.parametrize("layout", ["standard", "matmulnbits"])
def test_bodies(layout: str, tiny: ModuleType, tmp_path: Path) -> None:
    """Weights of a body, a Constant in one, one that both branches read from outside, and one read in a body alone."""
    rng = np.random.default_rng(0)

    def matrix(name: str) -> onnx.TensorProto:
        return numpy_helper.from_array(rng.normal(size=(64, 64)).astype(np.float32), name)

    def body(name: str, nodes: list[onnx.NodeProto], *held: onnx.TensorProto) -> onnx.GraphProto:
        out = helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)
        return helper.make_graph(nodes, name, [], [out], list(held))

    then = body("then", [
        helper.make_node("MatMul", ["h", "inner"], ["t1"], name="inside"),
        helper.make_node("MatMul", ["t1", "outer"], ["t2"], name="shared_then"),
    ], matrix("inner"))  # fmt: skip
    other = body("else", [
        helper.make_node("Constant", [], ["k"], value=matrix("")),
        helper.make_node("MatMul", ["h", "k"], ["e1"], name="constant"),
        helper.make_node("MatMul", ["e1", "outer"], ["e2"], name="shared_else"),
        helper.make_node("MatMul", ["e2", "only"], ["e3"], name="outside"),
    ])  # fmt: skip
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="before"),
        helper.make_node("If", ["flag"], ["y"], then_branch=then, else_branch=other),
    ]
    weights = {name: numpy_helper.to_array(matrix(name)) for name in ("w", "outer", "only")}
    model = block_oracle.model(nodes, weights, {"x": ["n", 64]})
    model.graph.input.append(helper.make_tensor_value_info("flag", TensorProto.BOOL, []))
    source, path = tiny.save(model, tmp_path / "m.onnx"), tmp_path / "q.onnx"
    feeds = [{"x": rows(10, 64, seed=seed), "flag": np.array(seed % 2 == 0)} for seed in range(6)]
    settings = QuantizeSettings(method="weight-only", weight_format=layout)
    facts: Any = quantize(source, feeds, settings, path)
    made = onnx.load(path)
    onnx.checker.check_model(made, full_check=True)
    (tmp_path / "floats.onnx").write_bytes(block_oracle.floats(made).SerializeToString())
    for flag in (True, False):
        given = {"x": rows(5, 64, seed=20), "flag": np.array(flag)}
        got, want = run(path, given)[0], run(tmp_path / "floats.onnx", given, OFF)[0]
        np.testing.assert_allclose(got, want, atol=2e-5 * np.abs(want).max())
        assert (compare(got, run(source, given, OFF)[0], logits=False).sqnr_db or 0) > 12
    states = {layer["node"]: layer for layer in facts["layers"]}
    names = ("before", "inside", "shared_then", "constant", "shared_else", "outside")
    assert all(states[name]["state"] == "weights" for name in names)
    assert states["before"]["weights"]["rounding"] == "gptq" and states["inside"]["weights"]["rounding"] == "gptq", (
        "both read what is outside"
    )
    assert states["outside"]["weights"]["rounding"] == "rtn" and "body" in states["outside"]["reason"]
    kinds = [tensor.data_type for tensor in _tensors(made.graph)]
    assert kinds.count(TensorProto.FLOAT) == 5, "scales alone"


def _tensors(graph: onnx.GraphProto) -> list[onnx.TensorProto]:
    """List the initializers and Constants of a graph and its bodies."""
    found = list(graph.initializer)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                found += _tensors(attribute.g)
            elif attribute.type == onnx.AttributeProto.TENSOR:
                found.append(attribute.t)
    return found


@pytest.mark.parametrize("layout", ["standard", "matmulnbits"])
def test_embeddings(layout: str, tiny: ModuleType, tmp_path: Path) -> None:
    """Rows of a table as int8 with a scale each; the table that a product reads too is kept once for each."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["g"], name="lookup"),
        helper.make_node("MatMul", ["g", "w"], ["h"], name="inner"),
        helper.make_node("Flatten", ["h"], ["f"], name="flat", axis=2),
        helper.make_node("Gemm", ["f", "table"], ["y"], name="head", transB=1),
    ]
    weights = {
        "table": rng.normal(size=(100, 48)).astype(np.float32),
        "w": rng.normal(size=(48, 48)).astype(np.float32),
    }
    model = block_oracle.model(nodes, weights, {"ids": ["n", 7]}, ("y", "g:3"))
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.INT64
    feeds = {"ids": rng.integers(0, 100, (20, 7))}
    plain = Made(tmp_path, tiny, model, feeds=feeds, weight_format=layout)
    assert "--embeddings" in plain.layer("lookup")["reason"] and "Gather" in plain.layer("head")["reason"]
    made = Made(tmp_path, tiny, model, feeds=feeds, weight_format=layout, embeddings=True)
    assert {made.layer(name)["state"] for name in ("lookup", "inner", "head")} == {"weights"}
    assert (
        made.layer("lookup")["weights"]["block_size"] == 48
        and made.layer("lookup")["weights"]["bytes"] == 100 * 48 + 400
    )
    made.check(feeds, 12, tmp_path)
    rows_got = run(made.path, feeds)[1]
    assert (compare(rows_got, weights["table"][feeds["ids"]], logits=False).sqnr_db or 0) > 40
    whole = next(t for t in made.made.graph.initializer if t.data_type == TensorProto.INT8)
    assert list(whole.dims) == [100, 48]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"weight_bits": 5}, "4 or 8 bits"), ({"block_size": 24}, "16, 32, 64, 128, 256"),
        ({"zero_points": "float"}, "matmulnbits"), ({"int8_activations": True}, "a build measures both"),
        ({"zero_points": "float", "weight_format": "matmulnbits", "weight_bits": 8}, "of 4 bits"),
        ({"consumer": "integer-only"}, "--method static"),
        ({"consumer": "tensorrt", "weight_format": "matmulnbits"}, "TensorRT runs no MatMulNBits"),
        ({"consumer": "tensorrt", "zero_points": "integer"}, "TensorRT"),
    ],
)  # fmt: skip
def test_what_nothing_can_run_is_refused(settings: dict[str, Any], said: str, tiny: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=said):
        Made(tmp_path, tiny, block_oracle.product(), **settings)


def test_nothing_to_quantize(tiny: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no MatMul or Gemm") as caught:
        Made(tmp_path, tiny, tiny.several(), feeds={name: rows(48, 4) for name in "ab"})
    assert caught.value.id == "nothing-to-quantize"
    with pytest.raises(InputError, match="--least-weights 96 takes it in"):
        Made(tmp_path, tiny, tiny.mlp(), feeds={"x": rows(48, 6)}, least_weights=256)
    made = Made(tmp_path, tiny, block_oracle.product())
    with pytest.raises(InputError) as caught:
        Made(tmp_path, tiny, made.made)
    assert caught.value.id == "already-quantized"
    other = Made(tmp_path, tiny, block_oracle.product(), weight_format="matmulnbits")
    with pytest.raises(InputError) as caught:
        Made(tmp_path, tiny, other.made)
    assert caught.value.id == "already-quantized"
    with pytest.raises(UsageError, match="did you mean 'product'"):
        Made(tmp_path, tiny, block_oracle.product(), exclude=("produkt",))


@pytest.mark.parametrize(("inputs", "size"), [(96, 32), (48, 16), (50, 0)])
def test_openvino_gets_blocks_that_all_inputs_fall_into(
    inputs: int, size: int, tiny: ModuleType, tmp_path: Path
) -> None:
    openvino: Any = pytest.importorskip("penstock.backends.openvino")
    if problem := openvino.available():
        pytest.skip(f"openvino: {problem}")
    feeds = {"x": rows(48, inputs)}
    made = Made(tmp_path, tiny, block_oracle.product(inputs), feeds=feeds, consumer="openvino", weight_rounding="rtn")
    assert made.layer("product")["weights"]["block_size"] == (size or inputs)
    session = openvino.load(
        Loadable(made.path), Deployment("m", "m", "", "int4", "openvino", options={openvino.DYNAMIC: "0"})
    )
    want = tiny.oracle(made.made, feeds)[0]
    np.testing.assert_allclose(session.run(feeds)[0], want, atol=1e-4 * np.abs(want).max())


def test_the_session_option_is_recorded_where_the_runtime_would_round(tiny: ModuleType, tmp_path: Path) -> None:
    """Left to itself, ONNX Runtime makes MatMulNBits of the standard form, on int8 activations."""
    key = "session.qdq_matmulnbits_accuracy_level"
    standard = Made(tmp_path, tiny, block_oracle.product()).facts
    assert standard["session_options"] == {key: "1"} and any(key in note for note in standard["notes"])
    for other in ({"weight_format": "matmulnbits"}, {"consumer": "openvino"}):
        assert "session_options" not in Made(tmp_path, tiny, block_oracle.product(), **other).facts


def test_moments_are_taken_in_parts(tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where memory holds the moments of one layer at a time, the result is the same, in more runs."""
    rng = np.random.default_rng(0)
    nodes = [helper.make_node("MatMul", [f"h{i}", f"w{i}"], [f"h{i + 1}"], name=f"m{i}") for i in range(3)]
    weights = {f"w{i}": rng.normal(size=(64, 64)).astype(np.float32) / 8 for i in range(3)}
    model = block_oracle.model(nodes, weights, {"h0": ["n", 64]}, ("h3",))
    feeds = {"h0": rows(48, 64)}
    once = Made(tmp_path, tiny, model, feeds=feeds).path.read_bytes()
    runs = []
    observe = block_rounding.probe.observe
    monkeypatch.setattr(block_rounding, "MOMENT_BYTES", 64 * 64 * 8)
    monkeypatch.setattr(block_rounding.probe, "observe", lambda *a, **k: (runs.append(1), observe(*a, **k))[1])
    assert Made(tmp_path, tiny, model, feeds=feeds).path.read_bytes() == once and len(runs) == 3
    monkeypatch.setattr(block_rounding, "MOST_INPUTS", 63)
    assert "too many to hold" in Made(tmp_path, tiny, model, feeds=feeds).layer("m0")["reason"]


def test_the_same_again_is_the_same_file(tiny: ModuleType, tmp_path: Path) -> None:
    first = Made(tmp_path, tiny, block_oracle.product()).path.read_bytes()
    assert Made(tmp_path, tiny, block_oracle.product()).path.read_bytes() == first


def test_weights_beside_the_model_are_read_one_at_a_time(tiny: ModuleType, tmp_path: Path) -> None:
    """32 MB of weights in another file: of them no more than a few matrices are in memory at once."""
    rng = np.random.default_rng(0)
    nodes = [helper.make_node("MatMul", [f"h{i}", f"w{i}"], [f"h{i + 1}"], name=f"m{i}") for i in range(16)]
    weights = {
        f"w{i}": rng.normal(size=(1024, 512) if i % 2 == 0 else (512, 1024)).astype(np.float32) for i in range(16)
    }
    model = block_oracle.model(nodes, weights, {"h0": ["n", 1024]}, ("h16",))
    source = tiny.with_external(model, tmp_path / "in" / "m.onnx")
    settings = QuantizeSettings(method="weight-only", weight_rounding="rtn")
    quantize(source, [], settings, tmp_path / "warm.onnx")
    tracemalloc.start()
    quantize(source, [], settings, tmp_path / "q.onnx")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 24e6, f"{peak / 1e6:.1f} MB of 32"
    assert onnx.load(tmp_path / "q.onnx").ByteSize() < 6e6


def test_batches_that_go_round_again(tiny: ModuleType, tmp_path: Path) -> None:
    """The pipeline hands out samples with a count; what comes out is the same."""
    source = tiny.save(block_oracle.product(), tmp_path / "m.onnx")
    feeds = [{"x": rows(10, 64, seed=seed)} for seed in range(4)]
    settings = QuantizeSettings(method="weight-only")
    facts = [
        quantize(source, samples, settings, tmp_path / f"{number}.onnx")
        for number, samples in enumerate((feeds, calibration.of_list(feeds), iter(feeds)))
    ]
    assert facts[0] == facts[1] == facts[2] and facts[0]["calibration_samples"] == 40


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.parametrize("layout", ["standard", "matmulnbits"])
@pytest.mark.parametrize(
    "name",
    ["bert-tf-qa", "byte-bidi-lstm", "dtln-model1", "magika-v3-3", "mnist-8", "motor-fault-extdata", "neudet-v5-fp32",
     "ort-scan"],
)  # fmt: skip
def test_real_models(name: str, layout: str, shared: Path, tmp_path: Path) -> None:
    """All MatMul and Gemm of theirs, in both formats, give what their weights in the file say."""
    from penstock.data import DataSettings

    source = shared / "models" / name / "model.onnx"
    roles = running.role_feeds(source, DataSettings(), 0)
    settings = QuantizeSettings(
        method="weight-only", least_weights=0, weight_format=layout, zero_points="integer", weight_rounding="rtn"
    )
    path = tmp_path / "q.onnx"
    facts: Any = quantize(source, calibration.of_feeds(roles.calibrate, 8), settings, path)
    assert any(layer["state"] == "weights" for layer in facts["layers"])
    (tmp_path / "floats.onnx").write_bytes(block_oracle.floats(onnx.load(path)).SerializeToString())
    feeds = roles.golden.first(2)
    for got, want, plain in zip(
        run(path, feeds), run(tmp_path / "floats.onnx", feeds, OFF), run(source, feeds, OFF), strict=True
    ):
        if want.dtype.kind == "f":
            assert (compare(got, want, logits=False).sqnr_db or 999) > 80
            assert (compare(got, plain, logits=False).sqnr_db or 999) > 10


@pytest.mark.shared
@pytest.mark.parametrize("name", ["silero-vad-if", "yolox-nano", "mlp-int8-dyn", "sklearn-tree-classifier"])
def test_real_models_without_such_weights_say_so(name: str, shared: Path, tmp_path: Path) -> None:
    settings = QuantizeSettings(method="weight-only", weight_rounding="rtn")
    with pytest.raises(InputError) as caught:
        quantize(shared / "models" / name / "model.onnx", [], settings, tmp_path / "q.onnx")
    assert caught.value.id == ("already-quantized" if name == "mlp-int8-dyn" else "nothing-to-quantize")
    assert caught.value.do and "MatMul" in caught.value.what + "MatMul" * (name == "mlp-int8-dyn")


def optimized(path: Path, tmp: Path) -> list[str]:
    """Return the operators that ONNX Runtime makes of a model."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp / "optimized.onnx")
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(tmp / "optimized.onnx").graph.node]


@pytest.mark.parametrize("between", ["Relu", "Clip", "Clip above", "Add Relu", "Gemm Relu", "Gelu"])
def test_the_runtime_fuses_every_layer(between: str, tiny: ModuleType, tmp_path: Path) -> None:
    """Nothing is dequantized at run time; for another consumer the Relu stays, and the runtime's fusion fails on it."""
    rng = np.random.default_rng(0)
    weights = {f"w{i}": rng.normal(size=(64, 64)).astype(np.float32) / 8 for i in range(3)}
    weights |= {
        "b": rng.normal(size=64).astype(np.float32),
        "low": np.array(-0.5, np.float32),
        "high": np.array(1, np.float32),
    }
    nodes, last = [], "x"
    for i in range(3):
        gemm = between == "Gemm Relu"
        nodes.append(
            helper.make_node(
                "Gemm" if gemm else "MatMul", [last, f"w{i}", *(["b"] if gemm else [])], [f"h{i}"], name=f"m{i}"
            )
        )
        last = f"h{i}"
        if between == "Add Relu":
            nodes.append(helper.make_node("Add", ["b", last], [f"a{i}"]))
            last = f"a{i}"
        op = between.split()[-1] if between != "Clip above" else "Clip"
        bounds = {"Clip": ["low", "high"], "Clip above": ["", "high"]}.get(between, [])
        if i < 2:
            nodes.append(helper.make_node(op, [last, *bounds], [f"r{i}"], name=f"r{i}"))
            last = f"r{i}"
    model, feeds = block_oracle.model(nodes, weights, {"x": ["n", 64]}, (last,), opset=20), {"x": rows(48, 64)}
    made = Made(tmp_path, tiny, model, feeds=feeds)
    ops = optimized(made.path, tmp_path)
    assert ops.count("MatMulNBits") == 3 and "DequantizeLinear" not in ops
    made.check({"x": rows(9, 64, seed=3)}, 12, tmp_path)
    assert len(made.facts["clipping_said_as_max"]) == (0 if between == "Gelu" else 2)
    assert not {"Relu", "Clip"} & set(made.ops)
    other = Made(tmp_path, tiny, model, feeds=feeds, consumer="openvino")
    assert between == "Gelu" or "Max" not in other.ops
    assert between == "Gelu" or "DequantizeLinear" in optimized(other.path, tmp_path), "else this isn't needed any more"

"""Two ways to compute one model: exactly, and as a runtime would have it, with activations rounded to int8."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from penstock import api, deployment, graph, ledger, registry
from penstock.backends import Loadable, ways
from penstock.cli import run
from penstock.deployment import Deployment
from penstock.errors import InputError
from penstock.record import Record
from penstock.stages.bench import BenchSettings
from penstock.stages.place import place
from penstock.variant import Variant

RNG = np.random.default_rng(0)
WHOLE, SCALE = RNG.integers(-8, 8, (64, 24)), RNG.uniform(0.01, 0.02, (2, 24)).astype(np.float32)
REAL = WHOLE * np.repeat(SCALE, 32, axis=0).astype(float)
X = RNG.normal(size=(40, 64)).astype(np.float32)
FAST = ["--bench-seconds", "0.02", "--no-footprint", "--min-rounds", "3", "--warmup-calls", "3", "--quiet"]


def model(path: Path, *, kind: int = TensorProto.INT4, activations: bool = False, nbits: bool = False) -> Path:
    """x (n, 64) → product with weights in blocks of 32 → y (n, 24)."""
    held = [numpy_helper.from_array(SCALE, "s")]
    nodes = []
    if nbits:
        flat = (WHOLE.T + 8).astype(np.uint8).reshape(24, 2, 16, 2)
        held = [numpy_helper.from_array(np.ascontiguousarray(SCALE.T), "s")]
        held.append(numpy_helper.from_array(flat[..., 0] | (flat[..., 1] << 4), "q"))
        rule = {"K": 64, "N": 24, "bits": 4, "block_size": 32, "accuracy_level": 1}
        nodes = [helper.make_node("MatMulNBits", ["x", "q", "s"], ["y"], domain="com.microsoft", **rule)]
    else:
        held.append(helper.make_tensor("q", kind, WHOLE.shape, WHOLE.reshape(-1).tolist()))
        first = "x"
        if activations:
            held += [numpy_helper.from_array(np.float32(0.05), "xs"), numpy_helper.from_array(np.int8(0), "xz")]
            nodes = [
                helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
                helper.make_node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"]),
            ]
            first = "xd"
        nodes += [
            helper.make_node("DequantizeLinear", ["q", "s"], ["w"], axis=0, block_size=32),
            helper.make_node("MatMul", [first, "w"], ["y"], name="product"),
        ]
    made = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", 1, ["n", 64])],
        [helper.make_tensor_value_info("y", 1, ["n", 24])], held,
    )  # fmt: skip
    imports = [helper.make_opsetid("", 21), *([helper.make_opsetid("com.microsoft", 1)] if nbits else [])]
    path.write_bytes(helper.make_model(made, opset_imports=imports, ir_version=10).SerializeToString())
    return path


def sqnr(got: np.ndarray) -> float:
    want = X.astype(float) @ REAL
    return float(10 * np.log10(np.square(want).sum() / np.square(got - want).sum()))


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("kind", [TensorProto.INT4, TensorProto.INT8])
def test_what_the_ways_compute(name: str, kind: int, tmp_path: Path) -> None:
    """Against the product by hand in float64: the plain way is exact, the runtime's own rounds activations to int8."""
    backend: Any = registry.load("backends", name)
    if problem := backend.available():
        pytest.skip(f"{name}: {problem}")
    path = model(tmp_path / "m.onnx", kind=kind)
    found = ways(backend, graph.load(path))
    assert list(found) == ["", "int8-activations"]
    levels = {}
    for way, options in found.items():
        asked = Deployment("m", "m", "", "int4", name, options=options)
        session = backend.load(Loadable(path), asked)
        levels[way] = sqnr(session.run({"x": X})[0])
        (key,) = options
        assert session.actual()[key] == int(options[key]), "what ran is on record"
        session.close()
    assert levels[""] > 110 and 30 < levels["int8-activations"] < 60, levels


@pytest.mark.parametrize("level", ["0", "2", "3"])
def test_other_levels_of_accuracy_are_exact_on_a_cpu(level: str, tmp_path: Path) -> None:
    backend: Any = registry.load("backends", "onnxruntime")
    path = model(tmp_path / "m.onnx")
    session = backend.load(Loadable(path), Deployment("m", "m", "", "int4", "o", options={backend.ACCURACY: level}))
    assert sqnr(session.run({"x": X})[0]) > 110


@pytest.mark.parametrize(("name", "key"), [("onnxruntime", "ACCURACY"), ("openvino", "DYNAMIC")])
def test_an_option_that_is_none(name: str, key: str, tmp_path: Path) -> None:
    backend: Any = registry.load("backends", name)
    if problem := backend.available():
        pytest.skip(f"{name}: {problem}")
    asked = Deployment("m", "m", "", "int4", name, options={getattr(backend, key): "best"})
    with pytest.raises(InputError) as caught:
        backend.load(Loadable(model(tmp_path / "m.onnx")), asked)
    assert caught.value.id == "bad-option" and "'best'" in caught.value.what


def test_models_that_are_computed_in_one_way(tmp_path: Path, tiny: Any) -> None:
    """Float ones, those whose activations are integers anyway, and MatMulNBits in ONNX Runtime, which says how."""
    ort, ov, reference = (registry.load("backends", name) for name in ("onnxruntime", "openvino", "reference"))
    plain = graph.load(tiny.save(tiny.mlp(), tmp_path / "plain.onnx"))
    whole = graph.load(model(tmp_path / "whole.onnx", activations=True, kind=TensorProto.INT8))
    nbits = graph.load(model(tmp_path / "nbits.onnx", nbits=True))
    assert ways(ort, plain) == ways(ort, whole) == ways(ort, nbits) == ways(ov, plain) == ways(ov, whole) == {"": {}}
    assert len(ways(ov, nbits)) == 2
    assert ways(reference, graph.load(model(tmp_path / "m.onnx"))) == {"": {}}, "who offers no choice has none"


def test_precision_is_that_of_the_weights(tmp_path: Path) -> None:
    found = [
        graph.precision(graph.load(model(tmp_path / "m.onnx", **more)))  # type: ignore[arg-type]
        for more in ({}, {"kind": TensorProto.INT8}, {"nbits": True})
    ]
    assert found == ["int4", "int8", "int4"]


def test_names() -> None:
    assert deployment.named("int4", "onnxruntime") == "int4@onnxruntime"
    assert deployment.named("int4", "onnxruntime", "int8-activations") == "int4@onnxruntime+int8-activations"


def test_both_are_placed(tmp_path: Path) -> None:
    path = model(tmp_path / "m.onnx")
    loaded = graph.load(path)
    variant = Variant("int4", "d", "onnx", "int4", (), "m.onnx", graph.signature(loaded), (), "quantize", {}, {})
    found = place([(variant, Loadable(path))], ["onnxruntime", "reference"], BenchSettings(threads=2))
    assert [one.deployment.name for one in found] == ["int4@onnxruntime", "int4@onnxruntime+int8-activations"]
    assert [dict(one.deployment.options) for one in found] == [
        {"qdq_matmulnbits_accuracy_level": "1"}, {"qdq_matmulnbits_accuracy_level": "4"},
    ]  # fmt: skip
    assert {one.deployment.threads for one in found} == {2} and len({one.deployment.id for one in found}) == 2


def test_models_that_are_named_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(model(tmp_path / "small.onnx"))
    names = [one.deployment.name for one in api.runnables([path], ["onnxruntime"], BenchSettings())]
    assert names == ["small@onnxruntime", "small@onnxruntime+int8-activations"]
    assert run(["bench", path, *FAST, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)["result"]
    assert [timing["name"] for timing in shown["timings"]] == names
    found = api.verify(path, path, options={"qdq_matmulnbits_accuracy_level": "4"})
    assert found.outputs["y"].sqnr_db is not None and found.outputs["y"].sqnr_db < 60
    found = api.verify(path, path)
    assert found.outputs["y"].sqnr_db is None or found.outputs["y"].sqnr_db > 100, "exact unless asked otherwise"


def test_a_build_measures_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    weights = RNG.normal(size=(64, 24)).astype(np.float32)
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="product")
    made = helper.make_graph(
        [node], "g", [helper.make_tensor_value_info("x", 1, ["n", 64])],
        [helper.make_tensor_value_info("y", 1, ["n", 24])], [numpy_helper.from_array(weights, "w")],
    )  # fmt: skip
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), "m.onnx")
    asked = [
        "m.onnx",
        "-o",
        "out",
        "--backends",
        "onnxruntime",
        "--method",
        "weight-only",
        "--int8-sqnr-db",
        "10",
        *FAST,
    ]
    assert run(["build", *asked]) == 0
    entries = ledger.parse(Path("out/ledger.jsonl").read_text(), "ledger")
    variants = {one.name: one for one in entries if isinstance(one, Variant)}
    assert variants["int4"].precision == "int4"
    names = ["int4@onnxruntime", "int4@onnxruntime+int8-activations"]
    assert [one.name for one in entries if isinstance(one, Deployment) and one.variant == "int4"] == names
    actual: Any = {one.subject: one for one in entries if isinstance(one, Record) and one.stage == "verify"}
    levels = [actual[name].measured["actual"]["qdq_matmulnbits_accuracy_level"] for name in names]
    assert levels == [1, 4]
    assert [actual[name].facts["asked"].get("options") for name in names] == [
        {"qdq_matmulnbits_accuracy_level": "1"}, {"qdq_matmulnbits_accuracy_level": "4"},
    ]  # fmt: skip
    assert {one.subject for one in entries if isinstance(one, Record) and one.stage == "bench"} >= set(names)
    assert run(["build", *asked, "--baseline", "int4@onnxruntime+int8-activations"]) == 0

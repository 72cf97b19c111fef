"""ONNX models on onnx-ir: loading, saving, signatures, precision, tidying."""

from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from penstock import graph
from penstock.errors import InputError
from penstock.signature import Signature, TensorSpec
from penstock.stages.optimize import OptimizeSettings, optimize


def test_signature_names_dtypes_and_shapes(tiny: ModuleType, tmp_path: Path) -> None:
    got = graph.signature(graph.load(tiny.save(tiny.several(), tmp_path / "m.onnx")))
    assert got == Signature(
        (TensorSpec("a", "float32", ("batch", 4)), TensorSpec("b", "float32", ("batch", 4))),
        (
            TensorSpec("z", "float32", ("batch", 4)),
            TensorSpec("arg", "int64", ("batch",)),
            TensorSpec("all_sum", "float32", ()),
        ),
    )


def test_initializers_that_are_listed_as_inputs_are_none(tiny: ModuleType, tmp_path: Path) -> None:
    model = tiny.mlp()
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    got = graph.signature(graph.load(tiny.save(model, tmp_path / "m.onnx")))
    assert [spec.name for spec in got.inputs] == ["x"]


@pytest.mark.parametrize(
    ("kind", "name"),
    [(TensorProto.FLOAT16, "float16"), (TensorProto.BFLOAT16, "bfloat16"), (TensorProto.BOOL, "bool"),
     (TensorProto.STRING, "object"), (TensorProto.UINT8, "uint8"), (TensorProto.DOUBLE, "float64")],
)  # fmt: skip
def test_dtype_names(kind: int, name: str, tiny: ModuleType, tmp_path: Path) -> None:
    node = helper.make_node("Identity", ["x"], ["y"])
    info = [helper.make_tensor_value_info(n, kind, None) for n in "xy"]
    model = helper.make_model(helper.make_graph([node], "g", info[:1], info[1:]))
    got = graph.signature(graph.load(tiny.save(model, tmp_path / "m.onnx")))
    assert got.inputs == (TensorSpec("x", name, None),)


@pytest.mark.parametrize("external", [False, True])
def test_a_saved_model_computes_the_same_and_stands_alone(external: bool, tiny: ModuleType, tmp_path: Path) -> None:
    model = tiny.conv()
    x = np.random.default_rng(0).normal(size=(3, 3, 8, 8)).astype(np.float32)
    want = tiny.oracle(model, {"x": x})[0]
    source = tmp_path / "in" / "m.onnx"
    (tiny.with_external if external else tiny.save)(model, source)
    loaded = graph.load(source)
    (tmp_path / "out").mkdir()
    graph.save(loaded, tmp_path / "out" / "m.onnx")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["m.onnx"]
    again = onnx.load(tmp_path / "out" / "m.onnx")
    onnx.checker.check_model(again, full_check=True)
    assert np.array_equal(tiny.oracle(again, {"x": x})[0], want)


def test_weights_over_the_limit_go_beside_the_model(tiny: ModuleType, tmp_path: Path) -> None:
    model = tiny.conv()
    x = np.ones((2, 3, 8, 8), np.float32)
    want = tiny.oracle(model, {"x": x})[0]
    loaded = graph.load(tiny.save(model, tmp_path / "in" / "m.onnx"))
    (tmp_path / "out").mkdir()
    graph.save(loaded, tmp_path / "out" / "m.onnx", inline_limit_bytes=100)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["m.onnx", "m.onnx.data"]
    graph.load(tmp_path / "out" / "m.onnx")  # our own files pass our own check
    assert np.array_equal(tiny.oracle(onnx.load(tmp_path / "out" / "m.onnx"), {"x": x})[0], want)


def test_precision(tiny: ModuleType, tmp_path: Path) -> None:
    plain = tiny.mlp()
    half = tiny.mlp()
    for tensor in half.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    quantized = tiny.mlp()
    for part in ("s", "z"):
        value = np.array(0.1, np.float32) if part == "s" else np.array(0, np.uint8)
        quantized.graph.initializer.append(numpy_helper.from_array(value, part))
    quantized.graph.node.append(helper.make_node("QuantizeLinear", ["y", "s", "z"], ["q"]))
    found = [graph.precision(ir.from_proto(model)) for model in (plain, half, quantized)]
    assert found == ["fp32", "fp16", "int8"]


def test_tidy_takes_out_traces_and_unused_imports_and_changes_no_number(tiny: ModuleType) -> None:
    model = tiny.mlp()
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    helper.set_model_props(model, {"path": "/home/me/secret"})
    model.doc_string = model.graph.doc_string = "/home/me/secret"
    for node in model.graph.node:
        node.doc_string = "/home/me/secret"
        node.metadata_props.append(onnx.StringStringEntryProto(key="trace", value="/home/me/secret"))
    model.graph.input[0].doc_string = "/home/me/secret"
    loaded = ir.from_proto(model)
    graph.tidy(loaded)
    data = ir.to_proto(loaded)
    assert b"secret" not in data.SerializeToString()
    assert [item.domain for item in data.opset_import] == [""]
    x = np.ones((1, 6), np.float32)
    assert np.array_equal(tiny.oracle(data, {"x": x})[0], tiny.oracle(tiny.mlp(), {"x": x})[0])


def test_tidy_reaches_into_functions(tiny: ModuleType) -> None:
    body = helper.make_node("Relu", ["a"], ["b"], doc_string="/home/me/secret")
    function = helper.make_function("own", "F", ["a"], ["b"], [body], [helper.make_opsetid("", 17)], doc_string="/home/me/secret")  # fmt: skip  # noqa: E501
    io = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1]) for n in "xy"]
    made = helper.make_graph([helper.make_node("F", ["x"], ["y"], domain="own")], "g", io[:1], io[1:])
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    loaded = ir.from_proto(helper.make_model(made, functions=[function], opset_imports=imports))
    graph.tidy(loaded)
    data = ir.to_proto(loaded)
    assert b"secret" not in data.SerializeToString() and {i.domain for i in data.opset_import} == {"", "own"}


def test_what_the_parser_refuses_is_an_input_error(
    tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny.save(tiny.mlp(), tmp_path / "m.onnx")

    def fail(path: Path) -> None:
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr(ir, "from_proto", fail)
    with pytest.raises(InputError, match="first line") as caught:
        graph.load(path)
    assert "second" not in str(caught.value) and caught.value.where == str(path)


def test_first_line_is_short_and_never_empty() -> None:
    assert graph.first_line(ValueError("a\nb")) == "a"
    assert graph.first_line(ValueError("\n  \n")) == "ValueError"
    assert len(graph.first_line(ValueError("x" * 999))) == 300


@pytest.mark.parametrize("domain", ["", "ai.onnx"])
def test_the_standard_domain_goes_by_one_name(domain: str, tmp_path: Path) -> None:
    """The longer name of it is as good in an import and in a node; a model that has it stays one that can be loaded."""
    nodes = [helper.make_node(op, [a], [b], domain=domain) for op, a, b in (("Relu", "x", "r"), ("Identity", "r", "y"))]
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in "xy"]
    made = helper.make_graph(nodes, "g", info[:1], info[1:])
    proto = helper.make_model(made, opset_imports=[helper.make_opsetid("ai.onnx", 17)], ir_version=8)
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    assert dict(graph.load(tmp_path / "m.onnx").opset_imports) == {"": 17}
    (tmp_path / "out").mkdir()
    done = optimize(tmp_path / "m.onnx", OptimizeSettings(strict=True), tmp_path / "out", name="slim.onnx")
    assert done.proof.state == "proved"
    slim = onnx.load(tmp_path / "out" / "slim.onnx")
    assert [(one.domain, one.version) for one in slim.opset_import] == [("", 17)]
    onnxruntime.InferenceSession(slim.SerializeToString())


@pytest.mark.parametrize("where", ["none", "weight", "input", "cast", "scale"])
def test_floats_of_fewer_bits_are_seen_wherever_they_are(where: str, tmp_path: Path) -> None:
    """A runtime that says that it computes in float16 does then what the file says."""
    half, single = TensorProto.FLOAT16, TensorProto.FLOAT
    kind = half if where == "input" else single
    nodes = [helper.make_node("Cast", ["x"], ["a"], to=half if where == "cast" else single),
             helper.make_node("Cast", ["a"], ["b"], to=single), helper.make_node("Cast", ["w"], ["c"], to=single),
             helper.make_node("Add", ["b", "c"], ["d"]), helper.make_node("DequantizeLinear", ["q", "s"], ["e"]),
             helper.make_node("Cast", ["e"], ["f"], to=single), helper.make_node("Add", ["d", "f"], ["y"])]  # fmt: skip
    held = [
        numpy_helper.from_array(np.ones(3, np.float16 if where == "weight" else np.float32), "w"),
        numpy_helper.from_array(np.ones(3, np.int8), "q"),
        numpy_helper.from_array(np.float16(1) if where == "scale" else np.float32(1), "s"),
    ]
    io = [helper.make_tensor_value_info("x", kind, [3]), helper.make_tensor_value_info("y", single, [3])]
    made = helper.make_graph(nodes, "g", io[:1], io[1:], held)
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 19)], ir_version=9), path)
    assert graph.has_narrow_floats(path) == (where != "none")

"""A model in another opset: what is kept, what is refused by name, and that a wrong conversion is caught."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import penstock
from penstock import opsets
from penstock.cli import run
from penstock.errors import GateError, InputError, UsageError
from penstock.opsets.whole import NotConvertibleError
from penstock.rewriting import Rewrite
from penstock.stages.convert import Conversion, ConvertSettings, convert

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def saved(
    folder: Path, nodes: list, opset: int, shape: list, *, out: list | None = None, weights: dict | None = None,
    functions: list | None = None, other: dict | None = None, kind: int = FLOAT, ir: int = 8,
) -> Path:  # fmt: skip
    """Write a model x → y of these nodes."""
    named = [f"d{axis}" for axis in range(len(shape))] if out is None else out
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", FLOAT, shape)], [helper.make_tensor_value_info("y", kind, named)],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )  # fmt: skip
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(*item) for item in (other or {}).items())]
    model = helper.make_model(graph, opset_imports=imports, ir_version=ir, functions=functions or [])
    path = folder / "m.onnx"
    onnx.save(model, path)
    return path


def converted(path: Path, opset: int | str) -> tuple[onnx.ModelProto, Conversion]:
    into = path.parent / "into"
    into.mkdir(exist_ok=True)
    done = convert(path, opset, ConvertSettings(), into)  # type: ignore[arg-type]
    return onnx.load(into / "model.onnx"), done


def ops(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def resize(folder: Path, mode: str, scale: float, size: int = 8) -> Path:
    weights = {"s": np.array([1, 1, scale, scale], np.float32)}
    node = helper.make_node("Resize", ["x", "s"], ["y"], name="up", mode=mode)
    return saved(folder, [node], 10, [1, 2, size, size], weights=weights)


# --- the classic: Resize 10 → 11


@pytest.mark.parametrize("scale", [1.5, 2.5, 0.6])
def test_resize_10_to_11_is_refused_by_name(tmp_path: Path, scale: float) -> None:
    path = resize(tmp_path, "nearest", scale)
    with pytest.raises(NotConvertibleError, match=r"Resize 'up': which pixel is the nearest isn't fixed") as caught:
        penstock.convert(path, tmp_path / "new.onnx", 11)
    assert [(one.node, one.op, one.opset) for one in caught.value.nodes] == [("up", "Resize", 11)]
    assert caught.value.exit_code == 1 and not (tmp_path / "new.onnx").exists()


@pytest.mark.parametrize(("mode", "scale"), [("nearest", 2), ("nearest", 3), ("linear", 2.5), ("nearest", 0.5)])
def test_resize_is_converted_where_its_meaning_is_fixed(tmp_path: Path, mode: str, scale: float) -> None:
    model, done = converted(resize(tmp_path, mode, scale), 11)
    assert done.proof.state == "proved" and done.proof.worst < 1e-6
    back = tmp_path / "back.onnx"
    onnx.save(model, back)
    again, done = converted(back, 10)
    assert done.proof.state == "proved" and len(again.graph.node[0].attribute) == 1


def test_resize_with_other_coordinates_does_not_go_back(tmp_path: Path) -> None:
    node = helper.make_node("Resize", ["x", "", "s"], ["y"], mode="linear")
    path = saved(tmp_path, [node], 13, [1, 1, 4, 4], weights={"s": np.array([1, 1, 2, 2], np.float32)})
    with pytest.raises(NotConvertibleError, match="half_pixel can be said from opset 11 on only"):
        converted(path, 10)
    assert converted(path, "lowest")[1].opset_after == 11


# --- what is proved


def test_softmax_over_several_axes_is_flattened(tmp_path: Path) -> None:
    path = saved(tmp_path, [helper.make_node("Softmax", ["x"], ["y"], axis=1)], 11, ["n", 3, 4])
    model, done = converted(path, 13)
    assert ops(model) == ["Flatten", "Softmax", "Shape", "Reshape"]
    assert done.proof.state == "proved" and len(done.proof.sizes) > 1


def test_softmax_along_an_inner_axis_goes_back(tmp_path: Path) -> None:
    path = saved(tmp_path, [helper.make_node("Softmax", ["x"], ["y"], axis=1)], 13, ["n", 3, 4])
    model, done = converted(path, 11)
    assert ops(model) == ["Transpose", "Softmax", "Transpose"] and done.proof.state == "proved"


def test_a_wrong_adapter_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(node: object, place: object) -> Rewrite:
        return place.renew(node, "wrong on purpose", axis=1)

    monkeypatch.setitem(opsets.adapters(), ("down", 13, "Softmax"), wrong)
    monkeypatch.setitem(opsets.adapters(), ("up", 13, "Softmax"), wrong)
    path = saved(tmp_path, [helper.make_node("Softmax", ["x"], ["y"], axis=1)], 11, ["n", 3, 4])
    with pytest.raises(GateError, match="computes something else") as caught:
        penstock.convert(path, tmp_path / "new.onnx", 13)
    assert caught.value.id == "conversion-differs" and not (tmp_path / "new.onnx").exists()


def test_an_adapter_that_raises_refuses_its_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(node: object, place: object) -> None:
        raise ZeroDivisionError("no")

    monkeypatch.setitem(opsets.adapters(), ("up", 13, "Softmax"), broken)
    path = saved(tmp_path, [helper.make_node("Softmax", ["x"], ["y"], axis=1)], 11, [2, 3])
    with pytest.raises(NotConvertibleError, match="its conversion failed: ZeroDivisionError: no"):
        converted(path, 13)


# --- everything that a graph can hold


def test_bodies_are_converted(tmp_path: Path) -> None:
    def branch(name: str, axis: int) -> onnx.GraphProto:
        node = helper.make_node("ReduceMean", ["x"], [name], axes=[axis], keepdims=1)
        return helper.make_graph([node], name, [], [helper.make_tensor_value_info(name, FLOAT, ["a", "b"])])

    nodes = [
        helper.make_node("ReduceMax", ["x"], ["m"], keepdims=0),
        helper.make_node("Greater", ["m", "zero"], ["c"]),
        helper.make_node("If", ["c"], ["y"], then_branch=branch("a", 0), else_branch=branch("b", 1)),
    ]
    path = saved(tmp_path, nodes, 13, [3, 4], weights={"zero": np.array(0, np.float32)})
    model, done = converted(path, 18)
    inner = [attribute.g for attribute in model.graph.node[2].attribute]
    assert all(len(graph.node[0].input) == 2 for graph in inner)
    assert done.proof.state == "proved" and {one.what for one in done.changes} == {"axes became an input"}


def function(op: str, opset: int, **attributes: object) -> onnx.FunctionProto:
    node = helper.make_node(op, ["a"], ["b"], name="inner", **attributes)
    return helper.make_function("own", "F", ["a"], ["b"], [node], [helper.make_opsetid("", opset)])


def test_functions_are_converted_by_their_own_opset(tmp_path: Path) -> None:
    call = helper.make_node("F", ["x"], ["y"], domain="own")
    held = function("ReduceMean", 13, axes=[1])
    path = saved(tmp_path, [call], 13, [3, 4], functions=[held], other={"own": 1})
    model, done = converted(path, 18)
    assert [node.op_type for node in model.functions[0].node] == ["Constant", "ReduceMean"]
    assert model.functions[0].opset_import[0].version == 18 and done.proof.state == "proved" and not done.inlined


def test_a_function_that_stands_in_the_way_is_inlined(tmp_path: Path) -> None:
    """Its two callers give other ranks, so that inside of it the axis can't be counted from the front."""
    nodes = [
        helper.make_node("F", ["x"], ["flat"], domain="own"),
        helper.make_node("Unsqueeze", ["x"], ["deep"], axes=[0]),
        helper.make_node("F", ["deep"], ["more"], domain="own"),
        helper.make_node("Squeeze", ["more"], ["less"], axes=[0]),
        helper.make_node("Add", ["flat", "less"], ["y"]),
    ]
    held = function("ReduceMean", 11, axes=[-1])
    path = saved(tmp_path, nodes, 11, [3, 4], functions=[held], other={"own": 1})
    model, done = converted(path, 10)
    assert not model.functions and "the rank of 'a' isn't known" in done.inlined and done.proof.state == "proved"


def test_other_domains_pass_through(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Gelu", ["x"], ["g"], domain="com.microsoft"),
        helper.make_node("ReduceSum", ["g", "axes"], ["y"]),
    ]
    path = saved(tmp_path, nodes, 13, [3, 4], weights={"axes": np.array([1], np.int64)}, other={"com.microsoft": 1})
    model, done = converted(path, 11)
    assert model.graph.node[0].domain == "com.microsoft" and done.proof.state == "proved"
    assert {one.domain: one.version for one in model.opset_import} == {"": 11, "com.microsoft": 1}


def test_newer_operators_are_spelt_out(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("LayerNormalization", ["x", "scale", "bias"], ["n"], axis=-1),
        helper.make_node("Gelu", ["n"], ["g"], approximate="tanh"),
        helper.make_node("Mish", ["g"], ["m"]),
        helper.make_node("HardSwish", ["m"], ["y"]),
    ]
    weights = {name: np.linspace(-1, 2, 6).astype(np.float32) for name in ("scale", "bias")}
    model, done = converted(saved(tmp_path, nodes, 20, ["n", 6], weights=weights, ir=9), "lowest")
    assert done.opset_after == 7 and done.proof.state == "proved"
    assert "LayerNormalization" not in ops(model) and (model.ir_version, model.opset_import[0].version) == (4, 7)


def test_unsorted_graphs_are_sorted(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["h"], ["y"]), helper.make_node("Clip", ["x"], ["h"], max=6.0)]
    model, done = converted(saved(tmp_path, nodes, 9, [2, 3]), 12)
    assert ops(model) == ["Clip", "Relu"] and done.proof.state == "proved"


def test_weights_beside_the_model_are_kept(tmp_path: Path) -> None:
    path = saved(tmp_path, [helper.make_node("MatMul", ["x", "w"], ["y"])], 13, ["n", 64],
                 weights={"w": np.ones((64, 64), np.float32)})  # fmt: skip
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="w.bin", size_threshold=0)
    penstock.convert(path, tmp_path / "out" / "new.onnx", 17)
    assert numpy_helper.to_array(onnx.load(tmp_path / "out" / "new.onnx").graph.initializer[0]).sum() == 64 * 64


# --- opsets and IR versions


@pytest.mark.parametrize(("opset", "ir"), [(7, 4), (11, 6), (13, 7), (17, 8), (21, 10)])
def test_the_ir_version_fits(tmp_path: Path, opset: int, ir: int) -> None:
    model, _ = converted(saved(tmp_path, [helper.make_node("Relu", ["x"], ["y"])], 15, [2], ir=8), opset)
    assert model.ir_version == ir


def test_the_same_opset_changes_nothing(tmp_path: Path) -> None:
    path = saved(tmp_path, [helper.make_node("Relu", ["x"], ["y"])], 15, [2], ir=7)
    model, done = converted(path, 15)
    assert model.ir_version == 7 and not done.changes and done.proof.state == "proved"


@pytest.mark.parametrize("opset", [6, 0, 999])
def test_there_are_opsets_that_are_none(tmp_path: Path, opset: int) -> None:
    path = saved(tmp_path, [helper.make_node("Relu", ["x"], ["y"])], 15, [2])
    with pytest.raises(UsageError, match="nothing is converted to opset"):
        converted(path, opset)


def test_a_model_of_the_future_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, [helper.make_node("Relu", ["x"], ["y"])], onnx.defs.onnx_opset_version() + 1, [2])
    with pytest.raises(InputError, match="the newest that is known here"):
        converted(path, 13)


def test_nodes_that_are_not_of_their_opset_are_named(tmp_path: Path) -> None:
    path = saved(tmp_path, [helper.make_node("Gelu", ["x"], ["y"], name="early")], 13, [2])
    with pytest.raises(NotConvertibleError, match="Gelu 'early': opset 19 has no Gelu"):
        converted(path, 20)


def test_all_refused_nodes_are_listed(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("BitwiseNot", ["i"], ["j"], name="one"),
        helper.make_node("Cast", ["x"], ["i"], to=TensorProto.INT32),
        helper.make_node("Cast", ["j"], ["k"], to=FLOAT),
        helper.make_node("Erf", ["k"], ["y"], name="two"),
    ]
    path = saved(tmp_path, nodes, 18, [2])
    with pytest.raises(NotConvertibleError) as caught:
        converted(path, 8)
    assert [(one.node, one.opset) for one in caught.value.nodes] == [("one", 18), ("two", 9)]
    _, done = converted(path, "lowest")
    assert (done.opset_after, [one.node for one in done.limits]) == (18, ["one"])


# --- the command


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(tmp_path, [helper.make_node("ReduceSum", ["x", "a"], ["y"], name="sum")], 13, [2, 3],
                 weights={"a": np.array([1], np.int64)})  # fmt: skip
    target = tmp_path / "old.onnx"
    assert run(["convert", str(path), "-o", str(target), "--opset", "11", "-q"]) == 0
    out = capsys.readouterr().out
    assert "ReduceSum: axes became an attribute (sum)" in out and "opset     13 → 11, IR version 8 → 6" in out
    assert onnx.load(target).opset_import[0].version == 11
    assert run(["convert", str(path), "-o", str(target), "--opset", "11", "-q", "--json", "--no-proof"]) == 0
    result = json.loads(capsys.readouterr().out)["result"]
    assert result["changes"] == [{"node": "sum", "op": "ReduceSum", "opset": 13, "what": "axes became an attribute"}]
    assert result["proof"]["state"] == "skipped" and result["refused"] == []
    assert run(["convert", str(path), "-o", str(target), "--opset", "old", "-q"]) == 2


def test_the_command_says_no(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, target = resize(tmp_path, "nearest", 1.5), tmp_path / "new.onnx"
    assert run(["convert", str(path), "-o", str(target), "--opset", "13", "-q"]) == 1
    out = capsys.readouterr().out
    assert "refused   Resize 'up': which pixel is the nearest" in out and "nothing was written" in out
    assert run(["convert", str(path), "-o", str(target), "--opset", "13", "-q", "--json"]) == 1
    result = json.loads(capsys.readouterr().out)["result"]
    assert result["output"] is None and result["refused"][0]["node"] == "up" and not target.exists()


@pytest.mark.parametrize("opset", [15, "lowest"])
def test_a_function_of_an_opset_with_another_meaning_is_named(tmp_path: Path, opset: int | str) -> None:
    """Softmax of opset 11 flattens; runtimes take a function's operators in its own opset or in the model's."""
    body = helper.make_function(
        "own", "F", ["a"], ["b"], [helper.make_node("Softmax", ["a"], ["b"])], [helper.make_opsetid("", 11)]
    )
    node = helper.make_node("F", ["x"], ["y"], name="call", domain="own")
    path = saved(tmp_path, [node], 17, [2, 3, 4], functions=[body], other={"own": 1})
    with pytest.raises(GateError) as caught:
        converted(path, opset)
    assert caught.value.id == "conversion-differs" and "in one opset" in caught.value.do
    assert "the function 'F' (called by call) is of opset 11, the model of 17" in caught.value.what

"""Two models held against each other: nodes, attributes, shapes, weights and what they compute."""

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from penstock.cli import run
from penstock.model_difference import compare


@pytest.fixture
def pair(tmp_path: Path, tiny: ModuleType, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, onnx.ModelProto]:
    monkeypatch.chdir(tmp_path)
    return tiny.save(tiny.conv(), tmp_path / "a.onnx"), tiny.conv()


def save(model: onnx.ModelProto) -> Path:
    Path("b.onnx").write_bytes(model.SerializeToString())
    return Path("b.onnx")


def diff(capsys: pytest.CaptureFixture[str], *more: str) -> tuple[int, dict]:
    capsys.readouterr()
    code = run(["diff", "a.onnx", "b.onnx", "--json", "-q", *more])
    return code, json.loads(capsys.readouterr().out)["result"]


def test_a_model_is_itself(pair: tuple[Path, onnx.ModelProto], capsys: pytest.CaptureFixture[str]) -> None:
    save(pair[1])
    code, found = diff(capsys)
    assert code == 0 and found["same_weights"] > 0 and found["samples"] > 0
    assert not any(found[key] for key in ("interface", "opsets", "operators", "only_a", "only_b", "changed", "weights"))
    assert all(gap["mismatches"] == 0 for gap in found["outputs"].values())
    assert run(["diff", "a.onnx", "b.onnx", "-q", "--no-run"]) == 0


def test_a_weight_that_moved_is_told_with_how_far(
    pair: tuple[Path, onnx.ModelProto], capsys: pytest.CaptureFixture[str]
) -> None:
    model = pair[1]
    held = model.graph.initializer[0]
    array = numpy_helper.to_array(held).copy()
    array.reshape(-1)[3] += 0.5
    held.CopyFrom(numpy_helper.from_array(array, held.name))
    path = save(model)
    (weight,) = compare(pair[0], path).weights
    assert weight.name == held.name and weight.share == pytest.approx(1 / array.size)
    assert weight.max_abs == pytest.approx(0.5, rel=1e-5)
    before = np.abs(numpy_helper.to_array(onnx.load(pair[0]).graph.initializer[0])).max()
    assert weight.relative == pytest.approx(0.5 / before, rel=1e-5)
    code, found = diff(capsys)
    assert code == 1 and found["outputs"]["y"]["relative"] > 0, "and it computes something else"


def test_attributes_inputs_shapes_and_operators(pair: tuple[Path, onnx.ModelProto]) -> None:
    model = pair[1]
    conv = next(node for node in model.graph.node if node.op_type == "Conv")
    pads = next(a for a in conv.attribute if a.name == "pads")
    pads.ints[:] = [0, 0, 0, 0]
    relu = next(node for node in model.graph.node if node.op_type == "Relu")
    relu.op_type = "Sigmoid"
    found = compare(pair[0], save(model))
    assert found.operators == {"Relu": (1, 0), "Sigmoid": (0, 1)}
    assert [place.op for place in found.only_a] == ["Relu"] and [place.op for place in found.only_b] == ["Sigmoid"]
    told = {(change.node.op, change.what): (change.a, change.b) for change in found.changed}
    assert told["Conv", "attribute pads"] == ("[1, 1, 1, 1] (4)", "[0, 0, 0, 0] (4)")
    assert ("Conv", "shape") in told and told["Conv", "shape"][0] != told["Conv", "shape"][1]


def test_a_weight_under_another_name_is_found_by_its_numbers(pair: tuple[Path, onnx.ModelProto]) -> None:
    model = pair[1]
    held = model.graph.initializer[0]
    old, held.name = held.name, "renamed"
    for node in model.graph.node:
        node.input[:] = ["renamed" if name == old else name for name in node.input]
    found = compare(pair[0], save(model))
    assert [(w.name, w.what) for w in found.weights] == [("renamed", f"was called {old}")]
    assert [change.what for change in found.changed] == ["inputs"]


def test_interface_and_opset(pair: tuple[Path, onnx.ModelProto], capsys: pytest.CaptureFixture[str]) -> None:
    model = pair[1]
    model.graph.output[0].name = "z"
    for node in model.graph.node:
        node.output[:] = ["z" if name == "y" else name for name in node.output]
    model.opset_import[0].CopyFrom(helper.make_opsetid("", 18))
    save(model)
    code, found = diff(capsys)
    assert code == 1
    assert any(line.startswith("output y:") and line.endswith("absent") for line in found["interface"])
    assert found["opsets"] == ["ai.onnx: 17 → 18"]


def test_what_cannot_run_is_told(pair: tuple[Path, onnx.ModelProto], capsys: pytest.CaptureFixture[str]) -> None:
    model = pair[1]
    model.graph.input[0].name = "other"
    model.graph.node[0].input[0] = "other"
    save(model)
    code, found = diff(capsys)
    assert code == 1 and "other" in found["not_run"] and found["outputs"] == {}


def test_bad_input(pair: tuple[Path, onnx.ModelProto], capsys: pytest.CaptureFixture[str]) -> None:
    Path("b.onnx").write_bytes(b"nonsense")
    assert run(["diff", "a.onnx", "b.onnx", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["id"] == "not-onnx"
    assert run(["diff", "a.onnx", "absent", "--json"]) == 2

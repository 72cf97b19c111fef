"""A model for one runtime: its own optimizer to its fixpoint, marked, proved, and refused where it isn't right."""

from pathlib import Path
from types import ModuleType

import onnx
import pytest

from penstock import specialise
from penstock.backends import onnxruntime as backend
from penstock.errors import InputError
from penstock.stages.optimize import MAIN, OptimizeSettings, optimize


def test_fusions_of_one_runtime_are_marked(tiny: ModuleType, tmp_path: Path) -> None:
    source = tiny.save(tiny.conv(), tmp_path / "m.onnx")
    plain, ours = tmp_path / "plain", tmp_path / "ort"
    for folder in (plain, ours):
        folder.mkdir()
    standard = optimize(source, OptimizeSettings(), plain)
    done = optimize(source, OptimizeSettings(runtime="ort"), ours)
    assert standard.specialised is None and done.specialised is not None and not done.specialised.refused
    assert done.specialised.nodes[-1] == done.specialised.nodes[-2] < standard.nodes_after, "run to its fixpoint"
    made = onnx.load(ours / MAIN)
    assert any(node.domain == "com.microsoft" for node in made.graph.node)
    assert {entry.key: entry.value for entry in made.metadata_props} == {specialise.KEY: "onnxruntime"}
    assert not any(node.domain for node in onnx.load(plain / MAIN).graph.node)
    assert done.proof.state == "proved" and done.proof.runs > 0
    assert {entry.domain for entry in made.opset_import} == {"", "com.microsoft"}, "no needless imports"


def test_another_interface_is_refused(tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a runtime saves may want a new input: then the standard model stays."""
    source = tiny.save(tiny.conv(), tmp_path / "m.onnx")
    before = source.read_bytes()

    def answer(target: str, argument: dict, **limits: float) -> dict:
        model = onnx.load(source)
        model.graph.input.append(onnx.helper.make_tensor_value_info("new", onnx.TensorProto.FLOAT, [1]))
        (Path(argument["work"]) / "final.onnx").write_bytes(model.SerializeToString())
        return {"runtime": "onnxruntime", "nodes": [4, 4], "refused": ""}

    monkeypatch.setattr(specialise.worker, "call", answer)
    assert specialise.specialise(source, "onnxruntime").refused == "it has other inputs or outputs afterwards"
    assert source.read_bytes() == before


def test_a_model_that_the_runtime_refuses(tmp_path: Path) -> None:
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    info = onnx.helper.make_tensor_value_info
    made = onnx.helper.make_graph([node], "g", [info("x", 1, [2])], [info("y", 1, [2])])
    model = onnx.helper.make_model(made, opset_imports=[onnx.helper.make_opsetid("", 900)], ir_version=8)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match="ONNX Runtime can't rewrite the model"):
        backend.fuse_offline(tmp_path / "m.onnx", tmp_path / "out.onnx")
    assert "can't rewrite" in specialise.specialise(tmp_path / "m.onnx", "onnxruntime").refused

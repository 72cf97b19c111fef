"""Weights in a file beside the model: what isn't touched isn't read, and in the same folder it isn't copied."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from penstock import api, graph
from penstock.stages.optimize import OptimizeSettings

PLAIN = OptimizeSettings(proof=False, strict=True)


def layered(folder: Path, layers: int = 3, width: int = 64) -> Path:
    """Write MatMul layers with a batch normalization after the last, all weights in the file ``w.bin``."""
    rng = np.random.default_rng(0)
    held = {f"w{i}": rng.normal(0, 0.1, (width, width)).astype(np.float32) for i in range(layers)}
    held |= {name: rng.uniform(0.5, 1.5, width).astype(np.float32) for name in ("scale", "bias", "mean", "var")}
    nodes, last = [], "x"
    for i in range(layers):
        nodes += [
            helper.make_node("MatMul", [last, f"w{i}"], [f"m{i}"]),
            helper.make_node("Relu", [f"m{i}"], [f"r{i}"]),
        ]
        last = f"r{i}"
    nodes[-1] = helper.make_node("BatchNormalization", [f"m{layers - 1}", "scale", "bias", "mean", "var"], ["y"])
    tensors, data = [], b""
    for name, array in held.items():
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=array.shape, data_location=1)
        for key, value in (("location", "w.bin"), ("offset", len(data)), ("length", array.nbytes)):
            tensor.external_data.add(key=key, value=str(value))
        tensors.append(tensor)
        data += array.tobytes()
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", width]) for name in "xy")
    model = helper.make_model(helper.make_graph(nodes, "g", [x], [y], tensors),
                              opset_imports=[helper.make_opsetid("", 17)], ir_version=8)  # fmt: skip
    (folder / "w.bin").write_bytes(data)
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    return folder / "m.onnx"


def places(path: Path) -> dict[str, str]:
    """Map initializers to the file that holds them, "" for the model's own."""
    found = {}
    for tensor in onnx.load(path, load_external_data=False).graph.initializer:
        found[tensor.name] = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
    return found


def run(path: Path) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    result: np.ndarray = session.run(None, {"x": np.random.default_rng(1).normal(0, 1, (5, 64)).astype(np.float32)})[0]
    return result


def test_in_the_same_folder_untouched_weights_are_shared(tmp_path: Path) -> None:
    model = layered(tmp_path)
    before = (tmp_path / "w.bin").read_bytes()
    api.optimize(model, tmp_path / "slim.onnx", PLAIN)
    found = places(tmp_path / "slim.onnx")
    assert found["w0"] == found["w1"] == "w.bin"
    assert "w2" not in found and "" in found.values()  # the batch normalization went into a new weight
    assert sorted(file.name for file in tmp_path.iterdir()) == ["m.onnx", "slim.onnx", "w.bin"]
    assert (tmp_path / "w.bin").read_bytes() == before
    np.testing.assert_allclose(run(tmp_path / "slim.onnx"), run(model), rtol=1e-4, atol=1e-5)


def test_over_the_model_itself(tmp_path: Path) -> None:
    model = layered(tmp_path)
    before = run(model)
    api.optimize(model, model, PLAIN)
    assert set(places(model).values()) == {"", "w.bin"}
    np.testing.assert_allclose(run(model), before, rtol=1e-4, atol=1e-5)


def test_elsewhere_the_result_has_its_own_weights(tmp_path: Path) -> None:
    (tmp_path / "from").mkdir()
    model = layered(tmp_path / "from")
    before = run(model)
    api.optimize(model, tmp_path / "to" / "slim.onnx", PLAIN)
    (tmp_path / "from" / "w.bin").unlink()
    np.testing.assert_allclose(run(tmp_path / "to" / "slim.onnx"), before, rtol=1e-4, atol=1e-5)


def test_large_changed_weights_go_into_a_file_of_their_own(tmp_path: Path) -> None:
    model = graph.load(layered(tmp_path))
    model.graph.initializers["w2"].const_value = ir.tensor(np.zeros((64, 64), np.float32))
    graph.save(model, tmp_path / "new.onnx", inline_limit_bytes=1000, data="new.data", beside=True)
    assert places(tmp_path / "new.onnx") | {"w2": ""} == dict.fromkeys(places(tmp_path / "m.onnx"), "w.bin") | {
        "w2": ""
    }
    assert places(tmp_path / "new.onnx")["w2"] == "new.data"
    assert (tmp_path / "new.data").stat().st_size == 64 * 64 * 4


def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = layered(tmp_path)

    def fail(*_: object, **__: object) -> None:
        raise ValueError("no room")

    monkeypatch.setattr(graph, "save", fail)
    with pytest.raises(Exception, match="no room"):
        api.optimize(model, tmp_path / "slim.onnx", PLAIN)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["m.onnx", "w.bin"]


def test_equal_weights_in_files_are_found_without_mapping_them(tmp_path: Path) -> None:
    """Only a beginning that is equal makes a weight be read to its end."""
    width = 64
    rng = np.random.default_rng(0)
    same = rng.normal(0, 1, (width, width)).astype(np.float32)
    late = same.copy()
    late[-1, -1] += 1
    arrays = {"a": same, "b": same, "late": late, "other": rng.normal(0, 1, (width, width)).astype(np.float32)}
    nodes, last = [], "x"
    for name in arrays:
        nodes.append(helper.make_node("MatMul", [last, name], [f"m_{name}"]))
        last = f"m_{name}"
    tensors = []
    for i, (name, _) in enumerate(arrays.items()):
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[width, width], data_location=1)
        for key, value in (("location", "w.bin"), ("offset", i * same.nbytes), ("length", same.nbytes)):
            tensor.external_data.add(key=key, value=str(value))
        tensors.append(tensor)
    (tmp_path / "w.bin").write_bytes(b"".join(array.tobytes() for array in arrays.values()))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", width])
    y = helper.make_tensor_value_info(last, TensorProto.FLOAT, ["batch", width])
    made = helper.make_model(helper.make_graph(nodes, "g", [x], [y], tensors),
                             opset_imports=[helper.make_opsetid("", 17)], ir_version=8)  # fmt: skip
    (tmp_path / "m.onnx").write_bytes(made.SerializeToString())
    api.optimize(tmp_path / "m.onnx", tmp_path / "slim.onnx", PLAIN)
    assert sorted(places(tmp_path / "slim.onnx")) == ["a", "late", "other"]
    np.testing.assert_allclose(run(tmp_path / "slim.onnx"), run(tmp_path / "m.onnx"), rtol=1e-4)


def test_knowledge_reads_its_own_part_of_a_file(tmp_path: Path) -> None:
    from penstock.rewriting.knowledge import constant

    model = graph.load(layered(tmp_path))
    value = model.graph.initializers["w1"]
    tensor = constant(value)
    assert tensor is not None and not isinstance(tensor, ir.ExternalTensor)
    raw = np.frombuffer((tmp_path / "w.bin").read_bytes(), np.float32, 64 * 64, 64 * 64 * 4)
    np.testing.assert_array_equal(tensor.numpy().reshape(-1), raw)
    assert value.const_value is not None and value.const_value.raw is None  # type: ignore[union-attr]  # not mapped
    np.testing.assert_array_equal(numpy_helper.to_array(ir.serde.serialize_tensor(tensor)).reshape(-1), raw)

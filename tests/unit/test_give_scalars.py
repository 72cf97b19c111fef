"""Constants keep their rank, and Range gets scalars; files before IR version 4 may hold what passes compute."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from penstock.rewriting.knowledge import Knowledge
from penstock.rewriting.site import Site
from penstock.stages.optimize import MAIN, OptimizeSettings, optimize


def optimized(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    (folder / "in.onnx").write_bytes(model.SerializeToString())
    optimize(folder / "in.onnx", OptimizeSettings(proof=False, strict=True), folder)
    return onnx.load(folder / MAIN)


def test_a_scalar_stays_a_scalar() -> None:
    site = Site(Knowledge(ir.Model(ir.Graph([], [], nodes=[], opset_imports={"": 18}), ir_version=10)))
    for shape in ((), (1,), (2, 3)):
        value = site.constant(np.ones(shape, np.float32).T)
        assert value.const_value is not None
        assert tuple(value.const_value.shape) == shape[::-1] == value.const_value.numpy().shape


def test_range_gets_scalars(tmp_path: Path) -> None:
    """The runtime lets the axis pass while it doesn't know the value."""
    nodes = [
        helper.make_node("Shape", ["x"], ["size"]),  # one element, with an axis
        helper.make_node("Range", ["zero", "size", "one"], ["steps"]),
        helper.make_node("Cast", ["steps"], ["cast"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["cast", "x"], ["y"]),
    ]
    held = [numpy_helper.from_array(np.int64(n), name) for name, n in (("zero", 0), ("one", 1))]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [5]) for name in "xy")
    graph = helper.make_graph(nodes, "g", [x], [y], held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    result = optimized(model, tmp_path)
    session = onnxruntime.InferenceSession(result.SerializeToString(), providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {"x": np.ones(5, np.float32)})
    np.testing.assert_array_equal(got, np.arange(5, dtype=np.float32) + 1)


def test_an_old_file_may_hold_what_passes_compute(tmp_path: Path) -> None:
    """Before IR version 4 an initializer had to be an input; it becomes 4 only where one isn't."""
    nodes = [
        helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.float32([2.0]))),
        helper.make_node("Mul", ["x", "c"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [3]) for name in "xy")
    for kept, version in ((nodes, 4), ([helper.make_node("Relu", ["x"], ["y"])], 3)):
        graph = helper.make_graph(kept, "g", [x], [y])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 9)], ir_version=3)
        result = optimized(model, tmp_path)
        onnx.checker.check_model(result)
        assert result.ir_version == version

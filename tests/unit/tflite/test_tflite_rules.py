"""Each operator as TFLite has it: run in LiteRT beside the reference evaluator, in the order of axes of ONNX."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from ai_edge_litert import interpreter
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from penstock.errors import InputError
from penstock.tflite.writing import written

RNG = np.random.default_rng(0)


def f(*shape: int) -> np.ndarray:
    """Return normal floats."""
    return RNG.normal(size=shape).astype(np.float32)


def model_of(
    nodes: Sequence[onnx.NodeProto], inputs: Mapping[str, Sequence[int]], outputs: Sequence[str],
    constants: Mapping[str, np.ndarray], opset: int = 17,
) -> onnx.ModelProto:  # fmt: skip
    graph = helper.make_graph(
        list(nodes), "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    return onnx.shape_inference.infer_shapes(made)


def in_litert(data: bytes, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    session = interpreter.Interpreter(model_content=data)
    session.allocate_tensors()
    for detail, array in zip(session.get_input_details(), feeds.values(), strict=True):
        session.set_tensor(detail["index"], array)
    session.invoke()
    return [np.asarray(session.get_tensor(detail["index"])) for detail in session.get_output_details()]


def same(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray], folder: Path, bound: float = 2e-6) -> dict[str, Any]:
    """Hold LiteRT's results against the reference evaluator's; return what was written."""
    path = folder / "m.onnx"
    onnx.save(model, path)
    done = written(path)
    want = ReferenceEvaluator(model).run(None, dict(feeds))
    got = in_litert(done.data, feeds)
    for a, b in zip(got, want, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        assert np.abs(a - b).max(initial=0) <= bound * max(1.0, float(np.abs(b).max(initial=0)))
    return dict(done.facts["operators"])  # type: ignore[arg-type]


def one(
    op: str, shape: Sequence[int], folder: Path, *constants: np.ndarray | None, opset: int = 17, x: Any = None,
    outputs: int = 1, **attributes: Any,
) -> dict[str, Any]:  # fmt: skip
    """Check a node of one input between two Convs, so that its data has channels last if it has four dimensions."""
    held = {f"k{number}": array for number, array in enumerate(constants) if array is not None}
    names = [f"k{number}" if array is not None else "" for number, array in enumerate(constants)]
    made = [f"y{number}" for number in range(outputs)]
    nodes = []
    read = "x"
    if len(shape) == 4:
        held["one"] = np.eye(shape[1], dtype=np.float32)[:, :, None, None]
        nodes.append(helper.make_node("Conv", ["x", "one"], ["c"], "before"))
        read = "c"
    nodes.append(helper.make_node(op, [read, *names], made, op.lower(), **attributes))
    model = model_of(nodes, {"x": shape}, made, held, opset)
    return same(model, {"x": f(*shape) if x is None else x}, folder)


@pytest.mark.parametrize("attributes", [
    {}, {"pads": [1, 1, 1, 1]}, {"pads": [1, 1, 1, 1], "strides": [2, 2]}, {"strides": [2, 1]}, {"pads": [0, 1, 2, 0]},
    {"dilations": [2, 2], "pads": [2, 2, 2, 2]}, {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
    {"auto_pad": "SAME_LOWER", "strides": [2, 2]}, {"auto_pad": "VALID"},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("kind", ["plain", "depthwise", "twice", "even", "grouped"])
def test_conv(kind: str, attributes: dict[str, Any], tmp_path: Path) -> None:
    group, out, k = {
        "plain": (1, 5, 3),
        "depthwise": (4, 4, 3),
        "twice": (4, 8, 3),
        "even": (1, 3, 2),
        "grouped": (2, 6, 3),
    }[kind]
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"], "conv", group=group, **attributes)
    relu = helper.make_node("Relu", ["y"], ["z"], "relu")
    held = {"w": f(out, 4 // group, k, k), "b": f(out)}
    model = model_of([node, relu], {"x": [1, 4, 9, 10]}, ["z"], held)
    counted = same(model, {"x": f(1, 4, 9, 10)}, tmp_path)
    assert counted["CONV_2D" if group in (1, 2) else "DEPTHWISE_CONV_2D"] == 1 and "RELU" not in counted, "it is fused"


@pytest.mark.parametrize("attributes", [
    {}, {"strides": [2, 2]}, {"strides": [2, 2], "pads": [1, 1, 1, 1]}, {"pads": [1, 1, 1, 1]},
    {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]}, {"strides": [3, 2], "pads": [0, 1, 1, 0]},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("k", [2, 3, 4])
def test_conv_transpose(k: int, attributes: dict[str, Any], tmp_path: Path) -> None:
    if k == 2 and "output_padding" in attributes:
        attributes = {**attributes, "pads": [0, 0, 1, 1]}
    node = helper.make_node("ConvTranspose", ["x", "w", "b"], ["y"], "up", **attributes)
    model = model_of([node], {"x": [1, 4, 5, 6]}, ["y"], {"w": f(4, 3, k, k), "b": f(3)})
    assert same(model, {"x": f(1, 4, 5, 6)}, tmp_path)["TRANSPOSE_CONV"] == 1


@pytest.mark.parametrize(
    ("op", "rank", "transposed"),
    [("Gemm", 2, False), ("Gemm", 2, True), ("MatMul", 2, False), ("MatMul", 3, False)],
)
def test_products(op: str, rank: int, transposed: bool, tmp_path: Path) -> None:
    shape = [2, 6] if rank == 2 else [1, 3, 6]
    w = f(5, 6) if transposed else f(6, 5)
    given = {"transB": 1} if transposed else {}
    inputs = ["x", "w", "b"] if op == "Gemm" else ["x", "w"]
    model = model_of([helper.make_node(op, inputs, ["y"], "fc", **given)], {"x": shape}, ["y"], {"w": w, "b": f(5)})
    assert same(model, {"x": f(*shape)}, tmp_path)["FULLY_CONNECTED"] == 1


@pytest.mark.parametrize("flatten", ["Flatten", "Reshape"])
def test_a_product_behind_a_flattened_picture_has_its_columns_moved(flatten: str, tmp_path: Path) -> None:
    held = {"w": f(4, 3, 1, 1), "fc": f(4 * 30, 7), "to": np.array([1, -1], np.int64)}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "conv"),
        helper.make_node(flatten, ["c", "to"] if flatten == "Reshape" else ["c"], ["f"], "flat"),
        helper.make_node("Gemm", ["f", "fc"], ["y"], "fc"),
        helper.make_node("Relu", ["f"], ["z"], "other"),
    ]
    counted = same(model_of(nodes, {"x": [1, 3, 5, 6]}, ["y", "z"], held), {"x": f(1, 3, 5, 6)}, tmp_path)
    assert counted["FULLY_CONNECTED"] == 1


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize("attributes", [
    {"kernel_shape": [2, 2], "strides": [2, 2]}, {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]},
    {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}, {"kernel_shape": [3, 2], "strides": [2, 1]},
    {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}, {"kernel_shape": [3, 3], "auto_pad": "SAME_UPPER"},
    {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1},
], ids=str)  # fmt: skip
def test_pools(op: str, attributes: dict[str, Any], tmp_path: Path) -> None:
    if op == "MaxPool":
        attributes = {name: value for name, value in attributes.items() if name != "count_include_pad"}
    if op == "AveragePool" and attributes.get("strides") == [2, 2] and "pads" in attributes:
        with pytest.raises(InputError, match="none of TFLite's two paddings"):  # and it isn't counted
            one(op, [1, 3, 9, 8], tmp_path, **attributes)
        return
    counted = one(op, [1, 3, 9, 8], tmp_path, **attributes)
    assert counted["MAX_POOL_2D" if op == "MaxPool" else "AVERAGE_POOL_2D"] == 1


@pytest.mark.parametrize("op", ["Relu", "Sigmoid", "Tanh", "HardSwish", "Exp", "Abs", "Neg", "LeakyRelu", "Identity"])
@pytest.mark.parametrize("shape", [[1, 4, 5, 6], [2, 7]], ids=str)
def test_elements(op: str, shape: list[int], tmp_path: Path) -> None:
    counted = one(op, shape, tmp_path)
    assert counted.get("TRANSPOSE", 0) <= 2, "in and out: nothing is moved between"


@pytest.mark.parametrize("bounds", [(0, 6), (0, None), (-1, 1), (None, 0.5)], ids=str)
def test_clips(bounds: tuple[float | None, float | None], tmp_path: Path) -> None:
    one("Clip", [1, 4, 5, 6], tmp_path, *(None if bound is None else np.array(bound, np.float32) for bound in bounds))


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div", "Max", "Min"])
@pytest.mark.parametrize("constant", [(), (1,), (4, 1, 1), (1, 4, 1, 1), (6,), (5, 1), (1, 4, 5, 6)], ids=str)
def test_broadcasts(op: str, constant: tuple[int, ...], tmp_path: Path) -> None:
    counted = one(op, [1, 4, 5, 6], tmp_path, f(*constant) if constant else np.array(1.5, np.float32))
    assert counted.get("TRANSPOSE", 0) <= 2


@pytest.mark.parametrize(("a", "b"), [([1, 4, 5, 6], [1, 4, 1, 1]), ([1, 4, 1, 1], [1, 4, 5, 6]), ([2, 3], [1, 3])])
def test_two_results_are_broadcast(a: list[int], b: list[int], tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["a"], ["ra"]), helper.make_node("Mul", ["ra", "b"], ["y"])]
    same(model_of(nodes, {"a": a, "b": b}, ["y"], {}), {"a": f(*a), "b": f(*b)}, tmp_path)


@pytest.mark.parametrize("axis", [0, 1, 2, 3, -1])
def test_softmax_and_concat_along_any_axis(axis: int, tmp_path: Path) -> None:
    one("Softmax", [2, 4, 5, 6], tmp_path, axis=axis)
    one("Concat", [2, 4, 5, 6], tmp_path, f(2, 4, 5, 6), axis=axis)


@pytest.mark.parametrize(("axes", "keep"), [([2, 3], 1), ([2, 3], 0), ([1], 1), ([1], 0), ([3], 0), ([-1, -2], 1)])
@pytest.mark.parametrize("op", ["ReduceMean", "ReduceMax"])
def test_reductions(op: str, axes: list[int], keep: int, tmp_path: Path) -> None:
    one(op, [2, 4, 5, 6], tmp_path, axes=axes, keepdims=keep)


@pytest.mark.parametrize("perm", [[0, 2, 3, 1], [0, 3, 1, 2], [0, 1, 3, 2], [0, 2, 1, 3], [3, 2, 1, 0]], ids=str)
def test_transposes(perm: list[int], tmp_path: Path) -> None:
    counted = one("Transpose", [2, 4, 5, 6], tmp_path, perm=perm)
    if perm == [0, 2, 3, 1]:
        assert counted["TRANSPOSE"] == 1, "the input's: the Conv's result has that order already"


@pytest.mark.parametrize("to", [[2, 120], [2, 4, 30], [2, 20, 6], [8, 5, 6, 1], [240]], ids=str)
def test_reshapes(to: list[int], tmp_path: Path) -> None:
    one("Reshape", [2, 4, 5, 6], tmp_path, np.array(to, np.int64))


def test_what_moves(tmp_path: Path) -> None:
    one("Pad", [1, 4, 5, 6], tmp_path, np.array([0, 1, 1, 2, 0, 0, 2, 1], np.int64))
    one("Pad", [1, 4, 5, 6], tmp_path, np.array([0, 1, 1, 2, 0, 0, 2, 1], np.int64), np.array(2.5, np.float32))
    starts, ends, axes, steps = (np.array(values, np.int64) for values in ([1, -4], [4, 99], [1, 3], [1, 2]))
    one("Slice", [1, 4, 5, 6], tmp_path, starts, ends, axes, steps)
    one("Split", [1, 4, 5, 6], tmp_path, np.array([1, 3], np.int64), axis=1, outputs=2)
    one("DepthToSpace", [1, 8, 5, 6], tmp_path, blocksize=2)
    one("SpaceToDepth", [1, 3, 4, 6], tmp_path, blocksize=2)
    one("Gather", [1, 4, 5, 6], tmp_path, np.array([[0, -1], [2, 1]], np.int64), axis=1)
    one("ArgMax", [2, 4, 5, 6], tmp_path, axis=1, keepdims=0)
    one("Cast", [2, 4], tmp_path, to=TensorProto.INT32)


@pytest.mark.parametrize("how", ["asymmetric", "half_pixel", "align_corners", "pytorch_half_pixel"])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("scale", [2.0, 3.0, 0.5])
def test_resizes(scale: float, mode: str, how: str, tmp_path: Path) -> None:
    given = {"mode": mode, "coordinate_transformation_mode": how}
    if mode == "nearest":
        given["nearest_mode"] = "floor" if how == "asymmetric" else "round_prefer_floor"
    scales = np.array([1, 1, scale, scale], np.float32)
    if (mode, how, scale) == ("nearest", "align_corners", 0.5):
        with pytest.raises(InputError, match="TFLite places no pixels like 'align_corners'"):
            one("Resize", [1, 3, 6, 8], tmp_path, None, scales, **given)
        return
    counted = one("Resize", [1, 3, 6, 8], tmp_path, None, scales, **given)
    assert counted["RESIZE_BILINEAR" if mode == "linear" else "RESIZE_NEAREST_NEIGHBOR"] == 1


@pytest.mark.parametrize("dtype", [TensorProto.INT8, TensorProto.UINT8, TensorProto.INT16], ids=str)
@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div"])
def test_narrow_integers_that_stand_for_themselves_are_refused(op: str, dtype: int, tmp_path: Path) -> None:
    """The kernels take int8 for what a scale makes of it: without one they abort, or compute something else."""
    infos = [helper.make_tensor_value_info(name, dtype, [2, 3]) for name in "aby"]
    graph = helper.make_graph([helper.make_node(op, ["a", "b"], ["y"], "sum")], "g", infos[:2], infos[2:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), tmp_path / "m.onnx")
    with pytest.raises(InputError, match="which has to have a scale there"):
        written(tmp_path / "m.onnx")


@pytest.mark.parametrize("training", [True, False])
def test_a_dropout_that_drops_is_refused(training: bool, tmp_path: Path) -> None:
    held = {"r": np.array(0.5, np.float32), "t": np.array(training)}
    onnx.save(model_of([helper.make_node("Dropout", ["x", "r", "t"], ["y"])], {"x": [2, 3]}, ["y"], held),
              tmp_path / "m.onnx")  # fmt: skip
    if training:
        with pytest.raises(InputError, match="it is in training mode"):
            written(tmp_path / "m.onnx")
    else:
        written(tmp_path / "m.onnx")


@pytest.mark.parametrize("op", ["MaxPool", "Dropout"])
def test_what_is_asked_for_beside_the_result_is_refused(op: str, tmp_path: Path) -> None:
    given: dict[str, Any] = {"MaxPool": {"kernel_shape": [2, 2]}}.get(op, {})
    nodes = [helper.make_node(op, ["x"], ["y", "z"], op.lower(), **given)]
    model = model_of(nodes, {"x": [1, 2, 4, 4]}, ["y"], {})
    kind, shape = (TensorProto.INT64, [1, 2, 3, 3]) if op == "MaxPool" else (TensorProto.BOOL, [1, 2, 4, 4])
    written_whole = onnx.ModelProto()
    written_whole.CopyFrom(model)
    model.graph.output.append(helper.make_tensor_value_info("z", kind, shape))
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(InputError, match="its output 1 is asked for"):
        written(tmp_path / "m.onnx")
    onnx.save(written_whole, tmp_path / "n.onnx")
    written(tmp_path / "n.onnx")


def test_what_it_has_no_words_for_is_refused_by_node(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "cubic"),
        helper.make_node("Erf", ["c"], ["e"], "error"),
        helper.make_node("Relu", ["e"], ["y"], "relu"),
    ]
    onnx.save(model_of(nodes, {"x": [1, 4, 5, 5, 5]}, ["y"], {"w": f(4, 4, 1, 1, 1)}), tmp_path / "m.onnx")
    with pytest.raises(InputError) as caught:
        written(tmp_path / "m.onnx")
    assert caught.value.id == "cannot-write-tflite" and caught.value.where and caught.value.do
    assert "2 nodes" in caught.value.what and "Conv 'cubic'" in caught.value.what and "Erf 'error'" in caught.value.what


@pytest.mark.parametrize("shape", [["n", 3, "h", 8], ["n", "c"]], ids=str)
def test_sizes_that_aren_t_fixed_are_refused(shape: list[Any], tmp_path: Path) -> None:
    onnx.save(model_of([helper.make_node("Relu", ["x"], ["y"])], {"x": shape}, ["y"], {}), tmp_path / "m.onnx")
    with pytest.raises(InputError, match="has no fixed size"):
        written(tmp_path / "m.onnx")


def test_the_file_is_what_the_schema_says(tmp_path: Path) -> None:
    """Read by the classes that LiteRT's own package generates from TensorFlow Lite's schema."""
    from ai_edge_litert import schema_py_generated as schema

    from penstock.tflite.flatfile import FORMS

    operators = {name: number for name, number in vars(schema.BuiltinOperator).items() if name.isupper()}
    tables = {name.upper(): number for name, number in vars(schema.BuiltinOptions).items() if isinstance(number, int)}
    for name, form in FORMS.items():
        assert operators[name] == form.number, name
        if form.options:
            table = next(key for key, number in tables.items() if number == form.options)
            assert table.removesuffix("OPTIONS") in (name.replace("_", ""), {
                "AVERAGE_POOL_2D": "POOL2D", "MAX_POOL_2D": "POOL2D", "CONV_2D": "CONV2D", "MEAN": "REDUCER",
                "SUM": "REDUCER", "REDUCE_MAX": "REDUCER", "MAXIMUM": "MAXIMUMMINIMUM", "MINIMUM": "MAXIMUMMINIMUM",
                "DEPTHWISE_CONV_2D": "DEPTHWISECONV2D",
            }.get(name)), (name, table)  # fmt: skip
    model = model_of([helper.make_node("Relu", ["x"], ["y"])], {"x": ["n", 4]}, ["y"], {})
    onnx.save(model, tmp_path / "m.onnx")
    read = schema.ModelT.InitFromPackedBuf(bytearray(written(tmp_path / "m.onnx", batch=3).data), 0)
    graph = read.subgraphs[0]
    assert read.version == 3 and [list(tensor.shape) for tensor in graph.tensors] == [[3, 4], [3, 4]]
    assert [one.name for one in read.signatureDefs[0].inputs] == [b"x"]

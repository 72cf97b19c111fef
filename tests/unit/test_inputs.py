"""Inputs made from a signature: types, sizes, and integers that stay inside what they index."""

from pathlib import Path
from types import ModuleType

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from penstock import graph, inputs
from penstock.errors import InputError
from penstock.signature import Signature, TensorSpec


def specs(*given: TensorSpec) -> Signature:
    return Signature(given, ())


def test_the_same_seed_gives_the_same_numbers() -> None:
    signature = specs(TensorSpec("x", "float32", ("n", 3)), TensorSpec("i", "int32", ("n",)))
    one, same, other = (inputs.seeded(signature, batch=4, seed=s, bounds={"i": 99}) for s in (5, 5, 6))
    assert np.array_equal(one["x"], same["x"]) and np.array_equal(one["i"], same["i"])
    assert not np.array_equal(one["x"], other["x"])


@pytest.mark.parametrize(
    "dtype",
    ["float16", "float32", "float64", "bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"],
)
def test_every_type_that_can_be_drawn(dtype: str) -> None:
    got = inputs.seeded(specs(TensorSpec("x", dtype, ("n", 50))), batch=2, seed=0, bounds={"x": 3})["x"]
    assert str(got.dtype) == dtype and got.shape == (2, 50)
    if dtype == "bool" or not dtype.startswith("float"):
        assert set(np.unique(got)) == ({False, True} if dtype == "bool" else {0, 1, 2})
    else:
        assert abs(float(got.astype(np.float64).mean())) < 0.5 and 0.5 < float(got.astype(np.float64).std()) < 1.5


@pytest.mark.parametrize("dtype", ["object", "bfloat16", "complex64", "unknown"])
def test_types_that_cannot(dtype: str) -> None:
    with pytest.raises(InputError) as caught:
        inputs.seeded(specs(TensorSpec("x", dtype, (1,))), batch=1, seed=0)
    assert "--data" in caught.value.do


@pytest.mark.parametrize(
    ("shape", "sizes", "want"),
    [
        (("batch", 3), {}, (5, 3)),
        ((None, None), {}, (5, 8)),
        (("n", 3, None, "w"), {"w": 32}, (5, 3, 64, 32)),
        ((2, 3), {}, (2, 3)),
        ((), {}, ()),
        (("batch", "seq"), {"batch": 7, "seq": 9}, (7, 9)),
    ],
)
def test_dynamic_sizes(shape: tuple, sizes: dict[str, int], want: tuple[int, ...]) -> None:
    assert inputs.concrete_shape(TensorSpec("x", "float32", shape), 5, sizes) == want


def test_an_unknown_rank_is_refused() -> None:
    with pytest.raises(InputError, match="no shape"):
        inputs.concrete_shape(TensorSpec("x", "float32", None), 1, {})


def bounds(
    tiny: ModuleType, nodes: list, weights: dict[str, np.ndarray], kind: int = TensorProto.INT64
) -> dict[str, int]:
    made = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("ids", kind, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )  # fmt: skip
    return inputs.integer_bounds(ir.from_proto(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)])))


TABLE = np.zeros((11, 6), np.float32)


@pytest.mark.parametrize(("axis", "bound"), [(0, 11), (1, 6), (-1, 6)])
def test_a_gather_bounds_by_the_axis_it_reads(axis: int, bound: int, tiny: ModuleType) -> None:
    node = helper.make_node("Gather", ["t", "ids"], ["y"], axis=axis)
    assert bounds(tiny, [node], {"t": TABLE}) == {"ids": bound}


def test_the_smallest_of_several_and_through_what_keeps_values(tiny: ModuleType) -> None:
    nodes = [
        helper.make_node("Cast", ["ids"], ["c"], to=TensorProto.INT32),
        helper.make_node("Unsqueeze", ["c", "axes"], ["u"]),
        helper.make_node("Gather", ["t", "u"], ["g1"]),
        helper.make_node("Gather", ["small", "ids"], ["g2"]),
        helper.make_node("Add", ["g1", "g2"], ["y"]),
    ]
    weights = {"t": TABLE, "small": np.zeros((5, 6), np.float32), "axes": np.array([0])}
    assert bounds(tiny, nodes, weights) == {"ids": 5}


@pytest.mark.parametrize("constant", [False, True])
def test_a_one_hot_bounds_by_its_depth(constant: bool, tiny: ModuleType) -> None:
    depth = np.array([9], np.int64)
    nodes = [helper.make_node("OneHot", ["ids", "d", "v"], ["y"])]
    weights = {"v": np.array([0, 1], np.float32)}
    if constant:
        nodes.insert(0, helper.make_node("Constant", [], ["d"], value=numpy_helper.from_array(depth)))
    else:
        weights["d"] = depth
    assert bounds(tiny, nodes, weights) == {"ids": 9}


@pytest.mark.parametrize(("kind", "bound"), [(TensorProto.INT64, 2), (TensorProto.UINT8, 256)])
def test_where_the_graph_says_nothing(kind: int, bound: int, tiny: ModuleType) -> None:
    node = helper.make_node("Cast", ["ids"], ["y"], to=TensorProto.FLOAT)
    assert bounds(tiny, [node], {}, kind) == {"ids": bound}


def test_floats_have_no_bound(tiny: ModuleType) -> None:
    assert bounds(tiny, [helper.make_node("Relu", ["ids"], ["y"])], {}, TensorProto.FLOAT) == {}


def test_seeded_ids_run_in_a_runtime(tiny: ModuleType, tmp_path: Path) -> None:
    model = tiny.gather(rows=3)
    loaded = graph.load(tiny.save(model, tmp_path / "m.onnx"))
    made = inputs.seeded(graph.signature(loaded), batch=50, seed=0, bounds=inputs.integer_bounds(loaded))
    assert made["ids"].max() == 2
    assert tiny.oracle(model, made)[0].shape == (50, 3)


def test_batches_are_resized_by_repeating_rows() -> None:
    example = {"x": np.arange(6).reshape(3, 2), "s": np.array(4)}
    got = inputs.resize_batch(example, 5)
    assert got["x"][:, 0].tolist() == [0, 2, 4, 0, 2] and got["s"].shape == ()
    assert inputs.resize_batch(example, 1)["x"].tolist() == [[0, 1]]

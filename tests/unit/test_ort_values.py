"""Types that numpy has none of go through ONNX Runtime as they are: bfloat16, float8, half and quarter bytes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

import tiny_models
from penstock import registry
from penstock.backends import Loadable, _bits, _ort_values
from penstock.deployment import Deployment

KINDS = ("BFLOAT16", "FLOAT8E4M3FN", "FLOAT8E5M2", "FLOAT8E4M3FNUZ", "FLOAT8E5M2FNUZ", "INT4", "UINT4", "INT2", "UINT2")
RNG = np.random.default_rng(0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(3, 5), (1,), (0, 3), (), (7,)])
def test_what_goes_in_comes_out(kind: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    """By way of float32, which comes out too."""
    model, dtype = tiny_models.through_float32(kind, shape)
    x = RNG.integers(-2, 2, shape).astype(np.int8).astype(np.float32)
    if kind.startswith("U"):
        x = np.abs(x)
    given = {"x": np.asarray(x, np.float32).astype(dtype)}
    backend: Any = registry.load("backends", "onnxruntime")
    path = tiny_models.save(model, tmp_path / "m.onnx")
    session = backend.load(Loadable(path), Deployment("m", "m", "", "fp32", "onnxruntime"))
    f, y = session.run(given)
    assert f.dtype == np.float32 and f.shape == shape and np.array_equal(f, x)
    assert y.dtype == dtype and y.shape == shape and np.array_equal(y.astype(np.float32), x)


def test_a_scalar_beside_them_stays_one_and_the_session_tells_what_ran(tmp_path: Path) -> None:
    kinds = {"x": (TensorProto.BFLOAT16, [3]), "s": (TensorProto.FLOAT, []), "y": (TensorProto.BFLOAT16, [3]),
             "z": (TensorProto.FLOAT, [])}  # fmt: skip
    infos = [helper.make_tensor_value_info(name, *spec) for name, spec in kinds.items()]
    nodes = [helper.make_node("Identity", ["x"], ["y"]), helper.make_node("Neg", ["s"], ["z"])]
    graph = helper.make_graph(nodes, "g", infos[:2], infos[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    backend: Any = registry.load("backends", "onnxruntime")
    path = tiny_models.save(model, tmp_path / "m.onnx")
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(TensorProto.BFLOAT16))
    for bound in (False, True):
        asked = Deployment("m", "m", "", "bf16", "onnxruntime", io_binding=bound)
        session = backend.load(Loadable(path), asked)
        y, z = session.run({"x": np.ones(3, dtype), "s": np.array(2, np.float32)})
        assert z.shape == () and z == -2 and np.array_equal(y.astype(np.float32), np.ones(3))
        assert "computes_in" in session.actual()


@pytest.mark.parametrize("bits", [2, 4])
def test_parts_of_a_byte_are_packed_lowest_first(bits: int) -> None:
    data = RNG.integers(0, 1 << bits, 13).astype(np.uint8)
    packed = _bits.packed(data, bits)
    assert packed.size == -(-13 * bits // 8) and packed[0] & ((1 << bits) - 1) == data[0]
    assert np.array_equal(_bits.unpacked(packed, bits)[:13], data)


def test_other_types_are_numpys() -> None:
    assert _ort_values.element("tensor(float)") is None and _ort_values.element("seq(tensor(bfloat16))") is None
    assert _ort_values.element("tensor(bfloat16)") == TensorProto.BFLOAT16


def test_types_are_the_standards() -> None:
    for name, (number, dtype) in _ort_values.TYPES.items():
        assert TensorProto.DataType.Value(name.upper()) == number
        assert np.dtype(helper.tensor_dtype_to_np_dtype(number)).name == dtype

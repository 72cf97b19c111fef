"""Inputs and types of OpenVINO: what it drops or renames is found again, and no bits are taken for another type's."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import parser

import tiny_models
from penstock import registry
from penstock.backends import Loadable
from penstock.deployment import Deployment
from penstock.errors import InputError

RNG = np.random.default_rng(0)


def opened(text: str, path: Path) -> Any:
    model = parser.parse_model(f'<ir_version: 10, opset_import: ["" : 18]> g {text}')
    backend: Any = registry.load("backends", "openvino")
    if problem := backend.available():
        pytest.skip(problem)
    saved = tiny_models.save(model, path)
    return backend.load(Loadable(saved), Deployment("m", "m", "", "fp32", "openvino"))


def floats(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(
    ("text", "names", "sums"),
    [
        ("(float[2,3] x, float[2,3] unread) => (float[2,3] y) { y = Neg(x) }", "x unread", {"y": {"x": -1}}),
        ("(float[2,3] x, double[2,3] like) => (float[2,3] y) { a = Cast<to=11>(x) b = Neg(like) y = Cast<to=1>(a) }",
         "x like", {"y": {"x": 1}}),
        ("(float[2,3] x) => (float[2,3] y) { y = Dropout(x) }", "x", {"y": {"x": 1}}),
        ("(float[2,3] x, float[2,3] z) => (float[2,3] y, float[2,3] w) { y = Max(x) w = Neg(z) }", "x z",
         {"y": {"x": 1}, "w": {"z": -1}}),
        ("(float[2,3] x, float[2,3] z) => (float[2,3] w, float[2,3] y) { w = Dropout(z) y = Dropout(x) }", "x z",
         {"w": {"z": 1}, "y": {"x": 1}}),
    ],
)  # fmt: skip
def test_each_input_is_found(text: str, names: str, sums: dict[str, dict[str, int]], tmp_path: Path) -> None:
    session = opened(text, tmp_path / "m.onnx")
    for _ in range(2):  # the second time it knows
        feeds = {name: floats(2, 3).astype(np.float64 if name == "like" else np.float32) for name in names.split()}
        got = session.run(feeds)
        for mine, parts in zip(got, sums.values(), strict=True):
            assert np.allclose(mine, sum(factor * feeds[name] for name, factor in parts.items()))
    for wrong in ({"x": floats(2, 3), "nothing": floats(2, 3)}, {}):
        with pytest.raises(InputError, match="the model wants the inputs"):
            session.run(wrong)


@pytest.mark.parametrize("kind", ["BFLOAT16", "FLOAT8E4M3FN", "FLOAT8E5M2", "INT4", "UINT4"])
@pytest.mark.parametrize("shape", [(3, 5), (1,), (7,)])
def test_types_that_numpy_has_none_of(kind: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    """It hands bfloat16 out as the bits of float16: read as such, 1 is 1.875."""
    model, dtype = tiny_models.through_float32(kind, shape)
    x = np.abs(RNG.integers(-3, 3, shape)).astype(np.float32)
    backend: Any = registry.load("backends", "openvino")
    if problem := backend.available():
        pytest.skip(problem)
    path = tiny_models.save(model, tmp_path / "m.onnx")
    session = backend.load(Loadable(path), Deployment("m", "m", "", "fp32", "openvino"))
    f, y = session.run({"x": x.astype(dtype)})
    assert np.array_equal(f, x) and y.dtype == dtype and np.array_equal(y.astype(np.float32), x)

"""A runtime that rounds in its own way is held against ONNX Runtime's integers, by steps and by top answers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnxruntime
import pytest

from penstock import api, environment, golden, running
from penstock.backends import Loadable
from penstock.deployment import Deployment
from penstock.stages.quantize import QuantizeSettings
from penstock.stages.verify import VerifySettings
from penstock.verifying import _grids, verified

RNG = np.random.default_rng(3)
FEEDS = [{"x": RNG.normal(size=(n, 3, 8, 8)).astype(np.float32)} for n in (1, 16, 8)]


class Shifted:
    """ONNX Runtime's results, some numbers moved by so many steps of the output's grid."""

    def __init__(self, path: Path, steps: int, place: tuple[int, int, int] | None = None) -> None:
        self.session, self.steps = onnxruntime.InferenceSession(str(path)), steps
        self.scale, self.place, self.runs = _grids(path)["y"], place, 0

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        (made,) = self.session.run(None, dict(feeds))
        if self.place is not None and self.place[0] == self.runs:
            made[self.place[1:]] += np.float32(self.steps * self.scale)
        self.runs += 1
        return [made]


@pytest.fixture
def int8(tiny: ModuleType, tmp_path: Path) -> Path:
    """Return a model whose output a grid makes."""
    source = tiny.save(tiny.conv(), tmp_path / "m.onnx")
    asked = QuantizeSettings(consumer="integer-only", quantize_outputs=True)
    api.quantize(source, tmp_path / "int8.onnx", asked)
    return tmp_path / "int8.onnx"


def held(path: Path, session: object, backend: str = "tflite-micro", **settings: float) -> object:
    plain = onnxruntime.InferenceSession(str(path))
    outputs = [tuple(plain.run(None, feeds)) for feeds in FEEDS]
    gold = golden.Golden({"kind": "data"}, "o", ("y",), (1, 16, 8), tuple(FEEDS), tuple(outputs))
    deployment = Deployment("int8@it", "int8", "", "int8", backend)
    free = VerifySettings(int8_sqnr_db=-99.0, **settings)  # type: ignore[arg-type]
    return verified(Loadable(path), deployment, session, gold, free)  # type: ignore[arg-type]


@pytest.mark.parametrize("place", [(0, 0, 1), (1, 15, 4), (2, 3, 0)])
@pytest.mark.parametrize(("steps", "passes"), [(0, True), (3, True), (-4, True), (5, False), (-5, False)])
def test_steps_are_counted_over_all_samples(int8: Path, place: tuple[int, int, int], steps: int, passes: bool) -> None:
    found = held(int8, Shifted(int8, steps, place), micro_flips=1.0)
    assert found.steps == abs(steps) and found.outcome.passed is passes  # type: ignore[attr-defined]
    assert passes or f"{abs(steps)} steps of the output's grid" in found.outcome.reason  # type: ignore[attr-defined]


def test_top_answers_are_counted(int8: Path) -> None:
    best = onnxruntime.InferenceSession(str(int8)).run(None, FEEDS[2])[0][3].argmax()
    place = (2, 3, int(best) ^ 1)
    found = held(int8, Shifted(int8, 200, place), micro_steps=999)
    assert found.step_flips == 1 / 25 and "4.00% of the top answers" in found.outcome.reason  # type: ignore[attr-defined]
    assert held(int8, Shifted(int8, 200, place), micro_steps=999, micro_flips=0.04).outcome.passed  # type: ignore[attr-defined]


def test_others_are_not_held_to_steps(int8: Path) -> None:
    found = held(int8, Shifted(int8, 50, (0, 0, 0)), backend="litert")
    assert found.outcome.passed and found.steps is None  # type: ignore[attr-defined]


def test_an_output_in_float_has_no_steps(tiny: ModuleType, tmp_path: Path) -> None:
    path = Path(tiny.save(tiny.conv(), tmp_path / "m.onnx"))
    assert _grids(path) == {}
    plain = onnxruntime.InferenceSession(str(path))

    class Same:
        def run(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
            return plain.run(None, dict(feeds))

    found = held(path, Same())
    assert found.outcome.passed and found.steps is None and found.step_flips == 0.0  # type: ignore[attr-defined]


def test_the_real_runtime(int8: Path) -> None:
    if problem := environment.problem("tflite-micro"):
        pytest.skip(f"tflite-micro: {problem}")
    runnable = running.runnables_of(int8, "tflite-micro", 1, "int8")[0]
    session = runnable.open()
    try:
        found = held(int8, session)
    finally:
        session.close()
    assert found.outcome.passed and found.steps is not None and found.steps <= 4  # type: ignore[attr-defined]
    assert onnx.load(int8).graph.output[0].name == "y"

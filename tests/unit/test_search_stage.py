"""The search: its ladder on made-up figures, and a whole one on real ones."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from penstock import searching
from penstock.cli._search import _points
from penstock.data import DataSettings
from penstock.errors import UsageError
from penstock.stages.bench import BenchSettings
from penstock.stages.quantize import QuantizeSettings
from penstock.stages.search import Candidate, Measured, SearchSettings, climb, front

LAYERS = tuple(f"layer{i}" for i in range(8))


def measuring(drop: Callable[[Candidate], float], latency: Callable[[Candidate], float]) -> tuple[Callable, list[str]]:
    asked: list[str] = []

    def measure(candidate: Candidate, timed: bool) -> Measured:
        asked.append(candidate.name)
        value, time = drop(candidate), latency(candidate)
        span = (time * 0.98, time * 1.02) if timed else None
        spread = (value - 0.1, value + 0.1)
        return Measured(
            candidate.name, 0.9 - value / 100, value, spread, time if timed else None, span, 100, "",
            settings={"name": candidate.name},
        )  # fmt: skip

    return measure, asked


def test_the_first_that_keeps_to_the_budget_ends_the_first_rung() -> None:
    measure, asked = measuring(lambda one: 0.1, lambda one: 0.4)
    found = climb(QuantizeSettings(), SearchSettings(max_drop=0.5), ["dynamic"], measure, lambda one: LAYERS)
    assert found.chosen == "static" and asked[0] == "static" and "adaptive" not in " ".join(asked)
    assert {"dynamic", "static, outputs quantized"} <= {*asked}


def test_layers_go_back_to_float_until_the_budget_is_kept() -> None:
    def drop(one: Candidate) -> float:
        return max(0.0, 2.0 - 0.4 * len(one.settings.exclude)) if one.settings.method == "static" else 9.0

    def latency(one: Candidate) -> float:
        return 0.4 + 0.05 * len(one.settings.exclude)

    measure, _ = measuring(drop, latency)
    found = climb(QuantizeSettings(), SearchSettings(max_drop=0.9, evaluations=40), [], measure, lambda one: LAYERS)
    chosen = next(rung for rung in found.rungs if rung.name == found.chosen)
    assert "3 layers in float" in chosen.name and chosen.drop == pytest.approx(0.8)


def test_what_is_not_faster_is_refused_with_its_figures() -> None:
    measure, _ = measuring(lambda one: 0.0, lambda one: 1.3)
    found = climb(QuantizeSettings(), SearchSettings(), [], measure, lambda one: LAYERS)
    assert found.chosen == "" and "no faster than the float model: 1.30× (1.27–1.33)" in found.nearest_miss
    size = climb(QuantizeSettings(), SearchSettings(objective="size"), [], measure, lambda one: LAYERS)
    assert size.chosen, "where size is wanted, a slow one may be the best"


def test_evaluations_are_bounded() -> None:
    measure, asked = measuring(lambda one: 5.0, lambda one: 0.4)
    found = climb(QuantizeSettings(), SearchSettings(evaluations=3), ["dynamic"], measure, lambda one: LAYERS)
    assert len(asked) == 3 and found.exhausted and not found.chosen
    assert found.nearest_miss.startswith("static") and "drops 5.00 points" in found.nearest_miss


def test_the_front_holds_what_no_other_beats() -> None:
    def one(name: str, size: int, latency: float, drop: float) -> Measured:
        return Measured(name, 0.9, drop, (drop, drop), latency, (latency, latency), size, "")

    held = [one("a", 10, 0.4, 0.5), one("b", 10, 0.5, 0.6), one("c", 20, 0.3, 0.5), one("d", 30, 0.9, 0.0)]
    assert front(held) == ("a", "c", "d")


FAST = BenchSettings(seconds=0, min_rounds=3, calls_per_round=2, warmup_calls=2)


def test_a_search_on_the_digits_goes_on_where_it_was(
    tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PENSTOCK_CACHE", str(tmp_path / "cache"))
    model = tiny.save(tiny.conv(classes=10), tmp_path / "m.onnx")
    data = DataSettings(data=_digits(tmp_path))
    wanted = SearchSettings(max_drop=100.0, objective="size", evaluations=2)
    first = searching.search(model, tmp_path / "best.onnx", data, wanted, bench=FAST)
    assert first.chosen and (tmp_path / "best.onnx").is_file()
    assert not any(rung.reused for rung in first.rungs) and len(first.rungs) == 2
    again = searching.search(model, tmp_path / "again.onnx", data, wanted, bench=FAST)
    assert all(rung.reused for rung in again.rungs)
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "best.onnx").read_bytes()


def _digits(folder: Path) -> str:
    import numpy as np

    rng = np.random.default_rng(0)
    path = folder / "data.npz"
    np.savez(path, x=rng.normal(size=(240, 3, 8, 8)).astype(np.float32), y=rng.integers(0, 10, 240))
    return str(path)


@pytest.mark.parametrize(
    ("value", "text"), [(-0.0, "+0.00"), (-0.004, "+0.00"), (0.0, "+0.00"), (-0.006, "-0.01"), (1.26, "+1.26")]
)
def test_a_drop_of_nothing_has_no_sign_of_its_own(value: float, text: str) -> None:
    assert _points(value) == text


def test_without_labels_there_is_nothing_to_search_by(tiny: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs labelled data"):
        searching.search(tiny.save(tiny.conv(), tmp_path / "m.onnx"), tmp_path / "q.onnx", DataSettings())

"""The search: its ladder on made-up figures, and a whole one on real ones."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from penstock import registry, searching
from penstock.cli import run as cli
from penstock.cli._search import _points
from penstock.data import DataSettings
from penstock.deployment import Deployment
from penstock.errors import MissingError, UsageError
from penstock.stages import quantize as quantize_stage
from penstock.stages.bench import BenchSettings
from penstock.stages.evaluate import EvaluateSettings
from penstock.stages.quantize import QuantizeSettings
from penstock.stages.search import UNREAD, Candidate, Measured, SearchSettings, climb, front, same

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
    exact = climb(QuantizeSettings(), SearchSettings(objective="accuracy"), [], measure, lambda one: LAYERS)
    assert exact.chosen == "", "the float model is more accurate and faster"


def test_evaluations_are_bounded() -> None:
    measure, asked = measuring(lambda one: 5.0, lambda one: 0.4)
    found = climb(QuantizeSettings(), SearchSettings(evaluations=3), ["dynamic"], measure, lambda one: LAYERS)
    assert len(asked) == 3 and found.exhausted and not found.chosen
    assert found.nearest_miss.startswith("static") and "drops 5.00 points" in found.nearest_miss


def kinds(one: Candidate) -> tuple[int, int]:
    return len(one.settings.exclude), len(one.settings.int16_layers)


def test_layers_are_tried_in_float_and_in_16_bits() -> None:
    """A layer in float takes 0.4 points away, one in 16 bits 0.3; 16 bits are the faster here."""

    def drop(one: Candidate) -> float:
        if one.settings.activations:
            return 0.1
        return max(0.0, 2.0 - 0.4 * kinds(one)[0] - 0.3 * kinds(one)[1]) if one.settings.method == "static" else 9.0

    def latency(one: Candidate) -> float:
        return 0.8 if one.settings.activations else 0.4 + 0.05 * kinds(one)[0] + 0.01 * kinds(one)[1]

    measure, asked = measuring(drop, latency)
    wanted = SearchSettings(max_drop=0.9, evaluations=40)
    found = climb(QuantizeSettings(), wanted, [], measure, lambda one: LAYERS)
    assert found.chosen == "static, 4 layers in int16", asked
    assert "static, 3 layers in float" in asked and "static, 2 layers in float and 1 layer in int16" in asked
    chosen = next(rung for rung in found.rungs if rung.name == found.chosen)
    assert chosen.changed == "int16: layer0, layer1, layer2 and 1 more"
    assert not {"static, 1 layer in int16", "static, 2 layers in int16"} & {*asked}, "they do less than in float"
    assert len({*asked}) == len(asked)


def test_16_bits_for_layers_are_left_out_where_all_of_them_do_not_suffice() -> None:
    measure, asked = measuring(lambda one: 2.0 - 0.4 * kinds(one)[0], lambda one: 0.5)
    climb(QuantizeSettings(), SearchSettings(max_drop=0.9, evaluations=40), [], measure, lambda one: LAYERS)
    assert "static, uint16 activations" in asked and not any("in int16" in name for name in asked)


@pytest.mark.parametrize("settings", [{"consumer": "openvino"}, {"format": "qoperator"}, {"activations": "uint16"}])
def test_16_bits_are_left_out_where_they_can_not_be_had(settings: dict) -> None:
    measure, asked = measuring(lambda one: 2.0 - 0.4 * kinds(one)[0], lambda one: 0.5 + 0.01 * kinds(one)[0])
    wanted = SearchSettings(max_drop=0.9, evaluations=40)
    found = climb(QuantizeSettings(**settings), wanted, [], measure, lambda one: LAYERS)
    assert "3 layers in float" in found.chosen and not any("16" in name for name in asked)


def test_where_size_is_wanted_16_bits_come_before_float() -> None:
    def drop(one: Candidate) -> float:
        return 0.1 if one.settings.activations else max(0.0, 2.0 - 0.4 * sum(kinds(one)))

    measure, asked = measuring(drop, lambda one: 0.5)
    wanted = SearchSettings(max_drop=1.3, objective="size", evaluations=40)
    climb(QuantizeSettings(), wanted, [], measure, lambda one: LAYERS)
    assert asked.index("static, 2 layers in int16") < asked.index("static, 1 layer in float")


def test_each_repair_is_tried_and_what_helps_is_kept() -> None:
    worth = {"rounding": 0.5, "equalize": 0.3, "smooth": -0.2, "ranges": -0.1, "correct_bias": 0.1}

    def drop(one: Candidate) -> float:
        now, start = one.settings, QuantizeSettings()
        return 3.0 - sum(gain for name, gain in worth.items() if getattr(now, name) != getattr(start, name))

    measure, asked = measuring(drop, lambda one: 0.4)
    found = climb(QuantizeSettings(), SearchSettings(evaluations=40), [], measure, lambda one: ())
    tried = " / ".join(asked)
    for way in ("bias corrected on samples", "adaptive rounding", "percentile ranges", "not equalized", "not smoothed"):
        assert way in tried
    best = "static, bias corrected on samples, adaptive rounding, not equalized"
    timed = next(rung for rung in found.rungs if rung.name == best)
    assert timed.drop == pytest.approx(2.1) and timed.latency is not None and asked.count(best) == 2, "timed at last"
    assert timed.changed == "equalize = off"
    assert [rung.name for rung in found.rungs if rung.latency is not None][:2] == ["static", best]


def test_a_setting_that_is_changed_again_is_named_once() -> None:
    worth = {"minmax": 1.0, "percentile": 2.0, "auto": 0.0}
    measure, asked = measuring(lambda one: 4.0 - worth.get(one.settings.ranges, 0.5), lambda one: 0.4)
    climb(QuantizeSettings(), SearchSettings(evaluations=40), [], measure, lambda one: ())
    assert "static, percentile ranges, not equalized" in asked and len({*asked}) == len(asked) - 1, asked


def test_nothing_is_tried_twice() -> None:
    gain = {"empirical": 0.1, "analytic": 0.0, "none": 0.0}
    measure, _ = measuring(
        lambda one: 3.0 - gain[one.settings.correct_bias] + len(one.settings.ranges) / 10, lambda one: 0.4
    )
    settings: list[QuantizeSettings] = []

    def noting(candidate: Candidate, timed: bool) -> Measured:
        if not (candidate.settings in settings and timed):  # the best of one speed is timed at last
            assert candidate.settings not in settings, candidate.name
            settings.append(candidate.settings)
        return measure(candidate, timed)

    climb(QuantizeSettings(ranges="mse"), SearchSettings(evaluations=40), [], noting, lambda one: LAYERS)
    assert len(settings) > 10


def test_a_repair_that_has_nothing_to_do_is_not_tried() -> None:
    measure, asked = measuring(lambda one: 3.0, lambda one: 0.4)

    def telling(candidate: Candidate, timed: bool) -> Measured:
        told = {"equalized": 0, "smoothed": 2, "ranges": "minmax", "guarded": 0, "float_outputs": 0}
        return dataclasses.replace(measure(candidate, timed), told=told)

    climb(QuantizeSettings(), SearchSettings(evaluations=40), [], telling, lambda one: ())
    tried = " / ".join(asked)
    assert "not smoothed" in tried and "mse ranges" in tried
    for way in ("not equalized", "minmax ranges", "no guard", "outputs quantized"):
        assert way not in tried


def test_without_the_guard_a_model_may_be_faster() -> None:
    measure, _ = measuring(
        lambda one: 0.1 if one.settings.guard else 0.2, lambda one: 0.5 if one.settings.guard else 0.4
    )

    def telling(candidate: Candidate, timed: bool) -> Measured:
        return dataclasses.replace(measure(candidate, timed), told={"guarded": 1})

    assert climb(QuantizeSettings(), SearchSettings(), [], telling, lambda one: ()).chosen == "static, no guard"


def test_what_is_slow_already_is_not_made_slower() -> None:
    measure, asked = measuring(lambda one: 5.0, lambda one: 1.3)
    climb(QuantizeSettings(), SearchSettings(), ["dynamic"], measure, lambda one: LAYERS)
    assert "dynamic" in asked and not any("layer" in name or "adaptive" in name for name in asked)


def test_evaluations_are_kept_for_the_other_methods() -> None:
    measure, asked = measuring(lambda one: 0.1 if one.settings.method == "fp16" else 5.0, lambda one: 0.6)
    found = climb(QuantizeSettings(), SearchSettings(evaluations=9), ["dynamic", "fp16"], measure, lambda one: LAYERS)
    assert found.chosen == "fp16" and asked[-2:] == ["dynamic", "fp16"] and len(asked) == 9 and found.exhausted


def test_weights_alone_are_tried_in_8_bits_where_4_drop_too_much() -> None:
    for drop, tried in ((2.0, ["weight-only", "weight-only, 8 bits"]), (0.1, ["weight-only"])):
        measure, asked = measuring(
            lambda one, drop=drop: drop if one.settings.weight_bits == 4 else 0.2, lambda one: 0.8
        )
        found = climb(QuantizeSettings(), SearchSettings(max_drop=0.5), ["weight-only"], measure, lambda one: ())
        assert [name for name in asked if name.startswith("weight-only")] == tried
        assert found.chosen == ("weight-only, 8 bits" if drop == 2.0 else "static")


def helped(one: Candidate) -> float:
    """Return a drop that bias correction and adaptive rounding make smaller."""
    now = one.settings
    if now.activations or now.quantize_outputs:
        return 9.0
    return 0.6 - 0.3 * (now.correct_bias == "empirical") - 0.2 * (now.rounding == "adaptive")


BEST = "static, bias corrected on samples, adaptive rounding"


def test_what_was_not_timed_is_not_chosen_where_its_twin_is_slow() -> None:
    measure, asked = measuring(helped, lambda one: 0.9 if one.name == "static" else 1.3)
    wanted = SearchSettings(max_drop=0.7, objective="accuracy")
    found = climb(QuantizeSettings(), wanted, [], measure, lambda one: ())
    twin = next(rung for rung in found.rungs if rung.name == "static, bias corrected on samples")
    assert found.chosen == "static" and twin.latency is None and asked.count(BEST) == 2
    told = f"as fast as {BEST}, and that one is no faster than the float model: 1.30× (1.27–1.33) of its latency"
    assert twin.refused == told


def test_what_is_chosen_was_timed() -> None:
    measure, asked = measuring(helped, lambda one: 0.5)

    def failing(candidate: Candidate, timed: bool) -> Measured:
        found = measure(candidate, timed)
        return dataclasses.replace(found, refused="it can't be timed") if timed and candidate.name == BEST else found

    wanted = SearchSettings(max_drop=0.7, objective="accuracy")
    found = climb(QuantizeSettings(), wanted, [], failing, lambda one: ())
    chosen = next(rung for rung in found.rungs if rung.name == found.chosen)
    assert BEST in asked and chosen.name != "static" and chosen.latency == 0.5, "the next best is timed in its place"
    assert len({*asked}) == len(found.rungs), "and no further model is made for it"


def test_a_model_whose_time_can_not_be_compared_is_not_chosen() -> None:
    measure, _ = measuring(lambda one: 0.1, lambda one: 0.5)

    def vague(candidate: Candidate, timed: bool) -> Measured:
        return dataclasses.replace(measure(candidate, timed), latency=None, latency_range=None)

    found = climb(QuantizeSettings(), SearchSettings(), [], vague, lambda one: ())
    assert not found.chosen and "it can't be timed" in found.nearest_miss


def test_two_that_are_one_file_count_once_and_the_first_is_chosen() -> None:
    measure, _ = measuring(lambda one: 0.2, lambda one: 0.4)

    def telling(candidate: Candidate, timed: bool) -> Measured:
        if candidate.settings.quantize_outputs:
            found = same(candidate, measure(Candidate("static", QuantizeSettings()), timed))
            return dataclasses.replace(found, latency=0.1, latency_range=(0.1, 0.1), size_bytes=1)
        return measure(candidate, timed)

    found = climb(QuantizeSettings(), SearchSettings(evaluations=3), ["fp16"], telling, lambda one: ())
    assert [rung.name for rung in found.rungs] == [
        "static", "static, outputs quantized", "static, uint16 activations", "fp16"
    ]  # fmt: skip
    assert found.rungs[1].refused == "the same file as static" and found.chosen == "static"
    assert "static, outputs quantized" not in found.front and not found.exhausted


def two_ways(measure: Callable) -> Callable[[Candidate, bool], Measured]:
    """Say of weight-only models that there is another way to compute them."""

    def telling(candidate: Candidate, timed: bool) -> Measured:
        if candidate.settings.method != "weight-only":
            return measure(candidate, timed)
        options = {"session.level": "4" if candidate.way else "1"}
        ways = () if candidate.way else ("int8-activations",)
        return dataclasses.replace(measure(candidate, timed), options=options, ways=ways)

    return telling


def test_each_way_to_compute_a_model_is_a_rung_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    from penstock.cli import _search

    measure, asked = measuring(lambda one: 0.2, lambda one: 0.3 if one.way else 0.4)
    found = climb(QuantizeSettings(), SearchSettings(), ["weight-only"], two_ways(measure), lambda one: ())
    assert asked[-2:] == ["weight-only", "weight-only+int8-activations"]
    assert found.chosen == "weight-only+int8-activations" and found.options == {"session.level": "4"}
    _search.show(dataclasses.replace(found, backend="onnxruntime"), SearchSettings(), "best.onnx")
    text = capsys.readouterr().out
    assert "measured on onnxruntime" in text and "run with  session.level = 4" in text
    few = SearchSettings(evaluations=6, max_drop=0.1)
    bounded = climb(QuantizeSettings(), few, ["weight-only"], two_ways(measure), lambda one: LAYERS)
    assert len(bounded.rungs) == 6 and [rung.name for rung in bounded.rungs][-2:] == [
        "weight-only", "weight-only+int8-activations"
    ], "an evaluation is kept for the other way"  # fmt: skip


def test_the_front_holds_what_no_other_beats() -> None:
    def one(name: str, size: int, latency: float, drop: float) -> Measured:
        return Measured(name, 0.9, drop, (drop, drop), latency, (latency, latency), size, "")

    held = [one("a", 10, 0.4, 0.5), one("b", 10, 0.5, 0.6), one("c", 20, 0.3, 0.5), one("d", 30, 0.9, 0.0)]
    assert front(held) == ("a", "c", "d")


def test_the_ladder_tells_what_each_step_changed(capsys: pytest.CaptureFixture[str]) -> None:
    from penstock.cli import _search

    measure, _ = measuring(lambda one: -0.0 if one.settings.correct_bias == "empirical" else 5.0, lambda one: 0.4)
    wanted = SearchSettings()
    _search.show(climb(QuantizeSettings(), wanted, [], measure, lambda one: ()), wanted, "best.onnx")
    text = capsys.readouterr().out
    rows = text[text.index("────") :].split("static")  # a cell that is folded goes on in the next lines
    first, second = (" ".join(row.split()) for row in rows[1:3])
    assert first.startswith("the start") and "85.00" in first and "+5.00 (+4.90 to" in first and "drops" in first
    assert "correct_bias =" in second and "empirical" in second and "0.40 (0.39–0.41)" in second
    assert "+0.00 (-0.10 to" in second and "CHOSEN" in second, "no zero has a minus"


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
    assert not any(rung.reused for rung in first.rungs)
    again = searching.search(model, tmp_path / "again.onnx", data, wanted, bench=FAST)
    assert all(rung.reused for rung in again.rungs)
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "best.onnx").read_bytes()


def test_the_same_file_under_another_name_is_not_measured_again(
    tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PENSTOCK_CACHE", str(tmp_path / "cache"))
    quantize = quantize_stage.quantize

    def in_vain(model: Path, batches: object, settings: QuantizeSettings, into: Path) -> object:
        return quantize(model, batches, dataclasses.replace(settings, quantize_outputs=False), into)  # type: ignore[arg-type]

    monkeypatch.setattr(quantize_stage, "quantize", in_vain)
    model, data = tiny.save(tiny.conv(classes=10), tmp_path / "m.onnx"), DataSettings(data=_digits(tmp_path))
    wanted = SearchSettings(max_drop=100.0, objective="size", evaluations=2)
    rungs = searching.search(model, tmp_path / "best.onnx", data, wanted, bench=FAST).rungs
    assert [rung.same_as for rung in rungs] == ["", "static", ""] and rungs[1].name == "static, outputs quantized"
    assert rungs[1].refused == "the same file as static" and rungs[1].score == rungs[0].score


def test_a_search_notices_that_weights_beside_the_model_are_others(
    tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PENSTOCK_CACHE", str(tmp_path / "cache"))
    data = DataSettings(data=_digits(tmp_path))
    wanted = SearchSettings(max_drop=100.0, objective="size", evaluations=1)
    made = []
    for scale in (1.0, 1.0, 3.0):
        model = tiny.conv(classes=10)
        for tensor in model.graph.initializer:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(scale), tensor.name))
        options = {"save_as_external_data": True, "location": "m.data", "size_threshold": 0}
        (tmp_path / "m.data").unlink(missing_ok=True)
        onnx.save_model(model, tmp_path / "m.onnx", **options)
        found = searching.search(tmp_path / "m.onnx", tmp_path / "best.onnx", data, wanted, bench=FAST)
        made.append((found.rungs[0].reused, (tmp_path / "best.onnx").read_bytes()))
    assert [reused for reused, _ in made] == [False, True, False]
    assert made[0][1] == made[1][1] != made[2][1]


def _digits(folder: Path) -> str:
    import numpy as np

    rng = np.random.default_rng(0)
    path = folder / "data.npz"
    np.savez(path, x=rng.normal(size=(240, 3, 8, 8)).astype(np.float32), y=rng.integers(0, 10, 240))
    return str(path)


def _long_tailed(tiny: ModuleType, folder: Path) -> tuple[Path, str]:
    """Save a net and data that 8 bits hold badly; the labels are the net's own answers."""
    import numpy as np
    from onnx import numpy_helper

    rng = np.random.default_rng(0)
    x = rng.normal(size=(4000, 3, 10, 10)).astype(np.float32)
    x *= np.exp(rng.normal(size=(4000, 1, 1, 1))).astype(np.float32)
    model = tiny.branching()
    held = next(tensor for tensor in model.graph.initializer if tensor.name == "b4")
    middle = np.median(tiny.oracle(model, {"x": x})[0], axis=0)
    held.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(held) - middle, "b4"))  # no answer is always the best
    scores = tiny.oracle(model, {"x": x})[0]
    best = np.sort(scores, axis=1)
    near = rng.permutation(np.argsort(best[:, -1] - best[:, -2])[:800])  # little error turns the answer
    np.savez(folder / "data.npz", x=x[near], y=scores[near].argmax(axis=1))
    return tiny.save(model, folder / "m.onnx"), str(folder / "data.npz")


def test_an_interrupted_search_goes_on_with_layers_in_float_and_in_16_bits(
    tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PENSTOCK_CACHE", str(tmp_path / "cache"))
    model, path = _long_tailed(tiny, tmp_path)
    data, base = DataSettings(data=path), QuantizeSettings(guard=False, target_cpu="vnni")
    wanted = SearchSettings(max_drop=5.0, objective="size", evaluations=24)
    made: list[str] = []

    def quantizing(*given: object) -> object:
        made.append(repr(given[2]))
        if len(made) == 7:
            raise KeyboardInterrupt
        return quantize(*given)

    quantize = quantize_stage.quantize
    monkeypatch.setattr(quantize_stage, "quantize", quantizing)
    with pytest.raises(KeyboardInterrupt):
        searching.search(model, tmp_path / "best.onnx", data, wanted, quantize=base, bench=FAST)
    assert not (tmp_path / "best.onnx").exists()
    found = searching.search(model, tmp_path / "best.onnx", data, wanted, quantize=base, bench=FAST)
    before, after = found.rungs[:6], found.rungs[6:]
    assert all(rung.reused or rung.latency is not None for rung in before), "but for the best, which is timed at last"
    assert sum(rung.reused for rung in before) >= 5 and not any(rung.reused for rung in after)
    assert len(made) - 1 == len({*made}) == len(found.rungs) <= 24, "none is made twice but the one that was cut off"
    names = [rung.name for rung in found.rungs]
    assert any("in int16" in name for name in names) and any("in float" in name for name in names), names
    assert all(rung.refused or rung.drop is not None for rung in found.rungs)
    ladder = {rung.name: rung for rung in found.rungs}
    one = next(rung for name, rung in ladder.items() if name.endswith("1 layer in int16"))
    assert one.changed.startswith("int16: ") and list(one.settings["int16_layers"]) == [one.changed[7:]]
    again = searching.search(model, tmp_path / "again.onnx", data, wanted, quantize=base, bench=FAST)
    assert all(rung.reused or "can't be made" in rung.refused for rung in again.rungs)
    assert len({*made}) == len(found.rungs) and again.chosen == found.chosen


def _products(tiny: ModuleType, folder: Path) -> tuple[Path, DataSettings, EvaluateSettings]:
    """Save a net of MatMuls, data for it, and a measure that any answer pleases."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(240, 5, 16)).astype(np.float32)
    np.savez(folder / "data.npz", x=x, y=rng.integers(0, 4, 240))
    (folder / "pleased.py").write_text("def any(outputs, labels):\n    return (labels >= 0).astype(float)\n")
    measure = EvaluateSettings(metric=f"{folder / 'pleased.py'}:any")
    return tiny.save(tiny.products(), folder / "m.onnx"), DataSettings(data=str(folder / "data.npz")), measure


@pytest.mark.parametrize(
    ("consumer", "backend", "plain", "rounding"),
    [
        ("ort-cpu", "onnxruntime", {"session.qdq_matmulnbits_accuracy_level": "1"}, "4"),
        ("openvino", "openvino", {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}, "32"),
    ],
)
def test_models_are_measured_where_they_will_run_and_in_each_way(
    tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    consumer: str, backend: str, plain: dict[str, str], rounding: str,
) -> None:  # fmt: skip
    module = pytest.importorskip(f"penstock.backends.{backend}")
    if module.available():
        pytest.skip(f"{backend} is not installed")
    monkeypatch.setenv("PENSTOCK_CACHE", str(tmp_path / "cache"))
    model, data, measure = _products(tiny, tmp_path)
    opened: list[Deployment] = []
    load = module.load

    def loading(model: object, deployment: Deployment) -> object:
        opened.append(deployment)
        return load(model, deployment)

    monkeypatch.setattr(module, "load", loading)
    wanted = SearchSettings(max_drop=100.0, objective="size", evaluations=7)
    found = searching.search(
        model, tmp_path / "best.onnx", data, wanted, quantize=QuantizeSettings(consumer=consumer), bench=FAST,
        evaluate=measure,
    )  # fmt: skip
    assert found.backend == backend
    assert {"float", "static", "weight-only"} <= {one.variant for one in opened}, "scored and timed there"
    two = {rung.name: rung for rung in found.rungs if "weight-only" in rung.name}
    assert [*two] == ["weight-only", "weight-only+int8-activations"]
    other = dict.fromkeys(plain, rounding)
    assert [rung.options for rung in two.values()] == [plain, other]
    given = {one.variant: [*one.options.values()] for one in opened if "weight-only" in one.variant}
    assert given == {"weight-only": [*plain.values()], "weight-only+int8-activations": [rounding]}
    assert found.options == two[found.chosen].options, "the smallest are these two"


@pytest.mark.parametrize("consumer", ["integer-only", "tensorrt"])
def test_no_search_for_what_nothing_here_can_run(consumer: str, tiny: ModuleType, tmp_path: Path) -> None:
    model = tiny.save(tiny.conv(), tmp_path / "m.onnx")
    with pytest.raises(UsageError, match=f"no backend here stands for '{consumer}'") as error:
        searching.search(
            model, tmp_path / "q.onnx", DataSettings(data="digits"), quantize=QuantizeSettings(consumer=consumer)
        )
    assert error.value.where == "--consumer" and "ort-cpu or openvino" in error.value.do


def test_a_search_for_a_runtime_that_is_not_there_says_how_to_get_it(
    tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from penstock.backends import openvino

    monkeypatch.setattr(openvino, "available", lambda: "pip install 'penstock[openvino]'")
    model = tiny.save(tiny.conv(), tmp_path / "m.onnx")
    with pytest.raises(MissingError, match="'openvino', on which a search") as error:
        searching.search(
            model, tmp_path / "q.onnx", DataSettings(data="digits"), quantize=QuantizeSettings(consumer="openvino")
        )
    assert error.value.do == "pip install 'penstock[openvino]'"


@pytest.mark.parametrize(
    ("flags", "shown"),
    [
        (["--method", "dynamic"], "--method has no effect in a search: a search begins with static"),
        (["--method", "static"], "--method has no effect in a search: a search begins with static"),
        (["--also-methods", "fp16"], "--also-methods has no effect in a search"),
        (["--no-quantize"], "--no-quantize has no effect in a search"),
        (["--calibration", "random"], "--calibration has no effect in a search"),
        (["--sensitivity", "3"], "--sensitivity has no effect in a search"),
        (["--baseline", "x"], "--baseline has no effect in a search: a search holds every model against the float one"),
        (["--throughput-batch", "8"], "--throughput-batch has no effect in a search"),
        (["--no-footprint"], "--no-footprint has no effect in a search"),
    ],
)
def test_flags_that_a_search_does_not_read_are_refused(
    flags: list[str], shown: str, tiny: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny.save(tiny.conv(), tmp_path / "m.onnx")
    assert cli(["search", str(model), "--data", "digits", "-o", str(tmp_path / "q.onnx"), *flags]) == 2
    told = capsys.readouterr().err
    assert shown in " ".join(told.split()) and "leave it out" in told and "Traceback" not in told


def test_a_search_offers_only_what_it_reads(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli(["search", "--help"]) == 0
    text = capsys.readouterr().out
    assert "--consumer" in text and "--bench-seconds" in text
    for flag in (
        "--method TEXT",
        "--also-methods",
        "--no-quantize ",
        "--calibration auto",
        "--baseline",
        "--footprint",
    ):
        assert flag not in text, flag


def test_every_setting_of_quantize_is_read_by_a_method_of_a_search_or_refused() -> None:
    methods = ("static", *searching.OTHERS)
    read = {name for method in methods for name in registry.load("quantizers", method).READS}  # type: ignore[attr-defined]
    ours = {"exclude", "calibration_batch"}
    assert {field.name for field in dataclasses.fields(QuantizeSettings)} - read - ours == UNREAD["quantize"].keys() - {
        "sensitivity"
    }
    assert UNREAD["bench"].keys() <= {field.name for field in dataclasses.fields(BenchSettings)}


def test_what_a_settings_file_says_for_a_build_is_passed_over(tiny: ModuleType, tmp_path: Path) -> None:
    model = tiny.save(tiny.conv(), tmp_path / "m.onnx")
    base, data = QuantizeSettings(method="fp16"), DataSettings()
    with pytest.raises(UsageError, match="--method has no effect"):
        searching.search(model, tmp_path / "q.onnx", data, quantize=base)
    with pytest.raises(UsageError, match="needs labelled data"):
        searching.search(model, tmp_path / "q.onnx", data, quantize=base, asked={"quantize": ["ranges"]})


@pytest.mark.parametrize(
    ("value", "text"), [(-0.0, "+0.00"), (-0.004, "+0.00"), (0.0, "+0.00"), (-0.006, "-0.01"), (1.26, "+1.26")]
)
def test_a_drop_of_nothing_has_no_sign_of_its_own(value: float, text: str) -> None:
    assert _points(value) == text


def test_without_labels_there_is_nothing_to_search_by(tiny: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs labelled data"):
        searching.search(tiny.save(tiny.conv(), tmp_path / "m.onnx"), tmp_path / "q.onnx", DataSettings())

"""Calibration samples on their way to a quantizer: what a model is tried on, how they are cut, what is said."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from onnx import helper, numpy_helper

from penstock import api, calibration, running, trial
from penstock.cli import run
from penstock.data import DataSettings
from penstock.feeds import Feeds
from penstock.quantization import outliers
from penstock.stages.quantize import QuantizeSettings

DEEP = 150  # layers
RNG = np.random.default_rng(0)


def rows(count: int) -> np.ndarray:
    return RNG.normal(size=(count, 6)).astype(np.float32)


@pytest.mark.parametrize(
    ("batch", "count", "sizes"),
    [("n", 64, [1, 32, 24]), ("n", 73, [1, 32]), ("n", 4, [1, 3]), (4, 64, [4])],
)
def test_a_model_is_tried_on_a_batch_of_each_size(
    batch: str | int, count: int, sizes: list[int], tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []

    def survive(model: Path, runs: Sequence[Mapping[str, np.ndarray]], where: str) -> None:
        tried.extend(len(feeds["x"]) for feeds in runs)

    monkeypatch.setattr(trial, "survive", survive)
    np.savez(tmp_path / "d.npz", x=rows(count))
    model = tiny.save(tiny.mlp(batch), tmp_path / "m.onnx")
    api.quantize(model, tmp_path / "q.onnx", QuantizeSettings(method="ort"), data=DataSettings(str(tmp_path / "d.npz")))
    assert tried == sizes


def test_what_fails_on_a_sample_that_was_not_tried_is_an_error(
    tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tiny.save(tiny.gather(), tmp_path / "m.onnx")
    ids = RNG.integers(0, 11, (150, 4))
    np.savez("d.npz", ids=ids)
    numbers = running.role_feeds(path, DataSettings("d.npz"), 0).calibrate.numbers
    assert numbers is not None
    ids[numbers[40]] = 4000  # beyond the table, in the second batch
    np.savez("d.npz", ids=ids)
    tried = calibration.tried(running.role_feeds(path, DataSettings("d.npz"), 0).calibrate, 32)
    assert all((feeds["ids"] < 11).all() for feeds in tried)
    assert run(["quantize", "m.onnx", "--data", "d.npz", "-o", "q.onnx", "--json", "-q"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["id"] == "run-failed" and error["where"] == "m.onnx" and "see that the samples suit" in error["do"]
    assert not Path("q.onnx").exists()


def test_batches_of_a_model_of_fixed_batch_have_that_size(tiny: ModuleType, tmp_path: Path) -> None:
    path = tiny.save(tiny.mlp(1), tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", x=rows(80))
    batches = calibration.of_feeds(running.role_feeds(path, DataSettings(str(tmp_path / "d.npz")), 0).calibrate, 32)
    some = batches.some(16)
    assert (batches.size, some.count, sum(len(batch["x"]) for batch in some)) == (1, 16, 16)


def noted(path: Path, data: Path, **settings: object) -> tuple[list[str], dict]:
    done = api.quantize(path, path.with_name("q.onnx"), QuantizeSettings(**settings), data=DataSettings(str(data)))  # type: ignore[arg-type]
    return list(done.facts.get("notes") or []), dict(done.facts)  # type: ignore[call-overload]


@pytest.mark.parametrize("ranges", ["mse", "minmax", "moving-average"])
def test_what_fills_up_a_batch_counts_for_nothing(ranges: str, tiny: ModuleType, tmp_path: Path) -> None:
    """A model of fixed batch sees what one of dynamic batch sees of the same samples."""
    x = rows(8)  # one of which is golden: a batch of 6, and one of a sample and five copies
    x *= np.linspace(1, 3, 8, dtype=np.float32)[:, None]
    np.savez(tmp_path / "d.npz", x=x)
    found = []
    for batch in (6, "n"):
        path = tiny.save(tiny.mlp(batch), tmp_path / "m.onnx")
        settings = {"ranges": ranges, "calibration_batch": 6, "correct_bias": "none", "equalize": False, "guard": False}
        notes, facts = noted(path, tmp_path / "d.npz", **settings)
        found.append((notes, facts["histograms"], [one["makes"] for one in facts["layers"]]))
    assert found[0] == found[1]
    assert found[0][0][0].startswith("only 7 calibration samples of the 8 that there are: leaving out one")
    assert ranges != "mse" or sum(found[0][1]["x"]["counts"]) == 7 * 6


@pytest.mark.parametrize(("batch", "place"), [(4, 64), (4, 7), (1, 0), (1, 30), (1, 64), (None, 64)])
def test_a_sample_that_stands_out_is_left_out_of_a_fixed_batch_too(batch: int | None, place: int) -> None:
    """Also where it fills up the last batch, and where its batch holds nothing else."""
    x = rows(65)
    x[place] = 500
    given = Feeds({}, 65, None, batch, lambda start, stop: {"x": x[start:stop]})
    batches = calibration.of_feeds(given, 4)
    found = outliers.find(batches)
    assert [one.sample for one in found] == [place]
    cleaned = list(outliers.without(batches, found))
    assert [len(one["x"]) for one in cleaned] == [len(one["x"]) for one in batches]
    assert max(float(one["x"].max()) for one in cleaned) < 10


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "static"},
        {"method": "ort"},
        {"method": "fp16"},
        {"method": "bf16", "consumer": "openvino"},
        {"method": "weight-only", "block_size": 16, "least_weights": 0},
    ],
    ids=lambda settings: settings["method"],
)
def test_few_samples_are_told_by_every_method_that_looks_at_them(
    settings: dict, tiny: ModuleType, tmp_path: Path
) -> None:
    path = tiny.save(tiny.mlp(), tmp_path / "m.onnx")
    told = {}
    for count in (9, 40):
        np.savez(tmp_path / "d.npz", x=rows(count))
        notes, _ = noted(path, tmp_path / "d.npz", **settings)
        told[count] = [note for note in notes if note.startswith("only ")]
    assert len(told[9]) == 1 and not told[40]
    assert told[9][0].startswith("only 8 calibration samples of the 9 that there are")
    assert told[9][0].endswith("give 32 or more")


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "dynamic", "force_small": True},
        {"method": "weight-only", "weight_rounding": "rtn", "least_weights": 0, "block_size": 16},
    ],
)
def test_a_method_that_looks_at_no_samples_says_nothing_of_them(
    settings: dict, tiny: ModuleType, tmp_path: Path
) -> None:
    np.savez(tmp_path / "d.npz", x=rows(9))
    path = tiny.save(tiny.mlp(), tmp_path / "m.onnx")
    assert not [note for note in noted(path, tmp_path / "d.npz", **settings)[0] if "sample" in note]


def test_how_far_samples_reach_is_kept_from_the_check() -> None:
    x = np.array([[1.0, -3], [2, 0], [0, 0], [-7, 7.5], [0.25, 0]], np.float32)
    passes = []

    def again() -> Iterator[dict[str, np.ndarray]]:
        passes.append(1)
        yield {"x": x[:3], "n": np.array([1, 2, 3])}
        yield {"x": x[3:], "n": np.array([4, 5])}

    batches = calibration.Batches(again, again, 5, size=3)
    calibration.check(batches)
    assert {name: array.tolist() for name, array in calibration.reaches(batches).items()} == {"x": [3, 2, 0, 7.5, 0.25]}
    assert len(passes) == 1
    some = batches.some(3)
    assert calibration.reaches(some)["x"].tolist() == [3, 2, 0] and len(passes) == 2


@pytest.mark.parametrize("width", [4, 64])
def test_a_result_that_is_larger_than_the_model_is_told(width: int, tiny: ModuleType, tmp_path: Path) -> None:
    """As it is of many small layers: a scale and a pair of Q/DQ take more than a byte instead of four saves."""
    nodes = [helper.make_node("MatMul", [f"x{i}", f"w{i}"], [f"x{i + 1}"], f"m{i}") for i in range(DEEP)]
    held = [numpy_helper.from_array(np.eye(width, dtype=np.float32), f"w{i}") for i in range(DEEP)]
    ends = [helper.make_tensor_value_info(name, 1, ["n", width]) for name in ("x0", f"x{DEEP}")]
    model = helper.make_model(
        helper.make_graph(nodes, "g", ends[:1], ends[1:], held),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    path = tiny.save(model, tmp_path / "m.onnx")
    plain = QuantizeSettings(smooth=False, equalize=False, guard=False, ranges="minmax", rounding="nearest")
    done = api.quantize(path, tmp_path / "q.onnx", plain)
    told = [str(note) for note in done.facts["notes"] if "larger than the model" in str(note)]
    assert bool(told) == (width == 4) == (done.size_bytes > path.stat().st_size)

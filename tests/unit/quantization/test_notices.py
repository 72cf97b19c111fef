"""Calibration samples that can't be right are refused or told: constants, copies, two scales, pixels, another scale."""

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from penstock import api, calibration
from penstock.cli import run
from penstock.data import DataSettings
from penstock.errors import InputError
from penstock.feeds import Feeds
from penstock.quantization import notices
from penstock.stages.quantize import QuantizeSettings, quantize

RNG = np.random.default_rng(0)


def of(x: np.ndarray, size: int = 32) -> calibration.Batches:
    return calibration.of_list([{"x": x[start : start + size]} for start in range(0, len(x), size)])


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("method", ["static", "ort", "fp16", "weight-only"])
@pytest.mark.parametrize("value", [0.0, -1.5])
def test_samples_of_one_number_everywhere_are_refused(
    value: float, method: str, tiny: ModuleType, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    tiny.save(tiny.mlp(), tmp_path / "m.onnx")
    np.savez("d.npz", x=np.full((64, 6), value, np.float32))
    more = ["--least-weights", "0", "--block-size", "16"] if method == "weight-only" else []
    words = ["quantize", "m.onnx", "--data", "d.npz", "-o", "q.onnx", "--json", "-q", "--method", method, *more]
    assert run(words) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["id"] == "constant-samples" and f"'x' is {value:g} everywhere" in error["what"]
    assert "--scale" in error["do"] and not Path("q.onnx").exists()


def test_constants_are_refused_only_where_no_input_varies() -> None:
    zeros, ids = np.zeros((8, 4), np.float32), np.arange(32).reshape(8, 4)
    with pytest.raises(InputError, match="'a' is 0, 'b' is 0 everywhere"):
        calibration.check([{"a": zeros, "b": zeros.astype(np.int64)}])
    calibration.check([{"a": zeros, "b": ids}])
    calibration.check([{"a": zeros}, {"a": zeros + 1}])  # each of the two batches is constant by itself
    calibration.check([{"a": np.ones((1, 1), np.float32)}])  # one number is all that there is
    made_up = Feeds({"kind": "seeded"}, 8, None, None, lambda start, stop: {"a": zeros[start:stop]})
    calibration.check(calibration.of_feeds(made_up, 4))


@pytest.mark.parametrize("batch", [None, 5])
def test_copies_of_one_sample_are_told(batch: int | None) -> None:
    one = normal(1, 6)
    for x, told in (
        (np.repeat(one, 12, 0), True),
        (np.concatenate([np.repeat(one, 11, 0), one + 1]), False),
        (np.concatenate([one + 1, np.repeat(one, 11, 0)]), False),
        (one, False),  # which the number of samples tells
    ):
        given = Feeds({}, len(x), None, batch, lambda start, stop, x=x: {"x": x[start:stop]})
        found = notices.alike(calibration.of_feeds(given, 5))
        assert bool(found) is told
        assert not told or found == [
            "all 12 calibration samples are copies of one: they tell no more than that one does"
        ]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("half of them times 255", True),
        ("four of them times 255", True),
        ("one in ten by 255", True),
        ("one that stands out", False),
        ("as they are", False),
        ("some black", False),
        ("loud and quiet", False),
        ("few", False),
    ],
)
def test_samples_of_two_scales_are_told(name: str, told: bool) -> None:
    x = normal(100, 3, 4, 4)
    factor = np.ones(100, np.float32)
    if name.startswith("half"):
        factor[::2] = 255
    elif name.startswith("four"):
        factor[[3, 30, 60, 90]] = 255
    elif name.startswith("one in ten"):
        factor[::10] = 1 / 255
    elif name == "one that stands out":
        factor[5] = 255
    elif name == "some black":
        factor[:40] = 0
    elif name == "loud and quiet":
        factor = np.geomspace(1e-3, 1, 100).astype(np.float32)
    elif name == "few":
        x, factor = x[:6], np.array([1, 255] * 3, np.float32)
    found = notices.two_scales(of(x * factor.reshape(-1, 1, 1, 1)))
    assert bool(found) is told
    if name.startswith("half"):
        assert found[0].startswith("the samples of 'x' are of two scales: 50 reach ") and "50 reach" in found[0][40:]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("less 127", True),
        ("less 128, channels last", True),
        ("normalised", False),
        ("signs", False),
        ("less 127, halved", False),
        ("rows less 127", False),  # whatever has been quantized looks so
        ("deeper", False),
    ],
)
def test_pixels_less_their_middle_are_told(name: str, told: bool) -> None:
    pixels = RNG.integers(0, 256, (40, 3, 16, 16)).astype(np.float32)
    x = {
        "less 127": pixels - 127,
        "less 128, channels last": pixels.transpose(0, 2, 3, 1) - 128,
        "normalised": (pixels - 127) / 128,
        "signs": np.sign(pixels - 127),
        "less 127, halved": (pixels - 127) / 2,
        "rows less 127": pixels.reshape(40, -1) - 127,
        "deeper": 4 * (pixels - 127),
    }[name]
    found = notices.raw_pixels(of(x))
    assert bool(found) is told and all("as raw pixels less their middle are" in one for one in found)


@pytest.mark.parametrize(
    ("factor", "offset", "said"),
    [(1, 0, ""), (1 / 3, 0, ""), (2, 1, ""), (255, 0, "times as much as"), (1 / 500, 0, "times as much as"),
     (1, 10, "standard deviations away from")],
)  # fmt: skip
@pytest.mark.parametrize("batch", ["n", 1])
def test_data_of_another_scale_than_the_training_data_is_told(
    batch: str | int, factor: float, offset: float, said: str, tiny: ModuleType, tmp_path: Path
) -> None:
    """The tiny net's convolution makes of normal inputs what its BatchNormalization remembers, about."""
    path = tiny.save(tiny.conv(batch), tmp_path / "m.onnx")
    found = notices.unlike_training(path, of(normal(40, 3, 8, 8) * np.float32(factor) + np.float32(offset), 1))
    assert len(found) == (1 if said else 0)
    assert all(said in one and "'c'" in one and "--scale, --mean, --std" in one for one in found)


def test_a_handful_of_flat_samples_is_no_other_scale(tiny: ModuleType, tmp_path: Path) -> None:
    path = tiny.save(tiny.conv(), tmp_path / "m.onnx")
    assert not notices.unlike_training(path, of(normal(7, 3, 8, 8) / 500))
    assert not notices.unlike_training(tiny.save(tiny.mlp(), tmp_path / "n.onnx"), of(255 * normal(40, 6)))  # none


@pytest.mark.parametrize("method", ["static", "ort", "fp16"])
def test_every_method_tells_what_is_odd_about_data(method: str, tiny: ModuleType, tmp_path: Path) -> None:
    path = tiny.save(tiny.conv(), tmp_path / "m.onnx")
    pixels = RNG.integers(0, 256, (64, 3, 8, 8)).astype(np.float32)
    pixels[::2] /= 255
    np.savez(tmp_path / "d.npz", x=pixels)
    settings, data = QuantizeSettings(method=method), DataSettings(str(tmp_path / "d.npz"))
    notes = list(map(str, api.quantize(path, tmp_path / "q.onnx", settings, data=data).facts["notes"]))  # type: ignore[arg-type]
    for words in ("raw pixels", "are of two scales", "of another scale than the data that the model was trained on"):
        assert sum(words in note for note in notes) == 1, notes
    plain = list(map(str, api.quantize(path, tmp_path / "q.onnx", settings).facts["notes"]))  # type: ignore[arg-type]
    assert not [note for note in plain if "scale" in note]


def test_sound_samples_are_told_nothing(tiny: ModuleType, tmp_path: Path) -> None:
    facts = quantize(
        tiny.save(tiny.conv(), tmp_path / "m.onnx"), of(normal(64, 3, 8, 8)), QuantizeSettings(target_cpu="vnni"),
        tmp_path / "q.onnx",
    )  # fmt: skip
    assert facts["notes"] == []


def test_a_recurrent_layer_in_float_is_told(tiny: ModuleType, tmp_path: Path) -> None:
    """Static quantization has integers for the last layer alone; most of the weights are the LSTM's."""
    rng = np.random.default_rng(0)
    held = {"w": (1, 128, 16), "r": (1, 128, 32), "last": (32, 4)}
    nodes = [
        helper.make_node("LSTM", ["x", "w", "r"], ["", "h", ""], "lstm", hidden_size=32),
        helper.make_node("Squeeze", ["h", "axes"], ["s"], "squeeze"),
        helper.make_node("MatMul", ["s", "last"], ["y"], "last"),
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [8, "n", 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(rng.normal(size=shape).astype(np.float32) / 4, name) for name, shape in held.items()]
        + [numpy_helper.from_array(np.array([0], np.int64), "axes")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    rows = calibration.of_list([{"x": rng.normal(size=(8, 4, 16)).astype(np.float32)} for _ in range(10)])
    facts = quantize(tiny.save(model, tmp_path / "m.onnx"), rows, QuantizeSettings(), tmp_path / "q.onnx")
    assert "LSTM" in facts["operators_left_in_float"]
    told = next(note for note in facts["notes"] if note.startswith("LSTM stays in float, with 98% of the weights"))
    assert "--method dynamic" in told

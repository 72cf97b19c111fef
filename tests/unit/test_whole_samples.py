"""Models whose inputs don't count samples along the first axis, by a data function that yields what a run reads."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from penstock import api
from penstock.data import DataSettings
from penstock.errors import InputError
from penstock.stages.quantize import QuantizeSettings

BODY = """
import numpy as np
from penstock.data import Whole

def speech():
    random = np.random.RandomState(0)
    for _ in range(24):
        state = np.tanh(random.standard_normal((2, 1, 128)) / 2).astype(np.float32)
        sound = (random.standard_normal((1, 576)) / 10).astype(np.float32)
        yield Whole({"input": sound, "state": state, "sr": np.array(16_000)})

def continuation():
    random = np.random.RandomState(0)
    for _ in range(24):
        words = {"input_ids": random.randint(0, 1000, (1, 8)), "position_ids": np.arange(8, 16)[None],
                 "attention_mask": np.ones((1, 16))}
        past = {f"past_{i}": random.standard_normal((2, 1, 4, 8, 8)).astype(np.float32) for i in range(5)}
        yield Whole({name: array.astype(np.int32) for name, array in words.items()} | past)
"""

SEQUENCES = """
import numpy as np
from penstock.data import Whole

def rows():
    random = np.random.RandomState(1)
    for i in range(70):
        yield Whole({"x": (random.standard_normal((100, 6)) * (1 + i)).astype(np.float32)})

def labelled():
    for i in range(40):
        yield Whole({"x": np.ones((100, 6), np.float32)}), [i % 3]

def broken():
    for i in range(40):
        yield Whole({"x": np.full((100, 6), np.inf if i == 13 else i, np.float32)})
"""


def test_all_rows_of_all_runs_are_seen(tiny: ModuleType, tmp_path: Path) -> None:
    """A run of a hundred rows is one sample, and no rows of others stand for it."""
    (tmp_path / "seq.py").write_text(SEQUENCES)
    model = tiny.save(tiny.mlp(), tmp_path / "m.onnx")
    data = DataSettings(data=f"{tmp_path / 'seq.py'}:rows")
    settings = QuantizeSettings(ranges="minmax", guard=False, equalize=False)
    done = api.quantize(model, tmp_path / "q.onnx", settings, data=data)
    assert done.facts["calibration_samples"] == 62 and done.facts["calibration_batch"] == 1
    feeds = api.role_feeds(Path(model), data, 0).calibrate
    seen = np.concatenate([one["x"] for _, one in feeds.batches(32)])
    assert seen.shape == (6200, 6)
    layers = done.facts["layers"]
    first = next(layer["reads"][0] for layer in layers if layer["reads"])  # type: ignore[index,union-attr,call-overload]
    assert first["seen_low"] == pytest.approx(seen.min()) and first["seen_high"] == pytest.approx(seen.max())  # type: ignore[index,call-overload]
    found = api.verify(tmp_path / "q.onnx", str(model), data=data)
    assert all(one.sqnr_db is not None and one.sqnr_db > 25 for one in found.outputs.values()), found.outputs


def test_a_run_that_is_not_finite_is_named(tiny: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "seq.py").write_text(SEQUENCES)
    with pytest.raises(InputError, match="batch 13"):
        api.quantize(
            tiny.save(tiny.mlp(), tmp_path / "m.onnx"), tmp_path / "q.onnx",
            data=DataSettings(data=f"{tmp_path / 'seq.py'}:broken"),
        )  # fmt: skip


def test_top_1_of_a_run_of_many_rows_is_no_score(tiny: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "seq.py").write_text(SEQUENCES)
    with pytest.raises(InputError, match="one row of class scores"):
        api.evaluate(
            [tiny.save(tiny.mlp(), tmp_path / "m.onnx")], data=DataSettings(data=f"{tmp_path / 'seq.py'}:labelled")
        )


@pytest.mark.parametrize(
    ("name", "function", "method"),
    [("silero-vad-if", "speech", "dynamic"), ("tiny-gpt2-genai", "continuation", "static")],
)
def test_a_model_with_a_state_is_quantized_and_verified(
    shared: Path, tmp_path: Path, name: str, function: str, method: str
) -> None:
    (tmp_path / "mine.py").write_text(BODY)
    model, data = shared / "models" / name / "model.onnx", DataSettings(data=f"{tmp_path / 'mine.py'}:{function}")
    api.quantize(model, tmp_path / "int8.onnx", QuantizeSettings(method=method), data=data)
    found = api.verify(tmp_path / "int8.onnx", str(model), data=data)
    assert found.outcome.passed, found.outcome.reason
    assert found.samples == 3
    levels = [one.sqnr_db for one in found.outputs.values()]
    assert all(level is not None and level > 20 for level in levels)
    assert not all(level == float("inf") for level in levels)  # it is another model
    worst = [one.worst_sample for one in found.outputs.values() if one.worst_sample is not None]
    assert worst and max(worst) < 3  # a sample's number, not that of a row of an output
    with pytest.raises(InputError):  # by the signature alone its inputs don't suit it
        api.verify(tmp_path / "int8.onnx", str(model))

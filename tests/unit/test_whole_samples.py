"""Models whose inputs don't count samples along the first axis, by a data function that yields what a run reads."""

from __future__ import annotations

from pathlib import Path

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

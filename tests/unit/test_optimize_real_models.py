"""Real models give the same numbers after optimizing, in a runtime of another make than the passes."""

import os
from pathlib import Path

import numpy as np
import pytest

from penstock.stages.optimize import MAIN, OptimizeSettings, optimize

SHARED = Path(os.environ.get("PENSTOCK_SHARED", Path(__file__).parents[3] / "shared")) / "models"
SIZES = {"magika-v3-3": 2, "silero-vad-if": 2, "ort-scan": 3}
# nodes after optimizing; batch-normalized models lose a node for each
NAMES = [
    "mnist-8", "yolox-nano", "magika-v3-3", "super-resolution-10", "neudet-v5-fp32", "silero-vad-if", "ort-scan",
    "ultraface-rfb-320", "motor-fault-extdata", "motor-fault-int8-qdq", "gtcrn-simple", "byte-bidi-lstm",
    "resnet-tiny-fp32-extdata", "neudet-v5-int8-qlinear", "onnxscript-functions-if", "mlp-int8-dyn",
]  # fmt: skip


def feeds(session: object, name: str) -> dict[str, np.ndarray]:
    if name == "silero-vad-if":
        audio = np.random.default_rng(0).normal(0, 0.1, (1, 576)).astype(np.float32)
        return {"input": audio, "state": np.zeros((2, 1, 128), np.float32), "sr": np.array(16000, np.int64)}
    rng = np.random.default_rng(0)
    made = {}
    for info in session.get_inputs():
        shape = [dim if isinstance(dim, int) else SIZES.get(name, 2) for dim in info.shape]
        if info.type in ("tensor(float)", "tensor(float16)", "tensor(double)"):
            kind = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}[info.type]
            made[info.name] = rng.random(shape).astype(kind)
        elif info.type == "tensor(bool)":
            made[info.name] = np.ones(shape, bool)
        else:
            made[info.name] = rng.integers(1, 50, shape).astype(info.type[7:-1])
    return made


@pytest.mark.shared
@pytest.mark.parametrize("name", NAMES)
def test_same_outputs_and_no_more_nodes(name: str, tmp_path: Path) -> None:
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
    source = SHARED / name / "model.onnx"
    result = optimize(source, OptimizeSettings(), tmp_path)
    assert result.settled
    assert result.nodes_after <= result.nodes_before
    assert not [record.undone for record in result.passes if record.undone]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    sessions = [
        onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        for path in (source, tmp_path / MAIN)
    ]
    given = feeds(sessions[0], name)
    before, after = (session.run(None, given) for session in sessions)
    for old, new in zip(before, after, strict=True):
        assert old.shape == new.shape and old.dtype == new.dtype
        if old.dtype.kind in "fc" and old.size:
            scale = max(float(np.abs(old).max()), 1e-12)
            assert float(np.abs(old.astype(np.float64) - new).max()) / scale <= 1e-4
        else:
            np.testing.assert_array_equal(old, new)


@pytest.mark.shared
def test_batch_normalizations_go(tmp_path: Path) -> None:
    result = optimize(
        SHARED / "ultraface-rfb-320" / "model.onnx",
        OptimizeSettings(passes=("unlist-initializers", "fold-batchnorm")),
        tmp_path,
    )
    assert sum(record.changes for record in result.passes if record.name == "fold-batchnorm") == 35
    assert result.nodes_after == result.nodes_before - 35

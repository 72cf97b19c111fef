"""Real models compute the same in the lowest opset, in the newest that ONNX Runtime runs, and after up and back."""

from pathlib import Path

import onnx
import pytest

from conftest import SHARED
from penstock.stages.convert import ConvertSettings, convert

NEWEST = 25  # the newest opset that ONNX Runtime 1.32 has kernels for
LOWEST = {  # model → the lowest opset that all its nodes can be said in
    "mnist-8": 7, "deeplabv3": 7, "dtln-model1": 7, "yunet-n-dynamic": 7, "motor-fault-extdata": 7,
    "super-resolution-10": 7, "ort-scan": 8, "magika-v3-3": 8, "motor-fault-int8-qdq": 10, "silero-vad-if": 11,
    "onnxscript-functions-if": 13,
}  # fmt: skip
BOTH_WAYS = ("dtln-model1", "gtcrn-simple", "yunet-n-dynamic", "ort-crop-and-resize-loop", "openseeface-landmarks")
QUICK = ConvertSettings(proof_seeds=1)


def source(name: str) -> Path:
    return SHARED / "models" / name / "model.onnx"


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.parametrize("name", LOWEST)
def test_lowest_and_newest(name: str, tmp_path: Path) -> None:
    done = convert(source(name), "lowest", QUICK, tmp_path)
    assert done.opset_after == LOWEST[name] and done.proof.state in ("proved", "partial") and done.proof.runs
    assert bool(done.limits) == (done.opset_after > 7)
    up = convert(tmp_path / "model.onnx", NEWEST, QUICK, tmp_path)
    assert up.proof.state in ("proved", "partial") and up.proof.worst < 1e-5


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.parametrize("name", BOTH_WAYS)
def test_up_and_back(name: str, tmp_path: Path) -> None:
    (tmp_path / "up").mkdir()
    up = convert(source(name), 17, QUICK, tmp_path / "up")
    back = convert(tmp_path / "up" / "model.onnx", 11, QUICK, tmp_path)
    assert (up.opset_before, up.opset_after, back.opset_after) == (11, 17, 11)
    assert back.proof.state == up.proof.state == "proved" and back.nodes_after == up.nodes_before
    ours = onnx.load(tmp_path / "model.onnx").graph.node
    theirs = onnx.load(source(name), load_external_data=False).graph.node
    plain = [[node.op_type for node in nodes if node.op_type != "Constant"] for nodes in (ours, theirs)]
    assert plain[0] == plain[1]

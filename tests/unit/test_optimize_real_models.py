"""Real models give the same numbers after optimizing, in a runtime of another make than the passes."""

import os
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from penstock import graph
from penstock.rewriting.trace import snapshot
from penstock.rewriting.walk import nodes_of
from penstock.stages.optimize import MAIN, OptimizeSettings, optimize

SHARED = Path(os.environ.get("PENSTOCK_SHARED", Path(__file__).parents[3] / "shared")) / "models"
SIZES = {"magika-v3-3": 2, "silero-vad-if": 2, "ort-scan": 3}
# most nodes after optimizing, those of bodies and functions with them, Constants not
NODES = {
    "basic-pitch-nmp": 136, "bert-tf-qa": 1149, "bert-tokenizer-ext": 1, "byte-bidi-lstm": 12, "deeplabv3": 108,
    "dtln-model1": 21, "espcn-qonnx-quant": 22, "gtcrn-simple": 345, "magika-v3-3": 63, "mlp-int8-dyn": 17,
    "mnist-8": 8, "motor-fault-extdata": 13, "motor-fault-fp32": 13, "motor-fault-int8-qdq": 39, "neudet-v5-fp32":
    15, "neudet-v5-int8-qlinear": 15, "onnxscript-functions-if": 3, "openseeface-landmarks": 138,
    "ort-crop-and-resize-loop": 18, "ort-scan": 56, "qlstm-scan-qlinear": 71, "resnet-tiny-fp32-extdata": 45,
    "resnet-tiny-w8a8-qdq-extdata": 128, "silero-vad-if": 152, "sklearn-tree-classifier": 1,
    "super-resolution-10": 10, "tiny-gpt2-genai": 37, "ultraface-rfb-320": 121, "yolox-nano": 361,
    "yunet-n-dynamic": 115,
}  # fmt: skip
UNKNOWN = {"espcn-qonnx-quant"}  # operators that neither oracle has; in bert-tokenizer-ext nothing is changed
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
def test_every_shared_model_has_its_figure(shared: Path) -> None:
    assert {path.name for path in (shared / "models").iterdir() if path.is_dir()} == set(NODES)


@pytest.mark.shared
@pytest.mark.parametrize("name", NODES)
def test_proved_settled_small_and_the_same_again(name: str, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir(), second.mkdir()
    result = optimize(SHARED / name / "model.onnx", OptimizeSettings(strict=True, proof_seconds=120.0), first)
    assert result.settled and result.nodes_after <= NODES[name]
    assert not result.culprits and not [record.failures for record in result.passes if record.failures]
    assert result.proof.state in (("skipped",) if name in UNKNOWN else ("proved", "partial")), result.proof
    if result.proof.state == "partial":
        assert result.proof.reason == "one set of sizes is all that the model runs with"

    after = graph.load(first / MAIN)
    final = snapshot(result.base, result.events)
    replayed = [(row.op, row.name, row.inputs, row.outputs) for row in final.get("", [])]
    assert replayed == [row_of(node) for node in after.graph]
    inner = [(row.op, row.name, row.inputs, row.outputs) for scope in final if scope for row in final[scope]]
    main = {id(node) for node in after.graph}
    assert sorted(inner) == sorted(row_of(node) for node in nodes_of(after) if id(node) not in main)

    again = optimize(first / MAIN, OptimizeSettings(strict=True), second)
    assert again.events == () and again.rounds == 1
    assert {path.name: path.read_bytes() for path in second.iterdir()} == {
        path.name: path.read_bytes() for path in first.iterdir()
    }


def row_of(node: ir.Node) -> tuple[str, str, tuple[str, ...], tuple[str, ...]]:
    op = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
    names = (tuple("" if value is None else value.name or "" for value in held) for held in (node.inputs, node.outputs))
    return op, node.name or "", *names


@pytest.mark.shared
@pytest.mark.parametrize("name", NAMES)
def test_same_outputs_and_no_more_nodes(name: str, tmp_path: Path) -> None:
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
    source = SHARED / name / "model.onnx"
    result = optimize(source, OptimizeSettings(proof=False), tmp_path)
    assert result.settled
    assert result.nodes_after <= result.nodes_before
    assert not [record.failures for record in result.passes if record.failures]
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

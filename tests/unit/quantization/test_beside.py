"""Quantized models beside the float one: the figures are those of all outputs at once, whatever is kept of them."""

from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from penstock import calibration, graph
from penstock.metrics import compare
from penstock.quantization import beside, prepare
from penstock.quantization.beside import End
from penstock.stages.quantize import QuantizeSettings, quantize

RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(90, 6)).astype(np.float32)
BATCHES = calibration.of_list([{"x": ROWS[start : start + 32]} for start in range(0, 90, 32)])  # the last is smaller


def moved(model: onnx.ModelProto, by: float) -> onnx.ModelProto:
    """Return the model with other weights."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    for tensor in made.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.float32:
            tensor.CopyFrom(numpy_helper.from_array(array * np.float32(1 + by), tensor.name))
    return made


@pytest.mark.parametrize("kept", [0, 600, 1 << 28])
def test_the_figures_are_those_of_all_samples_at_once(
    kept: int, tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beside, "KEPT_BYTES", kept)
    model = tiny.mlp()
    float_model = prepare.prepared(tiny.save(model, tmp_path / "m.onnx"))
    with beside.opened(float_model, BATCHES) as held:
        for by in (0.1, 0.01):
            changed = graph.load(tiny.save(moved(model, by), tmp_path / "n.onnx"))
            want = compare(
                tiny.oracle(moved(model, by), {"x": ROWS})[0], tiny.oracle(model, {"x": ROWS})[0], logits=True
            )
            found = held.effect(changed)
            assert want.sqnr_db is not None and want.kl is not None
            assert found.sqnr_db == pytest.approx(want.sqnr_db, abs=1e-3) and found.levels == (found.sqnr_db,)
            assert found.cosine == pytest.approx(want.cosine) and found.top1_agreement == want.top1_agreement
            assert found.kl == pytest.approx(want.kl, rel=1e-3)
        assert held.effect(float_model).sqnr_db == float("inf")
    assert held.held_bytes <= kept and len(held.kept) == {0: 0, 600: 1, 1 << 28: 3}[kept]


def test_what_has_no_finite_result_is_infinitely_far(tiny: ModuleType, tmp_path: Path) -> None:
    model = tiny.mlp()
    broken = moved(model, float("inf"))
    float_model = prepare.prepared(tiny.save(model, tmp_path / "m.onnx"))
    with beside.opened(float_model, BATCHES) as held:
        assert held.effect(graph.load(tiny.save(broken, tmp_path / "n.onnx"))).sqnr_db == -float("inf")


def classifier(tiny: ModuleType, folder: Path) -> Path:
    """Write a net whose one output is the number of the best class."""
    model = tiny.conv()
    name = model.graph.output[0].name
    model.graph.node.append(helper.make_node("ArgMax", [name], ["best"], "argmax", axis=1, keepdims=0))
    model.graph.node.append(helper.make_node("Add", ["best", "best"], ["twice"], "twice"))
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("twice", TensorProto.INT64, None))
    path: Path = tiny.save(model, folder / "m.onnx")
    return path


def test_where_integers_come_out_the_floats_behind_them_are_compared(tiny: ModuleType, tmp_path: Path) -> None:
    path = classifier(tiny, tmp_path)
    assert beside.ends(prepare.prepared(path)) == [End(node="argmax", index=0)]
    samples = calibration.of_list([{"x": RNG.normal(size=(64, 3, 8, 8)).astype(np.float32)}])
    facts = quantize(path, samples, QuantizeSettings(sensitivity=60.0), tmp_path / "q.onnx")
    tried = facts["ranges_tried_db"]
    assert isinstance(tried, dict) and all(10 < level < 80 for level in tried.values()), tried  # type: ignore[operator]
    ranked = facts["sensitivity"]
    assert isinstance(ranked, list) and ranked
    levels = [one["sqnr_db"] for one in ranked]  # type: ignore[index,call-overload]
    assert levels == sorted(levels) and levels[-1] < 120
    assert all(one["top1_agreement"] is not None for one in ranked)  # type: ignore[index,call-overload]


def test_a_model_of_integers_alone_has_nothing_to_lose(tiny: ModuleType, tmp_path: Path) -> None:
    model = tiny.gather()
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("ids", TensorProto.INT64, ["n", 4]))
    float_model = graph.load(tiny.save(model, tmp_path / "m.onnx"))
    assert beside.ends(float_model) == []
    with beside.opened(float_model, calibration.of_list([{"ids": np.zeros((2, 4), np.int64)}])) as held:
        assert held.effect(float_model).sqnr_db == float("inf")

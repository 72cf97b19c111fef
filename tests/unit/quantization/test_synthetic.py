"""Synthetic calibration: made-up inputs meet a model's BatchNorm statistics, and the figures say so."""

import dataclasses
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from penstock import api, calibration, running, synthetic_feeds
from penstock.build_settings import BuildSettings
from penstock.data import DataSettings
from penstock.metrics import compare
from penstock.pipeline import build
from penstock.quantization import breeding, fitting, normalizations, textures
from penstock.stages.bench import BenchSettings
from penstock.stages.export import ExportSettings
from penstock.stages.quantize import QuantizeSettings
from penstock.store import Cache

NORMS = ("n1", "n2", "n3")


def photographs(count: int, seed: int) -> np.ndarray:
    """Return pictures from 0 to 255, ``(N, 3, 16, 16)``: slopes of light, a bright blob and ripples, tinted."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:16, :16] / 16
    made = np.empty((count, 3, 16, 16))
    for one in made:
        turn, pitch, phase = rng.uniform(0, 2 * np.pi), rng.uniform(2, 9), rng.uniform(0, 6)
        light = rng.uniform(60, 170) + rng.uniform(10, 90) * (np.cos(turn) * x + np.sin(turn) * y - 0.5)
        light += rng.normal(0, 70) * np.exp(-((x - rng.uniform()) ** 2 + (y - rng.uniform()) ** 2) * 20)
        light += rng.uniform(0, 25) * np.sin(pitch * (np.sin(turn) * x - np.cos(turn) * y) * 3 + phase)
        one[:] = light + rng.normal(0, 15, (3, 1, 1)) + rng.normal(0, 3, (3, 16, 16)) + [[[20]], [[0]], [[-15]]]
    return made.clip(0, 255).astype(np.float32)


def trained(*, batch: str | int = "n", opset: int = 17) -> onnx.ModelProto:
    """Return three Convs with BatchNormalizations that remember photographs, a pooling and a Gemm → y (N, 5)."""
    rng = np.random.default_rng(0)
    held: dict[str, np.ndarray] = {}
    nodes, read, width = [], "x", 3
    for name, channels in zip(NORMS, (8, 16, 16), strict=True):
        held[f"w_{name}"] = rng.normal(size=(channels, width, 3, 3)) / np.sqrt(9 * width)
        held |= {f"scale_{name}": rng.uniform(0.5, 1.5, channels), f"bias_{name}": rng.normal(size=channels) / 3}
        held |= {f"mean_{name}": np.zeros(channels), f"var_{name}": np.ones(channels)}
        nodes += [
            helper.make_node("Conv", [read, f"w_{name}"], [f"c_{name}"], f"conv_{name}", pads=[1, 1, 1, 1]),
            helper.make_node(
                "BatchNormalization", [f"c_{name}", *(f"{part}_{name}" for part in ("scale", "bias", "mean", "var"))],
                [f"b_{name}"], name,
            ),
            helper.make_node("Relu", [f"b_{name}"], [f"r_{name}"], f"relu_{name}"),
        ]  # fmt: skip
        read, width = f"r_{name}", channels
    held["fc"] = rng.normal(size=(16, 5))
    nodes += [
        helper.make_node("GlobalAveragePool", [read], ["g"], "pool"),
        helper.make_node("Flatten", ["g"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "fc"], ["y"], "gemm"),
    ]
    model = _model(nodes, held, batch, opset)
    pictures = photographs(63, 1)
    for name in NORMS:
        seen = _run(_with_output(model, f"c_{name}"), pictures)[-1].astype(np.float64)
        _hold(model, f"mean_{name}", seen.mean(axis=(0, 2, 3)))
        _hold(model, f"var_{name}", seen.var(axis=(0, 2, 3)))
    return model


def _model(
    nodes: list[onnx.NodeProto], held: dict[str, np.ndarray], batch: str | int, opset: int = 17
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes, "trained", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 5])],
        [numpy_helper.from_array(np.asarray(array, np.float32), name) for name, array in held.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def _hold(model: onnx.ModelProto, name: str, array: np.ndarray) -> None:
    tensor = next(one for one in model.graph.initializer if one.name == name)
    tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float32), name))


def _with_output(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.output.append(helper.make_empty_tensor_value_info(name))
    return copy


def _run(model: onnx.ModelProto | Path, pictures: np.ndarray) -> list[np.ndarray]:
    given = str(model) if isinstance(model, Path) else model.SerializeToString()
    session = onnxruntime.InferenceSession(given, providers=["CPUExecutionProvider"])
    size = session.get_inputs()[0].shape[0]
    step = size if isinstance(size, int) else len(pictures)
    parts = [session.run(None, {"x": pictures[i : i + step]}) for i in range(0, len(pictures), step)]
    return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]


def fitted(path: Path, folder: Path, *, seed: int = 0, **given: Any) -> Any:
    """Return the roles of a model with what was made for it."""
    data = DataSettings(**{"golden": 32, "calibrate": 32, **given})
    roles = running.role_feeds(path, data, seed)
    return synthetic_feeds.of_model(path, roles, data, seed, Cache(folder / "cache"))


def absent(model: onnx.ModelProto, tiny: ModuleType, folder: Path) -> str:
    """Return why nothing was made for a model."""
    roles = fitted(tiny.save(model, folder / "m.onnx"), folder)
    assert "statistics" not in roles.calibrate.description
    return str(roles.calibrate.description["no_statistics"])


@pytest.fixture(scope="module")
def net() -> onnx.ModelProto:
    return trained()


def test_what_is_made_meets_what_the_first_normalization_remembers(
    net: onnx.ModelProto, tiny: ModuleType, tmp_path: Path
) -> None:
    roles = fitted(tiny.save(net, tmp_path / "m.onnx"), tmp_path)
    for role in (roles.calibrate, roles.golden):
        pictures = role.rows(0, role.count)["x"]
        assert 30 < pictures.mean() < 200 and 15 < pictures.std() < 120, "pixels, found from the statistics alone"
    held = {one.name: numpy_helper.to_array(one) for one in net.graph.initializer}
    seen = _run(_with_output(net, "c_n1"), roles.golden.rows(0, 32)["x"])[-1]
    deviation = np.sqrt(held["var_n1"])
    assert np.abs((seen.mean(axis=(0, 2, 3)) - held["mean_n1"]) / deviation).mean() < 0.35
    assert np.abs(np.log(seen.std(axis=(0, 2, 3)) / deviation)).mean() < 0.5
    told = roles.calibrate.description["statistics"]
    assert told["made"]["mean_off"] < told["random"]["mean_off"] / 2
    assert told["made"]["deviation_off"] < told["random"]["deviation_off"] / 10, "random inputs are 60 times smaller"
    assert told["normalizations"] == 3 and told["fitted_inputs"] == ["x"] and told["left_out"] == []


def test_the_result_is_far_better_on_real_pictures_than_with_random_inputs(
    net: onnx.ModelProto, tiny: ModuleType, tmp_path: Path
) -> None:
    path, pictures = tiny.save(net, tmp_path / "m.onnx"), photographs(64, 2)
    data, levels = DataSettings(golden=32, calibrate=32), {}
    for way in ("random", "auto"):
        done = api.quantize(path, tmp_path / f"{way}.onnx", QuantizeSettings(calibration=way), data=data)
        levels[way] = compare(_run(tmp_path / f"{way}.onnx", pictures)[0], _run(net, pictures)[0], logits=False).sqnr_db
    assert levels["auto"] > max(levels["random"] + 10, 20), levels
    assert done.facts["calibration"] == calibration.SYNTHETIC
    assert done.calibrated_on["note"] == synthetic_feeds.NOTE
    notes = [note for note in done.facts["notes"] if note.startswith("no data")]  # type: ignore[union-attr]
    assert len(notes) == 1 and "3 BatchNormalizations" in notes[0] and "--data" in notes[0]


def test_the_same_seed_gives_the_same_samples_and_another_one_others(
    net: onnx.ModelProto, tiny: ModuleType, tmp_path: Path
) -> None:
    path = tiny.save(net, tmp_path / "m.onnx")
    one, same = (fitted(path, tmp_path / name, calibrate=8, golden=8) for name in ("a", "b"))
    other = fitted(path, tmp_path / "a", seed=1, calibrate=8, golden=8)
    assert one.calibrate.description == same.calibrate.description != other.calibrate.description
    rows = [roles.calibrate.rows(0, 8)["x"] for roles in (one, same, other)]
    assert np.array_equal(rows[0], rows[1]) and not np.array_equal(rows[0], rows[2])
    assert not np.array_equal(rows[0], one.golden.rows(0, 8)["x"]), "roles are disjoint"


def test_a_fixed_batch_gets_whole_batches(tiny: ModuleType, tmp_path: Path) -> None:
    roles = fitted(tiny.save(trained(batch=3), tmp_path / "m.onnx"), tmp_path, calibrate=8, golden=8)
    assert "statistics" in roles.calibrate.description
    sizes = [len(feeds["x"]) for _, feeds in roles.calibrate.batches(32)]
    assert sizes == [3, 3, 3] and roles.calibrate.count == 8


def test_random_inputs_are_told_with_the_reason(tiny: ModuleType, tmp_path: Path) -> None:
    path = tiny.save(tiny.mlp(), tmp_path / "m.onnx")
    done = api.quantize(path, tmp_path / "q.onnx", data=DataSettings(golden=32))
    assert done.facts["calibration"] == "random" and "statistics" not in done.facts
    assert any("the model has no BatchNormalization" in str(note) for note in done.facts["notes"])  # type: ignore[union-attr]


def test_real_data_is_left_alone(net: onnx.ModelProto, tiny: ModuleType, tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x_train=photographs(64, 3))
    path = tiny.save(net, tmp_path / "m.onnx")
    data = DataSettings(data=str(tmp_path / "d.npz"), golden=8)
    roles = running.role_feeds(path, data, 0)
    assert synthetic_feeds.of_model(path, roles, data, 0, Cache(tmp_path / "cache")) is roles
    done = api.quantize(path, tmp_path / "q.onnx", data=data)
    assert done.facts["calibration"] == "data" and not any("no data" in str(one) for one in done.facts["notes"])  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("part", "value", "why"),
    [("var_n", np.nan, "NaN"), ("mean_n", np.inf, "NaN or infinite"), ("var_n", -1.0, "negative"),
     ("var_n", 0.0, "variance is 0"), (None, 0.0, "before any training")],
)  # fmt: skip
def test_statistics_that_are_none_are_not_used(
    part: str | None, value: float, why: str, net: onnx.ModelProto, tiny: ModuleType, tmp_path: Path
) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(net)
    for tensor in list(model.graph.initializer):
        if part is None and tensor.name[:5] in ("mean_", "var_n"):
            _hold(model, tensor.name, np.full(tensor.dims, 1.0 if tensor.name.startswith("var") else 0.0))
        elif part is not None and tensor.name.startswith(part):
            _hold(model, tensor.name, np.full(tensor.dims, value))
    assert why in absent(model, tiny, tmp_path)


def test_one_bad_normalization_is_left_out_and_named(net: onnx.ModelProto, tiny: ModuleType, tmp_path: Path) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(net)
    _hold(model, "var_n2", np.full(16, -1.0))
    found = normalizations.find(tiny.save(model, tmp_path / "m.onnx"))
    assert [one.tensor for one in found.remembered] == ["c_n1", "c_n3"]
    assert found.reasons == ("n2: its variance is negative",)


def test_a_normalization_in_training_mode_or_in_a_body_has_nothing_to_tell(tiny: ModuleType, tmp_path: Path) -> None:
    training = trained()
    for node in training.graph.node:
        if node.op_type == "BatchNormalization":
            node.attribute.append(helper.make_attribute("training_mode", 1))
            node.output.extend([f"{node.name}_mean", f"{node.name}_var"])
    found = normalizations.find(tiny.save(training, tmp_path / "training.onnx"))
    assert not found.remembered and "batch at hand" in found.absent

    body = helper.make_graph(
        [helper.make_node("BatchNormalization", ["x", "s", "s", "m", "v"], ["inner"], "bn")], "body", [],
        [helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)],
    )  # fmt: skip
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["top"], "top", keepdims=0),
        helper.make_node("Greater", ["top", "zero"], ["positive"], "positive"),
        helper.make_node("If", ["positive"], ["i"], "if", then_branch=body, else_branch=body),
        helper.make_node("GlobalAveragePool", ["i"], ["g"], "pool"),
        helper.make_node("Flatten", ["g"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "fc"], ["y"], "gemm"),
    ]
    held = {"s": np.ones(3), "m": np.arange(3), "v": np.full(3, 2.0), "fc": np.ones((3, 5)), "zero": np.array(0.0)}
    found = normalizations.find(tiny.save(_model(nodes, held, "n"), tmp_path / "body.onnx"))
    assert not found.remembered and "bodies" in found.absent


def test_tokens_are_not_fitted(tiny: ModuleType, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["e"], "embed"),
        helper.make_node("Transpose", ["e"], ["t"], "turn", perm=[0, 2, 1]),
        helper.make_node("BatchNormalization", ["t", "s", "b", "m", "v"], ["n"], "bn"),
        helper.make_node("ReduceMax", ["n"], ["f"], "top", axes=[2], keepdims=0),
        helper.make_node("Gemm", ["f", "fc"], ["y"], "gemm"),
    ]
    held = {"table": rng.normal(size=(9, 4)), "s": np.ones(4), "b": np.zeros(4), "m": np.full(4, 0.1),
            "v": np.full(4, 0.9), "fc": rng.normal(size=(4, 3))}  # fmt: skip
    graph = helper.make_graph(
        nodes, "tokens", [helper.make_tensor_value_info("ids", TensorProto.INT64, ["n", 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(np.asarray(array, np.float32), name) for name, array in held.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert "no input of floats" in absent(model, tiny, tmp_path)


def test_statistics_that_no_input_can_meet_leave_the_inputs_random(
    net: onnx.ModelProto, tiny: ModuleType, tmp_path: Path
) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(net)
    _hold(model, "w_n1", np.zeros((8, 3, 3, 3)))  # nothing of the input gets through
    assert "clearly better than random" in absent(model, tiny, tmp_path)


def test_work_and_memory_are_bounded(net: onnx.ModelProto, tiny: ModuleType, tmp_path: Path) -> None:
    from penstock.quantization import looking, synthetic

    path = tiny.save(net, tmp_path / "m.onnx")
    roles, runs = running.role_feeds(path, DataSettings(golden=32, calibrate=32), 0), []

    def counted(look: Any, rows: Any, count: int) -> Any:
        runs.append(count)
        return original(look, rows, count)

    found, original = normalizations.find(path), looking.Look.at
    asked = synthetic_feeds._asked(path, roles, 32, 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(looking.Look, "at", counted)
        done = synthetic.make(found, dataclasses.replace(asked, macs=1e12))
    assert not isinstance(done, str) and done.facts["fitted_on"] == 4 and done.facts["generations"] == 0
    assert sum(runs) < 1500, "a model of 10¹² multiply-accumulates is run on as few samples as a fit needs"


def test_the_fit_finds_a_scale_and_an_offset_far_from_where_it_begins() -> None:
    texture = textures.drawn(64, (3, 16, 16), 0)
    wanted = np.concatenate([np.log([300.0, 20.0, 4.0]), [2.0, -1.0, 0.5], [np.log(0.3), np.log(0.3)]])

    def moments(parameters: np.ndarray) -> np.ndarray:
        made = texture.made(parameters).astype(np.float64)
        return np.concatenate([made.mean(axis=(0, 2, 3)), np.log(made.std(axis=(0, 2, 3)))])

    def residuals(parameters: np.ndarray) -> np.ndarray:
        off = moments(parameters) - moments(wanted)
        return np.concatenate([np.arcsinh(off[:3] / np.exp(wanted[:3])), off[3:]])

    found = fitting.fit(residuals, [texture.start(*form) for form in fitting.FORMS], np.zeros(8), 20)
    assert np.allclose(texture.made(found).std(axis=(0, 2, 3)), [300, 20, 4], rtol=0.25)
    assert np.square(residuals(found)).sum() < 1e-3


@pytest.mark.parametrize("shape", [(3, 16, 20), (16, 20, 3), (1, 8, 8), (12, 50), (7,), (2, 3, 4, 5), (1, 1)])
def test_textures_have_mean_0_and_variance_1_whatever_their_shape(shape: tuple[int, ...]) -> None:
    made = textures.drawn(100, shape, 0)
    assert made.white.shape == (100, *shape) and textures.channel_axis((16, 20, 3)) == 3
    for part in (made.shared, made.own, made.white):
        assert abs(part.mean()) < 0.3 and abs(part.std() - 1) < 0.2
    found = made.made(made.start(10.0, 50.0))
    assert found.shape == (100, *shape) and found.dtype == np.float32
    assert abs(found.mean() - 50) < 4 and abs(found.std() - 10) < 2


def test_children_stay_within_what_their_parents_hold() -> None:
    parents = np.random.default_rng(0).normal(size=(6, 3, 9, 5)).astype(np.float32)
    made = breeding.children(parents, 1, np.random.RandomState(0))
    assert made.shape == parents.shape and not np.array_equal(made, parents)
    ends = (0, 2, 3)
    assert (made.max(axis=ends) <= parents.max(axis=ends)).all()
    assert (made.min(axis=ends) >= parents.min(axis=ends)).all()
    assert breeding.children(np.zeros((2, 1), np.float32), 1, np.random.RandomState(0)).shape == (2, 1)


NET = '''
import torch
from torch import nn


def net():
    """Return a net whose normalizations remember inputs from 100 to 200."""
    torch.manual_seed(0)
    first = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, momentum=None), nn.ReLU()]
    second = [nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8, momentum=None), nn.ReLU()]
    made = nn.Sequential(*first, *second, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    with torch.no_grad():
        made.train()(100 + 100 * torch.rand(64, 3, 16, 16))
    return made.eval()
'''


@pytest.mark.torch
def test_a_build_reads_the_statistics_that_the_export_folded(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NET)
    quick = BenchSettings(warmup_calls=1, min_rounds=2, calls_per_round=1, seconds=0.05)
    given = BuildSettings(
        str(tmp_path / "net.py:net"), export=ExportSettings(input=("x:float32[n,3,16,16]",)), bench=quick,
        backends=("onnxruntime",),
    )  # fmt: skip
    result = build(given, tmp_path / "out", cache=tmp_path / "cache")
    lines = [json.loads(line) for line in (tmp_path / "out" / "ledger.jsonl").read_text().splitlines()]
    facts = {x["body"]["stage"]: x["body"]["facts"] for x in lines if x["kind"] == "record"}
    assert facts["export"]["batch_normalizations"] == 2
    assert facts["quantize"]["calibration"] == "synthetic (BatchNorm statistics)"
    low, high = (
        facts["quantize"]["layers"][0]["reads"][0]["seen_low"],
        facts["quantize"]["layers"][0]["reads"][0]["seen_high"],
    )
    assert low > -100 and high > 150, "random inputs lie between -5 and 5"
    ops = {node.op_type for node in onnx.load(tmp_path / "out" / "models" / "fp32" / "model.onnx").graph.node}
    assert "BatchNormalization" not in ops and result.chosen

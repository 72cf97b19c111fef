"""The gate: equal models pass, a planted change doesn't, each precision has its own measure."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from penstock import golden, registry
from penstock.backends import Loadable
from penstock.deployment import Deployment
from penstock.errors import InputError
from penstock.metrics import compare
from penstock.stages.verify import VerifySettings, judge, verify

RNG = np.random.default_rng(1)
X = [RNG.normal(size=(4, 6)).astype(np.float32) for _ in range(2)]
SETTINGS = VerifySettings()


class Says:
    """A session that answers from a list."""

    def __init__(self, *answers: list[np.ndarray] | InputError) -> None:
        self.answers = list(answers)

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        answer = self.answers.pop(0)
        if isinstance(answer, InputError):
            raise answer
        return answer


def gold(*outputs: np.ndarray, names: tuple[str, ...] = ("y",)) -> golden.Golden:
    """One run for each array; an output each run."""
    feeds = tuple({"x": np.zeros((1, 1), np.float32)} for _ in outputs)
    return golden.Golden({}, "test", names, (len(outputs[0]) if outputs[0].ndim else 1,) * len(outputs), feeds, tuple((o,) for o in outputs))  # fmt: skip  # noqa: E501


def opened(model: onnx.ModelProto, path: Path) -> object:
    path.write_bytes(model.SerializeToString())
    backend = registry.load("backends", "onnxruntime")
    return backend.load(Loadable(path), Deployment("d", "v", "", "fp32", "onnxruntime"))  # type: ignore[attr-defined]


@pytest.mark.parametrize("weight", ["w1", "b1", "w2", "b2"])
def test_one_changed_weight_is_refused(weight: str, tiny: ModuleType, tmp_path: Path) -> None:
    model = tiny.mlp()
    want = golden.Golden(
        {}, "oracle", ("y",), (4, 4), tuple({"x": x} for x in X), tuple((tiny.oracle(model, {"x": x})[0],) for x in X)
    )
    honest = verify(opened(model, tmp_path / "a.onnx"), want, "fp32", SETTINGS)
    assert honest.outcome.passed and honest.samples == 8
    tensor = next(t for t in model.graph.initializer if t.name == weight)
    values = numpy_helper.to_array(tensor).copy()
    values.flat[np.abs(values).argmax()] *= 1.1
    tensor.CopyFrom(numpy_helper.from_array(values, weight))
    tampered = verify(opened(model, tmp_path / "b.onnx"), want, "fp32", SETTINGS)
    assert not tampered.outcome.passed and "relative difference" in tampered.outcome.reason
    assert "'y'" in tampered.outcome.reason and "worst at sample" in tampered.outcome.reason


WANT = np.array([[1.0, -2.0], [3.0, 4.0]], np.float32)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_nan_and_infinities_are_refused_at_every_precision(bad: float, precision: str) -> None:
    got = WANT.copy()
    got[1, 0] = bad
    found = verify(Says([got]), gold(WANT), precision, SETTINGS)  # type: ignore[arg-type]
    assert not found.outcome.passed and "NaN or infinity" in found.outcome.reason and "sample 1" in found.outcome.reason
    turned = verify(Says([WANT]), gold(got), precision, SETTINGS)  # type: ignore[arg-type]
    assert not turned.outcome.passed
    both = verify(Says([got]), gold(got), precision, SETTINGS)  # type: ignore[arg-type]
    assert both.outcome.passed, "what the source gives is right"


@pytest.mark.parametrize(
    ("precision", "relative", "passes"),
    [
        ("fp32", 0.9e-4, True), ("fp32", 1.2e-4, False),
        ("fp16", 0.9e-2, True), ("fp16", 1.2e-2, False),
        ("bf16", 7e-2, True), ("bf16", 9e-2, False),
    ],
)  # fmt: skip
def test_float_deployments_are_held_to_their_relative_difference(precision: str, relative: float, passes: bool) -> None:
    want = np.array([[4.0, 0.0]])
    found = verify(Says([want + np.array([[0.0, 4.0 * relative]])]), gold(want), precision, SETTINGS)  # type: ignore[arg-type]
    assert found.outcome.passed is passes and math.isclose(found.outputs["y"].relative or 0, relative, rel_tol=1e-6)


@pytest.mark.parametrize(("precision", "db", "passes"), [("int8", 20.5, True), ("int8", 19.5, False), ("mixed", 19.5, False), ("int4", 19.5, False)])  # fmt: skip  # noqa: E501
def test_quantized_deployments_are_held_to_their_sqnr(precision: str, db: float, passes: bool) -> None:
    want = np.ones((2, 8))
    noise = 10 ** (-db / 20)  # the same on every element, so SQNR = -20 log10 noise
    found = verify(Says([want + noise]), gold(want), precision, SETTINGS)  # type: ignore[arg-type]
    assert found.outcome.passed is passes
    if not passes:
        assert "19.5 dB" in found.outcome.reason and "20 dB" in found.outcome.reason


@pytest.mark.parametrize(("precision", "wrong", "passes"), [("fp32", 0, True), ("fp32", 1, False), ("int8", 1, True), ("int8", 2, False)])  # fmt: skip  # noqa: E501
def test_integers_are_held_to_their_mismatches(precision: str, wrong: int, passes: bool) -> None:
    want = np.arange(20)
    got = want.copy()
    got[:wrong] += 1
    assert verify(Says([got]), gold(want), precision, SETTINGS).outcome.passed is passes  # type: ignore[arg-type]


@pytest.mark.parametrize("got", [WANT[:, :1], WANT[0], WANT.astype(np.int64), WANT.reshape(1, 4)])
def test_another_shape_or_kind_is_refused(got: np.ndarray) -> None:
    found = verify(Says([got]), gold(WANT), "fp32", SETTINGS)
    assert not found.outcome.passed and ("shape" in found.outcome.reason or "dtype" in found.outcome.reason)


def test_integers_of_another_width_are_refused() -> None:
    found = verify(Says([np.arange(3, dtype=np.int32)]), gold(np.arange(3, dtype=np.int64)), "fp32", SETTINGS)
    assert not found.outcome.passed and "dtype" in found.outcome.reason


def test_a_difference_in_a_later_run_counts_and_is_placed() -> None:
    bad = WANT.copy()
    bad[0, 1] = 7
    found = verify(Says([WANT], [bad]), gold(WANT, WANT), "fp32", SETTINGS)
    assert not found.outcome.passed and found.outputs["y"].worst_sample == 2


def test_runs_of_other_shapes_are_compared_one_by_one() -> None:
    long = np.arange(1.0, 7.0).reshape(2, 3)
    assert verify(Says([WANT], [long]), gold(WANT, long), "fp32", SETTINGS).outcome.passed
    assert not verify(Says([WANT], [long + 1]), gold(WANT, long), "fp32", SETTINGS).outcome.passed
    assert not verify(Says([WANT + 1], [long]), gold(WANT, long), "fp32", SETTINGS).outcome.passed


def test_scalars_of_all_runs_count() -> None:
    one, two = np.array(1.0), np.array(2.0)
    assert verify(Says([one], [two]), gold(one, two), "fp32", SETTINGS).outcome.passed
    assert not verify(Says([one], [one]), gold(one, two), "fp32", SETTINGS).outcome.passed


def test_rows_that_only_fill_up_a_batch_do_not_count() -> None:
    """A fixed batch of 4 with 3 real samples: the fourth is a repetition, and no sample of its own."""
    want = np.arange(1.0, 5.0).reshape(4, 1)
    filled = golden.Golden({}, "t", ("y",), (3,), ({"x": want},), ((want,),))
    got = want.copy()
    got[3] = 99.0
    assert verify(Says([got]), filled, "fp32", SETTINGS).outcome.passed


def test_a_run_that_fails_is_a_refusal() -> None:
    found = verify(Says([WANT], InputError("run-failed", "it can't run")), gold(WANT, WANT), "fp32", SETTINGS)
    assert not found.outcome.passed and found.outcome.reason == "it can't run"


def test_out_of_time_takes_fewer_samples_and_says_so() -> None:
    found = verify(Says([WANT], [WANT + 9]), gold(WANT, WANT), "fp32", SETTINGS, seconds=0.0)
    assert found.outcome.passed and found.samples == 2


def test_every_output_is_judged() -> None:
    right, wrong = compare(WANT, WANT, logits=False), compare(WANT + 1, WANT, logits=False)
    assert judge({"a": right, "b": right}, "fp32", SETTINGS).passed
    refused = judge({"a": right, "b": wrong}, "fp32", SETTINGS)
    assert not refused.passed and "'b'" in refused.reason
    assert judge({"b": wrong}, "fp32", VerifySettings(fp32_relative=1.0)).passed


SCORES = RNG.normal(size=(50, 5))
FLIPPED = SCORES.copy()
FLIPPED[:2] = np.roll(SCORES[:2], 1, axis=1)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize(
    ("limits", "passes"),
    [
        ({}, True),
        ({"kl": 10.0}, True),
        ({"kl": 1e-9}, False),
        ({"flips": 0.04}, True),
        ({"flips": 0.0399}, False),
        ({"flips": 0.0}, False),
    ],
)
def test_class_scores_are_held_to_kl_and_flips(precision: str, limits: dict[str, float], passes: bool) -> None:
    kind = "float" if precision == "fp32" else "int8"
    free = VerifySettings(fp32_relative=9.0, int8_sqnr_db=-99.0)
    settings = dataclasses.replace(free, **{f"{kind}_{name}": limit for name, limit in limits.items()})
    found = {"y": compare(FLIPPED, SCORES, logits=True)}
    assert found["y"].top1_agreement == 0.96
    assert judge(found, precision, settings).passed is passes
    other = dataclasses.replace(
        free, **{f"{'int8' if kind == 'float' else 'float'}_{name}": 1e-9 for name in ("kl", "flips")}
    )
    assert judge(found, precision, other).passed, "those are the limits of the other precision"
    assert judge({"y": compare(SCORES, SCORES, logits=True)}, precision, settings).passed
    if limits:
        refused = judge({"y": compare(FLIPPED, SCORES, logits=False)}, precision, settings)
        assert not refused.passed and "--logits" in refused.reason


def test_only_named_outputs_are_scores() -> None:
    two = golden.Golden({}, "t", ("a", "b"), (2,), ({"x": WANT},), ((WANT, WANT),))
    found = verify(Says([WANT, WANT]), two, "fp32", VerifySettings(logits=("b",)))
    assert found.outputs["a"].top1_agreement is None and found.outputs["b"].top1_agreement == 1.0

"""The ledger read as a table."""

import pytest

from penstock.deployment import Deployment
from penstock.ledger import Entry
from penstock.record import Record
from penstock.signature import Signature
from penstock.summary import rows
from penstock.variant import ModelFile, Variant
from penstock.verdict import Outcome, Verdict

VARIANT = Variant(
    "int8", "d", "onnx", "int8", (ModelFile("a", "0", 70), ModelFile("b", "0", 30)), "a", Signature((), ()), (), "quantize",  # noqa: E501
    {}, {},
)  # fmt: skip
NAME = "int8@onnxruntime"
DEPLOYMENT = Deployment(NAME, "int8", "d", "int8", "onnxruntime")


def scored(role: str, score: float, gap: tuple[float, float, float]) -> Record:
    difference = dict(zip(("difference", "low", "high"), gap, strict=True)) | {"baseline": "fp32"}
    measured = {"score": score, "low": score - 0.1, "high": score + 0.1, "samples": 50, "difference": difference}
    return Record("evaluate", NAME, {"role": role}, {}, measured)  # type: ignore[arg-type]


BENCH = Record(
    "bench", NAME, measured={
        "p50_ms": 0.5, "p95_ms": 0.75, "to_baseline": {"ratio": 0.4, "low": 0.3, "high": 0.5, "rounds": 2},
        "throughput": {"samples_per_s": 2000.0}, "rounds_ms": [0.5, 0.25],
    },
)  # fmt: skip
ENTRIES: list[Entry] = [
    VARIANT, DEPLOYMENT, Verdict("verify", NAME, Outcome(True)), Verdict("speed", NAME, Outcome(False, "slow")),
    scored("select", 0.8, (-0.02, -0.03, -0.01)), scored("evaluate", 0.7, (0.01, -0.04, 0.06)), BENCH,
]  # fmt: skip


def test_one_row_with_all_that_was_measured() -> None:
    (row,) = rows(ENTRIES)
    assert row.deployment == DEPLOYMENT and row.size_bytes == 100
    assert (row.score, row.score_low, row.score_high, row.score_samples) == pytest.approx((0.7, 0.6, 0.8, 50))
    assert row.difference_pp == pytest.approx((1.0, -4.0, 6.0))
    assert row.select_score == 0.8
    assert row.drop_pp == pytest.approx(2.0), "a drop is positive where it got worse"
    assert row.drop_pp_range == pytest.approx((1.0, 3.0))
    assert (row.p50_ms, row.p95_ms, row.throughput, row.ratio) == (0.5, 0.75, 2000.0, (0.4, 0.3, 0.5))
    assert row.rounds_ms == (0.5, 0.25) and row.bench_failure == ""
    assert [verdict.gate for verdict in row.refusals] == ["speed"]


def test_what_was_not_measured_is_absent() -> None:
    (row,) = rows([DEPLOYMENT, Record("bench", NAME, measured={"failure": "crashed"})])
    assert row.size_bytes == 0 and row.p50_ms is None and row.ratio is None and row.bench_failure == "crashed"
    assert row.score is None and row.drop_pp is None and row.rounds_ms == ()


def test_infinite_ends_of_an_interval_are_read() -> None:
    measured = {"to_baseline": {"ratio": 1.0, "low": 0.0, "high": "inf", "rounds": 1}, "rounds_ms": [1.0]}
    (row,) = rows([DEPLOYMENT, Record("bench", NAME, measured=measured)])  # type: ignore[arg-type]
    assert row.ratio == (1.0, 0.0, float("inf"))


def test_the_baseline_itself_has_no_difference() -> None:
    (row,) = rows([DEPLOYMENT, Record("evaluate", NAME, {"role": "select"}, {}, {"score": 0.9, "difference": None})])
    assert row.select_score == 0.9 and row.drop_pp is None


def test_rows_stand_in_the_ledgers_order_and_others_records_go_nowhere() -> None:
    names = ["z", "a", "m"]
    made: list[Entry] = [Deployment(name, "int8", "d", "int8", "onnxruntime") for name in names]
    assert [row.deployment.name for row in rows([*made, BENCH, Verdict("verify", "who", Outcome(False))])] == names

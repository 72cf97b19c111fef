"""The choice: each refusal has its reason, the nearest miss is named, speed is wanted of int8."""

import pytest

from penstock.deployment import Deployment
from penstock.stages.select import SelectSettings, select
from penstock.summary import Row
from penstock.verdict import Outcome, Verdict


def row(
    name: str, p50: float | None = 1.0, precision: str = "fp32", backend: str = "onnxruntime", role: str = "candidate",
    size: int = 1_000_000, **more: object,
) -> Row:  # fmt: skip
    deployment = Deployment(name, name.split("@")[0], "d", precision, backend, role=role)  # type: ignore[arg-type]
    made = Row(deployment, size, p50_ms=p50)
    made.rounds_ms = () if p50 is None else tuple(p50 * (1 + 0.01 * ((7 * i) % 5 - 2)) for i in range(30))
    for key, value in more.items():
        assert hasattr(made, key)
        setattr(made, key, value)
    return made


def gates(found: object, name: str) -> dict[str, bool]:
    return {v.gate: v.passed for v in found.verdicts if v.deployment == name}  # type: ignore[attr-defined]


def test_the_fastest_is_chosen_and_others_get_verdicts() -> None:
    found = select([row("a", 2.0), row("b", 1.0), row("c", 3.0)], SelectSettings())
    assert found.chosen == "b" and found.nearest_miss == ""


@pytest.mark.parametrize("role", ["baseline", "oracle"])
def test_only_candidates_are_chosen(role: str) -> None:
    assert select([row("a", 2.0), row("b", 1.0, role=role)], SelectSettings()).chosen == "a"


def test_nothing_at_all() -> None:
    found = select([], SelectSettings())
    assert found.chosen == "" and "no candidate" in found.nearest_miss


@pytest.mark.parametrize("gate", ["verify", "load"])
def test_what_was_refused_before_is_not_chosen(gate: str) -> None:
    bad = row("b", 0.1, verdicts=[Verdict(gate, "b", Outcome(False, "SQNR 3 dB"))])
    assert select([row("a", 2.0), bad], SelectSettings()).chosen == "a"
    alone = select([bad], SelectSettings())
    assert alone.chosen == "" and alone.nearest_miss == "b: SQNR 3 dB"


@pytest.mark.parametrize(
    ("limits", "gate", "told"),
    [
        (SelectSettings(max_latency_ms=0.5), "latency", "too slow: 1 ms, the limit is 0.5 ms"),
        (SelectSettings(max_size_mb=0.5), "size", "too large: 1 MB, the limit is 0.5 MB"),
        (SelectSettings(max_drop=0.5), "accuracy", "drops 0.80 points"),
        (SelectSettings(max_latency_ms=0.0), "latency", "too slow"),
    ],
)
def test_each_limit_refuses_with_its_figure(limits: SelectSettings, gate: str, told: str) -> None:
    found = select([row("a", drop_pp=0.8, drop_pp_range=(0.1, 1.5))], limits)
    assert found.chosen == "" and gates(found, "a") == {gate: False}
    assert told in found.verdicts[0].reason and told in found.nearest_miss


@pytest.mark.parametrize(
    "limits", [SelectSettings(max_latency_ms=1.0), SelectSettings(max_size_mb=1.0), SelectSettings(max_drop=0.8)]
)
def test_a_limit_that_is_just_met_is_met(limits: SelectSettings) -> None:
    found = select([row("a", drop_pp=0.8)], limits)
    assert found.chosen == "a" and all(gates(found, "a").values())


def test_an_unmeasured_accuracy_is_refused_but_the_float_baseline_drops_nothing() -> None:
    base, other = row("a", 2.0, select_score=0.9), row("b", 1.0, precision="int8")
    found = select([base, other], SelectSettings(max_drop=1.0))
    assert found.chosen == "a" and "not measured" in next(v.reason for v in found.verdicts if v.deployment == "b")


@pytest.mark.parametrize("broken", [row("b", None), row("b", 0.1, bench_failure="it crashed")])
def test_what_could_not_be_timed_is_refused(broken: Row) -> None:
    found = select([row("a", 5.0), broken], SelectSettings())
    assert found.chosen == "a" and gates(found, "b") == {"bench": False}


def test_a_gain_in_accuracy_is_no_drop() -> None:
    assert select([row("a", drop_pp=-1.0)], SelectSettings(max_drop=0.0)).chosen == "a"


def test_the_nearest_miss_is_the_one_least_beyond_its_worst_limit() -> None:
    limits = SelectSettings(max_latency_ms=1.0, max_size_mb=1.0)
    rows = [row("far", 3.0), row("near", 1.2, size=1_100_000), row("odd", 1.05, size=9_000_000)]
    found = select(rows, limits)
    assert found.chosen == "" and found.nearest_miss.startswith("near: ")
    assert "too slow" in found.nearest_miss and "too large" in found.nearest_miss


def test_int8_that_is_not_faster_is_refused_where_speed_is_wanted() -> None:
    fast, slow = row("fp32@o", 1.0), row("int8@o", 1.5, precision="int8", size=100)
    found = select([fast, slow], SelectSettings())
    assert found.chosen == "fp32@o" and gates(found, "int8@o") == {"speed": False}
    assert "slower than the float model: 1.50×" in next(v.reason for v in found.verdicts if not v.passed)
    # latency at batch 1 says nothing of throughput
    assert gates(select([fast, slow], SelectSettings(objective="throughput")), "int8@o") == {}
    assert select([fast, slow], SelectSettings(objective="size")).chosen == "int8@o"


def test_int8_is_held_against_the_float_of_its_own_runtime() -> None:
    rows = [row("fp32@o", 1.0), row("int8@v", 1.5, precision="int8", backend="openvino")]
    assert gates(select(rows, SelectSettings()), "int8@v") == {}
    rows.append(row("fp32@v", 3.0, backend="openvino"))
    assert gates(select(rows, SelectSettings()), "int8@v") == {"speed": True}


def test_no_difference_is_no_refusal() -> None:
    fast, same = row("fp32@o", 1.0), row("int8@o", 1.0, precision="int8")
    same.rounds_ms = tuple(reversed(fast.rounds_ms))
    assert gates(select([fast, same], SelectSettings()), "int8@o") == {"speed": True}


@pytest.mark.parametrize(
    ("objective", "chosen"), [("latency", "fast"), ("throughput", "wide"), ("size", "small"), ("accuracy", "good")]
)
def test_objectives(objective: str, chosen: str) -> None:
    rows = [
        row("fast", 1.0, throughput=100.0, select_score=0.5),
        row("wide", 2.0, throughput=9000.0, select_score=0.6),
        row("small", 3.0, throughput=300.0, size=10, select_score=0.7),
        row("good", 4.0, throughput=200.0, select_score=0.9),
    ]
    assert select(rows, SelectSettings(objective=objective)).chosen == chosen


def test_without_a_throughput_one_batch_per_latency_counts() -> None:
    rows = [row("fixed", 0.1), row("free", 1.0, throughput=5000.0)]
    assert select(rows, SelectSettings(objective="throughput")).chosen == "fixed"


def test_ties_are_broken_by_name_whatever_the_order() -> None:
    rows = [row("b"), row("a"), row("c")]
    assert select(rows, SelectSettings()).chosen == select(rows[::-1], SelectSettings()).chosen == "a"

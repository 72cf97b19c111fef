"""Host facts from a made-up /proc and /sys, and the reasons for noise."""

from __future__ import annotations

import os
from itertools import count
from pathlib import Path

import pytest

from penstock import machine
from penstock.jsonable import dumps
from penstock.machine import Moment, describe, instruction_set, moment, noise

QUIET = Moment(loop_ns=100.0, total_s=100.0, busy_s=50.0, steal_s=1.0, own_s=10.0)


def lay(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


def test_describe_reads_linux(tmp_path: Path) -> None:
    root = lay(
        tmp_path,
        {
            "proc/cpuinfo": "processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: fpu amx_int8 avx2 fma avx512_vnni\n\n"
            "processor\t: 1\nmodel name\t: Other\nflags\t\t: neon\n",
            "proc/meminfo": "MemFree: 1 kB\nMemTotal:       2048 kB\n",
            "sys/fs/cgroup/cpu.max": "150000 100000\n",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave\n",
        },
    )
    facts = describe(root)
    assert facts["cpu"] == "Some CPU"
    assert facts["cpu_flags"] == ["amx_int8", "avx2", "avx512_vnni", "fma"]
    assert facts["memory_bytes"] == 2048 * 1024
    assert facts["cores_limit"] == 1.5
    assert facts["governor"] == "powersave"
    assert instruction_set(root).endswith("+amx_int8+avx2+avx512_vnni+fma")
    dumps(facts)


def test_arm_calls_neon_asimd(tmp_path: Path) -> None:
    root = lay(tmp_path, {"proc/cpuinfo": "Features\t: fp asimd asimddp i8mm\n"})
    assert describe(root)["cpu_flags"] == ["asimddp", "i8mm", "neon"]


def test_without_proc_fields_are_absent(tmp_path: Path) -> None:
    facts = describe(tmp_path)
    assert not {"memory_bytes", "governor", "cores_limit"} & set(facts)
    assert facts["cpu_flags"] == []
    assert moment(tmp_path).total_s is None
    assert noise(moment(tmp_path, clock=lambda: 0), moment(tmp_path, clock=lambda: 0)) == ()


@pytest.mark.parametrize(("quota", "limit"), [("-1", None), ("200000", 2.0)])
def test_older_control_groups(tmp_path: Path, quota: str, limit: float | None) -> None:
    files = {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": quota, "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}
    assert describe(lay(tmp_path, files)).get("cores_limit") == limit
    assert "cores_limit" not in describe(lay(tmp_path / "v2", {"sys/fs/cgroup/cpu.max": "max 100000"}))


def test_this_machine() -> None:
    facts = describe()
    assert facts["cores_logical"] == os.cpu_count()
    assert instruction_set() == instruction_set()


def test_moment_reads_the_counters(tmp_path: Path) -> None:
    tick = os.sysconf("SC_CLK_TCK")
    values = " ".join(str(n * tick) for n in (10, 1, 5, 80, 2, 1, 1, 3, 7, 0))  # guest time counts once
    ticks = count(0, 500)
    found = moment(lay(tmp_path, {"proc/stat": f"cpu  {values}\ncpu0 1\n"}), clock=lambda: next(ticks))
    assert (found.total_s, found.steal_s, found.busy_s) == (103.0, 3.0, 18.0)
    assert found.loop_ns == 500
    broken = lay(tmp_path / "broken", {"proc/stat": "cpu  a b\n"})
    assert machine.moment(broken).total_s is None


def test_a_quiet_machine_is_not_noisy() -> None:
    after = Moment(loop_ns=104.0, total_s=200.0, busy_s=105.0, steal_s=1.5, own_s=60.0)
    assert noise(QUIET, after, {"a": 1.2}, {"governor": "performance"}) == ()


@pytest.mark.parametrize(
    ("after", "words"),
    [
        (Moment(100.0, 200.0, 100.0, 6.0, 60.0), "took 5% of the CPU time"),
        (Moment(100.0, 200.0, 120.0, 1.0, 60.0), "other processes used 20%"),
        (Moment(110.0, 200.0, 100.0, 1.0, 60.0), "1.10 times slower"),
        (Moment(80.0, 200.0, 100.0, 1.0, 60.0), "1.25 times faster"),
    ],
)
def test_each_cause_is_named(after: Moment, words: str) -> None:
    (reason,) = noise(QUIET, after)
    assert words in reason


def test_governor_and_spread_are_named() -> None:
    first, second = noise(QUIET, QUIET, {"int8@ort": 1.5}, {"governor": "ondemand"})
    assert "'ondemand'" in first
    assert second == "the samples spread widely, p95 over p50 is: int8@ort 1.50"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds no process")
def test_a_runtime_makes_no_more_threads_than_there_are_cores_for() -> None:
    before = os.sched_getaffinity(0)
    if len(before) == os.cpu_count():
        assert machine.threads() == 0  # the runtime's own choice
    os.sched_setaffinity(0, {min(before)})
    try:
        assert machine.threads() == (1 if (os.cpu_count() or 1) > 1 else 0)
    finally:
        os.sched_setaffinity(0, before)

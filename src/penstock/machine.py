"""The machine: what it is, and why a measurement taken on it may be noisy.

Linux tells most of it below ``/proc`` and ``/sys``. Elsewhere, or where a file is absent, the field is absent.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from penstock.jsonable import Json

ROOT = Path("/")
RELEVANT: tuple[str, ...] = (
    "avx",
    "avx2",
    "avx512_bf16",
    "avx512_fp16",
    "avx512_vnni",
    "avx512bw",
    "avx512f",
    "avx_vnni",
)
RELEVANT += ("f16c", "fma", "neon", "sse4_1", "asimddp", "bf16", "i8mm", "sve")
LOOP = 20_000  # additions in the calibration loop: a fraction of a millisecond
STEAL_LIMIT = 0.01
OTHERS_LIMIT = 0.10
DRIFT_LIMIT = 0.05
TAIL_LIMIT = 1.25


def describe(root: Path = ROOT) -> dict[str, Json]:
    """Return the facts that a measurement depends on: CPU, cores, governor, load, memory, system, Python."""
    facts: dict[str, Json] = {
        "architecture": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "cpu_flags": list(_flags(root)),
    }
    optional: dict[str, Json] = {
        "cpu": _cpu_model(root),
        "cores_logical": os.cpu_count(),
        "cores_allowed": _allowed(),
        "cores_limit": _cgroup_limit(root),
        "governor": _governor(root),
        "load_1min": _load(),
        "memory_bytes": _memory_bytes(root),
    }
    return facts | {key: value for key, value in optional.items() if value is not None}


def threads() -> int:
    """Return how many threads a runtime is to make: 0, its own choice, unless this process may use some cores alone.

    ONNX Runtime by itself makes one for each core of the machine and binds it there, allowed or not.
    """
    allowed = _allowed()
    return 0 if allowed is None or allowed >= (os.cpu_count() or 1) else allowed


def _allowed() -> int | None:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


def instruction_set(root: Path = ROOT) -> str:
    """Return a short stable text for cache keys: ``x86_64+avx2+fma``."""
    return "+".join([platform.machine().lower() or "unknown", *_flags(root)])


@dataclass(frozen=True, slots=True)
class Moment:
    """What to compare a later moment with. Times are in seconds of CPU time; ``loop_ns`` of the calibration loop."""

    loop_ns: float
    total_s: float | None = None  # over all CPUs, idle time included
    busy_s: float | None = None
    steal_s: float | None = None
    own_s: float = 0.0  # this process and the children it waited for


def moment(root: Path = ROOT, clock: Callable[[], int] = time.perf_counter_ns) -> Moment:
    """Take the counters, and the median of 15 runs of a fixed loop."""
    runs = []
    for _ in range(15):
        start = clock()
        sum(range(LOOP))
        runs.append(clock() - start)
    own = sum(os.times()[:4])
    values = _cpu_times(root)
    if values is None:
        return Moment(statistics.median(runs), own_s=own)
    idle, steal = values[3] + values[4], values[7]
    total = sum(values[:8])  # guest time is in user time already
    return Moment(statistics.median(runs), total, total - idle - steal, steal, own)


def noise(
    before: Moment, after: Moment, tails: Mapping[str, float] | None = None, facts: Mapping[str, Json] | None = None
) -> tuple[str, ...]:
    """Return the reasons to distrust what was measured between two moments; none for a quiet machine.

    ``tails`` is p95 / p50 of each thing that was measured, ``facts`` what :func:`describe` returned.
    """
    reasons = []
    if before.total_s is not None and after.total_s is not None and (span := after.total_s - before.total_s) > 0:
        stolen = ((after.steal_s or 0.0) - (before.steal_s or 0.0)) / span
        if stolen > STEAL_LIMIT:
            reasons.append(f"the hypervisor took {stolen:.0%} of the CPU time (steal)")
        own = after.own_s - before.own_s
        others = ((after.busy_s or 0.0) - (before.busy_s or 0.0) - own) / span
        if others > OTHERS_LIMIT:
            reasons.append(f"other processes used {others:.0%} of the CPU time")
    if (governor := (facts or {}).get("governor")) not in (None, "performance"):
        reasons.append(f"the CPU governor is {governor!r}, not 'performance': the clock rate changes with the load")
    low, high = sorted((before.loop_ns, after.loop_ns))
    if low > 0 and high / low > 1 + DRIFT_LIMIT:
        change = "slower" if after.loop_ns > before.loop_ns else "faster"
        reasons.append(f"a fixed loop ran {high / low:.2f} times {change} after the measurement than before it")
    wide = [f"{name} {tail:.2f}" for name, tail in (tails or {}).items() if tail > TAIL_LIMIT]
    if wide:
        reasons.append(f"the samples spread widely, p95 over p50 is: {', '.join(wide)}")
    return tuple(reasons)


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def _cpuinfo(root: Path) -> dict[str, str]:
    """Return the first CPU's entries; keys in lower case."""
    found: dict[str, str] = {}
    for line in (_read(root / "proc/cpuinfo") or "").splitlines():
        key, colon, value = line.partition(":")
        if colon:
            found.setdefault(key.strip().lower(), value.strip())
    return found


def all_flags(root: Path = ROOT) -> tuple[str, ...]:
    """Return all that the CPU says it can, as Linux calls it."""
    info = _cpuinfo(root)
    present = set((info.get("flags") or info.get("features") or "").split())
    if "asimd" in present:  # what Linux calls NEON on 64-bit Arm
        present.add("neon")
    return tuple(sorted(present))


def _flags(root: Path) -> tuple[str, ...]:
    return tuple(flag for flag in all_flags(root) if flag in RELEVANT or flag.startswith("amx_"))


def _cpu_model(root: Path) -> str | None:
    info = _cpuinfo(root)
    return info.get("model name") or info.get("hardware") or platform.processor() or None


def _groups(root: Path, controller: str) -> list[Path]:
    """Return the folders of this process's control group and of all above it, of version 2 and of version 1."""
    home = root / "sys/fs/cgroup"
    own = [line.split(":", 2) for line in (_read(root / "proc/self/cgroup") or "").splitlines() if line.count(":") > 1]
    found = [home, home / controller]
    for _, controllers, path in own:
        if controllers and controller not in controllers.split(","):
            continue
        top = home / controller if controllers else home
        parts = [part for part in path.split("/") if part not in ("", "..")]
        found += [top.joinpath(*parts[: i + 1]) for i in range(len(parts))]
    return found


def _cgroup_limit(root: Path) -> float | None:
    """Return how many CPUs' worth of time the control group may use, where it or one above it is limited."""
    limits = []
    for folder in _groups(root, "cpu"):
        if (text := _read(folder / "cpu.max")) is not None:
            quota, _, period = text.partition(" ")
        else:
            quota, period = _read(folder / "cpu.cfs_quota_us") or "", _read(folder / "cpu.cfs_period_us") or ""
        if quota.isdigit() and period.isdigit() and int(period):  # else "max", -1 or absent: no limit
            limits.append(int(quota) / int(period))
    return min(limits, default=None)


def memory_limit_bytes(root: Path = ROOT) -> int | None:
    """Return how much memory the control group may use, in bytes, where it or one above it is limited."""
    limits = []
    for folder in _groups(root, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            text = _read(folder / name) or ""
            if text.isdigit() and int(text) < 1 << 60:
                limits.append(int(text))
    return min(limits, default=None)


def _governor(root: Path) -> str | None:
    return _read(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or None


def _load() -> float | None:
    try:
        return round(os.getloadavg()[0], 2)
    except (OSError, AttributeError):
        return None


def _memory_bytes(root: Path) -> int | None:
    for line in (_read(root / "proc/meminfo") or "").splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "MemTotal:" and words[1].isdigit():
            return int(words[1]) * 1024
    return None


def _cpu_times(root: Path) -> list[float] | None:
    """Return user, nice, system, idle, iowait, irq, softirq, steal, … of all CPUs together, in seconds."""
    words = (_read(root / "proc/stat") or "").partition("\n")[0].split()
    if len(words) < 9 or words[0] != "cpu" or not all(word.isdigit() for word in words[1:]):
        return None
    ticks = os.sysconf("SC_CLK_TCK")
    return [int(word) / ticks for word in words[1:]]

"""Operators on integers beside the Q/DQ pairs they come from, and ONNX Runtime's own two forms.

python benchmarks/qoperator.py [--folder build/quantization] [--models GLOB] [--page FILE]

SQNR of the worst output against the float model, in dB; the share of samples whose outputs are equal bit by bit,
between pairs and operators and between operators with and without the runtime's optimizations; the operators' time as
a ratio to the pairs'. Models and inputs are those of ``dynamic.py``; one sample a run, one thread.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
from dynamic import ROOT, SHARED, Feeds, samples, session, sqnr, write

from penstock import graph
from penstock.errors import PenstockError
from penstock.stages.quantize import QuantizeSettings, quantize

HEADS = (
    "model", "pairs", "operators", "equal bits", "operators, not optimized", "equal bits", "time to pairs'",
    "ORT's pairs", "ORT's operators",
)  # fmt: skip
MOST_DB = 0.5  # between pairs and operators
SESSIONS = 6
LARGE = 200_000  # numbers in an input from which on there are fewer samples


class Reader:
    """The library's protocol for calibration samples."""

    def __init__(self, batches: list[Feeds]) -> None:
        self.rest: Iterator[Feeds] = iter(batches)

    def get_next(self) -> Feeds | None:
        """Return the next feeds."""
        return next(self.rest, None)


def theirs(path: Path, into: Path, batches: list[Feeds], form: str) -> None:
    """Quantize with ONNX Runtime's library at the same types."""
    from onnxruntime import quantization as library

    library.quantize_static(
        path, into, Reader(batches), quant_format=library.QuantFormat[form], per_channel=True,
        activation_type=library.QuantType.QUInt8, weight_type=library.QuantType.QInt8,
    )  # fmt: skip


def equal(one: list[list[np.ndarray]], other: list[list[np.ndarray]]) -> float:
    """Return the share of samples whose outputs are equal."""
    pairs = zip(one, other, strict=True)
    return float(np.mean([all(np.array_equal(a, b) for a, b in zip(x, y, strict=True)) for x, y in pairs]))


def ratio(one: Path, other: Path, feeds: list[Feeds], seconds: float) -> float:
    """Return the median of the times of ``one`` to those of ``other``, run in turns, over several pairs of sessions.

    Of two sessions the one that is made first is slower by several per cent, even of one model: that alternates.
    """
    found = []
    for number in range(SESSIONS):
        first, second = (_times(one, other, feeds, seconds / SESSIONS) if number % 2 else
                         _times(other, one, feeds, seconds / SESSIONS)[::-1])  # fmt: skip
        found.append(float(np.median(first / second)))
    return float(np.mean(found))


def _times(one: Path, other: Path, feeds: list[Feeds], seconds: float) -> list[np.ndarray]:
    sessions, times = [session(one), session(other)], [[], []]
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[0]) < 10:
        feed = dict(feeds[len(times[0]) % len(feeds)])
        for turn in (0, 1) if len(times[0]) % 2 else (1, 0):
            start = time.perf_counter()
            sessions[turn].run(None, feed)
            times[turn].append(time.perf_counter() - start)
    return [np.array(taken) for taken in times]


def row(name: str, path: Path, folder: Path, work: Path, seconds: float) -> tuple[list[str], float]:
    """Measure a model; return its cells and the difference between pairs and operators in dB."""
    feeds = samples(path, name, folder, 64)
    large = max(array.size for array in feeds[0].values()) > LARGE
    feeds = feeds[:8] if large else feeds
    batches = samples(path, name, folder, 16 if large else 128, "train")
    pairs, operators, other = work / "pairs.onnx", work / "operators.onnx", work / "other.onnx"
    quantize(path, batches, QuantizeSettings(guard=False), pairs)
    quantize(path, batches, QuantizeSettings(guard=False, format="qoperator"), operators)

    def run(file: Path, *, optimized: bool = True) -> list[list[np.ndarray]]:
        opened = session(file, optimized=optimized)
        return [opened.run(None, dict(feed)) for feed in feeds]

    want, of_pairs, of_operators = run(path), run(pairs), run(operators)
    plain = run(operators, optimized=False)
    peers = []
    for form in ("QDQ", "QOperator"):
        try:
            theirs(path, other, batches, form)
            peers.append(f"{sqnr(run(other), want):.1f}")
        except Exception as error:  # a library meets models of all kinds
            peers.append(f"fails: {type(error).__name__}")
    decibels = [sqnr(one, want) for one in (of_pairs, of_operators, plain)]
    cells = [
        name, f"{decibels[0]:.1f}", f"{decibels[1]:.1f}", f"{equal(of_pairs, of_operators):.0%}", f"{decibels[2]:.1f}",
        f"{equal(plain, of_operators):.0%}", f"{ratio(operators, pairs, feeds, seconds):.2f}", *peers,
    ]  # fmt: skip
    return cells, max(decibels[0] - decibels[1], decibels[0] - decibels[2])


def models(folder: Path, pattern: str) -> Mapping[str, Path]:
    """Return the float models by name."""
    found = {path.stem: path for path in sorted(folder.glob("*.onnx"))}
    found |= {path.parent.name: path for path in sorted(SHARED.glob("*/model.onnx"))}
    return {name: path for name, path in found.items() if fnmatch(name, pattern)}


def main() -> int:
    """Measure, print, and write into a page where one is named; exit code 1 where operators lose 0.5 dB."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / "build/quantization", help="nets and inputs")
    parser.add_argument("--models", default="*", help="only models of these names (a glob)")
    parser.add_argument("--seconds", type=float, default=3.0, help="of timing for each model")
    parser.add_argument("--page", type=Path, help="write the table between the marks in this file")
    asked = parser.parse_args()
    logging.disable(logging.WARNING)
    lines = [f"| {' | '.join(HEADS)} |", f"|{'---|' * len(HEADS)}"]
    worse = []
    for name, path in models(asked.folder, asked.models).items():
        try:
            if graph.precision(graph.load(path)) != "fp32":
                continue
            with tempfile.TemporaryDirectory() as work:
                cells, lost = row(name, path, asked.folder, Path(work), asked.seconds)
        except PenstockError as error:
            print(f"{name}: {error.what}", file=sys.stderr)
            continue
        except Exception as error:  # a model that made-up inputs don't fit
            print(f"{name}: {type(error).__name__}: {str(error)[:200]}", file=sys.stderr)
            continue
        lines.append(f"| {' | '.join(cells)} |")
        print(lines[-1], file=sys.stderr, flush=True)
        if lost > MOST_DB:
            worse.append(name)
    table = "\n".join(lines)
    print(table)
    write(asked.page, "qoperator", table)
    if worse:
        print(f"operators are less accurate than pairs: {', '.join(worse)}", file=sys.stderr)
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())

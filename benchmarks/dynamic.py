"""Dynamic int8 side by side: Penstock against onnxruntime.quantization.quantize_dynamic.

python benchmarks/dynamic.py [--folder build/quantization] [--models GLOB] [--samples 128] [--page FILE]

Models are the nets below --folder (inputs from the .npz of the same name there, else images.npz) and the real models
of PENSTOCK_SHARED (inputs from the .npz of the same name, else made from their signatures). One sample a run, one
thread. SQNR is of the worst output over all samples against the float model in ONNX Runtime; latency is the median of
runs in which every model takes its turn, as a ratio to the float model's. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
from quantization_data import BY_HAND, EVALUATION_SEED, SEED

from penstock import api, graph
from penstock.data import DataSettings
from penstock.errors import PenstockError
from penstock.stages.quantize import QuantizeSettings, quantize

ROOT = Path(__file__).parent.parent
SHARED = Path(os.environ.get("PENSTOCK_SHARED", ROOT.parent / "shared")) / "models"
LUCK_DB = 1.0  # by which models differ whose weights are rounded otherwise, but no better
LARGER = 2.0  # times our file: what left that much in float isn't held against it
SESSIONS = 6  # of each model: two differ by several per cent
Feeds = Mapping[str, np.ndarray]
Make = Callable[[Path, Path], None]


@dataclass(frozen=True, slots=True)
class Cell:
    """What one tool made of one model: dB, ratio to the float model's time, bytes; or why nothing."""

    sqnr_db: float = float("nan")
    ratio: float = float("nan")
    size: int = 0
    failed: str = ""

    @property
    def rank(self) -> float:
        """The accuracy, that of what failed below all others."""
        return -float("inf") if self.failed else self.sqnr_db

    def __str__(self) -> str:
        return self.failed or f"{self.sqnr_db:.1f} dB, {self.ratio:.2f}×, {self.size / 1e3:.0f} KB"


def own(small: bool) -> Make:
    """Return what quantizes with Penstock."""

    def make(source: Path, into: Path) -> None:
        quantize(source, [], QuantizeSettings(method="dynamic", force_small=small), into)

    return make


def theirs(kind: str, per_channel: bool) -> Make:
    """Return what quantizes with ONNX Runtime's library: all that it takes but convolutions, as ours does."""
    from onnxruntime import quantization

    def make(source: Path, into: Path) -> None:
        quantization.quantize_dynamic(
            source, into, weight_type=quantization.QuantType[kind], per_channel=per_channel,
            op_types_to_quantize=["MatMul", "Gemm", "LSTM", "Attention"], extra_options={"EnableSubgraph": True},
        )  # fmt: skip

    return make


TOOLS: dict[str, Make] = {
    "Penstock": own(False),
    "Penstock, small layers too": own(True),
    "ORT QInt8 per channel": theirs("QInt8", True),
    "ORT QInt8": theirs("QInt8", False),
    "ORT QUInt8 per channel": theirs("QUInt8", True),
    "ORT QUInt8": theirs("QUInt8", False),
}


def samples(path: Path, name: str, folder: Path, most: int, part: str = "test") -> list[Feeds]:
    """Return feeds of one sample each, of the part that a model is evaluated or calibrated on."""
    if name in BY_HAND:
        seed = EVALUATION_SEED if part == "test" else SEED
        return [BY_HAND[name](np.random.RandomState(seed + i)) for i in range(most)]
    signature = graph.signature(graph.load(path))
    held = folder / f"{name}.npz"
    if not held.is_file() and path.parent == folder:
        held = folder / "images.npz"
    if not held.is_file():
        roles = api.role_feeds(path, DataSettings(), int(part == "test"))
        return [rows for _, (_, rows) in zip(range(most), roles.calibrate.batches(1), strict=False)]
    arrays = np.load(held)
    names = [spec.name for spec in signature.inputs]
    lone = f"{'x' if f'x_{part}' in arrays else names[0]}_{part}"
    found = {name: arrays[f"{name}_{part}" if f"{name}_{part}" in arrays else lone] for name in names}
    count = min(most, *(len(array) for array in found.values()))
    return [{name: array[n : n + 1] for name, array in found.items()} for n in range(count)]


def session(path: Path, *, optimized: bool = True):
    """Open a model on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def sqnr(got: list[list[np.ndarray]], want: list[list[np.ndarray]]) -> float:
    """Return the worst output's ratio of signal to noise in dB."""
    worst = float("inf")
    for index, first in enumerate(want[0]):
        if first.dtype.kind != "f":
            continue
        signal = noise = 0.0
        for a, b in zip(got, want, strict=True):
            signal += float(np.square(b[index], dtype=np.float64).sum())
            noise += float(np.square(a[index].astype(np.float64) - b[index]).sum())
        worst = min(worst, 10 * np.log10(signal / noise) if noise and signal else float("inf"))
    return worst


def ratios_of(files: Mapping[str, Path], feeds: list[Feeds], seconds: float) -> dict[str, float]:
    """Return the medians of the models' times to the float model's; every model takes its turn in every round."""
    order = random.sample(sorted(files), len(files))  # the sessions that are made first are slower
    opened = {tool: session(files[tool]) for tool in order}
    times: dict[str, list[float]] = {tool: [] for tool in opened}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times["fp32"]) < 10:
        for tool, one in opened.items():
            feed = dict(feeds[len(times[tool]) % len(feeds)])
            start = time.perf_counter()
            one.run(None, feed)
            times[tool].append(time.perf_counter() - start)
    return {tool: float(np.median(np.array(taken) / np.array(times["fp32"]))) for tool, taken in times.items()}


def row(name: str, path: Path, folder: Path, most: int, seconds: float) -> dict[str, Cell]:
    """Measure one model."""
    feeds = samples(path, name, folder, most)
    cells: dict[str, Cell] = {}
    with tempfile.TemporaryDirectory() as work:
        files = {"fp32": path}
        for tool, make in TOOLS.items():
            into = Path(work) / f"{len(files)}.onnx"
            try:
                make(path, into)
                session(into)
                if graph.precision(graph.load(into)) == "fp32":
                    raise LookupError
                files[tool] = into
            except PenstockError as error:
                cells[tool] = Cell(failed=error.id)
            except LookupError:
                cells[tool] = Cell(failed="quantizes nothing")
            except Exception as error:  # a library meets models of all kinds
                cells[tool] = Cell(failed=f"fails: {type(error).__name__}")
        opened = {tool: session(file) for tool, file in files.items()}
        results = {tool: [one.run(None, dict(f)) for f in feeds] for tool, one in opened.items()}
        ratios = [ratios_of(files, feeds, seconds / SESSIONS) for _ in range(SESSIONS)]
        for tool in TOOLS:
            if tool in files:
                ratio = float(np.median([one[tool] for one in ratios]))
                size = files[tool].stat().st_size
                cells[tool] = Cell(sqnr(results[tool], results["fp32"]), ratio, size)
    return cells


def write(page: Path | None, mark: str, table: str) -> None:
    """Put a table between its marks in a page."""
    if page is not None:
        head, begin, rest = page.read_text().partition(f"<!-- {mark} -->\n")
        _, end, tail = rest.partition("<!-- end -->")
        page.write_text(f"{head}{begin}{table}\n{end}{tail}")


def main() -> int:
    """Measure, print, and write into a page where one is named; exit code 1 where a peer is more accurate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / "build/quantization", help="nets and inputs")
    parser.add_argument("--models", default="*", help="only models of these names (a glob)")
    parser.add_argument("--samples", type=int, default=128, help="samples for the SQNR")
    parser.add_argument("--seconds", type=float, default=5.0, help="of timing for each model")
    parser.add_argument("--page", type=Path, help="write the table between the marks in this file")
    asked = parser.parse_args()
    logging.disable(logging.WARNING)
    models = {path.stem: path for path in sorted(asked.folder.glob("*.onnx"))}
    models |= {path.parent.name: path for path in sorted(SHARED.glob("*/model.onnx"))}
    lines = [f"| model | {' | '.join(TOOLS)} |", f"|---{'|---' * len(TOOLS)}|"]
    worse = []
    for name, path in models.items():
        if not fnmatch(name, asked.models):
            continue
        try:
            cells = row(name, path, asked.folder, asked.samples, asked.seconds)
        except Exception as error:  # a model that can't run here at all
            print(f"{name}: {error}", file=sys.stderr)
            continue
        if all(cells[tool].failed for tool in TOOLS if tool.startswith("Penstock")):
            print(f"{name}: {next(iter(cells.values()))}", file=sys.stderr)
            continue
        lines.append(f"| {name} | {' | '.join(str(cells[tool]) for tool in TOOLS)} |")
        print(lines[-1], file=sys.stderr, flush=True)
        ours = max((cells[tool] for tool in TOOLS if tool.startswith("Penstock")), key=lambda cell: cell.rank)
        peers = [
            cell.sqnr_db for tool, cell in cells.items()
            if tool.startswith("ORT") and not cell.failed and cell.size < LARGER * ours.size
        ]  # fmt: skip
        best = max(peers, default=0.0)
        if ours.sqnr_db < best - LUCK_DB:
            worse.append(name)
    table = "\n".join(lines)
    print(table)
    write(asked.page, "dynamic", table)
    if worse:
        print(f"less accurate by 1 dB or more than the best of ONNX Runtime's: {', '.join(worse)}", file=sys.stderr)
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())

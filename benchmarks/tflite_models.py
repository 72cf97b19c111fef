"""Each CNN of the shared models on integers, as TFLite in LiteRT beside ONNX Runtime: written and equal, or refused.

python benchmarks/tflite_models.py [--models NAMES] [--page FILE]

A float model is quantized for ``integer-only`` targets on the samples of the quantization benchmarks; one that is
quantized already is taken as it is. Both runtimes get the same samples, ONNX Runtime with its optimizations off, since
these round for themselves. A *step* is a 255th of what an output reaches over.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import optimizer_tables
import quantization_data as data
from quantization_tools import MADE

from penstock import api, graph, running
from penstock.backends import Loadable, litert, onnxruntime
from penstock.data import DataSettings
from penstock.deployment import Deployment
from penstock.errors import PenstockError
from penstock.stages.quantize import QuantizeSettings

SHARED = Path(os.environ.get("PENSTOCK_SHARED", Path(__file__).resolve().parents[2] / "shared")) / "models"
SAMPLES = 8
Arrays = Sequence[np.ndarray]
LONGEST = 200
WINDOWS = ("Conv", "ConvTranspose", "QLinearConv", "ConvInteger")


def main() -> int:
    """Write, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="", help="only these, comma-separated")
    parser.add_argument("--page", type=Path, help="write the table between the marks in this file")
    asked = parser.parse_args()
    cases = {case.model: case for case in data.cases().values()}
    wanted = (
        asked.models.split(",") if asked.models else [path.parent.name for path in sorted(SHARED.glob("*/model.onnx"))]
    )
    rows = [["model", "integers made by", "for", "equal numbers", "largest difference, steps", "between both, dB",
             "LiteRT to float, dB", "ONNX Runtime to float, dB"]]  # fmt: skip
    told = []
    for name in wanted:
        model = SHARED / name / "model.onnx"
        loaded = graph.load(model)
        ops = {node.op_type for node in graph.all_nodes(loaded)}
        if not ops & {*WINDOWS}:
            continue
        by, path, consumer = "its author", model, "–"
        try:
            if not ops & {"QuantizeLinear", "DequantizeLinear", "QLinearConv", "ConvInteger"}:
                by, path = "Penstock", MADE / f"{name}-tflite.onnx"
                consumer = quantized(model, path, cases[model].settings if model in cases else None)
            rows.append([name, by, consumer, *compared(path, model, cases.get(model))])
        except PenstockError as error:
            rows.append([name, by, consumer, *"–––––"])
            told.append(f"- {name}: {short(error.what)}")
        print("  ".join(rows[-1]), file=sys.stderr, flush=True)
    heading = f"Quantized CNNs as TFLite ({optimizer_tables.today()})"
    text = optimizer_tables.table(heading, rows) + "\n\n" + "\n".join(told)
    print(text)
    if asked.page:
        optimizer_tables.put_into(asked.page, "tflite-models", text)
    return 0


def quantized(model: Path, path: Path, settings: DataSettings | None) -> str:
    """Quantize for integers alone, or where that is refused so that some nodes stay in float; return the consumer."""
    try:
        api.quantize(model, path, QuantizeSettings(consumer="integer-only"), data=settings)
    except PenstockError as error:
        if "stay in float" not in error.what:
            raise
        api.quantize(model, path, QuantizeSettings(consumer="ort-cpu"), data=settings)
        return "ort-cpu"
    return "integer-only"


def compared(path: Path, source: Path, case: data.Case | None) -> list[str]:
    """Return the share of equal numbers, the largest difference in steps, and the least signals to noise."""
    feeds = next(iter(case.evaluation(SAMPLES))) if case is not None and case.fixed_batch is None else None
    if feeds is None:
        feeds = running.role_feeds(path, case.settings if case else DataSettings(), 0).golden.first(1)
    plain = Deployment("m", "m", "", "int8", "onnxruntime", options={"optimization": "disabled"})
    there = Deployment("m", "m", "", "int8", "litert")
    sessions = litert.load(Loadable(path), there), onnxruntime.load(Loadable(path), plain)
    ours, theirs = (session.run(feeds) for session in sessions)
    real = onnxruntime.load(Loadable(source), plain).run(feeds)
    equal, steps = [], []
    for mine, other in zip(ours, theirs, strict=True):
        mine, other = mine.astype(np.float64), other.astype(np.float64)
        apart = np.abs(mine - other)
        equal.append((apart == 0).ravel())
        steps.append(255 * apart.max() / max(np.ptp(other), 1e-30))
    share = f"{np.concatenate(equal).mean():.2%}"
    noises = noise(ours, theirs), noise(ours, real), noise(theirs, real)
    return [share, f"{max(steps):.2f}", *(f"{one:.1f}" if np.isfinite(one) else "equal" for one in noises)]


def noise(some: Arrays, others: Arrays) -> float:
    """Return the least ratio of signal to noise of several outputs, in dB."""
    found = [np.inf]
    for mine, other in zip(some, others, strict=True):
        power = ((mine.astype(np.float64) - other.astype(np.float64)) ** 2).mean()
        if power:
            found.append(10 * np.log10((other.astype(np.float64) ** 2).mean() / power))
    return float(min(found))


def short(text: str) -> str:
    """Return a reason in one line."""
    text = " ".join(text.split()).replace(f"{SHARED}/", "")
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


if __name__ == "__main__":
    sys.exit(main())

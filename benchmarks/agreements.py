"""What the same .onnx file means on four runtimes: ONNX Runtime held against OpenVINO, LiteRT and WebAssembly.

python benchmarks/agreements.py [--models NAMES] [--backends NAMES] [--page FILE]

Each model of the shared collection is run over one golden set of made-up inputs (three of them over those of a data
function) on each backend, with the bounds that
`penstock verify` has for its precision; the golden outputs are those of ONNX Runtime without its optimizations. Where
two differ, `penstock bisect` looks for the first node where they part. Every cell is an agreement, a difference with
its node, or the runtime's reason not to run it. WebAssembly needs `penstock env add onnxruntime-web` and a Chromium.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import optimizer_tables

from penstock import bisecting, crossing
from penstock.data import DataSettings
from penstock.errors import PenstockError
from penstock.stages.consistency import Cell

SHARED = Path(os.environ.get("PENSTOCK_SHARED", Path(__file__).resolve().parents[2] / "shared")) / "models"
BACKENDS = ("onnxruntime", "openvino", "litert", "onnxruntime-web")
DATA = {  # of models whose signature doesn't say what suits them
    name: f"{Path(__file__).with_name('quantization_data.py')}:{function}"
    for name, function in {
        "silero-vad-if": "speech", "tiny-gpt2-genai": "continuation", "sklearn-tree-classifier": "measurements",
    }.items()
}  # fmt: skip
LONGEST = 160  # characters of a reason


def main() -> int:
    """Run, bisect, print; exit code 0 where each difference was bisected or is told why it couldn't be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="", help="only these, comma-separated")
    parser.add_argument("--backends", default=",".join(BACKENDS))
    parser.add_argument("--page", type=Path, help="write the table between the marks in this file")
    asked = parser.parse_args()
    backends = asked.backends.split(",")
    wanted = (
        asked.models.split(",") if asked.models else sorted(path.parent.name for path in SHARED.glob("*/model.onnx"))
    )
    rows, told, missed = [["model", *backends]], [], 0
    for name in wanted:
        model = SHARED / name / "model.onnx"
        try:
            made = crossing.crossed([model], str(model), backends=backends, data=settings(name))
            cells = {cell.backend: cell for cell in made.cells if "+" not in cell.backend}
        except PenstockError as error:
            rows.append([name, *["–"] * len(backends)])
            told.append(f"- {name}: no golden set: {short(error.what)}")
            continue
        rows.append([name, *(shown(cells[backend]) for backend in backends)])
        for backend in backends:
            cell = cells[backend]
            if cell.state == "differs":
                found = where(model, backend, settings(name))
                missed += found is None
                told.append(f"- {name} on {backend}: {cell.reason}. {found or 'no node was found'}")
            elif cell.reason:
                told.append(f"- {name} on {backend}: {cell.state}: {short(cell.reason)}")
        print("  ".join(rows[-1]), file=sys.stderr, flush=True)
    heading = f"Agreement of runtimes ({optimizer_tables.today()})"
    text = optimizer_tables.table(heading, rows) + "\n\n" + "\n".join(told)
    print(text)
    if asked.page:
        optimizer_tables.put_into(asked.page, "agreements", text)
    return 1 if missed else 0


def shown(cell: Cell) -> str:
    """Return a cell of the table: the largest difference to the largest value, or the state."""
    if cell.state == "agrees":
        figure = f"{cell.relative:.1e}" if cell.relative is not None else "equal"
        return f"{figure}, {cell.flips:.0%} flips" if cell.flips else figure
    return f"**differs** {cell.relative:.1e}" if cell.state == "differs" and cell.relative is not None else cell.state


def settings(name: str) -> DataSettings:
    """Return the data of a model: made up from its signature, but for a few."""
    return DataSettings(data=DATA.get(name, ""))


def where(model: Path, backend: str, data: DataSettings) -> str | None:
    """Bisect against plain ONNX Runtime, and say what was found; ``None`` where nothing was."""
    try:
        found = bisecting.bisect(
            model, backend=backend, against="reference" if backend == "onnxruntime" else "onnxruntime", data=data
        )
    except PenstockError as error:
        return None if error.id == "cannot-cut" else f"It can't be bisected: {short(error.what)}"
    if found is None:
        return None
    how = "alone, on the same inputs, it parts too" if found.confirmed else "alone, on the same inputs, it agrees"
    place = f"{found.op} {found.node!r}, node {found.position} of {found.nodes}"
    return f"They part at {place}, bound {found.bound:.0e}: {how}."


def short(text: str) -> str:
    """Return a reason in one line."""
    text = " ".join(text.split()).replace(f"{SHARED}/", "")
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


if __name__ == "__main__":
    sys.exit(main())

"""What the docs claim of the reference network, measured: every ratio from interleaved rounds of one run.

python benchmarks/reference_network.py [--data DIR] [--seconds 8]

Without --data it measures the digits network, which has the same architecture. Prints the ratio of each deployment to
ONNX Runtime's float32 with its 95 % interval, the int8 file's size, and the ladder from eager PyTorch.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from pathlib import Path

from penstock.build_settings import resolve
from penstock.pipeline import build
from penstock.timing.figures import ratio


def main() -> int:
    """Build, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="", help="folder of CIFAR-10")
    parser.add_argument("--seconds", type=float, default=8.0, help="time for each deployment's rounds")
    asked = parser.parse_args()
    source = "zoo:cifar10" if asked.data else "zoo:digits"
    data = {"data": {"data": asked.data}} if asked.data else {}
    settings = resolve({"": {"source": source}, "bench": {"seconds": asked.seconds, "footprint": False}, **data})
    with tempfile.TemporaryDirectory() as folder:
        result = build(settings, Path(folder) / "out")
    rows = {row.deployment.name: row for row in result.rows if row.rounds_ms}
    base = rows["fp32@onnxruntime"]
    print(f"{source}, batch 1, one thread, {len(base.rounds_ms)} interleaved rounds")
    for name, row in rows.items():
        print(f"{name:<20} p50 {row.p50_ms or math.nan:7.4f} ms   to fp32@onnxruntime "
              f"{ratio(row.rounds_ms, base.rounds_ms, 0).text()}")  # fmt: skip
    print(f"int8 file {rows['int8@onnxruntime'].size_bytes / 1e6:.3f} MB")
    for step in result.ladder.steps:
        print(f"ladder {step.before} → {step.name}: {step.text}")
    print(f"ladder in all {result.ladder.total_text}")
    for note in result.notes:
        print(f"note: {note}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

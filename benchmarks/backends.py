"""Every backend that can run here, side by side: the reference net in float32 and int8, batch 1 and 32, one thread.

python benchmarks/backends.py [--seconds 4] [--backends NAMES] [--page FILE]

Prints each deployment's ratio to ONNX Runtime's float32 from interleaved rounds of one run, with its 95 % interval, and
its throughput at a batch of 32; whether it is right, on CIFAR-10's images (``penstock verify``); and what ``select``
chooses of the in-process ones beside the fastest that was measured. Needs CIFAR-10 in build/cifar10; backends with an
environment of their own run where ``penstock env add`` has made it.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import cast

import optimizer_tables
import quantization_data as data
import quantization_nets as nets

from penstock import api, crossing, registry
from penstock.backends import Backend
from penstock.stages.bench import BenchResult, BenchSettings
from penstock.stages.quantize import QuantizeSettings
from penstock.stages.verify import VerifySettings

SOFTWARE = "onnxruntime-webgpu"  # without a GPU its browser computes on the CPU: minutes a round, and no speed to tell
BATCH = 32


def main() -> int:
    """Verify, time, print; exit code 1 where a deployment that runs isn't right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0, help="time for each deployment's rounds")
    parser.add_argument(
        "--backends", default="", help="only these, comma-separated (default: all but WebGPU in software)"
    )
    parser.add_argument("--page", type=Path, help="write the table between the marks in this file")
    asked = parser.parse_args()
    case = data.net_case("cifar10")
    models = [case.model, made(case)]
    chosen = asked.backends.split(",") if asked.backends else [name for name in here() if name != SOFTWARE]
    matrix = crossing.crossed(models, str(case.model), VerifySettings(logits=("output",)), backends=chosen,
                              data=case.settings)  # fmt: skip
    settings = BenchSettings(seconds=asked.seconds, throughput_batch=BATCH, footprint=False,
                             baseline=f"{case.model.stem}@onnxruntime")  # fmt: skip
    result = api.bench(models, settings, backends=chosen, data=case.settings)
    rows = [["deployment", "p50 ms", "ratio to ONNX Runtime's float32", f"a second at {BATCH}", "largest difference",
             "top answers that flip"]]  # fmt: skip
    held = {cell.name: cell for cell in matrix.cells}
    for timing in result.timings:
        cell = held[timing.name]
        many = timing.throughput.samples_per_s
        rows.append([
            timing.name, f"{timing.p50_ms:.3f}", timing.to_baseline.text() if timing.to_baseline else "–",
            f"{many:,.0f}" if many else "–", crossing.shown(cell), "–" if cell.flips is None else f"{cell.flips:.2%}",
        ])  # fmt: skip
    told = [f"- {cell.name}: {cell.state}: {cell.reason}" for cell in matrix.cells if cell.reason]
    told += [f"- {failure.name}: not timed: {failure.reason}" for failure in result.failures]
    told += [f"- {note}" for note in (*result.noise, *result.cautions)]
    notes = (
        f"Batch 1, one thread, {result.rounds} interleaved rounds; the clock stands beside the runtime. "
        f"Fastest at batch 1: {fastest(result)}; at {BATCH}: {fastest(result, many=True)}."
    )
    text = optimizer_tables.table(f"Backends ({optimizer_tables.today()})", rows) + f"\n\n{notes}\n\n" + "\n".join(told)
    print(text)
    if asked.page:
        optimizer_tables.put_into(asked.page, "backends", text)
    return 0 if matrix.holds else 1


def here() -> list[str]:
    """Return the backends that run model files and can run here, the oracle left out: it is not there to be timed."""
    found = []
    for name in registry.names("backends"):
        backend = cast(Backend, registry.load("backends", name))
        if "onnx" in backend.FORMATS and backend.ROLE == "candidate" and not backend.available():
            found.append(name)
    return found


def made(case: data.Case) -> Path:
    """Quantize the net once, for integers alone, which every runtime takes."""
    path = nets.ROOT / "build/quantization/cifar10-int8.onnx"
    if not path.exists():
        api.quantize(case.model, path, QuantizeSettings(consumer="integer-only"), data=case.settings)
    return path


def fastest(result: BenchResult, *, many: bool = False) -> str:
    """Return the deployment with the least latency, or with the most samples a second."""
    if many:
        return max(result.timings, key=lambda one: one.throughput.samples_per_s or 0.0).name
    return min(result.timings, key=lambda one: one.p50_ms if one.p50_ms else math.inf).name


if __name__ == "__main__":
    sys.exit(main())

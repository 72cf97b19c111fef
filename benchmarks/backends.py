"""Every backend that can run here, side by side: the reference net in float32 and int8, batch 1 and 32, one thread.

python benchmarks/backends.py [--seconds 4] [--backends NAMES] [--page FILE]

A build of the zoo's CIFAR-10 network, on PyTorch and its compiler too: each deployment's ratio to ONNX Runtime's
float32 from interleaved rounds of one run, with its 95 % interval, its throughput at a batch of 32, how far it is from
the module's logits, and what ``penstock select`` chooses for latency and for throughput, beside the fastest that was
measured of those that passed. Needs CIFAR-10 in build/cifar10; backends with an environment of their own run where
``penstock env add`` has made it.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import optimizer_tables
import quantization_data as data
import quantization_nets as nets

from penstock import api, registry, store
from penstock.backends import Backend
from penstock.build_settings import BuildSettings
from penstock.data import DataSettings
from penstock.record import Record
from penstock.stages.bench import BenchSettings
from penstock.stages.select import SelectSettings
from penstock.stages.verify import VerifySettings
from penstock.summary import Row

SOFTWARE = "onnxruntime-webgpu"  # without a GPU its browser computes on the CPU: minutes a round, and no speed to tell
BATCH = 32
SOURCE = "zoo:cifar10"
MAX_DROP = 0.5


def main() -> int:
    """Build, print; exit code 1 where a deployment isn't right, or another is chosen than the fastest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0, help="time for each deployment's rounds")
    parser.add_argument(
        "--backends", default="", help="only these, comma-separated (default: all but WebGPU in software)"
    )
    parser.add_argument("--page", type=Path, help="write the table between the marks in this file")
    asked = parser.parse_args()
    chosen = asked.backends.split(",") if asked.backends else [name for name in here() if name != SOFTWARE]
    settings = BuildSettings(
        SOURCE, backends=tuple(chosen),
        data=DataSettings(data=str(data.net_case("cifar10").data)),
        verify=VerifySettings(fp32_relative=1e-5),
        bench=BenchSettings(seconds=asked.seconds, throughput_batch=BATCH, footprint=False,
                            baseline="fp32@onnxruntime"),
        select=SelectSettings(max_drop=MAX_DROP),
    )  # fmt: skip
    with store.scratch(nets.ROOT / "build") as work:
        api.build(settings, work / "out", cache=work / "cache")  # measured anew, whatever was kept
        best = {}
        for objective in ("latency", "throughput"):
            found, rows = api.select(work / "out", SelectSettings(objective=objective, max_drop=MAX_DROP))
            best[objective] = found.chosen
        held = {
            entry.subject: entry.measured for entry in store.BuildFolder(work / "out").read_ledger()
            if isinstance(entry, Record) and entry.stage == "verify"
        }  # fmt: skip
    table = [["deployment", "p50 ms", "ratio to ONNX Runtime's float32", f"a second at {BATCH}", "largest difference",
              "top answers that flip", "refused"]]  # fmt: skip
    for row in rows:
        table.append([row.deployment.name, *cells(row, held.get(row.deployment.name, {}))])
    refused = [row for row in rows if any(verdict.gate in ("load", "verify", "fallback") for verdict in row.refusals)]
    told = [f"- {row.deployment.name}: {row.refusals[0].reason}" for row in rows if row.refusals]
    fast = {"latency": fastest(rows), "throughput": fastest(rows, many=True)}
    told += [f"- {name}: not measured: {why}" for name, why in left_out(chosen).items()]
    notes = [
        f"Batch 1, one thread, interleaved rounds; the clock stands beside the runtime. `select` chooses "
        f"{best['latency']} at batch 1 and {best['throughput']} at {BATCH}; the fastest measured of those that passed "
        f"are {fast['latency']} and {fast['throughput']}."
    ]
    text = optimizer_tables.table(f"Backends ({optimizer_tables.today()})", table)
    text += "\n\n" + "\n\n".join([*notes, "\n".join(told)]).rstrip()
    print(text)
    if asked.page:
        optimizer_tables.put_into(asked.page, "backends", text)
    return 1 if refused or best != fast else 0


def here() -> list[str]:
    """Return the backends that can run here, the oracle left out: it is not there to be timed."""
    found = []
    for name in registry.names("backends"):
        backend = cast(Backend, registry.load("backends", name))
        if backend.ROLE != "oracle" and not backend.available():
            found.append(name)
    return found


def left_out(chosen: Sequence[str]) -> dict[str, str]:
    """Say of each backend that isn't measured why."""
    found = {}
    for name in registry.names("backends"):
        backend = cast(Backend, registry.load("backends", name))
        if name in chosen:
            continue
        if backend.ROLE == "oracle":
            found[name] = "it is the oracle, in Python"
        else:
            found[name] = backend.available() or (
                "in software it is hundreds of times slower than WebAssembly; --backends has it" if name == SOFTWARE
                else "it wasn't asked for"
            )  # fmt: skip
    return found


def cells(row: Row, measured: dict) -> list[str]:
    """Return what the table says of a deployment."""
    outputs = list((measured.get("outputs") or {}).values())
    far = max((one["relative"] for one in outputs if one["relative"] is not None), default=None)
    agree = [one["top1_agreement"] for one in outputs if one["top1_agreement"] is not None]
    ratio = "–" if row.ratio is None else "{:.2f}× ({:.2f}–{:.2f})".format(*row.ratio)
    return [
        f"{row.p50_ms:.3f}" if row.p50_ms else "–", ratio, f"{row.throughput:,.0f}" if row.throughput else "–",
        "–" if far is None else f"{far:.1e}", "–" if not agree else f"{1 - min(agree):.2%}",
        ", ".join(dict.fromkeys(verdict.gate for verdict in row.refusals)),
    ]  # fmt: skip


def fastest(rows: list[Row], *, many: bool = False) -> str:
    """Return the candidate with the least latency, or with the most samples a second, of those nothing refused."""
    passed = [row for row in rows if row.deployment.role == "candidate" and not row.refusals]
    if many:
        return max(passed, key=lambda row: row.throughput or 0.0).deployment.name
    return min(passed, key=lambda row: row.p50_ms or math.inf).deployment.name


if __name__ == "__main__":
    sys.exit(main())

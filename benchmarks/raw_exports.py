"""Raw exports against clean ones: what each optimizer makes of dynamo's raw graph, timed in ONNX Runtime.

python benchmarks/raw_exports.py [--peers build/peers/bin/python] [--seconds 4] [--page FILE]

Every net of ``nets`` as its clean export (dynamo), raw, and raw after each tool; one thread, batch 1, interleaved
rounds, ratios to the clean export with 95 % intervals. The runtime's own optimizations are on, as they are in use.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import judging
import nets
import optimizer_tables
from optimizer_tool import TOOLS
from warm import Warm

from penstock import graph, inputs, registry
from penstock.backends import Backend, Loadable
from penstock.deployment import Deployment
from penstock.errors import InputError
from penstock.timing import rounds
from penstock.timing.figures import ratio

HERE = Path(__file__).parent
BUILD = HERE.parent / "build"
CALLS = 50  # of a burst


def main() -> int:
    """Optimize, time, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, default=BUILD / "peers/bin/python", help="the peers' Python")
    parser.add_argument("--seconds", type=float, default=4.0, help="time for each model's rounds")
    parser.add_argument("--page", type=Path, help="write the table between the marks in this file")
    asked = parser.parse_args()
    paths = nets.export_all(BUILD / "nets")
    rows = [["net", "clean (ms)", "raw", *TOOLS, "nodes: clean, raw, Penstock's"]]
    for name in nets.NETS:
        clean, raw = paths[f"{name}/dynamo"], paths[f"{name}/raw-dynamo"]
        models = {"clean": clean, "raw": raw} | optimized(raw, BUILD / "raw" / name, asked.peers)
        timed = time_side_by_side(models, asked.seconds)
        cells = [ratio(timed[tool], timed["clean"], 0).text() if tool in timed else "!" for tool in ("raw", *TOOLS)]
        counts = [str(judging.count(judging.read(models[one]))) for one in ("clean", "raw", "penstock")]
        rows.append([name, f"{statistics.median(timed['clean']) / 1e6:.3f}", *cells, ", ".join(counts)])
        print(rows[-1], file=sys.stderr, flush=True)
    text = optimizer_tables.table(f"Latency to the clean export's ({optimizer_tables.today()})", rows)
    print(text)
    if asked.page:
        optimizer_tables.put_into(asked.page, "raw-exports", text)
    return 0


def optimized(raw: Path, folder: Path, peers: Path) -> dict[str, Path]:
    """Let every tool optimize a model; leave out those that fail."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for tool in TOOLS:
        python = sys.executable if tool == "penstock" else str(peers)
        warm = Warm([python, str(HERE / "optimizer_tool.py"), tool], folder / "tools.log")
        if "seconds" in warm.ask({"model": str(raw), "out": str(folder / f"{tool}.onnx")}):
            found[tool] = folder / f"{tool}.onnx"
        warm.close()
    return found


def time_side_by_side(
    models: Mapping[str, Path], seconds: float, backend: str = "onnxruntime"
) -> dict[str, list[float]]:
    """Time models on the same input in interleaved rounds; return each round's median in ns."""
    loader = cast(Backend, registry.load("backends", backend))
    runs = {}
    first = graph.signature(graph.load(next(iter(models.values()))))
    for name, path in models.items():
        try:
            session = loader.load(Loadable(path), Deployment(name, "", "", "fp32", backend, threads=1))
        except InputError:
            continue
        feeds = inputs.seeded(first, batch=1, seed=0)
        names = [spec.name for spec in graph.signature(graph.load(path)).inputs]
        given = dict(zip(names, feeds.values(), strict=True))
        runs[name] = lambda session=session, given=given: session.run(given)
    call_ns = {name: rounds.warm_up(run, calls=20, seconds=0.5).call_ns for name, run in runs.items()}
    timed = rounds.interleave(runs, call_ns, min_rounds=15, calls_per_round=CALLS, seconds=seconds, seed=0)
    return {name: [statistics.median(burst) for burst in bursts] for name, bursts in timed.samples.items()}


if __name__ == "__main__":
    sys.exit(main())

"""What size costs: a chain of 10,000 and of 100,000 nodes, and a model with gigabytes of weights beside it.

python benchmarks/large_models.py [--gigabytes 3] [--rounds 3] [--page FILE]

Each run is a process of its own. The chains' times are CPU seconds of optimizing alone, load and save included; the
heavy model's memory is the most anonymous memory that was seen, looked at every 5 ms. Needs room for twice the weights,
which are deleted afterwards.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import generated
import optimizer_tables

BUILD = Path(__file__).parent.parent / "build/large"
ROOM = 2.2  # times the weights
POLL_S = 0.005
TIMED = """
import json, sys, time
from pathlib import Path
from penstock.precheck import CheckSettings, limits
from penstock.stages.optimize import OptimizeSettings, optimize
import onnx_ir, onnx
began = time.process_time()
with limits(CheckSettings(max_nodes=200_000, max_tensors=200_000)):  # larger than what is let in by default
    done = optimize(Path(sys.argv[1]), OptimizeSettings(proof=False, strict=True), Path(sys.argv[2]))
print(json.dumps([time.process_time() - began, done.nodes_before, done.nodes_after, done.settled]))
"""


def main() -> int:
    """Measure and print; exit code 1 where a bound doesn't hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=3.0, help="weights of the heavy model")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each chain, taken in turns")
    parser.add_argument("--page", type=Path, help="write the table between the marks in this file")
    asked = parser.parse_args()
    BUILD.mkdir(parents=True, exist_ok=True)
    rows = [["what", "measured", "bound"]]
    try:
        times, facts = chains(asked.rounds)
        factor = statistics.median(b / a for a, b in zip(*times, strict=True))
        rows.append([f"chain of 100,000 nodes to one of 10,000 ({facts})", f"{factor:.1f}×", "13×"])
        rows += (shares := heavy(int(asked.gigabytes * 1e9)))
    finally:
        shutil.rmtree(BUILD, ignore_errors=True)
    text = optimizer_tables.table(f"Large models ({optimizer_tables.today()})", rows)
    print(text)
    if asked.page:
        optimizer_tables.put_into(asked.page, "large-models", text)
    return 0 if factor <= 13 and all(float(row[1].split()[0]) < 0.2 for row in shares) else 1


def chains(rounds: int) -> tuple[list[list[float]], str]:
    """Time both chains in turns; return their seconds, and the median in words."""
    sizes = (10_000, 100_000)
    paths = [generated.chain(size, BUILD / f"chain-{size}.onnx") for size in sizes]
    seconds: list[list[float]] = [[], []]
    told = ["", ""]
    for _ in range(rounds):
        for place, path in enumerate(paths):
            done = subprocess.run(
                [sys.executable, "-c", TIMED, str(path), str(BUILD)], capture_output=True, text=True, check=True
            )
            spent, before, after, settled = json.loads(done.stdout)
            seconds[place].append(spent)
            told[place] = f"{before:,} → {after:,} nodes" + ("" if settled else ", no fixpoint")
    words = [f"{statistics.median(spent):.1f} s, {what}" for spent, what in zip(seconds, told, strict=True)]
    return seconds, "; ".join(reversed(words))


def heavy(size_bytes: int) -> list[list[str]]:
    """Optimize the heavy model into another folder and into its own; return rows with the peak memory."""
    if shutil.disk_usage(BUILD).free < ROOM * size_bytes:
        print(f"no room for {ROOM * size_bytes / 1e9:.1f} GB: the heavy model is left out", file=sys.stderr)
        return []
    model = generated.heavy(size_bytes, BUILD / "heavy" / "heavy.onnx")
    weights = sum(file.stat().st_size for file in model.parent.iterdir())
    rows = []
    for what, out in (("another folder", BUILD / "other/slim.onnx"), ("its own folder", model.with_name("slim.onnx"))):
        before = {file.name for file in model.parent.iterdir()}
        command = [str(Path(sys.executable).with_name("penstock")), "optimize", "--json", "-o", str(out), str(model)]
        peak, seconds, told = watched(command)
        new = [file for file in out.parent.iterdir() if file.name not in before or out.parent != model.parent]
        facts = json.loads(told)["result"]
        written = sum(file.stat().st_size for file in new)
        name = (f"anonymous memory on {weights / 1e9:.1f} GB of weights, into {what} ({seconds:.1f} s, "
                f"{facts['nodes_before']} → {facts['nodes_after']} nodes, {written / 1e6:,.1f} MB written, "
                f"proof {facts['proof']}: {facts['measured']['proof']['reason']})")  # fmt: skip
        rows.append([name, f"{peak / weights:.3f} of it", "0.2 of it"])
    return rows


def watched(command: list[str]) -> tuple[int, float, str]:
    """Run a command; return the most anonymous memory that it had, its seconds, and what it printed."""
    began, peak = time.perf_counter(), 0
    with (BUILD / "told").open("w+") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.DEVNULL)
        while process.poll() is None:
            with contextlib.suppress(OSError):
                for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
                    if line.startswith("RssAnon:"):
                        peak = max(peak, int(line.split()[1]) * 1024)
            time.sleep(POLL_S)
        if process.returncode:
            raise SystemExit(f"{command[0]} ended with {process.returncode}")
        out.seek(0)
        return peak, time.perf_counter() - began, out.read()


if __name__ == "__main__":
    sys.exit(main())

"""Penstock and its peers on real models and on nets of our own: nodes, correctness, time, side by side.

python benchmarks/optimizers.py --peers build/peers/bin/python [--models GLOB] [--tools A,B] [--quick] [--page FILE]

Every tool is a process that stays warm; a crash or two minutes without an answer is that tool's failure. Every result
is held against the original (Penstock's proof, the runtime's optimizations off). Times are of load, optimizing and
save, after one run that isn't counted, in rounds in which each tool takes its turn. Prints the tables; writes
build/optimizers.json, and with --page the tables into that file.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

import judging
import nets
import optimizer_tables
from judging import Judged
from optimizer_tool import TOOLS
from warm import Warm

from penstock import precheck

HERE = Path(__file__).parent
ROOT = HERE.parent
SHARED = Path(os.environ.get("PENSTOCK_SHARED", ROOT.parent / "shared")) / "models"
OWN = "penstock"
MOST_S = 20.0  # of rounds for one tool and model: a slow tool gets fewer


@dataclass(slots=True)
class Row:
    """One model: its nodes as it came, every tool's result, and every tool's seconds round by round."""

    nodes: int
    opset: int
    results: dict[str, Judged] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    idempotent: bool | None = None
    process_seconds: dict[str, list[float]] = field(default_factory=dict)

    def best_peer(self) -> int | None:
        """Return the fewest nodes of a peer's result that competes."""
        return min((one.nodes for tool, one in self.results.items() if tool != OWN and one.competes), default=None)


def main() -> int:
    """Run the benchmark; exit code 1 where Penstock fails on a model or misses without a reason."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, default=ROOT / "build/peers/bin/python", help="the peers' Python")
    parser.add_argument("--models", default="*", help="only models of these names (a glob)")
    parser.add_argument("--tools", default=",".join(TOOLS), help="only these tools")
    parser.add_argument("--quick", action="store_true", help="one round of times, no whole processes")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of times")
    parser.add_argument("--page", type=Path, help="write the tables between the marks in this file")
    asked = parser.parse_args()
    models = {path.parent.name: path for path in sorted(SHARED.glob("*/model.onnx"))}
    models = {name: path for name, path in models.items() if fnmatch(name, asked.models)}
    exported = nets.export_all(ROOT / "build/nets", asked.models)
    models |= {name.replace("/", "-"): path for name, path in exported.items()}
    tools = [tool for tool in TOOLS if tool in asked.tools.split(",")]
    table = measure(models, tools, asked.peers, 1 if asked.quick else asked.rounds)
    if not asked.quick:
        whole_processes(models, table, asked.peers, min(3, asked.rounds))
    reasons = tomllib.loads((HERE / "optimizer_misses.toml").read_text()).get("misses", {})
    text = optimizer_tables.markdown(table, tools, reasons)
    print(text)
    (ROOT / "build/optimizers.json").write_text(json.dumps(optimizer_tables.facts(table), indent=1))
    if asked.page:
        optimizer_tables.put_into(asked.page, "optimizers", text)
    return 0 if optimizer_tables.sound(table, reasons) else 1


def measure(models: Mapping[str, Path], tools: list[str], peers: Path, rounds: int) -> dict[str, Row]:
    """Run every tool on every model, judge what comes out, and time it."""
    work = ROOT / "build/optimized"
    work.mkdir(parents=True, exist_ok=True)
    log = work / "tools.log"
    warm = {tool: Warm([str(sys.executable if tool == OWN else peers), str(HERE / "optimizer_tool.py"), tool], log)
            for tool in tools}  # fmt: skip
    judge = Warm([sys.executable, str(HERE / "judging.py")], log)
    table: dict[str, Row] = {}
    order = random.Random(0)
    try:
        for name, path in models.items():
            original, place = judging.read(path), beside(path, work / name)
            row = table[name] = Row(judging.count(original), judging.interface(original).opset)
            first: dict[str, float] = {}
            for tool in tools:
                out = place / f"{tool}.onnx"
                out.unlink(missing_ok=True)
                answer = warm[tool].ask({"model": str(path), "out": str(out)})
                row.results[tool] = judged(path, out, answer, judge)
                if "seconds" in answer:
                    first[tool] = answer["seconds"]
            if OWN in first:
                once, twice = place / f"{OWN}.onnx", place / f"{OWN}-again.onnx"
                warm[OWN].ask({"model": str(once), "out": str(twice)})
                row.idempotent = twice.exists() and judging.digest(twice) == judging.digest(once)
            for turn in range(rounds):
                for tool in order.sample([*first], len(first)):
                    if turn == 0 or first[tool] * turn < MOST_S:
                        answer = warm[tool].ask({"model": str(path), "out": str(place / "timed.onnx")})
                        row.seconds.setdefault(tool, []).append(answer.get("seconds", float("nan")))
            print(optimizer_tables.line(name, row), file=sys.stderr, flush=True)
    finally:
        for one in [*warm.values(), judge]:
            one.close()
    return table


def beside(path: Path, folder: Path) -> Path:
    """Make a folder for the results of a model, with its external data in it: some tools leave it where it was."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for data in precheck.files_beside(path):
        target = folder / data.relative_to(path.parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(data, target)
    return folder


def judged(before: Path, after: Path, answer: Mapping[str, object], judge: Warm) -> Judged:
    """Judge one result."""
    if "error" in answer:
        return Judged(0, f"failed: {answer['error']}", "", 0.0)
    try:
        original, result = judging.read(before), judging.read(after)
    except Exception as error:  # a tool may write anything
        return Judged(0, f"not readable: {error}"[:200], "", 0.0)
    nodes = judging.count(result)
    left = judging.left_behind(judging.interface(original), judging.interface(result))
    proof = judge.ask({"before": str(before), "after": str(after)})
    if "error" in proof:
        return Judged(nodes, f"not comparable: {proof['error']}", left, 0.0)
    problem = str(proof["reason"]) if proof["state"] == "failed" else ""
    note = str(proof["reason"]) if proof["state"] in ("skipped", "partial") else ""
    return Judged(nodes, problem, left, float(proof["worst"]), note)


def whole_processes(models: Mapping[str, Path], table: Mapping[str, Row], peers: Path, rounds: int) -> None:
    """Time ``penstock optimize --no-proof`` and onnxsim's command as whole processes, interleaved."""
    out = str(ROOT / "build/optimized/process.onnx")
    penstock = [str(Path(sys.executable).with_name("penstock")), "optimize", "-q", "--no-proof", "-o", out]
    commands = {OWN: penstock, "onnxsim": [str(peers.with_name("onnxsim"))]}
    log = ROOT / "build/optimized/tools.log"
    for _ in range(rounds):
        for name, path in models.items():
            for tool in random.sample([*commands], 2):
                arguments = [str(path)] if tool == OWN else [str(path), out]
                if (seconds := run([*commands[tool], *arguments], log)) is not None:
                    table[name].process_seconds.setdefault(tool, []).append(seconds)


def run(command: list[str], log: Path) -> float | None:
    """Run a command; return its seconds, ``None`` where it fails."""
    began = time.perf_counter()
    with log.open("ab") as told:
        try:
            done = subprocess.run(command, stdout=told, stderr=told, check=False, timeout=120)
        except subprocess.TimeoutExpired:
            return None
    return time.perf_counter() - began if done.returncode == 0 else None


if __name__ == "__main__":
    sys.exit(main())

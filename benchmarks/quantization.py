"""Penstock's quantizer held against onnxruntime.quantization and NNCF, on the same samples.

python benchmarks/quantization.py [--part A,B] [--peers build/peers/bin/python] [--models GLOB] [--page FILE]
    [--keep-peers]

Parts: ``sqnr`` (nets and models), ``torture``, ``through`` (peers by ``--method``), ``accuracy`` of the reference net
on CIFAR-10's whole test set, ``latency``, ``cost`` and ``memory`` of calibrating, ``models`` (each shared one quantized
and verified, or refused).
Prints tables; writes build/quantization.json, and with --page the tables into that file. With --keep-peers the noise of
peers' results is taken from the last run's build/quantization.json: it doesn't change with Penstock's quantizer.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import optimizer_tables
import quantization_costs as costs
import quantization_data as data
import quantization_deployed as deployed
import quantization_nets as nets
from quantization_data import Case
from quantization_tools import Result, measured, tools
from quantizer_tool import BY_DEFAULT, PEERS

from penstock import machine

NO_FLOATS = ("bert-tokenizer-ext", "sklearn-tree-classifier", "onnxscript-functions-if", "ort-crop-and-resize-loop")
LESS = 0.1  # of the weights than Penstock
FIGURES = nets.ROOT / "build/quantization.json"


@dataclass(frozen=True, slots=True)
class Asked:
    """What the command line said."""

    models: str
    tools: Sequence[str]
    peers: Path
    seconds: float
    kept: Mapping[str, Mapping[str, Any]]  # figures of the last run's part, by case and tool


def main() -> int:
    """Run the parts that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", default=",".join(PARTS), help="only these parts")
    parser.add_argument("--peers", type=Path, default=nets.ROOT / "build/peers/bin/python", help="the peers' Python")
    parser.add_argument("--models", default="*", help="only models of these names (a glob)")
    parser.add_argument("--tools", default=",".join(BY_DEFAULT), help="only these tools")
    parser.add_argument("--seconds", type=float, default=8.0, help="time for each model's rounds")
    parser.add_argument("--keep-peers", action="store_true", help="take peers' figures from the last run")
    parser.add_argument("--page", type=Path, help="write the tables between the marks in this file")
    given = parser.parse_args()
    figures = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    for part in given.part.split(","):
        kept = figures.get(part, {}).get("figures", {}) if given.keep_peers else {}
        asked = Asked(given.models, given.tools.split(","), given.peers, given.seconds, kept)
        title, (rows, notes, facts) = PARTS[part][0], PARTS[part][1](asked)
        text = optimizer_tables.table(f"{title} ({optimizer_tables.today()})", rows) + (f"\n\n{notes}" if notes else "")
        print(text, end="\n\n", flush=True)
        figures[part] = {"machine": machine.describe(), "figures": facts}
        FIGURES.parent.mkdir(parents=True, exist_ok=True)
        FIGURES.write_text(json.dumps(figures, indent=1))
        if given.page:
            optimizer_tables.put_into(given.page, f"quantization-{part}", text)
    return 0


Part = tuple[list[list[str]], str, Mapping[str, Any]]


def sqnr(asked: Asked) -> Part:
    """Measure the noise at the outputs of nets and of shared models."""
    found = data.cases()
    chosen = [case for name, case in found.items() if name not in NO_FLOATS and fnmatch(name, asked.models)]
    return _compared(chosen, asked)


def torture(asked: Asked) -> Part:
    """Measure it on nets and on data that are made to hurt."""
    hard = [data.net_case("cifar10"), data.net_case("imbalanced_once"), data.net_case("imbalanced")]
    hard += [data.net_case("cifar10", factor) for factor in data.OUTLIERS]
    return _compared(hard, replace(asked, tools=[*asked.tools, "penstock-nearest"]))


def through(asked: Asked) -> Part:
    """Measure the peers by themselves and as `penstock quantize --method ort` and `nncf`."""
    chosen = [data.net_case(name) for name in nets.NETS if "imbalanced" not in name and fnmatch(name, asked.models)]
    return _compared(chosen, replace(asked, tools=["ort-minmax", "penstock-ort", "nncf", "penstock-nncf"]))


def _compared(cases: Sequence[Case], asked: Asked) -> Part:
    rows = [["model", "samples", *asked.tools, "Penstock less best peer (dB)"]]
    facts: dict[str, Any] = {}
    with tools(asked.tools, asked.peers) as running:
        for case in cases:
            old = {tool: of_figures(one) for tool, one in asked.kept.get(case.name, {}).items() if tool in PEERS}
            results = measured(case, [tool for tool in asked.tools if tool not in old], running) | old
            facts[case.name] = {
                tool: {"problem": one.problem} if one.problem else
                {"share": one.share, "worst_db": one.worst, "mean_db": one.mean, "outputs_db": one.db,
                 "cpu_seconds": one.seconds, "size_bytes": one.size_bytes} for tool, one in results.items()
            }  # fmt: skip
            own = results.get("penstock")
            best = best_peer(results, own.share if own else 0.0)
            gap = f"{own.worst - best.worst:+.2f}" if own and not own.problem and best else "–"
            rows.append(
                [case.name, f"{case.calibrate}, {case.evaluate}", *(shown(results[t]) for t in asked.tools), gap]
            )
            print(*rows[-1], sep=" | ", file=sys.stderr, flush=True)
    problems = [f"- {name}, {tool}: {optimizer_tables.cell_text(one['problem'])}" for name, row in facts.items()
                for tool, one in row.items() if "problem" in one]  # fmt: skip
    told = (
        "dB at the output over the samples to evaluate, in ONNX Runtime with all optimizations; of several outputs the "
        "worst, and their mean; in brackets the share of the weights that are held in 8 bits. The best peer is the "
        f"best of those that quantized as many weights, or {LESS:.0%} less: who leaves a model in float has no noise. "
        "Samples: to calibrate, to evaluate. ! failed, or its result doesn't load or run."
    )
    return rows, told + ("\n\n" + "\n".join(problems) if problems else ""), facts


def of_figures(told: Mapping[str, Any]) -> Result:
    """Return a result as the figures have it."""
    if problem := told.get("problem"):
        return Result(Path(), problem)
    return Result(Path(), "", told["outputs_db"], told["share"], told["cpu_seconds"], told["size_bytes"])


def best_peer(results: Mapping[str, Result], share: float) -> Result | None:
    """Return the best result by its worst output, of peers that quantized about as many weights."""
    found = [one for tool, one in results.items() if tool in PEERS and not one.problem]
    return max((one for one in found if one.share >= share - LESS), key=lambda one: one.worst, default=None)


def shown(one: Result) -> str:
    """Show a result in a cell."""
    if one.problem or math.isinf(one.worst):
        return "!"
    level = f"{one.worst:.1f}" if len(one.db) == 1 else f"{one.worst:.1f}, {one.mean:.1f}"
    return f"{level} ({one.share:.0%})"


PARTS: dict[str, tuple[str, Callable[[Asked], Part]]] = {
    "sqnr": ("Signal to noise at the output", sqnr),
    "torture": ("Torture", torture),
    "through": ("Peers by themselves, and through --method", through),
    "accuracy": ("Accuracy of the reference net", lambda asked: deployed.accuracy(asked.peers)),
    "latency": ("Latency to float32's", lambda asked: deployed.latency(asked.peers, asked.seconds)),
    "cost": ("What calibrating costs", lambda asked: costs.cost(asked.tools, asked.peers)),
    "memory": ("Memory", lambda asked: costs.memory(asked.tools, asked.peers)),
    "models": ("Shared models", lambda asked: deployed.models(asked.models)),
}


if __name__ == "__main__":
    sys.exit(main())

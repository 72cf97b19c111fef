"""Let quantizers work on a case, and measure what comes out: signal to noise at the outputs, and what it cost.

Peers get the model after Penstock's graph optimizer, at opset 17 where it was below 13 (they quantize by channel from
13 on alone): what helps them is done for them. Penstock gets the model as it is.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import quantization_nets as nets
from quantization_data import Arrays, Case
from quantizer_tool import OWN, THROUGH
from warm import Warm

from penstock import api, graph
from penstock.errors import PenstockError

HERE = Path(__file__).parent
MADE = nets.BUILD / "out"
TIMEOUT_S = 900.0
MOST_DB = 200.0  # of a difference that is nothing
SMALL = ("INT4", "UINT4", "INT8", "UINT8")
LOWEST_OPSET, RAISED_OPSET = 13, 17


@dataclass(frozen=True, slots=True)
class Result:
    """One tool on one case: the model, dB at each output, what it cost and how much it quantized; or the problem."""

    path: Path
    problem: str = ""
    db: Mapping[str, float] = field(default_factory=dict)
    share: float = 0.0  # of the weights' numbers that are held as integers
    seconds: float = math.nan
    size_bytes: int = 0

    @property
    def worst(self) -> float:
        """Return the least over the outputs, in dB."""
        return min(self.db.values(), default=-math.inf)

    @property
    def mean(self) -> float:
        """Return the mean over the outputs, in dB."""
        return sum(self.db.values()) / len(self.db) if self.db else -math.inf


class Tools:
    """The tools' processes; each begins with its first request."""

    def __init__(self, names: Sequence[str], peers: Path) -> None:
        MADE.mkdir(parents=True, exist_ok=True)
        script = str(HERE / "quantizer_tool.py")
        self.warm = {
            name: Warm([sys.executable if name in OWN else str(peers), script, name], MADE / f"{name}.log", TIMEOUT_S)
            for name in names
        }

    def quantize(self, case: Case, tool: str, **extra: Any) -> tuple[Path, dict[str, Any]]:
        """Let a tool quantize; return the file to be and its answer."""
        out = MADE / f"{case.name}-{tool}.onnx"
        model = case.model if tool in OWN | THROUGH else prepared(case)
        asked = {
            "model": str(model), "out": str(out), "data": case.request,
            "calibration": str(calibration_file(case)), "dynamic": case.fixed_batch is None,
        }  # fmt: skip
        return out, self.warm[tool].ask(asked | extra)

    def close(self) -> None:
        """End all processes."""
        for one in self.warm.values():
            one.close()


@contextmanager
def tools(names: Sequence[str], peers: Path) -> Iterator[Tools]:
    """Hold the tools' processes."""
    made = Tools(names, peers)
    try:
        yield made
    finally:
        made.close()


def measured(case: Case, names: Sequence[str], running: Tools) -> dict[str, Result]:
    """Let every tool quantize a case, and hold the results against the float model."""
    samples = list(case.evaluation())
    reference = [run(session(case.model), feeds) for feeds in samples]
    found = {}
    for tool in names:
        path, answer = running.quantize(case, tool)
        if "error" in answer:
            found[tool] = Result(path, answer["error"])
            continue
        try:
            quantized = session(path)
            db = decibels(reference, (run(quantized, feeds) for feeds in samples))
        except Exception as error:  # a runtime may raise anything about a tool's result
            found[tool] = Result(path, f"doesn't run: {str(error)[:300]}")
            continue
        found[tool] = Result(path, "", db, integers(path), answer["seconds"], path.stat().st_size)
    return found


def integers(path: Path) -> float:
    """Return the share of a model's weights, by their number, that are 4 or 8-bit integers."""
    model = graph.load(path)
    held = [value.const_value for scope in model.graphs() for value in scope.initializers.values()]
    held += [node.attributes["value"].as_tensor() for node in graph.all_nodes(model)
             if node.op_type == "Constant" and "value" in node.attributes]  # fmt: skip
    counted = {True: 0, False: 0}
    for tensor in held:
        if tensor is not None and (small := str(tensor.dtype) in SMALL) | tensor.dtype.is_floating_point():
            counted[small] += tensor.size
    return counted[True] / max(sum(counted.values()), 1)


def decibels(reference: Sequence[Arrays], results: Iterator[Arrays]) -> dict[str, float]:
    """Return 10·log10(Σ r² / Σ (r − x)²) for each output of numbers, over all samples."""
    signal: dict[str, float] = {}
    noise: dict[str, float] = {}
    for expected, found in zip(reference, results, strict=True):
        for (name, r), x in zip(expected.items(), found.values(), strict=True):
            if r.dtype.kind != "f":
                continue
            r, x = r.astype(np.float64), x.astype(np.float64)
            signal[name] = signal.get(name, 0.0) + float((r**2).sum())
            noise[name] = noise.get(name, 0.0) + float(((r - x) ** 2).sum())
    return {
        name: MOST_DB if noise[name] == 0 else min(MOST_DB, 10 * math.log10(max(signal[name], 1e-300) / noise[name]))
        for name in signal
    }


def session(path: Path, threads: int = 1) -> onnxruntime.InferenceSession:
    """Load a model as it is in use: with all of ONNX Runtime's optimizations."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run(loaded: onnxruntime.InferenceSession, feeds: Arrays) -> Arrays:
    """Run a model; return its outputs by name, in its order."""
    wanted = [value.name for value in loaded.get_inputs()]
    names = [value.name for value in loaded.get_outputs()]
    given = dict(zip(wanted, feeds.values(), strict=True)) if set(wanted) != set(feeds) else feeds
    return dict(zip(names, loaded.run(names, given), strict=True))


def prepared(case: Case) -> Path:
    """Return the model that peers get."""
    path, source = MADE / f"{case.model_name}-prepared.onnx", case.model
    if path.exists():
        return path
    if (graph.load(source).opset_imports.get("") or 1) < LOWEST_OPSET:
        raised = path.with_name(f"{case.model_name}-raised.onnx")
        try:
            api.convert(source, raised, RAISED_OPSET)
            source = raised
        except PenstockError as error:
            print(f"{case.name} stays at its opset: {error.what}", file=sys.stderr)
    api.optimize(source, path)
    return path


def calibration_file(case: Case) -> Path:
    """Return the calibration batches as a file."""
    path = MADE / f"{case.name}-calibration.npz"
    if not path.exists():
        batches = enumerate(case.calibration())
        np.savez(path, **{f"{i}|{name}": array for i, feeds in batches for name, array in feeds.items()})
    return path

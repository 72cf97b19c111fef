"""What calibrating costs: CPU time against that of the forward passes alone, and memory for few and many samples."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import quantization_data as data
import quantization_nets as nets
from quantization_tools import MADE, Tools, session, tools
from quantizer_tool import OWN, Stream

from penstock import graph, store

SAMPLES, FEW, ROUNDS = 512, 32, 7
STREAMED = (500, 50_000)
GOLDEN = 64  # the golden set that a build takes for itself
LIMIT_BYTES = 4 << 30  # a peer that wants more than this doesn't get it
RANGES = ("minmax", "moving-average", "percentile", "entropy", "mse")
WATCHED = ("penstock minmax", "penstock, with repair", "ort-minmax", "ort-percentile")  # NNCF would take half an hour
Part = tuple[list[list[str]], str, Mapping[str, Any]]


def cost(names: Sequence[str], peers: Path) -> Part:
    """Measure CPU seconds for 512 samples and for 32, on one core; the difference to that of the forward passes."""
    case = data.net_case("cifar10")
    rows = [["method", f"{SAMPLES} samples (CPU s)", f"{FEW} samples", "a sample more to its forward pass",
             "all to the forward passes"]]  # fmt: skip
    facts: dict[str, Any] = {}
    with one_core(), tools(names, peers) as running:
        seconds: dict[str, list[tuple[float, ...]]] = {}
        for _, tool, extra in _methods(names):
            _seconds(running, case, tool, FEW, extra)  # its imports aren't counted
        for _ in range(ROUNDS):
            for label, tool, extra in _methods(names):
                # the machine's speed varies: each is held against forward passes just before it and just after
                passes = [_passes(case.model)]
                taken = [_seconds(running, case, tool, count, extra) for count in (SAMPLES, FEW)]
                passes.append(_passes(case.model))
                seconds.setdefault(label, []).append((*taken, *map(statistics.fmean, zip(*passes, strict=True))))
    for label, taken in seconds.items():
        facts[label] = taken
        many, few = (statistics.median(one[place] for one in taken) for place in (0, 1))
        more = statistics.median((one[0] - one[1]) / (one[2] - one[3]) for one in taken)
        whole = [one[0] / one[2] for one in taken]
        cells = ["!"] * 4 if many != many else [f"{many:.2f}", f"{few:.2f}", f"{more:.1f}×",
                 f"{statistics.median(whole):.1f}× ({min(whole):.1f}–{max(whole):.1f})"]  # fmt: skip
        rows.append([label, *cells])
    middle = statistics.median(one[2] for taken in seconds.values() for one in taken)
    told = (
        f"The reference net, one core, medians of {ROUNDS} rounds taken in turns, with the least and the most; the "
        f"float model's {SAMPLES} forward passes in batches of 32 take {middle:.2f} s, measured before and after each. "
        "All: from loading the model to writing the quantized one, which for Penstock with repair is more than "
        "calibrating: it tries ways to choose ranges and layers, and rounds weights by what they do to the samples."
    )
    return rows, told, facts


def _methods(names: Sequence[str]) -> list[tuple[str, str, dict[str, Any]]]:
    """Return Penstock's ways to choose ranges, and the peers as they are."""
    plain = {"equalize": False, "smooth": False, "correct_bias": "none", "rounding": "nearest", "guard": False}
    own = [(f"penstock {ranges}", "penstock", {"settings": plain | {"ranges": ranges}}) for ranges in RANGES]
    own.append(("penstock, with repair", "penstock", {}))
    return (own if "penstock" in names else []) + [(name, name, {}) for name in names if name != "penstock"]


def _seconds(running: Tools, case: data.Case, tool: str, count: int, extra: Mapping[str, Any]) -> float:
    """Return the CPU seconds, NaN where it failed."""
    answer = running.quantize(case, tool, stream=_stream(case.model, count), **extra)[1]
    return float(answer.get("seconds", "nan"))


def _stream(model: Path, count: int) -> list[Any]:
    return [str(nets.data_folder()), count, graph.signature(graph.load(model)).inputs[0].name]


def _passes(model: Path) -> tuple[float, float]:
    return _forward(model, SAMPLES), _forward(model, FEW)


def _forward(model: Path, count: int) -> float:
    """Return the CPU seconds of the forward passes, the making of the samples left out."""
    loaded, feeds = session(model), list(Stream(*_stream(model, count)))
    loaded.run(None, feeds[0])
    began = time.process_time()
    for one in feeds:
        loaded.run(None, one)
    return time.process_time() - began


def memory(names: Sequence[str], peers: Path) -> Part:
    """Measure the most memory that a process of its own had, for 500 samples and for 50,000."""
    case = data.net_case("cifar10")
    rows = [["method", *(f"{count:,} samples (peak MB)" for count in STREAMED)]]
    facts: dict[str, Any] = {}
    for label, tool, extra in _methods(names):
        if label not in WATCHED:
            continue
        peaks = [_peak(case, tool, count, peers, extra) for count in STREAMED]
        facts[label] = peaks
        rows.append([label, *peaks])
    told = (
        f"Resident memory of a process of its own, the runtime in it. Penstock is given the images as float32 in an "
        f".npz, as by `penstock quantize --data FILE --calibrate-samples N`; its peers are given a reader that takes "
        f"them from mapped files batch by batch. A process that wanted more than {LIMIT_BYTES >> 30} GiB was refused "
        f"it."
    )
    return rows, told, facts


def _peak(case: data.Case, tool: str, count: int, peers: Path, extra: Mapping[str, Any]) -> str:
    with tools([tool], peers) as running:
        if tool in OWN:
            case = replace(case, data=_saved(case.model, count), calibrate=count)
            answer = running.quantize(case, tool, **extra)[1]
        else:
            answer = running.quantize(case, tool, stream=_stream(case.model, count), limit_bytes=LIMIT_BYTES, **extra)[
                1
            ]
    if "peak_bytes" in answer:
        return f"{answer['peak_bytes'] / 1e6:.0f}"
    refused = "Memory" in answer["error"] or "alloc" in answer["error"] or "crashed" in answer["error"]
    return "refused" if refused else f"! {answer['error'][:60]}"


def _saved(model: Path, count: int) -> Path:
    """Write so many images, and the golden set's beside them, to an .npz.

    A batch at a time: what this process has held would count as its children's peak.
    """
    path = MADE / f"images-{count}.npz"
    if not path.exists():
        name = graph.signature(graph.load(model)).inputs[0].name
        head = {"descr": "<f4", "fortran_order": False, "shape": (count + GOLDEN, 3, 32, 32)}
        with store.replacing(path) as part, ZipFile(part, "w") as file, file.open("x.npy", "w") as into:
            np.lib.format.write_array_header_1_0(into, head)
            for asked in (count, GOLDEN):
                for feeds in Stream(*_stream(model, asked)):
                    into.write(np.ascontiguousarray(feeds[name], np.float32).tobytes())
    return path


@contextmanager
def one_core() -> Iterator[None]:
    """Let this process, and those that it begins, run on one core.

    Penstock's sessions have one thread then. ONNX Runtime's quantizer makes its session as it comes, with a thread for
    each core of the machine.
    """
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)

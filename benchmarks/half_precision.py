"""fp16 and bf16 beside what comes with ONNX Runtime: the same models, the same samples.

python benchmarks/half_precision.py [--models GLOB] [--samples 32] [--page FILE]

Each model becomes fp16 by Penstock and by ``onnxruntime.transformers.float16``, and bf16 by Penstock. SQNR is of the
worst float output against the float model in ONNX Runtime, on samples that nothing was calibrated on: in ONNX Runtime,
which computes most of it in float32 on a CPU, and in OpenVINO, which computes in the types that are written where the
CPU can. Each run has a process of its own, since some end theirs. Models and samples are those of the quantizers'
benchmark. Prints the table, and with --page puts it into that file.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import optimizer_tables
import quantization_data

from penstock import calibration
from penstock.errors import PenstockError
from penstock.metrics import compare
from penstock.stages.quantize import QuantizeSettings, quantize

Feeds = Mapping[str, np.ndarray]
RUNTIMES = ("onnxruntime", "openvino")
SECONDS = 300


def serve(model: str, feeds: str, runtime: str, into: str) -> None:
    """Run a model on saved feeds: the side of the process of its own."""
    from penstock import registry
    from penstock.backends import Loadable
    from penstock.deployment import Deployment

    deployment = Deployment("v", "v", "", "fp16", runtime)
    session = registry.load("backends", runtime).load(Loadable(Path(model)), deployment)  # type: ignore[attr-defined]
    held = np.load(feeds)
    count = 1 + max(int(key.partition("/")[0]) for key in held.files)
    parts = [session.run(_feeds(held, number)) for number in range(count)]
    joined = [np.concatenate([np.ravel(part[i]) for part in parts]) for i in range(len(parts[0]))]
    np.savez(into, *joined)


def _feeds(held: Mapping[str, np.ndarray], number: int) -> dict[str, np.ndarray]:
    return {key.partition("/")[2]: held[key] for key in held if key.startswith(f"{number}/")}


def peer(source: str, into: str) -> None:
    """Convert by what comes with ONNX Runtime."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx.save(convert_float_to_float16(onnx.load(source), keep_io_types=True), into)


def own_process(*arguments: str) -> str:
    """Call one of the two above in a process; return why it failed, "" where it didn't."""
    command = [sys.executable, __file__, *arguments]
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=SECONDS, env=environ)
    except subprocess.TimeoutExpired:
        return "takes too long"
    if done.returncode < 0:
        return signal.Signals(-done.returncode).name
    return "fails" if done.returncode else ""


def results(model: Path, feeds: Path, runtime: str, work: Path) -> list[np.ndarray] | str:
    """Return the outputs of a model, or why there are none."""
    if problem := own_process("--serve", str(model), str(feeds), runtime, str(work / "out.npz")):
        return problem
    held = np.load(work / "out.npz")
    return [held[name] for name in held.files]


def worst(got: list[np.ndarray] | str, want: list[np.ndarray]) -> str:
    """Return the SQNR of the worst float output in dB, or why there is none."""
    if isinstance(got, str):
        return got
    found = [compare(a, b, logits=False).sqnr_db for a, b in zip(got, want, strict=True) if b.dtype.kind == "f"]
    return f"{min(one for one in found if one is not None):.1f}"


def some(batches: Iterable[Feeds], samples: int) -> list[Feeds]:
    """Return the first batches that hold so many samples."""
    held: list[Feeds] = []
    for batch in batches:
        if sum(map(calibration.size, held)) >= samples:
            break
        held.append(batch)
    return held


def source_bytes(model: Path) -> int:
    """Return the bytes of a model, with the weights beside it."""
    beside = [path for path in model.parent.glob("*.data") if path.with_suffix("").suffix == ".onnx"]
    return model.stat().st_size + sum(path.stat().st_size for path in beside)


def row(case: quantization_data.Case, samples: int, work: Path) -> list[str]:
    """Return a line of the table."""
    try:
        calibrate, evaluate = some(case.calibration(8), samples), some(case.evaluation(8), samples)
    except PenstockError as error:
        return [case.name, "", "", f"refused: {error.id}", *[""] * 5]
    feeds = work / "feeds.npz"
    np.savez(feeds, **{f"{i}/{name}": array for i, one in enumerate(evaluate) for name, array in one.items()})  # type: ignore[arg-type]
    want = results(case.model, feeds, "onnxruntime", work)
    if isinstance(want, str):
        return [case.name, "", "", f"the float model {want}", *[""] * 5]
    cells: list[str] = []
    for half, consumer in (("fp16", "ort-cpu"), ("bf16", "openvino")):
        path, start = work / f"{half}.onnx", time.process_time()
        settings = QuantizeSettings(method=half, consumer=consumer)
        try:
            facts = quantize(case.model, calibration.of_list(calibrate), settings, path)
        except PenstockError as error:
            cells += ["", "", f"refused: {error.id}", *[""] * 4] if half == "fp16" else [""]
            continue
        scores = [worst(results(path, feeds, runtime, work), want) for runtime in RUNTIMES]
        if half == "bf16":
            cells.append(scores[1])
            continue
        seconds = time.process_time() - start
        other = work / "peer.onnx"
        failed = own_process("--peer", str(case.model), str(other))
        theirs = [failed or worst(results(other, feeds, runtime, work), want) for runtime in RUNTIMES]
        kept = f"{facts['nodes_in_fp32']} of {facts['nodes_in_fp32'] + facts['nodes_in_16_bits']}"  # type: ignore[operator]
        cells += [kept, f"{path.stat().st_size / source_bytes(case.model):.2f}"]
        cells += [scores[0], theirs[0], scores[1], theirs[1], f"{seconds:.0f} s"]
    return [case.name, *cells[:6], cells[7] if len(cells) > 7 else "", cells[6]]


def main() -> None:
    """Print the table."""
    if sys.argv[1:2] == ["--serve"]:
        serve(*sys.argv[2:])
        return
    if sys.argv[1:2] == ["--peer"]:
        peer(*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="*", help="names that match")
    parser.add_argument("--samples", type=int, default=32, help="to calibrate on, and to evaluate on")
    parser.add_argument("--page", type=Path, help="write the table between the marks in this file")
    asked = parser.parse_args()
    head = ["model", "nodes left in fp32", "size", "ORT: ours", "ORT: theirs", "OpenVINO: ours", "OpenVINO: theirs",
            "bf16, OpenVINO", "CPU time"]  # fmt: skip
    rows = [head]
    for name, case in quantization_data.cases().items():
        if fnmatch(name, asked.models):
            with tempfile.TemporaryDirectory() as work:
                rows.append(row(case, asked.samples, Path(work)))
            print(json.dumps(rows[-1]), flush=True)
    text = optimizer_tables.table("SQNR in dB of fp16, worst output", rows)
    print(text)
    if asked.page:
        optimizer_tables.put_into(asked.page, "half-precision", text)


if __name__ == "__main__":
    main()

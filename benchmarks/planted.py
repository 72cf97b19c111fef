"""Planted faults: a weight of a layer or an attribute of a node changed: what `penstock bisect` finds, and its cost.

python benchmarks/planted.py [--page FILE]

On the reference net, yolox-nano and a BERT of 3,836 nodes. Memory is the peak of the command's largest process, beside
that of `penstock verify` on the same two models and as many samples.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import optimizer_tables
import quantization_nets as nets
from onnx import numpy_helper

from penstock.bisecting import SAMPLES

SHARED = Path(os.environ.get("PENSTOCK_SHARED", Path(__file__).resolve().parents[2] / "shared")) / "models"
BUILD = nets.ROOT / "build" / "planted"
PENSTOCK = Path(sys.executable).with_name("penstock")
LAUNCHER = """import os, sys
pid = os.spawnv(os.P_NOWAIT, sys.argv[1], sys.argv[1:])
_, status, usage = os.wait4(pid, 0)
print(os.waitstatus_to_exitcode(status), usage.ru_maxrss, file=sys.stderr)"""
Fault = Callable[[onnx.ModelProto], str]


def weight(part: float) -> Fault:
    """Return a fault in one weight of the layer that stands at this part of all layers with weights."""

    def plant(model: onnx.ModelProto) -> str:
        held = {one.name: one for one in model.graph.initializer}
        made = {node.output[0]: node.attribute[0].t for node in model.graph.node if node.op_type == "Constant"}
        layers = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")
                  and (node.input[1] in held or node.input[1] in made)]  # fmt: skip
        node = layers[int(part * (len(layers) - 1))]
        tensor = held.get(node.input[1]) or made[node.input[1]]
        array = numpy_helper.to_array(tensor).copy()
        array.reshape(-1)[array.size // 3] += 4 * np.abs(array).max()
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
        return str(node.output[0])

    return plant


def attribute(op: str, name: str, value: object, part: float = 0.5) -> Fault:
    """Return a fault in an attribute of a node of this operator."""

    def plant(model: onnx.ModelProto) -> str:
        nodes = [node for node in model.graph.node if node.op_type == op]
        node = nodes[int(part * (len(nodes) - 1))]
        kept = [one for one in node.attribute if one.name != name]
        del node.attribute[:]
        node.attribute.extend([*kept, onnx.helper.make_attribute(name, value)])
        return str(node.output[0])

    return plant


def main() -> int:
    """Plant, bisect, print; exit code 1 where another node was found than the one that was changed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", type=Path, help="write the table between the marks in this file")
    asked = parser.parse_args()
    cases: dict[str, tuple[Path, dict[str, Fault]]] = {
        "reference net": (nets.model("cifar10"), {
            "weight": weight(0.5), "Gemm's alpha": attribute("Gemm", "alpha", 1.05),
        }),
        "yolox-nano": (SHARED / "yolox-nano/model.onnx", {
            "weight": weight(0.6), "Resize's mode": attribute("Resize", "coordinate_transformation_mode", "half_pixel"),
        }),
        "bert-tf-qa": (SHARED / "bert-tf-qa/model.onnx", {
            "weight": weight(0.5), "Softmax's axis": attribute("Softmax", "axis", 1),
        }),
    }  # fmt: skip
    rows = [["model", "nodes", "changed", "found", "cuts", "s", "memory, MB", "verify, MB"]]
    missed = 0
    for name, (sound, faults) in cases.items():
        for what, plant in faults.items():
            model = onnx.load(sound)
            changed = plant(model)
            BUILD.mkdir(parents=True, exist_ok=True)
            faulty = BUILD / "faulty.onnx"
            onnx.save(model, faulty)
            began = time.monotonic()
            told, peak = run("bisect", faulty, sound)
            seconds = time.monotonic() - began
            _, plain = run("verify", faulty, "--against", sound, "--golden-samples", SAMPLES)
            found = told["result"]["found"]
            node = next(one for one in model.graph.node if changed in one.output)
            named = found is not None and bool(node.name) and found["node"] == node.name
            right = named or (found is not None and changed == found["outputs"][0][0]["name"])
            missed += not right
            place = "nothing" if found is None else f"{found['op']}, node {found['position']}"
            rows.append([
                name, f"{len(model.graph.node):,}", what, place if right else f"**{place}**",
                "–" if found is None else str(found["probes"]), f"{seconds:.0f}", f"{peak / 1e6:.0f}",
                f"{plain / 1e6:.0f}",
            ])  # fmt: skip
            print("  ".join(rows[-1]), file=sys.stderr, flush=True)
    text = optimizer_tables.table(f"Planted faults ({optimizer_tables.today()})", rows)
    print(text)
    if asked.page:
        optimizer_tables.put_into(asked.page, "planted", text)
    return 1 if missed else 0


def run(*words: object) -> tuple[dict, int]:
    """Run a command, and return its JSON and the peak memory of its largest process, in bytes."""
    command = [str(PENSTOCK), *map(str, words), "-q", "--json"]
    # a launcher that is small: a child's peak begins with what the process held that started it
    launched = subprocess.run([sys.executable, "-S", "-c", LAUNCHER, *command], capture_output=True, text=True)
    code, peak = map(int, launched.stderr.splitlines()[-1].split())
    if code not in (0, 1):
        raise SystemExit(f"{' '.join(command)}: exit code {code}: {launched.stdout[:500]}")
    return json.loads(launched.stdout), peak * 1024


if __name__ == "__main__":
    sys.exit(main())

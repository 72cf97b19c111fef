"""A third party's package: one plug-in of every kind, each as small as it can be and doing its work.

What takes long to import is imported where it is used: the package is imported by every command, in several processes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import click
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from penstock import graph, registry
from penstock.data import Dataset, DataSettings, Preprocessing, Split
from penstock.errors import InputError
from penstock.frontends import Exported, Source
from penstock.passes import PassResult

if TYPE_CHECKING:
    import onnx_ir as ir

WEIGHT = np.arange(12, dtype=np.float32).reshape(4, 3) / 12 - 0.4


# --- a frontend: "toy:N" is a network that negates N times


def _export(source: Source, settings: object, example: object, into: Path) -> Exported:
    count = source.spec.partition(":")[2]
    if not count.isdigit():
        raise InputError("toy-source", f"{count!r} is no number", where=source.spec, do="write toy:2")
    nodes = [helper.make_node("MatMul", ["x", "w"], ["product"], name="product")]
    nodes += [helper.make_node("Relu", ["product"], ["n0"], name="relu")]  # no negation can go into the weight
    nodes += [helper.make_node("Neg", [f"n{i}"], [f"n{i + 1}"], name=f"neg{i}") for i in range(int(count))]
    nodes += [helper.make_node("Sigmoid", [f"n{count}"], ["y"], name="last")]
    made = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(WEIGHT, "w")],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    into.write_bytes(model.SerializeToString())
    return Exported(graph.signature(graph.load(into)), {"negations": int(count)}, {}, {})


frontend = SimpleNamespace(
    __doc__="Networks that negate, as toy:N.",
    claims=lambda spec: spec.startswith("toy:"),
    tools=lambda: {"toy": "1.0"},
    export=_export,
)


# --- a pass: two negations are none


def _run(model: ir.Model) -> PassResult:
    from onnx_ir import convenience

    changes = []
    for node in list(model.graph):
        before = node.inputs[0].producer() if node.op_type == "Neg" and node.inputs[0] is not None else None
        if before is not None and before.op_type == "Neg":
            convenience.replace_all_uses_with(node.outputs[0], before.inputs[0])
            changes.append(f"{before.name} and {node.name} cancel")
            break
    return PassResult(tuple(changes))


eliminate = SimpleNamespace(__doc__="Remove pairs of negations.", PHASE="clean", AFTER=(), run=_run)


# --- a quantizer: the built-in one, with a fact of its own


def _quantize(model: Path, batches: Iterable[Mapping[str, np.ndarray]], settings: object, into: Path) -> dict:
    plain = registry.load("quantizers", "ort")
    return {**plain.quantize(model, batches, settings, into), "toy": True}  # type: ignore[attr-defined]


quantizer = SimpleNamespace(__doc__="Quantize as ONNX Runtime does.", available=lambda: "", quantize=_quantize)


# --- a backend: the reference evaluator, as a candidate


class _Session:
    def __init__(self, path: Path) -> None:
        from onnx.reference import ReferenceEvaluator

        self._evaluator = ReferenceEvaluator(onnx.load(path))

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        return [np.asarray(out) for out in self._evaluator.run(None, dict(feeds))]

    def actual(self) -> dict:
        return {"device": "cpu"}

    def close(self) -> None:
        pass


backend = SimpleNamespace(
    __doc__="A slow runtime.",
    ROLE="candidate",
    FORMATS=("onnx",),
    available=lambda: "",
    facts=lambda: {"version": "1.0"},
    load=lambda model, deployment: _Session(model.path),
)


# --- a data set: "toy-data:N" samples of four numbers


def _open(spec: str, settings: DataSettings, progress: object) -> Dataset:
    count = int(spec.partition(":")[2])
    rng = np.random.RandomState(0)
    samples = rng.standard_normal((count, 4)).astype(np.float32)
    labels = (samples @ WEIGHT).argmax(1).astype(np.int64)
    digest = hashlib.sha256(samples.tobytes()).hexdigest()
    return Dataset("toy", Split({"": samples}, labels), None, ("a", "b", "c"), Preprocessing(), digest)


dataset = SimpleNamespace(
    __doc__="Numbers with their largest product.", claims=lambda spec: spec.startswith("toy-data:"), open=_open
)


# --- a target and a command

target = SimpleNamespace(__doc__="A toy board.", available=lambda: "", facts=lambda: {"architecture": "toy"})


@click.command()
@click.argument("name")
def command(name: str) -> int:
    """Greet somebody."""
    click.echo(f"hello {name}")
    return 0

"""Each CNN of the shared models on integers, as TFLite in LiteRT beside ONNX Runtime: written and equal, or refused.

python benchmarks/tflite_models.py [--models NAMES] [--page FILE]

A float model is quantized for ``integer-only`` targets on the samples of the quantization benchmarks; one that is
quantized already is taken as it is. Both runtimes get the same samples, ONNX Runtime with its optimizations off, since
these round for themselves. A *step* is a 255th of what an output reaches over.

They agree where the noise between both is within the limit that `penstock verify` has for int8, and no operator on
integers, run alone on what ONNX Runtime has there, is off by more than one step of its own output's grid: what is more
at the end has added up. The exit code is 1 where one of them doesn't agree, or is refused for anything but its nodes.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as onnxruntime_library
import optimizer_tables
import quantization_data as data
from onnx import numpy_helper
from quantization_tools import MADE

from penstock import api, graph, running
from penstock.backends import Loadable, Session, litert, onnxruntime
from penstock.data import DataSettings
from penstock.deployment import Deployment
from penstock.errors import PenstockError
from penstock.stages.quantize import QuantizeSettings
from penstock.stages.verify import VerifySettings

SHARED = Path(os.environ.get("PENSTOCK_SHARED", Path(__file__).resolve().parents[2] / "shared")) / "models"
SAMPLES = 8
Arrays = Sequence[np.ndarray]
LONGEST = 200
ALONE = 1.0  # steps that one operator may be off
WINDOWS = ("Conv", "ConvTranspose", "QLinearConv", "ConvInteger")


def main() -> int:
    """Write, run, print; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="", help="only these, comma-separated")
    parser.add_argument("--page", type=Path, help="write the table between the marks in this file")
    asked = parser.parse_args()
    cases = {case.model: case for case in data.cases().values()}
    wanted = (
        asked.models.split(",") if asked.models else [path.parent.name for path in sorted(SHARED.glob("*/model.onnx"))]
    )
    rows = [["model", "integers made by", "for", "equal numbers", "largest difference, steps", "between both, dB",
             "LiteRT to float, dB", "ONNX Runtime to float, dB", "one operator alone, steps"]]  # fmt: skip
    told, apart = [], []
    for name in wanted:
        model = SHARED / name / "model.onnx"
        loaded = graph.load(model)
        ops = {node.op_type for node in graph.all_nodes(loaded)}
        if not ops & {*WINDOWS}:
            continue
        by, path, consumer = "its author", model, "–"
        try:
            if not ops & {"QuantizeLinear", "DequantizeLinear", "QLinearConv", "ConvInteger", "Quant"}:
                by, path = "Penstock", MADE / f"{name}-tflite.onnx"
                consumer = quantized(model, path, cases[model].settings if model in cases else None)
            cells, problem = compared(path, model, cases.get(model))
            rows.append([name, by, consumer, *cells])
            apart += [f"- {name}: {problem}"] if problem else []
        except PenstockError as error:
            rows.append([name, by, consumer, *"––––––"])
            told.append(f"- {name}: {short(error.what)}")
            if error.id not in ("cannot-write-tflite", "cannot-quantize", "nothing-to-quantize"):
                apart.append(told[-1])
        print("  ".join(rows[-1]), file=sys.stderr, flush=True)
    heading = f"Quantized CNNs as TFLite ({optimizer_tables.today()})"
    text = optimizer_tables.table(heading, rows) + "\n\n" + "\n".join(told)
    print(text)
    if asked.page:
        optimizer_tables.put_into(asked.page, "tflite-models", text)
    print("\n".join(apart), file=sys.stderr)
    return 1 if apart else 0


def quantized(model: Path, path: Path, settings: DataSettings | None) -> str:
    """Quantize for integers alone, or where that is refused so that some nodes stay in float; return the consumer."""
    try:
        api.quantize(model, path, QuantizeSettings(consumer="integer-only"), data=settings)
    except PenstockError as error:
        if "stay in float" not in error.what:
            raise
        api.quantize(model, path, QuantizeSettings(consumer="ort-cpu"), data=settings)
        return "ort-cpu"
    return "integer-only"


def compared(path: Path, source: Path, case: data.Case | None) -> tuple[list[str], str]:
    """Return the share of equal numbers, the largest difference in steps, and the least signals to noise.

    And what one operator alone is off, and why both don't agree, "" where they do.
    """
    at_once = SAMPLES if case is None or case.fixed_batch is None else 1
    runs = list(itertools.islice(case.evaluation(at_once), SAMPLES // at_once)) if case is not None else []
    if not runs:
        runs = [running.role_feeds(path, DataSettings(), 0).golden.first(1)]
    plain = Deployment("m", "m", "", "int8", "onnxruntime", options={"optimization": "disabled"})
    ours, theirs, real = (
        [np.concatenate([np.atleast_1d(one) for one in many]) for many in zip(*map(session.run, runs), strict=True)]
        for session in (*both(path), onnxruntime.load(Loadable(source), plain))
    )
    equal, steps = [], []
    for mine, other in zip(ours, theirs, strict=True):
        mine, other = mine.astype(np.float64), other.astype(np.float64)
        apart = np.abs(mine - other)
        equal.append((apart == 0).ravel())
        steps.append(255 * apart.max() / max(np.ptp(other), 1e-30))
    share = f"{np.concatenate(equal).mean():.2%}"
    noises = noise(ours, theirs), noise(ours, real), noise(theirs, real)
    most, where = alone(path, runs[0])
    problem = ""
    if noises[0] < VerifySettings().int8_sqnr_db:
        problem = f"{noises[0]:.1f} dB between both"
    elif most > ALONE:
        problem = f"{where} alone is off by {most:g} steps"
    cells = [share, f"{max(steps):.2f}", *(f"{one:.1f}" if np.isfinite(one) else "equal" for one in noises)]
    return [*cells, f"{most:g} ({where})" if most else "0"], problem


def alone(path: Path, feeds: Mapping[str, np.ndarray]) -> tuple[float, str]:
    """Run each operator on integers alone in both, on what ONNX Runtime has there; return the most steps, and where.

    One that LiteRT can't be given alone counts as without end.
    """
    model = onnx.load(path)
    makers = {name: node for node in model.graph.node for name in node.output}
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    constants |= {
        node.output[0]: numpy_helper.to_array(node.attribute[0].t) for node in model.graph.node
        if node.op_type == "Constant" and node.attribute[0].name == "value"
    }  # fmt: skip
    ends = []  # of an operator: the tensor that a pair makes of its result, with the scale
    for node in model.graph.node:
        maker = makers.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if maker is not None and maker.op_type == "QuantizeLinear" and constants[node.input[1]].size == 1:
            ends.append((node.output[0], maker.input[0], float(constants[node.input[1]].reshape(()))))
    pair_of = {before: after for after, before, _ in ends}
    seen = values(model, [*{name for after, before, _ in ends for name in (after, before)}], feeds)
    most, where = 0.0, ""
    for end, result, scale in ends:
        starts, operator, whole = reached(result, makers, {*pair_of.values()}, constants)
        if not operator or not whole:
            continue
        inputs = {before: seen[after] for before, after in pair_of.items() if after in starts}
        part = cut(model, inputs, end)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "part.onnx"
            onnx.save(part, file)
            try:
                ours, theirs = (session.run(inputs)[0] for session in both(file))
            except PenstockError as error:
                print(f"  {operator} {result}: not run alone: {short(error.what)}", file=sys.stderr)
                return float("inf"), operator
        steps = float(np.rint(np.abs(ours.astype(np.float64) - theirs).max() / scale))
        if steps > most:
            most, where = steps, operator
    return most, where


def values(model: onnx.ModelProto, names: Sequence[str], feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return what these tensors are in ONNX Runtime, its optimizations off."""
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    del shown.graph.output[:]
    shown.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    options = onnxruntime_library.SessionOptions()
    options.graph_optimization_level = onnxruntime_library.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime_library.InferenceSession(shown.SerializeToString(), options)
    held = {one.name for one in session.get_inputs()}
    return dict(zip(names, session.run(None, {k: v for k, v in feeds.items() if k in held}), strict=True))


def reached(
    result: str, makers: Mapping[str, onnx.NodeProto], pairs: Collection[str], constants: Mapping[str, np.ndarray]
) -> tuple[set[str], str, bool]:
    """Return the tensors on grids that a result is made of, its operators, and whether it is made of those alone."""
    starts, operators, open_names, whole = set(), [], [result], True
    while open_names:
        name = open_names.pop()
        if name in pairs:
            starts.add(name)
        elif name in makers:
            node = makers[name]
            if node.op_type not in ("DequantizeLinear", "Constant"):
                operators.append(node.op_type)
            open_names += [one for one in node.input if one]
        elif name not in constants:
            whole = False  # an input of the model
    return starts, "+".join(reversed(operators)), whole and bool(starts)


def cut(model: onnx.ModelProto, inputs: Mapping[str, np.ndarray], end: str) -> onnx.ModelProto:
    """Return the part of a model from these tensors to one."""
    wanted, nodes = {end}, []
    for node in reversed(model.graph.node):
        if {*node.output} & wanted and not {*node.output} <= {*inputs}:
            nodes.insert(0, node)
            wanted |= {name for name in node.input if name not in inputs}
    given = [
        onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in inputs.items()
    ]
    held = [tensor for tensor in model.graph.initializer if tensor.name in wanted]
    made = onnx.helper.make_tensor_value_info(end, onnx.TensorProto.FLOAT, None)
    graph = onnx.helper.make_graph(nodes, "part", given, [made], held)
    return onnx.helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)


def both(path: Path) -> tuple[Session, Session]:
    """Open a model in LiteRT, and in ONNX Runtime with its optimizations off."""
    plain = Deployment("m", "m", "", "int8", "onnxruntime", options={"optimization": "disabled"})
    there = Deployment("m", "m", "", "int8", "litert")
    return litert.load(Loadable(path), there), onnxruntime.load(Loadable(path), plain)


def noise(some: Arrays, others: Arrays) -> float:
    """Return the least ratio of signal to noise of several outputs, in dB."""
    found = [np.inf]
    for mine, other in zip(some, others, strict=True):
        power = ((mine.astype(np.float64) - other.astype(np.float64)) ** 2).mean()
        if power:
            found.append(10 * np.log10((other.astype(np.float64) ** 2).mean() / power))
    return float(min(found))


def short(text: str) -> str:
    """Return a reason in one line."""
    text = " ".join(text.split()).replace(f"{SHARED}/", "")
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


if __name__ == "__main__":
    sys.exit(main())

"""One quantizer as a process that stays warm: a JSON request a line on stdin, a JSON answer a line on stdout.

python benchmarks/quantizer_tool.py TOOL

A request names the model, the file to write, and the .npz of calibration batches (``NUMBER|INPUT``); to Penstock it
gives the data set instead. The answer has the CPU seconds, or the error. Peers run in an environment of their own.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).parents[1] / "src"))  # for the peers' Python
sys.modules.setdefault("openvino_telemetry", None)  # reports to its makers where it is there
Arrays = dict[str, np.ndarray]
Request = dict[str, Any]
Quantizer = Callable[[Request], None]


class Stream:
    """So many images of CIFAR-10's training part, again and again from its files: none of them is kept."""

    BATCH = 32

    def __init__(self, folder: str, count: int, name: str) -> None:
        self.files, self.count, self.name = sorted(Path(folder).glob("data_batch_*.bin")), count, name

    def __iter__(self) -> Iterator[Arrays]:
        return self.cut(self.BATCH)

    def whole(self) -> Iterator[Arrays]:
        """Yield batches of equal size."""
        return self.cut(25)  # which divides 500 and 50,000

    def cut(self, size: int) -> Iterator[Arrays]:
        """Yield batches of this size, the last of them smaller where it has to be."""
        left = self.count
        for file in self.files:
            records = np.memmap(file, np.uint8, "r").reshape(-1, 3073)
            for start in range(0, min(left, len(records)), size):
                rows = records[start : min(start + size, left), 1:].astype(np.float32)
                yield {self.name: (rows.reshape(-1, 3, 32, 32) / 255 - 0.47) / 0.25}
            left -= min(left, len(records))


def batches(asked: Request) -> Iterable[Arrays]:
    """Return the calibration batches in order."""
    if "stream" in asked:
        return Stream(*asked["stream"])
    made: dict[int, Arrays] = {}
    with np.load(asked["calibration"]) as held:
        for key in held.files:
            number, _, name = key.partition("|")
            made.setdefault(int(number), {})[name] = held[key]
    return [made[number] for number in sorted(made)]


class Reader:
    """The reader that onnxruntime.quantization asks for."""

    def __init__(self, given: Iterable[Arrays]) -> None:
        self.given = iter(given)

    def get_next(self) -> Arrays | None:
        """Return the next batch."""
        return next(self.given, None)

    def __iter__(self) -> Iterator[Arrays]:
        return self.given

    def __next__(self) -> Arrays:
        return next(self.given)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Take no part in strides."""


def onnxruntime(method: str, layout: str = "QDQ") -> Quantizer:
    """Return ONNX Runtime's static quantizer: its preparation first, a scale for each channel, uint8 by int8."""
    from onnxruntime import quantization as tool
    from onnxruntime.quantization.shape_inference import quant_pre_process

    def prepare(model: str, out: str) -> str:
        for options in ({}, {"skip_symbolic_shape": True}, {"skip_optimization": True, "skip_symbolic_shape": True}):
            try:
                quant_pre_process(model, out, **options)
                return out
            except Exception:  # it fails on many models: the next way, and the model as it is in the end
                traceback.print_exc()
        return model

    def quantize(asked: Request) -> None:
        with tempfile.TemporaryDirectory() as folder:
            prepared = prepare(asked["model"], f"{folder}/prepared.onnx")
            tool.quantize_static(
                prepared, asked["out"], Reader(batches(asked)), quant_format=tool.QuantFormat[layout],
                per_channel=True, activation_type=tool.QuantType.QUInt8, weight_type=tool.QuantType.QInt8,
                calibrate_method=tool.CalibrationMethod[method], calibration_providers=["CPUExecutionProvider"],
            )  # fmt: skip

    return quantize


def nncf(**settings: Any) -> Quantizer:
    """Return NNCF's post-training quantizer, which takes samples one at a time."""
    import nncf as tool
    import onnx

    def one_by_one(asked: Request) -> Iterator[Arrays]:
        for feeds in batches(asked):
            lengths = {len(array) for array in feeds.values() if array.ndim}
            rows = lengths.pop() if asked["dynamic"] and len(lengths) == 1 else 0
            if not rows:
                yield feeds
            for row in range(rows):
                yield {name: array[row : row + 1] if array.ndim else array for name, array in feeds.items()}

    class Samples:
        def __init__(self, asked: Request) -> None:
            self.asked, self.count = asked, sum(1 for _ in one_by_one(asked))

        def __iter__(self) -> Iterator[Arrays]:
            return one_by_one(self.asked)

        def __len__(self) -> int:
            return self.count

    def quantize(asked: Request) -> None:
        model = onnx.load(asked["model"])
        standard = sorted(model.opset_import, key=lambda one: one.domain not in ("", "ai.onnx"))
        imports = [(one.domain, one.version) for one in standard]  # it takes the first one for the standard's
        del model.opset_import[:]
        model.opset_import.extend(onnx.helper.make_opsetid(*one) for one in imports)
        for i, node in enumerate(model.graph.node):
            node.name = node.name or f"{node.op_type}_{i}"
        samples = Samples(asked)
        chosen = {key: value(tool) for key, value in settings.items()}
        onnx.save(tool.quantize(model, tool.Dataset(samples), subset_size=len(samples), **chosen), asked["out"])

    return quantize


def penstock(**settings: Any) -> Quantizer:
    """Return one of Penstock's methods."""
    from penstock import api
    from penstock.calibration import Batches
    from penstock.data import DataSettings
    from penstock.stages import quantize as stage
    from penstock.stages.quantize import QuantizeSettings

    def quantize(asked: Request) -> None:
        chosen = QuantizeSettings(**settings | asked.get("settings", {}))
        if "stream" in asked:
            stream = Stream(*asked["stream"])
            samples = Batches(stream.__iter__, stream.whole, stream.count, size=Stream.BATCH)
            stage.quantize(Path(asked["model"]), samples, chosen, Path(asked["out"]))
        else:
            api.quantize(asked["model"], asked["out"], chosen, data=DataSettings(**asked["data"]))

    return quantize


def _all_values(tool: Any) -> Any:
    """Let NNCF take the least and the greatest of all samples instead of means over samples."""
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet as Set

    return tool.AdvancedQuantizationParameters(activations_range_estimator_params=Set.MINMAX)


OWN: dict[str, Callable[[], Quantizer]] = {
    "penstock": lambda: penstock(method="static"),
    "penstock-nearest": lambda: penstock(method="static", rounding="nearest"),
    "penstock-qoperator": lambda: penstock(method="static", format="qoperator"),
    "penstock-ort": lambda: penstock(method="ort"),
}
THROUGH = {"penstock-nncf": lambda: penstock(method="nncf")}  # in the peers' Python, which has the library
PEERS: dict[str, Callable[[], Quantizer]] = {
    "ort-minmax": lambda: onnxruntime("MinMax"),
    "ort-percentile": lambda: onnxruntime("Percentile"),
    "ort-entropy": lambda: onnxruntime("Entropy"),
    "ort-qoperator": lambda: onnxruntime("MinMax", "QOperator"),
    "nncf": lambda: nncf(),
    "nncf-mixed": lambda: nncf(preset=lambda tool: tool.QuantizationPreset.MIXED),
    "nncf-minmax": lambda: nncf(advanced_parameters=_all_values),
    "nncf-slow-bias": lambda: nncf(fast_bias_correction=lambda tool: False),
    "nncf-transformer": lambda: nncf(model_type=lambda tool: tool.ModelType.TRANSFORMER),
}
TOOLS = OWN | THROUGH | PEERS
SELDOM = (*THROUGH, "penstock-nearest", "nncf-slow-bias", "nncf-transformer")
BY_DEFAULT = [tool for tool in TOOLS if tool not in SELDOM]


def _peak() -> int:
    """Return the most resident memory that this process had; getrusage's would begin with its parent's."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def main() -> None:
    """Serve until stdin ends. What the tool prints goes to stderr."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    quantize = TOOLS[sys.argv[1]]()
    for line in sys.stdin:
        asked = json.loads(line)
        Path(asked["out"]).unlink(missing_ok=True)
        os.chdir(Path(asked["out"]).parent)  # ONNX Runtime's preparation leaves files where it is run
        if "limit_bytes" in asked:
            resource.setrlimit(resource.RLIMIT_DATA, (asked["limit_bytes"], asked["limit_bytes"]))
        began = time.process_time()
        try:
            quantize(asked)
            answer = {"seconds": time.process_time() - began, "peak_bytes": _peak()}
        except BaseException as error:  # a tool may raise anything: it is its answer
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"[:500]}
        out.write(json.dumps(answer) + "\n")
        out.flush()


if __name__ == "__main__":
    main()

"""What TFLite files give in LiteRT beside ONNX Runtime: the reference net on CIFAR-10's test images, int8 and float.

python benchmarks/tflite.py

Prints for each way to quantize how many logits are the same numbers, the largest difference to the largest logit, and
how many answers agree; then LiteRT's time beside ONNX Runtime's in float32, one sample, one thread, interleaved. Exit
code 1 where the numbers of int8 for integer-only differ, or float32's by more than 1e-5. Needs LiteRT (``pip install
'penstock[litert]'``) and CIFAR-10 in build/cifar10.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import quantization_data as data
import quantization_nets as nets
from ai_edge_litert.interpreter import Interpreter
from quantization_tools import MADE, run, session

from penstock import api
from penstock.running import runnables_of
from penstock.stages.bench import BenchSettings, Subject, bench
from penstock.stages.quantize import QuantizeSettings
from penstock.tflite.writing import written

BATCH = 100
SECONDS = 8.0
CLOSE = 1e-5  # of the logits' range, what float32 may differ by
WAYS: dict[str, QuantizeSettings | None] = {
    "fp32": None, "int8 for integer-only": QuantizeSettings(consumer="integer-only"),
    "int8 for ort-cpu": QuantizeSettings(),
}  # fmt: skip


def main() -> int:
    """Compare each way."""
    case = data.net_case("cifar10")
    pixels, _ = nets.pixels("test")
    missed = False
    for name, settings in WAYS.items():
        path = case.model
        if settings is not None:
            path = MADE / f"cifar10-tflite-{settings.consumer}.onnx"
            api.quantize(case.model, path, settings, data=case.settings)
        ours, theirs = in_litert(path, pixels), in_onnxruntime(path, pixels)
        equal, answers = (ours == theirs).mean(), (ours.argmax(1) == theirs.argmax(1)).mean()
        far = np.abs(ours - theirs).max() / np.abs(theirs).max()
        told = f"largest difference {far:.1e}, answers {answers:.2%}"
        print(f"{name:<24}{equal:>10.2%} of {ours.size:,} logits equal, {told}")
        missed |= equal < 1 if name == "int8 for integer-only" else name == "fp32" and far > CLOSE
    timed(case, MADE / "cifar10-tflite-integer-only.onnx")
    return 1 if missed else 0


def timed(case: data.Case, whole: Path) -> None:
    """Print the ratios of LiteRT to ONNX Runtime's float32, alone in their rounds."""
    feeds = api.role_feeds(case.model, case.settings, data.SEED).golden.first(1)
    for model in (case.model, whole):
        pair = [runnables_of(case.model, "onnxruntime", 1, "fp32")[0], runnables_of(model, "litert", 1, model.stem)[0]]
        subjects = [Subject(one.deployment, one.model, False) for one in pair]
        settings = BenchSettings(seconds=SECONDS, footprint=False, baseline=pair[0].deployment.name)
        found = bench(subjects, feeds, None, settings)
        shown = [f"{one.name} {one.p50_ms:.3f} ms" + (f", {one.to_baseline.text()}" if one.to_baseline else "")
                 for one in found.timings]  # fmt: skip
        print(f"{'; '.join(shown)}; {found.rounds} rounds")


def in_litert(model: Path, pixels: np.ndarray) -> np.ndarray:
    """Write the model for a batch, and run it."""
    interpreter = Interpreter(model_content=written(model, batch=BATCH).data)
    interpreter.allocate_tensors()
    given, made = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]
    found = []
    for at in range(0, len(pixels), BATCH):
        interpreter.set_tensor(given, nets.normalised(pixels[at : at + BATCH]))
        interpreter.invoke()
        found.append(interpreter.get_tensor(made))
    return np.concatenate(found)


def in_onnxruntime(model: Path, pixels: np.ndarray) -> np.ndarray:
    """Run the model as it is, with all optimizations."""
    loaded = session(model)
    parts = [run(loaded, {"x": nets.normalised(pixels[at : at + BATCH])}) for at in range(0, len(pixels), BATCH)]
    return np.concatenate([next(iter(part.values())) for part in parts])


if __name__ == "__main__":
    sys.exit(main())

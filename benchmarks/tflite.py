"""What TFLite files give in LiteRT beside ONNX Runtime: the reference net on CIFAR-10's test images, int8 and float.

python benchmarks/tflite.py

Prints for each way to quantize how many logits are the same numbers, the largest difference to the largest logit, and
how many answers agree. Needs LiteRT (``pip install 'penstock[litert]'``) and CIFAR-10 in build/cifar10.
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
from penstock.stages.quantize import QuantizeSettings
from penstock.tflite.writing import written

BATCH = 100
WAYS: dict[str, QuantizeSettings | None] = {
    "fp32": None, "int8 for integer-only": QuantizeSettings(consumer="integer-only"),
    "int8 for ort-cpu": QuantizeSettings(),
}  # fmt: skip


def main() -> int:
    """Compare each way."""
    case = data.net_case("cifar10")
    pixels, _ = nets.pixels("test")
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
    return 0


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

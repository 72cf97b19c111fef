"""The cases of the quantizers' benchmark: models, and samples to calibrate and to evaluate that share none.

Images are CIFAR-10's, enlarged to what a model takes and brought into its numbers: its training part calibrates, its
test part evaluates. Sounds, vibrations, bytes and tokens are made up from seeds. Samples lie in .npz files for
``--data``; where a model's inputs don't all count samples by their first axis they are what Penstock makes up itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import quantization_nets as nets
import torch
from torch.nn import functional as F

from penstock import api, graph, inputs, roles
from penstock.data import DataSettings, Whole

BUILD = nets.BUILD
MODELS = nets.SHARED / "models"
SEED, EVALUATION_SEED = 0, 50_000_000
OUTLIERS = (10.0, 1000.0)  # times the greatest pixel
QUANTIZED = {  # those of the shared models that aren't float
    "neudet-v5-int8-qlinear", "resnet-tiny-w8a8-qdq-extdata", "motor-fault-int8-qdq", "mlp-int8-dyn",
    "espcn-qonnx-quant", "qlstm-scan-qlinear",
}  # fmt: skip
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Case:
    """A model and its samples; ``data`` is ``None`` where they are made from the signature."""

    name: str
    model: Path
    data: Path | None
    calibrate: int
    evaluate: int

    @property
    def model_name(self) -> str:
        """Return what the model is called; cases may share one."""
        return self.model.stem if self.model.stem != "model" else self.model.parent.name

    @property
    def by_hand(self) -> bool:
        """Whether its samples can be given by no file and by no seed, but by a function."""
        return self.name in BY_HAND

    @property
    def fixed_batch(self) -> int | None:
        """Return the model's batch where it has one alone."""
        return graph.signature(graph.load(self.model)).fixed_batch

    @property
    def request(self) -> dict[str, str | int]:
        """Return the settings of the data as a request holds them."""
        return {"data": str(self.data or ""), "calibrate": self.calibrate, "golden": self.golden}

    @property
    def golden(self) -> int:
        """Return a golden set that leaves the samples for calibration."""
        return min(64, self.calibrate) if self.data else self.calibrate

    @property
    def settings(self) -> DataSettings:
        """Return what ``--data`` and ``--calibrate-samples`` would say."""
        return DataSettings(data=str(self.data or ""), calibrate=self.calibrate, golden=self.golden)

    def calibration(self, batch: int = 32) -> list[Arrays]:
        """Return the calibration samples as Penstock deals them, in batches of equal size where the model allows it."""
        dealt = api.role_feeds(self.model, self.settings, SEED).calibrate
        return [feeds for _, feeds in dealt.batches(batch, whole=True)]

    def evaluation(self, batch: int = 32) -> Iterator[Arrays]:
        """Yield samples that nothing was calibrated on."""
        if self.by_hand:
            for i in range(self.evaluate):
                yield BY_HAND[self.name](np.random.RandomState(EVALUATION_SEED + i))
            return
        signature = graph.signature(graph.load(self.model))
        size = signature.fixed_batch or batch
        if self.data is None:
            bounds = inputs.integer_bounds(graph.load(self.model))
            for i in range(0, self.evaluate, signature.fixed_batch or 1):
                yield inputs.seeded(
                    signature, batch=signature.fixed_batch or 1, seed=EVALUATION_SEED + i, bounds=bounds
                )
            return
        with np.load(self.data) as held:
            tests = {name: held[name] for name in held.files if name.endswith("_test") and name != "y_test"}
        named = {name.removesuffix("_test"): array for name, array in tests.items()}
        if len(named) == 1:
            named = {signature.inputs[0].name: next(iter(named.values()))}
        for start in range(0, self.evaluate, size):
            yield {name: array[start : start + size] for name, array in named.items()}


@dataclass(frozen=True, slots=True)
class Images:
    """How a model takes images: height and width, the numbers ``(x - shift) / scale``, and how many to calibrate on."""

    height: int
    width: int
    shift: tuple[float, ...] = (0.0,)
    scale: tuple[float, ...] = (255.0,)
    calibrate: int = 64
    channels: str = "RGB"  # BGR, or Y for grey
    last: bool = False  # channels last

    def make(self, pixels: np.ndarray) -> np.ndarray:
        """Bring ``(N, 3, 32, 32)`` uint8 into the model's form."""
        x = torch.from_numpy(pixels).float()
        if self.channels == "Y":
            x = (x * torch.tensor([0.299, 0.587, 0.114]).reshape(3, 1, 1)).sum(1, keepdim=True)
        elif self.channels == "BGR":
            x = x.flip(1)
        x = F.interpolate(x, (self.height, self.width), mode="bilinear", align_corners=False)
        shift, scale = (torch.tensor(one).reshape(-1, 1, 1) for one in (self.shift, self.scale))
        x = (x - shift) / scale
        return (x.permute(0, 2, 3, 1) if self.last else x).contiguous().numpy()


_IMAGENET = {"shift": (123.675, 116.28, 103.53), "scale": (58.395, 57.12, 57.375)}
IMAGES = {
    "mnist-8": Images(28, 28, channels="Y", calibrate=512),
    "neudet-v5-fp32": Images(128, 128, channels="Y", calibrate=256),
    "yunet-n-dynamic": Images(160, 160, scale=(1.0,), channels="BGR", calibrate=128),
    "ultraface-rfb-320": Images(240, 320, (127.0,), (128.0,)),
    "yolox-nano": Images(416, 416, scale=(1.0,), channels="BGR", calibrate=32),
    "deeplabv3": Images(257, 257, (127.5,), (127.5,), calibrate=32, last=True),
    "super-resolution-10": Images(224, 224, channels="Y", calibrate=32),
    "resnet-tiny-fp32-extdata": Images(224, 224, **_IMAGENET),
    "openseeface-landmarks": Images(224, 224, **_IMAGENET),
}


def sound(count: int, length: int, random: np.random.RandomState, rate: int = 22_050) -> np.ndarray:
    """Return ``(count, length)`` of notes with falling harmonics, each of them dying away, over pink noise."""
    time = np.arange(length) / rate
    made = np.empty((count, length), np.float32)
    for row in made:
        spectrum = np.fft.rfft(random.standard_normal(length))
        noise = np.fft.irfft(spectrum / np.sqrt(np.maximum(np.arange(len(spectrum)), 1)), length)
        total = 0.02 * noise / noise.std()
        for _ in range(random.randint(2, 8)):
            pitch, start = 55 * 2 ** random.uniform(0, 4), random.uniform(0, length / rate)
            shape = np.where(time >= start, np.exp(-3 * np.maximum(time - start, 0)), 0)
            total = total + shape * sum(np.sin(2 * np.pi * pitch * h * time) / h for h in range(1, 6)) * 0.2
        row[:] = total / max(np.abs(total).max(), 1) * random.uniform(0.1, 0.9)
    return made


def _basic_pitch(count: int, random: np.random.RandomState) -> Arrays:
    return {"serving_default_input_2:0": sound(count, 43_844, random)[:, :, None]}


def _dtln(count: int, random: np.random.RandomState) -> Arrays:
    frames = np.concatenate([one.reshape(-1, 512) for one in sound(-(-count // 16), 16 * 512, random, 16_000)])[:count]
    spectra = np.abs(np.fft.rfft(frames)).astype(np.float32)
    states = np.tanh(random.standard_normal((count, 2, 128, 2)) * 0.5).astype(np.float32)
    return {"input_2": spectra[:, None], "input_3": states}


def _vibration(count: int, random: np.random.RandomState) -> Arrays:
    made = sound(count, 128, random, 4_000)
    return {"input": ((made - made.mean(1, keepdims=True)) / made.std(1, keepdims=True))[:, None]}


def _tokens(count: int, random: np.random.RandomState) -> Arrays:
    model = graph.load(MODELS / "bert-tf-qa/model.onnx")
    bound = inputs.integer_bounds(model)["input_ids"]
    ids = random.randint(0, bound, (count, 7))
    second = (np.arange(7) >= random.randint(2, 6, (count, 1))).astype(np.int32)
    mask = (np.arange(7) < random.randint(5, 8, (count, 1))).astype(np.int32)
    return {"input_ids": ids.astype(np.int32), "token_type_ids": second, "attention_mask": mask}


def _files(count: int, random: np.random.RandomState) -> Arrays:
    made = np.empty((count, 2048), np.int32)
    for row in made:  # some are text, some are binary, some end early: 256 is no byte
        low, high = (32, 127) if random.rand() < 0.5 else (0, 256)
        row[:] = random.choice(np.arange(low, high), 2048, p=random.dirichlet(np.full(high - low, 0.3)))
        if random.rand() < 0.3:
            row[random.randint(100, 2048) :] = 256
    return {"bytes": made}


def _letters(count: int, random: np.random.RandomState) -> Arrays:
    letters = np.frombuffer(b"  eeetttaaooiinnsshhrrdlucmfwygpbvkxjqz.,\n", np.uint8)
    return {"input": letters[random.randint(0, len(letters), (count, 64))]}


def _steps(count: int, random: np.random.RandomState) -> Arrays:
    return {"Input13165": random.standard_normal((count, 1, 3)).astype(np.float32)}


MADE: dict[str, tuple[Callable[[int, np.random.RandomState], Arrays], int]] = {
    "basic-pitch-nmp": (_basic_pitch, 64),
    "dtln-model1": (_dtln, 512),
    "motor-fault-fp32": (_vibration, 512),
    "motor-fault-extdata": (_vibration, 512),
    "bert-tf-qa": (_tokens, 512),
    "magika-v3-3": (_files, 256),
    "byte-bidi-lstm": (_letters, 256),
    "ort-scan": (_steps, 512),
}


def _speech(random: np.random.RandomState) -> Arrays:
    state = np.tanh(random.standard_normal((2, 1, 128)) * 0.5).astype(np.float32)
    return {"input": sound(1, 576, random, 16_000), "state": state, "sr": np.array(16_000)}


def _continuation(random: np.random.RandomState) -> Arrays:
    past = {f"past_{i}": random.standard_normal((2, 1, 4, 8, 8)).astype(np.float32) for i in range(5)}
    words = {"input_ids": random.randint(0, 1000, (1, 8)), "position_ids": np.arange(8, 16)[None],
             "attention_mask": np.ones((1, 16))}  # fmt: skip
    return {name: array.astype(np.int32) for name, array in words.items()} | past


# inputs that neither a file nor the signature can give: sizes that depend on each other, a number with a meaning
BY_HAND: dict[str, Callable[[np.random.RandomState], Arrays]] = {
    "silero-vad-if": _speech,
    "tiny-gpt2-genai": _continuation,
}
WHOLE = 64 + 64  # samples of such models, calibration and golden set


def speech() -> Iterator[Whole]:
    """Yield what runs of silero-vad-if read, as ``--data FILE:speech``."""
    return _whole("silero-vad-if")


def continuation() -> Iterator[Whole]:
    """Yield what runs of tiny-gpt2-genai read, as ``--data FILE:continuation``."""
    return _whole("tiny-gpt2-genai")


def measurements() -> Arrays:
    """Return rows of the twenty numbers that sklearn-tree-classifier looks at, as ``--data FILE:measurements``."""
    return {"input": np.random.RandomState(SEED).normal(0, 2, (WHOLE, 20)).astype(np.float32)}


def _whole(name: str) -> Iterator[Whole]:
    return (Whole(BY_HAND[name](np.random.RandomState(SEED + i))) for i in range(WHOLE))


def cases() -> dict[str, Case]:
    """Make all files that aren't there yet; name → case, the nets first."""
    found = {name: net_case(name) for name in nets.NETS if "imbalanced" not in name}
    for folder in sorted(MODELS.glob("*/model.onnx")):
        name = folder.parent.name
        if name not in QUANTIZED:
            found[name] = _shared(name, folder)
    return found


def net_case(name: str, outlier: float = 0.0) -> Case:
    """Return the case of a net; with ``outlier``, one calibration image has one pixel of so many times the greatest."""
    path = BUILD / f"images{f'-outlier-{outlier:g}' if outlier else ''}.npz"
    if not path.exists():
        images, labels = nets.pixels("train", 2048)
        test, test_labels = nets.pixels("test", 1000)
        x = nets.normalised(images)
        if outlier:
            dealt = roles.deal(labels, len(x), seed=SEED, golden=64, calibrate=512, select=0)
            x[dealt.calibrate[7], :, 16, 16] = outlier * np.abs(x).max()
        _save(path, {"x_train": x, "y_train": labels, "x_test": nets.normalised(test), "y_test": test_labels})
    return Case(name + (f"-outlier-{outlier:g}" if outlier else ""), nets.model(name), path, 512, 1000)


def _shared(name: str, model: Path) -> Case:
    path = BUILD / f"{name}.npz"
    if name in IMAGES:
        count = IMAGES[name].calibrate
        if not path.exists():
            train, test = nets.pixels("train", 2 * count)[0], nets.pixels("test", count // 2)[0]
            _save(path, {"x_train": IMAGES[name].make(train), "x_test": IMAGES[name].make(test)})
    elif name in MADE:
        make, count = MADE[name]
        if not path.exists():
            train = make(2 * count, np.random.RandomState(SEED))
            test = make(count // 2, np.random.RandomState(EVALUATION_SEED))
            _save(path, {f"{key}_train": array for key, array in train.items()}
                  | {f"{key}_test": array for key, array in test.items()})  # fmt: skip
    elif name in BY_HAND:
        return Case(name, model, Path(f"{__file__}:{BY_HAND[name].__name__.strip('_')}"), 64, 32)
    else:
        return Case(name, model, None, 64, 32)
    return Case(name, model, path, count, count // 2)


def _save(path: Path, arrays: Arrays) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with (part := path.with_suffix(".part")).open("wb") as file:
        np.savez(file, **arrays)
    part.replace(path)

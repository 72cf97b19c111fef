"""What quantization-aware training is told: the grids and their placement, and how the given loop trains."""

from __future__ import annotations

from dataclasses import dataclass

from penstock.errors import UsageError
from penstock.settings import option
from penstock.stages.quantize import ACTIVATIONS, CONSUMERS, RANGES, TARGET_CPUS, QuantizeSettings


@dataclass(frozen=True, slots=True)
class QatSettings:
    """Which tensors get a grid, and where the grids begin: as the static quantizer's settings of the same names."""

    consumer: str = option("ort-cpu", "what will run it: decides which tensors are quantized", choices=CONSUMERS)
    activations: str = option("", "type of activations (default: the consumer's own)", choices=("", *ACTIVATIONS))
    ranges: str = option("auto", "how the ranges that training begins with are chosen", choices=("auto", *RANGES))
    percentile: float = option(
        99.99, "share of the values in per cent that `--ranges percentile` keeps", minimum=50, maximum=100
    )
    equalize: bool = option(True, "scale channels against each other before, where one grid doesn't fit them all")
    smooth: bool = option(True, "the same through normalizations, for transformers (SmoothQuant)")
    per_channel: bool = option(True, "one scale per output channel of a weight", flag="--per-channel/--per-tensor")
    quantize_outputs: bool = option(False, "quantize the result of the last layer too, which clips it")
    target_cpu: str = option("host", "CPU that will run it: without VNNI weights keep to 7 bits", choices=TARGET_CPUS)
    exclude: tuple[str, ...] = option((), "nodes to leave in float, by name; `*` stands for anything")
    scales: str = option("learned", "whether the scales are trained with the weights", choices=("learned", "fixed"))

    def static(self) -> QuantizeSettings:
        """Return the static quantizer's settings that give the same file before training.

        What it repairs afterwards is left to the training: biases, how weights are rounded, and layers that it would
        leave in float.
        """
        return QuantizeSettings(
            method="static", consumer=self.consumer, activations=self.activations, ranges=self.ranges,
            percentile=self.percentile, equalize=self.equalize, smooth=self.smooth, correct_bias="none", guard=False,
            rounding="nearest", per_channel=self.per_channel, quantize_outputs=self.quantize_outputs,
            target_cpu=self.target_cpu, exclude=self.exclude,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Recipe:
    """How the given loop trains: SGD with momentum, the rate falling to 0 along half a cosine."""

    epochs: int = option(2, "passes over the training data (0: only calibrate)", minimum=0)
    batch: int = option(128, "samples of a training step", minimum=1)
    learning_rate: float = option(0.005, "learning rate at the start; it falls to 0 along half a cosine", minimum=0)
    momentum: float = option(0.9, "momentum of SGD", minimum=0)
    clip: float = option(1.0, "norm that a step's gradient is cut to; 0: none", flag="--clip-gradient", minimum=0)
    weight_decay: float = option(0.0, "weight decay of weights of two or more axes", minimum=0)
    distill: float = option(1.0, "share of the loss that is the distance to the float model; the rest is the labels'",
                            minimum=0)  # fmt: skip
    temperature: float = option(2.0, "temperature at which the distance to the float model is taken", minimum=0.01)
    label_smoothing: float = option(0.0, "label smoothing, where the labels have a share of the loss", minimum=0)
    flip: bool = option(False, "mirror half of the training images")
    crop: int = option(0, "pixels by which training images are moved at most, their edges reflected", minimum=0)

    def __post_init__(self) -> None:
        """Raise ``UsageError`` for shares that are none."""
        for name, value in (("distill", self.distill), ("label_smoothing", self.label_smoothing)):
            if value > 1:
                flag = "--" + name.replace("_", "-")
                raise UsageError("bad-setting", f"{flag} is a share from 0 to 1, not {value:g}", where=flag)
        if self.momentum >= 1:
            raise UsageError("bad-setting", f"--momentum is below 1, not {self.momentum:g}", where="--momentum")

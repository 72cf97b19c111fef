"""How a network of the zoo is trained: the settings of one training run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Recipe:
    """The settings of one training run; together with the data's digest they name the weights."""

    epochs: int
    batch: int = 256
    seed: int = 0
    peak_learning_rate: float = 0.15
    warm_up: float = 0.15  # part of the run spent rising to the peak
    momentum: float = 0.9
    weight_decay: float = 5e-4  # on weights of two or more axes; biases and BatchNorm go without
    label_smoothing: float = 0.05
    averaging: float = 0.999  # decay of the moving average, per step
    padding: int = 4  # pixels, reflected, that a random crop may reach into
    flip_probability: float = 0.5
    cutout: int = 8  # side of the erased square, pixels
    plain_tail: float = 0.15  # last part of the run, without cutout
    bfloat16: bool = True  # autocast of the forward pass
    image_size: int = 32
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)

"""Reference networks, the recipes that train them, and their weights. Torch is imported by the functions that need it.

``weights/NAME.safetensors`` holds the trained weights and ``weights/NAME.json`` the card: how they came to be, and
how good they are.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from penstock.errors import MissingError, UsageError, missing_extra
from penstock.jsonable import Json
from penstock.zoo.recipe import Recipe

if TYPE_CHECKING:
    from torch import nn

WEIGHTS = Path(__file__).parent / "weights"


@dataclass(frozen=True, slots=True)
class Trained:
    """One network of the zoo: what it is, and how it is trained."""

    description: str
    recipe: Recipe
    weights: str  # file name in ``weights/``
    select: int  # training rows held out, never trained on
    copies: int = 0  # further distorted versions of each training sample


RECIPES: Mapping[str, Trained] = {
    "cifar10": Trained(
        "CIFAR-10, 10 classes of 32x32 colour images",
        Recipe(epochs=150, mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)),
        "cifar10.safetensors",
        select=2000,
    ),
    "digits": Trained(
        "handwritten digits, distorted, 10 classes of 32x32 images",
        Recipe(
            epochs=12,
            batch=128,
            peak_learning_rate=0.03,
            cutout=4,
            averaging=0.98,
            padding=2,
            flip_probability=0.0,
            mean=(0.26, 0.26, 0.26),
            std=(0.196, 0.196, 0.196),
        ),
        "digits.safetensors",
        select=300,
        copies=12,
    ),
}


def trained(name: str) -> Trained:
    """Return the zoo's entry ``name``. Raises ``UsageError`` for an unknown one."""
    if name not in RECIPES:
        known = ", ".join(RECIPES)
        raise UsageError("unknown-network", f"the zoo has no network named {name!r}", do=f"known are: {known}")
    return RECIPES[name]


def network(name: str) -> nn.Module:
    """Build the network ``name``, untrained.

    Raises ``UsageError`` for an unknown name, ``MissingError`` without torch.
    """
    trained(name)
    try:
        return cast("nn.Module", importlib.import_module(f"penstock.zoo.{name}").network())
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise missing_extra("torch", "torch", "a network of the zoo") from error


def load(name: str) -> nn.Module:
    """Build the network ``name`` with its trained weights, in evaluation mode.

    Raises ``UsageError`` for an unknown name, ``MissingError`` without torch or where it was never trained.
    """
    path = _file(name, trained(name).weights)
    model = network(name)
    from safetensors.torch import load_file

    model.load_state_dict(load_file(path))
    return model.eval()


def card(name: str) -> dict[str, Json]:
    """Read how the weights of ``name`` came to be, as :class:`penstock.zoo.training.Card` holds it.

    Raises ``UsageError`` for an unknown name, ``MissingError`` where it was never trained.
    """
    trained(name)
    return cast("dict[str, Json]", json.loads(_file(name, f"{name}.json").read_text(encoding="utf-8")))


def _file(name: str, file: str) -> Path:
    if (path := WEIGHTS / file).is_file():
        return path
    raise MissingError(
        "not-trained",
        f"the weights of {name!r} are not here",
        where=str(path),
        do=f"train them with: penstock zoo train {name}",
    )

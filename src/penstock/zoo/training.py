"""Train a network of the zoo from its data set, and write its weights and its card."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from penstock import roles, store, zoo
from penstock.data import Dataset, DataSettings, Split
from penstock.datasets import find
from penstock.errors import InputError
from penstock.progress import Progress
from penstock.zoo.recipe import Recipe

if TYPE_CHECKING:
    import numpy as np
    import torch

    from penstock.zoo._training import Epoch


@dataclass(frozen=True, slots=True)
class Card:
    """How weights came to be and how good they are. Accuracies are top-1, fractions in [0, 1]."""

    name: str
    description: str
    command: str
    seed: int
    epochs: int
    recipe: Recipe
    copies: int  # further distorted versions of each training sample
    data: str
    data_digest: str  # SHA-256
    trained_samples: int
    held_out_samples: int
    held_out_accuracy: float  # chose between the last and the averaged weights
    test_samples: int
    test_accuracy: float  # the official test set, read once, after training
    test_interval: tuple[float, float]  # Wilson, 95 %
    parameters: int
    weights_sha256: str
    torch: str


def train(name: str, data: str, settings: DataSettings, out: Path, progress: Progress) -> Card:
    """Train ``name`` on the data set ``data`` (empty: its own) and write weights and card below ``out``.

    An interrupted run leaves ``out/NAME-….checkpoint`` and the same call goes on from its last whole epoch. Raises
    ``InputError`` for data that doesn't fit the recipe, ``MissingError`` without torch, ``StoreError`` for ``out``.
    """
    entry = zoo.trained(name)
    recipe = entry.recipe
    model = zoo.network(name)
    import torch
    from safetensors.torch import save

    from penstock.intervals import wilson
    from penstock.zoo import _training

    dataset = find(data or name, settings, progress)
    test = _check(dataset, recipe, data or name)
    images, labels, held_out = _training_set(dataset, entry)
    progress.begin("train", f"{name}, {len(images) - len(held_out)} samples, {recipe.epochs} epochs")

    def report(epoch: Epoch) -> None:
        note = f"loss {epoch.train_loss:.3f}, held out {epoch.averaged_accuracy:.2%}, {epoch.seconds:.0f} s"
        progress.step(epoch.index, epoch.of, note)

    # named after what is learnt from, so that an unfinished run on other data isn't continued
    drawn_from = store.digest_of([dataset.digest, entry.copies, entry.select])
    checkpoint = out / f"{name}-{drawn_from[:12]}.checkpoint"
    state = _training.train(model, images, labels, held_out, recipe, checkpoint, report)
    model.load_state_dict(state)
    weights = save(state)
    store.write_bytes(out / entry.weights, weights)
    test_accuracy = _accuracy(model, test.arrays[""][:], test.labels, recipe)
    card = Card(
        name=name,
        description=entry.description,
        command=f"penstock zoo train {name}" + ("" if data in ("", name) else " --data DIR"),
        seed=recipe.seed,
        epochs=recipe.epochs,
        recipe=recipe,
        copies=entry.copies,
        data=dataset.name,
        data_digest=dataset.digest,
        trained_samples=len(images) - len(held_out),
        held_out_samples=len(held_out),
        held_out_accuracy=_accuracy(model, images[held_out], labels[held_out], recipe),
        test_samples=len(test),
        test_accuracy=test_accuracy,
        test_interval=wilson(round(test_accuracy * len(test)), len(test)),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        weights_sha256=store.file_digest(out / entry.weights),
        torch=str(torch.__version__),
    )
    store.write_json(out / f"{name}.json", card)
    low, high = card.test_interval
    progress.end(f"test accuracy {test_accuracy:.2%} (95 % interval {low:.2%} to {high:.2%}, {len(test)} samples)")
    return card


def _check(dataset: Dataset, recipe: Recipe, where: str) -> Split:
    """Check that the data fits the recipe; return the part to test on."""
    shape = (recipe.image_size, recipe.image_size, 3)
    train, test = dataset.train, dataset.evaluate
    if set(train.arrays) != {""} or train.arrays[""].shape[1:] != shape or train.arrays[""].dtype.name != "uint8":
        found = ", ".join(f"{array.dtype} of shape {array.shape}" for array in train.arrays.values())
        do = "give the data set that this network is for, or leave --data away"
        raise InputError("data-wrong-shape", f"the recipe is for uint8 images {shape}, not {found}", where=where, do=do)
    if train.labels is None or test is None or test.labels is None or len(dataset.classes) != 10:
        raise InputError(
            "data-wrong-classes",
            f"the recipe wants labels of 10 classes and a test set; there are {len(dataset.classes)} classes",
            where=where,
            do="give the data set that this network is for, or leave --data away",
        )
    declared = dataset.preprocessing
    if (declared.mean, declared.std) != (recipe.mean, recipe.std):
        raise InputError(
            "data-wrong-preprocessing",
            f"the data is normalised with {declared.mean} and {declared.std}, the recipe with {recipe.mean} and "
            f"{recipe.std}",
            where=where,
            do="leave --mean and --std away: weights are of use only with the preprocessing that they know",
        )
    return test


def _training_set(dataset: Dataset, entry: zoo.Trained) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return images ``(N, H, W, 3)``, labels ``(N,)`` and the rows held out; these are never trained on.

    Distorted copies are taken of the other rows alone, so that no original is on both sides.
    """
    import numpy as np

    images, labels = dataset.train.arrays[""][:], dataset.train.labels
    assert labels is not None  # checked before
    count = len(labels)
    held_out = roles.deal(labels, count, seed=0, golden=64, calibrate=512, select=entry.select).select
    if len(held_out) < entry.select or count - len(held_out) < entry.recipe.batch:
        raise InputError(
            "data-too-small",
            f"{count} samples are too few to hold {entry.select} out beside the golden set and the calibration set",
            where=dataset.name,
            do="give the whole data set that this network is for",
        )
    if entry.copies and dataset.name == "digits":
        from penstock.datasets import digits

        more, more_labels = digits.distorted(entry.copies, seed=entry.recipe.seed + 1)
        kept = ~np.isin(np.arange(len(more)) % count, held_out)
        images, labels = np.concatenate([images, more[kept]]), np.concatenate([labels, more_labels[kept]])
    return images, labels, held_out


def _accuracy(model: torch.nn.Module, images: np.ndarray, labels: np.ndarray | None, recipe: Recipe) -> float:
    import torch

    from penstock.zoo import _training

    assert labels is not None  # checked before
    return _training.accuracy(model, torch.from_numpy(images), torch.from_numpy(labels), recipe)

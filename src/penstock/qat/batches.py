"""What a user's loader yields, as a model's inputs and what follows them. Imports torch: load inside functions only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from penstock.calibration import Batches, check, size
from penstock.errors import InputError
from penstock.signature import Signature, TensorSpec

LABELS = "labels"  # under which a batch that is a mapping holds them


def parts(batch: Any, names: Sequence[str]) -> tuple[dict[str, Any], Any]:
    """Cut a batch into the inputs by name and the labels, ``None`` without.

    A batch is one tensor or array, or several in the order of the inputs, with the labels after them; or a mapping by
    the inputs' names, with the labels under ``labels``. Raises ``InputError`` for anything else.
    """
    if isinstance(batch, Mapping):
        missing = [name for name in names if name not in batch]
        if missing:
            given = ", ".join(map(str, batch))
            what = f"a batch lacks the input {missing[0]!r}; it has {given or 'nothing'}"
            raise InputError("data-does-not-fit", what, do="give every input under its name")
        return {name: batch[name] for name in names}, batch.get(LABELS)
    held = list(batch) if isinstance(batch, (tuple, list)) else [batch]
    if len(held) < len(names) or not all(isinstance(one, (torch.Tensor, np.ndarray)) for one in held[: len(names)]):
        kinds = ", ".join(type(one).__name__ for one in held)
        what = f"a batch holds {kinds or 'nothing'}; the model wants {', '.join(names)}"
        raise InputError("data-does-not-fit", what, do="yield one tensor for each input, and the labels after them")
    return dict(zip(names, held, strict=False)), held[len(names)] if len(held) > len(names) else None


def arrays(values: Mapping[str, Any], signature: Signature) -> dict[str, np.ndarray]:
    """Return inputs as arrays of the model's types. Raises ``InputError`` where one doesn't fit the model."""
    found = {}
    for spec in signature.inputs:
        value = values[spec.name]
        array = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
        array = array.astype(np.float32) if (str(array.dtype), spec.dtype) == ("float64", "float32") else array
        _fits(array, spec)
        found[spec.name] = array
    return found


def _fits(array: np.ndarray, spec: TensorSpec) -> None:
    shape = spec.shape
    fits = str(array.dtype) == spec.dtype and (
        shape is None
        or (
            len(shape) == array.ndim
            and all(not isinstance(want, int) or want == have for want, have in zip(shape, array.shape, strict=True))
        )
    )
    if not fits:
        what = f"a batch has {array.dtype}{list(array.shape)}; the model's input is {spec.text()}"
        raise InputError("data-does-not-fit", what, do="give the samples as the model takes them")


def calibration(batches: Iterable[Any], signature: Signature) -> Batches:
    """Return calibration samples of what a user's loader yields; labels are left out.

    What can be gone through again is, and isn't held. Raises ``InputError`` for what doesn't fit or is empty.
    """
    if isinstance(batches, Batches):
        return batches
    if isinstance(batches, (torch.Tensor, np.ndarray)):
        batches = [batches]
    held = list(batches) if isinstance(batches, Iterator) else batches
    names = [spec.name for spec in signature.inputs]

    def again() -> Iterator[dict[str, np.ndarray]]:
        return (arrays(parts(batch, names)[0], signature) for batch in held)

    if not any(size(batch) for batch in again()):
        raise InputError("no-samples", "there are no calibration samples", do="give batches of the module's inputs")
    check(again())
    sizes = [size(batch) for batch in again()]
    return Batches(again, again, sum(sizes), size=max(sizes))

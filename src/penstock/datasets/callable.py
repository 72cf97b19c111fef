"""A function of one's own, module:function or file.py:function, that gives inputs or (inputs, labels), in batches.

The function takes no arguments. It returns whole arrays, or yields batches; each has the samples along its first axis.
Inputs are an array, or a dict from the model's input names to arrays; torch tensors will do. Labels are whole numbers.
For a model whose inputs don't all count samples along the first axis (a state, a rate), it yields one
``penstock.data.Whole`` for each sample: what one run reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penstock import user_code
from penstock.data import Dataset, DataSettings, Preprocessing, Split, Whole
from penstock.datasets import _checks
from penstock.datasets._stored import Spool
from penstock.errors import InputError
from penstock.progress import SILENT, Progress

if TYPE_CHECKING:
    import numpy as np

GIVES = "return or yield inputs, or (inputs, labels), with the samples along the first axis"


def claims(spec: str) -> bool:
    """Tell whether ``spec`` has the form of module:function or file.py:function."""
    return not spec.startswith("zoo:") and user_code.SPEC.fullmatch(spec) is not None


def need(spec: str) -> None:
    """Raise ``InputError`` where the function's file isn't there; nothing is imported."""
    head = spec.rpartition(":")[0]
    if head.endswith(".py") and not Path(head).expanduser().is_file():
        raise InputError("no-such-file", "there is no such file", where=head, do="check --data")


def open(spec: str, settings: DataSettings, progress: Progress = SILENT) -> Dataset:
    """Call the function and join its batches; all roles are dealt from them.

    Raises ``InputError`` where there is no such function, for whatever it raises (with the line of its source), for
    batches that don't fit each other, and beyond 4 GiB; ``StoreError`` where there is no room for many samples.
    """
    progress.begin("read", spec)
    spools: dict[str, Spool] = {}
    labels: list[np.ndarray] = []
    first: Split | None = None
    whole: bool | None = None
    with user_code.importable():
        function = user_code.without_arguments(spec, "the data function")
        for number, batch in enumerate(_batches(spec, function)):
            where = f"{spec}, batch {number}"
            part, alone = _split(batch, where)
            if whole not in (None, alone):
                what = "some batches are Whole and some aren't"
                raise InputError("data-wrong-shape", what, where=where, do="give each sample as a Whole, or none")
            whole = alone
            first = part if first is None else first
            _fits(first, part, where)
            for name, array in part.arrays.items():
                spools.setdefault(name, Spool()).append(array[:])
            if part.labels is not None:
                labels.append(part.labels)
            size = sum(spool.nbytes for spool in spools.values())
            if size > _checks.LIMIT_BYTES:
                raise _checks.too_large(size, spec)
            progress.step(number + 1, 0, "batches")
    if not spools:
        raise InputError("data-empty", "the function gives no batch", where=spec, do=GIVES)
    train = _joined(spools, labels)
    progress.end(f"{len(train)} samples")
    classes = _checks.numbered_classes(train)
    return Dataset(spec, train, None, classes, Preprocessing(), _checks.digest(train), whole=bool(whole))


def _joined(spools: Mapping[str, Spool], labels: list[np.ndarray]) -> Split:
    import numpy as np

    joined = {name: spool.finish() for name, spool in spools.items()}
    return Split(joined, np.concatenate(labels) if labels else None)


def _batches(spec: str, function: Callable[[], object]) -> Iterator[object]:
    """Yield what the function gives: its batches, or the one whole that it returns."""
    with user_code.explained("the data function failed", spec):
        result = function()
    if isinstance(result, (tuple, Mapping, Whole)) or not isinstance(result, Iterable) or hasattr(result, "shape"):
        yield result
        return
    with user_code.explained("the data function failed", spec):
        batches = iter(result)
    while True:
        with user_code.explained("the data function failed", spec):
            batch = next(batches, _END)
        if batch is _END:
            return
        yield batch


_END = object()


def _split(batch: object, where: str) -> tuple[Split, bool]:
    """Check one batch and copy it: a function may fill the same buffer again. Tell whether it is a ``Whole``."""
    inputs, labels = batch, None
    if isinstance(batch, (tuple, list)):
        if len(batch) not in (1, 2):
            what = f"a batch has {len(batch)} parts: {', '.join(type(part).__name__ for part in batch)}"
            raise InputError("data-wrong-shape", what, where=where, do=f"{GIVES}; several inputs go into a dict")
        inputs, labels = batch[0], batch[1] if len(batch) == 2 else None
    whole = isinstance(inputs, Whole)
    inputs = inputs.feeds if isinstance(inputs, Whole) else inputs
    named = inputs if isinstance(inputs, Mapping) else {"": inputs}
    if len(named) == 1:
        named = {"": next(iter(named.values()))}
    arrays = {str(name): _array(value, where) for name, value in named.items()}
    if whole:
        arrays = {name: array[None] for name, array in arrays.items()}
    return _checks.split(arrays, None if labels is None else _array(labels, where), where), whole


def _array(value: Any, where: str) -> np.ndarray:
    import numpy as np

    try:
        if hasattr(value, "detach"):  # a torch tensor, without importing torch
            value = value.detach().cpu()
        return np.array(value.numpy() if callable(getattr(value, "numpy", None)) else value)
    except Exception as error:  # somebody else's conversion, or a list of unequal lengths
        kind = type(value).__name__
        raise InputError("data-wrong-dtype", f"{kind} is no array: {error}", where=where, do=GIVES) from error


def _fits(first: Split, part: Split, where: str) -> None:
    """Check that a batch has the inputs, shapes, types and labels of the first."""
    form, wanted = (
        {name: (array.dtype.name, array.shape[1:]) for name, array in one.arrays.items()} for one in (part, first)
    )
    if form != wanted:
        what = f"the batch holds {_shown(form)}, the first one {_shown(wanted)}"
        raise InputError("data-wrong-shape", what, where=where, do="give every batch the same inputs, types and shapes")
    if (part.labels is None) != (first.labels is None):
        what = "has no labels, the first one has" if part.labels is None else "has labels, the first one has none"
        raise InputError(
            "data-wrong-shape", f"the batch {what}", where=where, do="give labels with every batch, or with none"
        )


def _shown(form: Mapping[str, tuple[str, tuple[int, ...]]]) -> str:
    return ", ".join(f"{name + ' ' if name else ''}{dtype} {shape}" for name, (dtype, shape) in form.items())

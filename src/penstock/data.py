"""Data sets: samples with or without labels, preprocessing declared once, and the four roles.

A data set holds its samples raw (pixels as uint8, as they lie on disk) and brings a batch into the model's form when it
is asked for one, so that the same declared preprocessing serves calibration, the golden set, evaluation and bench.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from penstock.progress import Progress
from penstock.settings import option

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """From raw samples to the model's input: ``(x * scale - mean) / std``, then the layout.

    ``mean`` and ``std`` are per channel (empty: none). ``layout`` "NCHW" moves a trailing channel axis to the second
    place; "as-is" leaves the axes alone. Integer inputs with the identity preprocessing keep their dtype.
    """

    scale: float = 1.0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    layout: str = "as-is"

    @property
    def is_identity(self) -> bool:
        """Whether samples go to the model as they are."""
        return self == Preprocessing()

    def apply(self, raw: np.ndarray) -> np.ndarray:
        """Preprocess a batch ``(N, …)``; with a channel mean the channels are the last axis. Returns float32."""
        import numpy as np

        if self.is_identity:
            return raw.astype(np.float32) if raw.dtype == np.float64 else raw
        batch = raw.astype(np.float32) * np.float32(self.scale)
        if self.mean:
            batch -= np.asarray(self.mean, np.float32)
        if self.std:
            batch /= np.asarray(self.std, np.float32)
        if self.layout == "NCHW":
            batch = np.moveaxis(batch, -1, 1)
        return np.ascontiguousarray(batch)


class Samples(Protocol):
    """Raw samples ``(N, …)``: an array, or what reads them from where they lie. A slice or rows ``(k,)`` give arrays.

    What a data set of any length needs no memory for is never held as a whole: ask for a batch at a time.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """The number of samples, then the shape of one."""

    @property
    def dtype(self) -> np.dtype:
        """The type of the values."""

    @property
    def ndim(self) -> int:
        """The number of axes, that of the samples included."""

    @property
    def nbytes(self) -> int:
        """The bytes of all samples."""

    def __len__(self) -> int:
        """Return the number of samples."""

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        """Return some samples ``(k, …)``."""


@dataclass(frozen=True, slots=True)
class Selected:
    """Some rows of other samples, looked up when they are asked for."""

    samples: Samples
    index: np.ndarray  # (k,)

    @property
    def shape(self) -> tuple[int, ...]:
        """The number of selected samples, then the shape of one."""
        return len(self), *self.samples.shape[1:]

    @property
    def dtype(self) -> np.dtype:
        """The type of the values."""
        return self.samples.dtype

    @property
    def ndim(self) -> int:
        """The number of axes, that of the samples included."""
        return self.samples.ndim

    @property
    def nbytes(self) -> int:
        """The bytes of the selected samples."""
        return self.samples.nbytes // max(len(self.samples), 1) * len(self)

    def __len__(self) -> int:
        """Return the number of selected samples."""
        return len(self.index)

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        """Return some of the selected samples ``(k, …)``."""
        return self.samples[self.index[rows]]


@dataclass(frozen=True, slots=True)
class Split:
    """Samples of one part of a data set.

    ``arrays`` maps the model's input name to ``(N, …)`` raw samples; a sole input goes under "". ``labels`` is ``(N,)``
    int64 class indices, or ``None``.
    """

    arrays: Mapping[str, Samples]
    labels: np.ndarray | None

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(next(iter(self.arrays.values())))

    def take(self, index: np.ndarray) -> Split:
        """Return the samples at ``index`` ``(k,)``, in that order; nothing is copied but labels."""
        labels = None if self.labels is None else self.labels[index]
        return Split({name: _selected(array, index) for name, array in self.arrays.items()}, labels)


def _selected(samples: Samples, index: np.ndarray) -> Selected:
    if isinstance(samples, Selected):
        return Selected(samples.samples, samples.index[index])
    return Selected(samples, index)


@dataclass(frozen=True, slots=True)
class Whole:
    """Everything that one run of a model reads, for models whose inputs don't all have samples along the first axis.

    A data function yields one for each sample: ``feeds`` maps each input's name to its array, in the model's form. All
    have the same shapes.
    """

    feeds: Mapping[str, Any]


class OneRun(dict[str, Any]):
    """The feeds of a :class:`Whole`: one sample, whatever the lengths of its arrays."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """A named data set. ``train`` gives the roles calibrate, golden and select; ``evaluate`` is the official test set.

    Where a source has no test set, ``evaluate`` is ``None`` and the role is dealt from ``train`` as well.
    ``digest`` is the SHA-256 over the raw bytes and labels; ``classes`` the class names (empty: unlabelled). With
    ``whole`` a sample is all that one run reads (see :class:`Whole`), without an axis that counts samples.
    """

    name: str
    train: Split
    evaluate: Split | None
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    digest: str
    whole: bool = False

    def feeds(self, part: Split, start: int, stop: int) -> dict[str, np.ndarray]:
        """Return samples of a part in the model's form, by the data set's own names; of whole ones the first alone."""
        if self.whole:
            import numpy as np

            return {name: np.asarray(array[start : start + 1][0]) for name, array in part.arrays.items()}
        return {name: self.preprocessing.apply(array[start:stop]) for name, array in part.arrays.items()}

    def example(self) -> dict[str, np.ndarray]:
        """Return the first samples for an export to trace; a sole input is called "0"."""
        return {name or "0": array for name, array in self.feeds(self.train, 0, 8).items()}


@dataclass(frozen=True, slots=True)
class DataSettings:
    """Where the data comes from and how it is dealt."""

    data: str = option("", "data set: a folder, an .npz, module:function, or a built-in name (digits, cifar10)")
    download: bool = option(False, "let a built-in data set download what is missing")
    calibrate: int = option(512, "samples for calibration", flag="--calibrate-samples", minimum=1)
    golden: int = option(64, "samples of the golden set", flag="--golden-samples", minimum=1)
    select: int = option(2000, "samples that limits and searches look at", flag="--select-samples", minimum=0)
    scale: float = option(0.0, "preprocessing: factor on raw values, for example 0.00392157 (0: the data set's own)")
    mean: tuple[float, ...] = option((), "preprocessing: mean per channel, after the factor")
    std: tuple[float, ...] = option((), "preprocessing: standard deviation per channel")
    layout: str = option("", "preprocessing: layout of the model's input", choices=("", "NCHW", "as-is"))
    image_size: int = option(0, "side in pixels that a folder of images is resized to (0: images must be of one size)")


class DatasetSource(Protocol):
    """What a file in ``datasets/`` offers: whether it reads a ``--data`` value, and reading it.

    It may also have ``need(spec)``, asked first, which raises a ``PenstockError`` where the data can't be read here.
    """

    def claims(self, spec: str) -> bool:
        """Tell whether this source reads ``spec``, from its form and from what lies there; never raises."""

    def open(self, spec: str, settings: DataSettings, progress: Progress) -> Dataset:
        """Read the data set. Raises ``InputError`` for anything wrong with it, ``MissingError`` for an absent extra."""


def batches(split: Split, preprocessing: Preprocessing, size: int) -> Iterator[dict[str, np.ndarray]]:
    """Yield the samples in the model's form, ``size`` at a time, in order; the last batch may be smaller."""
    for start in range(0, len(split), size):
        yield {name: preprocessing.apply(array[start : start + size]) for name, array in split.arrays.items()}

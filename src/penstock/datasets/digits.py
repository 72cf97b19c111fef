"""Handwritten digits: scikit-learn's 1,797, distorted and drawn at 32x32 pixels; nothing is downloaded.

The originals are 8x8 and almost linearly separable. Each one is rotated, scaled, moved, given a contrast of its own and
covered with noise, so that a network has something to learn and a quantized one something to lose. Rows are dealt once:
1,200 originals train, 597 evaluate, and no original is in both.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from penstock import roles
from penstock.data import Dataset, DataSettings, Preprocessing, Split
from penstock.datasets import _checks
from penstock.errors import missing_extra
from penstock.progress import SILENT, Progress

if TYPE_CHECKING:
    import numpy as np

TRAIN = 1200
SIDE = 32  # pixels
# mean and standard deviation of the training pixels, the same for the three channels
PREPROCESSING = Preprocessing(scale=1 / 255, mean=(0.26,) * 3, std=(0.196,) * 3, layout="NCHW")

# how far a sample is distorted: each value is drawn uniformly between the two
ANGLE = (-35.0, 35.0)  # degrees
ZOOM = (0.6, 0.95)  # 1.0 fills the picture
SHIFT = (-4.0, 4.0)  # pixels
PAPER = (0.0, 90.0)  # grey level of the background
CONTRAST = (55.0, 160.0)  # grey levels of the ink above the paper
NOISE = (10.0, 95.0)  # grey levels to either side, per pixel and channel


def claims(spec: str) -> bool:
    """Tell whether ``spec`` names this data set."""
    return spec == "digits"


def need(spec: str) -> None:
    """Raise ``MissingError`` without scikit-learn."""
    if find_spec("sklearn") is None:
        raise missing_extra("scikit-learn", "demo", "the data set digits")


def open(spec: str, settings: DataSettings, progress: Progress = SILENT) -> Dataset:
    """Build the data set: ``(1200, 32, 32, 3)`` uint8 to train on, ``(597, 32, 32, 3)`` to evaluate, ten classes.

    Raises ``MissingError`` without scikit-learn.
    """
    import numpy as np

    originals, labels, order = _dealt()
    images = _distort(originals, np.random.RandomState(0))
    train, test = order[:TRAIN], order[TRAIN:]
    parts = Split({"": images[train]}, labels[train]), Split({"": images[test]}, labels[test])
    return Dataset(
        "digits", *parts, tuple(str(digit) for digit in range(10)), PREPROCESSING, _checks.digest(*parts)
    )  # fmt: skip


def distorted(copies: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Distort every training original ``copies`` times more, for training; no original of the test set is touched.

    Returns ``(copies * 1200, 32, 32, 3)`` uint8 and the labels ``(copies * 1200,)`` int64; row ``c * 1200 + i`` shows
    the original of row ``i`` of the training split. ``seed`` is above 0, which draws the data set itself.
    """
    import numpy as np

    originals, labels, order = _dealt()
    train = order[:TRAIN]
    rng = np.random.RandomState(seed)
    images = np.concatenate([_distort(originals[train], rng) for _ in range(copies)])
    return images, np.tile(labels[train], copies)


def _dealt() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the originals ``(1797, 8, 8)`` in [0, 1], their labels and the order that they are dealt in."""
    import numpy as np

    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise missing_extra("scikit-learn", "demo", "the data set digits") from error
    images, labels = load_digits(return_X_y=True)
    labels = np.asarray(labels, np.int64)
    return images.reshape(-1, 8, 8) / 16.0, labels, roles.dealing_order(labels, len(labels), seed=0)


def _distort(originals: np.ndarray, rng: np.random.RandomState) -> np.ndarray:
    """Draw ``(N, 8, 8)`` originals in [0, 1] as ``(N, 32, 32, 3)`` uint8.

    Uses ``RandomState``, whose stream is frozen, and element-wise arithmetic on rounded coefficients, so that the
    pixels are the same with every version of numpy and on every processor.
    """
    import numpy as np

    count = len(originals)

    def draw(span: tuple[float, float]) -> np.ndarray:
        return (span[0] + (span[1] - span[0]) * rng.random_sample(count))[:, None, None]

    angle, step = np.deg2rad(draw(ANGLE)), 8 / SIDE / draw(ZOOM)
    cosine, sine = np.rint(np.cos(angle) * step * 4096) / 4096, np.rint(np.sin(angle) * step * 4096) / 4096
    grid = np.arange(SIDE) - (SIDE - 1) / 2
    column = grid[None, None, :] - draw(SHIFT)
    row = grid[None, :, None] - draw(SHIFT)
    ink = _sample(originals, 3.5 + cosine * row - sine * column, 3.5 + sine * row + cosine * column)
    paper, contrast, noise = draw(PAPER), draw(CONTRAST), draw(NOISE)
    pixels = (paper + contrast * ink)[..., None]
    speckle = rng.random_sample((count, SIDE, SIDE, 3)) * 2 - 1
    result: np.ndarray = np.clip(np.rint(pixels + noise[..., None] * speckle), 0, 255).astype(np.uint8)
    return result


def _sample(images: np.ndarray, row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """Sample ``(N, 8, 8)`` images bilinearly at ``row`` and ``column`` ``(N, H, W)``; beyond the edge is 0."""
    import numpy as np

    count, side = images.shape[:2]
    edged = np.pad(images, ((0, 0), (1, 1), (1, 1))).reshape(count, -1)
    row, column = (np.clip(axis, -1, side - 1 / 4096) for axis in (row, column))
    top, left = np.floor(row).astype(np.intp), np.floor(column).astype(np.intp)
    down, right = row - top, column - left
    first = ((top + 1) * (side + 2) + left + 1).reshape(count, -1)

    def corner(offset: int) -> np.ndarray:
        return np.take_along_axis(edged, first + offset, 1).reshape(row.shape)

    upper = corner(0) * (1 - right) + corner(1) * right
    lower = corner(side + 2) * (1 - right) + corner(side + 3) * right
    result: np.ndarray = upper * (1 - down) + lower * down
    return result

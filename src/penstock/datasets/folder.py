"""A folder of class folders of images (png, jpg, bmp, webp), or train/ and test/ (or val/) with class folders in each.

Classes are numbered by the sorted names of their folders. With test/ and val/ both there, test/ evaluates and val/ is
left alone. Without either, all roles are dealt from the one part.
"""

from __future__ import annotations

import warnings
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from penstock.data import Dataset, DataSettings, Preprocessing, Split
from penstock.datasets import _checks
from penstock.datasets._stored import Spool
from penstock.errors import InputError, missing_extra
from penstock.progress import SILENT, Progress

if TYPE_CHECKING:
    import numpy as np

PREPROCESSING = Preprocessing(scale=1 / 255, layout="NCHW")
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}
FORMATS = ("PNG", "JPEG", "BMP", "WEBP")
DEEP_MODES = {"I", "F", "I;16", "I;16B", "I;16L", "I;16N"}  # more than 8 bits a channel: conversion would clip
LAYOUT = "lay the images out as FOLDER/CLASS/IMAGE.png, with two classes or more"


def claims(spec: str) -> bool:
    """Tell whether ``spec`` is a folder with folders in it."""
    with suppress(OSError, ValueError, RuntimeError):
        return bool(spec) and bool(_folders(Path(spec).expanduser()))
    return False


def need(spec: str) -> None:
    """Raise ``MissingError`` without Pillow."""
    if find_spec("PIL") is None:
        raise missing_extra("pillow", "images", "a folder of images")


def open(spec: str, settings: DataSettings, progress: Progress = SILENT) -> Dataset:
    """Read the images as RGB ``(N, H, W, 3)`` uint8, all of one size or resized to ``settings.image_size``.

    Raises ``InputError`` for a broken, an oversized or a deviating image, for an empty class, for a single class and
    for a test class that isn't trained on; ``MissingError`` without Pillow.
    """
    need(spec)  # a missing extra is told before the folder is walked
    if settings.image_size < 0:
        raise InputError("bad-setting", "the image size is negative", where="--image-size", do="give pixels, or 0")
    root = Path(spec).expanduser()
    train_root, test_root = _parts(root)
    classes = tuple(folder.name for folder in _folders(train_root))
    if len(classes) < 2:
        raise InputError("data-wrong-classes", "there is one class folder only", where=str(train_root), do=LAYOUT)
    train = _read(train_root, classes, settings.image_size, progress)
    test = None if test_root is None else _read(test_root, classes, settings.image_size, progress)
    if test is not None:
        _checks.same_form(train, test, spec)
    return Dataset(root.resolve().name, train, test, classes, PREPROCESSING, _checks.digest(train, test))


def _folders(root: Path) -> list[Path]:
    if not root.is_dir():
        return []
    return sorted((path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")), key=_name)


def _name(path: Path) -> str:
    return path.name


def _parts(root: Path) -> tuple[Path, Path | None]:
    """Return the folder to train on and the one to evaluate, where there is one."""
    names = {folder.name for folder in _folders(root)}
    if "train" not in names or not names <= {"train", "test", "val"}:
        return root, None
    return root / "train", next((root / name for name in ("test", "val") if name in names), None)


def _read(root: Path, classes: tuple[str, ...], side: int, progress: Progress) -> Split:
    import numpy as np

    found: list[tuple[Path, int]] = []
    for folder in _folders(root):
        if folder.name not in classes:
            what = f"the class {folder.name!r} is not among those to train on: {', '.join(classes[:20])}"
            raise InputError("data-wrong-classes", what, where=str(folder), do="name the classes alike in both parts")
        images = [path for path in sorted(folder.iterdir(), key=_name) if path.suffix.lower() in SUFFIXES]
        if not images:
            raise InputError("data-empty", "there are no images in this class folder", where=str(folder), do=LAYOUT)
        found += [(path, classes.index(folder.name)) for path in images]
    if not found:
        raise InputError("data-empty", "there are no class folders here", where=str(root), do=LAYOUT)
    progress.begin("read", f"{len(found)} images")
    if side * side * 3 * len(found) > _checks.LIMIT_BYTES:  # before the first one is resized to it
        raise _checks.too_large(side * side * 3 * len(found), str(root))
    first = _image(found[0][0], side)
    if first.nbytes * len(found) > _checks.LIMIT_BYTES:
        raise _checks.too_large(first.nbytes * len(found), str(root))
    pixels = Spool()
    for row, (path, _) in enumerate(found):
        image = _image(path, side)
        if image.shape != first.shape:
            raise InputError(
                "data-wrong-shape",
                f"the image has {image.shape[1]}x{image.shape[0]} pixels, the first one "
                f"({found[0][0].name}) {first.shape[1]}x{first.shape[0]}",
                where=str(path),
                do="give --image-size to resize all of them",
            )
        pixels.append(image[None])
        if row % 500 == 499:
            progress.step(row + 1, len(found), "images")
    progress.end()
    return Split({"": pixels.finish()}, np.asarray([label for _, label in found], np.int64))


def _image(path: Path, side: int) -> np.ndarray:
    """Read one image as ``(H, W, 3)`` uint8; ``side`` above 0 resizes it to a square."""
    import numpy as np
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Pillow only warns up to twice its limit of pixels; here that is an error already
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as file:
                if file.mode in DEEP_MODES:
                    raise ValueError(f"it has more than 8 bits a channel (mode {file.mode})")
                image = file.convert("RGB")
        if side:
            image = image.resize((side, side), Image.Resampling.BILINEAR)
        return np.asarray(image)
    except Exception as error:  # a decoder meets arbitrary bytes: whatever it raises is about the file
        raise InputError(
            "broken-image", f"the image can't be read: {error}", where=str(path), do="repair it or take it out"
        ) from error

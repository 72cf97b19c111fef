"""Reading a folder of class folders of images."""

from __future__ import annotations

import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

from penstock.data import DataSettings
from penstock.datasets import find, folder
from penstock.errors import InputError, MissingError

pytestmark = pytest.mark.usefixtures("held_bytes")

pillow = pytest.importorskip("PIL.Image")


def picture(path: Path, colour: tuple[int, int, int] = (255, 0, 0), size: tuple[int, int] = (8, 6)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pillow.new("RGB", size, colour).save(path)


@pytest.fixture
def animals(tmp_path: Path) -> Path:
    picture(tmp_path / "dog" / "a.png", (0, 255, 0))
    picture(tmp_path / "cat" / "b.bmp", (255, 0, 0))
    picture(tmp_path / "cat" / "a.webp", (255, 0, 0))
    (tmp_path / "cat" / "notes.txt").write_text("not an image")
    (tmp_path / ".hidden").mkdir()
    return tmp_path


def test_classes_are_sorted_folder_names(animals: Path) -> None:
    dataset = find(str(animals), DataSettings())
    assert dataset.classes == ("cat", "dog")
    assert dataset.train.arrays[""].shape == (3, 6, 8, 3)
    assert dataset.train.arrays[""].dtype == np.uint8
    assert dataset.train.labels is not None and dataset.train.labels.tolist() == [0, 0, 1]
    assert dataset.train.arrays[""][:][2, 0, 0].tolist() == [0, 255, 0]
    assert dataset.evaluate is None
    ready = dataset.preprocessing.apply(dataset.train.arrays[""][:])
    assert ready.shape == (3, 3, 6, 8)
    assert ready.max() == pytest.approx(1.0)


@pytest.mark.parametrize("name", ["test", "val"])
def test_split_folders(tmp_path: Path, name: str) -> None:
    for part in ("train", name):
        for label in ("cat", "dog"):
            picture(tmp_path / part / label / "a.png")
    dataset = find(str(tmp_path), DataSettings())
    assert dataset.classes == ("cat", "dog")
    assert dataset.evaluate is not None and len(dataset.evaluate) == 2


def test_image_size_resizes(animals: Path) -> None:
    picture(animals / "dog" / "large.jpg", size=(40, 30))
    with pytest.raises(InputError, match="40x30 pixels") as caught:
        find(str(animals), DataSettings())
    assert "large.jpg" in caught.value.where and "--image-size" in caught.value.do
    assert find(str(animals), DataSettings(image_size=5)).train.arrays[""].shape == (4, 5, 5, 3)


def test_palette_and_grey_become_rgb(animals: Path) -> None:
    pillow.new("L", (8, 6), 7).save(animals / "dog" / "grey.png")
    pillow.new("P", (8, 6)).save(animals / "dog" / "palette.png")
    images = find(str(animals), DataSettings()).train.arrays[""][:]
    assert images.shape == (5, 6, 8, 3)
    assert images[3, 0, 0].tolist() == [7, 7, 7]


def bomb() -> bytes:
    """Write the head of a PNG of 30,000 x 30,000 pixels."""
    head = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + head
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", len(head)) + chunk + struct.pack(">I", zlib.crc32(chunk))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("empty.png", lambda data: b""),
        ("cut.png", lambda data: data[:-30]),
        ("text.jpg", lambda data: b"hello"),
        ("bomb.png", lambda data: bomb()),
        ("program.png", lambda data: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
    ],
)
def test_a_broken_image_is_named(animals: Path, name: str, damage: object) -> None:
    path = animals / "dog" / name
    path.write_bytes(damage((animals / "dog" / "a.png").read_bytes()))  # type: ignore[operator]
    with pytest.raises(InputError) as caught:
        find(str(animals), DataSettings())
    assert caught.value.id == "broken-image"
    assert caught.value.where == str(path)


def test_sixteen_bits_are_refused(animals: Path) -> None:
    pillow.fromarray(np.full((6, 8), 40_000, np.uint16)).save(animals / "dog" / "deep.png")
    with pytest.raises(InputError, match="more than 8 bits"):
        find(str(animals), DataSettings())


def test_one_class_is_no_data_set(tmp_path: Path) -> None:
    picture(tmp_path / "cat" / "a.png")
    with pytest.raises(InputError, match="one class folder only"):
        find(str(tmp_path), DataSettings())


def test_an_empty_class(animals: Path) -> None:
    (animals / "eel").mkdir()
    with pytest.raises(InputError, match="no images") as caught:
        find(str(animals), DataSettings())
    assert caught.value.where.endswith("eel")


def test_a_test_class_that_is_not_trained_on(tmp_path: Path) -> None:
    for name in ("train/cat", "train/dog", "test/cow"):
        picture(tmp_path / name / "a.png")
    with pytest.raises(InputError, match="'cow' is not among"):
        find(str(tmp_path), DataSettings())


def test_an_empty_test_part(tmp_path: Path) -> None:
    for name in ("train/cat", "train/dog"):
        picture(tmp_path / name / "a.png")
    (tmp_path / "test").mkdir()
    with pytest.raises(InputError, match="no class folders"):
        find(str(tmp_path), DataSettings())


@pytest.mark.parametrize("side", [-1, 100_000])
def test_a_senseless_image_size(animals: Path, side: int) -> None:
    with pytest.raises(InputError):
        find(str(animals), DataSettings(image_size=side))


def test_without_pillow(animals: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingError) as caught:
        folder.open(str(animals), DataSettings())
    assert "penstock[images]" in caught.value.do

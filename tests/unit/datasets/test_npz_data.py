"""Reading an .npz: names, roles, and everything that can be wrong with one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from penstock.data import DataSettings, Preprocessing
from penstock.datasets import find
from penstock.errors import InputError

pytestmark = pytest.mark.usefixtures("held_bytes")

X = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 3), np.uint8)
Y = np.array([0, 1, 2, 0, 1, 2])


def saved(tmp_path: Path, **arrays: object) -> str:
    path = tmp_path / "data.npz"
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return str(path)


@pytest.mark.parametrize("names", [("x", "y"), ("inputs", "labels"), ("images", "y"), ("x_train", "y_train")])
def test_one_input_and_labels(tmp_path: Path, names: tuple[str, str]) -> None:
    dataset = find(saved(tmp_path, **dict(zip(names, (X, Y), strict=True))), DataSettings())
    np.testing.assert_array_equal(dataset.train.arrays[""][:], X)
    np.testing.assert_array_equal(dataset.train.labels, Y)
    assert dataset.train.labels is not None and dataset.train.labels.dtype == np.int64
    assert dataset.classes == ("0", "1", "2")
    assert dataset.evaluate is None
    assert dataset.preprocessing == Preprocessing()


def test_a_part_to_evaluate(tmp_path: Path) -> None:
    dataset = find(saved(tmp_path, x=X, y=Y, x_test=X[:2], y_test=Y[:2]), DataSettings())
    assert dataset.evaluate is not None and len(dataset.evaluate) == 2
    assert len(dataset.train) == 6


def test_several_inputs_without_labels(tmp_path: Path) -> None:
    ids = np.arange(12, dtype=np.int32).reshape(6, 2)
    dataset = find(saved(tmp_path, x=X, ids=ids), DataSettings())
    assert sorted(dataset.train.arrays) == ["ids", "x"]
    assert dataset.train.arrays["ids"].dtype == np.int32
    assert dataset.train.labels is None
    assert dataset.classes == ()


def test_the_digest_is_of_the_content(tmp_path: Path) -> None:
    first = find(saved(tmp_path, x=X, y=Y), DataSettings()).digest
    assert find(saved(tmp_path, x=X, y=Y), DataSettings()).digest == first
    assert find(saved(tmp_path, x=X, y=Y[::-1]), DataSettings()).digest != first
    assert find(saved(tmp_path, x=X.astype(np.int16), y=Y), DataSettings()).digest != first
    assert find(saved(tmp_path, x=X), DataSettings()).digest != first


def test_big_endian_becomes_native(tmp_path: Path) -> None:
    dataset = find(saved(tmp_path, x=X.astype(">f4")), DataSettings())
    assert dataset.train.arrays[""].dtype == np.dtype("float32")
    np.testing.assert_array_equal(dataset.train.arrays[""][:], X)


NAN = X.astype(np.float32)
NAN[3, 0, 0, 0] = np.nan


@pytest.mark.parametrize(
    ("arrays", "id", "says"),
    [
        ({"x": NAN}, "data-not-finite", "sample 3"),
        ({"x": np.full((2, 2), np.inf)}, "data-not-finite", "4 values"),
        ({"x": np.full((2, 2), 1e300)}, "data-not-finite", "beyond float32"),
        ({"x": X[:0], "y": Y[:0]}, "data-empty", "no samples"),
        ({"x": np.zeros((3, 0))}, "data-empty", "no samples"),
        ({"y": Y}, "data-empty", "no arrays"),
        ({}, "data-empty", "no arrays"),
        ({"x": np.float32(1)}, "data-wrong-shape", "no axes"),
        ({"x": np.array(["a", "b"])}, "data-wrong-dtype", "<U1"),
        ({"x": np.array([1j, 2j])}, "data-wrong-dtype", "complex"),
        ({"x": np.array([{}, {}])}, "unreadable-data", "Python objects"),
        ({"x": X, "y": np.array([{}] * 6)}, "unreadable-data", "Python objects"),
        ({"x": X, "y": Y[:5]}, "data-lengths-differ", "6 samples and 5 labels"),
        ({"x": X, "ids": Y[:5]}, "data-lengths-differ", "'ids' has 5"),
        ({"x": X, "y": Y + 0.5}, "labels-wrong-dtype", "float64"),
        ({"x": X, "y": np.eye(6, dtype=int)}, "labels-wrong-shape", "one class index"),
        ({"x": X, "y": Y - 1}, "labels-out-of-range", "-1"),
        ({"x": X, "y": np.full(6, 1 << 60)}, "labels-out-of-range", "0 to 99999"),
        ({"x": X, "y": np.full(6, (1 << 64) - 1, np.uint64)}, "labels-out-of-range", "0 to 99999"),
        ({"x": X, "y": Y, "labels": Y}, "data-ambiguous", "both"),
        ({"x": X, "x_train": X}, "data-ambiguous", "both"),
        ({"x": X, "x_test": X[:, :2]}, "data-parts-differ", "shape (2, 4, 3)"),
        ({"x": X, "x_test": X.astype(np.float32)}, "data-parts-differ", "float32"),
        ({"x_test": X}, "data-empty", "no arrays"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_arrays(tmp_path: Path, arrays: dict[str, object], id: str, says: str) -> None:
    with pytest.raises(InputError) as caught:
        find(saved(tmp_path, **arrays), DataSettings())
    assert caught.value.id == id
    assert says in caught.value.what
    assert "data.npz" in caught.value.where
    assert caught.value.do


@pytest.mark.parametrize("damage", ["cut", "flipped", "text", "empty", "npy"])
def test_damaged_file(tmp_path: Path, damage: str) -> None:
    path = Path(saved(tmp_path, x=X, y=Y))
    whole = bytearray(path.read_bytes())
    whole[200] ^= 0xFF
    if damage == "npy":
        np.save(tmp_path / "one.npy", X)
    damaged = {
        "cut": bytes(path.read_bytes()[:-30]),
        "flipped": bytes(whole),
        "text": b"x,y\n1,2\n",
        "empty": b"",
        "npy": (tmp_path / "one.npy").read_bytes() if damage == "npy" else b"",
    }
    path.write_bytes(damaged[damage])
    with pytest.raises(InputError) as caught:
        find(str(path), DataSettings())
    assert caught.value.id == "unreadable-data"


def test_absent_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        find(str(tmp_path / "absent.npz"), DataSettings())


def test_a_file_beyond_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.datasets._checks.LIMIT_BYTES", 100)
    with pytest.raises(InputError, match="the limit is"):
        find(saved(tmp_path, x=X), DataSettings())

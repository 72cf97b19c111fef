"""CIFAR-10 in both layouts, by name, and everything that can be wrong with its files."""

from __future__ import annotations

import hashlib
import io
import lzma
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest

from penstock.data import DataSettings
from penstock.datasets import cifar10, find
from penstock.errors import InputError

pytestmark = pytest.mark.usefixtures("held_bytes")

SHARED = Path(os.environ.get("PENSTOCK_SHARED") or Path(__file__).parents[3].parent / "shared")
FILES = (*cifar10.TRAIN_FILES, *cifar10.TEST_FILES)
RECORDS = 4


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar10, "RECORDS", RECORDS)


def batches() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Draw labels ``(4,)`` and planes ``(4, 3072)`` for each of the six files."""
    rng = np.random.default_rng(0)
    return {
        name: (rng.integers(0, 10, RECORDS, np.uint8), rng.integers(0, 256, (RECORDS, 3072), np.uint8))
        for name in FILES
    }


def write_binary(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, (labels, planes) in batches().items():
        (folder / f"{name}.bin").write_bytes(np.concatenate([labels[:, None], planes], 1).tobytes())


def write_python(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, (labels, planes) in batches().items():
        (folder / name).write_bytes(pickle.dumps({b"data": planes, b"labels": labels.tolist()}, 2))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("inside", ["", "subfolder"])
def test_both_layouts_give_the_same_data_set(tmp_path: Path, inside: str) -> None:
    write_binary(tmp_path / "a" / (inside and cifar10.BINARY))
    write_python(tmp_path / "b" / (inside and cifar10.PYTHON))
    binary, python = (find(str(tmp_path / name), DataSettings()) for name in "ab")
    assert binary.digest == python.digest
    assert len(binary.train) == 5 * RECORDS
    assert binary.evaluate is not None and len(binary.evaluate) == RECORDS
    assert binary.classes[0] == "airplane" and binary.classes[9] == "truck"
    labels, planes = batches()["data_batch_2"]
    image = binary.train.arrays[""][RECORDS : RECORDS + 1][0]  # the first of the second file: channels last, red first
    assert image.shape == (32, 32, 3) and image.dtype == np.uint8
    assert image[0, 1, 0] == planes[0, 1] and image[1, 0, 2] == planes[0, 2048 + 32]
    assert binary.train.labels is not None and binary.train.labels.dtype == np.int64
    assert binary.train.labels[RECORDS] == labels[0]
    assert binary.preprocessing.apply(binary.train.arrays[""][:2]).shape == (2, 3, 32, 32)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("damage", [b"", b"\x00" * 100, b"\x0a" + b"\x00" * (RECORDS * 3073 - 1)])
def test_damaged_binary_file(tmp_path: Path, damage: bytes) -> None:
    write_binary(tmp_path)
    (tmp_path / "data_batch_3.bin").write_bytes(damage)
    with pytest.raises(InputError) as caught:
        find(str(tmp_path), DataSettings())
    assert caught.value.id == "damaged-data"
    assert "data_batch_3.bin" in caught.value.where


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    "batch",
    [
        {},
        {b"data": np.zeros((RECORDS, 3072), np.float32), b"labels": [0] * RECORDS},
        {b"data": np.zeros((RECORDS - 1, 3072), np.uint8), b"labels": [0] * RECORDS},
        {b"data": np.zeros((RECORDS, 3072), np.uint8), b"labels": [0] * (RECORDS - 1)},
        {b"data": np.zeros((RECORDS, 3072), np.uint8), b"labels": ["0"] * RECORDS},
        {b"data": np.zeros((RECORDS, 3072), np.uint8), b"labels": [10] * RECORDS},
        {b"data": np.zeros((RECORDS, 3072), np.uint8), b"labels": [-1] * RECORDS},
        {b"data": np.zeros((RECORDS, 3072), np.uint8), b"labels": [1 << 80] * RECORDS},
    ],
    ids=range(8),
)
def test_damaged_python_file(tmp_path: Path, batch: dict[bytes, object]) -> None:
    write_python(tmp_path)
    (tmp_path / "test_batch").write_bytes(pickle.dumps(batch, 2))
    with pytest.raises(InputError) as caught:
        find(str(tmp_path), DataSettings())
    assert caught.value.id == "damaged-data"
    assert caught.value.where.endswith("test_batch")


@pytest.mark.usefixtures("small")
def test_missing_file(tmp_path: Path) -> None:
    write_binary(tmp_path)
    (tmp_path / "test_batch.bin").unlink()
    with pytest.raises(InputError, match="can't be read") as caught:
        find(str(tmp_path), DataSettings())
    assert caught.value.where.endswith("test_batch.bin")


def test_size_of_an_official_file(tmp_path: Path) -> None:
    (tmp_path / "data_batch_1.bin").write_bytes(b"\0" * 3073)
    with pytest.raises(InputError, match="3073 bytes; 10000 records are 30730000"):
        find(str(tmp_path), DataSettings())


def test_by_name_without_leave_to_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_CACHE", str(tmp_path / "cache"))
    with pytest.raises(InputError) as caught:
        find("cifar10", DataSettings())
    assert caught.value.id == "data-not-here"
    assert "--download" in caught.value.do and "--data DIR" in caught.value.do
    assert not (tmp_path / "cache").exists()


def archive(extra: bool = False, leave_out: str = "") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, (labels, planes) in batches().items():
            if name != leave_out:
                data = np.concatenate([labels[:, None], planes], 1).tobytes()
                member = tarfile.TarInfo(f"{cifar10.BINARY}/{name}.bin")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
        if extra:
            for name in ("../../evil", f"{cifar10.BINARY}/../evil", "/evil"):
                member = tarfile.TarInfo(name)
                member.size = 4
                tar.addfile(member, io.BytesIO(b"evil"))
            link = tarfile.TarInfo(f"{cifar10.BINARY}/link")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(link)
    return buffer.getvalue()


@pytest.mark.usefixtures("small")
def test_by_name_with_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = archive(extra=True)
    source = tmp_path / "served.tar.gz"
    source.write_bytes(data)
    monkeypatch.setenv("PENSTOCK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cifar10, "URL", source.as_uri())
    monkeypatch.setattr(cifar10, "ARCHIVE_SHA256", hashlib.sha256(data).hexdigest())
    monkeypatch.setattr(cifar10, "ARCHIVE_BYTES", len(data))
    first = find("cifar10", DataSettings(download=True))
    again = find("cifar10", DataSettings())  # from the cache: no leave to download is needed
    write_binary(tmp_path / "reference")
    assert first.digest == again.digest == find(str(tmp_path / "reference"), DataSettings()).digest
    found = {path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()}
    assert found == {f"{name}.bin" for name in FILES} | {"cifar-10-binary.tar.gz"}
    assert not list(tmp_path.rglob("evil"))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("data", [b"no archive", archive(leave_out="data_batch_4"), archive()[:-2000]])
def test_damaged_archive_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setenv("PENSTOCK_CACHE", str(tmp_path))
    home = tmp_path / "datasets" / "cifar10"
    home.mkdir(parents=True)
    (home / "cifar-10-binary.tar.gz").write_bytes(data)
    with pytest.raises(InputError) as caught:
        find("cifar10", DataSettings())
    assert caught.value.id == "damaged-data"


@pytest.mark.shared
def test_the_official_test_batch(tmp_path: Path) -> None:
    packed = SHARED / "cifar10" / "test_batch.bin.xz"
    if not packed.exists():
        pytest.skip("the shared data is not here")
    path = tmp_path / "test_batch.bin"
    path.write_bytes(lzma.decompress(packed.read_bytes()))
    part = cifar10._read_files(tmp_path, ("test_batch",), ".bin")
    assert part.labels is not None
    assert np.bincount(part.labels).tolist() == [1000] * 10
    assert [cifar10.CLASSES[label] for label in part.labels[:4]] == ["cat", "ship", "ship", "airplane"]
    mean = part.arrays[""][:].mean((0, 1, 2)) / 255
    np.testing.assert_allclose(mean, cifar10.PREPROCESSING.mean, atol=0.01)  # channels are told apart

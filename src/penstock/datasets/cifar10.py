"""CIFAR-10: a folder in the official binary or python layout, or by name from the cache, which --download fills.

The binary layout has 10,000 records a file, each of one label byte and 3,072 bytes of red, green and blue planes. The
python layout is a pickle a file, which is read without running what it names.
Source: https://www.cs.toronto.edu/~kriz/cifar.html
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from penstock import store
from penstock.data import Dataset, DataSettings, Preprocessing, Split
from penstock.datasets import _checks
from penstock.datasets._stored import Spool
from penstock.errors import InputError
from penstock.progress import SILENT, Progress

if TYPE_CHECKING:
    import numpy as np

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
ARCHIVE_SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
ARCHIVE_BYTES = 170_052_171

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PREPROCESSING = Preprocessing(
    scale=1 / 255, mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616), layout="NCHW"
)  # fmt: skip
TRAIN_FILES = tuple(f"data_batch_{number}" for number in range(1, 6))
TEST_FILES = ("test_batch",)
RECORDS = 10_000  # in each file
PIXELS = 3 * 32 * 32
BINARY, PYTHON = "cifar-10-batches-bin", "cifar-10-batches-py"


def claims(spec: str) -> bool:
    """Tell whether ``spec`` is the name, or a folder that holds a batch of either layout."""
    return spec == "cifar10" or _locate(spec) is not None


def open(spec: str, settings: DataSettings, progress: Progress = SILENT) -> Dataset:
    """Read all 60,000 images ``(N, 32, 32, 3)`` uint8, channels last: 50,000 to train, 10,000 to evaluate.

    Raises ``InputError`` for missing, cut or wrong files, and for the name where the data isn't there and may not be
    downloaded.
    """
    folder, suffix = _named(settings, progress) if spec == "cifar10" else _locate(spec) or (Path(spec), ".bin")
    parts = _read_files(folder, TRAIN_FILES, suffix), _read_files(folder, TEST_FILES, suffix)
    return Dataset("cifar10", *parts, CLASSES, PREPROCESSING, _checks.digest(*parts))


def _locate(spec: str) -> tuple[Path, str] | None:
    """Find the folder of batches at or in ``spec``, and the suffix of its files: ".bin", or "" for pickles."""
    if not spec:
        return None
    with suppress(OSError, ValueError, RuntimeError):  # a text that is no path; a home folder that isn't known
        root = Path(spec).expanduser()
        for folder, suffix in ((root, ".bin"), (root / BINARY, ".bin"), (root, ""), (root / PYTHON, "")):
            if (folder / f"data_batch_1{suffix}").is_file():
                return folder, suffix
    return None


def _read_files(folder: Path, names: tuple[str, ...], suffix: str) -> Split:
    import numpy as np

    images = Spool()
    labels = np.empty(len(names) * RECORDS, np.int64)
    for number, name in enumerate(names):
        path = folder / (name + suffix)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise InputError(
                "unreadable-data",
                f"the file can't be read: {error.strerror}",
                where=str(path),
                do="CIFAR-10 has data_batch_1 to data_batch_5 and test_batch: unpack the archive again",
            ) from error
        rows = slice(number * RECORDS, (number + 1) * RECORDS)
        labels[rows], planes = (_binary if suffix else _python)(data, str(path))
        if int(labels[rows].max()) > 9 or int(labels[rows].min()) < 0:
            raise _damaged(f"a label lies outside 0 to 9: {int(labels[rows].max())}", str(path))
        images.append(planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    return Split({"": images.finish()}, labels)


def _binary(data: bytes, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Read one file of records: labels ``(10000,)`` and planes ``(10000, 3072)``, both uint8."""
    import numpy as np

    expected = RECORDS * (1 + PIXELS)
    if len(data) != expected:
        raise _damaged(f"the file has {len(data)} bytes; {RECORDS} records are {expected}", where)
    records = np.frombuffer(data, np.uint8).reshape(RECORDS, 1 + PIXELS)
    return records[:, 0], records[:, 1:]


def _python(data: bytes, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Read one pickled batch: labels ``(10000,)`` and planes ``(10000, 3072)`` uint8."""
    import numpy as np

    from penstock.datasets import _unpickle

    batch = _unpickle.read(data, where)
    planes, labels = batch.get("data"), batch.get("labels")
    if not isinstance(planes, np.ndarray) or planes.dtype != np.uint8 or planes.shape != (RECORDS, PIXELS):
        found = f"{planes.dtype} of shape {planes.shape}" if isinstance(planes, np.ndarray) else "no array"
        raise _damaged(f"'data' is {found}, not uint8 of shape {(RECORDS, PIXELS)}", where)
    if not isinstance(labels, list) or len(labels) != RECORDS or not all(type(label) is int for label in labels):
        raise _damaged(f"'labels' is no list of {RECORDS} whole numbers", where)
    return np.clip(np.asarray(labels, object), -1, 10).astype(np.int64), planes


def _damaged(what: str, where: str) -> InputError:
    return InputError("damaged-data", what, where=where, do="unpack the official archive again")


def _named(settings: DataSettings, progress: Progress) -> tuple[Path, str]:
    """Return the cache's folder of batches; fill it from the archive, which is downloaded where that is allowed."""
    home = store.default_cache() / "datasets" / "cifar10"
    folder = home / BINARY
    if not all((folder / f"{name}.bin").is_file() for name in TRAIN_FILES + TEST_FILES):
        archive = home / "cifar-10-binary.tar.gz"
        if not archive.is_file():
            if not settings.download:
                raise InputError(
                    "data-not-here",
                    "CIFAR-10 is not in the cache, and nothing is downloaded unasked",
                    where=str(home),
                    do="give --data DIR with the official files, or --download to fetch 170 MB from cs.toronto.edu",
                )
            from penstock import download

            download.fetch(URL, archive, sha256=ARCHIVE_SHA256, size_bytes=ARCHIVE_BYTES, progress=progress)
        _unpack(archive, folder, progress)
    return folder, ".bin"


def _unpack(archive: Path, folder: Path, progress: Progress) -> None:
    """Take the six files of batches out of the archive, by name and size; nothing else in it is looked at."""
    import tarfile
    import zlib

    wanted = {f"{BINARY}/{name}.bin": folder / f"{name}.bin" for name in TRAIN_FILES + TEST_FILES}
    total, do = len(wanted), "delete it and --download again"
    progress.begin("unpack", str(archive))
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                if member.name not in wanted or not member.isreg() or member.size != RECORDS * (1 + PIXELS):
                    continue
                if (file := tar.extractfile(member)) is not None:
                    store.write_bytes(wanted.pop(member.name), file.read())
                    progress.step(total - len(wanted), total, member.name)
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise InputError("damaged-data", f"the archive can't be read: {error}", where=str(archive), do=do) from error
    if wanted:
        raise InputError("damaged-data", f"the archive lacks {sorted(wanted)[0]}", where=str(archive), do=do)
    progress.end()

"""Samples that lie in a file and are read when they are asked for, so that a data set of any length takes no memory."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING

from penstock import store
from penstock.errors import InputError

if TYPE_CHECKING:
    import numpy as np

HELD_BYTES = 16 << 20  # less than this is held in memory: a file would save nothing


class Stored:
    """An array ``(N, …)`` whose rows are the bytes of an open file from ``start`` on; it is read-only."""

    def __init__(self, file: store.OwnFile, start: int, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self.shape, self.dtype = shape, dtype
        self._file, self._start = file, start
        self._row_bytes = math.prod(shape[1:]) * dtype.itemsize

    @property
    def ndim(self) -> int:
        """The number of axes, that of the samples included."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """The bytes of all rows."""
        return len(self) * self._row_bytes

    def __len__(self) -> int:
        """Return the number of rows."""
        return self.shape[0]

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        """Read these rows ``(k, …)``. Raises ``InputError`` where the file was cut since it was opened."""
        import numpy as np

        wanted = range(len(self))[rows] if isinstance(rows, slice) else np.arange(len(self))[rows]
        made = np.empty((len(wanted), *self.shape[1:]), self.dtype)
        if isinstance(wanted, range) and wanted.step == 1 and len(wanted):
            self._read(made, wanted.start)
            return made
        for place, row in enumerate(wanted):
            self._read(made[place : place + 1], int(row))
        return made

    def _read(self, into: np.ndarray, row: int) -> None:
        """Fill ``(k, …)`` with the rows from ``row`` on."""
        left = into.reshape(-1).view("u1").data
        at = self._start + row * self._row_bytes
        while left:
            count = os.preadv(self._file.fileno(), [left], at)
            if count == 0:
                what = f"the file ends within sample {row}: it was cut while it was in use"
                raise InputError("data-changed", what, where=str(self._file.name), do="start again")
            left, at = left[count:], at + count


class Spool:
    """Takes samples batch by batch: few are held in memory, more go to a nameless file in the temporary folder."""

    def __init__(self) -> None:
        self._held: list[np.ndarray] = []
        self._file: store.OwnFile | None = None
        self.count = self.nbytes = 0

    def append(self, batch: np.ndarray) -> None:
        """Add ``(k, …)`` of the type and the shape of the first. Raises ``StoreError`` where the disk is full."""
        import numpy as np

        self.count, self.nbytes = self.count + len(batch), self.nbytes + batch.nbytes
        self._form = batch.shape[1:], batch.dtype
        self._held.append(np.ascontiguousarray(batch))
        if self._file is None and self.nbytes > HELD_BYTES:
            self._file = store.nameless()
        if self._file is not None:
            for array in self._held:
                write(self._file, array.reshape(-1).view("u1").data)
            self._held.clear()

    def finish(self) -> np.ndarray | Stored:
        """Return all samples ``(N, …)``."""
        import numpy as np

        if self._file is None:
            return np.concatenate(self._held)
        shape, dtype = self._form
        return Stored(self._file, 0, (self.count, *shape), dtype)


def write(file: store.OwnFile, data: bytes | memoryview) -> None:
    """Write all of it. Raises ``StoreError`` where there is no room."""
    left = memoryview(data)
    with store.explained(store.scratch_home()):
        while left:
            left = left[file.write(left) :]

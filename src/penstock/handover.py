"""Batches of arrays on their way to a worker: each in a file of a scratch folder, read one at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

from penstock import store
from penstock.jsonable import Json

if TYPE_CHECKING:
    import numpy as np


def save(batches: Iterable[Mapping[str, np.ndarray]], folder: Path) -> dict[str, Json]:
    """Write the batches; return what a worker's request says of them. A name may be none that a file could have."""
    from penstock.golden import pack

    names: list[Json] = []
    for number, batch in enumerate(batches):
        store.write_bytes(folder / f"{number}.npz", pack({str(i): array for i, array in enumerate(batch.values())}))
        names.append([*batch])
    return {"folder": str(folder), "names": names}


class Saved:
    """The batches that a request speaks of, as often as they are asked for."""

    def __init__(self, told: Json) -> None:
        said = cast("dict[str, Json]", told)
        self._folder = Path(str(said["folder"]))
        self._names = cast("list[list[str]]", said["names"])

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        """Yield the batches in order, each as a dict of arrays by name."""
        import numpy as np

        for number, names in enumerate(self._names):
            with np.load(self._folder / f"{number}.npz", allow_pickle=False) as data:
                yield {name: data[str(i)] for i, name in enumerate(names)}

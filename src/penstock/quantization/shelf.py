"""Shelf: what calibration saw, kept in the cache, so that another choice of ranges costs no run over the samples."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from penstock import machine, store
from penstock.golden import pack
from penstock.quantization.histogram import Histogram
from penstock.quantization.statistics import Statistics
from penstock.store import Cache, Made, digest_of

if TYPE_CHECKING:
    from penstock.jsonable import Json

FILE = "statistics.npz"


@dataclass(slots=True)
class Shelf:
    """Statistics by what they depend on: ``model`` and ``samples`` are digests of the two."""

    cache: Cache
    model: str
    samples: str
    hits: int = 0

    def statistics(
        self, tensors: Collection[str], histogram: bool, see: Callable[[], dict[str, Statistics]]
    ) -> dict[str, Statistics]:
        """Return the statistics of tensors: those that are kept, or what ``see`` gives, which is kept."""
        key = self._key(tensors, histogram)
        if (entry := self.cache.get(key)) is not None and entry.files:
            self.hits += 1
        else:

            def make(into: Path) -> Made:
                store.write_bytes(into / FILE, packed(see()))
                return Made({"tensors": len(tensors), "histogram": histogram})

            self.cache.put(key, make)
        return unpacked((self.cache.folder(key) / "files" / FILE).read_bytes())

    def _key(self, tensors: Collection[str], histogram: bool) -> str:
        code = [store.file_digest(path) for path in sorted(Path(__file__).parent.glob("*.py"))]
        # sums of a runtime differ between instruction sets and numbers of threads
        here: list[Json] = [machine.instruction_set(), os.cpu_count(), machine.threads(), _version()]
        return digest_of(["statistics", self.model, self.samples, sorted(tensors), histogram, code, here])


def _version() -> str:
    from importlib.metadata import version

    return version("onnxruntime")


def packed(held: dict[str, Statistics]) -> bytes:
    """Return statistics as the bytes of a file."""
    told: list[Json] = []
    arrays = {}
    for number, (name, one) in enumerate(held.items()):
        base, zeros, counts = one.histogram.state()
        told.append([
            name, one.low, one.high, one.average_low, one.average_high, one.wants_histogram, base, zeros,
            [[*ends] for ends in one.samples],
        ])  # fmt: skip
        met = np.flatnonzero(counts)
        arrays[f"{number}_met"], arrays[f"{number}_counts"] = met, counts.reshape(-1)[met]
        arrays[f"{number}_width"] = np.array(counts.shape[1])
    arrays["told"] = np.frombuffer(json.dumps(told).encode(), np.uint8)
    return pack(arrays)


def unpacked(data: bytes) -> dict[str, Statistics]:
    """Return what was packed."""
    found = {}
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        for number, told in enumerate(json.loads(arrays["told"].tobytes())):
            one = Statistics(told[0], histogram=told[5])
            one.low, one.high, one.average_low, one.average_high = told[1:5]
            one.samples = [(low, high) for low, high in told[8]]
            counts = np.zeros(2 * int(arrays[f"{number}_width"]), np.int64)
            counts[arrays[f"{number}_met"]] = arrays[f"{number}_counts"]
            one.histogram = Histogram.of_state(told[6], told[7], counts.reshape(2, -1))
            found[told[0]] = one
    return found

"""The near side of a backend whose runtime lives in an environment of its own, or in a browser."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from penstock.backends import NodeTime, _inputs
from penstock.jsonable import Json
from penstock.signature import Signature

if TYPE_CHECKING:
    import numpy as np


class Far(Protocol):
    """What is driven from here: a session with a clock of its own, in another process."""

    @property
    def process_id(self) -> int:
        """The process that holds the model."""

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Run one batch, its arrays in the model's order."""

    def timed(self, feeds: Mapping[str, np.ndarray], calls: int) -> list[int]:
        """Time so many runs there, in nanoseconds."""

    def nodes(self, feeds: Mapping[str, np.ndarray], runs: int) -> list[NodeTime]:
        """Time the nodes there, where the runtime can."""

    def actual(self) -> Mapping[str, Json]:
        """Tell what runs."""

    def close(self) -> None:
        """End it."""


class DistantSession:
    """A session that brings the inputs into the order of the model's file and hands them over."""

    def __init__(self, signature: Signature, far: Far) -> None:
        self._signature, self._far = signature, far

    def _given(self, feeds: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        return _inputs.given(self._signature, feeds).arrays

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Run one batch."""
        return self._far.run(self._given(feeds))

    def timed(self, feeds: Mapping[str, np.ndarray], calls: int) -> list[int]:
        """Time so many runs beside the runtime, in nanoseconds."""
        return self._far.timed(self._given(feeds), calls)

    def nodes(self, feeds: Mapping[str, np.ndarray], runs: int) -> list[NodeTime]:
        """Time the nodes there; none where the runtime can't."""
        return self._far.nodes(self._given(feeds), runs)

    @property
    def process_id(self) -> int:
        """The process that holds the model."""
        return self._far.process_id

    def actual(self) -> Mapping[str, Json]:
        """Tell what the runtime says of itself."""
        return self._far.actual()

    def close(self) -> None:
        """End its process."""
        self._far.close()

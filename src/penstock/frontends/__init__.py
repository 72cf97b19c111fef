"""Frameworks that models come from: one file each, found by the registry; see :class:`Frontend`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from penstock.jsonable import Json
from penstock.signature import Signature

if TYPE_CHECKING:
    import numpy as np

    from penstock.stages.export import ExportSettings


@dataclass(frozen=True, slots=True)
class Source:
    """What the user named: ``model.onnx``, ``file.py:Class``, ``package.module:factory``, ``program.pt2``, …"""

    spec: str
    weights: str = ""


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export leaves: facts and measured figures for the record, and every file it read with its SHA-256."""

    signature: Signature
    facts: Mapping[str, Json]
    measured: Mapping[str, Json]
    reads: Mapping[str, str]


class Frontend(Protocol):
    """One framework.

    It may also have ``need(source)``, which raises a ``PenstockError`` where the source can't be read here: an extra
    that is absent, a file that isn't there. It is asked before a build begins, and by the doctor. So is
    ``need_example(source, settings)`` where there is no data, for what says nothing of its inputs.
    """

    def claims(self, spec: str) -> bool:
        """Tell whether this frontend reads ``spec``, from its form alone; never raises."""

    def tools(self) -> Mapping[str, str]:
        """Return the versions of what the export depends on, without importing the framework."""

    def export(
        self, source: Source, settings: ExportSettings, example: Mapping[str, np.ndarray] | None, into: Path
    ) -> Exported:
        """Write ``into`` (an .onnx path) from the source. ``example`` is one preprocessed batch, where there is data.

        Raises ``InputError`` when the export fails or doesn't compute what the source computes.
        """

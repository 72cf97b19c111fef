"""Variant: one concrete model on disk, and how it came to be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from penstock.jsonable import Json
from penstock.signature import Signature

Precision = Literal["fp32", "fp16", "bf16", "int8", "int4", "mixed"]
Format = Literal["onnx", "torch"]


@dataclass(frozen=True, slots=True)
class ModelFile:
    """One file of a variant: its path inside the variant's folder, its SHA-256 and its size in bytes."""

    path: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Variant:
    """One concrete model: a folder with a main file and its external data.

    ``digest`` is the SHA-256 over the files (for a source that lives in the user's code: over what it was read from);
    ``parents`` are the digests of the variants it was made of, ``step`` and ``settings`` how, ``tools`` with what.
    """

    name: str
    digest: str
    format: Format
    precision: Precision
    files: tuple[ModelFile, ...]
    main: str
    signature: Signature
    parents: tuple[str, ...]
    step: str
    settings: Mapping[str, Json]
    tools: Mapping[str, str]

    @property
    def size_bytes(self) -> int:
        """All files together, in bytes."""
        return sum(file.size_bytes for file in self.files)

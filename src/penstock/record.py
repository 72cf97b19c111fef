"""Record: one measured fact about deployments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from penstock.jsonable import Json


@dataclass(frozen=True, slots=True)
class Record:
    """What was measured, on what, with which inputs.

    ``facts`` follow from the inputs alone and are the same on every machine and at every run; ``measured`` are times,
    memory and outputs of runtimes. ``inputs`` says which data, by digest, or that seeded inputs were made.
    Arrays are kept beside the ledger in ``blobs/``, and named by their SHA-256 under a key that ends in ``_blob``.
    """

    stage: str
    subject: str  # the deployment's or variant's name
    inputs: Mapping[str, Json] = field(default_factory=dict)
    facts: Mapping[str, Json] = field(default_factory=dict)
    measured: Mapping[str, Json] = field(default_factory=dict)
    host: Mapping[str, Json] = field(default_factory=dict)

"""Deployment: a variant and the way to run it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from penstock.jsonable import dumps
from penstock.variant import Precision

Role = Literal["candidate", "baseline", "oracle"]
ANY_DEVICE = "any"  # of a backend that finds its device when it opens a model, and tells which it is


def named(variant: str, backend: str, way: str = "") -> str:
    """Return the name of a variant on a backend: ``int4@onnxruntime``, or ``int4@onnxruntime+int8-activations``."""
    return f"{variant}@{backend}{'+' if way else ''}{way}"


@dataclass(frozen=True, slots=True)
class Deployment:
    """A variant on a backend and a device, with options, a precision hint and a number of threads.

    ``role`` says what it is for: a *candidate* may be chosen; a *baseline* (eager PyTorch) and an *oracle* (the ONNX
    reference evaluator) are there to compare with.
    """

    name: str  # "int8@openvino", see ``named``
    variant: str  # the variant's name
    digest: str  # the variant's digest
    precision: Precision
    backend: str
    device: str = "cpu"
    precision_hint: str = ""
    threads: int = 1
    io_binding: bool = False
    options: Mapping[str, str] = field(default_factory=dict)
    role: Role = "candidate"

    @property
    def computed_in(self) -> Precision:
        """The precision whose limits hold for its outputs: the hint's, where it lowers a float variant's."""
        return "bf16" if self.precision_hint == "bf16" and self.precision == "fp32" else self.precision

    @property
    def id(self) -> str:
        """A short digest of every field: equal exactly when two deployments are the same."""
        return hashlib.sha256(dumps(self).encode()).hexdigest()[:16]

"""Runtimes: one file each, found by the registry; each offers what :class:`Backend` asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from penstock.deployment import Deployment, Role
from penstock.jsonable import Json
from penstock.variant import Format

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir


HALVES = ("fp16", "bf16")  # precisions that a runtime may compute in, or only store


@dataclass(frozen=True, slots=True)
class Loadable:
    """What a backend is given to load: a model file in the store, or the user's own source in its framework.

    ``source`` and ``weights`` are what the user named (``file.py:Class``), for backends that run the source itself.
    """

    path: Path | None
    source: str = ""
    weights: str = ""
    libraries: tuple[str, ...] = ()  # of custom operators, as the user named them


@dataclass(frozen=True, slots=True)
class NodeTime:
    """What one node of a loaded model costs, by the runtime's own profile: ``ms`` is the median over runs.

    Names and operators are those that the runtime made of the model's. ``kernel`` is what ran it: a provider, or the
    runtime's name of an implementation.
    """

    name: str
    operator: str
    kernel: str
    ms: float


def ways(backend: object, model: ir.Model) -> Mapping[str, Mapping[str, str]]:
    """Return how a backend can compute a model: options by a name, the plain way's empty.

    There are several where a runtime would round what the model has in float: an exact one, which is the plain way, and
    the runtime's own. A backend that has such a choice offers a function ``ways(model)``.
    """
    found = getattr(backend, "ways", None)
    return found(model) if found is not None else {"": {}}


class Session(Protocol):
    """A loaded deployment.

    One whose runtime times its nodes has a method ``nodes(feeds, runs)`` too, which returns a list of
    :class:`NodeTime`, in the order that they ran in.
    """

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Run one batch; return the outputs in the order of the model's signature."""

    def actual(self) -> Mapping[str, Json]:
        """Tell what really runs: device, precision, threads, and which provider got how many nodes.

        Of a 16-bit variant, ``computes_in`` tells how many layers ran in which type, as the runtime itself says.
        """

    def close(self) -> None:
        """Release what the session holds."""


class Backend(Protocol):
    """One runtime.

    Whose sessions are in another process, in an environment of its own, says so with its name as ``ENVIRONMENT``.
    """

    ROLE: Role
    FORMATS: tuple[Format, ...]

    def available(self) -> str:
        """Return "" when the runtime can run here, else why not and what to install."""

    def facts(self) -> Mapping[str, Json]:
        """Return the runtime's version and what matters about its build."""

    def load(self, model: Loadable, deployment: Deployment) -> Session:
        """Load a deployment. Raises ``InputError`` when the runtime refuses the model: never falls back in silence."""


def runs(backend: object, precision: str) -> bool:
    """Whether a backend is for variants of a precision: those that ``PRECISIONS`` names, or any."""
    return precision in getattr(backend, "PRECISIONS", (precision,))


def device_of(backend: object) -> str:
    """Return the device that a backend's deployments ask for: the one that ``DEVICE`` names, or the CPU."""
    return str(getattr(backend, "DEVICE", "cpu"))


def only_stored(precision: str, actual: Mapping[str, Json]) -> str:
    """Say how much of a 16-bit variant the runtime computes in another type; "" where it says nothing of it."""
    counted = actual.get("computes_in")
    if precision not in HALVES or not isinstance(counted, dict):
        return ""
    layers = {name: count for name, count in counted.items() if isinstance(count, int)}
    others = ", ".join(f"{count} in {name}" for name, count in layers.items() if name != precision)
    if not layers.get(precision):
        return f"it only stores {precision}, and computes of its layers {others}" if others else ""
    return f"it computes {layers[precision]} of its layers in {precision}, {others}" if others else ""

"""Eager PyTorch: the user's own module as it runs today, the baseline of the ladder."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from penstock.backends import Loadable, NodeTime
from penstock.deployment import Deployment, Role
from penstock.errors import InputError
from penstock.graph import first_line
from penstock.jsonable import Json
from penstock.streams import unsaid
from penstock.variant import Format

if TYPE_CHECKING:
    import numpy as np

ROLE: Role = "baseline"
FORMATS: tuple[Format, ...] = ("torch",)


def available() -> str:
    """Return "" when torch is installed."""
    from importlib.util import find_spec

    return "" if find_spec("torch") else "pip install torch==2.13.0  # then: pip install 'penstock[torch]'"


def facts() -> Mapping[str, Json]:
    """Return the version of torch."""
    import torch

    return {"version": torch.__version__.split("+")[0]}


def load(model: Loadable, deployment: Deployment) -> TorchSession:
    """Load the module from the source that the user named, in eval mode."""
    from penstock.frontends import Source
    from penstock.frontends.torch import load_module

    return TorchSession(load_module(Source(model.source, model.weights)).module, deployment)


class TorchSession:
    """A module under ``torch.inference_mode``."""

    def __init__(self, module: Any, deployment: Deployment) -> None:
        self.module = module
        self._threads = deployment.threads

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Run one batch; the feeds go in by position, in their order."""
        import torch

        from penstock.frontends.torch import flat

        if torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)
        try:
            with torch.inference_mode():
                outputs = self.module(*(torch.from_numpy(array) for array in feeds.values()))
        except Exception as error:  # the user's own code may raise anything
            raise InputError("run-failed", f"the module can't run on this input: {first_line(error)}") from error
        return [tensor.numpy() for tensor in flat(outputs)]

    def nodes(self, feeds: Mapping[str, np.ndarray], runs: int) -> list[NodeTime]:
        """Time the operators by PyTorch's profiler: a module has no nodes, so each operator's calls are summed."""
        import torch

        spent: dict[str, list[float]] = {}
        self.run(feeds)
        for _ in range(runs):
            with unsaid(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
                self.run(feeds)
            for one in profile.key_averages():
                if one.self_cpu_time_total:
                    spent.setdefault(str(one.key), []).append(one.self_cpu_time_total / 1e3)
        return [NodeTime(name, name, "PyTorch", statistics.median(times)) for name, times in spent.items()]

    def actual(self) -> Mapping[str, Json]:
        """Return the threads in use, and the types of the module's parameters: it computes as they are."""
        import torch

        kinds = {str(one.dtype).removeprefix("torch.") for one in self.module.parameters()}
        return {"device": "cpu", "threads": torch.get_num_threads(), "precision": "as written",
                "parameters": [*sorted(kinds)]}  # fmt: skip

    def close(self) -> None:
        """Drop the module."""
        self.module = None

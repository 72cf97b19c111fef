"""PyTorch's compiler: the user's own module through ``torch.compile``, for who would stay in PyTorch."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import TYPE_CHECKING

from penstock.backends import Loadable, NodeTime, torch
from penstock.deployment import Deployment, Role
from penstock.errors import InputError
from penstock.graph import first_line
from penstock.jsonable import Json
from penstock.variant import Format

if TYPE_CHECKING:
    import numpy as np

ROLE: Role = "candidate"
FORMATS: tuple[Format, ...] = ("torch",)
BY_DEFAULT = False  # it compiles C++ for half a minute
COMPILERS = ("c++", "g++", "clang++")


def available() -> str:
    """Return "" when torch is installed and there is a C++ compiler, which its compiler calls."""
    if problem := torch.available():
        return problem
    return "" if any(map(shutil.which, COMPILERS)) else "apt-get install g++  # torch.compile calls a C++ compiler"


def facts() -> Mapping[str, Json]:
    """Return the version of torch, and which compiler it uses."""
    return {**torch.facts(), "compiler": "inductor"}


def load(model: Loadable, deployment: Deployment) -> CompiledSession:
    """Load the module from the source that the user named; it is compiled at its first run."""
    return CompiledSession(torch.load(model, deployment))


class CompiledSession:
    """A compiled module. The first run of a batch size may compile anew."""

    def __init__(self, session: torch.TorchSession) -> None:
        import torch as framework
        import torch._dynamo as dynamo

        dynamo.utils.counters.clear()  # they are the process's; what was compiled before isn't this module's
        session.module = framework.compile(session.module, dynamic=True)
        self._session = session

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Run one batch; the first one compiles."""
        import torch._dynamo as dynamo

        try:
            return self._session.run(feeds)
        except InputError as error:
            if not isinstance(error.__cause__, dynamo.exc.TorchDynamoException):
                raise
            what = f"torch.compile can't compile the module: {first_line(error.__cause__)}"
            do = "use the backend torch, which runs it as it is"
            raise InputError("runtime-refuses", what, do=do) from error

    def nodes(self, feeds: Mapping[str, np.ndarray], runs: int) -> list[NodeTime]:
        """Time what the module was compiled to, and what wasn't, as :class:`penstock.backends.torch.TorchSession`."""
        self.run(feeds)  # it may compile
        return self._session.nodes(feeds, runs)

    def actual(self) -> Mapping[str, Json]:
        """Return the threads, and in how many graphs it was compiled: between two of them Python runs."""
        import torch._dynamo as dynamo

        counted = dynamo.utils.counters
        breaks = sum(counted["graph_break"].values())
        return {**self._session.actual(), "graphs": int(counted["stats"]["unique_graphs"]), "graph_breaks": int(breaks)}

    def close(self) -> None:
        """Drop the module."""
        self._session.close()

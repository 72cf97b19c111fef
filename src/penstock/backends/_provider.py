"""The far side of ONNX Runtime with a provider of its own: which nodes it took is looked up, never taken for granted.

ONNX Runtime goes on without a provider that can't be loaded, with a line on standard error that nobody reads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from penstock.errors import InputError
from penstock.jsonable import Json

if TYPE_CHECKING:
    import numpy as np

CPU = "CPUExecutionProvider"
Providers = Sequence[tuple[str, Mapping[str, str]]]


class ProviderSession:
    """A session whose nodes the first provider took, all or some; the rest is the others', at last ONNX Runtime's."""

    def __init__(self, title: str, path: str, threads: int, providers: Providers, instead: str) -> None:
        """Open it. Raises ``InputError`` where the first provider takes no node; ``instead`` is what to do then."""
        import onnxruntime

        self._title, self._threads = title, threads
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        try:
            given = [(name, dict(chosen)) for name, chosen in providers]
            # its Python side would rerun what a provider can't do on the next one, and print a line
            self._session: Any = onnxruntime.InferenceSession(path, options, providers=given, enable_fallback=0)
        except Exception as error:  # the runtime raises many types, all about this model
            raise InputError("runtime-refuses", f"{title} can't load the model: {_told(error)}", do=instead) from error
        counted: Counter[str] = Counter()
        for part in self._session.get_provider_graph_assignment_info():
            counted[str(part.ep_name)] += len(part.get_nodes())
        self.placed = dict(counted)
        if not self.placed.get(providers[0][0]):
            there = self._session.get_providers()
            why = "took none of the model's nodes" if providers[0][0] in there else "couldn't be loaded by ONNX Runtime"
            what = f"{providers[0][0]} {why}: {' and '.join(self.placed) or CPU} would run the model without it"
            raise InputError("runtime-refuses", what, do=instead)

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Run one batch."""
        try:
            found: list[np.ndarray] = self._session.run(None, dict(feeds))
        except Exception as error:  # as at loading
            raise InputError("run-failed", f"{self._title} can't run the model: {_told(error)}") from error
        return found

    def actual(self) -> dict[str, Json]:
        """Tell which provider has how many nodes, and the threads asked for."""
        return {"threads": self._threads, "nodes_by_provider": {**self.placed}}

    def close(self) -> None:
        """Drop the session."""
        self._session = None


def _told(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]

"""The far side of ONNX Runtime with a provider of its own: which nodes it took is looked up, never taken for granted.

ONNX Runtime goes on without a provider that can't be loaded, with a line on standard error that nobody reads.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from penstock import asked
from penstock.backends import NodeTime, _ort_values, _profile
from penstock.errors import InputError, MissingError
from penstock.jsonable import Json

if TYPE_CHECKING:
    import numpy as np

CPU = "CPUExecutionProvider"
Providers = Sequence[tuple[str, Mapping[str, str]]]


class ProviderSession:
    """A session whose nodes the first provider took, all or some; the rest is the others', at last ONNX Runtime's."""

    def __init__(
        self, title: str, path: str, threads: int, providers: Providers, instead: str, sizes: Collection[str],
        environment: str,
    ) -> None:  # fmt: skip
        """Open it. ``sizes`` are the names of nodes that compute sizes, which are the CPU's wherever they run.

        Raises ``InputError`` where the first provider takes no node; ``instead`` is what to do then. Raises
        ``MissingError`` where it can't be loaded, which its ``environment`` is made anew for.
        """
        import onnxruntime

        self._title = title

        def opened(profile: Path | None = None) -> Any:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads
            options.log_severity_level = 3
            options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
            if profile is not None:
                options.enable_profiling, options.profile_file_prefix = True, str(profile)
            given = [(name, dict(chosen)) for name, chosen in providers]
            # its Python side would rerun what a provider can't do on the next one, and print a line
            return onnxruntime.InferenceSession(path, options, providers=given, enable_fallback=0)

        self._opened: Callable[[Path], Any] = opened
        first = providers[0][0]
        again = f"penstock env remove {environment}, then: penstock env add {environment}"
        if first not in onnxruntime.get_available_providers():
            raise MissingError("backend-missing", f"this build of ONNX Runtime has no {first}", do=again)
        try:
            self._session: Any = opened()
        except Exception as error:  # the runtime raises many types, all about this model
            raise InputError("runtime-refuses", f"{title} can't load the model: {_told(error)}", do=instead) from error
        self._once = _ort_values.runner(self._session)
        parts = self._session.get_provider_graph_assignment_info()
        nodes = ((str(part.ep_name), str(node.name), str(node.op_type)) for part in parts for node in part.get_nodes())
        self._placed = asked.placed(nodes, first, sizes)
        counts = cast("dict[str, int]", self._placed["nodes_by_provider"])
        if not counts.get(first):
            on = f"{' and '.join(counts) or CPU} would run the model without it"
            if first not in self._session.get_providers():
                raise MissingError("backend-missing", f"{first} couldn't be loaded by ONNX Runtime: {on}", do=again)
            raise InputError("runtime-refuses", f"{first} took none of the model's nodes: {on}", do=instead)

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Run one batch."""
        try:
            found = self._once(self._session, feeds)
        except Exception as error:  # as at loading
            raise InputError("run-failed", f"{self._title} can't run the model: {_told(error)}") from error
        if others := [type(one).__name__ for one in found if not hasattr(one, "dtype")]:
            what = f"{self._title}: an output of the model is a {others[0]}, and only tensors go to another process"
            raise InputError("run-failed", what)
        return found

    def nodes(self, feeds: Mapping[str, np.ndarray], runs: int) -> list[NodeTime]:
        """Time the nodes of a second session, which is profiled."""
        return _profile.times(self._opened, lambda session: self._once(session, feeds), runs)

    def actual(self) -> dict[str, Json]:
        """Tell which provider has how many nodes, and which are elsewhere; how many threads there are, it doesn't."""
        return {**self._placed}

    def close(self) -> None:
        """Drop the session."""
        self._session = None


def _told(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]

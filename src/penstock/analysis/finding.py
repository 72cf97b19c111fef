"""Finding: what is wrong or strange about a model file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["refused", "warning", "note"]
MOST_SHOWN = 80


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing found. ``refused``: the model is not opened; ``warning``: it is, and the user should know."""

    id: str
    severity: Severity
    what: str
    where: str
    do: str = ""


def refusal(id: str, what: str, where: str, do: str) -> Finding:
    """Build a finding for which the model is refused."""
    return Finding(id, "refused", what, where, do)


def shown(name: str | bytes) -> str:
    """Return a name from a file fit for a terminal: quoted, without control characters, and short.

    protobuf gives bytes for a name that is no text.
    """
    name = name.decode("utf-8", "backslashreplace") if isinstance(name, bytes) else name
    text = repr(name[: MOST_SHOWN + 1].encode("ascii", "backslashreplace").decode())
    return text if len(text) <= MOST_SHOWN else text[: MOST_SHOWN - 1] + "…'"

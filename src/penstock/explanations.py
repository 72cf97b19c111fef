"""What the error ids mean: texts of the package, for `penstock explain`."""

from __future__ import annotations

import difflib
import tomllib
from dataclasses import dataclass
from pathlib import Path

from penstock.errors import UsageError
from penstock.jsonable import from_json

TEXTS = Path(__file__).parent / "explanations.toml"


@dataclass(frozen=True, slots=True)
class Explanation:
    """What happened, why it is refused, what to do, and the commands that help."""

    what: str
    why: str
    cure: str
    see: tuple[str, ...]


def everything() -> dict[str, Explanation]:
    """Return all explanations by id, sorted."""
    table = tomllib.loads(TEXTS.read_text(encoding="utf-8"))
    return {id: from_json(Explanation, table[id]) for id in sorted(table)}


def explanation(id: str) -> Explanation:
    """Return the explanation of an error id. Raises ``UsageError`` for one that there isn't, with the nearest."""
    known = everything()
    if id not in known:
        near = difflib.get_close_matches(id, known, 3, 0.5)
        do = f"did you mean {', '.join(near)}?" if near else "`penstock explain` lists all"
        raise UsageError("unknown-code", f"there is no error id {id!r}", do=do)
    return known[id]

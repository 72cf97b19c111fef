"""What the error ids mean, which are texts of the package, and what the operators are, for `penstock explain`."""

from __future__ import annotations

import difflib
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from penstock.errors import UsageError
from penstock.jsonable import from_json

if TYPE_CHECKING:
    from penstock.opsets.telling import Operator

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


def find(name: str) -> Explanation | Operator:
    """Return the explanation of an error id, or the history of an operator, whose domain may stand before it.

    Raises ``UsageError`` for a name that is neither, with the nearest of both.
    """
    if (found := everything().get(name.lower())) is not None:
        return found
    from penstock.opsets import telling

    operators = telling.names()
    if (key := operators.get(name.lower())) is not None:
        return telling.operator(*key)
    domain, colons, _ = name.rpartition("::")
    if colons and domain.lower() not in {one or "ai.onnx" for one, _ in operators.values()}:
        what = f"{name!r} isn't standard: what operators of {domain!r} are is said by the library that brings them"
        raise UsageError("unknown-code", what, do="see that library's documentation; penstock inspect lists a model's")
    near = difflib.get_close_matches(name.lower(), [*everything(), *operators], 3, 0.5)
    shown = dict.fromkeys(operators[one][1] if one in operators else one for one in near)
    do = f"did you mean {', '.join(shown)}?" if near else "`penstock explain` lists all error ids"
    raise UsageError("unknown-code", f"there is no error id and no operator {name!r}", do=do)

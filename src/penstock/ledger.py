"""Ledger: the append-only log of what a build did, in order.

One JSON object a line. The first line is the header with the schema version. Every step of the pipeline ends in a line
``{"kind": "done", "step": …, "key": …}``; what follows the last such line belongs to a step that was cut off, and is
dropped when the build goes on. A line holds ``at`` (seconds since the epoch) and ``before`` (a short digest of the line
before it: one that isn't the last can't be taken out or changed unnoticed) beside its body; everything that may differ
between two builds of the same inputs stands under ``at``, ``before``, ``measured`` or ``host``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from penstock.deployment import Deployment
from penstock.errors import InputError
from penstock.jsonable import Json, dumps, from_json, to_json
from penstock.record import Record
from penstock.variant import Variant
from penstock.verdict import Verdict

SCHEMA = 2
CURE = "build into a new folder with -o, or delete this one whole"
Kind = Literal["variant", "deployment", "record", "verdict", "done"]


@dataclass(frozen=True, slots=True)
class Done:
    """A step ended; ``key`` is the digest of everything that it depends on."""

    step: str
    key: str


Entry: TypeAlias = "Variant | Deployment | Record | Verdict | Done"
_KINDS: dict[str, type[Variant] | type[Deployment] | type[Record] | type[Verdict] | type[Done]] = {
    "variant": Variant,
    "deployment": Deployment,
    "record": Record,
    "verdict": Verdict,
    "done": Done,
}
_NAMES = {cls: kind for kind, cls in _KINDS.items()}


def header() -> str:
    """Return the first line of a ledger."""
    return dumps({"kind": "header", "schema": SCHEMA}) + "\n"


def line(entry: Entry, at: float, before: str) -> str:
    """Return one entry as a line; ``at`` in seconds since the epoch, ``before`` the :func:`link` of the line before."""
    body = to_json(entry)
    return dumps({"kind": _NAMES[type(entry)], "at": round(at, 3), "before": before, "body": body}) + "\n"


def link(raw: str) -> str:
    """Return the digest of a line that the next one carries."""
    return hashlib.sha256(raw.removesuffix("\n").encode()).hexdigest()[:16]


def parse(text: str, where: str) -> list[Entry]:
    """Read a ledger's text. A torn last line is dropped; anything else out of order is an ``InputError``."""
    lines = text.split("\n")[:-1]  # what follows the last newline is nothing, or a torn line
    if not lines:
        return []
    entries: list[Entry] = []
    for number, raw in enumerate(lines, 1):
        try:
            data = json.loads(raw)
            if number == 1:
                if data.get("kind") != "header" or data.get("schema") != SCHEMA:
                    raise ValueError(f"schema {data.get('schema')!r}, expected {SCHEMA}")
                continue
            if data["before"] != link(lines[number - 2]):
                raise ValueError("the line before it was changed, or lines are missing")
            entries.append(from_json(_KINDS[data["kind"]], data["body"]))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                "bad-ledger",
                f"line {number} of the ledger can't be read: {error}",
                where=where,
                do=CURE,
            ) from error
    return entries


def finished(entries: Iterable[Entry]) -> list[tuple[Done, list[Entry]]]:
    """Group the entries by the finished step that they belong to; an unfinished tail is left out."""
    steps: list[tuple[Done, list[Entry]]] = []
    open_step: list[Entry] = []
    for entry in entries:
        if isinstance(entry, Done):
            steps.append((entry, open_step))
            open_step = []
        else:
            open_step.append(entry)
    return steps


def without_measurements(text: str) -> list[Json]:
    """Return a ledger's lines with all that may differ between builds of the same inputs taken out."""
    lines = [json.loads(raw) for raw in text.split("\n") if raw]
    return [_strip({key: value for key, value in one.items() if key != "before"}) for one in lines]


def _strip(value: Json) -> Json:
    if isinstance(value, dict):
        return {key: _strip(item) for key, item in value.items() if key not in ("at", "measured", "host")}
    if isinstance(value, list):
        return [_strip(item) for item in value]
    return value


Append = Callable[[Entry], None]

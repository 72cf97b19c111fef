"""A backend's own options, as a user gives them behind its name: ``onnxruntime-webgpu:layout=NCHW:adapter=software``.

A backend names its options in ``OPTIONS``, from each to the values that it takes; an option with no values listed takes
any text, which the backend holds to its form when it loads a model.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping
from typing import cast

from penstock import registry
from penstock.errors import UsageError

# a value may hold colons of its own: a path does
_NEXT = re.compile(r":(?=[A-Za-z][\w-]*=)")


def split(text: str) -> tuple[str, dict[str, str]]:
    """Return a backend's name and what is asked of it. Raises ``UsageError`` for what isn't ``name:option=value``."""
    name, *parts = _NEXT.split(text)
    if ":" in name:
        what = f"{text!r} names no option and value"
        raise UsageError("bad-setting", what, where=text, do="write backend:option=value, and so on")
    given: dict[str, str] = {}
    for part in parts:
        option, _, value = part.partition("=")
        if option in given:
            raise UsageError("bad-setting", f"the option {option!r} is given twice", where=text, do="give it once")
        given[option] = value
    return name, given


def asked(text: str) -> tuple[str, dict[str, str]]:
    """Return a backend's name and options, held against those that it has. Raises what loading it raises, too."""
    name, given = split(text)
    backend = registry.load("backends", name)
    known = cast("Mapping[str, Collection[str]]", getattr(backend, "OPTIONS", {}))
    for option, value in given.items():
        if option not in known:
            near = difflib.get_close_matches(option, known, 1)
            do = f"it has {', '.join(known)}" + (f"; did you mean {near[0]}?" if near else "") if known else ""
            what = f"the backend {name!r} has no {'option ' + repr(option) if known else 'options'}"
            raise UsageError("bad-option", what, where=text, do=do or f"write {name} alone")
        if known[option] and value not in known[option]:
            what = f"{option} is one of {', '.join(known[option])}, not {value!r}"
            raise UsageError("bad-option", what, where=text, do="give one of them")
    return name, given


def way(*parts: str, given: Mapping[str, str]) -> str:
    """Return the way of a deployment's name: a backend's own way, and what was asked of it beside."""
    return "+".join([*filter(None, parts), *(f"{option}={_short(value)}" for option, value in given.items())])


def _short(value: str) -> str:
    return value.rpartition("/")[2]

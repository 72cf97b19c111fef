"""A backend's own options, as a user gives them behind its name: ``onnxruntime-webgpu:layout=NCHW:adapter=software``.

A backend names its options in ``OPTIONS``, from each to the values that it takes; an option with no values listed takes
any text, which the backend holds to its form when it loads a model.
"""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Mapping
from pathlib import Path

from penstock import registry, store
from penstock.deployment import Deployment
from penstock.errors import InputError, UsageError

Known = Mapping[str, tuple[str, ...]]  # an option → the values that it takes
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
    told = getattr(backend, "OPTIONS", {})
    what, do = _fault(name, given, told if isinstance(told, Mapping) else {})  # a plug-in's may be anything
    if what:
        raise UsageError("bad-option", what, where=text, do=do)
    return name, given


def chosen(deployment: Deployment, known: Known) -> dict[str, str]:
    """Return what a deployment asks for of each option, or its default: the first value, "" of one that takes any text.

    Raises ``InputError``.
    """
    what, do = _fault(deployment.backend, deployment.options, known)
    if what:
        raise InputError("bad-option", what, where=deployment.name, do=do)
    return {option: deployment.options.get(option, (*values, "")[0]) for option, values in known.items()}


def _fault(backend: str, given: Mapping[str, str], known: Known) -> tuple[str, str]:
    """Say what is wrong with options, and what to do; nothing of either where all is well."""
    for option, value in given.items():
        if option not in known:
            near = difflib.get_close_matches(option, known, 1)
            do = f"it has {', '.join(known)}" + (f"; did you mean {near[0]}?" if near else "") if known else ""
            what = f"the backend {backend!r} has no {'option ' + repr(option) if known else 'options'}"
            return what, do or f"write {backend} alone"
        if known[option] and value not in known[option]:
            return f"{option} is one of {', '.join(known[option])}, not {value!r}", "give one of them"
    return "", ""


def ways(own: Mapping[str, Mapping[str, str]], given: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Return a backend's own ways with what was asked of it, by the way's part of a deployment's name.

    A way that is nothing but another value of an option that was given is left out.
    """
    found = {}
    for way, options in own.items():
        if not way or not options.keys() & given.keys():
            parts = [*filter(None, [way]), *(f"{option}={_short(value)}" for option, value in given.items())]
            found["+".join(parts)] = {**options, **given}
    return found


def _short(value: str) -> str:
    """Return a value as a name may hold it: of a file its last part, and a digest of its place and of what is in it."""
    if re.fullmatch(r"[\w.-]{1,40}", value):
        return value
    with contextlib.suppress(OSError, ValueError):
        value = f"{value}:{store.file_digest(Path(value))}"
    last = re.sub(r"[^\w.-]", "_", value.partition(":")[0].rpartition("/")[2])[:30]
    return f"{last}-{store.digest_of([value])[:8]}"

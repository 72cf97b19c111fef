"""Find frontends, passes, quantizers, backends, data sets and targets: built in by folder, third-party by entry point.

A plug-in is a module (or an object) that has what the protocol in its folder's ``__init__.py`` asks for. Nothing is
imported before it is used; one that fails to import is listed with its error and breaks nothing else.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from penstock.errors import MissingError, UsageError

Kind = Literal["frontends", "passes", "quantizers", "backends", "datasets", "targets"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True, slots=True)
class Plugin:
    """One plug-in as listed: where it comes from, what it says of itself, or why it doesn't load."""

    kind: Kind
    name: str
    origin: str  # "built in", or the distribution that brings it
    summary: str
    problem: str  # empty when it loads and can run here


def names(kind: Kind) -> list[str]:
    """List the names of one kind, sorted."""
    return sorted({**_built_in(kind), **{entry.name: "" for entry in _entry_points(kind)}})


def load(kind: Kind, name: str) -> object:
    """Import one plug-in. Raises ``UsageError`` for an unknown name, ``MissingError`` for one that doesn't import."""
    built_in = _built_in(kind)
    if name in built_in:
        try:
            return importlib.import_module(built_in[name])
        except ImportError as error:
            what = f"the built-in plug-in {name!r} doesn't load: {error}"
            raise MissingError("broken-plug-in", what, where=built_in[name], do="install penstock anew") from error
    for entry in _entry_points(kind):
        if entry.name == name:
            try:
                return entry.load()
            except Exception as error:  # a third party's code: whatever it raises is its own problem, and named
                raise MissingError(
                    "broken-plug-in",
                    f"the plug-in {name!r} doesn't load: {error}",
                    where=entry.value,
                    do="update or uninstall the package that brings it",
                ) from error
    known = names(kind)
    near = difflib.get_close_matches(name, known, 1)
    do = f"did you mean {near[0]!r}?" if near else f"known are: {', '.join(known)}"
    singular = {"passes": "pass", "datasets": "data set"}.get(kind, kind.removesuffix("s"))
    raise UsageError("unknown-plug-in", f"there is no {singular} named {name!r}", do=do)


def fingerprint(kind: Kind) -> dict[str, str]:
    """Return what the code of every plug-in of one kind is, for cache keys: a digest, or where it comes from."""
    folder = Path(__file__).parent / kind
    found = {path.stem: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.py"))}
    for entry in _entry_points(kind):
        version = entry.dist.version if entry.dist else ""
        module = importlib.util.find_spec(entry.module.partition(".")[0])
        origin = Path(module.origin) if module is not None and module.origin else None
        code = hashlib.sha256(origin.read_bytes()).hexdigest() if origin is not None and origin.is_file() else ""
        found[f"{entry.name}={entry.value}"] = f"{version} {code}"
    return found


def describe(kind: Kind) -> Iterator[Plugin]:
    """List the plug-ins of one kind with their origin, summary and problem."""
    built_in = _built_in(kind)
    origins = dict.fromkeys(built_in, "built in")
    for entry in _entry_points(kind):
        origins.setdefault(entry.name, entry.dist.name if entry.dist else entry.value)
    for name in sorted(origins):
        try:
            plugin = load(kind, name)
            doc = (getattr(plugin, "__doc__", None) or "").strip()
            available = getattr(plugin, "available", None)
            problem = (available() if callable(available) else "") or ""
            yield Plugin(kind, name, origins[name], doc.splitlines()[0] if doc else "", problem)
        except Exception as error:  # listed, never fatal
            told = (str(error).splitlines() or [""])[0]
            yield Plugin(kind, name, origins[name], "", told or type(error).__name__)


def _built_in(kind: Kind) -> dict[str, str]:
    folder = Path(__file__).parent / kind
    found = {}
    for path in sorted(folder.glob("[!_]*.py")):
        found[path.stem.replace("_", "-")] = f"penstock.{kind}.{path.stem}"
    return found


def _entry_points(kind: Kind) -> list[importlib.metadata.EntryPoint]:
    import importlib.metadata

    return sorted(importlib.metadata.entry_points(group=f"penstock.{kind}"), key=lambda entry: entry.name)

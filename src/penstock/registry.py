"""Find frontends, passes, quantizers, backends, data sets, targets and commands: by folder, or by entry point.

A plug-in is a module (or an object) that has what the protocol in its folder's ``__init__.py`` asks for; a command is
one of click's. Nothing is imported before it is used; one that fails to import, or lacks something, is listed with its
error and breaks nothing else. A name that is built in is never replaced.
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

Kind = Literal["frontends", "passes", "quantizers", "backends", "datasets", "targets", "commands"]
KINDS: tuple[Kind, ...] = get_args(Kind)
# what a plug-in of each kind has to have; the protocols say what it means
WANTED: dict[str, tuple[str, ...]] = {
    "frontends": ("claims", "tools", "export"),
    "passes": ("PHASE", "AFTER", "run"),
    "quantizers": ("available", "quantize"),
    "backends": ("ROLE", "FORMATS", "available", "facts", "load"),
    "datasets": ("claims", "open"),
    "targets": ("available", "facts"),
    "commands": ("main", "get_short_help_str"),
}
MOST_FILES = 200  # of a plug-in's package that are looked at for its fingerprint


@dataclass(frozen=True, slots=True)
class Plugin:
    """One plug-in as listed: where it comes from, what it says of itself, or why it doesn't load."""

    kind: Kind
    name: str
    origin: str  # "built in", or the distribution that brings it
    summary: str
    problem: str  # empty when it loads and can run here


def claimants(kind: Kind) -> list[str]:
    """List the names of a kind in the order in which they are asked whether something is theirs.

    Third parties come first: they claim a form of their own, where a built-in one takes whatever looks like a module.
    """
    built_in = _built_in(kind)
    return sorted(names(kind), key=lambda name: (name in built_in, name))


def names(kind: Kind) -> list[str]:
    """List the names of one kind, sorted."""
    return sorted({**_built_in(kind), **{entry.name: "" for entry in _entry_points(kind)}})


def load(kind: Kind, name: str) -> object:
    """Import one plug-in. Raises ``UsageError`` for an unknown name, ``MissingError`` for one that doesn't import."""
    built_in = _built_in(kind)
    if name in built_in:
        try:
            home = importlib.import_module(built_in[name])
            return home.command if kind == "commands" else home
        except ImportError as error:
            what = f"the built-in plug-in {name!r} doesn't load: {error}"
            raise MissingError("broken-plug-in", what, where=built_in[name], do="install penstock anew") from error
    for entry in _entry_points(kind):
        if entry.name == name:
            do = "update or uninstall the package that brings it"
            try:
                found: object = entry.load()
            except (Exception, SystemExit) as error:  # a third party's code: what it raises is its own problem
                what = f"the plug-in {name!r} doesn't load: {error}"
                raise MissingError("broken-plug-in", what, where=entry.value, do=do) from error
            if absent := [wanted for wanted in WANTED[kind] if not hasattr(found, wanted)]:
                what = f"the plug-in {name!r} is no {_singular(kind)}: it has no {', '.join(absent)}"
                raise MissingError("broken-plug-in", what, where=entry.value, do=do)
            return found
    known = names(kind)
    near = difflib.get_close_matches(name, known, 1)
    do = f"did you mean {near[0]!r}?" if near else f"known are: {', '.join(known)}"
    raise UsageError("unknown-plug-in", f"there is no {_singular(kind)} named {name!r}", do=do)


def _singular(kind: Kind) -> str:
    return {"passes": "pass", "datasets": "data set"}.get(kind, kind.removesuffix("s"))


def fingerprint(kind: Kind) -> dict[str, str]:
    """Return what the code of every plug-in of one kind is, for cache keys: a digest, or where it comes from."""
    found = {path.stem: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(_folder(kind).glob("*.py"))}
    for entry in _entry_points(kind):
        version = entry.dist.version if entry.dist else ""
        found[f"{entry.name}={entry.value}"] = f"{version} {_code(entry.module)}"
    return found


def _code(module: str) -> str:
    """Digest a third party's module and the files beside it in its package, without importing any."""
    top = importlib.util.find_spec(module.partition(".")[0])
    if top is None or not top.origin or not Path(top.origin).is_file():
        return ""
    origin = Path(top.origin)
    files = sorted(origin.parent.rglob("*.py"))[:MOST_FILES] if origin.name == "__init__.py" else [origin]
    digest = hashlib.sha256()
    for path in files:
        digest.update(str(path.relative_to(origin.parent)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def describe(kind: Kind) -> Iterator[Plugin]:
    """List the plug-ins of one kind with their origin, summary and problem; the built-in ones first of equal names."""
    built_in = _built_in(kind)
    taken: dict[str, str] = {}
    found = [(name, "built in") for name in built_in]
    found += [(entry.name, _origin(entry)) for entry in _entry_points(kind)]
    for name, origin in sorted(found, key=lambda one: (one[0], one[1] != "built in", one[1])):
        if name in taken:
            yield Plugin(kind, name, origin, "", f"the name is taken: {name!r} is {taken[name]}")
            continue
        taken[name] = "built in" if origin == "built in" else f"of {origin}"
        try:
            plugin = load(kind, name)
            available = getattr(plugin, "available", None)
            problem = (available() if callable(available) else "") or ""
            yield Plugin(kind, name, origin, _summary(kind, name, plugin), str(problem))
        except (Exception, SystemExit) as error:  # listed, never fatal
            told = (str(error).splitlines() or [""])[0]
            yield Plugin(kind, name, origin, "", told or type(error).__name__)


def _summary(kind: Kind, name: str, plugin: object) -> str:
    if kind == "commands":
        text: str = plugin.get_short_help_str(200)  # type: ignore[attr-defined]  # load has looked
        return text
    doc = (getattr(plugin, "__doc__", None) or "").strip()
    return doc.splitlines()[0] if doc else ""


def origins(kind: Kind) -> dict[str, str]:
    """Map the names of third parties' plug-ins to the distribution that brings each; imports nothing of theirs."""
    built_in = _built_in(kind)
    return {entry.name: _origin(entry) for entry in reversed(_entry_points(kind)) if entry.name not in built_in}


def _origin(entry: importlib.metadata.EntryPoint) -> str:
    if entry.dist is None:
        return entry.value
    version = getattr(entry.dist, "version", "")
    return f"{entry.dist.name} {version}".strip()


def _folder(kind: Kind) -> Path:
    return Path(__file__).parent / ("cli" if kind == "commands" else kind)


def _built_in(kind: Kind) -> dict[str, str]:
    folder = _folder(kind)
    found = {}
    for path in sorted(folder.glob("[!_]*.py")):
        found[path.stem.replace("_", "-")] = f"penstock.{folder.name}.{path.stem}"
    return found


def _entry_points(kind: Kind) -> list[importlib.metadata.EntryPoint]:
    import importlib.metadata

    return sorted(importlib.metadata.entry_points(group=f"penstock.{kind}"), key=lambda entry: entry.name)

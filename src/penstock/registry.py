"""Find frontends, passes, quantizers, backends, data sets, targets and commands: by folder, or by entry point.

A plug-in is a module (or an object) that has what the protocol in its folder's ``__init__.py`` asks for; a command is
one of click's. Nothing is imported before it is used. A third party's is first imported in a process of its own, to be
listed beside the others of its distribution: one that raises, hangs, or takes its process down is listed with its error
and breaks nothing else. A name that is built in is never replaced.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

from penstock.errors import InputError, MissingError, PenstockError, UsageError
from penstock.jsonable import Json

Kind = Literal["frontends", "passes", "quantizers", "backends", "datasets", "targets", "commands"]
KINDS: tuple[Kind, ...] = get_args(Kind)
# what a plug-in of each kind has to have; the protocols say what it means
WANTED: dict[str, tuple[str, ...]] = {
    "frontends": ("claims", "tools", "export"),
    "passes": ("PHASE", "AFTER"),  # and ``run``, or ``OPERATORS`` and ``rewrite``
    "quantizers": ("available", "quantize"),
    "backends": ("ROLE", "FORMATS", "available", "facts", "load"),
    "datasets": ("claims", "open"),
    "targets": ("available", "facts"),
    "commands": ("main", "get_short_help_str"),
}
# what a plug-in says of itself that has to be one of these
CHOICES: dict[str, dict[str, tuple[str, ...]]] = {
    "passes": {"PHASE": ("clean", "fold", "fuse", "lower")},
    "backends": {"ROLE": ("candidate", "baseline", "oracle")},
}
IMPORT_SECONDS = 30.0
INSIDE = "PENSTOCK_INSIDE_A_TRIAL"  # set in a process that is a trial already
Mark = tuple[str, str, str]  # kind, name, value of an entry point
_TRIED: dict[Mark, Told] = {}  # what first imports told
MOST_FILES = 200  # of a plug-in's package that are looked at for its fingerprint


@dataclass(frozen=True, slots=True)
class Told:
    """What the first import of a third party's plug-in told; ``failed`` says how it failed, and is empty otherwise."""

    summary: str = ""
    problem: str = ""
    failed: str = ""


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
            _try_first(kind, entry)
            return _loaded(kind, entry)
    known = names(kind)
    near = difflib.get_close_matches(name, known, 1)
    do = f"did you mean {near[0]!r}?" if near else f"known are: {', '.join(known)}"
    raise UsageError("unknown-plug-in", f"there is no {singular(kind)} named {name!r}", do=do)


def _loaded(kind: Kind, entry: importlib.metadata.EntryPoint) -> object:
    """Import a third party's plug-in into this process, and hold it against the protocol of its kind."""
    try:
        with contextlib.redirect_stdout(sys.stderr):  # stdout carries our results
            found: object = entry.load()
    except (Exception, SystemExit) as error:  # a third party's code: what it raises is its own problem
        raise _broken(entry, f"doesn't load: {_told(error)}") from error
    if absent := _absent(kind, found):
        raise _broken(entry, f"is no {singular(kind)}: it has no {', '.join(absent)}")
    for name, allowed in CHOICES.get(kind, {}).items():
        if (value := getattr(found, name)) not in allowed:
            raise _broken(entry, f"names the {name.lower()} {value!r}; there are {', '.join(allowed)}")
    return found


def _absent(kind: Kind, found: object) -> list[str]:
    wanted = WANTED[kind]
    if kind == "passes":
        wanted = (*wanted, "OPERATORS", "rewrite") if hasattr(found, "rewrite") else (*wanted, "run")
    return [name for name in wanted if not hasattr(found, name)]


def _told(error: BaseException) -> str:
    kind, text = type(error).__name__, (str(error).splitlines() or [""])[0]
    return text if isinstance(error, ImportError) and text else f"{kind}: {text}" if text else kind


@contextlib.contextmanager
def blamed(kind: Kind, name: str) -> Iterator[None]:
    """Let an error of a third party's plug-in name it; an error of a built-in one stays what it is."""
    try:
        yield
    except PenstockError:
        raise
    except (Exception, SystemExit) as error:  # a third party's raises what it likes; a built-in one's goes on as it is
        if (owner := origins(kind).get(name)) is None:
            raise
        what = f"the {singular(kind)} {name!r} of {owner} failed: {_told(error)}"
        raise InputError(
            "plug-in-failed", what, do=f"update or uninstall it, or tell the authors of {owner}"
        ) from error


def _broken(entry: importlib.metadata.EntryPoint, what: str) -> MissingError:
    do = f"update or uninstall {entry.dist.name if entry.dist else 'the package that brings it'}"
    return MissingError("broken-plug-in", f"the plug-in {entry.name!r} {what}", where=entry.value, do=do)


def _try_first(kind: Kind, entry: importlib.metadata.EntryPoint) -> None:
    """Import a plug-in in a process of its own, once: it may hang, or end the process. Raises ``MissingError``."""
    if not _is_here(entry) and (failed := _tried(kind, entry).failed):
        raise _broken(entry, failed)


def _tried(kind: Kind, entry: importlib.metadata.EntryPoint) -> Told:
    """Tell how the first import of a plug-in went; it is done where it hasn't been."""
    from penstock import worker

    mark = (kind, entry.name, entry.value)
    if mark not in _TRIED:
        try:
            _TRIED.update(_ask([mark]))
        except worker.WorkerTimeout:
            _TRIED[mark] = Told(failed=f"takes more than {IMPORT_SECONDS:g} s to import")
        except worker.WorkerCrash as error:
            _TRIED[mark] = Told(failed=f"doesn't load: {error.what}")
    return _TRIED[mark]


def _ask(marks: Sequence[Mark]) -> dict[Mark, Told]:
    from penstock import worker

    argument: Json = {"plug-ins": [[*mark] for mark in marks], "path": [*sys.path]}
    answers = worker.call("penstock.registry:serve", argument, timeout_s=IMPORT_SECONDS)
    return dict(zip(marks, (Told(*cast("list[str]", one)) for one in cast("list[Json]", answers)), strict=True))


def _try_by_distribution(kinds: Sequence[Kind]) -> None:
    """Import what each distribution brings in one process a distribution.

    Where one of several hangs or ends the process, nothing is told: each is then tried alone when it is looked at.
    """
    from penstock import worker

    together: dict[str, list[Mark]] = {}
    for kind in kinds:
        for entry in _entry_points(kind):
            mark = (kind, entry.name, entry.value)
            if mark not in _TRIED and not _is_here(entry) and entry.name not in _built_in(kind):
                together.setdefault(_origin(entry), []).append(mark)
    for marks in together.values():
        if len(marks) > 1:
            with contextlib.suppress(worker.WorkerTimeout, worker.WorkerCrash):
                _TRIED.update(_ask(marks))


def _is_here(entry: importlib.metadata.EntryPoint) -> bool:
    """Whether the plug-in's module is in this process already, or this process is a trial."""
    return bool(os.environ.get(INSIDE)) or entry.module in sys.modules


def serve(argument: Json) -> list[list[Json]]:
    """Load plug-ins and ask each whether it can run here: the worker's side of first imports.

    Returns the fields of a ``Told`` for each.
    """
    asked = cast("dict[str, Json]", argument)
    sys.path += [path for path in cast("list[str]", asked["path"]) if path not in sys.path]
    os.environ[INSIDE] = "1"
    marks = cast("list[tuple[Kind, str, str]]", asked["plug-ins"])
    return [[*_first_look(*mark)] for mark in marks]


def _first_look(kind: Kind, name: str, value: str) -> tuple[str, str, str]:
    entry = next(entry for entry in _entry_points(kind) if (entry.name, entry.value) == (name, value))
    try:
        plugin = _loaded(kind, entry)
    except MissingError as error:
        return "", "", error.what.partition(f"{name!r} ")[2]
    return _summary(kind, plugin), _problem(plugin), ""


def _problem(plugin: object) -> str:
    available = getattr(plugin, "available", None)
    try:
        return str((available() if callable(available) else "") or "")
    except (Exception, SystemExit) as error:  # a third party's
        return _told(error)


def singular(kind: Kind) -> str:
    """Return what one plug-in of a kind is called."""
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


def describe(*kinds: Kind) -> Iterator[Plugin]:
    """List the plug-ins of these kinds with their origin, summary and problem; the built-in ones first of equal names.

    Several kinds at once are looked at faster than one by one: a distribution that brings several is imported once.
    """
    _try_by_distribution(kinds)
    for kind in kinds:
        yield from _described(kind)


def _described(kind: Kind) -> Iterator[Plugin]:
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
            if origin == "built in":
                plugin = load(kind, name)
                yield Plugin(kind, name, origin, _summary(kind, plugin), _problem(plugin))
            else:
                told = _looked_at(kind, name)
                yield Plugin(kind, name, origin, told.summary, told.problem)
        except (Exception, SystemExit) as error:  # listed, never fatal
            yield Plugin(kind, name, origin, "", (str(error).splitlines() or [type(error).__name__])[0])


def _looked_at(kind: Kind, name: str) -> Told:
    entry = next(entry for entry in _entry_points(kind) if entry.name == name)
    if _is_here(entry):
        plugin = _loaded(kind, entry)
        return Told(_summary(kind, plugin), _problem(plugin))
    told = _tried(kind, entry)
    if told.failed:
        raise _broken(entry, told.failed)
    return told


def _summary(kind: Kind, plugin: object) -> str:
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


@functools.cache
def _built_in(kind: Kind) -> dict[str, str]:
    folder = _folder(kind)
    found = {}
    for path in sorted(folder.glob("[!_]*.py")):
        found[path.stem.replace("_", "-")] = f"penstock.{folder.name}.{path.stem}"
    return found


def _entry_points(kind: Kind) -> list[importlib.metadata.EntryPoint]:
    return [*_installed(kind, tuple(sys.path))]


@functools.cache
def _installed(kind: Kind, path: tuple[str, ...]) -> tuple[importlib.metadata.EntryPoint, ...]:
    """Read the metadata of all that is installed on this path; that takes longer than to optimize a small model."""
    import importlib.metadata

    found = importlib.metadata.entry_points(group=f"penstock.{kind}")
    return tuple(sorted(found, key=lambda entry: entry.name))

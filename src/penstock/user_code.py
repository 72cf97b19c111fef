"""Import a user's function by name and run it, so that what goes wrong in it is told with the line of its source."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from penstock import places
from penstock.errors import InputError
from penstock.store import digest_of, file_digest

T = TypeVar("T")
SPEC = re.compile(r"(?P<file>.+\.py)?(?(file)|(?P<module>[A-Za-z_][\w.]*)):(?P<function>[A-Za-z_]\w*)")


@contextmanager
def importable() -> Iterator[None]:
    """Let modules of the current folder be imported, as ``python -m`` does."""
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        if folder in sys.path:
            sys.path.remove(folder)


@contextmanager
def explained(what: str, where: str) -> Iterator[None]:
    """Turn whatever the user's code raises into an ``InputError`` that names its innermost line.

    ``what`` says what failed ("the data function failed"). What the code prints goes to stderr: stdout is the result's.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except (Exception, SystemExit) as error:
        told = (str(error).strip().splitlines() or [""])[0]
        raise InputError(
            "user-code-failed",
            f"{what}: {type(error).__name__}: {told}",
            where=_line(error) or where,
            do="call it in Python by itself; -v shows the whole traceback",
        ) from error


def call(function: Callable[[], T], what: str, where: str) -> T:
    """Call a user's function under :func:`explained`."""
    with explained(what, where):
        return function()


def _line(error: BaseException) -> str:
    """Name the innermost line that is neither ours nor a library's, with its text."""
    if isinstance(error, SyntaxError) and error.filename and not error.filename.startswith("<"):
        found = places.place(str(Path(error.filename).absolute()), error.lineno or 0)
        return places.text(found) if found else ""
    frames = traceback.extract_tb(error.__traceback__)
    found = places.innermost((frame.filename, frame.lineno or 0) for frame in reversed(frames))
    return places.text(found) if found else ""


def module(spec: str, what: str) -> ModuleType:
    """Import the module or the file that ``spec`` (``module:function``, ``file.py:function``) names.

    ``what`` names the function's part ("the metric"). Raises ``InputError``.
    """
    match = SPEC.fullmatch(spec)
    if match is None:
        do = "write package.module:function or path/to/file.py:function"
        raise InputError("no-such-function", f"{what} {spec!r} names no function", do=do)
    if match["file"]:
        return _of_file(Path(match["file"]).expanduser(), what)
    with importable():
        try:
            there = importlib.util.find_spec(match["module"])
        except (ImportError, ValueError):
            there = None
        if there is None:
            do = "check the name, or run from the folder that holds it; for a file write path/to/file.py:function"
            raise InputError("no-such-module", f"there is no module {match['module']!r} for {what}", where=spec, do=do)
        with explained(f"importing {what} failed", spec):
            return importlib.import_module(match["module"])


def function(spec: str, what: str) -> Callable[..., Any]:
    """Import a user's function; see :func:`module`."""
    return member(module(spec, what), spec, what)


def member(home: ModuleType, spec: str, what: str) -> Callable[..., Any]:
    """Return the function that ``spec`` names from its module. Raises ``InputError``."""
    name = spec.rpartition(":")[2]
    found: Callable[..., Any] | None = getattr(home, name, None)
    if not callable(found):
        offered = ", ".join(name for name, value in vars(home).items() if inspect.isfunction(value)) or "none"
        do = f"its functions are: {offered}"
        raise InputError("no-such-function", f"there is no function {name!r} for {what}", where=spec, do=do)
    return found


def without_arguments(spec: str, what: str) -> Callable[[], Any]:
    """Import a user's function that is called without arguments; one that needs some is an ``InputError``."""
    found = function(spec, what)
    try:
        inspect.signature(found).bind()
    except TypeError as error:
        raise InputError(
            "function-arguments",
            f"{what} can't be called without arguments: {error}",
            where=spec,
            do="give its parameters defaults, or wrap it in a function that takes none",
        ) from error
    except ValueError:
        pass  # a function in C may have no signature to read
    return found


@dataclass(slots=True)
class _Imported:
    module: ModuleType
    digest: str
    brought: set[str]  # names of the modules that its import brought in


_IMPORTED: dict[Path, _Imported] = {}


def import_file(path: Path, what: str) -> ModuleType:
    """Import a file once in this process, and again after an edit: what it registers can't be registered twice.

    Its folder joins ``sys.path``, as for a script, so that it may import its neighbours. ``what`` says what failed, if
    something does. Raises ``InputError``.
    """
    resolved = path.resolve()
    digest = file_digest(resolved)
    known = _IMPORTED.get(resolved)
    if known is not None and known.digest == digest:
        sys.modules.setdefault(known.module.__name__, known.module)
        return known.module
    folder = str(resolved.parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    name = _module_name(resolved)
    spec = importlib.util.spec_from_file_location(name, resolved)
    if spec is None or spec.loader is None:
        raise InputError("not-python", "this can't be imported as Python", where=str(path), do="name a .py file")
    made = importlib.util.module_from_spec(spec)
    before, replaced = set(sys.modules), sys.modules.get(name)
    sys.modules[name] = made  # dataclasses in the user's file look their module up there
    try:
        with explained(what, str(path)):
            spec.loader.exec_module(made)
    except InputError as error:
        if replaced is None:
            sys.modules.pop(name, None)
        else:
            sys.modules[name] = replaced
        if "attempted relative import" in error.what:
            error.do = f"{resolved.name} belongs to a package: {_in_package(resolved)}"
        raise
    brought = (known.brought if known is not None else set()) | (set(sys.modules) - before)
    _IMPORTED[resolved] = _Imported(made, digest, brought)
    return made


def _module_name(path: Path) -> str:
    """Return the file's own name, unless a module of that name is there or could be: it must not take its place."""
    for name in (path.stem, f"penstock_source_{path.stem}"):
        there = getattr(sys.modules.get(name), "__file__", None)
        if name in sys.modules and (there is None or Path(there).resolve() != path):
            continue
        if name not in sys.modules and name == path.stem:
            with contextlib.suppress(ImportError, ValueError, AttributeError):
                found = importlib.util.find_spec(name)
                if found is not None and (found.origin is None or Path(found.origin).resolve() != path):
                    continue
        return name
    return f"penstock_source_{path.stem}_{digest_of(str(path))[:8]}"


def _in_package(path: Path) -> str:
    parts, folder = [path.stem], path.parent
    while (folder / "__init__.py").is_file():
        parts, folder = [folder.name, *parts], folder.parent
    name = ".".join(parts)
    if len(parts) == 1:
        return "give its folder an __init__.py, and name it as package.module:name from the folder above"
    return f"name it as {name}:NAME, from the folder {folder.name or folder}"


def _of_file(path: Path, what: str) -> ModuleType:
    if not path.is_file():
        raise InputError("no-such-file", f"there is no such file for {what}", where=str(path), do="check the path")
    return import_file(path, f"importing {what} failed")


def files(start: Iterable[ModuleType]) -> dict[str, str]:
    """Digest the source files of modules and of all that they import, but for installed packages and the library."""
    outside = (str(Path(sys.base_prefix).resolve()), str(Path(sys.prefix).resolve()))
    found: dict[str, str] = {}
    queue = list(start)
    while queue:
        module = queue.pop()
        path = getattr(module, "__file__", None)
        if not path or not path.endswith(".py") or "site-packages" in path or module.__name__.startswith("penstock."):
            continue
        resolved = str(Path(path).resolve())
        if resolved in found or resolved.startswith(outside) or not Path(resolved).is_file():
            continue
        found[resolved] = file_digest(Path(resolved))
        imported = _IMPORTED.get(Path(resolved))
        queue += [sys.modules[name] for name in (imported.brought if imported else ()) if name in sys.modules]
        for value in list(vars(module).values()):
            home = value if isinstance(value, ModuleType) else sys.modules.get(_home(value))
            if home is not None and home is not module:
                queue.append(home)
    return found


def _home(value: object) -> str:
    """Return the name of the module that a value says it is of; one that warns or raises when asked says nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            home = getattr(value, "__module__", None)
        except Exception:  # anything may stand in a user's module
            return ""
    return home if isinstance(home, str) else ""

"""Import a user's function by name and run it, so that what goes wrong in it is told with the line of its source."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import penstock
from penstock.errors import InputError
from penstock.store import file_digest

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
    """Name the innermost line that is neither ours nor a library's: "file, line n, in function"."""
    if isinstance(error, SyntaxError) and error.filename and not error.filename.startswith("<"):
        return f"{error.filename}, line {error.lineno}"
    libraries = (
        str(Path(penstock.__file__).parent),
        sysconfig.get_path("stdlib"),
        sysconfig.get_path("purelib"),
        sysconfig.get_path("platlib"),
    )
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith(("<", *libraries)):
            return f"{frame.filename}, line {frame.lineno}, in {frame.name}"
    return ""


def module(spec: str, what: str) -> ModuleType:
    """Import the module or the file that ``spec`` (``module:function``, ``file.py:function``) names.

    ``what`` names the function's part ("the metric"). Raises ``InputError``.
    """
    match = SPEC.fullmatch(spec)
    if match is None:
        do = "write package.module:function or path/to/file.py:function"
        raise InputError("no-such-function", f"{what} {spec!r} names no function", do=do)
    if match["file"]:
        return _import_file(Path(match["file"]).expanduser(), spec, what)
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


def _import_file(path: Path, spec: str, what: str) -> ModuleType:
    if not path.is_file():
        raise InputError("no-such-file", f"there is no such file for {what}", where=str(path), do="check the path")
    found = importlib.util.spec_from_file_location(f"_penstock_user_{path.stem}", path)
    assert found is not None and found.loader is not None  # it ends in .py
    made = importlib.util.module_from_spec(found)
    sys.modules[found.name] = made  # dataclasses in the user's file look their module up there
    with explained(f"importing {what} failed", spec):
        found.loader.exec_module(made)
    return made


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
        for value in list(vars(module).values()):
            home = value if isinstance(value, ModuleType) else sys.modules.get(getattr(value, "__module__", None) or "")
            if home is not None and home is not module:
                queue.append(home)
    return found

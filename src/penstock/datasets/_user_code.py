"""Import a user's function by name and run it, so that what goes wrong in it is told with the line of its source."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import penstock
from penstock.errors import InputError

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
def explained(spec: str) -> Iterator[None]:
    """Turn whatever the user's code raises into an ``InputError`` that names the line."""
    try:
        yield
    except (Exception, SystemExit) as error:
        raise InputError(
            "data-function-failed",
            f"the data function failed: {type(error).__name__}: {error}",
            where=_line(error) or spec,
            do="call the function in Python by itself; -v shows the whole traceback",
        ) from error


def _line(error: BaseException) -> str:
    """Name the innermost line that is neither ours nor a library's: "file:line, in function"."""
    if isinstance(error, SyntaxError) and error.filename and not error.filename.startswith("<"):
        return f"{error.filename}:{error.lineno}"
    libraries = (
        str(Path(penstock.__file__).parent),
        sysconfig.get_path("stdlib"),
        sysconfig.get_path("purelib"),
        sysconfig.get_path("platlib"),
    )
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith(("<", *libraries)):
            return f"{frame.filename}:{frame.lineno}, in {frame.name}"
    return ""


def function(spec: str) -> Callable[[], object]:
    """Import the module or the file and return its function."""
    match = SPEC.fullmatch(spec)
    assert match is not None  # claimed before
    if match["file"]:
        module = _import_file(Path(match["file"]).expanduser(), spec)
    else:
        with explained(spec):
            module = importlib.import_module(match["module"])
    found = getattr(module, match["function"], None)
    if not callable(found):
        offered = ", ".join(name for name, value in vars(module).items() if inspect.isfunction(value)) or "none"
        raise InputError(
            "no-such-data",
            f"there is no function {match['function']!r}",
            where=spec,
            do=f"its functions are: {offered}",
        )
    try:
        inspect.signature(found).bind()
    except TypeError as error:
        raise InputError(
            "data-function-arguments",
            f"the data function can't be called without arguments: {error}",
            where=spec,
            do="give its parameters defaults, or wrap it in a function that takes none",
        ) from error
    except ValueError:
        pass  # a function in C may have no signature to read
    return cast("Callable[[], object]", found)


def _import_file(path: Path, spec: str) -> object:
    if not path.is_file():
        raise InputError("no-such-data", "there is no such file", where=str(path), do="check the path given to --data")
    found = importlib.util.spec_from_file_location(f"_penstock_data_{path.stem}", path)
    assert found is not None and found.loader is not None  # it ends in .py
    module = importlib.util.module_from_spec(found)
    sys.modules[found.name] = module  # dataclasses and pickling in the user's file look it up there
    with explained(spec):
        found.loader.exec_module(module)
    return module

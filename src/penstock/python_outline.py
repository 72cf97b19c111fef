"""What a Python file defines, read from its text: nothing of it is run."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from penstock.errors import InputError

# calls and definitions after which a file may have names that don't stand in its text
_MAKES_NAMES = {"globals", "exec", "setattr", "vars", "__getattr__"}
_TORCH_MODULE = {"Module", "nn.Module", "torch.nn.Module"}


@dataclass(frozen=True, slots=True)
class PythonOutline:
    """The names of a file's top level, its classes with their bases, and whether it may have names beside these."""

    text: str
    names: frozenset[str]
    classes: dict[str, tuple[str, ...]]  # in the file's order
    open: bool

    @property
    def modules(self) -> list[str]:
        """The classes that look like modules of PyTorch, in the file's order."""
        found: list[str] = []
        for name, bases in self.classes.items():
            if any(base.split(".")[-1] == "Module" or base in found for base in bases):
                found.append(name)
        return found

    def lacks(self, name: str) -> bool:
        """Whether the file surely has no such name."""
        return not self.open and name not in self.names

    def has_no_example(self, name: str) -> bool:
        """Whether neither the file nor this class of it can have ``example_inputs``."""
        own = self.classes.get(name)
        plain = own is not None and {*own} <= _TORCH_MODULE
        return plain and not self.open and "example_inputs" not in self.text


def read(path: Path) -> PythonOutline:
    """Read a file. Raises ``InputError`` where it is absent or no Python."""
    try:
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
    except FileNotFoundError as error:
        raise InputError("no-such-file", "there is no such file", where=str(path), do="check the path") from error
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InputError("not-python", f"the file can't be read as Python: {error}", where=str(path)) from error
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} | {*_defined(tree.body)}
    stars = any(isinstance(node, ast.ImportFrom) and node.names[0].name == "*" for node in ast.walk(tree))
    classes = {
        node.name: tuple(ast.unparse(base) for base in node.bases)
        for node in tree.body
        if isinstance(node, ast.ClassDef)
    }
    return PythonOutline(text, frozenset(_defined(tree.body)), classes, stars or not used.isdisjoint(_MAKES_NAMES))


def _defined(body: list[ast.stmt]) -> Iterator[str]:
    """Yield what statements bind in the scope that they stand in, those inside branches, loops and blocks too."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
            continue
        for inner in ast.walk(node):
            if isinstance(inner, ast.Import | ast.ImportFrom):
                yield from ((alias.asname or alias.name).partition(".")[0] for alias in inner.names)
            elif isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                yield inner.name
            elif isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store):
                yield inner.id
            elif isinstance(inner, ast.MatchAs | ast.MatchStar | ast.ExceptHandler) and inner.name:
                yield inner.name

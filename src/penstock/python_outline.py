"""What a Python file defines, read from its text: nothing of it is run."""

from __future__ import annotations

import ast
import re
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from penstock.errors import InputError

# with what stands in a text, a file may have names that don't stand in it
_MAKES_NAMES = re.compile(
    r"\b(globals|locals|exec|eval|setattr|vars|__getattr__|__dict__|modules|global|import_module|__import__)\b"
)
# what may be imported without that a module of it could add something to the file that imports it
_KNOWN = {*sys.stdlib_module_names, "torch", "torchvision", "torchaudio", "numpy", "scipy", "einops"}
_TORCH_MODULE = {"Module", "nn.Module", "torch.nn.Module"}


@dataclass(frozen=True, slots=True)
class PythonOutline:
    """The names of a file's top level, its classes with their bases, and whether it may have names beside these."""

    text: str
    names: frozenset[str]
    classes: dict[str, tuple[str, ...]]  # in the file's order
    decorated: frozenset[str]  # those of them that a decorator may have changed
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
        plain = own is not None and {*own} <= _TORCH_MODULE and name not in self.decorated
        shadowed = not {"torch", "nn", "Module"}.isdisjoint(self.classes)
        return plain and not shadowed and not self.open and "example_inputs" not in self.text


def read(path: Path) -> PythonOutline:
    """Read a file. Raises ``InputError`` where it is absent or no Python."""
    try:
        with tokenize.open(path) as file:  # in the encoding that the file declares
            text = file.read()
        tree = ast.parse(text)
    except FileNotFoundError as error:
        raise InputError("no-such-file", "there is no such file", where=str(path), do="check the path") from error
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
        what = f"the file can't be read as Python: {error}"
        raise InputError("not-python", what, where=str(path), do="check that it runs: python FILE") from error
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    bases = {node.name: tuple(ast.unparse(base) for base in node.bases) for node in classes}
    decorated = frozenset(node.name for node in classes if node.decorator_list or node.keywords)
    free = _MAKES_NAMES.search(text) is not None or not {*_imported(tree)} <= _KNOWN
    return PythonOutline(text, frozenset(_defined(tree.body)), bases, decorated, free)


def _imported(tree: ast.Module) -> Iterator[str]:
    """Yield the top-level packages that a file imports from, "" for its own, "*" for all names of one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "*" if node.names[0].name == "*" else "" if node.level else (node.module or "").partition(".")[0]


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

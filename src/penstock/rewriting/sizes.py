"""Sizes that are known in part: whole numbers, and products of a number and named dimensions.

A *size* is an ``int``, or a :class:`Product` such as 12·batch, or ``None`` where nothing is known. Arithmetic on them
is exact: what isn't of this form comes out as ``None``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Product:
    """``factor`` times the named dimensions, sorted; at least one name, each of them 0 or more."""

    factor: int
    names: tuple[str, ...]

    def __str__(self) -> str:
        """Write it as a dimension's name, which says the same wherever it stands."""
        return "*".join(self.names if self.factor == 1 else (str(self.factor), *self.names))


Size = int | Product | None
LARGEST = 1 << 63  # what no tensor has; beyond it nothing is known
MOST_NAMES = 16  # of one product: a graph of a few nodes can ask for 2^1000 of them


def named(text: str) -> Product:
    """Read back what :meth:`Product.__str__` wrote; any other text is one name."""
    parts = text.split("*")
    if len(parts) > 1 and all(parts) and not any(c in text for c in " +-/(),"):
        factor, names = 1, []
        for part in parts:
            if part.isdigit():
                factor *= int(part)
            else:
                names.append(part)
        if names:
            return Product(factor, tuple(sorted(names)))
    return Product(1, (text,))


def times(a: Size, b: Size) -> Size:
    """Multiply."""
    if a == 0 or b == 0:
        return 0
    if a is None or b is None:
        return None
    if isinstance(a, int) and isinstance(b, int):
        return a * b if abs(a * b) < LARGEST else None
    left = a if isinstance(a, Product) else Product(a, ())
    right = b if isinstance(b, Product) else Product(b, ())
    if len(left.names) + len(right.names) > MOST_NAMES or abs(left.factor * right.factor) >= LARGEST:
        return None
    return Product(left.factor * right.factor, tuple(sorted(left.names + right.names)))


def product(sizes: Iterable[Size]) -> Size:
    """Multiply all of them."""
    result: Size = 1
    for size in sizes:
        result = times(result, size)
    return result


def divided(a: Size, b: Size) -> Size:
    """Divide where it comes out even whatever the names stand for (but for 0), else ``None``."""
    if a is None or b is None or b == 0:
        return None
    left = a if isinstance(a, Product) else Product(a, ())
    right = b if isinstance(b, Product) else Product(b, ())
    if left.factor % right.factor:
        return None
    names = list(left.names)
    for name in right.names:
        if name not in names:
            return None
        names.remove(name)
    factor = left.factor // right.factor
    return Product(factor, tuple(names)) if names else factor


def plus(a: Size, b: Size, sign: int = 1) -> Size:
    """Add, or subtract with ``sign`` −1, where the result is a size of this form."""
    if a is None or b is None:
        return None
    if isinstance(a, int) and isinstance(b, int):
        return a + sign * b if abs(a + sign * b) < LARGEST else None
    if b == 0:
        return a
    left = a if isinstance(a, Product) else Product(a, ())
    right = b if isinstance(b, Product) else Product(b, ())
    if left.names != right.names:
        return b if left.factor == 0 and sign == 1 else None
    factor = left.factor + sign * right.factor
    return 0 if factor == 0 else Product(factor, left.names)


def equal(a: Size, b: Size) -> bool:
    """Whether both are known to be the same."""
    return a is not None and a == b


def same(a: Sequence[Size] | None, b: Sequence[Size] | None) -> bool:
    """Whether two shapes are known to be the same."""
    return a is not None and b is not None and len(a) == len(b) and all(map(equal, a, b))


def broadcast(shapes: Sequence[Sequence[Size] | None]) -> tuple[Size, ...] | None:
    """Return the shape that NumPy's rules give, ``None`` where a rank isn't known."""
    if any(shape is None for shape in shapes):
        return None
    known = [shape for shape in shapes if shape is not None]
    rank = max((len(shape) for shape in known), default=0)
    result: list[Size] = []
    for axis in range(-rank, 0):
        column = [shape[axis] for shape in known if len(shape) >= -axis]
        large = [size for size in column if isinstance(size, int) and size != 1]
        if large:
            result.append(large[0])
            continue
        others = [size for size in column if size != 1]
        result.append(1 if not others else others[0] if all(equal(others[0], size) for size in others) else None)
    return tuple(result)

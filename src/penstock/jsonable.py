"""Frozen dataclasses to JSON and back, strictly: an unknown or a missing key is an error."""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeAlias, TypeVar, cast

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
T = TypeVar("T")


def to_json(value: object) -> Json:
    """Turn dataclasses, mappings, sequences and scalars (numpy's too) into plain JSON values.

    Floats that JSON can't hold (NaN, infinities) become the strings "nan", "inf" and "-inf".
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return [to_json(item) for item in sorted(value)]
    if value is None or isinstance(value, (bool, str, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if hasattr(value, "tolist"):  # numpy scalars and arrays, without importing numpy
        return to_json(value.tolist())
    return str(value)


def dumps(value: object, *, indent: int | None = None) -> str:
    """Serialise to JSON text with sorted keys, so that equal values give equal bytes."""
    # ASCII only: a file name that is no UTF-8 would otherwise make a text that can't be encoded
    return json.dumps(to_json(value), sort_keys=True, indent=indent, ensure_ascii=True, allow_nan=False)


def from_json(cls: type[T], data: Json) -> T:
    """Build the dataclass ``cls`` from what :func:`to_json` made of it. Raises ``ValueError`` on a wrong shape."""
    return cast(T, _build(cls, data))


def _build(kind: Any, data: Json) -> object:
    if kind is Any or kind is object:
        return data
    if dataclasses.is_dataclass(kind):
        return _build_dataclass(cast(type, kind), data)
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _build_union(args, data)
    if origin is typing.Literal:
        if data not in args:
            raise ValueError(f"{data!r} is none of {', '.join(map(repr, args))}")
        return data
    if origin is tuple:
        if not isinstance(data, list):
            raise ValueError(f"expected a list, got {data!r}")
        kinds = [args[0]] * len(data) if len(args) == 2 and args[1] is Ellipsis else list(args)
        return tuple(_build(k, item) for k, item in zip(kinds, data, strict=True))
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(data, dict):
            raise ValueError(f"expected an object, got {data!r}")
        return {key: _build(args[1], item) for key, item in data.items()}
    if kind is float and isinstance(data, (int, str)) and not isinstance(data, bool):
        return float(data)
    if isinstance(kind, type) and isinstance(data, kind) and not (kind is int and isinstance(data, bool)):
        return data
    if typing.get_origin(kind) is None and not isinstance(kind, type):  # the alias Json
        return data
    raise ValueError(f"expected {getattr(kind, '__name__', kind)}, got {data!r}")


def _build_union(args: tuple[Any, ...], data: Json) -> object:
    if data is None and type(None) in args:
        return None
    if any(typing.get_origin(kind) in (list, dict) for kind in args):  # the alias Json: anything goes
        return data
    for kind in args:
        if kind is type(None):
            continue
        try:
            return _build(kind, data)
        except ValueError:
            continue
    raise ValueError(f"{data!r} fits none of {args}")


def _build_dataclass(cls: type, data: Json) -> object:
    if not isinstance(data, dict):
        raise ValueError(f"expected an object for {cls.__name__}, got {data!r}")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    if unknown := sorted(set(data) - set(fields)):
        raise ValueError(f"{cls.__name__} has no field {unknown[0]!r}")
    required = {
        n for n, f in fields.items() if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    }
    if missing := sorted(required - set(data)):
        raise ValueError(f"{cls.__name__} lacks the field {missing[0]!r}")
    return cls(**{name: _build(hints[name], item) for name, item in data.items()})

"""Tell of an operator what changed in it from version to version, and which of it can be converted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from penstock.opsets import Direction, adapter, bodies, history

if TYPE_CHECKING:
    from penstock.opsets.history import Schema


@dataclass(frozen=True, slots=True)
class Version:
    """One version of an operator; ``up`` and ``down`` say how nodes get to it and back (empty for the first)."""

    since: int
    changes: tuple[str, ...]
    up: str
    down: str


@dataclass(frozen=True, slots=True)
class Operator:
    """An operator, its versions the oldest first; ``doc`` is the standard's first sentence on the newest."""

    domain: str
    name: str
    doc: str
    deprecated: bool
    versions: tuple[Version, ...]


def operator(domain: str, name: str) -> Operator:
    """Tell of an operator that onnx knows."""
    known = history.versions(name, domain)
    told, before = [], None
    for one in known:
        changes = tuple(_born(one) if before is None else _changes(before, one))
        ways = [_way(way, before, one) for way in ("up", "down")] if domain == "" else ["", ""]
        told.append(Version(one.since_version, changes, ways[0], ways[1]))
        before = one
    doc = " ".join((known[-1].doc or "").split())
    return Operator(domain, name, doc.partition(". ")[0][:300], known[-1].deprecated, tuple(told))


def names() -> dict[str, tuple[str, str]]:
    """Return what a user may write for an operator, in lower case, with the domain and the name that it stands for."""
    found: dict[str, tuple[str, str]] = {}
    for domain, name in history.operators():
        found.setdefault(name.lower(), (domain, name))
        found[f"{domain or 'ai.onnx'}::{name}".lower()] = (domain, name)
    return found


# -- what changed ------------------------------------------------------------------------------------------------------


def _born(one: Schema) -> Iterator[str]:
    for title, side in (("inputs", one.inputs), ("outputs", one.outputs)):
        if side:
            yield f"{title}: " + ", ".join(p.name + (" (optional)" if history.optional(p) else "") for p in side)
    if one.attributes:
        yield "attributes: " + ", ".join(_attribute(one, name) for name in sorted(one.attributes))
    if bodies.has(one):
        yield "has a function body"


def _attribute(one: Schema, name: str) -> str:
    default = history.default(one, name)
    return f"{name} (required)" if one.attributes[name].required else name if default is None else f"{name}={default}"


def _changes(a: Schema, b: Schema) -> Iterator[str]:
    if b.deprecated != a.deprecated:
        yield "deprecated" if b.deprecated else "no longer deprecated"
    if b.deprecated:
        return
    count = 0
    for title, old, new in (("input", a.inputs, b.inputs), ("output", a.outputs, b.outputs)):
        before, after = {p.name: p for p in old}, {p.name: p for p in new}
        for name in before.keys() - after.keys():
            yield f"{title} {name} is gone"
        for name, one in after.items():
            if name not in before:
                yield f"new {title} {name}" + (" (optional)" if history.optional(one) else "")
            elif history.optional(one) != history.optional(before[name]):
                yield f"{title} {name} is {'optional' if history.optional(one) else 'required'}"
            if name in before:
                yield from _types(f"{title} {name}", set(before[name].types), set(one.types))
            count += 1
    for name in sorted(a.attributes.keys() | b.attributes.keys()):
        if name not in b.attributes:
            yield f"attribute {name} is gone"
        elif name not in a.attributes:
            yield f"new attribute {_attribute(b, name)}"
        elif _attribute(a, name) != _attribute(b, name):
            yield f"attribute {_attribute(a, name)} became {_attribute(b, name)}"
        elif a.attributes[name].type != b.attributes[name].type:
            yield f"attribute {name} is of another kind"
    if bodies.has(a) != bodies.has(b):
        yield "has a function body" if bodies.has(b) else "its function body is gone"
    if a.doc != b.doc:
        yield "its description is worded anew"


def _types(what: str, old: set[str], new: set[str]) -> Iterator[str]:
    for word, some in (("takes", new - old), ("no longer takes", old - new)):
        if some:
            plain = sorted(one.removeprefix("tensor(").removesuffix(")") if one.startswith("tensor(") else one
                           for one in some)  # fmt: skip
            shown = ", ".join(plain[:8]) + (f" and {len(plain) - 8} more" if len(plain) > 8 else "")
            yield f"{what} {word} {shown}"


# -- what can be converted ---------------------------------------------------------------------------------------------


def _way(way: Direction, before: Schema | None, one: Schema) -> str:
    """Say how nodes are converted across this version's opset; empty where there is nothing to convert."""
    opset: int = one.since_version
    if opset <= history.LOWEST and way == "down":
        return f"no: nothing is converted below opset {history.LOWEST}" if before is not None else ""
    chosen = adapter(way, opset, one.name)
    if chosen is not None:
        return " ".join((chosen.__doc__ or "").replace("`", "").replace("*", "").split())
    if before is None:
        if way == "up":
            return ""
        return "by its function body" if bodies.has(one) else "no: nothing before says the same"
    if one.deprecated:
        return "no: it is deprecated, and its nodes have no successor"
    if opset > history.REVIEWED and not history.same_form(before, one):
        return "no: it is newer than this Penstock"
    if history.same_form(before, one):
        lost = _narrower(before, one) if way == "up" else _narrower(one, before)
        return "as it is" + (", where its types are taken" if lost else "")
    if way == "up":
        return "as it is, with the defaults that it had"
    rest = "; else by its function body" if bodies.has(one) else ""
    return "as it is, where nothing new is used" + rest


def _narrower(a: Any, b: Any) -> bool:
    """Whether a type of ``a``'s inputs isn't taken by ``b``."""
    return any(not set(p.types) <= set(q.types) for p, q in zip(a.inputs, b.inputs, strict=False))

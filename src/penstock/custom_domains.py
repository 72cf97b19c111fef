"""Operators of domains that no runtime knows: which ones a user lets through, and the libraries that implement them.

A model never brings a library with it: one is loaded only where the user wrote its path, with ``--allow-domain`` or
under ``[check] allow_domain``. Whoever names one runs its code.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from penstock import graph, precheck, store
from penstock.analysis.structure import KNOWN_DOMAINS
from penstock.errors import InputError, UsageError
from penstock.jsonable import Json

if TYPE_CHECKING:
    import onnx_ir as ir

_DOMAIN = re.compile(r"[A-Za-z0-9_][\w.\-]*")


@dataclass(frozen=True, slots=True)
class Allowed:
    """A domain that the user lets through; without a library nothing can run it."""

    domain: str
    library: Path | None
    sha256: str


@dataclass(frozen=True, slots=True)
class DomainUse:
    """The custom operators of a model in one domain, and the library that was named for it; empty where none was."""

    domain: str
    operators: tuple[str, ...]
    library: str  # the file's name
    sha256: str


def allowed() -> dict[str, Allowed]:
    """Return what the settings in force let through, by domain. Raises ``UsageError`` or ``InputError``."""
    found: dict[str, Allowed] = {}
    for text in precheck.settings().allow_domain:
        domain, equals, name = (part.strip() for part in text.partition("="))
        if not _DOMAIN.fullmatch(domain) or (equals and not name):
            do = "write it as com.acme=path/to/libacme_ops.so, or com.acme alone"
            raise UsageError("bad-domain", f"{text!r} names no domain, or no library", where="--allow-domain", do=do)
        if domain in KNOWN_DOMAINS:
            do = "leave it out"
            raise UsageError("bad-domain", f"{domain!r} is no custom domain", where="--allow-domain", do=do)
        if domain in found:
            raise UsageError("bad-domain", f"{domain!r} is given twice", where="--allow-domain", do="leave one out")
        path = Path(name).expanduser() if name else None
        if path is not None and not path.is_file():
            what = f"there is no such library for the domain {domain!r}"
            raise InputError("no-such-file", what, where=str(path), do="check the path after the equals sign")
        found[domain] = Allowed(domain, path and path.resolve(), store.file_digest(path) if path else "")
    return found


def key() -> list[list[str]]:
    """Return what the settings let through, for cache keys and lock files: domain, the library's name and digest."""
    return [
        [one.domain, one.library.name if one.library else "", one.sha256]
        for one in sorted(allowed().values(), key=lambda one: one.domain)
    ]


def used(model: ir.Model) -> tuple[DomainUse, ...]:
    """List the custom domains of a model's operators, those in bodies and functions too."""
    known = KNOWN_DOMAINS | {function.domain for function in model.functions.values()}
    found: dict[str, set[str]] = {}
    for node in [*model.graph.all_nodes(), *(n for f in model.functions.values() for n in f.all_nodes())]:
        if node.domain not in known:
            found.setdefault(node.domain, set()).add(node.op_type)
    named = allowed()
    uses = []
    for domain, operators in sorted(found.items()):
        one = named.get(domain)
        library = one.library.name if one is not None and one.library is not None else ""
        uses.append(DomainUse(domain, tuple(sorted(operators)), library, one.sha256 if one else ""))
    return tuple(uses)


def need_allowed(model: ir.Model, where: str) -> tuple[DomainUse, ...]:
    """Return the custom domains of a model. Raises ``InputError`` for one that the user didn't let through."""
    found, named = used(model), allowed()
    for use in found:
        if use.domain not in named:
            shown = ", ".join(use.operators[:5])
            what = f"the model has operators of the custom domain {use.domain!r}, which no runtime knows: {shown}"
            do = (
                f"name the library that implements them, if you trust it: --allow-domain {use.domain}=library.so "
                f"(--allow-domain {use.domain} alone lets it be exported, but not run); or export the model with these "
                "operators decomposed into standard ones, and without a tokenizer, which then runs before the model"
            )
            raise InputError("custom-operators", what, where=where, do=do)
    return found


def need_library(uses: tuple[DomainUse, ...], where: str) -> None:
    """Raise ``InputError`` where nothing can run a model, as no library was named for one of its domains."""
    for use in uses:
        if not use.library:
            what = f"nothing can run the operators of the domain {use.domain!r}: no library is named for it"
            do = f"name it with --allow-domain {use.domain}=library.so; export, optimize and inspect need none"
            raise InputError("no-library", what, where=where, do=do)


def libraries(path: Path) -> tuple[str, ...]:
    """Return the libraries that the user named for the domains of a model file, without repetition."""
    named = allowed()
    if not named:
        return ()
    wanted = [named[use.domain] for use in used(graph.load(path)) if use.domain in named]
    return tuple(dict.fromkeys(str(one.library) for one in wanted if one.library is not None))


def facts(uses: tuple[DomainUse, ...]) -> Mapping[str, Json]:
    """Return what a record says of custom domains."""
    return {
        use.domain: {"operators": [*use.operators], "library": use.library or None, "sha256": use.sha256 or None}
        for use in uses
    }

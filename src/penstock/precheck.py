"""Look at an untrusted model before any library builds something from it. Called by the only loader.

The bytes are walked first, within limits on size, nodes, messages and nesting; only then are they parsed. After that
come declared sizes, external data (:mod:`penstock.analysis.external_data`), names, functions and domains
(:mod:`penstock.analysis.structure`). Nothing of the model is run, and no file outside its folder is opened.
"""

from __future__ import annotations

import contextlib
import itertools
import mmap
import os
import stat
import sys
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from penstock import guard
from penstock.analysis import external_data, outline, structure, tensors, wire
from penstock.analysis.finding import Finding, refusal
from penstock.errors import InputError
from penstock.settings import option

if TYPE_CHECKING:
    import onnx

MAX_MODEL_BYTES = 2 << 30  # protobuf's own limit
MOST_OF_A_KIND = 20
BLOCK_BYTES = 1 << 24  # that are read at once
_POINTER = b"version https://git-lfs"
_NO_MODEL = "check that the file is whole, for example against its published SHA-256, or export it again"
_UNHEARD_OF = "no exporter writes this; don't trust the file"
_RAW = "have its tensors written as raw data (onnx.numpy_helper.from_array), or raise [check] max_integer_bytes"
_TRUST = "raise the limit under [check] in penstock.toml if you trust the model"


@dataclass(frozen=True, slots=True)
class CheckSettings:
    """How much a model file may ask for."""

    max_nodes: int = option(60_000, "most nodes, functions expanded", minimum=1)
    max_body_nodes: int = option(
        30_000, "most nodes in the bodies of If, Loop and Scan; a body counts for two", minimum=1
    )
    max_tensors: int = option(90_000, "most tensors: weights, and what nodes make", minimum=1)
    max_messages: int = option(1_200_000, "most protobuf messages and texts in the file", minimum=1)
    max_numbers: int = option(4_000_000, "most numbers in attributes and shapes", minimum=1)
    max_integer_bytes: int = option(1 << 28, "most bytes of integers that tensors hold one by one", minimum=1)
    max_text_bytes: int = option(120_000_000, "most bytes of texts: notes, vocabularies, names twice", minimum=1)
    max_name_bytes: int = option(10_000, "longest name, in bytes", minimum=1)
    max_depth: int = option(100, "deepest nesting of protobuf messages", minimum=4)
    max_subgraph_depth: int = option(16, "deepest nesting of If, Loop and Scan bodies", minimum=1)
    max_tensor_bytes: int = option(1 << 36, "largest declared tensor, in bytes", minimum=1)
    max_model_bytes: int = option(
        0, "most bytes of all tensors together, where they have to be held; 0: this machine's memory", minimum=0
    )
    allow_domain: tuple[str, ...] = option(
        (), "custom domain to let through, once each; 'com.acme=libacme_ops.so' loads that library"
    )
    session_seconds: float = option(60.0, "longest that the first session of a model may take", minimum=0.1)
    session_memory_bytes: int = option(4 << 30, "most resident memory of the first session", minimum=1 << 20)


@dataclass(frozen=True, slots=True)
class Checked:
    """What the pre-check found in one file; ``figures``: size, nodes, messages, depths, tensors, declared bytes.

    ``external`` are the files of external data, in order of first use, and ``links`` those that are links themselves.
    """

    file: str
    findings: tuple[Finding, ...]
    figures: dict[str, int]
    links: tuple[Path, ...] = ()
    external: tuple[Path, ...] = ()

    @property
    def refused(self) -> tuple[Finding, ...]:
        """The findings for which the model is not opened."""
        return tuple(finding for finding in self.findings if finding.severity == "refused")


_SETTINGS: ContextVar[CheckSettings | None] = ContextVar("check settings", default=None)


@contextlib.contextmanager
def limits(held: CheckSettings) -> Iterator[None]:
    """Let every check inside the block hold to these limits."""
    token = _SETTINGS.set(held)
    try:
        yield
    finally:
        _SETTINGS.reset(token)


def settings() -> CheckSettings:
    """Return the limits in force."""
    return _SETTINGS.get() or CheckSettings()


def check(path: Path, *, weights: bool = True) -> Checked:
    """Look a file through; raise ``InputError`` where it is no sound ONNX model, with the first reason.

    ``weights`` says that its weights will be held in memory, so that more of them than that are a reason too.
    """
    found = examine(path, settings())
    reasons = found.refused or [finding for finding in found.findings if weights and finding.id == "more-than-memory"]
    if reasons:
        raise InputError(reasons[0].id, reasons[0].what, where=reasons[0].where, do=reasons[0].do)
    return found


def examine(path: Path, held: CheckSettings | None = None) -> Checked:
    """Look the whole file through, within the limits ``held`` (default: those in force).

    Raises ``InputError`` only where the file can't be read at all.
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # protobuf ships no types

    held = held or settings()
    figures: dict[str, int] = {}
    with _mapped(path) as data:  # only what the walk looks at comes into memory
        figures["size_bytes"], head = len(data), bytes(data[: len(_POINTER)])
        whole, found = _walk(data, path, held, figures)
    if whole and not found and (missing := external_data.holes(path.resolve())) * 2 > figures["size_bytes"]:
        found = [external_data.hollow(missing, figures["size_bytes"], str(path), path)]
    if found:
        return Checked(str(path), tuple(found), figures)
    model = onnx.ModelProto()
    try:
        if not whole:
            raise DecodeError
        model.ParseFromString(read(path))
    except DecodeError:
        what, do = "this is no ONNX model, or it is cut off", _NO_MODEL
        if head.startswith(_POINTER):
            what, do = "this is a pointer of Git LFS, not the file that it stands for", "fetch that: git lfs pull"
        return Checked(str(path), (refusal("not-onnx", what, str(path), do),), figures)
    if not model.HasField("graph") or not model.opset_import or not (model.graph.node or model.graph.output):
        what = "this is no ONNX model: it has no graph or no opset"
        return Checked(
            str(path), (refusal("not-onnx", what, str(path), "check that the path names an .onnx file"),), figures
        )
    with guard.rare_collection():
        return _look_through(model, path, held, figures)


def _look_through(model: onnx.ModelProto, path: Path, held: CheckSettings, figures: dict[str, int]) -> Checked:
    """Look at what was parsed: tensors and their files, declared sizes, names."""
    outlined = outline.read(model)
    files = external_data.Files(path)
    values = itertools.chain(model.graph.input, model.graph.output, model.graph.value_info)
    findings = itertools.chain(
        tensors.examine(outlined.tensors, outlined.sparse, files, held.max_tensor_bytes, figures),
        tensors.declared(values, path, held.max_tensor_bytes),
        structure.examine(outlined, str(path), held.max_nodes),
    )
    found = _first_of_each(findings)
    room = held.max_model_bytes or memory_bytes()
    if room and figures["declared_bytes"] > room:
        what = f"its tensors claim {figures['declared_bytes']:,} bytes together, there is memory for {room:,}"
        do = "use a machine with more memory, or raise [check] max_model_bytes"
        found.append(Finding("more-than-memory", "warning", what, str(path), do))
    return Checked(str(path), tuple(found), figures, tuple(files.links), files.paths())


def files_beside(path: Path) -> tuple[Path, ...]:
    """Check a model, and list its files of external data. Raises ``InputError``.

    A file in which the word doesn't stand that names them isn't parsed, and one of holes isn't read.
    """
    _plain(path)
    hollow = external_data.holes(path.resolve()) * 2 > path.stat().st_size
    return check(path, weights=False).external if hollow or _holds(path, b"location") else ()


def _holds(path: Path, word: bytes) -> bool:
    """Whether some bytes stand in a file, which is never in memory as a whole: not even mapped."""
    try:
        with path.open("rb") as file:
            tail = b""
            while block := file.read(BLOCK_BYTES):
                if word in tail + block:
                    return True
                tail = block[1 - len(word) :]
    except OSError as error:
        what = f"the file can't be read: {error.strerror}"
        raise InputError("unreadable-file", what, where=str(path), do="check its permissions") from error
    return False


def memory_bytes() -> int:
    """Return how much memory this machine, or the group that the process was put in, has; 0 where it isn't told."""
    found = 0
    with contextlib.suppress(OSError, ValueError):
        found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            found = min(found or sys.maxsize, int(Path(limit).read_text(encoding="ascii")))
    return found


def _first_of_each(findings: Iterable[Finding]) -> list[Finding]:
    """Keep the first findings of a kind, and count the rest."""
    kept: list[Finding] = []
    count: dict[tuple[str, str], int] = {}
    for finding in findings:
        key = (finding.id, finding.severity)
        count[key] = count.get(key, 0) + 1
        if count[key] <= MOST_OF_A_KIND:
            kept.append(finding)
    for (id, severity), number in count.items():
        if number > MOST_OF_A_KIND:
            left = number - MOST_OF_A_KIND
            kept.append(Finding(id, "refused" if severity == "refused" else "note", f"{left:,} more of this kind", ""))
    return kept


def _walk(
    data: mmap.mmap | bytes, path: Path, held: CheckSettings, figures: dict[str, int]
) -> tuple[bool, list[Finding]]:
    """Tell whether the bytes are protobuf to their end, and hold what they ask for against the limits.

    Nothing has been built from them so far.
    """
    found = wire.extent(
        data,
        wire.Limits(
            nodes=held.max_nodes, body_nodes=held.max_body_nodes, tensors=held.max_tensors,
            messages=held.max_messages, numbers=held.max_numbers, integer_bytes=held.max_integer_bytes,
            text_bytes=held.max_text_bytes, name_bytes=held.max_name_bytes, depth=held.max_depth,
        ),
    )  # fmt: skip
    figures |= {"nodes": found.nodes, "messages": found.messages, "depth": found.depth}
    figures["subgraph_depth"] = found.subgraph_depth
    told = []

    def refuse(id: str, what: str, do: str = _TRUST) -> None:
        told.append(refusal(id, what, str(path), do))

    for id, amount, limit, what in (
        ("too-many-nodes", found.nodes, held.max_nodes, "nodes"),
        (
            "too-many-nodes",
            found.body_nodes,
            held.max_body_nodes,
            "nodes in bodies, each of which counts for two",
        ),
        ("too-many-tensors", found.tensors, held.max_tensors, "tensors, results of nodes counted"),
        ("too-many-messages", found.messages, held.max_messages, "protobuf messages and texts"),
        ("too-many-numbers", found.numbers, held.max_numbers, "numbers in attributes and shapes"),
        ("too-much-text", found.text_bytes, held.max_text_bytes, "bytes of text"),
    ):
        if amount > limit:
            refuse(id, f"it has more than {limit:,} {what}")
    if found.name_bytes > held.max_name_bytes:
        refuse("name-too-long", f"it has a name of {found.name_bytes:,} bytes, {held.max_name_bytes:,} are allowed")
    if found.functions > wire.MOST_FUNCTIONS:
        refuse("too-many-functions", f"it has more than {wire.MOST_FUNCTIONS:,} functions", _UNHEARD_OF)
    if found.inside:
        most, each = wire.MOST_INSIDE, wire.COSTS["AttributeProto"]
        what = (
            f"one {wire.HOLDERS[found.inside]} has more than {most:,} names, or {most // each:,} attributes or opsets"
        )
        refuse("too-many-inside", what, _UNHEARD_OF)
    if found.integer_bytes > held.max_integer_bytes:
        what = f"its tensors hold integers one by one, of more than {held.max_integer_bytes:,} bytes in memory"
        refuse("too-many-numbers", what, _RAW)
    if found.depth > held.max_depth:
        refuse("too-deep", f"its protobuf messages nest deeper than {held.max_depth}", _UNHEARD_OF)
    elif found.subgraph_depth > held.max_subgraph_depth:
        deep, limit = found.subgraph_depth, held.max_subgraph_depth
        refuse("too-deep", f"its bodies (If, Loop, Scan) nest {deep} deep, {limit} are allowed")
    return found.whole, told


@contextlib.contextmanager
def _mapped(path: Path) -> Iterator[mmap.mmap | bytes]:
    """Map a model's main file into memory, or read it where the file system can't map it."""
    _plain(path)
    try:
        with path.open("rb") as file:
            view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError):
        yield read(path)
        return
    with view:
        yield view


def read(path: Path) -> bytes:
    """Read a model's main file within the size limit."""
    _plain(path)
    try:
        return path.read_bytes()
    except OSError as error:
        what = f"the file can't be read: {error.strerror}"
        raise InputError("unreadable-file", what, where=str(path), do="check its permissions") from error


def _plain(path: Path) -> None:
    """Raise ``InputError`` unless the path leads to a plain file within the size limit."""
    try:
        info = path.stat()
        if stat.S_ISDIR(info.st_mode):
            raise InputError("not-a-file", "this is a folder", where=str(path), do="name the .onnx file inside it")
        if not stat.S_ISREG(info.st_mode):
            raise InputError("not-a-file", "this is not a plain file", where=str(path), do="name an .onnx file")
        if info.st_size == 0:
            raise InputError("empty-model", "the file is empty", where=str(path), do="export it again")
        if info.st_size > MAX_MODEL_BYTES:
            do = "save the weights as external data beside it"
            raise InputError("model-too-large", f"the file has {info.st_size} bytes", where=str(path), do=do)
    except FileNotFoundError as error:
        raise InputError("no-such-file", "there is no such file", where=str(path), do="check the path") from error
    except OSError as error:
        what = f"the file can't be read: {error.strerror}"
        raise InputError("unreadable-file", what, where=str(path), do="check its permissions") from error
    except ValueError as error:  # a path with a zero byte
        raise InputError("no-such-file", "there is no such file", where=repr(str(path)), do="check the path") from error

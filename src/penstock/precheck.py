"""Look at an untrusted model before any library builds something from it. Called by the only loader.

The bytes are walked first, within limits on size, nodes, messages and nesting; only then are they parsed. After that
come declared sizes, external data (:mod:`penstock.analysis.external_data`), names, functions and domains
(:mod:`penstock.analysis.structure`). Nothing of the model is run, and no file outside its folder is opened.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import stat
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from penstock.analysis import external_data, structure, wire
from penstock.analysis.finding import Finding, refusal, shown
from penstock.errors import InputError
from penstock.settings import option

if TYPE_CHECKING:
    import onnx

MAX_MODEL_BYTES = 2 << 30  # protobuf's own limit
MAX_RANK = 64
MOST_OF_A_KIND = 20
_NO_MODEL = "check that the file is whole, for example against its published SHA-256, or export it again"
_TRUST = "raise the limit under [check] in penstock.toml if you trust the model"


@dataclass(frozen=True, slots=True)
class CheckSettings:
    """How much a model file may ask for."""

    max_nodes: int = option(200_000, "most nodes, functions expanded", minimum=1)
    max_messages: int = option(2_000_000, "most protobuf messages in the file", minimum=1)
    max_depth: int = option(100, "deepest nesting of protobuf messages", minimum=4)
    max_subgraph_depth: int = option(16, "deepest nesting of If, Loop and Scan bodies", minimum=1)
    max_tensor_bytes: int = option(1 << 36, "largest declared tensor, in bytes", minimum=1)
    allow_domain: tuple[str, ...] = option(
        (), "custom domain to let through, once each; 'com.acme=libacme_ops.so' loads that library"
    )
    session_seconds: float = option(60.0, "longest that the first session of a model may take", minimum=0.1)
    session_memory_bytes: int = option(4 << 30, "most resident memory of the first session", minimum=1 << 20)


@dataclass(frozen=True, slots=True)
class Checked:
    """What the pre-check found in one file; ``figures``: size, nodes, messages, depths, tensors, declared bytes."""

    file: str
    findings: tuple[Finding, ...]
    figures: dict[str, int]

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


def check(path: Path) -> None:
    """Raise ``InputError`` for a file that is no sound ONNX model, with the first reason."""
    if refused := examine(path, settings()).refused:
        first = refused[0]
        raise InputError(first.id, first.what, where=first.where, do=first.do)


def examine(path: Path, held: CheckSettings | None = None) -> Checked:
    """Look the whole file through, within the limits ``held`` (default: those in force).

    Raises ``InputError`` only where the file can't be read at all.
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # protobuf ships no types

    held = held or settings()
    figures: dict[str, int] = {}
    with _mapped(path) as data:  # only what the walk looks at comes into memory
        figures["size_bytes"] = len(data)
        whole, found = _walk(data, path, held, figures)
    if found:
        return Checked(str(path), tuple(found), figures)
    model = onnx.ModelProto()
    try:
        if not whole:
            raise DecodeError
        model.ParseFromString(read(path))
    except DecodeError:
        what = "this is no ONNX model, or it is cut off"
        return Checked(str(path), (refusal("not-onnx", what, str(path), _NO_MODEL),), figures)
    if not model.HasField("graph") or not model.opset_import or not (model.graph.node or model.graph.output):
        what = "this is no ONNX model: it has no graph or no opset"
        return Checked(
            str(path), (refusal("not-onnx", what, str(path), "check that the path names an .onnx file"),), figures
        )
    findings = [*_tensors(model, path, held, figures), *_declared(model, path, held)]
    findings += structure.examine(model, str(path), held.max_nodes)
    return Checked(str(path), tuple(_first_of_each(findings)), figures)


def _first_of_each(findings: list[Finding]) -> Iterator[Finding]:
    """Keep the first findings of a kind, and count the rest."""
    count: dict[tuple[str, str], int] = {}
    for finding in findings:
        key = (finding.id, finding.severity)
        count[key] = count.get(key, 0) + 1
        if count[key] <= MOST_OF_A_KIND:
            yield finding
    for (id, severity), number in count.items():
        if number > MOST_OF_A_KIND:
            left = number - MOST_OF_A_KIND
            yield Finding(id, "refused" if severity == "refused" else "note", f"{left:,} more of this kind", "")


def _walk(
    data: mmap.mmap | bytes, path: Path, settings: CheckSettings, figures: dict[str, int]
) -> tuple[bool, list[Finding]]:
    """Tell whether the bytes are protobuf to their end, and hold what they ask for against the limits.

    Nothing has been built from them so far.
    """
    found = wire.extent(
        data, max_nodes=settings.max_nodes, max_messages=settings.max_messages, max_depth=settings.max_depth
    )
    figures |= {"nodes": found.nodes, "messages": found.messages, "depth": found.depth}
    figures["subgraph_depth"] = found.subgraph_depth
    told = []
    if found.nodes > settings.max_nodes:
        what = f"it has more than {settings.max_nodes:,} nodes"
        told.append(refusal("too-many-nodes", what, str(path), _TRUST))
    if found.messages > settings.max_messages:
        what = f"it has more than {settings.max_messages:,} protobuf messages"
        told.append(refusal("too-many-messages", what, str(path), _TRUST))
    if found.depth > settings.max_depth:
        what = f"its protobuf messages nest deeper than {settings.max_depth}"
        told.append(refusal("too-deep", what, str(path), "no exporter writes this; don't trust the file"))
    elif found.subgraph_depth > settings.max_subgraph_depth:
        what = (
            f"its bodies (If, Loop, Scan) nest {found.subgraph_depth} deep, {settings.max_subgraph_depth} are allowed"
        )
        told.append(refusal("too-deep", what, str(path), _TRUST))
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


def external_files(path: Path) -> list[Path]:
    """List the files of external data that a checked model refers to, each once, in order of first use."""
    import onnx

    model = onnx.ModelProto()
    model.ParseFromString(read(path))
    found: dict[Path, None] = {}
    for tensor in _all_tensors(model):
        location = next((entry.value for entry in tensor.external_data if entry.key == "location"), None)
        if location is not None:
            found[path.parent / location] = None
    return list(found)


def linked_files(path: Path) -> list[tuple[Path, Path]]:
    """List the external data that are links themselves: the link, and where a symbolic one leads (itself if hard)."""
    found = []
    for file in external_files(path):
        parts = file.relative_to(path.parent).parts
        inside = ".." not in parts and external_data.linked(path.parent, parts[:-1] or ("",)) is None
        if inside and external_data.linked(path.parent, parts) is not None:
            found.append((file, file.resolve()))
    return found


def _tensors(model: onnx.ModelProto, path: Path, settings: CheckSettings, figures: dict[str, int]) -> Iterator[Finding]:
    """Yield what is wrong with tensors: where their data lies, how large they claim to be, whether it is there."""
    tensors = _all_tensors(model)
    figures |= {"tensors": len(tensors), "declared_bytes": 0}
    for tensor in tensors:
        where = f"{path}, tensor {shown(tensor.name)}"
        if len(tensor.dims) > MAX_RANK:
            what = f"it has {len(tensor.dims)} dimensions, {MAX_RANK} are allowed"
            yield refusal("too-many-dims", what, where, "export the model again")
            continue
        needed = external_data.bytes_of(tensor)
        figures["declared_bytes"] += needed or 0
        if needed is not None and needed > settings.max_tensor_bytes:
            what = f"it claims {needed:,} bytes, {settings.max_tensor_bytes:,} are allowed"
            yield refusal("tensor-too-large", what, where, _TRUST)
        elif tensor.data_location == tensor.EXTERNAL or tensor.external_data:
            yield from external_data.examine(tensor, path)
        elif problem := _misfit(tensor, needed):
            yield refusal("bad-tensor", problem, where, "the file is damaged: export the model again")
    for sparse in _all_sparse(model):
        dense = math.prod(max(dim, 0) for dim in sparse.dims) * 8
        if dense > settings.max_tensor_bytes or any(dim < 0 for dim in sparse.dims):
            what = f"as a dense tensor it claims {dense:,} bytes, {settings.max_tensor_bytes:,} are allowed"
            where = f"{path}, sparse tensor {shown(sparse.values.name)}"
            yield refusal("tensor-too-large", what, where, _TRUST)


def _misfit(tensor: onnx.TensorProto, needed: int | None) -> str:
    """Tell how the data inside a tensor doesn't fit its shape and type; empty where it does."""
    if any(dim < 0 for dim in tensor.dims):
        return f"it has a negative dimension: {[*tensor.dims][:8]}"
    count = math.prod(tensor.dims)
    if tensor.data_type == tensor.STRING:
        return "" if len(tensor.string_data) == count else f"it holds {len(tensor.string_data)} texts, not {count}"
    if needed is None:
        return f"its type {tensor.data_type} is not known"
    if tensor.HasField("raw_data"):
        held = len(tensor.raw_data)
        return "" if held == needed else f"it holds {held} bytes, its shape and type need {needed}"
    lengths = {
        len(values)
        for values in (
            tensor.float_data, tensor.int32_data, tensor.int64_data, tensor.double_data, tensor.uint64_data
        )
        if len(values)
    }  # fmt: skip
    allowed = {count, needed, 2 * count}  # packed types have a value a byte, complex ones two values each
    if (lengths or {0}) <= allowed:
        return ""
    return f"it holds {max(lengths, default=0)} values, its shape needs {count}"


def _declared(model: onnx.ModelProto, path: Path, settings: CheckSettings) -> Iterator[Finding]:
    """Yield inputs and outputs that claim to be larger than is allowed."""
    for value in [*model.graph.input, *model.graph.output, *model.graph.value_info]:
        shape = value.type.tensor_type.shape.dim if value.type.HasField("tensor_type") else []
        where = f"{path}, value {shown(value.name)}"
        if len(shape) > MAX_RANK:
            what = f"it has {len(shape)} dimensions, {MAX_RANK} are allowed"
            yield refusal("too-many-dims", what, where, "export the model again")
        elif math.prod(dim.dim_value for dim in shape if dim.dim_value > 0) > settings.max_tensor_bytes:
            what = f"it is declared with more than {settings.max_tensor_bytes:,} elements"
            yield refusal("tensor-too-large", what, where, _TRUST)


def _all_tensors(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    """List every tensor wherever the format allows one: graphs, subgraphs, function bodies, sparse ones too."""
    found = _in_graph(model.graph)
    for function in model.functions:
        found.extend(_in_nodes(function.node))
        found.extend(_in_attributes(function.attribute_proto))
    for training in model.training_info:
        found.extend([*_in_graph(training.initialization), *_in_graph(training.algorithm)])
    return found


def _in_graph(graph: onnx.GraphProto) -> list[onnx.TensorProto]:
    found = [*graph.initializer, *_in_nodes(graph.node)]
    for sparse in graph.sparse_initializer:
        found.extend([sparse.values, sparse.indices])
    return found


def _in_nodes(nodes: Iterable[onnx.NodeProto]) -> list[onnx.TensorProto]:
    return [tensor for node in nodes for tensor in _in_attributes(node.attribute)]


def _in_attributes(attributes: Iterable[onnx.AttributeProto]) -> list[onnx.TensorProto]:
    found: list[onnx.TensorProto] = []
    for attribute in attributes:
        found.extend([attribute.t] if attribute.HasField("t") else [])
        found.extend(attribute.tensors)
        sparse = [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []
        for tensor in [*sparse, *attribute.sparse_tensors]:
            found.extend([tensor.values, tensor.indices])
        for inner in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
            found.extend(_in_graph(inner))
    return found


def _all_sparse(model: onnx.ModelProto) -> Iterator[onnx.SparseTensorProto]:
    """Yield the sparse tensors of the main graph and of attributes anywhere."""
    yield from model.graph.sparse_initializer
    for nodes in [model.graph.node, *(function.node for function in model.functions)]:
        for node in structure.all_nodes(nodes):
            for attribute in node.attribute:
                yield from [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []
                yield from attribute.sparse_tensors
                for body in [attribute.g, *attribute.graphs]:
                    yield from body.sparse_initializer

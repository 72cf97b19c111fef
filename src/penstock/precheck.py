"""Look at an untrusted model before any library builds something from it. Called by the only loader.

What is refused here: a missing or empty file, a file that is no protobuf of a model or is cut off, one over the size
limit, and external data that isn't a plain file inside the model's own folder with the length it claims.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from penstock.errors import InputError

if TYPE_CHECKING:
    import onnx

MAX_MODEL_BYTES = 2 << 30  # protobuf's own limit
_KEYS = {"location", "offset", "length", "checksum", "basepath"}


def check(path: Path) -> None:
    """Raise ``InputError`` for a file that is no sound ONNX model."""
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # protobuf ships no types

    data = read(path)
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        do = "check that the file is whole, for example against its published SHA-256, or export it again"
        what = "this is no ONNX model, or it is cut off"
        raise InputError("not-onnx", what, where=str(path), do=do) from error
    if not model.HasField("graph") or not model.opset_import or not (model.graph.node or model.graph.output):
        do = "check that the path names an .onnx file"
        raise InputError("not-onnx", "this is no ONNX model: it has no graph or no opset", where=str(path), do=do)
    for tensor in _all_tensors(model):
        if tensor.data_location == tensor.EXTERNAL or tensor.external_data:
            _check_external(tensor, path)


def read(path: Path) -> bytes:
    """Read a model's main file within the size limit."""
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
        return path.read_bytes()
    except FileNotFoundError as error:
        raise InputError("no-such-file", "there is no such file", where=str(path), do="check the path") from error
    except OSError as error:
        what = f"the file can't be read: {error.strerror}"
        raise InputError("unreadable-file", what, where=str(path), do="check its permissions") from error


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


def _check_external(tensor: onnx.TensorProto, model: Path) -> None:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    where = f"{model}, tensor {tensor.name!r}"
    do = "put the data file beside the model and export again"

    def refuse(what: str) -> InputError:
        return InputError("bad-external-data", what, where=where, do=do)

    if len(entries) != len(tensor.external_data):
        raise refuse("its external data gives a key twice")  # readers differ in which of the two they take
    if unknown := sorted(set(entries) - _KEYS):
        raise refuse(f"its external data has the unknown key {unknown[0]!r}")
    location = entries.get("location", "")
    if not location or "\0" in location:
        raise refuse("its external data names no file")
    parts = Path(location).parts
    if not parts or Path(location).is_absolute() or ".." in parts or "\\" in location or ":" in parts[0]:
        raise refuse(f"its external data lies outside the model's folder: {location!r}")
    target = model.parent
    for part in parts:
        target = target / part
        if target.is_symlink():
            raise refuse(f"its external data goes through a symbolic link: {location!r}")
    try:
        info = target.lstat()
    except OSError as error:
        raise refuse(f"its external data is missing: {location!r}") from error
    if not stat.S_ISREG(info.st_mode):
        raise refuse(f"its external data is not a plain file: {location!r}")
    if info.st_nlink > 1:
        do = "replace the hard link by a copy of the file"
        raise refuse(f"its external data is a hard link, which may lead outside the folder: {location!r}")
    try:
        offset, length = int(entries.get("offset", "0")), int(entries.get("length", "0"))
    except ValueError as error:
        raise refuse("the offset or length of its external data is not a number") from error
    needed = _bytes_of(tensor)
    if needed is not None and "length" in entries and length != needed:
        raise refuse(f"its external data claims {length} bytes, its shape and type need {needed}")
    length = length if needed is None else needed
    if offset < 0 or length < 0 or offset + length > info.st_size:
        raise refuse(f"its external data claims {offset}+{length} bytes of a file that has {info.st_size}")


def _bytes_of(tensor: onnx.TensorProto) -> int | None:
    """Return how many bytes a tensor's raw data has; ``None`` for types of less than a byte and unknown ones."""
    import math

    import onnx

    if any(dim < 0 for dim in tensor.dims):
        return None
    try:
        width = int(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
    except (KeyError, TypeError, ValueError):
        return None
    packed = ("INT4", "UINT4", "INT2", "UINT2", "FLOAT4E2M1", "STRING")
    if onnx.TensorProto.DataType.Name(tensor.data_type) in packed:
        return None
    return int(math.prod(tensor.dims)) * width

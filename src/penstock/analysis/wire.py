"""Walk a model's protobuf without building anything: how deep it nests, and how much of everything it asks for.

A parsed message takes a hundred times the two bytes that an empty one has in the file, so a file within the size limit
could still fill the memory. The walk follows the fields that hold messages, as onnx's own description of its format
names them, and stops at the limits. Every field counts for something, so that the limits bound the walk's own time as
well: messages and texts one by one, numbers by the run, as fast as a regular expression reads.
"""

from __future__ import annotations

import functools
import mmap
import re
from dataclasses import dataclass

# what one node, function or model may hold of names, attributes and opsets: no exporter comes near, and libraries take
# squares of their numbers
MOST_INSIDE = 50_000
COSTS = {"AttributeProto": 50, "OperatorSetIdProto": 50}  # of MOST_INSIDE; a name costs 1
HOLDERS = {"NodeProto": "node", "ModelProto": "model", "FunctionProto": "function"}
MOST_FUNCTIONS = 10_000
COST_OF_A_BODY = 2  # nodes
_HIGH = bytes(range(0x80, 0x100))
_PIECE = 1 << 20
_LONG_RUN = 8


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a file may ask for."""

    nodes: int
    body_nodes: int  # in graphs inside graphs, each of which counts for two
    tensors: int  # weights, and what nodes make
    messages: int  # protobuf messages and texts
    numbers: int  # numbers that stand by themselves, outside the data of tensors
    integer_bytes: int
    text_bytes: int
    name_bytes: int  # of one name
    depth: int


@dataclass(slots=True)
class Extent:
    """What a file asks for. ``whole`` is false where the walk met a limit or bytes that are no protobuf.

    ``inside`` names a message that holds too much.
    """

    nodes: int = 0
    body_nodes: int = 0
    tensors: int = 0
    functions: int = 0
    messages: int = 0
    numbers: int = 0
    integer_bytes: int = 0  # in memory, of the packed lists of tensors: a byte in the file can be eight there
    text_bytes: int = 0
    name_bytes: int = 0  # of the longest name
    depth: int = 0  # of protobuf messages
    subgraph_depth: int = 0  # of graphs inside graphs; 1 is the main graph
    inside: str = ""
    whole: bool = False


@dataclass(frozen=True, slots=True)
class _Kind:
    """A kind of message: which fields hold messages, which names, which packed numbers.

    ``packed`` gives the bytes of such an integer in memory, 0 for one that is as large in the file.

    ``data`` are the bytes of tensors, which are neither text nor built into anything; ``counted`` tells whether it may
    hold only so much.
    """

    name: str
    messages: dict[int, str]
    names: frozenset[int]
    packed: dict[int, int]
    data: frozenset[int]
    counted: bool


@functools.cache
def _kinds() -> dict[str, _Kind]:
    """Read the kinds of messages out of onnx's own description of its format."""
    import onnx

    found: dict[str, _Kind] = {}
    waiting = [onnx.ModelProto.DESCRIPTOR]
    while waiting:
        kind = waiting.pop()
        fields = {field.number: field for field in kind.fields}
        inner = {number: field.message_type for number, field in fields.items() if field.message_type}
        # strings of a ModelProto and of key-value pairs are texts: nothing goes by them
        plain = kind.name in ("ModelProto", "StringStringEntryProto")
        named = {n for n, f in fields.items() if f.type == f.TYPE_STRING and f.name != "doc_string" and not plain}
        numbers = {n: f for n, f in fields.items() if f.type not in (f.TYPE_STRING, f.TYPE_BYTES, f.TYPE_MESSAGE)}
        exact = (kind.fields[0].CPPTYPE_FLOAT, kind.fields[0].CPPTYPE_DOUBLE)
        wide = (kind.fields[0].CPPTYPE_INT64, kind.fields[0].CPPTYPE_UINT64)
        packed = {n: 0 if f.cpp_type in exact else 8 if f.cpp_type in wide else 4 for n, f in numbers.items()}
        data = {n for n, f in fields.items() if f.name == "raw_data"}
        messages = {number: message.full_name for number, message in inner.items()}
        counted = kind.name in HOLDERS
        found[kind.full_name] = _Kind(kind.name, messages, frozenset(named), packed, frozenset(data), counted)
        waiting += [message for message in inner.values() if message.full_name not in found]
    return found


def _one_of(numbers: list[int]) -> bytes:
    return b"[" + b"".join(re.escape(bytes([number])) for number in numbers) + b"]"


def _tag(width: int) -> bytes:
    """Return the expression of a field's tag of the wire type ``width``; it has up to five bytes, and no field is 0."""
    short = _one_of([tag for tag in range(8, 0x80) if tag & 7 == width])
    long = _one_of([tag for tag in range(0x80, 0x100) if tag & 7 == width])
    return b"(?:" + short + b"|" + long + rb"[\x80-\xff]{0,3}+[\x01-\x7f])"


# possessive: a run never has to be given back, and the engine keeps no state for each of its fields
_VALUE = {0: rb"[\x80-\xff]{0,9}+[\x00-\x7f]", 1: rb".{8}", 5: rb".{4}"}
_ANY_RUN = re.compile(b"(?:" + b"|".join(_tag(width) + value for width, value in _VALUE.items()) + b")++", re.DOTALL)


@functools.cache
def _run_of(tag: int) -> re.Pattern[bytes]:
    """Return the expression of numbers that all belong to one field, whose tag has one byte."""
    return re.compile(b"(?:" + re.escape(bytes([tag])) + _VALUE[tag & 7] + b")++", re.DOTALL)


def extent(data: bytes | mmap.mmap, limits: Limits) -> Extent:
    """Walk the bytes of a ``ModelProto`` as far as the limits allow."""
    found = Extent()
    with memoryview(data) as view:
        found.whole = _walk(data, view, limits, found)
    return found


def _walk(data: bytes | mmap.mmap, view: memoryview, limits: Limits, found: Extent) -> bool:
    """Fill ``found``; false where a limit was met or the bytes are no protobuf."""
    kinds = _kinds()
    # kind, position, end, depth, graphs around, and what it holds so far of what it may hold only so much of
    stack: list[tuple[_Kind, int, int, int, int, int]] = [(kinds["onnx.ModelProto"], 0, len(view), 1, 0, 0)]
    while stack:
        kind, position, end, depth, graphs, seen = stack.pop()
        if depth > found.depth:
            found.depth = depth
        if graphs > found.subgraph_depth:
            found.subgraph_depth = graphs
        if depth > limits.depth:
            return False
        inner, names = kind.messages, kind.names
        while position < end:
            began = position
            tag = view[position]
            position += 1
            if tag >= 0x80:
                tag, position = _varint(view, began, end)
            if tag < 8:  # there is no field 0; -1 is a tag that is cut off
                return False
            if tag & 7 != 2:
                position = _numbers(data, tag, began, end, found)
                if position < 0 or found.numbers > limits.numbers:
                    return False
                continue
            if position >= end:
                return False
            length = view[position]
            position += 1
            if length >= 0x80:
                length, position = _varint(view, position - 1, end)
            start, position = position, position + length
            if length < 0 or position > end:
                return False
            found.messages += 1
            if found.messages > limits.messages:
                return False
            child = inner.get(tag >> 3)
            if child is None:
                number = tag >> 3
                if number in names:
                    if length > found.name_bytes:
                        found.name_bytes = length
                    found.text_bytes += 2 * length  # names are copied more often than other texts
                    seen += kind.counted
                    if number == 2 and kind.name == "NodeProto":  # an output
                        found.tensors += 1
                elif number in kind.packed:
                    if width := kind.packed[number]:
                        found.integer_bytes += width * _integers(data, start, position)
                elif number not in kind.data:
                    found.text_bytes += length
                if (
                    found.name_bytes > limits.name_bytes
                    or found.text_bytes > limits.text_bytes
                    or found.integer_bytes > limits.integer_bytes
                    or seen > MOST_INSIDE
                    or found.tensors > limits.tensors
                ):
                    found.inside = kind.name if seen > MOST_INSIDE else ""
                    return False
                continue
            below = kinds[child]
            if below.name == "NodeProto":
                found.nodes += 1
                found.body_nodes += graphs > 1
                if found.nodes > limits.nodes or found.body_nodes > limits.body_nodes:
                    return False
            elif below.name == "GraphProto":
                found.body_nodes += COST_OF_A_BODY * (graphs > 0)
                if found.body_nodes > limits.body_nodes:
                    return False
            elif below.name == "TensorProto":
                found.tensors += 1
                if found.tensors > limits.tensors:
                    return False
            elif below.name == "FunctionProto":
                found.functions += 1
                if found.functions > MOST_FUNCTIONS:
                    return False
            if kind.counted:
                seen += COSTS.get(below.name, 0)
                if seen > MOST_INSIDE:
                    found.inside = kind.name
                    return False
            if length:
                stack.append((kind, position, end, depth, graphs, seen))
                stack.append((below, start, position, depth + 1, graphs + (below.name == "GraphProto"), 0))
                break
    return True


def _numbers(data: bytes | mmap.mmap, tag: int, position: int, end: int, found: Extent) -> int:
    """Read on over single numbers as far as a piece reaches, and count them; -1 where the first is none.

    A run of one field is counted to the number; a mixed one by the two bytes that a number has at least.
    """
    if tag & 7 not in _VALUE:
        return -1
    stop = min(end, position + _PIECE)
    if tag < 0x80 and (run := _run_of(tag).match(data, position, stop)):
        length = run.end() - position
        width = {1: 9, 5: 5}.get(tag & 7)
        count = length // width if width else _low_bytes(data, position, run.end()) // 2  # the tag's and the last one's
        if count >= _LONG_RUN:
            found.numbers += count
            return run.end()
    mixed = _ANY_RUN.match(data, position, stop)
    if mixed is None:
        return -1
    found.numbers += (mixed.end() - position) // 2
    return mixed.end()


def _integers(data: bytes | mmap.mmap, start: int, stop: int) -> int:
    """Count the integers of a packed list."""
    return sum(_low_bytes(data, at, min(at + _PIECE, stop)) for at in range(start, stop, _PIECE))


def _low_bytes(data: bytes | mmap.mmap, start: int, stop: int) -> int:
    return len(data[start:stop].translate(None, _HIGH))


def _varint(view: memoryview, position: int, end: int) -> tuple[int, int]:
    """Read a number; position -1 (and -1) where there is none."""
    result = shift = 0
    while 0 <= position < end and shift < 70:
        byte = view[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, position
        shift += 7
    return -1, -1

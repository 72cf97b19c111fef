"""Hostile files that ask for as much as the limits let them, of each thing by itself, and for a little more."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
from hostile import attack, body, function, identity, model, node, save, value, wrapped
from onnx import TensorProto, helper

from penstock.precheck import CheckSettings

HELD = CheckSettings()
BASE = identity().SerializeToString()


def names(count: int, *, long: int = 1) -> list[bytes]:
    return [b"%0*d" % (long, number) for number in range(count)]


def spread(name: str, refused: tuple[str, ...], build: Callable[[int], bytes], most: int) -> None:
    """Register two attacks: one that stays just below a limit, one that goes beyond it and has to be refused."""

    def below(folder: Path) -> Path:
        (folder / "m.onnx").write_bytes(BASE + build(most - 1000))
        return folder / "m.onnx"

    def beyond(folder: Path) -> Path:
        (folder / "m.onnx").write_bytes(BASE + build(most + 1000))
        return folder / "m.onnx"

    below.__name__, beyond.__name__ = f"{name}_below_the_limit", f"{name}_beyond_the_limit"
    attack()(below)
    attack(*refused)(beyond)


def graph(data: bytes) -> bytes:
    """Return what a parser merges into the graph."""
    return wrapped(data, 7)


def relu(given: bytes, made: bytes) -> bytes:
    return wrapped(wrapped(given, 1) + wrapped(made, 2) + wrapped(b"Relu", 4), 1)


def attribute(data: bytes) -> bytes:
    """Return a node of an operator of its own with one attribute."""
    held = wrapped(wrapped(b"v", 1) + data, 5)
    call = wrapped(wrapped(b"x", 1) + wrapped(b"z", 2) + wrapped(b"Own", 4) + wrapped(b"own", 7) + held, 1)
    return graph(call)


def a_chain(count: int) -> bytes:
    made = [b"x", *(b"q" + name for name in names(count))]
    return graph(b"".join(relu(a, b) for a, b in itertools.pairwise(made)))


def weights(count: int) -> bytes:
    """Sound tensors of one number each."""
    return graph(b"".join(wrapped(b"\x08\x01\x10\x01" + wrapped(b"w" + n, 8) + wrapped(b"\0" * 4, 9), 5)
                          for n in names(count)))  # fmt: skip


def long_names(long: int) -> bytes:
    return graph(b"".join(relu(b"x", b"n" + name) for name in names(20, long=long - 1)))


def functions(count: int) -> bytes:
    inner = wrapped(wrapped(b"a", 1) + wrapped(b"b", 2) + wrapped(b"Relu", 4), 7) + wrapped(b"a", 4) + wrapped(b"b", 5)
    return b"".join(b"\xca\x01" + wrapped(wrapped(b"f" + n, 1) + wrapped(b"own", 10) + inner, 1)[1:]
                    for n in names(count))  # fmt: skip


def attributes(count: int) -> bytes:
    made = wrapped(b"x", 1) + wrapped(b"z", 2) + wrapped(b"Own", 4) + wrapped(b"own", 7)
    made += b"".join(wrapped(wrapped(b"a" + n, 1) + b"\x18\x01\xa0\x01\x02", 5) for n in names(count))
    return graph(wrapped(made, 1))


def values(count: int) -> bytes:
    """Descriptions of values, each a message and a text."""
    return graph(b"".join(wrapped(wrapped(b"v" + name, 1), 13) for name in names(count // 2)))


def operands(count: int) -> bytes:
    return graph(wrapped(b"\x0a\x00" * count + wrapped(b"q", 2) + wrapped(b"Sum", 4), 1))


def results(count: int) -> bytes:
    return graph(wrapped(b"".join(wrapped(b"q" + name, 2) for name in names(count)) + wrapped(b"Split", 4), 1))


def opsets(count: int) -> bytes:
    return b"".join(wrapped(wrapped(b"d" + name, 1) + b"\x10\x01", 8) for name in names(count))


def texts(count: int) -> bytes:
    return graph(wrapped(wrapped(b"w", 8) + b"\x10\x08" + b"\x32\x00" * count, 5))


def inside(data: bytes) -> bytes:
    """Return a tensor that holds nothing else."""
    return graph(wrapped(wrapped(b"w", 8) + data, 5))


MESSAGES = HELD.max_messages - 100  # what BASE itself holds
NUMBERS, MANY = HELD.max_numbers, ("too-many-numbers",)
spread("nodes", ("too-many-nodes",), a_chain, HELD.max_nodes)
spread("tensors", ("too-many-tensors",), weights, HELD.max_tensors)
spread("empty_tensors", ("too-many-tensors",), lambda n: graph(b"\x2a\x00" * n), HELD.max_tensors)
spread("empty_values", ("too-many-messages",), lambda n: graph(b"\x6a\x00" * n), MESSAGES)
spread("values", ("too-many-messages",), values, MESSAGES)
spread("metadata", ("too-many-messages",), lambda n: b"\x72\x00" * n, MESSAGES)
spread("texts", ("too-many-messages",), texts, MESSAGES)
spread("unknown_texts", ("too-many-messages",), lambda n: b"\x7a\x00" * n, MESSAGES)
spread("ints", MANY, lambda n: attribute(b"\xa0\x01\x07" + b"\x40\x01" * n), NUMBERS)
spread("floats", MANY, lambda n: attribute(b"\xa0\x01\x06" + b"\x3d\x00\x00\x80\x3f" * n), NUMBERS)
spread("mixed_numbers", MANY, lambda n: attribute(b"\x18\x01\x98\x7f\x01" * (2 * n // 5)), NUMBERS)
spread("unknown_numbers", MANY, lambda n: b"\xf8\x07\x01" * (2 * n // 3), NUMBERS)
spread("dims", MANY, lambda n: inside(b"\x08\x01" * n), NUMBERS)
spread("packed_ints", MANY, lambda n: inside(wrapped(b"\x01" * n, 7)), HELD.max_integer_bytes // 8)
spread("text", ("too-much-text",), lambda n: wrapped(b"d" * n, 6), HELD.max_text_bytes)
spread("name", ("name-too-long",), long_names, HELD.max_name_bytes)
spread("functions", ("too-many-functions",), functions, 10_000)
spread("operands", ("too-many-inside",), operands, 50_000)
spread("results", ("too-many-inside",), results, 50_000)
spread("attributes", ("too-many-inside",), attributes, 2_000)
spread("opsets", ("too-many-inside",), opsets, 2_000)


@attack()
def names_that_fill_the_text(folder: Path) -> Path:
    """As many names as long as they may be as there may be text."""
    count, long = HELD.max_text_bytes // (2 * HELD.max_name_bytes) - 10, HELD.max_name_bytes - 10
    data = BASE + graph(b"".join(relu(b"x", b"n" + name) for name in names(count, long=long)))
    (folder / "m.onnx").write_bytes(data)
    return folder / "m.onnx"


@attack("too-much-text", "name-too-long")
def a_domain_of_ten_megabytes(folder: Path) -> Path:
    long = "d" * 10_000_000
    return save(model([node("Op", ["x"], ["y"], domain=long)], opsets=[("", 17), (long, 1)]), folder)


@attack()
def a_hundred_thousand_inputs(folder: Path) -> Path:
    made = [f"a{number}" for number in range(100_000)]
    return save(model([node("Sum", made, ["y"])], inputs=[value(name) for name in made]), folder)


@attack()
def one_value_read_a_hundred_thousand_times(folder: Path) -> Path:
    return save(model([node("Sum", ["x"] * 100_000, ["y"])]), folder)


def _ifs(bodies: dict[str, object], count: int) -> list[object]:
    return [node("If", ["c"], [f"y{number}"], **bodies) for number in range(count)]


@attack(opened=True)
def a_chain_that_is_read(folder: Path) -> Path:
    chain = ["x", *(f"o{number}" for number in range(HELD.max_nodes - 1)), "y"]
    return save(model([node("Relu", [a], [b]) for a, b in itertools.pairwise(chain)]), folder)


@attack(opened=True)
def the_same_over_and_over(folder: Path) -> Path:
    """Each node is read, so that nothing goes before it was compared with the others."""
    made = [f"o{number}" for number in range(HELD.max_nodes - 10)]
    parts = [made[at : at + 40_000] for at in range(0, len(made), 40_000)]
    sums = [node("Sum", part, [f"s{number}"]) for number, part in enumerate(parts)]
    last = node("Sum", [f"s{number}" for number in range(len(parts))], ["y"])
    return save(model([*(node("Relu", ["x"], [name]) for name in made), *sums, last]), folder)


@attack(opened=True)
def many_bodies_side_by_side(folder: Path) -> Path:
    chain = ["x", *(f"o{number}" for number in range(12))]
    inner = body([node("Relu", [a], [b]) for a, b in itertools.pairwise(chain)], [chain[-1]])
    ifs = _ifs({"then_branch": inner, "else_branch": inner}, HELD.max_body_nodes // 28)
    nodes = [node("Cast", ["x"], ["c"], to=9), *ifs, node("Sum", [f"y{i}" for i in range(len(ifs))], ["y"])]
    return save(model(nodes), folder)


@attack(opened=True)
def as_many_small_bodies_as_may_be(folder: Path) -> Path:
    """Of one node each: a body has its price by itself."""
    then, other = (body([node(op, ["x"], ["o"])], ["o"]) for op in ("Relu", "Neg"))
    ifs = _ifs({"then_branch": then, "else_branch": other}, HELD.max_body_nodes // 6 - 10)
    nodes = [node("Cast", ["x"], ["c"], to=9), *ifs, node("Sum", [f"y{i}" for i in range(len(ifs))], ["y"])]
    return save(model(nodes), folder)


@attack("too-many-nodes")
def more_nodes_in_bodies_than_allowed(folder: Path) -> Path:
    inner = body([node("Relu", ["x"], [f"o{number}"]) for number in range(HELD.max_body_nodes)], ["o0"])
    return save(model([node("Cast", ["x"], ["c"], to=9), *_ifs({"then_branch": inner, "else_branch": inner}, 1),
                       node("Relu", ["y0"], ["y"])]), folder)  # fmt: skip


@attack(opened=True)
def wide_bodies_inside_each_other(folder: Path) -> Path:
    inner = body([node("Identity", ["x"], ["o0"])], ["o0"])
    for level in range(1, 14):
        other = body([node("Identity", ["x"], [f"e{level}"])], [f"e{level}"])
        made = [f"r{level}_{number}" for number in range(HELD.max_body_nodes // 14)]
        side = [*(node("Relu", ["x"], [name]) for name in made), node("Sum", made, [f"s{level}"])]
        below = node("If", ["c"], [f"i{level}"], then_branch=inner, else_branch=other)
        inner = body([*side, below, node("Add", [f"i{level}", f"s{level}"], [f"o{level}"])], [f"o{level}"])
    top = node("If", ["c"], ["y"], then_branch=inner, else_branch=body([node("Identity", ["x"], ["e"])], ["e"]))
    return save(model([node("Cast", ["x"], ["c"], to=9), top]), folder)


@attack()
def names_read_through_fourteen_bodies(folder: Path) -> Path:
    many = [[f"n{part}_{number}" for number in range(12_000)] for part in range(20)]
    inner = body([node("Sum", names, [f"s{part}"]) for part, names in enumerate(many)], ["s0"])
    for level in range(1, 14):
        other = body([node("Identity", ["x"], [f"e{level}"])], [f"e{level}"])
        inner = body([node("If", ["c"], [f"o{level}"], then_branch=inner, else_branch=other)], [f"o{level}"])
    top = node("If", ["c"], ["y"], then_branch=inner, else_branch=body([node("Identity", ["x"], ["e"])], ["e"]))
    splits = [node("Split", ["x"], names) for names in many]
    return save(model([*splits, node("Cast", ["x"], ["c"], to=9), top]), folder)


@attack()
def a_line_of_functions(folder: Path) -> Path:
    made = [function("F0", [node("Relu", ["a"], ["b"])])]
    made += [function(f"F{i}", [node(f"F{i - 1}", ["a"], ["b"], domain="own")]) for i in range(1, 5_000)]
    return save(model([node("F4999", ["x"], ["y"], domain="own")], functions=made), folder)


# -- weights that are nowhere ------------------------------------------------------------------------------------------


def claiming(name: str, numbers: int, location: str = "w.data") -> TensorProto:
    held = TensorProto(name=name, dims=[numbers], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    held.external_data.add(key="location", value=location)
    return held


def empty_space(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)


def of_holes(gigabytes: int) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        empty_space(folder / "w.data", gigabytes << 30)
        held = claiming("w", gigabytes << 28)
        return save(model([node("Add", ["x", "w"], ["y"])], held=[held], outputs=[value("y", ["n"])]), folder)

    build.__name__ = f"weights_of_{gigabytes}_gigabytes_of_holes"
    return build


attack("sparse-file")(of_holes(3))
attack("sparse-file")(of_holes(60))


@attack("sparse-file", "too-much-text")
def a_model_of_holes(folder: Path) -> Path:
    """One tensor of 1.9 GB inside the file itself."""
    numbers = (1900 << 20) // 4
    head = b"\x08" + _varint(numbers) + b"\x10\x01" + wrapped(b"w", 8) + b"\x4a" + _varint(numbers * 4)
    size = len(head) + numbers * 4
    with (folder / "m.onnx").open("wb") as file:
        initializer = b"\x2a" + _varint(size) + head
        file.write(BASE + b"\x3a" + _varint(len(initializer) + numbers * 4) + initializer)
        file.truncate(file.tell() + numbers * 4)
    return folder / "m.onnx"


def _varint(number: int) -> bytes:
    made = b""
    while number >= 0x80:
        made += bytes([number & 0x7F | 0x80])
        number >>= 7
    return made + bytes([number])


@attack("shared-external-data")
def one_file_claimed_by_many_tensors(folder: Path) -> Path:
    (folder / "w.data").write_bytes(np.ones(16 << 20, np.float32).tobytes())
    held = [claiming(f"w{number}", 16 << 20) for number in range(40)]
    made = model([node("Sum", ["x", *(t.name for t in held)], ["y"])], held=held, outputs=[value("y", ["n"])])
    return save(made, folder)


@attack()
def weights_in_a_body_that_are_outside(folder: Path) -> Path:
    (folder / "w.data").write_bytes(np.ones(16 << 20, np.float32).tobytes())
    inner = helper.make_graph([node("Identity", ["w"], ["o"])], "b", [], [value("o", ["n"])], [claiming("w", 16 << 20)])
    top = node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    return save(model([node("Cast", ["x"], ["c"], to=9), top], outputs=[value("y", ["n"])]), folder)


@attack("bad-external-data")
def a_location_that_is_a_folder(folder: Path) -> Path:
    (folder / "w.data").write_bytes(b"\0" * 4)
    return save(model([node("Add", ["x", "w"], ["y"])], held=[claiming("w", 1, "w.data/")]), folder)


@attack("bad-external-data")
def a_location_longer_than_the_system_allows(folder: Path) -> Path:
    return save(model([node("Add", ["x", "w"], ["y"])], held=[claiming("w", 1, "w" * 5000)]), folder)

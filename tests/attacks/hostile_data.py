"""Hostile files: bytes that are no model, tensors that lie, external data elsewhere, folding that explodes."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from hostile import attack, body, identity, model, node, save, tensor, value, with_weight, wrapped
from onnx import TensorProto, helper

F = TensorProto.FLOAT
I = TensorProto.INT64  # noqa: E741


def raw(folder: Path, data: bytes) -> Path:
    (folder / "m.onnx").write_bytes(data)
    return folder / "m.onnx"


# -- bytes -------------------------------------------------------------------------------------------------------------


@attack("empty-model")
def empty_file(folder: Path) -> Path:
    return raw(folder, b"")


@attack("not-onnx")
def a_text(folder: Path) -> Path:
    return raw(folder, b"This is a text and no model.\n" * 1000)


@attack("not-onnx")
def gzip_bomb(folder: Path) -> Path:
    return raw(folder, gzip.compress(bytes(200_000_000), 9))


@attack("not-onnx")
def huge_varint(folder: Path) -> Path:
    return raw(folder, b"\x08" + b"\xff" * 5000 + b"\x7f")


@attack("not-onnx")
def a_length_beyond_the_file(folder: Path) -> Path:
    return raw(folder, b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\x7f" + identity().SerializeToString())


@attack("model-too-large")
def larger_than_protobuf_allows(folder: Path) -> Path:
    with (folder / "m.onnx").open("wb") as file:
        file.truncate((2 << 30) + 1)  # sparse: it takes no room on the disk
    return folder / "m.onnx"


@attack("not-onnx", "model-too-large")
def a_gigabyte_of_zeros(folder: Path) -> Path:
    with (folder / "m.onnx").open("wb") as file:
        file.truncate(1 << 30)
    return folder / "m.onnx"


@attack("not-a-file")
def a_fifo(folder: Path) -> Path:
    os.mkfifo(folder / "m.onnx")
    return folder / "m.onnx"


@attack("not-a-file")
def a_device(folder: Path) -> Path:
    return Path("/dev/zero")


@attack("not-onnx", "unreadable-file", "empty-model")
def memory_of_the_process(folder: Path) -> Path:
    return Path("/proc/self/mem")


@attack("too-many-nodes")
def a_million_empty_nodes(folder: Path) -> Path:
    return raw(folder, wrapped(b"\x0a\x00" * 1_000_001, 7))


@attack("too-many-nodes", "too-many-messages")
def a_million_real_nodes(folder: Path) -> Path:
    nodes = b"".join(wrapped(node("Relu", [f"v{i}"], [f"v{i + 1}"]).SerializeToString(), 1) for i in range(1_000_000))
    return raw(folder, wrapped(nodes, 7) + b"\x42\x02\x10\x11")


@attack("too-many-messages", "too-many-inside")
def ten_million_empty_names(folder: Path) -> Path:
    return raw(folder, wrapped(wrapped(b"\x0a\x00" * 10_000_001, 1), 7))


@attack("too-many-messages")
def ten_million_inputs(folder: Path) -> Path:
    return raw(folder, wrapped(b"\x5a\x00" * 10_000_001, 7))


@attack("too-many-functions", "not-onnx")
def ten_million_functions(folder: Path) -> Path:
    return raw(folder, b"\xca\x01\x00" * 10_000_001)


@attack(opened=True)
def many_readers_of_one_value(folder: Path) -> Path:
    """Rules that look at pairs take their square."""
    nodes = [node("Slice", ["x", "a", "b"], [f"s{i}"]) for i in range(1500)]
    held = [tensor(np.array([v], np.int64), n) for n, v in (("a", 0), ("b", 1))]
    return save(model([*nodes, node("Sum", [f"s{i}" for i in range(1500)], ["y"])], held=held), folder)


@attack(opened=True)
def a_long_chain(folder: Path) -> Path:
    nodes = [node("Relu", [f"v{i}" if i else "x"], [f"v{i + 1}"]) for i in range(3000)]
    return save(model([*nodes, node("Identity", ["v3000"], ["y"])]), folder)


@attack(opened=True)
def a_chain_of_identities_backwards(folder: Path) -> Path:
    nodes = [node("Identity", [f"v{i}" if i else "x"], [f"v{i + 1}"]) for i in range(3000)]
    return save(model([*nodes, node("Relu", ["v3000"], ["y"])]), folder)


# -- tensors -----------------------------------------------------------------------------------------------------------


def lying(dims: list[int], kind: int = F, data: bytes = b"\0" * 4) -> onnx.TensorProto:
    return TensorProto(name="w", dims=dims, data_type=kind, raw_data=data)


def weight(refused: tuple[str, ...], name: str, dims: list[int], kind: int = F, data: bytes = b"\0" * 4) -> None:
    def build(folder: Path) -> Path:
        return save(with_weight(lying(dims, kind, data)), folder)

    build.__name__ = name
    attack(*refused)(build)


weight(("bad-tensor",), "negative_dims", [-1, -4])
weight(("tensor-too-large",), "dims_beyond_any_number", [2**62, 2**62, 2**62])
weight(("bad-tensor",), "dims_whose_productwrappeds_to_one", [2**32 + 1, 4294967295, 0, 3])
weight(("tensor-too-large", "bad-tensor"), "a_terabyte_in_four_bytes", [2**38])
weight(("too-many-dims",), "ten_thousand_dims", [1] * 10_000)
weight(("bad-tensor",), "bytes_that_are_too_few", [1000])
weight(("bad-tensor",), "bytes_that_are_too_many", [1], data=b"\0" * 4096)
weight(("bad-tensor",), "a_type_that_is_none", [1], kind=999)
weight(("bad-tensor",), "an_undefined_type", [1], kind=0)
weight(("bad-tensor",), "texts_as_bytes", [1], kind=TensorProto.STRING)
weight((), "nothing_in_it", [0], data=b"")
weight((), "infinities", [4], data=np.array([np.nan, np.inf, -np.inf, 1e-45], np.float32).tobytes())


@attack("bad-tensor")
def texts_that_are_missing(folder: Path) -> Path:
    held = TensorProto(name="w", dims=[10**9], data_type=TensorProto.STRING, string_data=[b"a"])
    return save(with_weight(held), folder)


@attack("tensor-too-large")
def declared_inputs_beyond_any_number(folder: Path) -> Path:
    made = identity()
    made.graph.input[0].CopyFrom(value("x", [2**62, 2**62]))
    return save(made, folder)


def sparse(dims: list[int], indices: list[int], count: int = 1) -> onnx.ModelProto:
    made = with_weight(tensor(np.ones(1, np.float32), "w"))
    made.graph.ClearField("initializer")
    entry = made.graph.sparse_initializer.add(dims=dims)
    entry.values.CopyFrom(tensor(np.ones(count, np.float32), "w"))
    entry.indices.CopyFrom(tensor(np.array(indices, np.int64), "i"))
    return made


@attack("tensor-too-large")
def sparse_that_is_dense_a_terabyte(folder: Path) -> Path:
    return save(sparse([2**20, 2**20], [0]), folder)


@attack()
def sparse_within_the_limit_is_sixty_gigabytes(folder: Path) -> Path:
    return save(sparse([2**17, 2**17 - 1], [0]), folder)


@attack()
def sparse_with_indices_outside(folder: Path) -> Path:
    return save(sparse([4], [10**15]), folder)


@attack()
def sparse_with_negative_dims(folder: Path) -> Path:
    return save(sparse([-4], [-1]), folder)


@attack(opened=True)
def a_constant_of_a_million_numbers(folder: Path) -> Path:
    numbers = helper.make_attribute("value_floats", [float(i) for i in range(1_000_000)])
    made = model([node("Constant", [], ["c"]), node("Add", ["x", "c"], ["y"])], outputs=[value("y", ["n"])])
    made.graph.node[0].attribute.append(numbers)
    return save(made, folder)


# -- external data -----------------------------------------------------------------------------------------------------


def pointing(**entries: str) -> onnx.ModelProto:
    held = TensorProto(name="w", dims=[1], data_type=F, data_location=TensorProto.EXTERNAL)
    for key, text in entries.items():
        held.external_data.add(key=key, value=text)
    return with_weight(held)


def outside(folder: Path) -> Path:
    """Return the secret beside the model's folder, which nothing may read."""
    path = folder.parent / "secret.bin"
    path.write_bytes(b"SECRET-CANARY" * 100)
    return path


def external(refused: str, name: str, prepare: Callable[[Path], dict[str, str]]) -> None:
    def build(folder: Path) -> Path:
        outside(folder)
        return save(pointing(**prepare(folder)), folder)

    build.__name__ = name
    attack(refused)(build)


def made(make: Callable[[Path], object]) -> Callable[[Path], dict[str, str]]:
    def prepare(folder: Path) -> dict[str, str]:
        make(folder)
        return {"location": "w.data"}

    return prepare


def through_a_parent(folder: Path) -> dict[str, str]:
    (folder / "sub").symlink_to(folder.parent)
    return {"location": "sub/secret.bin"}


BAD = "bad-external-data"
external(BAD, "external_dots", lambda _: {"location": "../secret.bin"})
external(BAD, "external_dots_in_the_middle", lambda _: {"location": "a/../../secret.bin"})
external(BAD, "external_absolute", lambda folder: {"location": str(outside(folder))})
external(BAD, "external_passwords", lambda _: {"location": "/etc/passwd"})
external(BAD, "external_process_memory", lambda _: {"location": "/proc/self/mem"})
external(BAD, "external_endless_zeros", lambda _: {"location": "/dev/zero"})
external(
    "in-memory-external-data", "external_in_memory", lambda _: {"location": "*/_ORT_MEM_ADDR_/*", "offset": "4096"}
)
external(BAD, "external_with_a_zero_byte", lambda _: {"location": "w.data\0.txt"})
external(BAD, "external_folder", made(lambda folder: (folder / "w.data").mkdir()))
external(BAD, "external_fifo", made(lambda folder: os.mkfifo(folder / "w.data")))
external("linked-external-data", "external_link", made(lambda f: (f / "w.data").symlink_to(outside(f))))
external("linked-external-data", "external_link_to_a_device", made(lambda f: (f / "w.data").symlink_to("/dev/zero")))
external("linked-external-data", "external_hard_link", made(lambda f: os.link(outside(f), f / "w.data")))
external("linked-external-data", "external_link_in_the_path", through_a_parent)
external(BAD, "external_missing", lambda _: {"location": "gone.data"})
external(BAD, "external_url", lambda _: {"location": "file:///etc/passwd"})


def honest(folder: Path) -> dict[str, str]:
    (folder / "w.data").write_bytes(b"\0" * 4)
    return {"location": "w.data"}


external(BAD, "external_length_lies", lambda f: {**honest(f), "length": str(10**15)})
external(BAD, "external_offset_lies", lambda f: {**honest(f), "offset": str(2**63)})
external(BAD, "external_negative_offset", lambda f: {**honest(f), "offset": "-4"})
external(BAD, "external_number_of_many_digits", lambda f: {**honest(f), "length": "9" * 6000})
external(BAD, "external_unknown_key", lambda f: {**honest(f), "fetch": "http://evil"})


@attack(BAD, "not-onnx", "not-text")
def external_that_is_no_text(folder: Path) -> Path:
    outside(folder)
    data = pointing(location="AAAAAA").SerializeToString().replace(b"AAAAAA", b"../\xff\xfe\x80")
    return raw(folder, data)


# -- folding -----------------------------------------------------------------------------------------------------------


def bomb(name: str, nodes: list[onnx.NodeProto], held: dict[str, object], *, opset: int = 17, kind: int = F) -> None:
    def build(folder: Path) -> Path:
        tensors = [tensor(array, key) for key, array in held.items()]
        output = helper.make_value_info("y", helper.make_tensor_type_proto(kind, None))
        return save(model(nodes, held=tensors, outputs=[output], opsets=[("", opset)]), folder)

    build.__name__ = name
    attack()(build)


ints = lambda *numbers: np.array(numbers, np.int64)  # noqa: E731
SUM = node("Add", ["x", "big"], ["y"])
bomb("bomb_constant_of_shape", [node("ConstantOfShape", ["s"], ["big"]), SUM], {"s": ints(10**5, 10**5, 10)})
bomb("bomb_expand", [node("Expand", ["v", "s"], ["big"]), SUM], {"v": np.float32([1]), "s": ints(10**11)})
bomb("bomb_tile", [node("Tile", ["v", "s"], ["big"]), SUM], {"v": np.float32([1]), "s": ints(10**11)})
bomb("bomb_range", [node("Range", ["a", "b", "c"], ["big"]), node("Cast", ["big"], ["y"], to=F)],
     {"a": np.int64(0), "b": np.int64(10**11), "c": np.int64(1)})  # fmt: skip
bomb("bomb_one_hot", [node("OneHot", ["i", "d", "v"], ["y"])],
     {"i": ints(*range(1000)), "d": np.int64(10**9), "v": np.float32([0, 1])})  # fmt: skip
bomb("bomb_pad", [node("Pad", ["v", "p"], ["big"]), SUM], {"v": np.float32([1]), "p": ints(0, 10**11)})
bomb("bomb_resize", [node("Resize", ["v", "", "", "s"], ["big"]), SUM],
     {"v": np.ones((1, 1, 1, 1), np.float32), "s": ints(1, 1, 10**6, 10**5)})  # fmt: skip
bomb("bomb_eye_like", [node("ConstantOfShape", ["s"], ["z"]), node("EyeLike", ["z"], ["y"])], {"s": ints(10**5, 10**5)})
bomb("bomb_random", [node("RandomNormal", [], ["big"], shape=[10**11]), SUM], {})
bomb("bomb_gather", [node("Gather", ["v", "i"], ["y"])], {"v": np.ones((1, 8000), np.float32), "i": ints(*[0] * 8000)})
bomb("bomb_broadcast", [node("Add", ["v", "w"], ["y"])],
     {"v": np.ones((8000, 1), np.float32), "w": np.ones((1, 8000), np.float32)})  # fmt: skip
bomb("bomb_matmul", [node("MatMul", ["v", "w"], ["y"])],
     {"v": np.ones((8000, 1), np.float32), "w": np.ones((1, 8000), np.float32)})  # fmt: skip
bomb("bomb_that_doubles",
     [node("Concat", [f"v{i}", f"v{i}"], [f"v{i + 1}"], axis=0) for i in range(60)] + [node("Relu", ["v60"], ["y"])],
     {"v0": np.float32([1])})  # fmt: skip
bomb("bomb_that_squares",
     [node("Mul", [f"v{i}", f"v{i}"], [f"v{i + 1}"]) for i in range(30)] + [node("Range", ["z", "v30", "o"], ["y"])],
     {"v0": np.int64(3), "z": np.int64(0), "o": np.int64(1)}, kind=I)  # fmt: skip
bomb("bomb_sequence",
     [node("SplitToSequence", ["v"], ["s"], keepdims=1), node("ConcatFromSequence", ["s"], ["y"], axis=0)],
     {"v": np.ones(8000, np.float32)})  # fmt: skip
bomb("bomb_window", [node("HannWindow", ["n"], ["big"]), SUM], {"n": np.int64(10**11)})
bomb("bomb_power_of_ints", [node("Pow", ["v", "e"], ["y"])], {"v": ints(2), "e": ints(10**12)}, kind=I)
bomb("bomb_string", [node("Shape", ["x"], ["s"]), node("ConstantOfShape", ["t"], ["big"]), SUM], {"t": ints(2**40)})
bomb("bomb_declared_small", [node("ConstantOfShape", ["s"], ["big"]), node("Reshape", ["big", "t"], ["z"]), SUM],
     {"s": ints(10**10), "t": ints(10**5, 10**5)})  # fmt: skip


@attack()
def bomb_behind_a_lie(folder: Path) -> Path:
    """The file says that the result has one element; what the operator makes has a hundred billion."""
    made = model([node("Tile", ["v", "s"], ["big"]), node("Add", ["x", "big"], ["y"])],
                 held=[tensor(np.float32([1]), "v"), tensor(ints(10**11), "s")], opsets=[("", 17)])  # fmt: skip
    made.graph.value_info.append(value("big", [1]))
    return save(made, folder)


@attack()
def bomb_behind_an_operator_without_shapes(folder: Path) -> Path:
    nodes = [
        node("Novel", ["x"], ["n"], domain="own"),
        node("Resize", ["v", "", "f"], ["big"], mode="nearest"),
        node("Add", ["n", "big"], ["y"]),
    ]
    held = [tensor(np.ones((1, 1, 4, 4), np.float32), "v"), tensor(np.float32([1, 1, 5e4, 5e4]), "f")]
    made = model(nodes, held=held)
    made.graph.value_info.append(value("big", [1, 1, 4, 4]))
    return save(made, folder)


def _loop(trips: int, nodes: list[onnx.NodeProto]) -> onnx.ModelProto:
    inner = helper.make_graph(
        [node("Identity", ["go"], ["on"]), *nodes],
        "loop", [value("i", [], I), value("go", [], TensorProto.BOOL), value("v", ["n"])],
        [value("on", [], TensorProto.BOOL), value("w", ["m"])],
    )  # fmt: skip
    held = [tensor(np.int64(trips), "trips"), tensor(np.bool_(True), "true"), tensor(np.float32([1]), "one")]
    return model([node("Loop", ["trips", "true", "one"], ["y"], body=inner)], held=held, outputs=[value("y", ["k"])])


@attack()
def loop_without_an_end(folder: Path) -> Path:
    return save(_loop(2**63 - 1, [node("Relu", ["v"], ["w"])]), folder)


@attack()
def loop_that_doubles(folder: Path) -> Path:
    return save(_loop(64, [node("Concat", ["v", "v"], ["w"], axis=0)]), folder)


@attack()
def if_with_a_known_condition_and_a_bomb(folder: Path) -> Path:
    branch = body([node("ConstantOfShape", ["s"], ["o"])], ["o"])
    made = model([node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)],
                 held=[tensor(np.bool_(True), "c"), tensor(ints(10**11), "s")], opsets=[("", 17)])  # fmt: skip
    return save(made, folder)

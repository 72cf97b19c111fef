"""Hostile files: one function each, made into a folder. Some are refused, with an id; some are odd but sound.

``attack("id", …)`` names the ids of which one is expected; none means that the file may be opened, or refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Builder = Callable[[Path], "Path | None"]
F = TensorProto.FLOAT
ESCAPES = "\x1b[2J\x1b]0;owned\x07\x9b31m\r\b\n"


@dataclass(frozen=True)
class Attack:
    """A builder and what is expected of ``penstock check``; a file that isn't refused is optimized as well."""

    name: str
    build: Builder
    refused: tuple[str, ...]
    opened: bool  # it must be opened: refusing it would be wrong


ATTACKS: dict[str, Attack] = {}


def attack(*refused: str, opened: bool = False) -> Callable[[Builder], Builder]:
    def register(build: Builder) -> Builder:
        ATTACKS[build.__name__] = Attack(build.__name__, build, refused, opened)
        return build

    return register


def save(model: onnx.ModelProto, folder: Path) -> Path:
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    return folder / "m.onnx"


def value(name: str, shape: list[int | str] | None = None, kind: int = F) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, [1] if shape is None else shape)


def model(
    nodes: list[onnx.NodeProto],
    *,
    inputs: list[onnx.ValueInfoProto] | None = None,
    outputs: list[onnx.ValueInfoProto] | None = None,
    held: list[onnx.TensorProto] | None = None,
    functions: list[onnx.FunctionProto] | None = None,
    opsets: list[tuple[str, int]] | None = None,
) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "g", inputs or [value("x")], outputs or [value("y")], held or [])
    imports = [helper.make_opsetid(*entry) for entry in opsets or [("", 17), ("own", 1)]]
    return helper.make_model(graph, functions=functions or [], opset_imports=imports, ir_version=8)


def node(op: str, inputs: list[str], outputs: list[str], **attributes: object) -> onnx.NodeProto:
    return helper.make_node(op, inputs, outputs, **attributes)


def tensor(array: object, name: str) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(array), name)


def identity() -> onnx.ModelProto:
    return model([node("Identity", ["x"], ["y"])])


def with_weight(held: onnx.TensorProto) -> onnx.ModelProto:
    return model([node("Add", ["x", held.name], ["y"])], held=[held], outputs=[value("y", ["n"])])


def body(nodes: list[onnx.NodeProto], outputs: list[str], inputs: list[str] | None = None) -> onnx.GraphProto:
    return helper.make_graph(nodes, "body", [value(n) for n in inputs or []], [value(n) for n in outputs])


def function(name: str, nodes: list[onnx.NodeProto]) -> onnx.FunctionProto:
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    return helper.make_function("own", name, ["a"], ["b"], nodes, imports)


def wrapped(data: bytes, number: int) -> bytes:
    size, length = len(data), b""
    while size >= 0x80:
        length += bytes([size & 0x7F | 0x80])
        size >>= 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + data


# -- functions and bodies ----------------------------------------------------------------------------------------------


def _laughs(levels: int) -> onnx.ModelProto:
    functions = [function("F0", [node("Relu", ["a"], ["b"])])]
    for i in range(1, levels):
        calls = [node(f"F{i - 1}", ["a"], ["c"], domain="own"), node(f"F{i - 1}", ["c"], ["b"], domain="own")]
        functions.append(function(f"F{i}", calls))
    return model([node(f"F{levels - 1}", ["x"], ["y"], domain="own")], functions=functions)


@attack("function-explosion")
def billion_laughs(folder: Path) -> Path:
    return save(_laughs(26), folder)


@attack("function-explosion")
def laughs_beyond_any_number(folder: Path) -> Path:
    return save(_laughs(3000), folder)


@attack()
def laughs_below_the_limit(folder: Path) -> Path:
    return save(_laughs(16), folder)


@attack("recursive-function")
def recursive_function(folder: Path) -> Path:
    return save(
        model(
            [node("F", ["x"], ["y"], domain="own")],
            functions=[
                function("F", [node("G", ["a"], ["b"], domain="own")]),
                function("G", [node("F", ["a"], ["b"], domain="own")]),
            ],
        ),
        folder,
    )


@attack("function-explosion")
def explosion_inside_a_body(folder: Path) -> Path:
    made = _laughs(26)
    call = node("F25", ["x"], ["o"], domain="own")
    branches = {"then_branch": body([call], ["o"]), "else_branch": body([node("Identity", ["x"], ["o"])], ["o"])}
    made.graph.ClearField("node")
    made.graph.node.extend([node("Cast", ["x"], ["c"], to=TensorProto.BOOL), node("If", ["c"], ["y"], **branches)])
    return save(made, folder)


def _nested(levels: int) -> onnx.ModelProto:
    inner = body([node("Identity", ["x"], ["o0"])], ["o0"])
    for i in range(1, levels):
        inner = body([node("If", ["c"], [f"o{i}"], then_branch=inner, else_branch=inner)], [f"o{i}"])
        if inner.ByteSize() > 1 << 20:
            break
    top = node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    return model([node("Cast", ["x"], ["c"], to=TensorProto.BOOL), top])


@attack()
def branches_that_double(folder: Path) -> Path:
    return save(_nested(10), folder)


@attack("too-deep")
def bodies_too_deep(folder: Path) -> Path:
    inner = body([node("Identity", ["x"], ["o0"])], ["o0"])
    for i in range(1, 24):
        inner = body([node("Own", [], [f"o{i}"], domain="own", only=inner)], [f"o{i}"])
    return save(model([node("Own", ["x"], ["y"], domain="own", only=inner)]), folder)


@attack("too-deep", "not-onnx")
def protobuf_a_thousand_deep(folder: Path) -> Path:
    data = b""
    for _ in range(20_000):
        data = wrapped(wrapped(wrapped(data, 6), 5), 1)  # graph ← attribute ← node
        if len(data) > 1 << 20:
            break
    (folder / "m.onnx").write_bytes(wrapped(data, 7))
    return folder / "m.onnx"


@attack("too-deep", "not-onnx")
def types_ten_thousand_deep(folder: Path) -> Path:
    data = b""
    for _ in range(10_000):
        data = wrapped(wrapped(data, 1), 4)  # sequence of sequence of …
    (folder / "m.onnx").write_bytes(wrapped(wrapped(wrapped(data, 2), 11), 7))
    return folder / "m.onnx"


@attack("cyclic-graph")
def circle(folder: Path) -> Path:
    return save(model([node("Add", ["x", "b"], ["a"]), node("Relu", ["a"], ["b"]), node("Relu", ["b"], ["y"])]), folder)


@attack("cyclic-graph")
def circle_through_a_body(folder: Path) -> Path:
    inner = body([node("Identity", ["y"], ["o"])], ["o"])
    return save(
        model([node("Cast", ["x"], ["c"], to=9), node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)]),
        folder,
    )


@attack("duplicate-name")
def one_name_twice(folder: Path) -> Path:
    return save(model([node("Relu", ["x"], ["y"]), node("Abs", ["x"], ["y"])]), folder)


@attack("duplicate-name")
def two_functions_of_one_name(folder: Path) -> Path:
    same = [function("F", [node("Relu", ["a"], ["b"])]), function("F", [node("Abs", ["a"], ["b"])])]
    return save(model([node("F", ["x"], ["y"], domain="own")], functions=same), folder)


@attack("duplicate-name")
def two_initializers_of_one_name(folder: Path) -> Path:
    made = with_weight(tensor(np.ones(1, np.float32), "w"))
    made.graph.initializer.append(tensor(np.zeros(1, np.float32), "w"))
    return save(made, folder)


@attack(opened=True)
def weights_that_are_inputs(folder: Path) -> Path:
    made = with_weight(tensor(np.ones(1, np.float32), "w"))
    made.graph.input.append(value("w"))
    return save(made, folder)


@attack("undeclared-domain")
def undeclared_domain(folder: Path) -> Path:
    return save(model([node("Op", ["x"], ["y"], domain="com.evil")]), folder)


@attack("undefined-value")
def reads_what_nothing_makes(folder: Path) -> Path:
    return save(model([node("Add", ["x", "ghost"], ["y"])]), folder)


# -- opsets, versions, fields ------------------------------------------------------------------------------------------


@attack("duplicate-opset")
def two_opsets(folder: Path) -> Path:
    return save(model([node("Relu", ["x"], ["y"])], opsets=[("", 13), ("ai.onnx", 17)]), folder)


def _opset(version: int, folder: Path) -> Path:
    return save(model([node("Relu", ["x"], ["y"])], opsets=[("", version)]), folder)


@attack()
def opset_zero(folder: Path) -> Path:
    return _opset(0, folder)


@attack("bad-opset")
def opset_negative(folder: Path) -> Path:
    return _opset(-7, folder)


@attack()
def opset_of_the_future(folder: Path) -> Path:
    return _opset(999, folder)


@attack("bad-opset")
def opset_at_the_end_of_numbers(folder: Path) -> Path:
    return _opset(2**63 - 1, folder)


@attack()
def ir_version_of_the_future(folder: Path) -> Path:
    made = identity()
    made.ir_version = 2**63 - 1
    return save(made, folder)


@attack()
def ir_version_negative(folder: Path) -> Path:
    made = identity()
    made.ir_version = -1
    return save(made, folder)


@attack()
def unknown_fields(folder: Path) -> Path:
    (folder / "m.onnx").write_bytes(identity().SerializeToString() + wrapped(b"novel" * 1000, 15) + b"\xf8\x7f\x01")
    return folder / "m.onnx"


@attack()
def training_info(folder: Path) -> Path:
    made = identity()
    info = made.training_info.add()
    info.algorithm.CopyFrom(made.graph)
    info.initialization.node.append(node("Op", ["ghost"], ["ghost"], domain="com.evil"))
    return save(made, folder)


@attack()
def a_kind_of_value_that_is_none(folder: Path) -> Path:
    made = identity()
    made.graph.input[0].type.tensor_type.elem_type = 12345
    return save(made, folder)


@attack()
def attributes_of_the_wrong_type(folder: Path) -> Path:
    made = model([node("Conv", ["x", "x"], ["y"], pads="all", strides=[2**62, -(2**62)], kernel_shape=[-1])])
    return save(made, folder)


@attack()
def an_attribute_that_refers_to_itself(folder: Path) -> Path:
    made = identity()
    made.graph.node[0].attribute.add(name="to", ref_attr_name="to", type=2)
    return save(made, folder)


# -- names -------------------------------------------------------------------------------------------------------------


@attack(opened=True)
def escapes_in_names(folder: Path) -> Path:
    """Every text of the file that the commands may print holds terminal sequences and rich's markup."""
    evil = f"{ESCAPES}[bold red]x[/] \u202e\u2066\u200b"
    made = model(
        [node("Relu", [evil], [evil + "r"], name=evil), node("Novel", [evil + "r"], [evil + "o"], name=evil + "n",
                                                             domain=evil)],
        inputs=[value(evil, [evil + "N", 3])], outputs=[value(evil + "o", [evil + "N", 3])],
        opsets=[("", 17), (evil, 1)],
    )  # fmt: skip
    made.producer_name = made.producer_version = made.doc_string = evil
    made.graph.name = evil
    return save(made, folder)


@attack("cyclic-graph")
def escapes_in_a_refusal(folder: Path) -> Path:
    evil = f"{ESCAPES}[/bold]"
    return save(model([node("Add", ["x", "y"], [evil], name=evil), node("Relu", [evil], ["y"], name=evil)]), folder)


@attack("undeclared-domain")
def escapes_in_a_domain(folder: Path) -> Path:
    return save(model([node(ESCAPES, ["x"], ["y"], domain=ESCAPES)]), folder)


@attack(opened=True)
def escapes_in_a_declined_node(folder: Path) -> Path:
    """A node that a pass declines, and says so by its name."""
    evil = f"{ESCAPES}[red]"
    shape = tensor(np.array([10**6], np.int64), "shape")
    return save(
        model([node("ConstantOfShape", ["shape"], ["big"], name=evil), node("Add", ["x", "big"], ["y"], name=evil)],
              held=[shape], outputs=[value("y", ["n"])]), folder,
    )  # fmt: skip


@attack()
def names_of_megabytes(folder: Path) -> Path:
    long = "n" * 3_000_000
    return save(
        model([node("Novel", [long], [long + "o"], name=long, domain="own")], inputs=[value(long, [long])],
              outputs=[value(long + "o")]), folder,
    )  # fmt: skip


@attack("undefined-value", "name-too-long")
def a_long_name_in_a_refusal(folder: Path) -> Path:
    return save(model([node("Add", ["x", "g" * 5_000_000], ["y"], name="n" * 5_000_000)]), folder)


@attack("not-text", "not-onnx")
def names_that_are_no_text(folder: Path) -> Path:
    data = identity().SerializeToString().replace(b"Identity", b"Ident\xff\xfey")
    (folder / "m.onnx").write_bytes(data)
    return folder / "m.onnx"


@attack()
def names_with_surrogates_and_zeros(folder: Path) -> Path:
    return save(model([node("Relu", ["x"], ["y\0\0"], name="\0")], outputs=[value("y\0\0")]), folder)

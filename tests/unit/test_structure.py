"""Names, functions and extents of hostile models: counted without expanding or building anything."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from penstock import precheck, trial
from penstock.analysis import wire
from penstock.errors import InputError

FLOATS = TensorProto.FLOAT
LIMITS = wire.Limits(
    nodes=10**6,
    body_nodes=10**6,
    tensors=10**6,
    messages=10**6,
    numbers=10**6,
    integer_bytes=10**6,
    text_bytes=10**6,
    name_bytes=10**6,
    depth=50,
)


def model(
    nodes: list[onnx.NodeProto],
    *,
    inputs: tuple[str, ...] = ("x",),
    outputs: tuple[str, ...] = ("y",),
    weights: tuple[str, ...] = (),
    functions: tuple[onnx.FunctionProto, ...] = (),
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info(name, FLOATS, [2]) for name in inputs],
        [helper.make_tensor_value_info(name, FLOATS, [2]) for name in outputs],
        [numpy_helper.from_array(np.ones(2, np.float32), name) for name in weights],
    )  # fmt: skip
    imports = [helper.make_opsetid("", 17), *([helper.make_opsetid("own", 1)] if functions else [])]
    return helper.make_model(graph, opset_imports=imports, ir_version=8, functions=list(functions))


def node(op: str, inputs: list[str], outputs: list[str], **attributes: object) -> onnx.NodeProto:
    return helper.make_node(op, inputs, outputs, **attributes)


def doubling(depth: int) -> list[onnx.FunctionProto]:
    """Functions f0 … each of which calls the next one twice: 2^depth nodes from a kilobyte."""
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    made = [helper.make_function("own", f"f{depth}", ["a"], ["b"], [node("Relu", ["a"], ["b"])], imports)]
    for i in range(depth):
        calls = [node(f"f{i + 1}", ["a"], ["m"], domain="own"), node(f"f{i + 1}", ["m"], ["b"], domain="own")]
        made.append(helper.make_function("own", f"f{i}", ["a"], ["b"], calls, imports))
    return made


def body(nodes: list[onnx.NodeProto], output: str = "inner") -> onnx.GraphProto:
    return helper.make_graph(nodes, "body", [], [helper.make_tensor_value_info(output, FLOATS, [2])])


def nest(depth: int) -> onnx.NodeProto:
    made = node("Relu", ["x"], ["inner"])
    for _ in range(depth):
        branch = body([made])
        made = node("If", ["c"], ["inner"], then_branch=branch, else_branch=branch)
    return made


def ids(made: onnx.ModelProto, tmp_path: Path, settings: precheck.CheckSettings | None = None) -> dict[str, str]:
    path = tmp_path / "m.onnx"
    path.write_bytes(made.SerializeToString())
    return {finding.id: finding.severity for finding in precheck.examine(path, settings).findings}


CASES = {
    "cyclic-graph": model([node("Add", ["x", "b"], ["a"]), node("Relu", ["a"], ["b"]), node("Relu", ["b"], ["y"])]),
    "undefined-value": model([node("Relu", ["nobody"], ["y"])]),
    "duplicate-name": model([node("Relu", ["x"], ["y"]), node("Neg", ["x"], ["y"])]),
    "undeclared-domain": model([node("Gelu", ["x"], ["y"], domain="com.microsoft")]),
    "function-explosion": model([node("f0", ["x"], ["y"], domain="own")], functions=tuple(doubling(25))),
    "recursive-function": model(
        [node("f", ["x"], ["y"], domain="own")],
        functions=(helper.make_function(
            "own", "f", ["a"], ["b"], [node("f", ["a"], ["b"], domain="own")], [helper.make_opsetid("own", 1)]
        ),),
    ),
}  # fmt: skip


@pytest.mark.parametrize("id", CASES)
def test_what_is_refused(id: str, tmp_path: Path) -> None:
    found = ids(CASES[id], tmp_path)
    assert found.get(id) == "refused", found
    with pytest.raises(InputError) as caught:
        precheck.check(tmp_path / "m.onnx")
    assert caught.value.do


def test_a_cycle_through_a_body(tmp_path: Path) -> None:
    branch = body([node("Relu", ["y"], ["inner"])])
    made = model([node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)])
    assert ids(made, tmp_path)["cyclic-graph"] == "refused"


def test_a_body_sees_the_names_around_it(tmp_path: Path) -> None:
    branch = body([node("Relu", ["x"], ["inner"])])
    made = model([node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)])
    assert ids(made, tmp_path) == {}
    branch.node[0].input[0] = "nobody"
    made = model([node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)])
    assert ids(made, tmp_path)["undefined-value"] == "refused"


def test_an_unsorted_graph_is_no_cycle(tmp_path: Path) -> None:
    assert ids(model([node("Relu", ["a"], ["y"]), node("Neg", ["x"], ["a"])]), tmp_path) == {}


def test_expanded_count_is_exact(tmp_path: Path) -> None:
    made = model([node("f0", ["x"], ["y"], domain="own")], functions=tuple(doubling(5)))
    assert ids(made, tmp_path, precheck.CheckSettings(max_nodes=32)) == {}
    assert ids(made, tmp_path, precheck.CheckSettings(max_nodes=31))["function-explosion"] == "refused"


def test_initializers_that_are_inputs(tmp_path: Path) -> None:
    made = model([node("Add", ["x", "w"], ["y"])], inputs=("x", "w"), weights=("w",))
    assert ids(made, tmp_path) == {"shadowed-input": "warning"}


def test_nesting_is_held_to_its_limit(tmp_path: Path) -> None:
    made = model([nest(3), node("Relu", ["inner"], ["y"])], inputs=("x", "c"))
    assert ids(made, tmp_path) == {}
    assert ids(made, tmp_path, precheck.CheckSettings(max_subgraph_depth=3)) == {"too-deep": "refused"}
    assert ids(made, tmp_path, precheck.CheckSettings(max_depth=10)) == {"too-deep": "refused"}


def test_the_walk_counts_what_the_parser_would_build(tmp_path: Path) -> None:
    made = model([node("Relu", ["x"], ["a"]), node("Relu", ["a"], ["y"])])
    found = wire.extent(made.SerializeToString(), LIMITS)
    assert (found.nodes, found.subgraph_depth, found.whole) == (2, 1, True)
    many = onnx.ModelProto()
    for _ in range(5000):
        many.graph.node.add()
    found = wire.extent(many.SerializeToString(), replace(LIMITS, nodes=100))
    assert found.nodes == 101 and not found.whole


def test_nodes_in_bodies_have_a_limit_of_their_own(tmp_path: Path) -> None:
    """Of bodies that lie in each other each node counts once; those outside don't."""
    made = model([nest(3), node("Relu", ["inner"], ["y"])], inputs=("x", "c"))
    found = wire.extent(made.SerializeToString(), LIMITS)
    inside = found.body_nodes
    assert inside == (1 + wire.COST_OF_A_BODY) * (found.nodes - 2), "each body has one node"
    assert ids(made, tmp_path, precheck.CheckSettings(max_body_nodes=inside)) == {}
    assert ids(made, tmp_path, precheck.CheckSettings(max_body_nodes=inside - 1)) == {"too-many-nodes": "refused"}


@pytest.mark.parametrize("field", ["raw_data", "float_data"])
def test_data_that_does_not_fit(field: str, tmp_path: Path) -> None:
    made = model([node("Add", ["x", "w"], ["y"])], weights=("w",))
    tensor = made.graph.initializer[0]
    tensor.dims[0] = 3
    if field == "float_data":
        tensor.ClearField("raw_data")
        tensor.float_data.extend([1.0, 2.0])
    assert ids(made, tmp_path)["bad-tensor"] == "refused"


def test_an_endless_loop_ends_as_a_message(tmp_path: Path) -> None:
    """A Loop whose condition stays true and whose count is not given: the runtime never returns."""
    info = helper.make_tensor_value_info
    inner = helper.make_graph(
        [node("Identity", ["go"], ["go_on"]), node("Identity", ["state"], ["next"])],
        "body",
        [info("i", TensorProto.INT64, []), info("go", TensorProto.BOOL, []), info("state", FLOATS, [2])],
        [info("go_on", TensorProto.BOOL, []), info("next", FLOATS, [2])],
    )  # fmt: skip
    made = model([node("Loop", ["", "yes", "x"], ["y"], body=inner)])
    made.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    path = tmp_path / "m.onnx"
    path.write_bytes(made.SerializeToString())
    precheck.check(path)  # nothing about the file tells
    with precheck.limits(precheck.CheckSettings(session_seconds=3.0)), pytest.raises(InputError) as caught:
        trial.run(path, [{"x": np.ones(2, np.float32)}], "m.onnx")
    assert caught.value.id == "worker-timeout" and "loop" in caught.value.do and caught.value.where == "m.onnx"


def test_an_allocation_bomb_ends_as_a_message(tmp_path: Path) -> None:
    """Forty bytes that ask for 40 GB."""
    made = model([node("ConstantOfShape", ["n"], ["big"], value=numpy_helper.from_array(np.ones(1, np.float32))),
                  node("ReduceSum", ["big"], ["s"], keepdims=0), node("Add", ["x", "s"], ["y"])])  # fmt: skip
    made.graph.initializer.append(numpy_helper.from_array(np.array([10_000_000_000], np.int64), "n"))
    path = tmp_path / "m.onnx"
    path.write_bytes(made.SerializeToString())
    held = precheck.CheckSettings(session_seconds=30.0, session_memory_bytes=1 << 30)
    with precheck.limits(held), pytest.raises(InputError) as caught:
        trial.run(path, [{"x": np.ones(2, np.float32)}], "m.onnx")
    assert caught.value.id in ("worker-memory", "run-failed", "worker-crash") and caught.value.where == "m.onnx"


def test_a_sound_model_is_tried(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(model([node("Relu", ["x"], ["y"])]).SerializeToString())
    found = trial.run(path, [{"x": np.ones(2, np.float32)}], "m.onnx")
    assert float(str(found["seconds"])) > 0


def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    data = model([node("Relu", ["x"], ["hidden"]), node("Neg", ["hidden"], ["y"])]).SerializeToString()
    (tmp_path / "m.onnx").write_bytes(data.replace(b"hidden", b"hi\xff\xfeen"))
    assert [finding.id for finding in precheck.examine(tmp_path / "m.onnx").refused] == ["not-text"]


def test_names_reach_the_terminal_harmless(tmp_path: Path) -> None:
    made = model([node("Relu", ["\x1b[31mred\n" + "x" * 10_000], ["y"])])
    (tmp_path / "m.onnx").write_bytes(made.SerializeToString())
    told = precheck.examine(tmp_path / "m.onnx").refused[0].what
    assert "\x1b" not in told and "\n" not in told and len(told) < 200


@pytest.mark.parametrize(
    ("data", "counted"),
    [
        (b"\x40\x01" * 1000, 1000),  # one field, again and again
        (b"\x3d\x00\x00\x80\x3f" * 1000, 1000),
        (b"\x11" + b"\xff" * 8, 4),  # a single one, by the bytes that it takes
        (b"\xf8\x07\x01" * 1000, 1500),
        (b"\x18\x80\x80\x01" * 2_000_000, 2_000_000),  # longer than the pieces that it is read in
    ],
)
def test_numbers_are_counted(data: bytes, counted: int) -> None:
    found = wire.extent(data, replace(LIMITS, numbers=10**9))
    assert found.whole and found.numbers == counted
    assert not wire.extent(data + b"\x18", replace(LIMITS, numbers=10**9)).whole
    assert not wire.extent(data, replace(LIMITS, numbers=counted - 1)).whole


def test_the_walk_knows_every_kind_of_message() -> None:
    """The kinds come from onnx's own description, so that a new one is followed as well."""
    kinds = wire._kinds()
    assert {"onnx.NodeProto", "onnx.TensorShapeProto.Dimension", "onnx.ShardingSpecProto"} <= kinds.keys()
    assert {1, 2, 3, 4, 7, 8} == kinds["onnx.NodeProto"].names
    assert [kinds["onnx.TensorProto"].packed[n] for n in (4, 5, 7, 10)] == [0, 4, 8, 0]


@pytest.mark.shared
def test_real_models_are_far_from_the_limits(shared: Path) -> None:
    held = precheck.CheckSettings()
    paths = sorted(shared.glob("models/*/model.onnx"))
    assert len(paths) >= 30
    for path in paths:
        found = wire.extent(
            path.read_bytes(),
            wire.Limits(
                held.max_nodes // 15, held.max_body_nodes // 15, held.max_tensors // 15, held.max_messages // 15,
                held.max_numbers // 15, held.max_integer_bytes // 15, held.max_text_bytes // 15,
                held.max_name_bytes // 15, held.max_depth // 2,
            ),
        )  # fmt: skip
        assert found.whole, f"{path}: {found}"


def test_a_large_model_passes(tmp_path: Path) -> None:
    """50,000 nodes with the names, shapes and weights that an exporter writes."""
    made = onnx.ModelProto(ir_version=8, opset_import=[helper.make_opsetid("", 17)])
    made.graph.input.append(helper.make_tensor_value_info("x", FLOATS, ["batch", 4]))
    weight = numpy_helper.from_array(np.ones(4, np.float32))
    before = "x"
    for index in range(25_000):
        weight.name = f"layers.{index}.weight"
        made.graph.initializer.append(weight)
        for op, operand in (("Mul", weight.name), ("LeakyRelu", "")):
            name = f"/layers.{index}/{op}"
            call = node(op, [before, operand] if operand else [before], [f"{name}_output_0"], name=name)
            call.attribute.extend([helper.make_attribute("alpha", 0.1)] if not operand else [])
            made.graph.node.append(call)
            before = f"{name}_output_0"
            made.graph.value_info.append(helper.make_tensor_value_info(before, FLOATS, ["batch", 4]))
    made.graph.output.append(helper.make_tensor_value_info(before, FLOATS, ["batch", 4]))
    (tmp_path / "m.onnx").write_bytes(made.SerializeToString())
    assert precheck.examine(tmp_path / "m.onnx").findings == ()


def test_functions_in_a_line_stand_for_what_they_hold(tmp_path: Path) -> None:
    """900 functions, each of which calls the next one once, are one node and no explosion."""
    from penstock import graph
    from penstock.passes._library import expanded_size

    imports = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    line = [helper.make_function("own", "f0", ["a"], ["b"], [node("Relu", ["a"], ["b"])], imports)]
    for i in range(1, 900):
        call = node(f"f{i - 1}", ["a"], ["b"], domain="own")
        line.append(helper.make_function("own", f"f{i}", ["a"], ["b"], [call], imports))
    made = model([node("f899", ["x"], ["y"], domain="own")], functions=tuple(line))
    (tmp_path / "m.onnx").write_bytes(made.SerializeToString())
    loaded = graph.load(tmp_path / "m.onnx")
    assert expanded_size(loaded, 50_000) == 1
    made = model([node("f0", ["x"], ["y"], domain="own")], functions=tuple(doubling(10)))
    (tmp_path / "m.onnx").write_bytes(made.SerializeToString())
    loaded = graph.load(tmp_path / "m.onnx")
    assert expanded_size(loaded, 50_000) == 1024 and expanded_size(loaded, 1000) == 1000

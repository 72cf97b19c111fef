"""The proof: right results are proved, wrong ones are found, and what can't be compared is told with the reason."""

import math
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from penstock import proof
from penstock.proof import Proof, compare
from rewriting_cases import floats, in_branch, model, node

X = {"x": ("batch", 4)}
MEMORY = 1 << 30


def proved(tmp_path: Path, before: onnx.ModelProto, after: onnx.ModelProto, *, seeds: int = 2) -> Proof:
    paths = [tmp_path / "before.onnx", tmp_path / "after.onnx"]
    for path, proto in zip(paths, (before, after), strict=True):
        path.write_bytes(proto.SerializeToString())
    return proof.compare(*paths, seeds)


def unary(op: str, **attributes: object) -> onnx.ModelProto:
    return model([node(op, ["x"], ["y"], name="one", **attributes)], X, ["y"])


def test_equal_models_are_proved_at_two_sizes(tmp_path: Path) -> None:
    found = proved(tmp_path, unary("Relu"), unary("Relu"))
    assert (found.state, found.reason, found.oracle, found.worst) == ("proved", "", "onnxruntime", 0.0)
    assert found.runs == 3, "all seeds at one size, one at another"
    assert len({size["batch"] for size in found.sizes}) == 2


def test_a_static_model_runs_once_for_each_seed(tmp_path: Path) -> None:
    proto = model([node("Relu", ["x"], ["y"])], {"x": (2, 4)}, ["y"])
    assert proved(tmp_path, proto, proto, seeds=4).runs == 4


def test_another_result_is_found(tmp_path: Path) -> None:
    found = proved(tmp_path, unary("Relu"), unary("LeakyRelu", alpha=0.01))
    assert (
        found.state == "failed" and "the output 'y' differs by" in found.reason and "0.0001 is allowed" in found.reason
    )
    assert found.worst > 1e-4


def test_a_difference_within_the_bound_is_a_figure(tmp_path: Path) -> None:
    found = proved(tmp_path, unary("Relu"), unary("LeakyRelu", alpha=1e-6))
    assert found.state == "proved" and 0 < found.worst < 1e-5


@pytest.mark.parametrize(("dtype", "gap"), [("float16", 5e-3), ("float32", 5e-5), ("float64", 5e-10)])
def test_bounds_are_those_of_the_type(tmp_path: Path, dtype: str, gap: float) -> None:
    def scaled(by: float) -> onnx.ModelProto:
        return model([node("Mul", ["x", "k"], ["y"])], {"x": (dtype, ("batch", 4))}, ["y"], {"k": np.array(by, dtype)})

    assert proved(tmp_path, scaled(1.0), scaled(1.0 + gap)).state == "proved"
    assert proved(tmp_path, scaled(1.0), scaled(1.0 + 4 * gap)).state == "failed"


def test_whole_numbers_have_to_be_equal(tmp_path: Path) -> None:
    def argmax(nodes: list[onnx.NodeProto]) -> onnx.ModelProto:
        return model(
            [*nodes, node("ArgMax", [nodes[-1].output[0]], ["y"], axis=1, keepdims=0)], {"x": ("batch", 64)}, ["y"]
        )

    same = argmax([node("Identity", ["x"], ["a"])])
    assert proved(tmp_path, same, argmax([node("Exp", ["x"], ["a"])])).state == "proved"
    found = proved(tmp_path, same, argmax([node("Neg", ["x"], ["a"])]))
    assert found.state == "failed" and "% of the output 'y' differ" in found.reason
    assert found.worst == math.inf


def test_shapes_and_types_have_to_be_equal(tmp_path: Path) -> None:
    flat = model([node("Flatten", ["x"], ["y"], axis=0)], X, ["y"])
    assert proved(tmp_path, unary("Identity"), flat).state == "failed"
    cast = unary("Cast", to=onnx.TensorProto.DOUBLE)
    found = proved(tmp_path, unary("Identity"), cast)
    assert found.state == "failed" and "'y'" in found.reason


def test_a_difference_at_other_sizes_only_is_found(tmp_path: Path) -> None:
    """The result baked the batch in."""
    before = model([node("Reshape", ["x", "s"], ["y"])], {"x": ("batch", 2, 2)}, ["y"], {"s": [0, -1]})
    after = model([node("Reshape", ["x", "s"], ["y"])], {"x": ("batch", 2, 2)}, ["y"], {"s": [2, 4]})
    after.graph.output[0].CopyFrom(before.graph.output[0])
    found = proved(tmp_path, before, after)
    assert found.state == "failed" and found.runs == 2 and "the result doesn't run with" in found.reason


def test_a_result_that_no_runtime_takes_is_found(tmp_path: Path) -> None:
    found = proved(tmp_path, unary("Relu"), unary("Relu", slope=1.0))
    assert found.state == "failed" and found.reason.startswith("the result can't be loaded")


def test_a_model_that_changes_from_run_to_run_is_proved_in_part(tmp_path: Path) -> None:
    nodes = [node("RandomNormalLike", ["x"], ["r"]), node("Add", ["x", "r"], ["y"]), node("Neg", ["x"], ["z"])]
    proto = model(nodes, X, ["y", "z"])
    found = proved(tmp_path, proto, proto)
    assert (found.state, found.runs) == ("partial", 3)
    assert found.reason == "the model's own output 'y' changes from run to run"
    wrong = model([*nodes[:2], node("Abs", ["x"], ["z"])], X, ["y", "z"])
    assert proved(tmp_path, proto, wrong).state == "failed", "the other output is compared all the same"


def test_operators_that_no_oracle_has_are_named(tmp_path: Path) -> None:
    proto = model([node("Stretch", ["x"], ["m"], domain="com.acme"), node("Relu", ["m"], ["y"])], X, ["y"],
                  imports={"com.acme": 1})  # fmt: skip
    found = proved(tmp_path, proto, proto)
    assert found.state == "skipped" and found.runs == 0
    assert "no oracle runs the model as it came" in found.reason and "com.acme" in found.reason


def test_inputs_that_suit_no_made_up_numbers(tmp_path: Path) -> None:
    """The model is to get indices below 2 and of one length, which nothing says of its input."""
    nodes = [node("Cast", ["i"], ["c"], to=onnx.TensorProto.INT64), node("Mul", ["c", "k"], ["m"]),
             node("Gather", ["t", "m"], ["y"])]  # fmt: skip
    proto = model(nodes, {"i": ("int32", ("n",))}, ["y"], {"t": floats(0, 2), "k": [1 << 40]})
    found = proved(tmp_path, proto, proto)
    assert found.state in ("skipped", "partial") and found.reason


def test_every_mode_that_the_graph_compares_an_input_with_is_run(tmp_path: Path) -> None:
    def switched(op: str) -> onnx.ModelProto:
        inner = model([node("Exp", ["x"], ["a"]), node(op, ["a"], ["y"])], X, ["y"])
        proto = in_branch(inner)
        proto.graph.node.insert(0, node("Equal", ["rate", "known"], ["taken"]))
        del proto.graph.input[-1]
        proto.graph.input.append(onnx.helper.make_tensor_value_info("rate", onnx.TensorProto.INT64, []))
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array(16000), "known"))
        return proto

    right = proved(tmp_path, switched("Neg"), switched("Neg"))
    assert any(size.get("rate") == 16000 for size in right.sizes), right
    found = proved(tmp_path, switched("Neg"), switched("Abs"))
    assert found.state == "failed" and "'rate': 16000" in found.reason


def test_numbers_that_are_no_numbers_have_to_agree(tmp_path: Path) -> None:
    assert proved(tmp_path, unary("Log"), unary("Log")).state == "proved", "NaN is as good as NaN"
    apart = model([node("Abs", ["x"], ["a"]), node("Log", ["a"], ["y"])], X, ["y"])
    assert proved(tmp_path, unary("Log"), apart).state == "failed"


def test_the_whole_of_it_in_a_process_of_its_own(tmp_path: Path) -> None:
    before, after = tmp_path / "a.onnx", tmp_path / "b.onnx"
    before.write_bytes(unary("Relu").SerializeToString())
    after.write_bytes(unary("Neg").SerializeToString())
    same = proof.prove(before, before, seeds=2, seconds=30.0, memory_bytes=MEMORY)
    assert same == Proof("proved", "", "onnxruntime", 3, 0.0, same.sizes)
    found = proof.prove(before, after, seeds=2, seconds=30.0, memory_bytes=MEMORY)
    assert found.state == "failed" and "'y' differs by" in found.reason


def test_a_model_that_never_ends_is_skipped(tmp_path: Path) -> None:
    info = onnx.helper.make_tensor_value_info
    body = onnx.helper.make_graph(
        [node("Identity", ["go"], ["on"]), node("Identity", ["s"], ["t"])], "body",
        [info("i", onnx.TensorProto.INT64, []), info("go", onnx.TensorProto.BOOL, []), info("s", 1, ["batch", 4])],
        [info("on", onnx.TensorProto.BOOL, []), info("t", 1, ["batch", 4])],
    )  # fmt: skip
    proto = model([node("Loop", ["", "", "x"], ["y"], body=body)], X, ["y"])
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    found = proof.prove(path, path, seeds=1, seconds=1.0, memory_bytes=MEMORY)
    assert found.state == "skipped" and "allow more with --proof-seconds" in found.reason


def with_unknown(folder: Path, name: str, *, wrong: bool = False, typed: bool = True, body: bool = False) -> Path:
    """Save x → Relu → an operator that nobody knows → Neg → y; a wrong one has an Abs in the place of the Neg."""
    info = helper.make_tensor_value_info
    nodes = [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Foo", ["a", "w"], ["b"], domain="acme"),
             helper.make_node("Abs" if wrong else "Neg", ["b"], ["y"])]  # fmt: skip
    if body:
        then, other = (helper.make_graph(nodes, "then", [], [info("y", TensorProto.FLOAT, None)]) for _ in range(2))
        nodes = [helper.make_node("If", ["c"], ["out"], then_branch=then, else_branch=other)]
    shape = ["batch", 4]
    graph = helper.make_graph(
        nodes, "g", [info("x", TensorProto.FLOAT, shape), *([info("c", TensorProto.BOOL, [])] if body else [])],
        [info("out" if body else "y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(np.ones(4, np.float32), "w")],
        value_info=[info("b", TensorProto.FLOAT, shape)] if typed else [],
    )  # fmt: skip
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("acme", 1)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=8), folder / name)
    return folder / name


def test_an_operator_that_no_oracle_knows_leaves_the_rest_proved(tmp_path: Path) -> None:
    found = compare(with_unknown(tmp_path, "a.onnx"), with_unknown(tmp_path, "b.onnx"), 2)
    assert found.state == "partial" and found.runs >= 2
    assert found.reason.startswith("all but acme::Foo, which no oracle here knows")


def test_what_is_wrong_beside_such_an_operator_is_found(tmp_path: Path) -> None:
    found = compare(with_unknown(tmp_path, "a.onnx"), with_unknown(tmp_path, "b.onnx", wrong=True), 2)
    assert found.state == "failed" and "'y' differs" in found.reason


def test_what_is_read_and_handed_out_around_them_goes_by_their_names(tmp_path: Path) -> None:
    """One of two hands out its second result alone; an Identity behind one is gone, and another that nobody reads."""
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in ("x", "y", "z", "b", "c")]
    first = helper.make_node("Foo", ["r"], ["", "b"], domain="acme", name="first")
    second = helper.make_node("Foo", ["b"], ["", "c"], domain="acme", name="second")
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("acme", 1)]

    def save(name: str, last: str, *more: onnx.NodeProto, plain: bool = False) -> Path:
        relu, end = helper.make_node("Relu", ["x"], ["r"]), helper.make_node(last, ["b"], ["y"])
        handed = second if plain else helper.make_node("Foo", ["b"], ["", "z"], domain="acme", name="second")
        nodes = [relu, first, handed, end, *([helper.make_node("Identity", ["c"], ["z"])] if plain else []), *more]
        made = helper.make_graph(nodes, "g", info[:1], info[1:3], value_info=info[3:])
        onnx.save(helper.make_model(made, opset_imports=imports, ir_version=8), tmp_path / name)
        return tmp_path / name

    unread = helper.make_node("Foo", ["r"], ["u"], domain="acme", name="third")
    before = save("a.onnx", "Neg", unread, plain=True)
    found = compare(before, save("b.onnx", "Neg"), 2)
    assert found.state == "partial" and found.reason.startswith("all but acme::Foo"), found
    assert compare(before, save("c.onnx", "Abs"), 2).state == "failed"


@pytest.mark.parametrize("given", [{"typed": False}, {"body": True}])
def test_where_it_cannot_be_cut_out_nothing_is_proved(given: dict, tmp_path: Path) -> None:
    found = compare(with_unknown(tmp_path, "a.onnx", **given), with_unknown(tmp_path, "b.onnx", **given), 2)
    assert found.state == "skipped" and "acme:Foo" in found.reason

"""The optimizer: to a fixpoint, the same bytes each time, harmless when a pass isn't."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from penstock import graph, registry
from penstock.errors import InputError, MissingError, UsageError
from penstock.passes import Declined, PassResult
from penstock.passes._order import in_order
from penstock.stages.optimize import MAIN, Optimized, OptimizeSettings, optimize


def messy() -> onnx.ModelProto:
    """A Conv and a BatchNormalization amid constants, identities, twins, dead nodes and shape arithmetic."""
    rng = np.random.default_rng(0)
    weights = {"w": rng.normal(size=(4, 3, 3, 3)), "b": rng.normal(size=4), "mean": rng.normal(size=4)}
    weights |= {"scale": np.ones(4), "shift": np.zeros(4), "var": np.full(4, 2.0), "twin": np.full(4, 2.0)}
    half = numpy_helper.from_array(np.array(0.5, np.float32))
    nodes = [
        helper.make_node("Constant", [], ["half"], value=half),
        helper.make_node("Identity", ["x"], ["x1"]),
        helper.make_node("Conv", ["x1", "w", "b"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c", "scale", "shift", "mean", "var"], ["n"], name="bn"),
        helper.make_node("Relu", ["n"], ["r1"]),
        helper.make_node("Relu", ["n"], ["r2"]),
        helper.make_node("Add", ["r1", "r2"], ["s"]),
        helper.make_node("Mul", ["s", "half"], ["m"]),
        helper.make_node("Sqrt", ["twin"], ["root"]),
        helper.make_node("Sigmoid", ["s"], ["dead"]),
        helper.make_node("Shape", ["w"], ["shape_of_w"]),
        helper.make_node("Flatten", ["m"], ["y"]),
        helper.make_node("Identity", ["root"], ["z"]),
    ]
    graph = helper.make_graph(
        nodes, "messy", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("y", ["batch", 256]), ("z", [4]))],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()],
    )  # fmt: skip
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=9)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "in" / "messy.onnx"
    path.parent.mkdir()
    onnx.save(messy(), path)
    return path


def run(model: Path, **settings: object) -> tuple[Optimized, onnx.ModelProto]:
    into = model.parent.parent / "out"
    into.mkdir(exist_ok=True)
    result = optimize(model, OptimizeSettings(**settings), into)
    return result, onnx.load(into / MAIN)


def outputs(proto: onnx.ModelProto) -> list[np.ndarray]:
    feeds = {"x": np.random.default_rng(1).normal(size=(2, 3, 8, 8)).astype(np.float32)}
    return onnx.reference.ReferenceEvaluator(proto).run(None, feeds)


def test_cleans_up_and_keeps_the_meaning(model: Path) -> None:
    result, after = run(model)
    assert [node.op_type for node in after.graph.node] == ["Conv", "Relu", "Add", "Mul", "Reshape"]
    assert after.graph.node[0].name == "conv"
    assert result.settled
    assert result.nodes_before == 13 and result.nodes_after == 5
    assert [entry.domain for entry in after.opset_import] == [""]
    for old, new in zip(outputs(messy()), outputs(after), strict=True):
        np.testing.assert_allclose(new, old, rtol=1e-4, atol=1e-5)
    onnx.checker.check_model(after, full_check=True)


def test_records_say_what_each_pass_did(model: Path) -> None:
    result, _ = run(model)
    first = {record.name: record for record in result.passes if record.round == 1}
    assert list(first)[-1] == "remove-unused"
    assert first["fold-batchnorm"].examples == ("folded bn into conv",)
    assert first["lift-constants"].nodes_after == first["lift-constants"].nodes_before - 1
    assert [item.reason for item in first["eliminate-identities"].declined] == []
    assert set(result.measured()["seconds"]) == set(first)
    assert "seconds" not in str(result.facts())


def test_a_second_run_changes_nothing(model: Path, tmp_path: Path) -> None:
    run(model)
    again = optimize(tmp_path / "out" / MAIN, OptimizeSettings(), tmp_path)
    assert again.rounds == 1
    assert (tmp_path / MAIN).read_bytes() == (tmp_path / "out" / MAIN).read_bytes()


@pytest.mark.slow
def test_same_bytes_in_another_process(model: Path, tmp_path: Path) -> None:
    found = set()
    for seed in ("1", "77"):
        into = tmp_path / seed
        into.mkdir()
        code = (
            "from pathlib import Path; from penstock.stages.optimize import *; "
            f"print(optimize(Path({str(model)!r}), OptimizeSettings(), Path({str(into)!r})).facts())"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, check=True, env={**os.environ, "PYTHONHASHSEED": seed}
        )
        assert done.stderr == b""
        found.add((done.stdout, (into / MAIN).read_bytes()))
    assert len(found) == 1


def test_chosen_and_skipped_passes(model: Path) -> None:
    result, after = run(model, passes=("fold-batchnorm", "remove-unused"), skip=("remove-unused",))
    assert {record.name for record in result.passes} == {"fold-batchnorm"}
    assert "BatchNormalization" not in [node.op_type for node in after.graph.node]
    assert "Identity" in [node.op_type for node in after.graph.node]


@pytest.mark.parametrize("field", ["passes", "skip"])
def test_unknown_pass_is_refused_with_the_nearest_name(model: Path, field: str) -> None:
    with pytest.raises(UsageError) as caught:
        run(model, **{field: ("fold-batchnorn",)})
    assert "fold-batchnorm" in caught.value.do


def with_pass(monkeypatch: pytest.MonkeyPatch, rewrite: object) -> None:
    plugin = SimpleNamespace(PHASE="fold", AFTER=(), run=rewrite)
    monkeypatch.setattr(registry, "names", lambda kind: ["bad"])
    monkeypatch.setattr(registry, "load", lambda kind, name: plugin)


def raises(model: object) -> PassResult:
    model.graph.remove(list(model.graph)[-1])  # half done, then it fails
    raise RuntimeError("lost my way\nand more")


def renames_input(model: object) -> PassResult:
    model.graph.inputs[0].name = "other"
    return PassResult(("renamed",))


def raises_opset(model: object) -> PassResult:
    model.opset_imports[""] = 18
    return PassResult(("raised",))


def goes_contrib(model: object) -> PassResult:
    node = next(node for node in model.graph if node.op_type == "Relu")
    node.domain = "com.microsoft"
    return PassResult(("fused",))


def misorders(model: object) -> PassResult:
    nodes = list(model.graph)
    model.graph.remove(nodes[2])
    model.graph.append(nodes[2])
    return PassResult(("moved",))


def doubles_name(model: object) -> PassResult:
    nodes = list(model.graph)
    nodes[4].outputs[0].name = nodes[5].outputs[0].name
    return PassResult(("named",))


def invalid_attribute(model: object) -> PassResult:
    import onnx_ir as ir

    node = next(node for node in model.graph if node.op_type == "Relu")
    node.attributes["slope"] = ir.AttrFloat32("slope", 1.0)
    return PassResult(("set",))


@pytest.mark.parametrize(
    ("rewrite", "reason"),
    [
        (raises, "RuntimeError: lost my way"),
        (renames_input, "it changes the model's inputs or outputs"),
        (raises_opset, "it changes the opset of 'ai.onnx' from 17 to 18"),
        (goes_contrib, "it brings in operators of 'com.microsoft'"),
        (misorders, "reads 'c', which is not computed before it"),
        (doubles_name, "is given to two values"),
        (invalid_attribute, "onnx.checker refuses the result: Unrecognized attribute: slope for operator Relu"),
    ],
)
def test_harmful_pass_is_taken_back(model: Path, monkeypatch: pytest.MonkeyPatch, rewrite: object, reason: str) -> None:
    with_pass(monkeypatch, rewrite)
    result, after = run(model)
    assert reason in result.passes[0].undone
    assert after.graph.node == messy().graph.node
    assert result.settled


def test_passes_that_undo_each_other_end(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flip(model: object) -> PassResult:
        node = next(node for node in model.graph if node.op_type in ("Relu", "Abs"))
        node.op_type = "Abs" if node.op_type == "Relu" else "Relu"
        return PassResult(("flipped",))

    with_pass(monkeypatch, flip)
    result, _ = run(model)
    assert not result.settled
    assert result.rounds == 2


def test_rounds_are_bounded(model: Path) -> None:
    result, _ = run(model, max_rounds=1)
    assert result.rounds == 1
    assert not result.settled


def test_broken_plug_in_is_listed_and_fatal_only_when_asked_for(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(kind: str, name: str) -> object:
        raise MissingError("broken-plug-in", "it doesn't load")

    monkeypatch.setattr(registry, "names", lambda kind: ["bad"])
    monkeypatch.setattr(registry, "load", load)
    result, _ = run(model)
    assert result.broken == (Declined("bad", "it doesn't load"),)
    with pytest.raises(MissingError):
        run(model, passes=("bad",))


def test_order_is_by_phase_then_after_then_name() -> None:
    def plugin(phase: str, *after: str) -> SimpleNamespace:
        return SimpleNamespace(PHASE=phase, AFTER=after)

    passes = {"z": plugin("clean"), "a": plugin("clean", "z", "absent"), "b": plugin("lower"), "c": plugin("fold", "b")}
    assert [name for name, _ in in_order(passes)] == ["z", "a", "c", "b"]
    with pytest.raises(UsageError, match="each come after"):
        in_order({"p": plugin("clean", "q"), "q": plugin("clean", "p")})
    with pytest.raises(UsageError, match="phase 'odd'"):
        in_order({"p": plugin("odd")})


def test_invalid_model_is_refused_and_nothing_written(tmp_path: Path) -> None:
    proto = messy()
    proto.graph.node[4].op_type = "NoSuchOperator"
    onnx.save(proto, tmp_path / "in.onnx")
    with pytest.raises(InputError, match=r"onnx\.checker refuses it"):
        optimize(tmp_path / "in.onnx", OptimizeSettings(), tmp_path)
    assert not (tmp_path / MAIN).exists()


def laughs(depth: int) -> onnx.ModelProto:
    """Functions of which each calls the next one twice: 2**depth nodes in a kilobyte."""
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]
    functions = []
    for level in range(depth):
        op, domain = (f"f{level + 1}", "f") if level + 1 < depth else ("Relu", "")
        nodes = [helper.make_node(op, ["x"], ["t"], domain=domain), helper.make_node(op, ["t"], ["y"], domain=domain)]
        functions.append(helper.make_function("f", f"f{level}", ["x"], ["y"], nodes, imports))
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy"]
    main = helper.make_graph([helper.make_node("f0", ["x"], ["y"], domain="f")], "g", info[:1], info[1:])
    return helper.make_model(main, functions=functions, opset_imports=imports, ir_version=9)


def test_function_bomb_is_refused(tmp_path: Path) -> None:
    onnx.save(laughs(60), tmp_path / "in.onnx")
    with pytest.raises(InputError) as caught:
        optimize(tmp_path / "in.onnx", OptimizeSettings(), tmp_path)
    assert caught.value.id == "function-explosion"


def test_small_functions_are_inlined(tmp_path: Path) -> None:
    onnx.save(laughs(3), tmp_path / "in.onnx")
    result = optimize(tmp_path / "in.onnx", OptimizeSettings(), tmp_path)
    after = graph.load(tmp_path / MAIN)
    assert not after.functions
    assert {node.op_type for node in after.graph} == {"Relu"}
    assert result.nodes_after <= 8


def constant_bomb(op: str) -> onnx.ModelProto:
    big = numpy_helper.from_array(np.array([1 << 20, 1 << 20], np.int64), "big")
    one = numpy_helper.from_array(np.ones((1, 1), np.float32), "one")
    inputs = {"ConstantOfShape": ["big"], "Expand": ["one", "big"], "Tile": ["one", "big"]}[op]
    nodes = [helper.make_node(op, inputs, ["huge"], name="bomb"), helper.make_node("ReduceSum", ["huge"], ["total"])]
    nodes.append(helper.make_node("Add", ["x", "total"], ["y"]))
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1]) for name in "xy"]
    main = helper.make_graph(nodes, "g", info[:1], info[1:], [big, one])
    return helper.make_model(main, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.mark.parametrize("op", ["ConstantOfShape", "Expand", "Tile"])
def test_constant_bomb_is_not_computed(tmp_path: Path, op: str) -> None:
    onnx.save(constant_bomb(op), tmp_path / "in.onnx")
    result = optimize(tmp_path / "in.onnx", OptimizeSettings(), tmp_path)
    assert op in [node.op_type for node in graph.load(tmp_path / MAIN).graph]
    assert (tmp_path / MAIN).stat().st_size < 2000
    assert not any(record.undone for record in result.passes)


def test_default_of_an_input_can_stay_open(tmp_path: Path) -> None:
    proto = messy()
    proto.graph.input.append(helper.make_tensor_value_info("twin", TensorProto.FLOAT, [4]))
    onnx.save(proto, tmp_path / "in.onnx")
    optimize(tmp_path / "in.onnx", OptimizeSettings(skip=("unlist-initializers",)), tmp_path)
    after = onnx.load(tmp_path / MAIN)
    assert [value.name for value in after.graph.input] == ["x", "twin"]
    assert "Sqrt" in [node.op_type for node in after.graph.node]


def test_old_ir_version_is_raised_so_that_weights_are_constants(tmp_path: Path) -> None:
    proto = messy()
    proto.ir_version = 3
    proto.opset_import[0].version = 8
    shapes = {tensor.name: list(tensor.dims) for tensor in proto.graph.initializer}
    for name, shape in shapes.items():
        proto.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    onnx.save(proto, tmp_path / "in.onnx")
    optimize(tmp_path / "in.onnx", OptimizeSettings(), tmp_path)
    after = onnx.load(tmp_path / MAIN)
    assert after.ir_version == 4
    assert after.opset_import[0].version == 8
    assert [value.name for value in after.graph.input] == ["x"]
    assert "BatchNormalization" not in [node.op_type for node in after.graph.node]


def test_random_twins_stay_apart(tmp_path: Path) -> None:
    nodes = [helper.make_node("Bernoulli", ["x"], [name]) for name in ("a", "b")]
    nodes.append(helper.make_node("Sub", ["a", "b"], ["y"]))
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy"]
    main = helper.make_graph(nodes, "g", info[:1], info[1:])
    proto = helper.make_model(main, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(proto, tmp_path / "in.onnx")
    result = optimize(tmp_path / "in.onnx", OptimizeSettings(), tmp_path)
    assert result.nodes_after == 3

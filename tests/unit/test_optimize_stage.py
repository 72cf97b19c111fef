"""The optimizer: to a fixpoint, the same bytes each time, harmless when a pass isn't."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from penstock import cli, graph, proof, registry
from penstock.errors import GateError, InputError, MissingError, UsageError
from penstock.passes import Declined, PassResult
from penstock.passes._order import in_order
from penstock.rewriting import Rewrite
from penstock.rewriting.site import Site
from penstock.rewriting.trace import snapshot
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
    assert [node.op_type for node in after.graph.node] == ["Conv", "Relu", "Add", "Mul", "Sqrt", "Flatten"]
    assert after.graph.node[0].name == "conv"
    assert result.settled and result.proof.state == "proved" and result.proof.runs > 1
    assert result.nodes_before == 12 and result.nodes_after == 6, "Constants don't count"
    assert [entry.domain for entry in after.opset_import] == [""]
    for old, new in zip(outputs(messy()), outputs(after), strict=True):
        np.testing.assert_allclose(new, old, rtol=1e-4, atol=1e-5)
    onnx.checker.check_model(after, full_check=True)


def test_records_say_what_each_pass_did(model: Path) -> None:
    result, _ = run(model)
    records = {record.name: record for record in result.passes}
    assert list(records)[-1] == "remove-unused" and len(records) == len(result.passes)
    folded = records["fold-batchnorm"]
    assert (folded.changes, folded.nodes_gone, folded.failures) == (1, 1, ())
    assert folded.examples == ("folded into the Conv before it",)
    assert folded.saved_bytes == 4 * 4 * 8 * 8, "one (1, 4, 8, 8) float tensor less a run"
    assert records["lift-constants"].changes == 1
    assert records["fold-constants"].declined[0].reason.startswith("it hands out, as an output of its graph")
    assert set(result.measured()["seconds"]) == set(records)
    assert "seconds" not in str(result.facts())


def test_the_trace_leads_from_the_first_graph_to_the_last(model: Path, tmp_path: Path) -> None:
    result, after = run(model)
    assert {row.op for row in result.base} >= {"Identity", "Constant", "BatchNormalization"}
    (final,) = snapshot(result.base, result.events).values()
    assert [(row.op, row.name, row.inputs, row.outputs) for row in final] == [
        (node.op_type, node.name, tuple(node.input), tuple(node.output)) for node in after.graph.node
    ]
    told = json.loads(result.trace_json())
    assert told["schema"] == 1 and len(told["events"]) == len(result.events) and len(told["base"]) == 13


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


def with_pass(monkeypatch: pytest.MonkeyPatch, rewrite: object, origin: str = "somebody 1.0") -> None:
    """Let one pass over the whole model be all that there is, of a third party unless ``origin`` is empty."""
    _install(monkeypatch, SimpleNamespace(PHASE="fold", AFTER=(), run=rewrite), origin)


def with_rule(monkeypatch: pytest.MonkeyPatch, rewrite: object, *operators: str) -> None:
    """Let one rule of a third party be all that there is."""
    plugin = SimpleNamespace(PHASE="fold", AFTER=(), OPERATORS=operators, rewrite=rewrite)
    _install(monkeypatch, plugin, "somebody 1.0")


def _install(monkeypatch: pytest.MonkeyPatch, plugin: object, origin: str) -> None:
    names, load = registry.names, registry.load
    found = {"bad": origin} if origin else {}
    monkeypatch.setattr(registry, "names", lambda kind: ["bad"] if kind == "passes" else names(kind))
    monkeypatch.setattr(registry, "load", lambda kind, name: plugin if kind == "passes" else load(kind, name))
    monkeypatch.setattr(registry, "origins", lambda kind: found)


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
    (failure,) = result.passes[0].failures
    assert failure.reason.startswith("taken back: ") and reason in failure.reason
    assert after.graph.node == messy().graph.node
    assert result.settled and result.proof.state == "proved"
    with pytest.raises(GateError) as caught:
        run(model, strict=True)
    assert caught.value.id == "pass-failed" and reason in caught.value.what and "--skip bad" in caught.value.do


def test_a_pass_of_our_own_that_raises_is_left_out(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_pass(monkeypatch, raises, origin="")
    result, after = run(model)
    (record,) = result.passes
    assert (record.name, record.changes) == ("bad", 0)
    assert record.failures == (Declined("the whole model", "RuntimeError: lost my way"),)
    assert after.graph.node == messy().graph.node
    with pytest.raises(GateError, match="lost my way"):
        run(model, strict=True)


def test_a_rule_that_raises_leaves_its_place_as_it_was(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rewrite(node: object, site: Site) -> Rewrite | None:
        if node.op_type == "Sqrt":
            site.make("Exp", [node.inputs[0]])
            raise KeyError("what I looked for")
        return site.instead(node, node.inputs[0], "gone") if node.op_type == "Identity" else None

    with_rule(monkeypatch, rewrite, "Sqrt", "Identity")
    result, after = run(model)
    assert result.passes[0].changes == 2 and result.passes[0].failures[0].node == "Sqrt(root)"
    assert "what I looked for" in result.passes[0].failures[0].reason
    kinds = [node.op_type for node in messy().graph.node if node.op_type != "Identity"]
    assert [node.op_type for node in after.graph.node] == kinds, "no Exp, and the Sqrt is there"
    with pytest.raises(GateError):
        run(model, strict=True)


def wrong(node: object, site: Site) -> Rewrite | None:
    """Take the negation of a Relu's input for its result, where two others would have been left alone."""
    return site.instead(node, site.make("Neg", [node.inputs[0]]), "a Relu is a Neg")


@pytest.mark.parametrize("each", [False, True])
def test_a_wrong_rule_is_named_and_left_out(model: Path, monkeypatch: pytest.MonkeyPatch, each: bool) -> None:
    with_rule(monkeypatch, wrong, "Relu")
    result, after = run(model, verify_each=each)
    (culprit,) = result.culprits
    assert (culprit.rule, culprit.what, culprit.nodes) == ("bad", "a Relu is a Neg", ("Relu",))
    assert "'y' differs by" in culprit.problem
    assert [record.failures[0].reason for record in result.passes if record.name == "bad"] == [culprit.problem]
    assert "Neg" not in [node.op_type for node in after.graph.node] and result.proof.state == "proved"
    with pytest.raises(GateError, match="'y' differs by"):
        run(model, strict=True, verify_each=each)


def test_the_one_wrong_change_among_many_is_found(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Removing Identities is right, the sum isn't."""

    def rewrite(node: object, site: Site) -> Rewrite | None:
        if node.op_type == "Identity":
            return site.instead(node, node.inputs[0], "gone")
        return site.instead(node, site.make("Mul", [node.inputs[0], node.inputs[0]]), "doubled")

    with_rule(monkeypatch, rewrite, "Identity", "Add")
    result, _ = run(model)
    assert [(culprit.what, culprit.nodes) for culprit in result.culprits] == [("doubled", ("Add", "Relu"))]


@pytest.mark.parametrize("each", [False, True])
def test_the_smallest_model_that_shows_it_is_written(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, each: bool
) -> None:
    """It holds what the wrong change took, and shows the fault by itself."""
    with_rule(monkeypatch, wrong, "Relu")
    shown = tmp_path / "evidence.onnx"
    run(model, verify_each=each, evidence=str(shown))
    small = onnx.load(shown)
    onnx.checker.check_model(small, full_check=True)
    assert [node.op_type for node in small.graph.node] == ["Relu"] and len(small.graph.input) == 1
    dims = small.graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_param or dim.dim_value for dim in dims] == ["batch", 4, 8, 8]
    again = optimize(shown, OptimizeSettings(), tmp_path)
    assert [(culprit.rule, culprit.nodes) for culprit in again.culprits] == [("bad", ("Relu",))]


def test_a_rule_that_makes_an_invalid_model_is_named_and_left_out(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that wires a value that is computed later: runtimes sort nodes themselves, the format doesn't allow it."""

    def early(node: object, site: Site) -> Rewrite | None:
        if node.op_type == "Identity":
            return site.instead(node, node.inputs[0], "gone")
        later = [other for other in node.graph if other.op_type == "Relu" and other is not node]
        return site.instead(node, later[-1].outputs[0], "the other Relu") if len(later) == 1 else None

    with_rule(monkeypatch, early, "Identity", "Relu")
    proto = messy()
    proto.graph.node.insert(5, helper.make_node("Neg", ["r1"], ["early"]))
    proto.graph.node.insert(8, helper.make_node("Add", ["s", "early"], ["s2"]))
    proto.graph.node[9].input[0] = "s2"
    onnx.save(proto, model)
    result, after = run(model)
    (culprit,) = result.culprits
    assert (culprit.rule, culprit.what) == ("bad", "the other Relu") and "onnx.checker refuses" in culprit.problem
    assert after.graph.node == proto.graph.node and result.proof.state == "proved"


def test_a_proof_that_blames_no_change_takes_all_of_them_back(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where one run failed and the same model passed in the next, nothing is handed out that isn't sure."""
    found = iter([proof.Proof("failed", "once", "onnxruntime", 1, 1.0, ())])
    prove = proof.prove
    monkeypatch.setattr(proof, "prove", lambda *given, **named: next(found, None) or prove(*given, **named))
    result, after = run(model)
    assert [(culprit.rule, culprit.problem) for culprit in result.culprits] == [("every pass", "once")]
    assert after.graph.node == messy().graph.node and result.nodes_after == result.nodes_before


def test_a_build_tells_what_its_optimizer_left_out(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with_rule(monkeypatch, wrong, "Relu")
    words = ["--backends", "onnxruntime", "--no-quantize", "--bench-seconds", "0.05", "--no-footprint"]
    assert cli.run(["build", str(model), "-o", str(model.parent / "out"), *words, "--json", "-q"]) == 0
    notes = json.loads(capsys.readouterr().out)["result"]["notes"]
    assert any(note.startswith("optimize: left out bad, at Relu (a Relu is a Neg)") for note in notes), notes


def test_exit_code_is_1_where_strict_forbids_it(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with_rule(monkeypatch, wrong, "Relu")
    out = model.parent / "out.onnx"
    assert cli.run(["optimize", str(model), "-o", str(out), "-q"]) == 0
    assert "left out  bad, at Relu (a Relu is a Neg)" in capsys.readouterr().out
    out.unlink()
    assert cli.run(["optimize", str(model), "-o", str(out), "--strict", "-q"]) == 1
    assert not out.exists()


def test_what_can_not_be_proved_is_told(model: Path) -> None:
    assert run(model, proof=False)[0].proof.reason == "it was switched off"
    result, _ = run(model, proof_bytes=8)
    assert result.proof.state == "skipped" and "8 are run twice (--proof-bytes)" in result.proof.reason
    result, _ = run(model, proof_nodes=2)
    assert (
        result.proof.state == "skipped"
        and "nodes, weights and bodies, 2 are run twice (--proof-nodes)" in result.proof.reason
    )


def test_passes_that_undo_each_other_end(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flip(model: object) -> PassResult:
        node = next(node for node in model.graph if node.op_type in ("Relu", "Abs"))
        node.op_type = "Abs" if node.op_type == "Relu" else "Relu"
        return PassResult(("flipped",))

    with_pass(monkeypatch, flip)
    result, _ = run(model, proof=False, max_rounds=7)
    assert not result.settled
    assert result.rounds == 7


def test_rounds_are_bounded(model: Path) -> None:
    result, _ = run(model, max_rounds=1)
    assert result.rounds == 1
    assert not result.settled


def test_work_is_bounded_and_that_is_told(model: Path) -> None:
    """What was done until then stands, is sound, and proved."""
    whole, _ = run(model)
    result, made = run(model, max_work=1)
    assert whole.settled and len(whole.events) > len(result.events) > 0 and not result.settled
    assert result.proof.state == "proved"
    onnx.checker.check_model(made)
    assert [told for told in result.complaints() if told.startswith("stopped")] == [
        "stopped   it could be improved further: raise --max-rounds or --max-work"
    ]
    assert not any(told.startswith("stopped") for told in whole.complaints())


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


def test_a_model_that_the_checker_refuses_and_a_runtime_takes_is_optimized(tmp_path: Path) -> None:
    proto = messy()
    nodes = [proto.graph.node.pop(2), *proto.graph.node]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)  # the Conv before the Identity that it reads
    onnx.save(proto, tmp_path / "in.onnx")
    with pytest.raises(onnx.checker.ValidationError):
        onnx.checker.check_model(proto)
    result = optimize(tmp_path / "in.onnx", OptimizeSettings(strict=True), tmp_path)
    assert result.proof.state == "proved" and result.nodes_after == 6
    onnx.checker.check_model(onnx.load(tmp_path / MAIN), full_check=True)


def test_an_operator_that_nobody_knows_passes_through(tmp_path: Path) -> None:
    proto = messy()
    proto.graph.node[4].op_type = "NoSuchOperator"
    onnx.save(proto, tmp_path / "in.onnx")
    result = optimize(tmp_path / "in.onnx", OptimizeSettings(strict=True), tmp_path)
    assert result.proof.state == "skipped" and "no oracle runs the model as it came" in result.proof.reason
    kinds = [node.op_type for node in onnx.load(tmp_path / MAIN).graph.node]
    assert kinds == ["Conv", "NoSuchOperator", "Relu", "Add", "Mul", "Sqrt", "Flatten"]


def test_a_model_that_is_good_comes_out_equal(tmp_path: Path, tiny: ModuleType) -> None:
    proto = tiny.mlp()
    onnx.save(proto, tmp_path / "in.onnx")
    result = optimize(tmp_path / "in.onnx", OptimizeSettings(strict=True), tmp_path)
    after = onnx.load(tmp_path / MAIN)
    assert result.events == () and result.rounds == 1 and result.proof.oracle == "nothing was changed"
    assert after.graph.node == proto.graph.node and after.graph.initializer == proto.graph.initializer


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
    assert not any(record.failures for record in result.passes)


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

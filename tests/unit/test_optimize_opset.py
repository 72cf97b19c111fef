"""optimize --opset: the model in another opset first, so that passes may use its operators; one proof for all of it."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from penstock import opsets
from penstock.cli import run
from penstock.errors import GateError, UsageError
from penstock.opsets.whole import NotConvertibleError
from penstock.rewriting import Rewrite
from penstock.stages.optimize import MAIN, Optimized, OptimizeSettings, optimize

FLOAT = TensorProto.FLOAT


def saved(folder: Path, text: str, opset: int, weights: dict[str, object] | None = None) -> Path:
    """Write a model x → y of these nodes, in onnx's own notation."""
    graph = onnx.parser.parse_graph(f"g (float[batch, 4] x) => (float[batch, 4] y) {{ {text} }}")
    graph.initializer.extend(
        numpy_helper.from_array(np.asarray(array), name) for name, array in (weights or {}).items()
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    path = folder / "m.onnx"
    onnx.save(model, path)
    return path


def gelu(folder: Path) -> Path:
    """A Gelu as exporters write it out where the opset has none."""
    weights = {name: np.float32(number) for name, number in (("r", np.sqrt(2)), ("one", 1), ("half", 0.5))}
    text = "a = Div(x, r) b = Erf(a) c = Add(b, one) d = Mul(x, c) y = Mul(d, half)"
    return saved(folder, text, 13, weights)


def optimized(path: Path, **settings: object) -> tuple[Optimized, onnx.ModelProto]:
    into = path.parent / "into"
    into.mkdir(exist_ok=True)
    done = optimize(path, OptimizeSettings(**settings), into)
    return done, onnx.load(into / MAIN)


def ops(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def opset_of(model: onnx.ModelProto) -> int:
    return {one.domain: one.version for one in model.opset_import}[""]


def test_operators_of_a_newer_opset_are_used(tmp_path: Path) -> None:
    path = gelu(tmp_path)
    done, made = optimized(path)
    assert ops(made) != ["Gelu"] and opset_of(made) == 13 and done.restated is None
    done, made = optimized(path, opset=20, strict=True)
    assert ops(made) == ["Gelu"] and opset_of(made) == 20
    assert done.nodes_before == 5 and done.nodes_after == 1
    assert done.restated is not None and (done.restated.opset_before, done.restated.opset_after) == (13, 20)
    assert done.proof.state == "proved" and done.proof.runs >= 4
    assert done.facts()["restated"]["opset_after"] == 20
    onnx.checker.check_model(made, full_check=True)


def test_an_older_opset_and_the_changes_of_each_node(tmp_path: Path) -> None:
    path = saved(tmp_path, "a = ReduceMean <keepdims = 1> (x, axes) y = Add(x, a)", 18, {"axes": np.array([1])})
    done, made = optimized(path, opset=13)
    assert ops(made) == ["ReduceMean", "Add"] and len(made.graph.node[0].input) == 1
    assert [(one.op, one.opset) for one in done.restated.changes] == [("ReduceMean", 18)]
    assert done.proof.state == "proved"


@pytest.mark.parametrize("opset", [18, None])
def test_its_own_opset_is_nothing_to_tell(tmp_path: Path, opset: int | None) -> None:
    path = saved(tmp_path, "a = Neg(x) y = Neg(a)", 18)
    done, _ = optimized(path, opset=opset)
    assert done.restated is None and done.settled


def test_what_can_not_be_said_is_refused_by_node_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = saved(tmp_path, 'y = Gelu <approximate = "none"> (x)', 20)
    with pytest.raises(GateError) as caught:
        optimized(path, opset=8)
    assert isinstance(caught.value, NotConvertibleError) and caught.value.nodes[0].op == "Gelu"
    out = tmp_path / "out.onnx"
    assert run(["optimize", str(path), "-o", str(out), "--opset", "8"]) == 1
    told = capsys.readouterr().err
    assert "error: 1 node loses its meaning in opset 8" in told and not out.exists()
    with pytest.raises(UsageError, match="nothing is converted to opset 99"):
        optimized(path, opset=99)


@pytest.mark.parametrize("each", [False, True])
def test_a_wrong_conversion_is_an_error_and_no_pass_is_blamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, each: bool
) -> None:
    def wrong(node: object, place: object) -> Rewrite:
        return place.instead(node, place.make("Abs", [node.inputs[0]]), "becomes something else")

    monkeypatch.setitem(opsets.adapters(), ("up", 14, "Relu"), wrong)
    path = saved(tmp_path, "a = Identity(x) b = Relu(a) c = Identity(b) y = Neg(c)", 13)
    with pytest.raises(GateError, match="the model computes something else in opset 14") as caught:
        optimized(path, opset=14, verify_each=each)
    assert caught.value.id == "conversion-differs"


def test_a_conversion_alone_is_proved_too(tmp_path: Path) -> None:
    path = saved(tmp_path, "y = Relu(x)", 13)
    done, made = optimized(path, opset=14, passes=("eliminate-noops",))
    assert opset_of(made) == 14 and done.proof.runs > 0 and not done.events


def test_a_wrong_pass_is_still_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from penstock import registry
    from penstock.rewriting.site import Site

    def spoil(node: object, site: Site) -> Rewrite:
        return site.instead(node, site.make("Abs", [node.inputs[0]]), "spoilt")

    known, load = registry.names, registry.load
    bad = type("bad", (), {"PHASE": "fuse", "AFTER": (), "OPERATORS": ("Erf",), "rewrite": staticmethod(spoil)})
    monkeypatch.setattr(registry, "names", lambda kind: [*known(kind), "bad"] if kind == "passes" else known(kind))
    monkeypatch.setattr(registry, "load", lambda kind, name: bad if name == "bad" else load(kind, name))
    done, _ = optimized(gelu(tmp_path), opset=17)
    assert [one.rule for one in done.culprits] == ["bad"] and done.proof.state == "proved"


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = gelu(tmp_path)
    assert run(["optimize", str(path), "-o", "slim.onnx", "--opset", "20"]) == 0
    assert "opset     13 → 20; none of the nodes is said otherwise" in capsys.readouterr().out
    assert run(["optimize", str(path), "-o", "slim.onnx", "--opset", "20", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["result"]["restated"]["opset_after"] == 20
    assert run(["explain", str(path), "y", "--opset", "20"]) == 0
    assert "fuse-gelu" in capsys.readouterr().out
    (tmp_path / "penstock.toml").write_text("[optimize]\nopset = 20\n")
    assert run(["optimize", str(path), "-o", "slim2.onnx", "--config", "penstock.toml"]) == 0
    assert opset_of(onnx.load(tmp_path / "slim2.onnx")) == 20

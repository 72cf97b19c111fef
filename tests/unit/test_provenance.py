"""What became of a node: the rewrites that took it, what stands in its place, and why not more."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from penstock import provenance
from penstock.cli import run
from penstock.errors import UsageError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """x → Conv → BatchNormalization → Relu → y, and a second BatchNormalization whose Conv is read twice."""
    rng = np.random.default_rng(0)
    held = {"w": rng.normal(size=(3, 3, 1, 1)), "one": np.ones(3), "none": np.zeros(3), "var": np.full(3, 2.0)}
    norm = ["one", "none", "none", "var"]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        helper.make_node("BatchNormalization", ["c", *norm], ["n"], name="norm"),
        helper.make_node("Relu", ["n"], ["r"], name="relu"),
        helper.make_node("Conv", ["r", "w"], ["d"], name="shared"),
        helper.make_node("BatchNormalization", ["d", *norm], ["m"], name="kept"),
        helper.make_node("Add", ["m", "d"], ["y"], name="sum"),
        helper.make_node("Sigmoid", ["r"], ["unused"], name="dead"),
    ]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [info("x", TensorProto.FLOAT, ["n", 3, 4, 4])], [info("y", TensorProto.FLOAT, ["n", 3, 4, 4])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in held.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    return tmp_path / "m.onnx"


def test_a_node_that_was_folded(path: Path) -> None:
    (fate,) = provenance.fates(path, "norm")
    assert fate.op == "BatchNormalization" and fate.outputs == ("n",)
    (step,) = fate.steps
    assert step.rule == "fold-batchnorm" and step.gone == ("BatchNormalization norm", "Conv conv")
    assert step.saved_bytes == 4 * 3 * 4 * 4, "one intermediate value less, at a batch of 1"
    assert fate.now == step.came and fate.now[0].startswith("Conv ")


def test_a_node_that_stayed_says_why(path: Path) -> None:
    (fate,) = provenance.fates(path, "kept")
    assert not fate.steps and fate.now == ("BatchNormalization kept",)
    assert fate.near_misses == (("fold-batchnorm", "the output of Conv has 2 consumers"),)


def test_a_node_without_a_name_says_why_too(path: Path) -> None:
    model = onnx.load(path)
    for node in model.graph.node:
        node.name = ""
    path.write_bytes(model.SerializeToString())
    (fate,) = provenance.fates(path, "m")
    assert fate.near_misses == (("fold-batchnorm", "the output of Conv has 2 consumers"),)


def test_a_node_of_which_nothing_was_asked_tells_the_near_misses_below_it(path: Path) -> None:
    (fate,) = provenance.fates(path, "shared")
    assert not fate.near_misses
    assert fate.beside == (("fold-batchnorm", "BatchNormalization kept", "the output of Conv has 2 consumers"),)
    (fate,) = provenance.fates(path, "sum")
    assert not fate.beside, "it stands below what was declined, not above"


def test_a_node_inside_a_form_that_almost_was_one(tmp_path: Path) -> None:
    """The variance of a layer normalization is read by somebody else too; the form is looked for from its end."""
    names = ["ReduceMean x > m", "Sub x m > d", "Mul d d > q", "ReduceMean q > v", "Add v eps > e", "Sqrt e > s",
             "Div d s > n", "Mul n g > h", "Add h b > y"]  # fmt: skip
    nodes = []
    for text in names:
        words, made = text.split(" > ")
        op, *read = words.split()
        axes = {"axes": [-1], "keepdims": 1} if op == "ReduceMean" else {}
        nodes.append(helper.make_node(op, read, [made], name=f"{op}_{made}", **axes))
    held = {"eps": np.float32(1e-5), "g": np.full(8, 2, np.float32), "b": np.ones(8, np.float32)}
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [info("x", TensorProto.FLOAT, ["n", 8])],
        [info("y", TensorProto.FLOAT, ["n", 8]), info("v", TensorProto.FLOAT, ["n", 1])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in held.items()],
    )  # fmt: skip
    (tmp_path / "m.onnx").write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    )
    (fate,) = provenance.fates(tmp_path / "m.onnx", "Sub_d")
    assert not fate.steps and not fate.near_misses
    assert [(rule, node) for rule, node, _ in fate.beside][:1] == [("fuse-layer-normalization", "Div Div_n")]


def test_a_node_that_nobody_needs(path: Path) -> None:
    (fate,) = provenance.fates(path, "dead")
    assert [step.rule for step in fate.steps] == ["remove-unused"] and fate.now == ()


def test_by_the_name_of_a_value_and_by_id(path: Path) -> None:
    assert provenance.fates(path, "n") == provenance.fates(path, "norm") == provenance.fates(path, "n1")


def test_an_unknown_node_offers_the_nearest(path: Path) -> None:
    with pytest.raises(UsageError, match="no node named 'nrom'") as caught:
        provenance.fates(path, "nrom")
    assert "norm" in caught.value.do


@pytest.mark.shared
def test_a_real_model(shared: Path) -> None:
    (fate,) = provenance.fates(shared / "models" / "mnist-8" / "model.onnx", "Plus30")
    assert [step.rule for step in fate.steps] == ["fold-affine"] and fate.now == ("Conv Convolution28",)


def test_the_command_tells_it(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["explain", str(path), "norm", "-q"]) == 0
    out = capsys.readouterr().out
    assert "fold-batchnorm: folded into the Conv before it" in out and "in its place stands Conv" in out
    assert run(["explain", str(path), "kept", "-q"]) == 0
    out = capsys.readouterr().out
    assert "it stays as it is" in out and "not more: fold-batchnorm: the output of Conv has 2 consumers" in out
    assert run(["explain", str(path), "dead", "--json", "-q"]) == 0
    assert json.loads(capsys.readouterr().out)["result"]["fates"][0]["now"] == []
    assert run(["explain", str(path), "nrom", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["id"] == "unknown-node"
    assert run(["explain", str(path), "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["id"] == "no-node"

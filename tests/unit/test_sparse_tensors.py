"""Sparse tensors: whatever a command makes of a model that has some, the result computes the same."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from penstock import graph
from penstock.analysis import sparse
from penstock.cli import run
from penstock.errors import InputError

VALUES = np.array([1.0, 2.0, 3.0], np.float32)
PLACES = [(0, 1), (1, 2), (3, 1)]


def entry(
    flat: bool = True, name: str = "w", values: np.ndarray = VALUES, places: object = None
) -> onnx.SparseTensorProto:
    indices = np.array(PLACES if places is None else places, np.int64)
    indices = np.ravel_multi_index(tuple(indices.T), (4, 3)) if flat and places is None else indices
    return helper.make_sparse_tensor(
        numpy_helper.from_array(values, name), numpy_helper.from_array(indices, ""), [4, 3]
    )


def value(name: str, shape: list[int | str] | None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def model(nodes: list[onnx.NodeProto], *held: onnx.SparseTensorProto) -> onnx.ModelProto:
    made = helper.make_graph(nodes, "g", [value("x", ["batch", 4])], [value("y", None)])
    made.sparse_initializer.extend(held)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def initializer() -> onnx.ModelProto:
    return model([helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Relu", ["m"], ["y"])], entry())


def of_rank_two() -> onnx.ModelProto:
    return model([helper.make_node("MatMul", ["x", "w"], ["y"])], entry(flat=False))


def constant() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Constant", [], ["w"], sparse_value=entry()),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    return model(nodes)


def in_a_body() -> onnx.ModelProto:
    then = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["t"])], "then", [], [value("t", None)])
    then.sparse_initializer.append(entry())
    other = helper.make_graph(
        [helper.make_node("Constant", [], ["v"], sparse_value=entry()), helper.make_node("MatMul", ["x", "v"], ["e"])],
        "other", [], [value("e", None)],
    )  # fmt: skip
    nodes = [helper.make_node("ReduceSum", ["x"], ["s"], keepdims=0), helper.make_node("Cast", ["s"], ["c"], to=9),
             helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other)]  # fmt: skip
    return model(nodes)


def answers(path: Path) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(str(path))
    rng = np.random.default_rng(0)
    feeds = [rng.standard_normal((batch, 4)).astype(np.float32) for batch in (1, 3)]
    return [session.run(None, {"x": x})[0] for x in [*feeds, np.zeros((2, 4), np.float32)]]


@pytest.mark.parametrize("build", [initializer, of_rank_two, constant, in_a_body], ids=lambda build: build.__name__)
@pytest.mark.parametrize("command", ["optimize", "convert --opset 15", "convert --opset 8"])
def test_a_command_keeps_its_numbers(
    build: Callable[[], onnx.ModelProto], command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    onnx.save(build(), "m.onnx")
    name, *options = command.split()
    assert run([name, "m.onnx", "-o", "made.onnx", "-q", *options]) == 0
    for ours, theirs in zip(answers(Path("made.onnx")), answers(Path("m.onnx")), strict=True):
        assert np.array_equal(ours, theirs)
    assert run(["inspect", "m.onnx", "--json"]) == 0


def test_dense_tensors_stand_in_their_places(tmp_path: Path) -> None:
    want = np.zeros((4, 3), np.float32)
    want[tuple(np.array(PLACES).T)] = VALUES
    for build in (initializer, of_rank_two):
        onnx.save(build(), tmp_path / "m.onnx")
        held = graph.load(tmp_path / "m.onnx").graph.initializers["w"].const_value
        assert held is not None and np.array_equal(held.numpy(), want)


@pytest.mark.parametrize(
    ("places", "what"),
    [([1, 5, 12], "don't fit"), ([-1, 5, 10], "don't fit"), ([1, 5], "don't fit"), ([[0], [1], [2]], "don't fit"),
     ([[0, 1], [1, 2], [4, 0]], "outside"), ([[0, 1], [1, 2], [-1, 0]], "outside")],
)  # fmt: skip
def test_indices_that_do_not_fit_are_refused(places: object, what: str, tmp_path: Path) -> None:
    onnx.save(model([helper.make_node("MatMul", ["x", "w"], ["y"])], entry(places=places)), tmp_path / "m.onnx")
    with pytest.raises(InputError) as caught:
        graph.load(tmp_path / "m.onnx")
    assert caught.value.id == "unreadable-model" and what in caught.value.what and "'w'" in caught.value.what


def test_what_is_too_much_as_a_dense_tensor_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx.save(in_a_body(), tmp_path / "m.onnx")
    monkeypatch.setattr(sparse, "MOST_BYTES", 2 * 4 * 3 * 4)
    assert graph.load(tmp_path / "m.onnx")
    monkeypatch.setattr(sparse, "MOST_BYTES", 2 * 4 * 3 * 4 - 1)
    with pytest.raises(InputError, match="more than 95 bytes as dense ones"):
        graph.load(tmp_path / "m.onnx")

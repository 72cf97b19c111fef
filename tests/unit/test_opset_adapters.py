"""onnx's own node tests keep their results when their models are taken over each opset in which an operator changed.

Each case runs twice: as it is, and with all inputs but the first as constants, so that they can become attributes.
"""

import warnings
from collections.abc import Iterator
from functools import cache

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.backend.test.case.node import collect_testcases
from onnx.reference import ReferenceEvaluator

from penstock import opsets
from penstock.opsets import history, telling
from penstock.opsets.steps import Converted, convert
from penstock.passes._library import quiet

pytestmark = pytest.mark.filterwarnings("ignore")
# of these nothing is converted in onnx's cases: they have none with the change, or only such as have to be refused
WITHOUT_CASES = {"And", "Cast", "CastLike", "Constant", "Expand", "GlobalLpPool", "Or", "Sum", "Upsample", "Xor"}
# results of the reference evaluator that are wrong: a Loop or Scan over numbers of rank 0
WRONG_THERE = ("test_range_bfloat16_type_positive_delta", "test_scan9_scalar")


@cache
def cases() -> dict[str, list]:
    """Return onnx's cases by operator; those of one standard node."""
    found: dict[str, list] = {}
    with warnings.catch_warnings(), quiet():
        warnings.simplefilter("ignore")
        for case in collect_testcases(None):
            nodes = case.model.graph.node
            if len(nodes) == 1 and not nodes[0].domain and case.name not in WRONG_THERE:
                found.setdefault(nodes[0].op_type, []).append(case)
    return found


def outputs(model: onnx.ModelProto, feeds: dict) -> list | None:
    """Run a model in ONNX Runtime, in the reference evaluator where that doesn't take it; ``None`` where none does."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, feeds)
    except Exception:
        try:
            return ReferenceEvaluator(model).run(None, feeds)
        except Exception:
            return None


def same(got: object, want: object, case: object) -> bool:
    if isinstance(want, list):
        return isinstance(got, list) and len(got) == len(want) and all(map(same, got, want, [case] * len(want)))
    if want is None or got is None:
        return got is want
    a, b = np.asarray(got), np.asarray(want)
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if a.dtype.kind not in "fc" and a.dtype.name != "bfloat16":
        return bool((a == b).all())
    numbers = [one if one.dtype.kind == "c" else one.astype(np.float64) for one in (a, b)]
    largest = float(np.abs(numbers[1][np.isfinite(numbers[1])]).max(initial=1))
    return np.allclose(*numbers, rtol=max(case.rtol, 1e-3), atol=max(case.atol, 1e-5 * largest), equal_nan=True)


def variants(case: object) -> Iterator[tuple[onnx.ModelProto, dict]]:
    given = [np.asarray(one) if isinstance(one, np.generic) else one for one in case.data_sets[0][0]]
    feeds = dict(zip([one.name for one in case.model.graph.input], given, strict=False))
    yield case.model, feeds
    first, *others = feeds or [""]
    if others and all(isinstance(feeds[name], np.ndarray) for name in others):
        model = onnx.ModelProto()
        model.CopyFrom(case.model)
        model.graph.initializer.extend(numpy_helper.from_array(feeds[name], name) for name in others)
        del model.graph.input[1:]
        yield model, {first: feeds[first]}


def taken(model: onnx.ModelProto, target: int) -> tuple[onnx.ModelProto, Converted]:
    with quiet():
        made = ir.serde.deserialize_model(model)
        done = convert(made, target)
    proto = ir.serde.serialize_model(made)
    proto.ir_version = max(4, min(proto.ir_version, 13))
    return proto, done


ADAPTED = sorted({op for _, _, op in opsets.adapters()})


@pytest.mark.slow
@pytest.mark.parametrize("op", ADAPTED)
def test_results_are_kept(op: str) -> None:
    known = [one.since_version for one in history.versions(op)]
    count, wrong = 0, []
    for case in cases().get(op, []):
        own = next(one.version for one in case.model.opset_import if one.domain == "")
        targets = {max(7, one + step) for one in known for step in (-1, 0)} - {own}
        for model, feeds in variants(case):
            want = outputs(model, feeds)
            if want is None or not same(want, case.data_sets[0][1], case):
                continue  # neither runtime has it, or not as onnx wants it
            for target in sorted(targets):
                proto, done = taken(model, target)
                if done.refused:
                    assert all(one.reason and one.node for one in done.refused)
                    continue
                onnx.checker.check_model(proto)
                got = outputs(proto, feeds)
                if got is None or not same(got, want, case):
                    wrong.append((case.name, own, target, [node.op_type for node in proto.graph.node]))
                count += 1
    assert wrong == []
    assert count or op in WITHOUT_CASES


# --- what onnx has no cases for


def model_of(nodes: list, opset: int, shape: list, weights: dict, rank: int | None = None) -> onnx.ModelProto:
    out = [f"d{axis}" for axis in range(len(shape) if rank is None else rank)]
    sides = [
        helper.make_tensor_value_info(*one) for one in (("x", TensorProto.FLOAT, shape), ("y", TensorProto.FLOAT, out))
    ]
    graph = helper.make_graph(
        nodes, "g", sides[:1], sides[1:],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=4)


X = np.arange(24, dtype=np.float32).reshape(2, 3, 4) - 12
B = np.arange(3, dtype=np.float32)
NODE = helper.make_node
OLD = {
    "Add by axis": ([NODE("Add", ["x", "b"], ["y"], broadcast=1, axis=1)], 6, X + B[:, None]),
    "PRelu by channel": ([NODE("PRelu", ["x", "b"], ["y"])], 6, np.where(X < 0, X * B[:, None], X)),
    "Reshape": ([NODE("Reshape", ["x"], ["y"], shape=[6, 4])], 1, X.reshape(6, 4)),
    "Cast": ([NODE("Cast", ["x"], ["h"], to="INT32"), NODE("Cast", ["h"], ["y"], to="float")], 1, X),
    "Clip": ([NODE("Clip", ["x"], ["y"], max=3.0)], 1, np.minimum(X, 3)),
    "Concat": ([NODE("Concat", ["x", "x"], ["y"])], 1, np.concatenate([X, X], 1)),
    "Pad": ([NODE("Pad", ["x"], ["y"], paddings=[0, 0, 1, 0, 0, 2])], 1, np.pad(X, ((0, 0), (0, 0), (1, 2)))),
    "Tile": ([NODE("Tile", ["x", "tiles", "axis"], ["y"])], 1, np.tile(X, (1, 2, 1))),
    "Dropout": ([NODE("Dropout", ["x"], ["y"], is_test=1, ratio=0.3)], 1, X),
    "Selu": ([NODE("Selu", ["x"], ["y"])], 1, np.where(X > 0, 1.0507 * X, 1.0507 * 1.6732 * (np.exp(X) - 1))),
    "Softmax": ([NODE("Softmax", ["x"], ["y"])], 1,
                (np.exp(X) / np.exp(X).sum((1, 2), keepdims=True))),
    "Split": ([NODE("Split", ["x", "sizes"], ["h", "y"], axis=1)], 1, X[:, 1:]),
}  # fmt: skip
WEIGHTS = {
    "b": B,
    "tiles": np.array([2], np.float32),
    "axis": np.array([1], np.float32),
    "sizes": np.array([1, 2.0], np.float32),
}


@pytest.mark.parametrize("target", [7, 11, 13, 18])
@pytest.mark.parametrize("name", OLD)
def test_opsets_of_long_ago(name: str, target: int) -> None:
    nodes, opset, want = OLD[name]
    used = {one for node in nodes for one in node.input}
    model = model_of(nodes, opset, [2, 3, 4], {key: array for key, array in WEIGHTS.items() if key in used},
                     want.ndim)  # fmt: skip
    proto, done = taken(model, target)
    assert not done.refused
    onnx.checker.check_model(proto)
    np.testing.assert_allclose(outputs(proto, {"x": X})[0], want, rtol=1e-5, atol=1e-6)


def test_training_of_long_ago_is_refused() -> None:
    _, done = taken(model_of([NODE("Dropout", ["x"], ["y"])], 1, [2], {}), 7)
    assert [one.reason for one in done.refused] == [
        "it is set up for training (is_test=0), and opset 7 has inference only"
    ]


def test_upsample_goes_all_the_way() -> None:
    x = np.arange(8, dtype=np.float32).reshape(1, 2, 2, 2)
    model = model_of([NODE("Upsample", ["x"], ["y"], height_scale=2.0, width_scale=2.0)], 1, [1, 2, 2, 2], {})
    for target in (7, 9, 10, 11, 13, 19):
        proto, done = taken(model, target)
        assert not done.refused
        np.testing.assert_array_equal(outputs(proto, {"x": x})[0], x.repeat(2, 2).repeat(2, 3))
    back, done = taken(taken(model, 19)[0], 7)
    assert not done.refused and back.graph.node[0].op_type == "Upsample"


@pytest.mark.parametrize(("value", "want"), [({"value_ints": [1, 2]}, [1, 2]), ({"value_float": 2.5}, 2.5)])
def test_numbers_of_a_constant_become_a_tensor(value: dict, want: object) -> None:
    nodes = [NODE("Constant", [], ["c"], **value), NODE("Cast", ["c"], ["d"], to=1), NODE("Add", ["x", "d"], ["y"])]
    for target in (11, 8):
        proto, done = taken(model_of(nodes, 13, [2], {}), target)
        assert not done.refused
        onnx.checker.check_model(proto)
        x = np.zeros(2, np.float32)
        np.testing.assert_array_equal(outputs(proto, {"x": x})[0], x + np.array(want, np.float32))


def test_infinity_passes_a_bound_that_is_not_given() -> None:
    """Clip of opset 6 cuts it at the largest float by default, Clip of opset 11 does not."""
    x = np.array([-np.inf, 0, 9], np.float32)
    proto, _ = taken(model_of([NODE("Clip", ["x", "", "m"], ["y"])], 11, [3], {"m": np.array(6, np.float32)}), 10)
    np.testing.assert_array_equal(ReferenceEvaluator(proto).run(None, {"x": x})[0], [-np.inf, 0, 6])
    proto, _ = taken(model_of([NODE("Clip", ["x"], ["y"], max=6.0)], 10, [3], {}), 11)
    np.testing.assert_array_equal(outputs(proto, {"x": x})[0], [np.finfo(np.float32).min, 0, 6])


def test_zero_in_a_shape() -> None:
    nodes = [NODE("Reshape", ["x", "s"], ["y"], allowzero=1)]
    _, done = taken(model_of(nodes, 14, [0, 3], {"s": np.array([3, 0])}), 13)
    assert "may hold a 0" in done.refused[0].reason
    proto, done = taken(model_of(nodes, 14, ["n", 4], {"s": np.array([-1, 2])}), 13)
    assert not done.refused and not proto.graph.node[0].attribute
    same_size = [NODE("Shape", ["x"], ["s"]), NODE("Reshape", ["x", "s"], ["y"], allowzero=1)]
    assert not taken(model_of(same_size, 14, ["n", 4], {}), 13)[1].refused


# --- the package itself


def test_every_adapter_is_told_of() -> None:
    for (way, opset, op), adapter in opsets.adapters().items():
        assert opset in [one.since_version for one in history.versions(op)], (op, opset, "is no version of it")
        assert adapter.__doc__ and adapter.__doc__.strip().endswith("."), adapter
        told = next(one for one in telling.operator("", op).versions if one.since == opset)
        assert getattr(told, way), (op, opset)


def test_all_changes_up_to_here_were_read() -> None:
    assert history.newest() <= history.REVIEWED, "read what changed in the new opset, write adapters, raise REVIEWED"


def test_a_change_that_nobody_read_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "REVIEWED", 17)
    _, done = taken(model_of([NODE("LpPool", ["x"], ["y"], kernel_shape=[2])], 17, [1, 1, 4], {}), 18)
    assert "newer than this Penstock" in done.refused[0].reason
    _, done = taken(model_of([NODE("Relu", ["x"], ["y"])], 13, [2], {}), 14)  # other types alone: it goes on
    assert not done.refused

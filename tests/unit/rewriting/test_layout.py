"""The plan of a channels-last model: only boundary Transposes remain, and following it gives the same numbers."""

import importlib.util
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

import alone
from penstock import graph, registry
from penstock.passes._order import in_order, run_unasked
from penstock.rewriting.layout import LayoutPlan, channels_last, last
from penstock.rewriting.orders import turned_constant
from penstock.rewriting.run import rewrite

NETS = Path(__file__).parents[3] / "benchmarks" / "nets.py"
LAST = last(4)


def follow(proto: onnx.ModelProto, plan: LayoutPlan, x: np.ndarray) -> list[np.ndarray]:
    """Run a model as the plan says: torch works on channels-last memory, and nothing is transposed but as planned.

    Written without the code under test: it knows the operators from the specification alone.
    """
    import torch
    from torch.nn import functional as F

    weights = {one.name: numpy_helper.to_array(one) for one in proto.graph.initializer}
    turns = {(turn.value, turn.place) for turn in plan.transposes}
    name = proto.graph.input[0].name
    assert (name, "input") in turns
    held = {name: x.transpose(0, 2, 3, 1)}

    def images(value: str) -> "torch.Tensor":
        """Let torch see an (N, H, W, C) array as what it calls channels_last, without moving anything."""
        assert plan.orders[value] == LAST
        seen = torch.from_numpy(np.ascontiguousarray(held[value])).permute(0, 3, 1, 2)
        assert seen.is_contiguous(memory_format=torch.channels_last)
        return seen

    for node in proto.graph.node:
        given = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
        first, result = node.input[0], node.output[0]
        orders = plan.inputs.get(result, (None,) * len(node.input))
        constants = [
            turned_constant(weights[n], order) if n in weights and order is not None else weights.get(n)
            for n, order in zip(node.input, orders, strict=False)
        ]
        operands = [held.get(n, c) for n, c in zip(node.input, constants, strict=True)]
        if node.op_type == "Conv":
            pads, bias = given.get("pads", [0] * 4), constants[2] if len(constants) > 2 else None
            assert pads[:2] == pads[2:]
            made = F.conv2d(
                images(first), torch.from_numpy(weights[node.input[1]].copy()),
                None if bias is None else torch.from_numpy(bias.copy()), given.get("strides", 1), pads[:2],
                given.get("dilations", 1), given.get("group", 1),
            )  # fmt: skip
            held[result] = made.permute(0, 2, 3, 1).numpy()
        elif node.op_type == "MaxPool":
            made = F.max_pool2d(images(first), given["kernel_shape"], given.get("strides", 1), given["pads"][:2])
            held[result] = made.permute(0, 2, 3, 1).numpy()
        elif node.op_type == "GlobalAveragePool":
            held[result] = held[first].mean((1, 2), keepdims=True)
        elif node.op_type == "ReduceMean":
            axes = given.get("axes") or weights[node.input[1]].tolist()
            assert sorted(axis % 4 for axis in axes) == [2, 3]
            held[result] = held[first].mean((1, 2), keepdims=bool(given.get("keepdims", 1)))
        elif node.op_type == "Relu":
            held[result] = np.maximum(held[first], 0)
        elif node.op_type == "Clip":
            held[result] = np.clip(held[first], operands[1], operands[2])
        elif node.op_type == "Sigmoid":
            held[result] = 1 / (1 + np.exp(-held[first]))
        elif node.op_type == "HardSwish":
            held[result] = held[first] * np.clip(held[first] / 6 + 0.5, 0, 1)
        elif node.op_type in ("Add", "Mul"):
            held[result] = operands[0] + operands[1] if node.op_type == "Add" else operands[0] * operands[1]
        elif node.op_type == "Concat":
            assert given["axis"] == 1
            held[result] = np.concatenate(operands, axis=3)
        elif node.op_type in ("Flatten", "Reshape"):
            held[result] = held[first].reshape(len(x), -1)
            if result in plan.orders:  # (N, C) → (N, 1, 1, C)
                held[result] = held[result][:, None, None]
        elif node.op_type in ("Gemm", "MatMul"):
            factor = weights[node.input[1]].T if given.get("transB") else weights[node.input[1]]
            if first in plan.columns:
                factor = factor[list(plan.columns[first])]
            held[result] = held[first] @ factor + (constants[2] if len(constants) > 2 else 0)
        else:
            raise AssertionError(f"nobody told how to run {node.op_type}")
    return [
        held[v.name].transpose(plan.orders[v.name]) if (v.name, "output") in turns else held[v.name]
        for v in proto.graph.output
    ]


def plan_of(proto: onnx.ModelProto) -> LayoutPlan:
    return channels_last(ir.from_proto(proto))


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.parametrize("name", ["cifar10", "resnet18", "mobilenetv2", "senet"])
def test_networks_of_images_keep_boundary_transposes_alone(name: str, tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("nets", NETS)
    assert spec is not None
    assert spec.loader is not None
    nets = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(nets)
    model = graph.load(nets.export(name, "torchscript", tmp_path / "net.onnx"))
    passes = {one: registry.load("passes", one) for one in run_unasked()}
    proto = ir.to_proto(rewrite(model, in_order(passes), max_rounds=20).model)
    plan = plan_of(proto)
    assert [turn.place for turn in plan.transposes] == ["input"], plan.transposes
    x = np.random.default_rng(1).normal(size=(3, *alone.feeds(proto)[proto.graph.input[0].name].shape[1:]))
    x = x.astype(np.float32)
    (wanted,) = alone.run_ort(proto, {proto.graph.input[0].name: x})
    (found,) = follow(proto, plan, x)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)


SMALL = """(float[N,3,6,5] x) => (float[N,7] y) {
    a = Conv<pads=[1,1,1,1]>(x, w) b = Mul(a, k) c = Concat<axis=1>(a, b) d = MaxPool<kernel_shape=[2,2],
    pads=[0,0,0,0]>(c) e = Flatten(d) f = Relu(e) y = Gemm(f, g, h) }"""
WEIGHTS = {"w": floats(4, 3, 3, 3), "k": floats(4, 1, 1), "g": floats(8 * 5 * 4, 7), "h": floats(7)}


@pytest.mark.torch
def test_columns_after_a_flatten_follow_the_image() -> None:
    """Rows of the weight in another order; unpermuted ones would give other numbers."""
    proto = alone.model(SMALL, **WEIGHTS)
    plan = plan_of(proto)
    assert [turn.place for turn in plan.transposes] == ["input"]
    columns = np.arange(8 * 5 * 4).reshape(8, 5, 4).transpose(1, 2, 0).ravel()
    assert plan.columns == {"e": tuple(columns), "f": tuple(columns)}
    x = floats(2, 3, 6, 5)
    wanted, found = alone.run_reference(proto, {"x": x})[0], follow(proto, plan, x)[0]
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
    unpermuted = LayoutPlan(plan.orders, plan.inputs, {}, plan.transposes)
    assert np.abs(follow(proto, unpermuted, x)[0] - wanted).max() > 0.1


@pytest.mark.parametrize(
    ("nodes", "places"),
    [
        ("y = Relu(a)", ["input", "output"]),
        ("b = Flatten(a) y = Softmax(b)", ["input", "inside"]),  # it isn't only read by products
        ("b = Reshape(a, s) y = Relu(b)", ["input", "inside"]),  # channels are split
        ("b = Transpose<perm=[0,2,3,1]>(a) y = Relu(b)", ["input"]),  # what the model transposes by itself
        ("b = Transpose<perm=[0,2,1,3]>(a) y = Relu(b)", ["input", "inside"]),
    ],
)
def test_where_transposes_remain(nodes: str, places: list[str]) -> None:
    shape = {"b = F": "u,v", "b = R": "u,v,p,q,r"}.get(nodes[:5], "u,v,p,q")
    proto = alone.model(
        f"(float[N,3,6,5] x) => (float[{shape}] y) {{ a = Conv<pads=[1,1,1,1]>(x, w) {nodes} }}",
        w=WEIGHTS["w"], s=np.array([0, 2, 2, 6, 5]),
    )  # fmt: skip
    assert [turn.place for turn in plan_of(proto).transposes] == places


def test_a_model_without_images_has_nothing_to_plan() -> None:
    proto = alone.model("(float[N,4] x) => (float[N,4] y) { a = MatMul(x, w) y = Relu(a) }", w=floats(4, 4))
    plan = plan_of(proto)
    assert not plan.orders
    assert not plan.transposes

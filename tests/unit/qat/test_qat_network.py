"""The module that is trained: the float graph, rounded exactly where the static quantizer puts its grids."""

import copy
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from penstock import graph
from penstock.errors import InputError, UsageError
from penstock.qat import Network, QatSettings, convert, prepare_model
from penstock.qat.grids import Activations
from penstock.qat.trained import trained
from penstock.stages.quantize import QuantizeSettings, quantize

pytestmark = pytest.mark.torch
RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(48, 3, 8, 8)).astype(np.float32)
ROWS = RNG.normal(size=(48, 6)).astype(np.float32)
CONSUMERS = ("ort-cpu", "openvino", "integer-only", "tensorrt")


def weights(*shape: int) -> np.ndarray:
    return (RNG.normal(size=shape) / np.sqrt(np.prod(shape[1:] or shape))).astype(np.float32)


def saved(
    path: Path, nodes: list[onnx.NodeProto], held: dict[str, np.ndarray], shape: list, end: list, opset: int = 18
) -> Path:
    model = helper.make_model(
        helper.make_graph(
            nodes, "net", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *shape])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", *end])],
            [numpy_helper.from_array(array, name) for name, array in held.items()],
        ), opset_imports=[helper.make_opsetid("", opset)], ir_version=10,
    )  # fmt: skip
    path.write_bytes(model.SerializeToString())
    return path


def residual(path: Path, end: str = "Sigmoid") -> Path:
    """Conv, Relu; a depthwise Conv, Clip, a 1x1 Conv; Add, MaxPool, a gate, a mean, Gemm."""
    make = helper.make_node
    nodes = [
        make("Conv", ["x", "w1", "b1"], ["c1"], "stem", pads=[1, 1, 1, 1]), make("Relu", ["c1"], ["r1"], "relu"),
        make("Conv", ["r1", "w2", "b2"], ["c2"], "depthwise", group=8, pads=[1, 1, 1, 1]),
        make("Clip", ["c2", "zero", "six"], ["k2"], "clip"), make("Conv", ["k2", "w3", "b3"], ["c3"], "project"),
        make("Add", ["c3", "r1"], ["a"], "join"),
        make("MaxPool", ["a"], ["p"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        make("GlobalAveragePool", ["p"], ["g"], "squeeze"), make("Conv", ["g", "w4", "b4"], ["e"], "excite"),
        make(end, ["e"], ["s"], "gate"), make("Mul", ["p", "s"], ["m"], "scale"),
        make("Conv", ["m", "w6", "b6"], ["c6"], "last"), make("GlobalAveragePool", ["c6"], ["q"], "mean"),
        make("Flatten", ["q"], ["f"], "flatten"), make("Gemm", ["f", "w5", "b5"], ["y"], "head", transB=1),
    ]  # fmt: skip
    held = {"w1": weights(8, 3, 3, 3), "w2": weights(8, 1, 3, 3), "w3": weights(8, 8, 1, 1), "w4": weights(8, 8, 1, 1)}
    held |= {"w5": weights(5, 8), "w6": weights(8, 8, 1, 1), "zero": np.array(0, np.float32)}
    held |= {"six": np.array(6, np.float32)} | {f"b{i}": weights(8) for i in (1, 2, 3, 4, 6)} | {"b5": weights(5)}
    return saved(path, nodes, held, [3, 8, 8], [5])


def encoder(path: Path) -> Path:
    """LayerNormalization, attention of one head, a residual Add, a GELU of its parts, a linear layer on each row."""
    make = helper.make_node
    nodes = [
        make("Reshape", ["x", "rows"], ["t"], "cut"), make("Add", ["t", "place"], ["z"], "positions"),
        make("LayerNormalization", ["z", "n1", "n2"], ["n"], "norm"), make("MatMul", ["n", "wq"], ["q"], "query"),
        make("MatMul", ["n", "wk"], ["k0"], "key"), make("Add", ["k0", "bk"], ["k"], "key_bias"),
        make("Transpose", ["k"], ["kt"], "turn", perm=[0, 2, 1]), make("MatMul", ["q", "kt"], ["qk"], "scores"),
        make("Div", ["qk", "root"], ["d"], "divide"), make("Softmax", ["d"], ["s"], "share"),
        make("MatMul", ["s", "n"], ["v"], "mix"), make("Add", ["v", "z"], ["r"], "join"),
        make("MatMul", ["r", "wu"], ["u"], "up"), make("Div", ["u", "two"], ["u1"], "half"),
        make("Erf", ["u1"], ["u2"]), make("Add", ["u2", "one"], ["u3"]), make("Mul", ["u", "u3"], ["u4"]),
        make("Mul", ["u4", "point"], ["u5"]), make("MatMul", ["u5", "wd"], ["o"], "down"),
        make("ReduceMean", ["o", "axis"], ["w"], "mean", keepdims=0),
        make("Gemm", ["w", "wh", "bh"], ["y"], "head"),
    ]  # fmt: skip
    held = {"rows": np.array([0, 4, 12]), "place": weights(1, 4, 12), "n1": 1 + weights(12), "n2": weights(12)}
    held |= {"wq": weights(12, 12), "wk": weights(12, 12), "bk": weights(12), "wu": weights(12, 24)}
    held |= {"wd": weights(24, 12), "wh": weights(12, 3), "bh": weights(3), "axis": np.array([1])}
    numbers = {"root": 3.5, "two": 1.4142135, "one": 1.0, "point": 0.5}
    held |= {name: np.array(value, np.float32) for name, value in numbers.items()}
    return saved(path, nodes, held, [3, 4, 4], [3])


def deconvolution(path: Path) -> Path:
    make = helper.make_node
    nodes = [
        make("Conv", ["x", "w1", "b1"], ["c1"], "conv"), make("LeakyRelu", ["c1"], ["l"], "leaky"),
        make("ConvTranspose", ["l", "w2", "b2"], ["c2"], "up", strides=[2, 2], group=2),
        make("HardSwish", ["c2"], ["h"], "swish"), make("Concat", ["h", "h"], ["j"], "join", axis=1),
        make("Conv", ["j", "w3"], ["c3"], "conv3"), make("Relu", ["c3"], ["r"], "relu"),
        make("Conv", ["r", "w4"], ["y"], "last"),
    ]  # fmt: skip
    held = {"w1": weights(4, 3, 1, 1), "b1": weights(4), "w2": weights(4, 3, 2, 2), "b2": weights(6)}
    held |= {"w3": weights(4, 12, 1, 1), "w4": weights(2, 4, 1, 1)}
    return saved(path, nodes, held, [3, 8, 8], [2, 16, 16])


NETS = {"residual": residual, "encoder": encoder, "deconvolution": deconvolution}
# the encoder has products of two activations, of which such a target has none on integers
SERVED = [(kind, one) for kind in NETS for one in CONSUMERS if (kind, one) != ("encoder", "integer-only")]


def samples(kind: str) -> np.ndarray:
    return IMAGES[:, :, :4, :4] if kind == "encoder" else IMAGES


def batches(rows: np.ndarray) -> list[dict[str, np.ndarray]]:
    return [{"x": np.ascontiguousarray(rows[start : start + 16])} for start in range(0, len(rows), 16)]


def run(path: Path, rows: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    made: np.ndarray = session.run(None, {"x": np.ascontiguousarray(rows)})[0]
    return made


@pytest.mark.parametrize("kind", NETS)
def test_without_rounding_it_is_the_float_model(kind: str, tmp_path: Path) -> None:
    path = NETS[kind](tmp_path / "m.onnx")
    made = Network(graph.load(path))(torch.from_numpy(np.ascontiguousarray(samples(kind))))
    np.testing.assert_allclose(made.detach().numpy(), run(path, samples(kind)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kind", "consumer"), SERVED)
def test_before_training_the_file_is_the_static_quantizers(kind: str, consumer: str, tmp_path: Path) -> None:
    path = NETS[kind](tmp_path / "m.onnx")
    prepared = prepare_model(path, batches(samples(kind)), QatSettings(consumer=consumer))
    convert(prepared, tmp_path / "trained.onnx")
    settings = QatSettings(consumer=consumer).static()
    quantize(path, batches(samples(kind)), settings, tmp_path / "static.onnx")
    assert (tmp_path / "trained.onnx").read_bytes() == (tmp_path / "static.onnx").read_bytes()


@pytest.mark.parametrize("changed", [
    {"exclude": ("project",)}, {"per_channel": False}, {"quantize_outputs": True}, {"ranges": "minmax"},
    {"activations": "int8"}, {"activations": "int16"}, {"equalize": False, "smooth": False}, {"target_cpu": "avx2"},
    {"exclude": ("stem", "head"), "ranges": "entropy"},
], ids=str)  # fmt: skip
def test_settings_mean_what_they_mean_to_the_static_quantizer(changed: dict, tmp_path: Path) -> None:
    path = residual(tmp_path / "m.onnx")
    convert(prepare_model(path, batches(IMAGES), QatSettings(**changed)), tmp_path / "trained.onnx")
    settings = QuantizeSettings(method="static", correct_bias="none", guard=False, rounding="nearest", **changed)
    quantize(path, batches(IMAGES), settings, tmp_path / "static.onnx")
    assert (tmp_path / "trained.onnx").read_bytes() == (tmp_path / "static.onnx").read_bytes()


@pytest.mark.parametrize(("kind", "consumer"), SERVED)
def test_the_runtime_computes_what_the_module_does(kind: str, consumer: str, tmp_path: Path) -> None:
    """As written, with the runtime's own rewriting off: that has kernels with tables and sums of its own."""
    path = NETS[kind](tmp_path / "m.onnx")
    prepared = prepare_model(path, batches(samples(kind)), QatSettings(consumer=consumer))
    convert(prepared, tmp_path / "int8.onnx")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(tmp_path / "int8.onnx", options, providers=["CPUExecutionProvider"])
    rows = np.ascontiguousarray(samples(kind))
    want = session.run(None, {"x": rows})[0]
    with torch.no_grad():
        got = prepared.module(torch.from_numpy(rows)).numpy()
        plain = prepared.float_module()(torch.from_numpy(rows)).numpy()
    near = np.abs(got - want) <= 1e-5 * np.abs(want).max()
    assert near.mean() > 0.9, "sums that lie between two steps may be rounded either way"
    assert np.abs(plain - want).max() > 10 * np.median(np.abs(got - want)), "it isn't the float model that agrees"


def test_what_is_rounded_is_what_has_a_pair_in_the_file(tmp_path: Path) -> None:
    prepared = prepare_model(residual(tmp_path / "m.onnx"), batches(IMAGES))
    convert(prepared, tmp_path / "int8.onnx")
    made = onnx.load(tmp_path / "int8.onnx")
    held = {t.name: numpy_helper.to_array(t) for t in made.graph.initializer}
    pairs = {n.input[0]: n for n in made.graph.node if n.op_type == "QuantizeLinear"}
    grids = prepared.module.tensor_grids()
    assert set(pairs) == set(grids) and len(grids) > 8
    for tensor, node in pairs.items():
        assert held[node.input[1]] == grids[tensor].scale and held[node.input[2]] == grids[tensor].zero
    assert not [n for n in made.graph.node if n.op_type in ("Relu", "Clip")], "the grids clip"


@pytest.mark.parametrize("kind", NETS)
def test_gradients_reach_every_weight_and_scale(kind: str, tmp_path: Path) -> None:
    settings = QatSettings(ranges="percentile", percentile=95)
    module = prepare_model(NETS[kind](tmp_path / "m.onnx"), batches(samples(kind)), settings).module
    module.train()
    module(torch.from_numpy(np.ascontiguousarray(samples(kind)))).square().mean().backward()
    trained_ones = {name: p.grad for name, p in module.named_parameters() if p.requires_grad}
    assert all(gradient is not None and gradient.isfinite().all() for gradient in trained_ones.values())
    # a zero point is moved only by values beyond the grid's ends
    still = [name for name, gradient in trained_ones.items() if not gradient.abs().sum() and not name.endswith("shift")]
    assert still == [] and len(trained_ones) > 10
    assert all(name.endswith("shift") for name, p in module.named_parameters() if not p.requires_grad)


def test_which_constants_are_trained(tmp_path: Path) -> None:
    model = graph.load(encoder(tmp_path / "m.onnx"))
    by_definition = {"n1", "n2", "wq", "wk", "bk", "wu", "wd", "wh", "bh"}
    assert trained(model) == by_definition, "the numbers of the GELU and the table of positions stay"
    assert trained(model, named={"place", "no such name"}) == by_definition | {"place"}
    assert trained(graph.load(residual(tmp_path / "r.onnx"))) == {f"{k}{i}" for k in "wb" for i in range(1, 7)}


def test_a_relu_is_left_to_its_grid_and_a_clip_is_not(tmp_path: Path) -> None:
    """A scale that grows lets a grid reach beyond 6; the Clip is in the file again then."""
    prepared = prepare_model(residual(tmp_path / "m.onnx"), batches(IMAGES * 20))
    steps = {step.node: step for step in prepared.module._steps}
    assert steps["relu"].run is not steps["clip"].run and steps["relu"].after
    assert float(prepared.module.tensor_grids()["k2"].top) <= 6.001
    with torch.no_grad():
        next(grid for name, grid in prepared.module.grids.items() if name.startswith("k2")).scale.mul_(1.5)  # type: ignore[union-attr, operator]
    convert(prepared, tmp_path / "int8.onnx")
    assert "Clip" in [n.op_type for n in onnx.load(tmp_path / "int8.onnx").graph.node]
    with torch.no_grad():
        got = prepared.module(torch.from_numpy(IMAGES * 20)).numpy()
    np.testing.assert_allclose(got, run(tmp_path / "int8.onnx", IMAGES * 20), atol=0.05 * np.abs(got).max())


def test_a_net_that_needs_floats_is_refused_for_integers_alone(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        prepare_model(encoder(tmp_path / "m.onnx"), batches(samples("encoder")), QatSettings(consumer="integer-only"))
    assert caught.value.id == "stays-in-float"


def test_prescribed_ranges_are_not_learned(tmp_path: Path) -> None:
    module = prepare_model(residual(tmp_path / "m.onnx"), batches(IMAGES), QatSettings(consumer="integer-only")).module
    learned = {name: grid.scale.requires_grad for name, grid in module.grids.items() if isinstance(grid, Activations)}
    assert not learned["s"] and learned["x"]
    fixed = prepare_model(residual(tmp_path / "m.onnx"), batches(IMAGES), QatSettings(scales="fixed")).module
    assert not [name for name, p in fixed.named_parameters() if p.requires_grad and not name.startswith("weights.")]


def test_it_is_a_module_like_any_other(tmp_path: Path) -> None:
    prepared = prepare_model(residual(tmp_path / "m.onnx"), batches(IMAGES))
    module, rows = prepared.module, torch.from_numpy(IMAGES)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    before = module(rows).detach()
    for _ in range(3):
        optimizer.zero_grad()
        module(rows).square().mean().backward()
        optimizer.step()
    after = module(rows).detach()
    assert not torch.equal(before, after)
    # its state is all that it is: another one that began elsewhere becomes the same
    twin = prepare_model(residual(tmp_path / "other.onnx"), batches(2 * IMAGES)).module
    twin.load_state_dict(module.state_dict())
    assert torch.equal(twin(rows), after) and torch.equal(copy.deepcopy(module)(rows), after)
    assert torch.equal(module.train()(rows), module.eval()(rows)), "there is nothing that only training does"
    assert torch.equal(module(x=rows), after)
    for wrong in ((), (rows, rows)):
        with pytest.raises(UsageError, match="called with"):
            module(*wrong)
    with pytest.raises(UsageError, match="called with"):
        module(z=rows)
    np.testing.assert_array_equal(prepared.module.arrays()["w1"], module.weights.w1.detach().numpy())


def test_weights_that_a_file_holds_as_numbers_stay_so(tmp_path: Path) -> None:
    model = onnx.load(residual(tmp_path / "m.onnx"))
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        tensor.CopyFrom(helper.make_tensor(tensor.name, tensor.data_type, array.shape, array.reshape(-1).tolist()))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    settings = QatSettings(exclude=("head",))
    convert(prepare_model(tmp_path / "m.onnx", batches(IMAGES), settings), tmp_path / "trained.onnx")
    quantize(tmp_path / "m.onnx", batches(IMAGES), settings.static(), tmp_path / "static.onnx")
    assert (tmp_path / "trained.onnx").read_bytes() == (tmp_path / "static.onnx").read_bytes()


def test_shared_weights_are_one_parameter_with_two_grids(tmp_path: Path) -> None:
    make = helper.make_node
    nodes = [
        make("Gemm", ["x", "w", "b"], ["h"], "one"),
        make("Relu", ["h"], ["r"]),
        make("Gemm", ["r", "w", "b"], ["y"], "two"),
    ]
    path = saved(tmp_path / "m.onnx", nodes, {"w": weights(6, 6), "b": weights(6)}, [6], [6])
    prepared = prepare_model(path, batches(ROWS))
    assert len(list(prepared.module.weights.parameters())) == 2 and len(prepared.module.scales) == 2
    convert(prepared, tmp_path / "int8.onnx")
    quantize(path, batches(ROWS), QatSettings().static(), tmp_path / "static.onnx")
    assert (tmp_path / "int8.onnx").read_bytes() == (tmp_path / "static.onnx").read_bytes()


def test_several_inputs_and_outputs(tiny: ModuleType, tmp_path: Path) -> None:
    model = tiny.mlp()
    model.graph.output.append(helper.make_tensor_value_info("r", TensorProto.FLOAT, ["batch", 16]))
    path = tiny.save(model, tmp_path / "m.onnx")
    prepared = prepare_model(path, [ROWS])
    convert(prepared, tmp_path / "int8.onnx")
    made = prepared.module(torch.from_numpy(ROWS))
    session = onnxruntime.InferenceSession(tmp_path / "int8.onnx", providers=["CPUExecutionProvider"])
    for got, want in zip(made, session.run(None, {"x": ROWS}), strict=True):
        np.testing.assert_allclose(got.detach().numpy(), want, atol=0.05)


def test_operators_that_are_unknown_are_refused_before_any_sample_is_run(tmp_path: Path) -> None:
    make = helper.make_node
    nodes = [
        make("Gemm", ["x", "w"], ["h"], "one"),
        make("Det", ["h"], ["d"], "det"),
        make("CumSum", ["h", "zero"], ["y"], "sums"),
    ]
    path = saved(tmp_path / "m.onnx", nodes[:1] + nodes[2:], {"w": weights(6, 6), "zero": np.array(1)}, [6], [6])
    with pytest.raises(InputError) as caught:
        prepare_model(path, (pytest.fail("a sample was run") for _ in range(1)))
    assert caught.value.id == "cannot-train" and "CumSum" in caught.value.what and "'sums'" in caught.value.what

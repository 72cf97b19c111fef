"""What is known without running: never other than onnx's inference says, nor than a run shows."""

import math
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from penstock import graph
from penstock.rewriting.knowledge import MOST_AGAIN, Knowledge
from penstock.rewriting.sizes import Product, Size
from rewriting_cases import Feeds, floats, model, node, random_feeds, tensor


def learnt(proto: onnx.ModelProto) -> tuple[Knowledge, dict[str, ir.Value]]:
    loaded = ir.from_proto(proto)
    known = Knowledge(loaded)
    known.learn(loaded.graph)
    return known, {value.name: value for one in loaded.graph.all_nodes() for value in one.outputs if value.name}


def number(size: Size, assigned: dict[str, int]) -> int | None:
    if size is None or isinstance(size, int):
        return size
    if any(name not in assigned for name in size.names):
        return None
    return size.factor * math.prod(assigned[name] for name in size.names)


def assigned_by(proto: onnx.ModelProto, feeds: Feeds) -> dict[str, int]:
    return {
        dim.dim_param: size
        for value in proto.graph.input if value.name in feeds
        for dim, size in zip(value.type.tensor_type.shape.dim, feeds[value.name].shape, strict=True) if dim.dim_param
    }  # fmt: skip


def assert_true(known: Knowledge, value: ir.Value, actual: np.ndarray, assigned: dict[str, int]) -> int:
    """Hold what is known of a value against what a run gave; return how much could be compared."""
    compared = 0
    shape = known.shapes.get(value)
    if shape is not None:
        assert len(shape) == actual.ndim, value.name
        compared += 1
        for size, true in zip(shape, actual.shape, strict=True):
            if (said := number(size, assigned)) is not None:
                assert said == true, f"{value.name}: {list(map(str, shape))} is {actual.shape}"
                compared += 1
    items = known.elements.get(value)
    if items is not None:
        assert len(items) == actual.size and actual.ndim <= 1, value.name
        for size, true in zip(items, actual.reshape(-1).tolist(), strict=True):
            if (said := number(size, assigned)) is not None:
                assert said == int(true), f"{value.name}: {list(map(str, items))} are {actual}"
                compared += 1
    if value.dtype is not None:
        assert value.dtype.numpy() == actual.dtype, value.name
    return compared


X = {"x": ("batch", 4, 6)}
I = ["i"]  # noqa: E741  # an index
CASES = {
    "relu": ([node("Relu", ["x"], ["y"])], X, {}),
    "broadcast": ([node("Add", ["x", "w"], ["y"])], X, {"w": floats(0, 4, 1)}),
    "broadcast unknown": ([node("Mul", ["x", "z"], ["y"])], {**X, "z": ("batch", 1, 6)}, {}),
    "compare": ([node("Less", ["x", "w"], ["c"]), node("Where", ["c", "x", "w"], ["y"])], X, {"w": floats(0, 6)}),
    "transpose": ([node("Transpose", ["x"], ["y"], perm=[2, 0, 1])], X, {}),
    "reversed": ([node("Transpose", ["x"], ["y"])], X, {}),
    "flatten": ([node("Flatten", ["x"], ["y"])], X, {}),
    "flatten all": ([node("Flatten", ["x"], ["y"], axis=-1)], X, {}),
    "squeeze": ([node("Unsqueeze", ["x", "i"], ["u"]), node("Squeeze", ["u", "j"], ["y"])],
                X, {"i": [0, -1], "j": [0]}),
    "reshape": ([node("Reshape", ["x", "s"], ["y"])], X, {"s": [0, -1]}),
    "reshape merges": ([node("Reshape", ["x", "s"], ["y"])], X, {"s": [-1, 3, 2]}),
    "concat": ([node("Concat", ["x", "x", "x"], ["y"], axis=-1)], X, {}),
    "concat batches": ([node("Concat", ["x", "x"], ["y"], axis=0)], X, {}),
    "split": ([node("Split", ["x", "s"], ["y", "z"], axis=1)], X, {"s": [1, 3]}),
    "split evenly": ([node("Split", ["x"], ["y", "z", "v", "u"], axis=2, num_outputs=4)], X, {}),
    "slice": ([node("Slice", ["x", "s", "e", "a", "t"], ["y"])],
              X, {"s": [-3, 0], "e": [9, -1], "a": [2, 1], "t": [2, 1]}),
    "slice back": ([node("Slice", ["x", "s", "e", "a", "t"], ["y"])], X, {"s": [5], "e": [-99], "a": [2], "t": [-2]}),
    "slice batch": ([node("Slice", ["x", "s", "e"], ["y"])], X, {"s": [0], "e": [2**62]}),
    "slice batch end": ([node("Slice", ["x", "s", "e"], ["y"])], X, {"s": [-1], "e": [2**62]}),
    "slice batch part": ([node("Slice", ["x", "s", "e"], ["y"])], X, {"s": [1], "e": [-1]}),
    "gather": ([node("Gather", ["x", "i"], ["y"], axis=1)], X, {"i": [[0, 3], [1, 2]]}),
    "gather one": ([node("Gather", ["x", "i"], ["y"], axis=-1)], X, {"i": 2}),
    "expand": ([node("Expand", ["x", "s"], ["y"])], {"x": ("batch", 1, 6)}, {"s": [2, 1, 4, 1]}),
    "tile": ([node("Tile", ["x", "s"], ["y"])], X, {"s": [2, 1, 3]}),
    "reduce": ([node("ReduceMean", ["x", "a"], ["y"])], X, {"a": [-1]}),
    "reduce all": ([node("ReduceSum", ["x"], ["y"], keepdims=0)], X, {}),
    "reduce none": ([node("ReduceSum", ["x"], ["y"], noop_with_empty_axes=1)], X, {}),
    "argmax": ([node("ArgMax", ["x"], ["y"], axis=1, keepdims=0)], X, {}),
    "pad": ([node("Pad", ["x", "p"], ["y"])], X, {"p": [0, 1, 2, 0, 0, 1]}),
    "pad axes": ([node("Pad", ["x", "p", "", "a"], ["y"])], X, {"p": [1, 2], "a": [-1]}),
    "cast": ([node("Cast", ["x"], ["y"], to=TensorProto.INT32)], X, {}),
    "matmul": ([node("MatMul", ["x", "w"], ["y"])], X, {"w": floats(0, 6, 5)}),
    "matmul vector": ([node("MatMul", ["x", "w"], ["y"])], X, {"w": floats(0, 6)}),
    "matmul stacked": ([node("MatMul", ["x", "z"], ["y"])], {**X, "z": ("batch", 6, "n")}, {}),
    "gemm": ([node("Gemm", ["x", "w"], ["y"], transA=1, transB=1)], {"x": (6, "batch")}, {"w": floats(0, 5, 6)}),
    "quantize": ([node("QuantizeLinear", ["x", "s", "z"], ["q"]), node("DequantizeLinear", ["q", "s", "z"], ["y"])],
                 X, {"s": np.float32(0.1), "z": np.int8(3)}),
    "range": ([node("Range", ["a", "b", "c"], ["y"])], X, {"a": 1, "b": 9, "c": 3}),
    "constant of shape": ([node("Shape", ["x"], ["s"]), node("ConstantOfShape", ["s"], ["y"])], X, {}),
    "one hot": ([node("OneHot", ["k", "d", "v"], ["y"])], {"k": ("int64", ("batch",))}, {"d": 7, "v": [0.0, 1.0]}),
    "top k": ([node("TopK", ["x", "k"], ["y", "z"])], X, {"k": [3]}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_shapes_are_those_of_a_run(case: str) -> None:
    nodes, inputs, weights = CASES[case]
    proto = model(nodes, inputs, [nodes[-1].output[0]], weights)
    known, values = learnt(proto)
    compared = 0
    for size in (2, 5):
        feeds = random_feeds(proto, size)
        results = ReferenceEvaluator(proto).run(None, feeds, intermediate=True)
        for name, value in values.items():
            compared += assert_true(known, value, np.asarray(results[name]), assigned_by(proto, feeds))
    assert compared > 0


IMAGE = {"x": ("batch", 3, 9, 11)}
LAYERS = {
    "plain": ("Conv", {}),
    "strides": ("Conv", {"strides": [2, 3], "pads": [1, 0, 2, 1], "dilations": [1, 2]}),
    "same upper": ("Conv", {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    "same lower": ("Conv", {"auto_pad": "SAME_LOWER"}),
    "valid": ("Conv", {"auto_pad": "VALID", "strides": [2, 1]}),
    "max": ("MaxPool", {"kernel_shape": [2, 3], "strides": [2, 2]}),
    "max ceil": ("MaxPool", {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}),
    "max ceil pads": ("MaxPool", {"kernel_shape": [3, 3], "strides": [2, 4], "ceil_mode": 1, "pads": [1, 1, 1, 1]}),
    "average": ("AveragePool", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    "average ceil": ("AveragePool", {"kernel_shape": [2, 2], "strides": [3, 3], "ceil_mode": 1}),
    "global": ("GlobalAveragePool", {}),
    "transposed": ("ConvTranspose", {"strides": [2, 2], "output_padding": [1, 0], "pads": [1, 0, 0, 1]}),
    "depth": ("DepthToSpace", {"blocksize": 1}),
}


@pytest.mark.parametrize("case", LAYERS)
@pytest.mark.parametrize("shape", [("batch", 3, 9, 11), ("batch", 3, "h", "w")])
def test_shapes_of_layers_are_those_of_a_run(case: str, shape: tuple[str | int, ...]) -> None:
    op, attributes = LAYERS[case]
    inputs = ["x", "w"] if op.startswith("Conv") else ["x"]
    weights = {"w": floats(0, 3, 3, 3, 3)} if op.startswith("Conv") else {}
    proto = model([node(op, inputs, ["y"], **attributes), node("Relu", ["y"], ["z"])], {"x": shape}, ["z"], weights)
    known, values = learnt(proto)
    proto.graph.output.append(helper.make_empty_tensor_value_info("y"))
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = random_feeds(proto, 10)
    (actual,) = session.run(["y"], feeds)
    assert assert_true(known, values["y"], actual, assigned_by(proto, feeds)) >= (5 if shape[2] == 9 else 3)


@pytest.mark.parametrize("mode", ["scales", "sizes"])
def test_resize(mode: str) -> None:
    weights = {"scales": [1.0, 1.0, 2.0, 1.5]} if mode == "scales" else {"sizes": [2, 3, 18, 16]}
    inputs = ["x", "", "scales"] if mode == "scales" else ["x", "", "", "sizes"]
    size = "batch" if mode == "scales" else 2
    proto = model([node("Resize", inputs, ["y"], mode="nearest")], {"x": (size, 3, 9, 11)}, ["y"], weights)
    known, values = learnt(proto)
    (actual,) = ReferenceEvaluator(proto).run(None, random_feeds(proto))
    assert assert_true(known, values["y"], actual, {"batch": 3}) == 5


def chain(*steps: onnx.NodeProto, wanted: str, weights: dict | None = None, size: int = 3) -> tuple[Size, ...]:
    """Return what is known of the elements after ``Shape(x)`` and these steps; it has to be what a run gives."""
    x = {"x": ("batch", "h", 6)}
    proto = model([node("Shape", ["x"], ["s"]), *steps], x, [wanted], {"zero": [0], "one": [1], **(weights or {})})
    known, values = learnt(proto)
    for each in (size, size + 2):
        feeds = random_feeds(proto, each)
        results = ReferenceEvaluator(proto).run(None, feeds, intermediate=True)
        for name, value in values.items():
            assert_true(known, value, np.asarray(results[name]), assigned_by(proto, feeds))
    return known.elements[values[wanted]]


BATCH, HEIGHT = Product(1, ("batch",)), Product(1, ("h",))


def test_elements_are_followed_through_the_chains_of_exporters() -> None:
    assert chain(wanted="s") == (BATCH, HEIGHT, 6)
    first = node("Gather", ["s", "zero"], ["a"])
    assert chain(first, wanted="a") == (BATCH,)
    assert chain(first, node("Concat", ["a", "one"], ["y"], axis=0), wanted="y") == (BATCH, 1)
    assert chain(first, node("Mul", ["a", "k"], ["y"]), wanted="y", weights={"k": [12]}) == (Product(12, ("batch",)),)
    assert chain(node("ReduceProd", ["s"], ["y"]), wanted="y") == (Product(6, ("batch", "h")),)
    assert chain(node("Size", ["x"], ["y"]), wanted="y") == (Product(6, ("batch", "h")),)
    tail = node("Slice", ["s", "one", "end"], ["y"])
    assert chain(tail, wanted="y", weights={"end": [2**62]}) == (HEIGHT, 6)
    back = node("Slice", ["s", "end", "far", "zero", "step"], ["y"])
    turned = chain(back, wanted="y", weights={"end": [-1], "far": [-(2**63) + 1], "step": [-1]})
    assert turned == (6, HEIGHT, BATCH)


def test_elements_of_comparisons_and_choices() -> None:
    minus = node("Equal", ["s", "minus"], ["c"])
    assert chain(minus, wanted="c", weights={"minus": [-1, -1, -1]}) == (0, 0, 0), "no size is negative"
    same = node("Equal", ["s", "six"], ["c"])
    assert chain(same, wanted="c", weights={"six": [6]}) == (None, None, 1)
    choice = node("Where", ["c", "ones", "s"], ["y"])
    assert chain(minus, choice, wanted="y", weights={"minus": [-1] * 3, "ones": [1] * 3}) == (BATCH, HEIGHT, 6)


@pytest.mark.parametrize(("op", "a", "b", "wanted"), [
    ("Add", [3, -4], [5, 6], (8, 2)), ("Sub", [3, -4], [5], (-2, -9)), ("Mul", [3], [5, 0], (15, 0)),
    ("Div", [7, -7, 9], [2, 2, -4], (3, -3, -2)), ("Mod", [7, 9], [4, 3], (3, 0)), ("Max", [3, 9], [5], (5, 9)),
    ("Min", [3, 9], [5], (3, 5)),
])  # fmt: skip
def test_elements_of_arithmetic(op: str, a: list[int], b: list[int], wanted: tuple[int, ...]) -> None:
    proto = model([node(op, ["a", "b"], ["y"])], {"x": (1,)}, ["y"], {"a": a, "b": b})
    known, values = learnt(proto)
    assert known.elements[values["y"]] == wanted
    # the reference evaluator's Div rounds down, ONNX's rounds towards zero
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    assert tuple(session.run(None, {"x": np.zeros(1, np.float32)})[0].tolist()) == wanted


def test_what_the_file_declares_of_inner_values_is_not_believed() -> None:
    proto = model([node("Relu", ["x"], ["m"]), node("Neg", ["m"], ["y"])], X, ["y"])
    proto.graph.value_info.append(helper.make_tensor_value_info("m", TensorProto.FLOAT, [7, 7, 7]))
    known, values = learnt(proto)
    assert known.shapes[values["m"]] == (BATCH, 4, 6)


def test_an_initializer_that_a_caller_may_override_is_no_constant() -> None:
    inputs = {**X, "s": ("int64", (2,))}
    proto = model([node("Reshape", ["x", "s"], ["y"])], inputs, ["y"], {"s": [0, -1]})
    known, values = learnt(proto)
    assert known.shapes[values["y"]] == (None, None)


def test_nonsense_is_unknown_and_harms_nothing() -> None:
    nodes = [
        node("Transpose", ["x"], ["a"], perm=[0, 9]), node("Concat", ["x"], ["b"], axis=17),
        node("Reshape", ["x"], ["c"]), node("NoSuchOperator", ["x"], ["d"]), node("Relu", [], ["e"]),
        node("Conv", ["x", "x"], ["f"], strides=[0, 0]), node("Relu", ["x"], ["y"]),
    ]  # fmt: skip
    proto = model([nodes[-1]], X, ["y"])
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    known, values = learnt(proto)
    assert known.shapes[values["y"]] == (BATCH, 4, 6)


def test_shapes_inside_bodies() -> None:
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [node("Identity", ["go"], ["go_on"]), node("Concat", ["state", "x"], ["grown"], axis=0),
         node("Relu", ["x"], ["each"])],
        "body", [info("i", TensorProto.INT64, []), info("go", TensorProto.BOOL, []), info("state", 1, None)],
        [info("go_on", TensorProto.BOOL, []), info("grown", 1, None), info("each", 1, None)],
    )  # fmt: skip
    loop = node("Loop", ["turns", "", "x"], ["end", "all"], body=body)
    proto = model([loop], X, ["all"], {"turns": 3})
    known, values = learnt(proto)
    assert known.shapes[values["each"]] == (BATCH, 4, 6)
    assert known.shapes[values["all"]] == (None, BATCH, 4, 6)
    assert known.shapes[values["end"]] == (None, 4, 6), "a state may change a size from turn to turn"


def loop(*nodes: onnx.NodeProto, declared: list | None, end: str, second: str = "") -> onnx.ModelProto:
    """A Loop that carries x as ``state`` (and ``second`` what began as x too), whatever its body declares of that."""
    info = helper.make_tensor_value_info
    states = ["state", "other"] if second else ["state"]
    body = helper.make_graph(
        [node("Identity", ["go"], ["go_on"]), *nodes], "body",
        [info("i", TensorProto.INT64, []), info("go", TensorProto.BOOL, []), *(info(n, 1, declared) for n in states)],
        [info("go_on", TensorProto.BOOL, []), *(info(name, 1, None) for name in (end, second) if name)],
    )  # fmt: skip
    outputs = ["last", "more"] if second else ["last"]
    turning = node("Loop", ["turns", "", *["x"] * len(states)], outputs, body=body)
    return model([turning, node("Relu", ["last"], ["y"])], X, ["y"], {"turns": 3})


@pytest.mark.parametrize("declared", [None, [7, 4, 6], ["lie", 4]])
def test_what_a_loop_carries_has_the_shape_that_every_turn_keeps(declared: list | None) -> None:
    known, values = learnt(loop(node("Relu", ["state"], ["end"]), declared=declared, end="end"))
    assert known.shapes[values["end"]] == (BATCH, 4, 6)
    assert known.shapes[values["last"]] == (BATCH, 4, 6), "with no turn it is what was handed in"


@pytest.mark.parametrize("declared", [None, ["batch", 4, 6]])
def test_what_changes_from_turn_to_turn_is_not_believed(declared: list | None) -> None:
    """A size that grows, a rank that grows, and one state that takes its shape from another one a turn later."""
    grows = loop(node("Concat", ["state", "state"], ["end"], axis=1), declared=declared, end="end")
    known, values = learnt(grows)
    assert known.shapes[values["end"]] == known.shapes[values["last"]] == (BATCH, None, 6)
    higher = loop(node("Unsqueeze", ["state", "axes"], ["end"]), declared=declared, end="end")
    higher.graph.initializer.append(tensor("axes", np.array([0], np.int64)))
    known, values = learnt(higher)
    assert values["end"] not in known.shapes and values["last"] not in known.shapes
    late = loop(
        node("Identity", ["other"], ["end"]), node("Concat", ["other", "other"], ["second"], axis=2),
        declared=declared, end="end", second="second",
    )  # fmt: skip
    known, values = learnt(late)
    assert known.shapes[values["last"]] == known.shapes[values["more"]] == (BATCH, 4, None)


def test_bodies_in_bodies_are_not_looked_at_for_ever() -> None:
    """Twelve loops in each other, all of which change a size: four looks at each would be sixteen million."""
    info = helper.make_tensor_value_info
    inner = [node("Concat", ["s12", "s12"], ["e12"], axis=0)]
    for level in range(12, 0, -1):
        given = [info(f"i{level}", TensorProto.INT64, []), info(f"g{level}", TensorProto.BOOL, [])]
        made = [info(f"h{level}", TensorProto.BOOL, []), info(f"e{level}", 1, None)]
        nodes = [node("Identity", [f"g{level}"], [f"h{level}"]), *inner]
        body = helper.make_graph(nodes, f"b{level}", [*given, info(f"s{level}", 1, None)], made)
        state, end = (f"s{level - 1}", f"e{level - 1}") if level > 1 else ("x", "y")
        inner = [node("Loop", ["turns", "", state], [end], body=body)]
    proto = model([node("Identity", ["x"], ["y"])], X, ["y"], {"turns": 1})
    del proto.graph.node[:]
    proto.graph.node.extend(inner)
    loaded = ir.from_proto(proto)
    known = Knowledge(loaded)
    visits = 0
    plain = known.visit

    def counted(one: ir.Node) -> None:
        nonlocal visits
        visits += 1
        plain(one)

    known.visit = counted  # type: ignore[method-assign]
    known.learn(loaded.graph)
    assert 24 <= visits <= 3 * MOST_AGAIN


def test_branches_agree_or_it_is_not_known() -> None:
    def branch(name: str, *nodes: onnx.NodeProto) -> onnx.GraphProto:
        return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(nodes[-1].output[0], 1, None)])

    then = branch("then", node("Relu", ["x"], ["a"]))
    other = branch("else", node("Concat", ["x", "x"], ["b"], axis=1))
    choice = node("If", ["c"], ["y"], then_branch=then, else_branch=other)
    proto = model([choice, node("Relu", ["y"], ["z"])], {**X, "c": ("bool", ())}, ["z"])
    known, values = learnt(proto)
    assert known.shapes[values["z"]] == (BATCH, None, 6)


NAMES = """basic-pitch-nmp bert-tf-qa byte-bidi-lstm deeplabv3 dtln-model1 gtcrn-simple magika-v3-3 mlp-int8-dyn mnist-8
motor-fault-extdata motor-fault-fp32 motor-fault-int8-qdq neudet-v5-fp32 neudet-v5-int8-qlinear openseeface-landmarks
ort-crop-and-resize-loop ort-scan qlstm-scan-qlinear resnet-tiny-fp32-extdata resnet-tiny-w8a8-qdq-extdata silero-vad-if
super-resolution-10 tiny-gpt2-genai ultraface-rfb-320 yolox-nano yunet-n-dynamic onnxscript-functions-if
sklearn-tree-classifier bert-tokenizer-ext espcn-qonnx-quant""".split()  # noqa: SIM905


@pytest.mark.shared
@pytest.mark.parametrize("name", NAMES)
def test_agrees_with_onnx_on_real_models(name: str, shared: Path) -> None:
    path = shared / "models" / name / "model.onnx"
    loaded = graph.load(path)
    known = Knowledge(loaded)
    known.learn(loaded.graph)
    proto = onnx.load(path, load_external_data=False)
    del proto.graph.value_info[:]
    theirs = {
        value.name: [dim.dim_value if dim.HasField("dim_value") else None for dim in value.type.tensor_type.shape.dim]
        for value in onnx.shape_inference.infer_shapes(proto, data_prop=True).graph.value_info
        if value.type.tensor_type.HasField("shape")
    }
    ours = theirs_alone = 0
    for one in loaded.graph:
        for value in one.outputs:
            shape, other = known.shapes.get(value), theirs.get(value.name)
            if shape is None or other is None:
                theirs_alone += other is not None and shape is None
                continue
            assert len(shape) == len(other), value.name
            for a, b in zip(shape, other, strict=True):
                assert not isinstance(a, int) or b is None or a == b, f"{one.op_type} {value.name}: {shape}, {other}"
                ours += isinstance(a, int)
                theirs_alone += a is None and b is not None
    assert theirs_alone <= 8, "what onnx infers is known, but for a few places"
    assert ours or name in ("silero-vad-if", "sklearn-tree-classifier", "tiny-gpt2-genai", "bert-tokenizer-ext")


@pytest.mark.shared
@pytest.mark.parametrize("name", ["yunet-n-dynamic", "magika-v3-3", "motor-fault-int8-qdq", "mlp-int8-dyn", "ort-scan"])
def test_agrees_with_a_run_of_real_models(name: str, shared: Path) -> None:
    """Every inner value is made an output, so that the runtime shows its shape and its elements."""
    path = shared / "models" / name / "model.onnx"
    proto = onnx.load(path)
    loaded = ir.from_proto(proto)
    known = Knowledge(loaded)
    known.learn(loaded.graph)
    values = {value.name: value for one in loaded.graph for value in one.outputs}  # bodies may use names anew
    outputs = {value.name for value in proto.graph.output}
    shown = [out for one in proto.graph.node for out in one.output if out and out not in outputs]
    proto.graph.output.extend(helper.make_empty_tensor_value_info(out) for out in shown)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, ["CPUExecutionProvider"])
    feeds = random_feeds(proto, 64 if name == "yunet-n-dynamic" else 3)
    results = dict(zip([out.name for out in session.get_outputs()], session.run(None, feeds), strict=True))
    assigned = assigned_by(proto, feeds)
    compared = sum(
        assert_true(known, values[out], results[out], assigned) for out in shown if isinstance(results[out], np.ndarray)
    )
    assert compared > len(shown) / 2


def test_strings_and_types_of_constants() -> None:
    held = helper.make_node("Constant", [], ["t"], value_strings=["a", "b"])
    other = helper.make_node("Constant", [], ["k"], value=tensor("", [1, 2]))
    proto = model([held, other, node("Add", ["k", "k"], ["y"])], {"x": (1,)}, ["y"])
    known, values = learnt(proto)
    assert known.shape(values["t"]) == (2,) and known.sizes(values["t"]) is None
    assert known.elements[values["y"]] == (2, 4)

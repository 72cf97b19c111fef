"""Random graphs mean the same after optimizing, in the reference evaluator.

PENSTOCK_EXAMPLES sets how many are tried (default: what takes about 20 s).
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from penstock.stages.optimize import MAIN, OptimizeSettings, optimize

EXAMPLES = int(os.environ.get("PENSTOCK_EXAMPLES", "150"))  # read before conftest takes our variables away
PLAIN = OptimizeSettings(proof=False, strict=True)
HUGE = 1e30  # next to infinity the order of two operations decides
BATCH = 3  # what the dynamic axis is at run time
# none that jumps: what is rounded otherwise before it would make another result
UNARY = ("Relu", "Sigmoid", "Tanh", "Neg", "Abs", "Identity", "Exp", "Softplus", "HardSigmoid", "Erf", "LeakyRelu")
BINARY = ("Add", "Sub", "Mul", "Div", "Max", "Min")
REDUCE = ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceL2", "ReduceProd")
Shape = tuple[int, ...]


@dataclass
class Graph:
    """A graph while it grows. Shapes are those at run time; the first axis of inputs is dynamic."""

    opset: int
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    held: list[onnx.TensorProto] = field(default_factory=list)
    floats: dict[str, Shape] = field(default_factory=dict)
    count: int = 0

    def name(self) -> str:
        self.count += 1
        return f"v{self.count}"

    def add(self, op: str, inputs: list[str], shapes: list[Shape], **attributes: object) -> list[str]:
        outputs = [self.name() for _ in shapes]
        self.nodes.append(helper.make_node(op, inputs, outputs, name=f"n{len(self.nodes)}", **attributes))
        self.floats |= dict(zip(outputs, shapes, strict=True))
        return outputs

    def hidden(self, op: str, inputs: list[str], **attributes: object) -> str:
        """Add a node whose result isn't a float tensor to build on."""
        (out,) = self.add(op, inputs, [()], **attributes)
        del self.floats[out]
        return out

    def constant(self, array: np.ndarray, *, as_node: bool = False) -> str:
        name = self.name()
        if as_node:
            self.nodes.append(helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array)))
        else:
            self.held.append(numpy_helper.from_array(array, name))
        return name


class Source:
    """Draws, in the words of the grammar."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw

    def pick(self, options: object) -> object:
        return self.draw(st.sampled_from(sorted(options) if isinstance(options, set | dict) else list(options)))  # type: ignore[call-overload]

    def number(self, low: int, high: int) -> int:
        return self.draw(st.integers(low, high))

    def yes(self) -> bool:
        return self.draw(st.booleans())

    def array(self, shape: Shape, low: float = -2.0, high: float = 2.0) -> np.ndarray:
        special = self.number(0, 5)
        if special < 2:
            return np.full(shape, float(special), np.float32)
        rng = np.random.default_rng(self.number(0, 1000))
        return rng.uniform(low, high, shape).astype(np.float32)


def unary(g: Graph, s: Source, x: str) -> None:
    g.add(str(s.pick(UNARY)), [x], [g.floats[x]])


def binary(g: Graph, s: Source, x: str) -> None:
    shape = g.floats[x]
    others = [name for name, other in g.floats.items() if other == shape]
    if s.yes():
        y = str(s.pick(others))
    else:
        part = tuple(1 if s.yes() or i == 0 else size for i, size in enumerate(shape))
        cut = s.number(0, len(part))
        y = g.constant(s.array(part[cut:]), as_node=s.yes())
    a, b = (x, y) if s.yes() else (y, x)
    g.add(str(s.pick(BINARY)), [a, b], [shape])


def clip(g: Graph, s: Source, x: str) -> None:
    low, high = sorted((s.number(-2, 2), s.number(-1, 6)))
    bounds = [g.constant(np.float32(n)) for n in (low, high)]
    g.add("Clip", [x, *bounds][: s.number(2, 3)], [g.floats[x]])


def transpose(g: Graph, s: Source, x: str) -> None:
    shape = g.floats[x]
    if not shape:
        return
    order = s.draw(st.permutations(range(len(shape))))
    g.add("Transpose", [x], [tuple(shape[i] for i in order)], perm=order)


def reshape(g: Graph, s: Source, x: str) -> None:
    """Ask for a fixed shape, one with −1 and 0, or one computed from a Shape."""
    shape = g.floats[x]
    total = int(np.prod(shape))
    divisors = [d for d in range(1, total + 1) if total % d == 0]
    kind = s.number(0, 3)
    if kind == 0:
        a = int(s.pick(divisors))  # type: ignore[call-overload]
        g.add("Reshape", [x, g.constant(np.int64([a, -1]), as_node=s.yes())], [(a, total // a)])
    elif kind == 1 and shape:
        rest = total // shape[0]
        g.add("Reshape", [x, g.constant(np.int64([0, -1]))], [(shape[0], rest)])
    elif kind == 2 and shape:
        size = g.hidden("Shape", [x])
        first = g.hidden("Gather", [size, g.constant(np.int64([0]))])
        wanted = g.hidden("Concat", [first, g.constant(np.int64([-1]))], axis=0)
        g.add("Reshape", [x, wanted], [(shape[0], total // shape[0])])
    else:
        axis = s.number(0, len(shape))
        outer = int(np.prod(shape[:axis], dtype=int))
        g.add("Flatten", [x], [(outer, total // outer)], axis=axis)


def squeeze(g: Graph, s: Source, x: str) -> None:
    shape = g.floats[x]
    places = [i for i, size in enumerate(shape) if size == 1]
    if places and s.yes():
        axis = int(s.pick(places))  # type: ignore[call-overload]
        g.add("Squeeze", [x, g.constant(np.int64([axis]))], [shape[:axis] + shape[axis + 1 :]])
    elif len(shape) < 5:
        axis = s.number(0, len(shape))
        g.add("Unsqueeze", [x, g.constant(np.int64([axis]))], [(*shape[:axis], 1, *shape[axis:])])


def cut(g: Graph, s: Source, x: str) -> None:
    shape = g.floats[x]
    if not shape:
        return
    axis = s.number(0, len(shape) - 1)
    size = shape[axis]
    start, end = s.number(-size - 1, size + 1), s.number(-size - 1, size + 1)
    step = int(s.pick((1, 1, 1, 2, -1)))  # type: ignore[call-overload]
    left = len(range(*slice(start, end, step).indices(size)))
    if (step < 0 and (start > size or end < -size)) or left == 0:
        start, end, step, left = 0, 2**31 - 1, 1, size
    given = [g.constant(np.int64([n])) for n in (start, end, axis - (len(shape) if s.yes() else 0), step)]
    g.add("Slice", [x, *given][: 5 if step != 1 or s.yes() else 4], [(*shape[:axis], left, *shape[axis + 1 :])])


def split_and_join(g: Graph, s: Source, x: str) -> None:
    shape = g.floats[x]
    if not shape:
        return
    axis = s.number(0, len(shape) - 1)
    if axis == 0 or shape[axis] < 2 or s.yes():
        others = [name for name, other in g.floats.items() if other == shape]
        picked = [x, *(str(s.pick(others)) for _ in range(s.number(0, 2)))]
        g.add("Concat", picked, [(*shape[:axis], shape[axis] * len(picked), *shape[axis + 1 :])], axis=axis)
        return
    first = s.number(1, shape[axis] - 1)
    sizes = [first, shape[axis] - first]
    parts = g.add("Split", [x, g.constant(np.int64(sizes))],
                  [(*shape[:axis], size, *shape[axis + 1 :]) for size in sizes], axis=axis)  # fmt: skip
    if s.yes():
        g.add("Concat", parts if s.yes() else parts[::-1], [shape], axis=axis)


def reduce(g: Graph, s: Source, x: str) -> None:
    shape = g.floats[x]
    if not shape:
        return
    axes = sorted(s.draw(st.sets(st.integers(0, len(shape) - 1), min_size=1)))
    keep = s.yes()
    after = tuple(1 if i in axes else size for i, size in enumerate(shape) if keep or i not in axes)
    op = str(s.pick(REDUCE))
    if op == "ReduceSum" or g.opset >= 18:
        g.add(op, [x, g.constant(np.int64(axes))], [after], keepdims=int(keep))
    else:
        g.add(op, [x], [after], axes=axes, keepdims=int(keep))


def matmul(g: Graph, s: Source, x: str) -> None:
    shape = g.floats[x]
    if len(shape) < 2:
        return
    width = s.number(1, 4)
    (y,) = g.add("MatMul", [x, g.constant(s.array((shape[-1], width)))], [(*shape[:-1], width)])
    if s.yes():
        g.add("Add", [y, g.constant(s.array((width,)))], [g.floats[y]])


def convolution(g: Graph, s: Source, x: str) -> None:
    """Add a Conv, and half the time what is folded into it: batch normalization, a Mul, an Add."""
    shape = g.floats[x]
    if len(shape) != 4 or min(shape) < 1:
        return
    out, group = (shape[1], shape[1]) if s.yes() else (s.number(1, 3), 1)
    kernel = s.number(1, 2)
    pad = s.number(0, 1)
    sizes = [size + 2 * pad - kernel + 1 for size in shape[2:]]
    if min(sizes) < 1:
        return
    inputs = [x, g.constant(s.array((out, shape[1] // group, kernel, kernel)))]
    inputs += [g.constant(s.array((out,)))] if s.yes() else []
    if s.yes() and pad == 0:
        ends = s.number(0, 1)
        padded = (*shape[:2], *(size + 2 * ends for size in shape[2:]))
        inputs[:1] = g.add("Pad", [x, g.constant(np.int64([0, 0, ends, ends] * 2))], [padded])
        sizes = [size + 2 * ends for size in sizes]
    (y,) = g.add("Conv", inputs, [(*shape[:1], out, *sizes)], group=group, kernel_shape=[kernel] * 2, pads=[pad] * 4)
    kind = s.number(0, 3)
    if kind == 0 and g.opset >= 15:  # before that the evaluator trains
        given = [s.array((out,)) for _ in range(3)] + [s.array((out,), 0.1, 2.0)]
        given[3] = np.maximum(given[3], np.float32(0.1))
        g.add("BatchNormalization", [y, *(g.constant(array) for array in given)], [g.floats[y]])
    elif 0 < kind < 3:
        g.add("Mul" if kind == 1 else "Add", [y, g.constant(s.array((1, out, 1, 1)))], [g.floats[y]])


def pool(g: Graph, s: Source, x: str) -> None:
    shape = g.floats[x]
    if len(shape) != 4 or min(shape[2:]) < 2:
        return
    g.add(str(s.pick(("MaxPool", "AveragePool"))), [x], [(*shape[:2], shape[2] - 1, shape[3] - 1)], kernel_shape=[2, 2])


def casts(g: Graph, s: Source, x: str) -> None:
    kinds = (TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL)
    (bounded,) = g.add("Tanh", [x], [g.floats[x]])
    middle = bounded
    for _ in range(s.number(1, 3)):
        middle = g.hidden("Cast", [middle], to=int(s.pick(kinds)))  # type: ignore[call-overload]
    g.add("Cast", [middle], [g.floats[x]], to=TensorProto.FLOAT)


def quantized(g: Graph, s: Source, x: str) -> None:
    """Quantize and dequantize an input, with something between that both commute with."""
    x = "x0"
    if g.opset < 19 or "x0" not in g.floats:  # the evaluator knows the newer ones alone
        return
    scale, zero = g.constant(np.float32(s.pick((0.05, 0.1)))), g.constant(np.uint8(s.number(0, 200)))
    q = g.hidden("QuantizeLinear", [x, scale, zero])
    shape = g.floats[x]
    if s.yes() and len(shape) > 1:
        order = s.draw(st.permutations(range(len(shape))))
        q, shape = g.hidden("Transpose", [q], perm=order), tuple(shape[i] for i in order)
    g.add("DequantizeLinear", [q, scale, zero], [shape])


def expand(g: Graph, s: Source, x: str) -> None:
    shape = g.floats[x]
    if s.yes():
        size = g.hidden("Shape", [x])
        zeros = g.hidden("ConstantOfShape", [size], value=numpy_helper.from_array(np.float32([s.number(0, 2)])))
        g.add("Add", [x, zeros], [shape])
    elif shape and shape[-1] == 1:
        g.add("Expand", [x, g.constant(np.int64([*[1] * (len(shape) - 1), 2]))], [(*shape[:-1], 2)])


def branch(g: Graph, s: Source, x: str) -> None:
    """Add an If on a constant or on the data, whose branches read values of the outer graph."""
    shape = g.floats[x]
    if s.yes():
        test = g.constant(np.bool_(s.yes()))
    else:
        total = g.hidden("ReduceSum", [x], keepdims=0)
        test = g.hidden("Greater", [total, g.constant(np.float32(0))])
    bodies = []
    for _ in range(2):
        inner = Graph(g.opset, floats={x: shape}, count=g.count + 1000)
        for _ in range(s.number(1, 3)):
            s.pick((unary, binary, clip))(inner, s, str(s.pick([n for n in inner.floats if inner.floats[n] == shape])))  # type: ignore[operator]
        last = [n for n in inner.floats if n != x][-1]
        out = helper.make_tensor_value_info(last, TensorProto.FLOAT, [None] * len(shape))
        bodies.append(helper.make_graph(inner.nodes, "body", [], [out], inner.held))
        g.count = inner.count
    g.add("If", [test], [shape], then_branch=bodies[0], else_branch=bodies[1])


def loop(g: Graph, s: Source, x: str) -> None:
    """Add a Loop that carries a value, and reads one of the outer graph."""
    shape = g.floats[x]
    inner = Graph(g.opset, floats={"carried": shape, x: shape}, count=g.count + 1000)
    carried = f"c{g.count}"
    inner.floats = {carried: shape, x: shape}
    for _ in range(s.number(1, 3)):
        name = str(s.pick([n for n in inner.floats if inner.floats[n] == shape]))
        s.pick((unary, binary, clip))(inner, s, name)  # type: ignore[operator]
    last = [n for n in inner.floats if n not in (carried, x)][-1]
    (last,) = inner.add("Tanh", [last], [shape])
    going = inner.hidden("Identity", [f"go{g.count}"])
    body = helper.make_graph(
        inner.nodes, "body",
        [helper.make_tensor_value_info(f"i{g.count}", TensorProto.INT64, []),
         helper.make_tensor_value_info(f"go{g.count}", TensorProto.BOOL, []),
         helper.make_tensor_value_info(carried, TensorProto.FLOAT, [None] * len(shape))],
        [helper.make_tensor_value_info(going, TensorProto.BOOL, []),
         helper.make_tensor_value_info(last, TensorProto.FLOAT, [None] * len(shape))], inner.held,
    )  # fmt: skip
    turns, go = g.constant(np.int64(s.number(0, 3))), g.constant(np.bool_(True))
    g.count = inner.count
    g.add("Loop", [turns, go, x], [shape], body=body)


GRAMMAR = (
    unary, unary, binary, binary, clip, transpose, transpose, reshape, reshape, squeeze, cut, split_and_join, reduce,
    matmul, convolution, convolution, pool, casts, quantized, expand, branch, loop,
)  # fmt: skip


@st.composite
def models(draw: st.DrawFn) -> onnx.ModelProto:
    """Draw a model with one or two inputs and a dynamic batch; what nothing reads is an output."""
    s = Source(draw)
    g = Graph(int(s.pick((13, 17, 18, 21, 23))))  # type: ignore[call-overload]
    inputs = {}
    for i in range(s.number(1, 2)):
        shape = (BATCH, *(s.number(1, 3) for _ in range(int(s.pick((1, 2, 3, 3))))))  # type: ignore[call-overload]
        inputs[f"x{i}"] = g.floats[f"x{i}"] = shape
    for _ in range(s.number(2, 14)):
        names = [name for name, shape in g.floats.items() if 0 < int(np.prod(shape)) <= 4096]
        last = names[-1] if s.number(0, 3) else str(s.pick(names))
        step, times = s.pick(GRAMMAR), 2 if s.number(0, 2) == 0 else 1  # what joins with its like comes twice
        for _ in range(times):
            step(g, s, last)  # type: ignore[operator]
            last = [*g.floats][-1] if int(np.prod([*g.floats.values()][-1])) in range(1, 4097) else last
    made = [name for name in g.floats if name not in inputs]
    if not made:
        made = g.add("Relu", ["x0"], [inputs["x0"]])
    read = {name for node in g.nodes for name in node.input}
    outputs = [name for name in made if name not in read]
    outputs += [name for name in made if name in read][: s.number(0, 1)]
    dynamic = s.yes()
    graph = helper.make_graph(
        g.nodes, "random",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch" if dynamic else BATCH, *shape[1:]])
         for n, shape in inputs.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, [None] * len(g.floats[n])) for n in outputs], g.held,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", g.opset)], ir_version=8)


def results(model: onnx.ModelProto) -> list[np.ndarray]:
    rng = np.random.default_rng(7)
    feeds = {value.name: rng.normal(0, 1, [d.dim_value or BATCH for d in value.type.tensor_type.shape.dim])
             .astype(np.float32) for value in model.graph.input}  # fmt: skip
    with np.errstate(all="ignore"):
        return [np.asarray(array) for array in ReferenceEvaluator(model).run(None, feeds)]


def told(model: onnx.ModelProto) -> str:
    return onnx.printer.to_text(model)


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=EXAMPLES, deadline=None, derandomize="PENSTOCK_EXAMPLES" not in os.environ,
          suppress_health_check=list(HealthCheck), print_blob=True)  # fmt: skip
@given(model=models())
def test_random_graphs_mean_the_same_afterwards(
    tmp_path_factory: pytest.TempPathFactory, model: onnx.ModelProto
) -> None:
    onnx.checker.check_model(model, full_check=True)
    wanted = results(model)
    folder = tmp_path_factory.mktemp("random")
    (folder / "in.onnx").write_bytes(model.SerializeToString())
    optimize(folder / "in.onnx", PLAIN, folder)
    after = onnx.load(folder / MAIN)
    onnx.checker.check_model(after, full_check=True)
    for want, got in zip(wanted, results(after), strict=True):
        assert got.shape == want.shape and got.dtype == want.dtype, f"{told(model)}\n{told(after)}"
        scale = np.abs(want[np.isfinite(want)]).max(initial=0.0)
        if scale > HUGE:
            continue
        assert np.allclose(got, want, rtol=1e-3, atol=1e-4 * max(scale, 1.0), equal_nan=True), (
            f"{want}\n{got}\n{told(model)}\n{told(after)}"
        )
    again = folder / "again"
    again.mkdir()
    optimize(folder / MAIN, PLAIN, again)
    assert (again / MAIN).read_bytes() == (folder / MAIN).read_bytes(), f"not idempotent\n{told(model)}\n{told(after)}"


def test_a_changed_meaning_is_seen(tmp_path: Path) -> None:
    """The comparison fails where a node does something else."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [BATCH])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [BATCH])
    a, b = (helper.make_model(helper.make_graph([helper.make_node(op, ["x"], ["y"])], "g", [x], [y]))
            for op in ("Relu", "Abs"))  # fmt: skip
    assert not np.allclose(results(a)[0], results(b)[0])

"""Build a small model, run passes over it, and hold the result against the reference evaluator."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from penstock import registry
from penstock.passes import Declined
from penstock.rewriting import Rewrite
from penstock.rewriting.driver import Turns
from penstock.rewriting.run import Rewritten, rewrite
from penstock.rewriting.site import Site
from penstock.rewriting.trace import snapshot
from penstock.rewriting.walk import nodes_of

Feeds = dict[str, np.ndarray]
Spec = tuple[str, Sequence[int | str]]
node = helper.make_node
ROUNDS = 20


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Spec | Sequence[int | str]],
    outputs: Sequence[str],
    weights: Mapping[str, object] | None = None,
    *,
    opset: int = 21,
    functions: Sequence[onnx.FunctionProto] = (),
    imports: Mapping[str, int] | None = None,
) -> onnx.ModelProto:
    """Make a model. An input is a shape of float32, or ("int64", shape); the outputs' types are inferred."""
    shown = {name: spec if spec and spec[0] in KINDS else ("float32", spec) for name, spec in inputs.items()}
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info(name, KINDS[spec[0]], spec[1]) for name, spec in shown.items()],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        [tensor(name, array) for name, array in (weights or {}).items()],
    )
    opsets = [helper.make_opsetid(domain, version) for domain, version in {"": opset, **(imports or {})}.items()]
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=10, functions=list(functions))
    inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    for value, found in zip(proto.graph.output, inferred.graph.output, strict=True):
        value.CopyFrom(found)
    return proto


KINDS = {str(np.dtype(helper.tensor_dtype_to_np_dtype(kind))): kind for kind in (
    TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.INT64, TensorProto.INT32, TensorProto.INT8,
    TensorProto.UINT8, TensorProto.INT16, TensorProto.BOOL,
)}  # fmt: skip


def tensor(name: str, array: object) -> onnx.TensorProto:
    """Make a tensor; Python's floats are float32, its whole numbers int64."""
    made = np.asarray(array)
    return numpy_helper.from_array(
        made.astype(np.float32) if made.dtype == np.float64 and not isinstance(array, np.ndarray) else made, name
    )


def floats(seed: int, *shape: int) -> np.ndarray:
    """Draw float32 numbers."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def in_branch(proto: onnx.ModelProto, feeds: Feeds | None = None) -> onnx.ModelProto:
    """Put the whole graph into the branch of an If that is taken where the input ``taken`` is true."""
    results = ReferenceEvaluator(proto).run(None, feeds or random_feeds(proto))
    names = [value.name for value in proto.graph.output]
    inner = helper.make_graph(proto.graph.node, "then", [], proto.graph.output, proto.graph.initializer)
    zeros = [node("Constant", [], [f"else_{name}"], value=tensor("", np.zeros_like(result)))
             for name, result in zip(names, results, strict=True)]  # fmt: skip
    shapes = [[None] * np.asarray(result).ndim for result in results]

    def infos(prefix: str) -> list[onnx.ValueInfoProto]:
        return [
            helper.make_tensor_value_info(prefix + value.name, value.type.tensor_type.elem_type, shape)
            for value, shape in zip(proto.graph.output, shapes, strict=True)
        ]

    other = helper.make_graph(zeros, "else", [], infos("else_"))
    taken = helper.make_tensor_value_info("taken", TensorProto.BOOL, [])
    choice = node(
        "If", ["taken"], [f"if_{name}" for name in names], then_branch=inner, else_branch=other, name="choose"
    )
    main = helper.make_graph([choice], "g", [*proto.graph.input, taken], infos("if_"))
    return helper.make_model(
        main, opset_imports=proto.opset_import, ir_version=proto.ir_version, functions=proto.functions
    )


@dataclass(frozen=True)
class Applied:
    """A model after passes, and what they did."""

    proto: onnx.ModelProto
    done: Rewritten
    turns: dict[str, Turns]

    @property
    def operators(self) -> list[str]:
        return operators(self.proto)

    @property
    def reasons(self) -> list[str]:
        return [place.reason for turns in self.turns.values() for place in turns.declined.values()]

    @property
    def failures(self) -> list[str]:
        return [place.reason for turns in self.turns.values() for place in turns.failures]

    @property
    def declined(self) -> list[Declined]:
        return [place for turns in self.turns.values() for place in turns.declined.values()]

    def weight(self, name: str) -> np.ndarray:
        return next(numpy_helper.to_array(held) for held in self.proto.graph.initializer if held.name == name)


def rule(function: Callable[[ir.Node, Site], Rewrite | None], *shown: str, name: str = "rule") -> tuple[str, object]:
    """Make a rule of a function, for nodes of the operators ``shown``."""
    return name, SimpleNamespace(PHASE="fold", AFTER=(), OPERATORS=shown, rewrite=function)


def apply(
    proto: onnx.ModelProto, *names: str | tuple[str, object], max_rounds: int = ROUNDS, failures: bool = False
) -> Applied:
    """Run passes to a fixpoint; the log has to lead to the result, and no pass may fail unless that is asked for."""
    own = onnx.ModelProto()
    own.CopyFrom(proto)  # tensors are wrapped, not copied
    loaded = ir.from_proto(own)
    passes = [(name, registry.load("passes", name)) if isinstance(name, str) else name for name in names]
    done = rewrite(loaded, passes, max_rounds=max_rounds)
    assert failures or not [turns.failures for turns in done.turns if turns.failures]
    assert_replays(done)
    return Applied(ir.to_proto(done.model), done, {turns.name: turns for turns in done.turns})


def assert_replays(done: Rewritten) -> None:
    """Hold the graph that base and events give against the one that is there, node for node and in order."""
    final = snapshot(done.trace.base, done.trace.events)
    replayed = [row for rows in final.values() for row in rows]
    shown = {row.id: (row.op.rpartition("::")[2], row.name, row.inputs, row.outputs) for row in replayed}
    assert len(shown) == len(replayed)
    there = {
        done.trace.id_of(one): (
            one.op_type, one.name or "", tuple("" if v is None else v.name or "" for v in one.inputs),
            tuple(v.name or "" for v in one.outputs),
        ) for one in nodes_of(done.model)
    }  # fmt: skip
    assert shown == there
    assert [row.id for row in final.get("", [])] == [done.trace.id_of(one) for one in done.model.graph]


def operators(proto: onnx.ModelProto | onnx.GraphProto) -> list[str]:
    """List the operators in order, those of a body after its node."""
    graph = proto.graph if isinstance(proto, onnx.ModelProto) else proto
    found = []
    for one in graph.node:
        found.append(one.op_type)
        for attribute in one.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                found += operators(attribute.g)
    return found


def random_feeds(proto: onnx.ModelProto, size: int = 3, seed: int = 0) -> Feeds:
    """Draw an input for each of the model's; a named dimension has ``size``, the next name one more."""
    rng, sizes, feeds = np.random.default_rng(seed), {}, {}
    held = {one.name for one in proto.graph.initializer}
    for value in proto.graph.input:
        if value.name in held:
            continue
        kind = value.type.tensor_type
        shape = [
            sizes.setdefault(dim.dim_param, size + len(sizes)) if dim.dim_param else dim.dim_value
            for dim in kind.shape.dim
        ]
        dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
        if np.dtype(dtype).kind == "b":
            feeds[value.name] = rng.random(shape) < 0.5
        elif np.dtype(dtype).kind in "iu":
            feeds[value.name] = np.asarray(rng.integers(0, 100, shape)).astype(dtype)
        else:
            feeds[value.name] = np.asarray(rng.normal(0, 2, shape)).astype(dtype)
    return feeds


class Runtime:
    """ONNX Runtime without its optimizations, with the reference evaluator's interface; for what the latter lacks."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 4
        self.session = onnxruntime.InferenceSession(proto.SerializeToString(), options, ["CPUExecutionProvider"])

    def run(self, names: None, feeds: Feeds) -> list[np.ndarray]:
        return self.session.run(names, feeds)


Oracle = Callable[[onnx.ModelProto], ReferenceEvaluator | Runtime]


def assert_same(
    before: onnx.ModelProto,
    after: onnx.ModelProto,
    *,
    feeds: Feeds | None = None,
    tolerance: float = 0.0,
    oracle: Oracle = ReferenceEvaluator,
) -> None:
    """Run both on the same inputs, at two sizes of the named dimensions; by default the outputs have to be equal."""
    onnx.checker.check_model(after, full_check=True)
    assert after.graph.input == before.graph.input and after.graph.output == before.graph.output
    first, second = oracle(before), oracle(after)
    for given in [feeds] if feeds is not None else [random_feeds(before, 3, 0), random_feeds(before, 5, 1)]:
        for taken in (True, False) if "taken" in given else (None,):
            if taken is not None:
                given["taken"] = np.array(taken)
            for old, new in zip(first.run(None, given), second.run(None, given), strict=True):
                old, new = np.asarray(old), np.asarray(new)
                assert new.dtype == old.dtype and new.shape == old.shape
                if tolerance and old.size:
                    wide, scale = old.astype(np.float64), max(float(np.abs(old.astype(np.float64)).max()), 1e-12)
                    assert float(np.abs(wide - new).max()) / scale <= tolerance
                else:
                    np.testing.assert_array_equal(new, old)


def assert_becomes(
    proto: onnx.ModelProto,
    names: str | Sequence[str],
    wanted: Sequence[str],
    *,
    feeds: Feeds | None = None,
    tolerance: float = 0.0,
    oracle: Oracle = ReferenceEvaluator,
    branch: bool = True,
) -> Applied:
    """Run passes; the operators become ``wanted``, the meaning stays, a second run does nothing; so in a branch too."""
    chosen = [names] if isinstance(names, str) else [*names]
    found = apply(proto, *chosen)
    assert found.operators == [*wanted], found.reasons
    assert found.done.settled and found.done.trace.events
    assert_same(proto, found.proto, feeds=feeds, tolerance=tolerance, oracle=oracle)
    assert not apply(found.proto, *chosen).done.trace.events
    if branch:
        outer = in_branch(proto, feeds)
        inside = apply(outer, *chosen)
        other = ["Constant"] * len(proto.graph.output)  # attributes are sorted: the else branch comes first
        assert inside.operators == ["If", *other, *wanted], inside.reasons
        given = None if feeds is None else {**feeds, "taken": np.array(True)}
        assert_same(outer, inside.proto, feeds=given, tolerance=tolerance, oracle=oracle)
    return found


def assert_stays(proto: onnx.ModelProto, names: str | Sequence[str], reason: str | None = None) -> Applied:
    """Run passes; nothing changes, not a byte, and the reason is told (``None``: there is none to tell)."""
    found = apply(proto, *([names] if isinstance(names, str) else names))
    same = ir.to_proto(ir.from_proto(proto)).SerializeToString(deterministic=True)
    assert stripped(found.proto).SerializeToString(deterministic=True) == stripped_bytes(same)
    assert not found.done.trace.events
    assert found.reasons == ([] if reason is None else [reason])
    return found


def stripped(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model without what is declared of inner values: types are noted there, and mean nothing."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    stack = [copy.graph]
    while stack:
        graph = stack.pop()
        del graph.value_info[:]
        stack += [held.g for one in graph.node for held in one.attribute if held.type == onnx.AttributeProto.GRAPH]
    return copy


def stripped_bytes(held: bytes) -> bytes:
    """Do the same to a serialized model."""
    proto = onnx.ModelProto()
    proto.ParseFromString(held)
    return stripped(proto).SerializeToString(deterministic=True)

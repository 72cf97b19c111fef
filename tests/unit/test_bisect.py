"""Bisect: a planted fault is found at its node, wherever it hides, and what was found can be run again."""

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from penstock import api, bisecting, registry
from penstock import graph as penstock_graph
from penstock.cli import run
from penstock.errors import InputError, UsageError
from penstock.stages import _bisect_cuts, _bisect_integers
from penstock.stages.quantize import QuantizeSettings

RNG = np.random.default_rng(0)


def chain(kinds: str, *, width: int = 8) -> onnx.ModelProto:
    """x (n, 8) → for each letter a MatMul (m), Relu (r), Tanh (t) or a residual Add (a) of what was two before."""
    nodes, tensors, last = [], [], ["x"]
    for i, kind in enumerate(kinds):
        name = f"{kind}{i}"
        if kind == "m":
            w = (RNG.normal(size=(width, width)) / np.sqrt(width)).astype(np.float32)
            tensors.append(numpy_helper.from_array(w, f"w{i}"))
            nodes.append(helper.make_node("MatMul", [last[-1], f"w{i}"], [name], name))
        elif kind == "a":
            nodes.append(helper.make_node("Add", [last[-1], last[-3]], [name], name))
        else:
            nodes.append(helper.make_node({"r": "Relu", "t": "Tanh", "l": "LeakyRelu"}[kind], [last[-1]], [name], name))
        last.append(name)
    x = helper.make_tensor_value_info("x", 1, ["n", width])
    y = helper.make_tensor_value_info(last[-1], 1, ["n", width])
    graph = helper.make_graph(nodes, "g", [x], [y], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def spoilt(model: onnx.ModelProto, tensor: str, factor: float = 1.5) -> onnx.ModelProto:
    """Change the weights of a layer, those of its first channel."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    held = next(one for one in copy.graph.initializer if one.name == tensor)
    array = numpy_helper.to_array(held).copy()
    (array.T if array.ndim == 2 else array)[0] *= factor
    held.CopyFrom(numpy_helper.from_array(array, tensor))
    return copy


@pytest.mark.parametrize("fault", ["w0", "w4", "w7", "w11"])
def test_one_weight(fault: str, tiny: ModuleType, tmp_path: Path) -> None:
    model = chain("mrtrmramamrmt")
    a, b = tiny.save(model, tmp_path / "a.onnx"), tiny.save(spoilt(model, fault), tmp_path / "b.onnx")
    found = bisecting.bisect(a, b)
    assert found is not None and found.confirmed and found.node == f"m{fault[1:]}", found
    assert found.probes <= 6, "of 13 nodes four cuts and the whole"
    assert all(one.relative > found.bound for one in found.alone.values())  # type: ignore[operator]
    assert bisecting.bisect(b, a).node == found.node  # type: ignore[union-attr]
    assert bisecting.bisect(a, a.with_name("b.onnx"), bound=100.0) is None


def test_one_attribute(tiny: ModuleType, tmp_path: Path) -> None:
    model = chain("mlmlmrm")
    other = chain("mlmlmrm")
    other.CopyFrom(model)
    other.graph.node[3].attribute.append(helper.make_attribute("alpha", 0.02))
    a, b = tiny.save(model, tmp_path / "a.onnx"), tiny.save(other, tmp_path / "b.onnx")
    found = bisecting.bisect(a, b)
    assert found is not None and (found.node, found.op, found.position, found.confirmed) == ("l3", "LeakyRelu", 4, True)


def test_a_difference_that_builds_up_is_looked_for_more_closely(tiny: ModuleType, tmp_path: Path) -> None:
    """Twelve layers each off by less than the bound: the find with that bound isn't one node's, a closer look is."""
    model = chain("mt" * 12)
    other = onnx.ModelProto()
    other.CopyFrom(model)
    for held in other.graph.initializer:
        held.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(held) * np.float32(1.00004), held.name))
    a, b = tiny.save(model, tmp_path / "a.onnx"), tiny.save(other, tmp_path / "b.onnx")
    found = bisecting.bisect(a, b, bound=1e-4)
    assert found is not None and found.confirmed and found.bound < 1e-4 and found.op == "MatMul"


def test_a_backend_with_a_fault(tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One operator computed wrongly, by a backend that is right in all else."""
    import onnx.reference.ops.op_tanh as op

    monkeypatch.setattr(op.Tanh, "_run", lambda self, x: (np.clip(x, -1, 1),))
    path = tiny.save(chain("mrmrmtmrm"), tmp_path / "m.onnx")
    found = bisecting.bisect(path, backend="reference", against="onnxruntime")
    assert found is not None and (found.node, found.confirmed) == ("t5", True)


def test_what_is_written_reproduces_it(tiny: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = chain("mrmrm")
    tiny.save(model, tmp_path / "a.onnx")
    tiny.save(spoilt(model, "w2"), tmp_path / "b.onnx")
    words = ["bisect", str(tmp_path / "a.onnx"), str(tmp_path / "b.onnx"), "-o", str(tmp_path / "out"), "-q"]
    assert run(words) == 1
    said = capsys.readouterr().out
    assert said.startswith("MatMul 'm2', node 3 of 5") and "alone, on the same inputs" in said and "reads  r1" in said
    out = tmp_path / "out"
    for side in ("one", "other"):
        session = onnxruntime.InferenceSession(out / f"{side}.onnx", providers=["CPUExecutionProvider"])
        given = dict(np.load(out / "inputs.npz"))
        np.testing.assert_array_equal(session.run(None, given)[0], np.load(out / f"{side}.npz")["m2"])
    assert run([*words, "--json"]) == 1
    told = json.loads(capsys.readouterr().out)["result"]
    assert told["agree"] is False and told["found"]["node"] == "m2" and told["found"]["confirmed"]
    assert run(["bisect", str(tmp_path / "a.onnx"), "--backend", "reference", "-q"]) == 0
    assert capsys.readouterr().out == "they agree\n"


def test_what_can_not_be_compared(tiny: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = tiny.save(chain("mr"), tmp_path / "a.onnx"), tiny.save(tiny.conv(), tmp_path / "b.onnx")
    with pytest.raises(UsageError, match="compared with itself"):
        bisecting.bisect(a)
    with pytest.raises(InputError, match="other inputs"):
        bisecting.bisect(a, b)
    with pytest.raises(InputError):
        bisecting.bisect(tmp_path / "none.onnx", a)
    assert run(["bisect", str(a), "--backend", "nobody"]) == 2 and "no backend named" in capsys.readouterr().err
    assert run(["bisect", str(a), str(b), "--bound", "0"]) == 2


@pytest.mark.shared
def test_a_planted_weight_in_a_net_of_hundreds_of_nodes(shared: Path, tmp_path: Path) -> None:
    """In YOLOX-Nano, whose nodes have names of a converter's, deep inside."""
    model = onnx.load(shared / "models" / "yolox-nano" / "model.onnx")
    convs = [node for node in model.graph.node if node.op_type == "Conv"]
    node = convs[len(convs) // 2]
    onnx.save(spoilt(model, node.input[1], 4.0), tmp_path / "b.onnx")
    found = bisecting.bisect(shared / "models" / "yolox-nano" / "model.onnx", tmp_path / "b.onnx")
    assert found is not None and found.confirmed and found.nodes > 300 and found.probes <= 12
    assert found.op == "Conv" and found.outputs[0][0].name == node.output[0]


def test_weights_that_are_inputs_too(tiny: ModuleType, tmp_path: Path) -> None:
    """As files before IR version 4 have them: nobody gives them, at a cut neither."""
    model = chain("mrmrm")
    for held in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(held.name, held.data_type, held.dims))
    model.ir_version = 3
    model.opset_import[0].version = 8
    a, b = tiny.save(model, tmp_path / "a.onnx"), tiny.save(spoilt(model, "w2"), tmp_path / "b.onnx")
    found = bisecting.bisect(a, b)
    assert found is not None and found.confirmed and found.node == "m2"
    assert bisecting.bisect(a, backend="onnxruntime", against="reference") is None


@pytest.mark.parametrize("layer", [0, 1])
def test_where_a_runtime_can_not_be_cut_the_next_place_is_taken(layer: int, tiny: ModuleType, tmp_path: Path) -> None:
    """LiteRT hands out no integers, which lie between each Q and its DQ; a changed weight is found all the same."""
    if problem := registry.load("backends", "litert").available():  # type: ignore[attr-defined]
        pytest.skip(f"litert: {problem}")
    float_one, good = tiny.save(tiny.conv(), tmp_path / "f.onnx"), tmp_path / "good.onnx"
    plain = QuantizeSettings(ranges="minmax", rounding="nearest", correct_bias="none", guard=False)
    api.quantize(float_one, good, plain)
    model = onnx.load(good)
    held = [one for one in model.graph.initializer if one.data_type == 3 and len(one.dims) >= 2][layer]
    held.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(held), held.name))
    bad = tiny.save(model, tmp_path / "bad.onnx")
    found = bisecting.bisect(good, bad, backend="litert", against="litert")
    assert found is not None and found.confirmed
    changed = next(node for node in model.graph.node if held.name in node.input)
    readers = {changed.name} | {node.name for node in model.graph.node if changed.output[0] in node.input}
    assert readers & {found.node, *found.among}, found
    assert bisecting.bisect(good, backend="litert", against="onnxruntime") is None


def test_nodes_that_can_not_be_cut_apart_are_found_together(
    tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By a runtime that refuses every cut behind four of the nodes, and to run nodes alone in the second go."""
    model = chain("mtmtmtmt")
    a, b = tiny.save(model, tmp_path / "a.onnx"), tiny.save(spoilt(model, "w4"), tmp_path / "b.onnx")
    plain, refused = _bisect_cuts.run, {"t3", "m4", "t5", "m6"}
    alone = [True]

    def run_some(side: Any, nodes: Any, feeds: Any, shown: Any = ()) -> Any:
        ends = {str(node.outputs[0].name) for node in nodes}
        last = [
            name for name in ends if not any(name in {str(v.name) for v in n.inputs if v is not None} for n in nodes)
        ]
        if set(last) & refused or (not alone[0] and "x" not in feeds):
            raise InputError("cannot-cut", "not here")
        return plain(side, nodes, feeds, shown)

    monkeypatch.setattr(_bisect_cuts, "run", run_some)
    found = bisecting.bisect(a, b, into=tmp_path / "found")
    assert found is not None and found.confirmed and found.node == "t7"
    assert found.among == ("t3", "m4", "t5", "m6", "t7")
    assert {one.name for one in found.inputs} == {"m2"} and len(found.files) == 5
    alone[0] = False
    assert run(["bisect", str(a), str(b)]) == 1
    out = capsys.readouterr().out
    assert "among 5 nodes that weren't cut apart there: t3, m4, t5, m6, t7" in out
    assert "not confirmed: they can't be run without their neighbours there" in out


def quantized(tiny: ModuleType, tmp_path: Path) -> tuple[Path, Path, onnx.ModelProto]:
    """Return a float model, its int8 twin, and that twin to be spoilt."""
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c1"], "conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], "relu1"),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], "conv2", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c2"], ["r2"], "relu2"),
        helper.make_node("Conv", ["r2", "w3"], ["c3"], "conv3", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["c3", "r1"], ["a"], "add"),
        helper.make_node("GlobalAveragePool", ["a"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "fc"], ["y"], "gemm"),
    ]
    random = np.random.default_rng(1)
    shapes = {"w1": (8, 3, 3, 3), "w2": (8, 8, 3, 3), "w3": (8, 8, 3, 3), "fc": (8, 5)}
    held = {n: (random.normal(size=s) * np.sqrt(2 / np.prod(s[1:]))).astype(np.float32) for n, s in shapes.items()}
    io = [helper.make_tensor_value_info("x", 1, ["n", 3, 8, 8]), helper.make_tensor_value_info("y", 1, ["n", 5])]
    tensors = [numpy_helper.from_array(array, name) for name, array in held.items()]
    graph = helper.make_graph(nodes, "g", io[:1], io[1:], tensors)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    source = tiny.save(made, tmp_path / "float.onnx")
    plain = QuantizeSettings(ranges="minmax", rounding="nearest", correct_bias="none", guard=False, equalize=False)
    api.quantize(source, tmp_path / "int8.onnx", plain)
    return source, tmp_path / "int8.onnx", onnx.load(tmp_path / "int8.onnx")


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_float_model_and_its_int8_twin(layer: int, backend: str, tiny: ModuleType, tmp_path: Path) -> None:
    """The Relu is in the grid behind the convolution, which has the name of what the Relu makes."""
    if problem := registry.load("backends", backend).available():  # type: ignore[attr-defined]
        pytest.skip(f"{backend}: {problem}")
    source, twin, model = quantized(tiny, tmp_path)
    assert bisecting.bisect(source, twin, bound=0.2) is None, "rounding alone"
    held = [one for one in model.graph.initializer if one.data_type == 3 and len(one.dims) == 4][layer]
    held.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(held), held.name))
    bad = tiny.save(model, tmp_path / "bad.onnx")
    found = bisecting.bisect(source, bad, bound=0.2, against=backend, into=tmp_path / "found")
    assert found is not None and found.confirmed
    ends = {f"conv{layer + 1}", f"relu{layer + 1}" if layer < 2 else "add"}
    assert {found.node, *found.among} == ends if layer < 2 else ends >= {found.node, *found.among}, found
    # what was written computes what was told, by names that each of the two models has
    with np.load(tmp_path / "found" / "inputs.npz") as given, np.load(tmp_path / "found" / "other.npz") as told:
        session = onnxruntime.InferenceSession(str(tmp_path / "found" / "other.onnx"))
        made = session.run(None, {one.name: given[one.name] for one in session.get_inputs()})
        if backend == "onnxruntime":
            np.testing.assert_array_equal(made[-1], told[told.files[0]])
    found = bisecting.bisect(bad, source, bound=0.2)  # the other way round the nodes are those of the integers
    assert found is not None and found.confirmed
    assert any(name.startswith(f"conv{layer + 1}") for name in (found.node, *found.among))


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_float_model_and_its_twin_of_operators_on_integers(layer: int, tiny: ModuleType, tmp_path: Path) -> None:
    """And the twin of pairs; what is written is the operator on integers, between a pair on each side."""
    source, pairs, _ = quantized(tiny, tmp_path)
    plain = QuantizeSettings(ranges="minmax", rounding="nearest", correct_bias="none", guard=False, equalize=False)
    twin = tmp_path / "twin.onnx"
    api.quantize(source, twin, replace(plain, format="qoperator"))
    model = onnx.load(twin)
    assert [node.op_type for node in model.graph.node].count("QLinearConv") == 3
    assert bisecting.bisect(source, twin, bound=0.2) is None, "rounding alone"
    assert bisecting.bisect(pairs, twin) is None and bisecting.bisect(twin, pairs) is None, "the same integers"
    held = [one for one in model.graph.initializer if one.data_type == 3 and len(one.dims) == 4][layer]
    held.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(held), held.name))
    bad = tiny.save(model, tmp_path / "bad.onnx")
    for one, other in ((source, bad), (bad, source), (pairs, bad), (bad, pairs)):
        found = bisecting.bisect(one, other, bound=0.2, into=tmp_path / "found")
        assert found is not None and found.confirmed
        assert any(name.startswith(f"conv{layer + 1}") for name in (found.node, *found.among)), found
        side = "other" if other is bad else "one"
        kinds = [node.op_type for node in onnx.load(tmp_path / "found" / f"{side}.onnx").graph.node]
        assert kinds.count("QLinearConv") == 1, (one.name, other.name, found.among, kinds)


def test_integers_that_are_moved_keep_their_grid(tiny: ModuleType, tmp_path: Path) -> None:
    """A pool, a reshape and a transpose of integers are places to cut at; a grid that isn't known is none."""
    source, made = tiny.save(tiny.conv(), tmp_path / "m.onnx"), tmp_path / "q.onnx"
    api.quantize(source, made, QuantizeSettings(format="qoperator"))
    model, before = penstock_graph.load(made), onnx.load(made)
    x = np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)
    _bisect_integers.open_up(model)
    penstock_graph.save(model, tmp_path / "opened.onnx")
    want, got = (
        onnxruntime.InferenceSession(str(path)).run(None, {"x": x})[0] for path in (made, tmp_path / "opened.onnx")
    )
    np.testing.assert_array_equal(got, want)
    kinds = [node.op_type for node in model.graph]
    assert len(kinds) > len(before.graph.node) and kinds.count("QuantizeLinear") == kinds.count("DequantizeLinear") + 1
    named = {str(value.name) for node in model.graph for value in node.outputs}
    shared = named & {name for node in onnx.load(source).graph.node for name in node.output}
    assert len(shared) >= 2, "they go by the float model's names"


def test_integers_whose_names_would_be_taken(tiny: ModuleType, tmp_path: Path) -> None:
    """Other tools name integers as they like: x, x_0; a tensor with two readers gets names that nothing else has."""
    grid = ["s", "z"]
    nodes = [
        helper.make_node("QuantizeLinear", ["in", *grid], ["q"], "quantize"),
        helper.make_node("QLinearMatMul", ["q", *grid, "w", *grid, *grid], ["x"], "one"),
        helper.make_node("QLinearMatMul", ["x", *grid, "w", *grid, *grid], ["x_0"], "two"),
        helper.make_node("QLinearMatMul", ["x", *grid, "w", *grid, *grid], ["x_1"], "three"),
        helper.make_node("Concat", ["x_0", "x_1"], ["c"], "concat", axis=1),
        helper.make_node("DequantizeLinear", ["c", *grid], ["out"], "dequantize"),
    ]
    held = [numpy_helper.from_array(np.float32(0.1), "s"), numpy_helper.from_array(np.int8(0), "z"),
            numpy_helper.from_array(RNG.integers(-9, 9, (4, 4)).astype(np.int8), "w")]  # fmt: skip
    io = [helper.make_tensor_value_info("in", 1, ["n", 4]), helper.make_tensor_value_info("out", 1, ["n", 8])]
    made = helper.make_model(
        helper.make_graph(nodes, "g", io[:1], io[1:], held), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    path = tiny.save(made, tmp_path / "m.onnx")
    model, feeds = penstock_graph.load(path), {"in": RNG.normal(size=(3, 4)).astype(np.float32)}
    _bisect_integers.open_up(model)
    penstock_graph.save(model, tmp_path / "opened.onnx")
    onnx.checker.check_model(onnx.load(tmp_path / "opened.onnx"), full_check=True)
    want, got = (onnxruntime.InferenceSession(str(one)).run(None, feeds)[0] for one in (path, tmp_path / "opened.onnx"))
    np.testing.assert_array_equal(got, want)


def test_what_ran_is_told_of_both_sides(
    tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And what ran instead of what was asked for, whether both agree or not; that a cut changes a fusion too."""
    from penstock.backends import openvino

    path = tiny.save(chain("mrmrm"), tmp_path / "m.onnx")
    plain = openvino.OpenVinoSession.actual
    monkeypatch.setattr(openvino.OpenVinoSession, "actual", lambda self: {**plain(self), "device": "GPU.0"})
    words = ["bisect", str(path), "--backend", "openvino", "--against", "onnxruntime"]
    assert run([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["result"]
    assert [one["asked"]["backend"] for one in told["ran"]] == ["openvino", "onnxruntime"]
    assert told["ran"][0]["actual"]["device"] == "GPU.0" and not told["cut_changes_fusion"]
    assert run(words) == 0
    shown = capsys.readouterr()
    assert "caution: m.onnx on openvino: it ran on the device GPU.0, cpu was asked for" in shown.err
    spoiled = tiny.save(spoilt(onnx.load(path), "w2"), tmp_path / "bad.onnx")
    assert run(["bisect", str(path), str(spoiled)]) == 1
    assert "cut out, this one was compiled by itself" in capsys.readouterr().out


def test_a_layer_that_is_named_before_its_relu(tiny: ModuleType, tmp_path: Path) -> None:
    """Some quantizers name the integers after the layer, and have the Relu behind it in the grid."""
    source, pairs, _ = quantized(tiny, tmp_path)
    model = onnx.load(pairs)
    for node in model.graph.node:
        for names in (node.input, node.output):
            for at, name in enumerate(names):
                names[at] = {"r1": "c1", "r2": "c2", "c1": "r1", "c2": "r2"}.get(name, name)
    twin = tiny.save(model, tmp_path / "twin.onnx")
    held = {name for node in model.graph.node for name in node.output}
    assert "c1" in held and "r1" not in held, "the pair stands behind what the float model has before its Relu"
    assert bisecting.bisect(source, twin, bound=0.2) is None and bisecting.bisect(twin, source, bound=0.2) is None
    weights = [one for one in model.graph.initializer if one.data_type == 3 and len(one.dims) == 4][1]
    weights.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(weights), weights.name))
    bad = tiny.save(model, tmp_path / "bad.onnx")
    for one, other in ((source, bad), (bad, source)):
        found = bisecting.bisect(one, other, bound=0.2)
        assert found is not None and found.confirmed
        assert any(name.startswith(("conv2", "relu2")) for name in (found.node, *found.among)), found


def test_a_cut_that_the_other_side_has_in_part_is_none(tiny: ModuleType, tmp_path: Path) -> None:
    """A skip connection that one model computes by another name: what is before it can't be told apart."""
    model = chain("mtmam")
    other = onnx.ModelProto()
    other.CopyFrom(spoilt(model, "w0"))
    for node in other.graph.node:  # t1 isn't there, but what reads it and m2 are
        for names in (node.input, node.output):
            names[:] = ["elsewhere" if name == "t1" else name for name in names]
    a, b = tiny.save(model, tmp_path / "a.onnx"), tiny.save(other, tmp_path / "b.onnx")
    found = bisecting.bisect(a, b)
    assert found is not None and found.node == "m0"
    other.CopyFrom(spoilt(model, "w2"))
    for node in other.graph.node:
        for names in (node.input, node.output):
            names[:] = ["elsewhere" if name == "m2" else name for name in names]
    b = tiny.save(other, tmp_path / "b.onnx")
    found = bisecting.bisect(a, b)
    assert found is not None and set(found.among) == {"m2", "a3"} and found.confirmed


def test_outputs_that_one_side_lacks_are_no_agreement(tiny: ModuleType, tmp_path: Path) -> None:
    model = chain("mt")
    other = onnx.ModelProto()
    other.CopyFrom(model)
    other.graph.node.append(helper.make_node("Neg", ["t1"], ["z"], "z"))
    other.graph.output.append(helper.make_tensor_value_info("z", 1, ["n", 8]))
    a, b = tiny.save(model, tmp_path / "a.onnx"), tiny.save(other, tmp_path / "b.onnx")
    for one, two in ((a, b), (b, a)):
        with pytest.raises(InputError, match="has the output 'z'"):
            bisecting.bisect(one, two)


def test_a_cut_through_a_sequence_is_none(tiny: ModuleType, tmp_path: Path) -> None:
    """The next place is taken: behind the sequence there are tensors again."""
    model = chain("mtmt")
    split = helper.make_node("SplitToSequence", ["t3"], ["parts"], "split", axis=1, keepdims=1)
    model.graph.node.extend([split, helper.make_node("ConcatFromSequence", ["parts"], ["y"], "join", axis=1)])
    model.graph.output[0].name = "y"
    a, b = tiny.save(model, tmp_path / "a.onnx"), tiny.save(spoilt(model, "w2"), tmp_path / "b.onnx")
    found = bisecting.bisect(a, b)
    assert found is not None and found.node == "m2" and found.confirmed
    del model.graph.node[-1]
    model.graph.output[0].CopyFrom(helper.make_tensor_sequence_value_info("parts", 1, None))
    path = tiny.save(model, tmp_path / "c.onnx")
    with pytest.raises(InputError, match="no tensor but a sequence"):
        bisecting.bisect(path, backend="onnxruntime", against="reference")

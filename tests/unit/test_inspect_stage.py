"""Inspection against independent counts: torch's own counter, ONNX Runtime's shapes, numbers worked out by hand."""

import io
import json
import math
import warnings
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console

from penstock.analysis.cost import cost
from penstock.cli._inspection import show
from penstock.errors import InputError
from penstock.jsonable import dumps, from_json, to_json
from penstock.stages.inspect import Inspection, inspect


def save(path: Path, nodes: list, inputs: dict, outputs: dict, weights: dict | None = None, **model: object) -> Path:
    info = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in group.items()]
        for group in (inputs, outputs)
    ]
    held = [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()]
    main = helper.make_graph(nodes, "g", *info, held)
    imports = model.pop("imports", [helper.make_opsetid("", 17)])
    onnx.save(helper.make_model(main, opset_imports=imports, ir_version=9, **model), path)
    return path


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    torch = pytest.importorskip("torch")
    from penstock.zoo._network import ReferenceNet

    torch.manual_seed(0)
    net = ReferenceNet().eval()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                torch.nn.init.uniform_(tensor, 0.5, 1.5)  # else the exporter merges equal ones
    folder = tmp_path_factory.mktemp("reference")
    paths = {"raw": folder / "raw.onnx", "folded": folder / "folded.onnx"}
    common = {"dynamo": False, "input_names": ["x"], "output_names": ["y"], "dynamic_axes": {"x": {0: "batch"}}}
    modes = {"raw": torch.onnx.TrainingMode.PRESERVE, "folded": torch.onnx.TrainingMode.EVAL}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, path in paths.items():
            torch.onnx.export(
                net, (torch.zeros(2, 3, 32, 32),), path, training=modes[name], do_constant_folding=name == "folded",
                **common,
            )  # fmt: skip
    return paths


@pytest.mark.torch
def test_reference_network(reference: dict[str, Path]) -> None:
    from torch import zeros
    from torch.utils.flop_counter import FlopCounterMode

    from penstock.zoo._network import ReferenceNet

    net = ReferenceNet().eval()
    with FlopCounterMode(display=False) as counter:
        net(zeros(1, 3, 32, 32))
    trained = sum(parameter.numel() for parameter in net.parameters())
    raw, folded = inspect(reference["raw"]), inspect(reference["folded"])
    assert raw.parameters == trained == 666_986
    assert raw.statistics == 2 * (32 + 64 + 128)
    assert folded.parameters == 666_986 - 2 * (32 + 64 + 128)
    assert folded.statistics == 0
    assert raw.macs == folded.macs == counter.get_total_flops() // 2 == 29_723_136
    # folded: the elements of six Relus and the windows of three MaxPools besides
    relus = 2 * 32 * 32 * 32 + 2 * 64 * 16 * 16 + 128 * 8 * 8 + 256
    pools = 4 * (32 * 16 * 16 + 64 * 8 * 8 + 128 * 4 * 4)
    assert folded.flops == 2 * folded.macs + relus + pools
    assert folded.peak.bytes == 2 * 32 * 32 * 32 * 4
    assert folded.peak.node == "/Relu"
    assert [(dim.name, dim.size) for dim in folded.dynamic] == [("batch", 1)]
    assert inspect(reference["folded"], {"batch": 8}).macs == 8 * folded.macs
    assert {(use.op, use.count, use.since_version) for use in folded.operators} >= {("Conv", 5, 11), ("Gemm", 2, 13)}
    assert not folded.unknown
    assert sum(layer.parameters for layer in raw.layers) == raw.parameters


@pytest.mark.torch
def test_shapes_are_those_of_a_run(reference: dict[str, Path]) -> None:
    import onnxruntime

    proto = onnx.load(reference["folded"])
    names = [node.output[0] for node in proto.graph.node]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names[:-1])
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    ran = session.run(names, {"x": np.zeros((1, 3, 32, 32), np.float32)})
    assert [layer.shape for layer in inspect(reference["folded"]).layers] == [array.shape for array in ran]


def macs(op: str, shapes: list[tuple[int, ...]], out: tuple[int, ...], domain: str = "", **attributes: object) -> int:
    values = [ir.Value(name=f"i{index}") for index in range(len(shapes))]
    node = ir.Node(domain, op, values, ir.convenience.convert_attributes(attributes))
    known = dict(zip(values, shapes, strict=True)) | {node.outputs[0]: out}
    found = cost(node, known)
    assert found.flops == 2 * found.macs
    return found.macs


def test_convolutions_count_as_torch_counts_them() -> None:
    torch = pytest.importorskip("torch")
    from torch.utils.flop_counter import FlopCounterMode

    for groups in (1, 2, 4):
        for transposed in (False, True):
            kind = torch.nn.ConvTranspose2d if transposed else torch.nn.Conv2d
            layer = kind(8, 12, (3, 5), stride=2, padding=1, groups=groups)
            with FlopCounterMode(display=False) as counter:
                out = layer(torch.zeros(2, 8, 15, 17))
            shapes = [(2, 8, 15, 17), tuple(layer.weight.shape)]
            op = "ConvTranspose" if transposed else "Conv"
            assert 2 * macs(op, shapes, tuple(out.shape), group=groups) == counter.get_total_flops()


def test_products_by_hand() -> None:
    assert macs("Gemm", [(3, 6), (6, 4)], (3, 4)) == 3 * 6 * 4
    assert macs("Gemm", [(6, 3), (4, 6)], (3, 4), transA=1, transB=1) == 3 * 6 * 4
    assert macs("MatMul", [(2, 5, 3, 7), (7, 4)], (2, 5, 3, 4)) == 2 * 5 * 3 * 7 * 4
    assert macs("MatMulInteger", [(3, 7), (7, 4)], (3, 4)) == 84
    assert macs("QLinearMatMul", [(3, 7), (), (), (7, 4), (), (), (), ()], (3, 4)) == 84
    assert macs("QLinearConv", [(1, 8, 9, 9), (), (), (4, 8, 3, 3), (), (), (), ()], (1, 4, 7, 7)) == 4 * 49 * 72
    assert macs("LSTM", [(10, 2, 5), (2, 24, 5), (2, 24, 6)], (10, 2, 2, 6)) == 10 * 2 * 2 * 24 * (5 + 6)
    assert macs("Attention", [(2, 4, 7, 8)] * 3, (2, 4, 7, 8)) == 2 * (2 * 4 * 7 * 7 * 8)
    assert macs("Einsum", [(2, 3, 4), (2, 4, 5)], (2, 3, 5), equation="bij,bjk->bik") == 2 * 3 * 4 * 5
    assert macs("Attention", [(2, 5, 8), (8, 24), (24,)], (2, 5, 8), "com.microsoft") == 2 * 5 * 8 * 24 + 800


def test_what_no_rule_covers_is_listed(tmp_path: Path) -> None:
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("my.domain", 1)]
    nodes = [
        helper.make_node("Odd", ["x"], ["t"], domain="my.domain", name="odd"),
        helper.make_node("Relu", ["t"], ["y"]),
    ]
    found = inspect(save(tmp_path / "m.onnx", nodes, {"x": [2]}, {"y": None}, imports=imports))
    assert [(item.node, item.reason) for item in found.unknown] == [
        ("odd", "no rule for the domain 'my.domain'"), ("Relu(y)", "the shape of 'y' is unknown"),
    ]  # fmt: skip
    assert found.custom_domains == ("my.domain",)
    assert [layer.macs for layer in found.layers] == [None, None]
    assert found.peak.unknown_values == 2
    assert "2 nodes of unknown cost are not in the sums" in found.notes
    assert next(use for use in found.operators if use.op == "Odd").since_version is None


def test_peak_by_hand(tmp_path: Path) -> None:
    # x (40 B) feeds a and the last Add: held throughout; a and b are held together with x, and c reuses nothing
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], name="one"),
        helper.make_node("Concat", ["a", "a", "a"], ["b"], axis=0, name="two"),
        helper.make_node("ReduceSum", ["b"], ["c"], name="three", keepdims=0),
        helper.make_node("Add", ["x", "c"], ["y"], name="four"),
    ]
    found = inspect(save(tmp_path / "m.onnx", nodes, {"x": [10]}, {"y": [10]}))
    assert (found.peak.bytes, found.peak.node) == (40 + 40 + 120, "two")
    assert found.activation_bytes == 40 + 120 + 4 + 40


def test_peak_holds_what_a_body_reads_and_needs(tmp_path: Path) -> None:
    info = helper.make_tensor_value_info("t", TensorProto.FLOAT, [10])
    body = [helper.make_node("Neg", ["a"], ["n"]), helper.make_node("Add", ["n", "a"], ["t"])]
    branches = {name: helper.make_graph(body, name, [], [info]) for name in ("then_branch", "else_branch")}
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], name="relu"), helper.make_node("ReduceSum", ["x"], ["s"], keepdims=0),
        helper.make_node("Cast", ["s"], ["c"], to=TensorProto.BOOL),
        helper.make_node("If", ["c"], ["y"], name="if", **branches),
    ]  # fmt: skip
    found = inspect(save(tmp_path / "m.onnx", nodes, {"x": [10]}, {"y": [10]}))
    assert found.subgraphs == 2
    assert (found.peak.bytes, found.peak.node) == (40 + 1 + 40 + 80, "if")  # a, c, y and n with t
    assert any("counts once" in note for note in found.notes)


def test_dequantized_weights_are_weights(tmp_path: Path) -> None:
    weights = {"q": np.zeros((8, 4), np.int8), "scale": np.float32(0.1), "zero": np.int8(0)}
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["w"]),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]  # fmt: skip
    found = inspect(save(tmp_path / "m.onnx", nodes, {"x": ["n", 8]}, {"y": ["n", 4]}, weights))
    assert found.parameters == 32
    assert found.macs == 32
    assert found.peak.bytes == (8 + 4) * 4
    assert [(entry.dtype, entry.bytes) for entry in found.weights] == [("int8", 33), ("float", 4)]


def test_shape_arithmetic_is_followed(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]), helper.make_node("Gather", ["shape", "zero"], ["n"]),
        helper.make_node("Mul", ["n", "two"], ["n2"]), helper.make_node("Cast", ["n2"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Floor", ["f"], ["g"]), helper.make_node("Cast", ["g"], ["i"], to=TensorProto.INT64),
        helper.make_node("Concat", ["i", "minus"], ["target"], axis=0),
        helper.make_node("Reshape", ["x", "target"], ["y"]),
    ]  # fmt: skip
    weights = {name: np.array([number], np.int64) for name, number in (("zero", 0), ("two", 2), ("minus", -1))}
    path = save(tmp_path / "m.onnx", nodes, {"x": ["n", 6]}, {"y": None}, weights)
    assert inspect(path).layers[-1].shape == (2, 3)
    assert inspect(path, {"n": 4}).layers[-1].shape == (8, 3)
    assert inspect(path).parameters == 0


def test_nameless_dimension_and_scalar_input(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", [helper.make_node("Relu", ["x"], ["y"])], {"x": [None, 3]}, {"y": [None, 3]})
    found = inspect(path, {"x[0]": 5})
    assert [(dim.name, dim.size) for dim in found.dynamic] == [("x[0]", 5)]
    assert found.layers[0].shape == (5, 3)


def test_file_whose_shapes_contradict_each_other(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["t"]), helper.make_node("Relu", ["t"], ["y"])]
    found = inspect(save(tmp_path / "m.onnx", nodes, {"x": [2, 3]}, {"y": None}, {"w": ones(5, 7)}))
    assert found.nodes == 2
    assert found.parameters == 35
    assert len(found.unknown) == 2


def test_functions_are_counted_as_written_and_costed_as_expanded(tmp_path: Path) -> None:
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]
    inner = [helper.make_node("MatMul", ["a", "b"], ["t"]), helper.make_node("Relu", ["t"], ["r"])]
    function = helper.make_function("f", "Dense", ["a", "b"], ["r"], inner, imports)
    nodes = [helper.make_node("Dense", [i, "w"], [o], domain="f", name=o) for i, o in (("x", "h"), ("h", "y"))]
    path = save(
        tmp_path / "m.onnx",
        nodes,
        {"x": [1, 4]},
        {"y": [1, 4]},
        {"w": ones(4, 4)},
        imports=imports,
        functions=[function],
    )
    found = inspect(path)
    assert {(use.op, use.count) for use in found.operators} == {("Dense", 2), ("MatMul", 1), ("Relu", 1)}
    assert found.functions == ("f::Dense",)
    assert found.macs == 2 * 16
    assert found.parameters == 16


def test_json_round_trip_and_tables(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", [f"v{index}"], [f"v{index + 1}"]) for index in range(100)]
    found = inspect(save(tmp_path / "m[1].onnx", nodes, {"v0": [2]}, {"v100": [2]}))
    assert from_json(Inspection, json.loads(dumps(found))) == found
    assert to_json(found)["nodes"] == 100
    out = io.StringIO()
    show(found, Console(file=out, width=100))
    text = out.getvalue()
    assert "m[1].onnx" in text
    assert "… 40 more" in text
    assert "ai.onnx 17" in text


def test_unreadable_file(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"not a model at all")
    with pytest.raises(InputError):
        inspect(tmp_path / "m.onnx")


def test_nothing_is_counted_twice() -> None:
    from penstock.analysis import cost as rules

    groups = [rules.FREE, rules.PER_OUTPUT, rules.PER_INPUT, rules.POOLS, frozenset(rules.RULES)]
    assert sum(map(len, groups)) == len(frozenset().union(*groups))
    assert math.prod(()) == 1  # the size of a scalar


def test_a_model_beyond_the_limit_on_details(tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Operators, weights and signature are there; layers are not, and every operator is of unknown cost."""
    from penstock.stages import inspect as stage

    path = tiny.save(tiny.conv(), tmp_path / "m.onnx")
    whole = stage.inspect(path)
    monkeypatch.setattr(stage, "MOST_DETAILED", 5)
    found = stage.inspect(path)
    assert (found.nodes, found.operators, found.weights, found.parameters, found.signature) == (
        whole.nodes, whole.operators, whole.weights, whole.parameters, whole.signature
    )  # fmt: skip
    assert (
        found.layers == ()
        and found.macs == 0
        and {entry.op for entry in found.unknown} == {use.op for use in found.operators}
    )
    assert "all nodes of unknown cost are not in the sums" in found.notes


def channels_last(path: Path) -> str:
    """Return the line that tells what a target with channels-last images has to transpose."""
    console = Console(file=io.StringIO(), width=240, color_system=None)
    show(inspect(path), console)
    lines = [line.strip() for line in console.file.getvalue().splitlines() if line.strip().startswith("channels-last")]
    return lines[0].removeprefix("channels-last").strip() if lines else ""


def test_what_a_channels_last_target_has_to_transpose(tmp_path: Path) -> None:
    conv = helper.make_node("Conv", ["x", "w"], ["c"])
    kernel = {"w": ones(5, 3, 1, 1)}
    image, plain = {"x": ["n", 3, 8, 8]}, {"y": ["n", 5, 8, 8]}
    out = save(tmp_path / "out.onnx", [conv, helper.make_node("Relu", ["c"], ["y"])], image, plain, kernel)
    assert channels_last(out) == "for a target of that layout: Transposes 1 at inputs, 1 at outputs"
    (given, result) = inspect(out).channels_last.transposes
    assert (given.value, given.place, result.value, result.place) == ("x", "input", "y", "output")
    own = helper.make_node("Softmax", ["c"], ["s"], axis=1)
    gather = helper.make_node("GatherND", ["s", "at"], ["y"])
    nodes, held = [conv, own, gather], {**kernel, "at": np.array([[0, 1, 2, 3]])}
    inside = save(tmp_path / "inside.onnx", nodes, image, {"y": [1]}, held)
    told = channels_last(inside)
    assert told == "for a target of that layout: Transposes 1 at inputs, 1 inside (GatherND reads it in its own order)"
    last = [helper.make_node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2]), helper.make_node("Conv", ["t", "w"], ["c"]),
            helper.make_node("Transpose", ["c"], ["y"], perm=[0, 2, 3, 1])]  # fmt: skip
    turned = save(tmp_path / "last.onnx", last, {"x": ["n", 8, 8, 3]}, {"y": ["n", 8, 8, 5]}, kernel)
    assert channels_last(turned) == "for a target of that layout: Transposes nowhere"


def test_a_layout_that_is_not_known_or_not_asked(tmp_path: Path) -> None:
    nodes = [helper.make_node("Own", ["x"], ["c"], domain="own"), helper.make_node("Conv", ["c", "w"], ["y"])]
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    path = save(tmp_path / "m.onnx", nodes, {"x": [1, 3, 8, 8]}, {"y": None}, {"w": ones(5, 3, 1, 1)}, imports=imports)
    assert channels_last(path) == "no telling: the ranks of all 1 operators of images are unknown"
    plain = save(tmp_path / "p.onnx", [helper.make_node("Relu", ["x"], ["y"])], {"x": [1, 3]}, {"y": [1, 3]})
    assert inspect(plain).channels_last is None and channels_last(plain) == ""


def test_weights_that_are_texts_are_counted_by_their_bytes(tmp_path: Path) -> None:
    held = helper.make_tensor("s", TensorProto.STRING, [2], [b"abc", "dé".encode()])
    graph = helper.make_graph(
        [helper.make_node("StringConcat", ["x", "s"], ["y"])], "g",
        [helper.make_tensor_value_info("x", TensorProto.STRING, [2])],
        [helper.make_tensor_value_info("y", TensorProto.STRING, [2])], [held],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), tmp_path / "m.onnx")
    (weights,) = inspect(tmp_path / "m.onnx").weights
    assert (weights.dtype, weights.elements, weights.bytes) == ("string", 2, 6)

"""Single layers with 16-bit activations: their grids, the borders to 8 bits, and what is said of them."""

from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from penstock import calibration
from penstock.errors import UsageError
from penstock.metrics import compare
from penstock.stages.quantize import QuantizeSettings, quantize

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(48, 3, 10, 10)).astype(np.float32)
IMAGES[:, 0] *= np.exp(RNG.normal(size=(48, 10, 10)) * 1.5)  # long tails, which 8 bits hold badly


def made(tiny: ModuleType, folder: Path, **settings: object) -> tuple[Path, dict]:
    source = tiny.save(settings.pop("model", None) or tiny.branching(), folder / "m.onnx")
    batches = calibration.of_list([{"x": IMAGES[:24]}, {"x": IMAGES[24:]}])
    given = QuantizeSettings(**{"guard": False, "target_cpu": "vnni", **settings})  # type: ignore[arg-type]
    facts = quantize(source, batches, given, folder / "q.onnx")
    onnx.checker.check_model(onnx.load(folder / "q.onnx"), full_check=True)
    return folder / "q.onnx", dict(facts)


def run(path: Path, images: np.ndarray, *, optimized: bool = True) -> np.ndarray:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]).run(None, {"x": images})[0]


def types_of(model: onnx.ModelProto, node: str) -> tuple[list[str], list[str]]:
    """Return the types of the integers that a node's inputs come from, and of those that its result becomes."""
    held = {tensor.name: numpy_helper.to_array(tensor).dtype.name for tensor in model.graph.initializer}
    by = {out: one for one in model.graph.node for out in one.output}
    one = next(found for found in model.graph.node if found.name == node)
    reads = [held[by[name].input[2]] for name in one.input if name in by and len(by[name].input) > 2]
    makes = [held[q.input[2]] for q in model.graph.node if q.op_type == "QuantizeLinear" and q.input[0] in one.output]
    return reads, makes


def test_what_the_layer_reads_and_makes_has_16_bits_and_the_rest_8(tiny: ModuleType, tmp_path: Path) -> None:
    path, facts = made(tiny, tmp_path, int16_layers=("left",))
    model = onnx.load(path)
    assert model.opset_import[0].version >= 21 and model.opset_import[0].domain == ""
    assert types_of(model, "left") == (["uint16", "int8"], ["uint16"])
    assert types_of(model, "right") == (["uint8", "int8"], ["uint8"]), "another reader of the same tensor"
    assert types_of(model, "first") == (["uint8", "int8"], ["uint16"]), "in 8 bits first nothing would be gained"
    assert types_of(model, "add")[0] == ["uint8", "uint8"]
    assert facts["int16_layers"] == ["left"] and facts["int16_tensors"] == ["c2", "p", "r1"]


def test_the_output_minds_the_layer_less(tiny: ModuleType, tmp_path: Path) -> None:
    """Each layer is quantized alone and the output held against the float model's."""
    found = []
    for names in ((), ("left",)):
        _, facts = made(tiny, tmp_path, int16_layers=names, sensitivity=60.0)
        found.append({one["node"]: one["sqnr_db"] for one in facts["sensitivity"]})
    narrow, wide = found
    assert wide["left"] > narrow["left"] + 5, found
    assert wide["right"] == pytest.approx(narrow["right"], abs=0.01), "it isn't named"


def test_the_output_is_closer_to_the_float_model(tiny: ModuleType, tmp_path: Path) -> None:
    want = tiny.oracle(tiny.branching(), {"x": IMAGES})[0]
    found = []
    for names in ((), ("first", "left"), ("*",)):
        path, _ = made(tiny, tmp_path, int16_layers=names)
        found.append(compare(run(path, IMAGES), want, logits=False).sqnr_db)
    assert found[0] + 1 < found[1] < found[2], found


@pytest.mark.parametrize("names", [("left",), ("right", "gemm"), ("first",), ("add",), ("*",), ("l*t",)])
@pytest.mark.parametrize("consumer", ["ort-cpu", "integer-only"])
def test_borders_agree_with_the_reference_evaluator(
    names: tuple[str, ...], consumer: str, tiny: ModuleType, tmp_path: Path
) -> None:
    path, _ = made(tiny, tmp_path, int16_layers=names, consumer=consumer)
    want = tiny.oracle(onnx.load(path), {"x": IMAGES[:16]})[0]
    for optimized in (True, False):
        found = run(path, IMAGES[:16], optimized=optimized)
        # a value near the middle between two steps of 16 bits may be rounded the other way
        assert compare(found, want, logits=False).sqnr_db is None or compare(found, want, logits=False).sqnr_db > 60
    float_ = tiny.oracle(tiny.branching(), {"x": IMAGES[:16]})[0]
    assert compare(want, float_, logits=False).sqnr_db > 15


@pytest.mark.parametrize("settings", [{"int16_layers": ("first",)}, {"int16_layers": ("third", "last")},
                                      {"int16_layers": ("*",)}, {"activations": "uint16"}])  # fmt: skip
def test_the_runtime_rounds_no_data_of_16_bits_to_8(settings: dict, tiny: ModuleType, tmp_path: Path) -> None:
    """It would make a MatMulNBits of such a MatMul, which does."""
    samples = RNG.normal(size=(64, 5, 16)).astype(np.float32)
    source = tiny.save(tiny.products(), tmp_path / "m.onnx")
    given = QuantizeSettings(guard=False, target_cpu="vnni", **settings)
    quantize(source, calibration.of_list([{"x": samples}]), given, tmp_path / "q.onnx")
    want = tiny.oracle(onnx.load(tmp_path / "q.onnx"), {"x": samples[:8]})[0]
    for optimized in (True, False):
        found = compare(run(tmp_path / "q.onnx", samples[:8], optimized=optimized), want, logits=False).sqnr_db
        assert found is None or found > 60


def test_a_border_behind_16_bits_rounds_to_the_same_range(tiny: ModuleType, tmp_path: Path) -> None:
    path, facts = made(tiny, tmp_path, int16_layers=("left",), ranges="minmax")
    layers = {layer["node"]: layer for layer in facts["layers"]}
    (wide,), (narrow,) = layers["left"]["reads"], layers["right"]["reads"]
    assert wide["tensor"] == narrow["tensor"] == "p" and (wide["dtype"], narrow["dtype"]) == ("uint16", "uint8")
    assert wide["high"] == pytest.approx(narrow["high"], rel=1e-3)
    assert narrow["scale"] == pytest.approx(257 * wide["scale"], rel=1e-3)
    chain = [node.op_type for node in onnx.load(path).graph.node if node.name.startswith("p_")]
    assert chain == ["QuantizeLinear", "DequantizeLinear"] * 2


def test_a_reader_in_8_bits_keeps_the_weights_that_its_bias_allows(tiny: ModuleType, tmp_path: Path) -> None:
    """A large bias in int32 makes the steps of weights coarser, the more so the finer those of the activations are."""
    model = tiny.branching()
    held = next(tensor for tensor in model.graph.initializer if tensor.name == "b3")
    held.CopyFrom(numpy_helper.from_array(np.full(6, 2e5, np.float32), "b3"))
    found = []
    for names in ((), ("left",), ("right",)):
        _, facts = made(tiny, tmp_path, model=model, int16_layers=names)
        found.append(next(layer for layer in facts["layers"] if layer["node"] == "right")["weights"]["sqnr_db"])
    assert found[1] == found[0] > found[2] + 5, found


def test_all_named_is_all_wide(tiny: ModuleType, tmp_path: Path) -> None:
    some, _ = made(tiny, tmp_path / "a", int16_layers=("*",))
    every, _ = made(tiny, tmp_path / "b", activations="uint16")
    np.testing.assert_array_equal(run(some, IMAGES), run(every, IMAGES))


def test_it_is_told_what_the_runtime_does_with_it(tiny: ModuleType, tmp_path: Path) -> None:
    _, facts = made(tiny, tmp_path, int16_layers=("left",))
    computed = {one["node"]: (one["named"], one["in_float"]) for one in facts["int16_computed"]}
    assert computed == {
        "first": (False, True), "left": (True, True), "right": (False, False), "add": (False, False)
    }  # fmt: skip
    assert any("ONNX Runtime computes left and, beside, first in float" in note for note in facts["notes"])
    layers = {layer["node"]: layer for layer in facts["layers"]}
    assert layers["left"]["bits"] == 16 and "bits" not in layers["first"]
    assert layers["left"]["reason"] == "its activations are uint16; ONNX Runtime computes it in float"
    _, other = made(tiny, tmp_path, int16_layers=("left",), consumer="integer-only")
    assert any(note.startswith("first: 8 bits in and int16 out") for note in other["notes"])


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"int16_layers": ("lefd",)}, "no layer named 'lefd'"),
        ({"int16_layers": ("left", "head*")}, "no layer named 'head\\*'"),
        ({"int16_layers": ("relu",)}, "Relu 'relu' can't have 16 bits"),
        ({"int16_layers": ("left",), "exclude": ("left",)}, "'left' can't have 16 bits.*it was excluded"),
        ({"int16_layers": ("left",), "activations": "uint16"}, "all activations are uint16 already"),
        ({"int16_layers": ("left",), "consumer": "openvino"}, "openvino takes activations of uint8, int8"),
        ({"int16_layers": ("left",), "consumer": "tensorrt"}, "tensorrt takes activations of int8: no layer"),
        ({"int16_layers": ("left",), "format": "qoperator"}, "QLinearConv take 8 bits"),
        ({"int16_layers": ("left",), "method": "dynamic"}, "'dynamic' can't give single layers 16 bits"),
    ],
)
def test_what_can_not_have_16_bits(settings: dict, told: str, tiny: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=told) as caught:
        made(tiny, tmp_path, **settings)
    assert not (tmp_path / "q.onnx").exists()
    if "lefd" in told:
        assert "did you mean 'left'" in caught.value.do and "first, left, right, gemm, " in caught.value.do

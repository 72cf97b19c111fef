"""A layer that makes few channels for layers in float alone stays in float: its result would be clipped for nothing."""

from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from penstock import calibration
from penstock.stages.quantize import QuantizeSettings, quantize

RNG = np.random.default_rng(3)
PADS = {"pads": [1, 1, 1, 1]}


def detector(channels: int = 1, *, reader: str = "Conv") -> onnx.ModelProto:
    """x (N, 3, 12, 12) → Conv of 32 channels, Relu → Conv of ``channels`` → a reader, then a Sigmoid → y."""
    held = {"w1": RNG.normal(size=(32, 3, 3, 3)) / 5, "w2": RNG.normal(size=(channels, 32, 1, 1)) / 6,
            "w3": RNG.normal(size=(channels, 1, 3, 3)) / 3, "w4": RNG.normal(size=(8, channels, 3, 3)) / 3}  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c1"], "stem", **PADS),
        helper.make_node("Relu", ["c1"], ["r1"], "relu"),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], "narrow"),
    ]
    if reader == "Conv":
        nodes.append(helper.make_node("Conv", ["c2", "w3"], ["c3"], "last", group=channels, **PADS))
    elif reader == "integers":
        nodes += [helper.make_node("Conv", ["c2", "w4"], ["c4"], "wide", **PADS),
                  helper.make_node("Conv", ["c4", "w5"], ["c3"], "last")]  # fmt: skip
        held["w5"] = RNG.normal(size=(2, 8, 1, 1))
    else:
        nodes.append(helper.make_node("Exp", ["c2"], ["c3"], "exp"))
        nodes.append(helper.make_node("Conv", ["c3", "w3"], ["c5"], "last", group=channels, **PADS))
    nodes.append(helper.make_node("Sigmoid", [nodes[-1].output[0]], ["y"], "sigmoid"))
    used = {name for node in nodes for name in node.input}
    x = helper.make_tensor_value_info("x", 1, ["n", 3, 12, 12])
    y = helper.make_tensor_value_info("y", 1, ["n", "c", 12, 12])
    tensors = [numpy_helper.from_array(w.astype(np.float32), name) for name, w in held.items() if name in used]
    graph = helper.make_graph(nodes, "g", [x], [y], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def layers(model: onnx.ModelProto, tiny: ModuleType, folder: Path, **settings: object) -> dict[str, dict]:
    images = RNG.normal(size=(40, 3, 12, 12)).astype(np.float32)
    given = calibration.of_list([{"x": images}])
    asked = QuantizeSettings(guard=False, **settings)  # type: ignore[arg-type]
    facts = quantize(tiny.save(model, folder / "m.onnx"), given, asked, folder / "q.onnx")
    return {layer["node"]: layer for layer in facts["layers"]}


@pytest.mark.parametrize("channels", [1, 4])
def test_a_narrow_layer_that_layers_in_float_alone_read_stays_in_float(
    channels: int, tiny: ModuleType, tmp_path: Path
) -> None:
    told = layers(detector(channels), tiny, tmp_path)
    assert told["stem"]["state"] == "integer" and told["last"]["state"] == "float"
    assert told["narrow"]["state"] == "float" and "makes few channels" in told["narrow"]["reason"]


@pytest.mark.parametrize(
    ("channels", "reader", "settings"),
    [
        (5, "Conv", {}),  # 5 of 32 are more than one of 8
        (1, "integers", {}),
        (1, "Exp", {}),  # its reader is no layer
        (1, "Conv", {"consumer": "openvino"}),  # whose results are in float anyway
        (1, "Conv", {"quantize_outputs": True}),
        (1, "Conv", {"consumer": "integer-only", "quantize_outputs": True}),
    ],
)
def test_another_is_computed_on_integers(
    channels: int, reader: str, settings: dict, tiny: ModuleType, tmp_path: Path
) -> None:
    assert layers(detector(channels, reader=reader), tiny, tmp_path, **settings)["narrow"]["state"] == "integer"


def test_what_was_excluded_pulls_no_neighbour_along(tiny: ModuleType, tmp_path: Path) -> None:
    told = layers(detector(1, reader="integers"), tiny, tmp_path, exclude=("wide",))
    assert told["wide"]["state"] == "float" and told["narrow"]["state"] == "integer"


def test_a_narrow_layer_between_others_has_its_effect_measured(tiny: ModuleType, tmp_path: Path) -> None:
    images = RNG.normal(size=(40, 3, 12, 12)).astype(np.float32)
    asked = QuantizeSettings(guard=False, sensitivity=60.0)
    source = tiny.save(detector(1, reader="integers"), tmp_path / "m.onnx")
    facts = quantize(source, calibration.of_list([{"x": images}]), asked, tmp_path / "q.onnx")
    effects = {one["node"]: one for one in facts["sensitivity"]}
    assert 0 < effects["narrow"]["sqnr_db"] < 100, effects

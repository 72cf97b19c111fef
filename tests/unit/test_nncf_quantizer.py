"""NNCF as a quantizer: what it is given and what its failures become. The library is a stand-in; the bench runs it."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from penstock.errors import InputError, MissingError, UsageError
from penstock.stages.quantize import QuantizeSettings, quantize

ROWS = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)


class Stand:
    """A stand-in for the library: it keeps what it was called with, and gives the model back."""

    def __init__(self) -> None:
        self.samples: list[dict[str, np.ndarray]] = []
        self.options: dict[str, object] = {}
        self.model: onnx.ModelProto | None = None
        self.error: Exception | None = None

    def quantize(self, model: onnx.ModelProto, dataset: object, **options: object) -> onnx.ModelProto:
        print("progress")
        if self.error:
            raise self.error
        self.samples, self.again = list(dataset), list(dataset)  # type: ignore[call-overload]
        self.model, self.options = model, options
        return model


@pytest.fixture
def stand(monkeypatch: pytest.MonkeyPatch) -> Stand:
    made = Stand()
    module, deep = ModuleType("nncf"), ModuleType("nncf.quantization.advanced_parameters")
    module.quantize, module.Dataset, module.__version__ = made.quantize, lambda samples: samples, "9.9"  # type: ignore[attr-defined]
    module.IgnoredScope = module.AdvancedQuantizationParameters = SimpleNamespace  # type: ignore[attr-defined]
    deep.QuantizationParameters = SimpleNamespace  # type: ignore[attr-defined]
    deep.OverflowFix = SimpleNamespace(ENABLE="enable")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "nncf", module)
    monkeypatch.setitem(sys.modules, "nncf.quantization", ModuleType("nncf.quantization"))
    monkeypatch.setitem(sys.modules, "nncf.quantization.advanced_parameters", deep)
    return made


def batches(size: int = 8) -> Iterator[dict[str, np.ndarray]]:
    for start in range(0, len(ROWS), size):
        yield {"x": ROWS[start : start + size]}


def test_it_gets_every_sample_once_and_one_at_a_time(stand: Stand, tiny: ModuleType, tmp_path: Path) -> None:
    source = tiny.save(tiny.mlp(), tmp_path / "m.onnx")
    facts = quantize(source, batches(), QuantizeSettings(method="nncf"), tmp_path / "q.onnx")
    assert [one["x"].shape for one in stand.samples] == [(1, 6)] * 20
    assert np.array_equal(np.concatenate([one["x"] for one in stand.again]), ROWS)
    assert stand.options["subset_size"] == 20
    assert facts["calibration_samples"] == 20
    assert facts["library"] == "nncf 9.9"


def test_its_standard_import_comes_first_and_every_node_has_a_name(
    stand: Stand, tiny: ModuleType, tmp_path: Path
) -> None:
    model = tiny.mlp()
    for node in model.graph.node:
        node.name = ""
    del model.opset_import[:]
    model.opset_import.extend([helper.make_opsetid("ai.onnx.ml", 3), helper.make_opsetid("", 17)])
    quantize(tiny.save(model, tmp_path / "m.onnx"), batches(), QuantizeSettings(method="nncf"), tmp_path / "q.onnx")
    assert stand.model is not None
    assert stand.model.opset_import[0].domain == ""
    names = [node.name for node in stand.model.graph.node]
    assert all(names)
    assert len(set(names)) == len(names)


def test_its_failure_is_told_in_one_line(
    stand: Stand, tiny: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stand.error = RuntimeError("no pattern\nfor this\nmodel")
    source = tiny.save(tiny.mlp(), tmp_path / "m.onnx")
    with pytest.raises(InputError, match="NNCF can't quantize this model: no pattern") as error:
        quantize(source, batches(), QuantizeSettings(method="nncf"), tmp_path / "q.onnx")
    assert error.value.id == "cannot-quantize"
    assert "\n" not in error.value.what
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"activations": "int16"}, "chooses the type"), ({"format": "qoperator"}, "writes pairs"),
        ({"quantize_outputs": True}, "decides itself"), ({"consumer": "tensorrt"}, "can't serve"),
        ({"consumer": "integer-only"}, "can't serve"),
    ],
)  # fmt: skip
def test_what_it_has_no_setting_for_is_refused(
    changed: dict, told: str, stand: Stand, tiny: ModuleType, tmp_path: Path
) -> None:
    source = tiny.save(tiny.mlp(), tmp_path / "m.onnx")
    settings = QuantizeSettings(method="nncf", **changed)
    with pytest.raises(UsageError, match=told):
        quantize(source, batches(), settings, tmp_path / "q.onnx")


def test_settings_are_said_in_its_words(stand: Stand, tiny: ModuleType, tmp_path: Path) -> None:
    model = tiny.mlp()
    model.graph.node[0].name = "first"
    settings = QuantizeSettings(method="nncf", per_channel=False, exclude=("first",))
    quantize(tiny.save(model, tmp_path / "m.onnx"), batches(), settings, tmp_path / "q.onnx")
    assert stand.options["ignored_scope"].names == ["first"]  # type: ignore[attr-defined]
    assert stand.options["advanced_parameters"].weights_quantization_params.per_channel is False  # type: ignore[attr-defined]


def test_patterns_to_exclude_become_names(stand: Stand, tiny: ModuleType, tmp_path: Path) -> None:
    settings = QuantizeSettings(method="nncf", exclude=("*s*",))
    quantize(tiny.save(tiny.mlp(), tmp_path / "m.onnx"), batches(), settings, tmp_path / "q.onnx")
    assert stand.options["ignored_scope"].names == ["first", "second"]  # type: ignore[attr-defined]


def test_weights_that_are_not_finite_are_refused(stand: Stand, tiny: ModuleType, tmp_path: Path) -> None:
    model = tiny.mlp()
    held = next(one for one in model.graph.initializer if one.name == "w2")
    held.CopyFrom(onnx.numpy_helper.from_array(np.full((16, 3), np.inf, np.float32), "w2"))
    with pytest.raises(InputError, match="'w2', which Gemm 'second' reads, holds infinity"):
        quantize(tiny.save(model, tmp_path / "m.onnx"), batches(), QuantizeSettings(method="nncf"), tmp_path / "q.onnx")
    assert stand.model is None


@pytest.mark.parametrize(("target", "fix", "bits"), [("avx2", "enable", 7), ("vnni", None, 8)])
def test_it_keeps_weights_small_for_a_cpu_whose_sums_would_clip(
    target: str, fix: str | None, bits: int, stand: Stand, tiny: ModuleType, tmp_path: Path
) -> None:
    settings = QuantizeSettings(method="nncf", target_cpu=target)
    facts = quantize(tiny.save(tiny.mlp(), tmp_path / "m.onnx"), batches(), settings, tmp_path / "q.onnx")
    assert getattr(stand.options["advanced_parameters"], "overflow_fix", None) == fix
    assert facts["weight_bits"] == bits
    assert any("no VNNI" in note for note in facts["notes"]) == (bits == 7)


def test_a_model_with_nothing_to_quantize_is_refused(stand: Stand, tiny: ModuleType, tmp_path: Path) -> None:
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 6]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "relu", value[:1], value[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(InputError, match="nothing worth quantizing"):
        quantize(tiny.save(model, tmp_path / "m.onnx"), batches(), QuantizeSettings(method="nncf"), tmp_path / "q.onnx")


def test_without_it_the_line_that_installs_it_is_told(
    tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nncf", None)
    source = tiny.save(tiny.mlp(), tmp_path / "m.onnx")
    with pytest.raises(MissingError) as error:
        quantize(source, batches(), QuantizeSettings(method="nncf"), tmp_path / "q.onnx")
    assert "pip install 'penstock[nncf]'" in error.value.do

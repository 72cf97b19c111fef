"""From a module, or a file, to a module to train: what it takes, what it leaves alone, what it refuses."""

from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import helper
from torch import nn

from penstock import graph
from penstock.errors import InputError, PenstockError, UsageError
from penstock.qat import Prepared, QatSettings, convert, prepare, prepare_model

pytestmark = pytest.mark.torch
RNG = np.random.default_rng(0)
IMAGES = torch.from_numpy(RNG.normal(size=(40, 3, 8, 8)).astype(np.float32))


class Net(nn.Module):
    """A convolution with BatchNorm, a residual with a parameter and a buffer, dropout, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 1)
        self.scale = nn.Parameter(torch.full((1, 1, 8, 8), 0.7))
        self.register_buffer("mask", torch.linspace(0.5, 1, 64).reshape(1, 1, 8, 8))
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.first(x)))
        x = x + torch.tanh(torch.tanh(self.second(x)) * self.scale + self.mask)
        made: torch.Tensor = self.head(self.drop(x.mean((2, 3))))
        return made


@pytest.fixture(scope="module")
def net() -> Net:
    torch.manual_seed(0)
    made = Net().train()
    made(IMAGES)  # statistics of BatchNorm that are none of those at the start
    return made


@pytest.fixture(scope="module")
def prepared(net: Net) -> Prepared:
    return prepare(net, IMAGES[:4], [IMAGES])


@pytest.fixture(scope="module")
def path(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the net as a file: exporting takes longer than all else here."""
    made = tmp_path_factory.mktemp("net") / "net.onnx"
    graph.save(prepared.model.clone(), made)
    return made


def test_the_module_stays_as_it_is_and_is_in_training_as_in_evaluation(net: Net) -> None:
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    net.norm.eval()  # a part that its owner has frozen
    made = prepare(net, IMAGES[:4], [IMAGES])
    assert net.training and net.drop.training and not net.norm.training
    net.norm.train()
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert torch.equal(made.module.train()(IMAGES), made.module.eval()(IMAGES)), "no dropout, no BatchNorm"
    assert {node.op_type for node in made.model.graph}.isdisjoint({"Dropout", "BatchNormalization"})


def test_in_float_it_is_the_module(net: Net, prepared: Prepared) -> None:
    with torch.no_grad():
        want = net.eval()(IMAGES)
        net.train()
        for made in (prepared.float_module(), prepared.reference()):
            torch.testing.assert_close(made(IMAGES), want, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(prepared.module(IMAGES), want, rtol=1e-4, atol=1e-5), "rounded"
        torch.testing.assert_close(prepared.module(IMAGES), want, rtol=0.1, atol=0.05)
    assert not any(p.requires_grad for p in prepared.reference().parameters())


def test_parameters_are_trained_and_buffers_are_not(prepared: Prepared) -> None:
    trained = {name for name, p in prepared.module.weights.named_parameters() if p.requires_grad}
    assert {"first_weight", "second_weight", "head_weight", "head_bias"} <= trained
    held = prepared.module.arrays()
    assert any(np.allclose(array, 0.7) and array.size == 64 for array in held.values()), "the scale is"
    mask = np.linspace(0.5, 1, 64)
    assert not any(np.allclose(array.reshape(-1), mask) for array in held.values() if array.size == 64)


@torch.no_grad()
def test_trained_weights_go_back_into_the_float_graph(prepared: Prepared) -> None:
    bias = prepared.module.get_parameter("weights.head_bias")
    before = bias.clone()
    try:
        bias += 1
        model = prepared.trained_model()
        one, other = (m.graph.initializers["head.bias"].const_value for m in (model, prepared.model))
        assert one is not None and other is not None
        np.testing.assert_array_equal(other.numpy(), before.numpy())
        np.testing.assert_array_equal(one.numpy(), (before + 1).numpy())
        bias[0] = torch.nan
        with pytest.raises(InputError, match=r"head\.bias.*diverged") as caught:
            prepared.trained_model()
        assert caught.value.id == "training-diverged"
    finally:
        bias.copy_(before)


@pytest.mark.parametrize("given", [
    [IMAGES], [(IMAGES, torch.zeros(40))], [{"x": IMAGES, "labels": torch.zeros(40)}], [IMAGES.numpy()], IMAGES,
    [IMAGES[:17], IMAGES[17:]], (part for part in (IMAGES[:30], IMAGES[30:])), [IMAGES.double().numpy()],
    torch.utils.data.DataLoader(torch.utils.data.TensorDataset(IMAGES, torch.zeros(40)), batch_size=16),
], ids=["list", "labels", "mapping", "array", "bare", "ragged", "once", "double", "loader"])  # fmt: skip
def test_samples_in_any_form_give_the_same_grids(given: object, path: Path, prepared: Prepared) -> None:
    made = prepare_model(path, given)  # type: ignore[arg-type]
    assert made.calibration_samples == 40
    ours, theirs = made.module.tensor_grids(), prepared.module.tensor_grids()
    assert {name: float(grid.scale) for name, grid in ours.items()} == {
        n: float(grid.scale) for n, grid in theirs.items()
    }


@pytest.mark.parametrize(("given", "id", "said"), [
    ([], "no-samples", "no calibration samples"), ([IMAGES[:0]], "no-samples", "no calibration samples"),
    ([IMAGES[:, :2]], "data-does-not-fit", "float32[40, 2, 8, 8]"), ([IMAGES.int()], "data-does-not-fit", "int32"),
    (["x"], "data-does-not-fit", "a batch holds str"), ([{"y": IMAGES}], "data-does-not-fit", "lacks the input 'x'"),
    ([torch.where(torch.arange(40)[:, None, None, None] == 7, torch.nan, IMAGES)], "not-finite", "sample 7 has NaN"),
], ids=["none", "empty", "channels", "integers", "texts", "name", "nan"])  # fmt: skip
def test_samples_that_do_not_fit_are_told(given: list, id: str, said: str, path: Path) -> None:
    with pytest.raises(InputError) as caught:
        prepare_model(path, given)
    assert caught.value.id == id and said in caught.value.what, caught.value.what


class Sorting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sort(self.layer(x), dim=1).values


class Branching(Sorting):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.layer(x) if bool(x.sum() > 0) else x[:, :4]
        return made


class Weightless(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x) + 1


@pytest.mark.parametrize(("module", "id", "said"), [
    (Sorting(), "cannot-train", "TopK"), (Weightless(), "nothing-to-quantize", "nothing worth quantizing"),
], ids=["operator", "weightless"])  # fmt: skip
def test_modules_that_cannot_be_trained_are_refused(module: nn.Module, id: str, said: str) -> None:
    rows = torch.from_numpy(RNG.normal(size=(32, 6)).astype(np.float32))
    with pytest.raises(InputError) as caught:
        prepare(module, rows[:4], [rows])
    assert caught.value.id == id and said in caught.value.what, caught.value.what


@pytest.mark.filterwarnings("ignore")
def test_a_module_that_cannot_be_exported_is_refused() -> None:
    rows = torch.from_numpy(RNG.normal(size=(32, 6)).astype(np.float32))
    with pytest.raises(PenstockError) as caught:
        prepare(Branching(), rows[:4], [rows])
    assert "branch" in str(caught.value) or "if" in str(caught.value)


@pytest.mark.parametrize("example", ["no tensor", (), None, torch.zeros(0, 3, 8, 8)], ids=str)
def test_a_bad_example_is_told(example: object, net: Net) -> None:
    with pytest.raises(PenstockError):
        prepare(net, example, [IMAGES])
    assert net.training


def test_quantized_models_and_slips_in_names_are_refused(tiny: ModuleType, tmp_path: Path) -> None:
    path = tiny.save(tiny.conv(), tmp_path / "m.onnx")
    with pytest.raises(UsageError, match="'con' to exclude"):
        prepare_model(path, [IMAGES], QatSettings(exclude=("con",)))
    with pytest.raises(UsageError, match="openvino takes activations"):
        prepare_model(path, [IMAGES], QatSettings(consumer="openvino", activations="int16"))
    convert(prepare_model(path, [IMAGES]), tmp_path / "int8.onnx")
    with pytest.raises(InputError, match="quantized already"):
        prepare_model(tmp_path / "int8.onnx", [IMAGES])
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    with pytest.raises(InputError):
        prepare_model(tmp_path / "broken.onnx", [IMAGES])
    with pytest.raises(InputError):
        prepare_model(tmp_path / "absent.onnx", [IMAGES])


def test_several_inputs_by_name_and_in_order() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(6, 4), nn.Linear(5, 4)

        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return torch.relu(self.one(a)) + torch.relu(self.two(b))

    a, b = (torch.from_numpy(RNG.normal(size=(40, n)).astype(np.float32)) for n in (6, 5))
    net = Two()
    for example, data in (((a[:4], b[:4]), [(a, b)]), ({"b": b[:4], "a": a[:4]}, [{"a": a, "b": b}])):
        made = prepare(net, example, data)
        assert made.module.inputs == ("a", "b")
        torch.testing.assert_close(made.module(a, b), net(a, b), rtol=0.1, atol=0.05)
        assert torch.equal(made.module(a, b), made.module(b=b, a=a))


def test_few_samples_are_told_of(path: Path, prepared: Prepared) -> None:
    assert prepared.notes == ()
    assert "only 5 calibration samples" in prepare_model(path, [IMAGES[:5]]).notes[0]


def test_a_batch_norm_that_is_not_folded_keeps_its_statistics(tmp_path: Path) -> None:
    """It stands before the convolution, behind a Relu, where nothing takes it in."""
    from test_qat_network import saved, weights

    make = helper.make_node
    nodes = [
        make("Relu", ["x"], ["r"], "relu"), make("BatchNormalization", ["r", "s", "b", "m", "v"], ["n"], "norm"),
        make("Conv", ["n", "w"], ["c"], "conv", pads=[1, 1, 1, 1]), make("GlobalMaxPool", ["c"], ["g"], "pool"),
        make("Flatten", ["g"], ["f"], "flat"), make("Gemm", ["f", "w2"], ["y"], "head"),
    ]  # fmt: skip
    held = {
        "s": 1 + weights(3),
        "b": weights(3),
        "m": weights(3),
        "v": 1 + np.abs(weights(3)),
        "w": weights(4, 3, 3, 3),
    }
    made = prepare_model(saved(tmp_path / "m.onnx", nodes, held | {"w2": weights(4, 2)}, [3, 8, 8], [2]), [IMAGES])
    made.module.train()(IMAGES).sum().backward()
    arrays = made.module.arrays()
    assert not {"m", "v"} & set(arrays) and {"w", "w2"} <= set(arrays)
    assert isinstance(made.trained_model(), ir.Model)
    convert(made, tmp_path / "int8.onnx")
    onnx.checker.check_model(tmp_path / "int8.onnx", full_check=True)


def test_seven_bits_for_a_cpu_without_vnni_are_told(path: Path, tmp_path: Path) -> None:
    made = prepare_model(path, [IMAGES], QatSettings(target_cpu="avx2"))
    assert any("avx2 has no VNNI: weights are kept within 7 bits" in note for note in made.notes)
    facts = convert(made, tmp_path / "q.onnx").facts
    assert (facts["target_cpu"], facts["weight_bits"]) == ("avx2", 7)
    full = prepare_model(path, [IMAGES], QatSettings(target_cpu="vnni"))
    assert not any("VNNI" in note for note in full.notes)
    assert convert(full, tmp_path / "q.onnx").facts["weight_bits"] == 8

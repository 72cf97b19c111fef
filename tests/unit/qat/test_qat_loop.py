"""The given loop: it brings the rounded network nearer to the float one, the same way each time, and keeps the best."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from penstock import graph
from penstock.data import Preprocessing, Split
from penstock.errors import InputError, UsageError
from penstock.qat import Fitted, Prepared, QatSettings, Recipe, agreement, convert, fit, prepare, prepare_model
from penstock.qat.rows import Rows, distorted, need_images

pytestmark = pytest.mark.torch
RNG = np.random.default_rng(0)
CLASSES = 4


class Net(nn.Module):
    """Two convolutions with BatchNorm, one of them depthwise, a residual, dropout and a linear layer."""

    file: Path  # where it was exported to, which takes longer than all else here

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.point = nn.Conv2d(16, 16, 1)
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(16 * 16, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.first(x)))
        x = torch.relu(x + self.point(torch.relu(self.depthwise(x))))
        x = nn.functional.max_pool2d(x, 2)
        made: torch.Tensor = self.head(self.drop(torch.flatten(x, 1)))
        return made


def images(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return noisy blobs whose quarter of the picture is their class."""
    labels = RNG.integers(0, CLASSES, count)
    x = RNG.normal(0, 1.0, (count, 3, 8, 8))
    for i, label in enumerate(labels):
        x[i, :, 4 * (label // 2) : 4 * (label // 2) + 4, 4 * (label % 2) : 4 * (label % 2) + 4] += 0.4
    return x.astype(np.float32), labels.astype(np.int64)


TRAIN, LABELS = images(512)
TEST, TEST_LABELS = images(256)


def batches(
    x: np.ndarray = TRAIN, labels: np.ndarray | None = LABELS, size: int = 64
) -> list[tuple[torch.Tensor, ...]]:
    found = []
    for start in range(0, len(x), size):
        part = (torch.from_numpy(x[start : start + size]),)
        found.append(part if labels is None else (*part, torch.from_numpy(labels[start : start + size])))
    return found


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Net:
    """Return the net, trained for a moment."""
    torch.manual_seed(0)
    made = Net()
    optimizer = torch.optim.Adam(made.parameters(), lr=3e-3)
    for _ in range(6):
        for x, y in batches():
            optimizer.zero_grad()
            nn.functional.cross_entropy(made(x), y).backward()
            optimizer.step()
    made.file = tmp_path_factory.mktemp("net") / "net.onnx"
    graph.save(prepare(made.eval(), torch.from_numpy(TRAIN[:4]), batches(labels=None)).model, made.file)
    return made


def coarse(net: Net) -> Prepared:
    """Prepare with one scale for all channels and ranges that are far too narrow: there is something to mend."""
    settings = QatSettings(per_channel=False, ranges="percentile", percentile=80)
    return prepare_model(net.file, batches(labels=None), settings)


RECIPE = Recipe(epochs=3)


def fitted(prepared: Prepared, recipe: Recipe = RECIPE, **more: Any) -> Fitted:
    return fit(prepared, batches(), recipe, select=batches(TEST, TEST_LABELS), **more)


def test_training_brings_the_rounded_network_nearer_to_the_float_one(net: Net, tmp_path: Path) -> None:
    prepared = coarse(net)
    done = fitted(prepared)
    before, best = done.epochs[0], done.epochs[done.chosen]
    assert [one.index for one in done.epochs] == [0, 1, 2, 3] and math.isnan(before.loss)
    assert before.distance is not None and best.distance is not None and best.distance < 0.5 * before.distance
    assert best.accuracy is not None and before.accuracy is not None and best.accuracy >= before.accuracy
    assert all(one.loss < 1 for one in done.epochs[1:])
    convert(prepared, tmp_path / "int8.onnx", float_output=tmp_path / "float.onnx")
    same = agreement(prepared, tmp_path / "int8.onnx", batches(TEST, TEST_LABELS))
    assert same.samples == 256 and same.top1 >= 0.99 and same.right is not None and same.right_float is not None
    assert len(same.differing) == round(256 * (1 - same.top1)) == len(same.margins)
    # by another way: the files in the runtime, the user's module in torch
    int8 = onnxruntime.InferenceSession(tmp_path / "int8.onnx", providers=["CPUExecutionProvider"])
    answers = int8.run(None, {"x": TEST})[0].argmax(1)
    with torch.no_grad():
        ours = prepared.module(torch.from_numpy(TEST)).argmax(1).numpy()
        plain = net(torch.from_numpy(TEST)).argmax(1).numpy()
    assert same.right == int((answers == TEST_LABELS).sum()) and same.top1 == np.mean(answers == ours)
    assert same.right_float == int((plain == TEST_LABELS).sum())
    floats = onnxruntime.InferenceSession(tmp_path / "float.onnx", providers=["CPUExecutionProvider"])
    with torch.no_grad():
        trained = prepared.float_module()(torch.from_numpy(TEST)).numpy()
    np.testing.assert_allclose(floats.run(None, {"x": TEST})[0], trained, rtol=1e-3, atol=1e-4)
    assert not np.allclose(trained, net(torch.from_numpy(TEST)).detach().numpy(), atol=1e-3), "the weights were trained"


def test_the_users_own_loop_does_as_well(net: Net) -> None:
    prepared = coarse(net)
    optimizer = torch.optim.SGD(prepared.module.parameters(), lr=0.02, momentum=0.9)
    losses = []
    prepared.module.train()
    for _ in range(3):
        for x, y in batches():
            loss = nn.functional.cross_entropy(prepared.module(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert np.mean(losses[-8:]) < 0.8 * np.mean(losses[:8])


def test_the_same_seed_gives_the_same_file(net: Net, tmp_path: Path) -> None:
    for name in ("one", "two"):
        prepared = coarse(net)
        fitted(prepared, Recipe(epochs=1))
        convert(prepared, tmp_path / f"{name}.onnx")
    assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "two.onnx").read_bytes()


def test_the_users_random_numbers_are_left_alone(net: Net) -> None:
    prepared = coarse(net)
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    fitted(prepared, Recipe(epochs=1))
    assert torch.equal(torch.rand(3), wanted)


class StoppedError(Exception):
    """Stands for Ctrl-C in the middle of an epoch."""


class Stopping:
    """Data that breaks off in one of its epochs."""

    key = "data"

    def __init__(self, at: int | None) -> None:
        self.at = at

    def __len__(self) -> int:
        return len(batches())

    def epoch(self, number: int) -> Iterator[tuple[torch.Tensor, ...]]:
        order = np.random.default_rng(number).permutation(len(TRAIN))
        for step, batch in enumerate(batches(TRAIN[order], LABELS[order])):
            if number == self.at and step == 3:
                raise StoppedError
            yield batch


def test_a_stopped_run_goes_on_as_if_it_hadnt(net: Net, tmp_path: Path) -> None:
    select, recipe = batches(TEST, TEST_LABELS), Recipe(epochs=2)
    whole = coarse(net)
    want = fit(whole, Stopping(None), recipe, select=select, checkpoint=tmp_path / "whole")
    with pytest.raises(StoppedError):
        fit(coarse(net), Stopping(1), recipe, select=select, checkpoint=tmp_path / "kept")
    resumed = coarse(net)
    done = fit(resumed, Stopping(None), recipe, select=select, checkpoint=tmp_path / "kept")
    assert [one.loss for one in done.epochs[1:]] == [one.loss for one in want.epochs[1:]] and done.chosen == want.chosen
    for name, tensor in whole.module.state_dict().items():
        assert torch.equal(tensor, resumed.module.state_dict()[name]), name


def test_a_checkpoint_of_another_run_and_a_file_of_something_else_stay(net: Net, tmp_path: Path) -> None:
    """After the first epoch they would be gone."""
    kept, select = tmp_path / "kept", batches(TEST, TEST_LABELS)
    with pytest.raises(StoppedError):
        fit(coarse(net), Stopping(1), RECIPE, select=select, checkpoint=kept)
    torch.save({"state_dict": {}}, tmp_path / "other.pt")
    for recipe, held, told in (
        (Recipe(epochs=1), kept.read_bytes(), "another run's"),
        (RECIPE, net.file.read_bytes(), "something else"),
        (RECIPE, (tmp_path / "other.pt").read_bytes(), "something else"),
    ):
        kept.write_bytes(held)
        with pytest.raises(UsageError, match=told) as caught:
            fit(coarse(net), Stopping(None), recipe, select=select, checkpoint=kept)
        assert caught.value.id == "not-a-checkpoint" and caught.value.where == str(kept)
        assert kept.read_bytes() == held
    kept.write_bytes(b"")  # a file that was only made holds nothing to lose
    with pytest.raises(StoppedError):
        fit(coarse(net), Stopping(0), RECIPE, select=select, checkpoint=kept)


def test_the_best_state_is_kept_which_may_be_the_first(net: Net) -> None:
    prepared = prepare_model(net.file, batches(labels=None))
    first = {name: tensor.clone() for name, tensor in prepared.module.state_dict().items()}
    wrong = [(x, (y + 1) % CLASSES) for x, y in batches()]
    done = fit(prepared, wrong, Recipe(epochs=2, distill=0, learning_rate=0.05), select=batches(TEST, TEST_LABELS))
    assert done.chosen == 0 and all(torch.equal(tensor, first[n]) for n, tensor in prepared.module.state_dict().items())
    assert not prepared.module.training
    last = fit(prepared, wrong, Recipe(epochs=1, distill=0, learning_rate=0.05))
    assert last.chosen == 1 and last.epochs[1].accuracy is None, "without samples to choose on the last one is kept"


def test_without_labels_it_is_chosen_by_agreement(net: Net) -> None:
    prepared = coarse(net)
    done = fit(prepared, batches(labels=None), RECIPE, select=batches(TEST, None))
    shares = [one.agreement for one in done.epochs]
    assert [one.accuracy for one in done.epochs] == [None] * 4 and shares[done.chosen] == max(s or 0 for s in shares)


def test_no_epochs_is_only_calibration(net: Net) -> None:
    prepared = coarse(net)
    before = {name: tensor.clone() for name, tensor in prepared.module.state_dict().items()}
    assert fit(prepared, [], Recipe(epochs=0)).chosen == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in prepared.module.state_dict().items())


@pytest.mark.parametrize(("data", "recipe", "id", "said"), [
    ([], RECIPE, "no-samples", "no batch"),
    (batches(labels=None), Recipe(distill=0.5), "no-labels", "the data has none"),
    ([(torch.from_numpy(TRAIN[:4]), torch.zeros(4))], Recipe(distill=0), "data-does-not-fit", "float32[4]"),
    ([(torch.from_numpy(TRAIN[:4]), torch.full((4,), 9))], Recipe(distill=0), "wrong-class-count", "4 classes"),
    ([{"y": torch.zeros(2)}], RECIPE, "data-does-not-fit", "lacks the input 'x'"),
    ([["a", "b"]], RECIPE, "data-does-not-fit", "a batch holds str"),
    (batches(), Recipe(learning_rate=1e30, distill=0, epochs=1), "training-diverged", "the loss became"),
    ([(torch.from_numpy(TRAIN[:4] * np.nan),)], RECIPE, "training-diverged", "the loss became nan"),
], ids=lambda value: value if isinstance(value, str) else "")  # fmt: skip
def test_bad_data_is_told(net: Net, data: list, recipe: Recipe, id: str, said: str) -> None:
    prepared = prepare_model(net.file, batches(labels=None))
    with pytest.raises(InputError) as caught:
        fit(prepared, data, recipe)
    assert caught.value.id == id and said in caught.value.what, caught.value.what


@pytest.mark.parametrize("wrong", [{"distill": 1.5}, {"label_smoothing": 2.0}, {"momentum": 1.0}])
def test_a_recipe_of_no_sense_is_refused(wrong: dict) -> None:
    with pytest.raises(UsageError, match=r"--"):
        Recipe(**wrong)


# --- the rows of a data set


def rows(recipe: Recipe, seed: int = 0, labels: bool = True) -> Rows:
    raw = RNG.integers(0, 256, (20, 8, 8, 3)).astype(np.uint8)
    split = Split({"": raw}, np.arange(20) % 4 if labels else None)
    return Rows(split, Preprocessing(1 / 255, layout="NCHW"), {"": "x"}, recipe, seed, "key")


def test_an_epoch_has_every_sample_once_in_an_order_of_its_own() -> None:
    data = rows(Recipe(batch=5))
    assert len(data) == 4
    epochs = [[batch["x"].numpy() for batch in data.epoch(number)] for number in (0, 1)]
    for epoch in epochs:
        seen = {image.tobytes() for batch in epoch for image in batch}
        assert len(seen) == 20 and all(batch.shape == (5, 3, 8, 8) and batch.dtype == np.float32 for batch in epoch)
    assert not np.array_equal(epochs[0][0], epochs[1][0])
    again = [batch["x"].numpy() for batch in data.epoch(1)]
    np.testing.assert_array_equal(again, epochs[1])
    assert len(rows(Recipe(batch=64))) == 1 and len(rows(Recipe(batch=6))) == 3, "a ragged last batch is left out"


def test_labels_go_with_their_images() -> None:
    data = rows(Recipe(batch=4, flip=True, crop=2))
    plain = rows(Recipe())
    object.__setattr__(data, "split", Split({"": np.repeat(np.arange(20, dtype=np.uint8), 192).reshape(20, 8, 8, 3)},
                                            np.arange(20)))  # fmt: skip
    for batch in data.epoch(3):
        np.testing.assert_array_equal(np.rint(batch["x"].numpy()[:, 0, 0, 0] * 255), batch["labels"].numpy())
    assert "labels" not in next(iter(rows(Recipe(), labels=False).epoch(0))) and "labels" in next(iter(plain.epoch(0)))


@pytest.mark.parametrize("channels_last", [True, False])
def test_distortions_are_crops_and_flips_of_the_image(channels_last: bool) -> None:
    raw = RNG.integers(0, 256, (40, 6, 7, 3)).astype(np.uint8)
    given = raw if channels_last else np.moveaxis(raw, -1, 1)
    made = distorted(given, np.random.default_rng(1), Recipe(flip=True, crop=2), channels_last=channels_last)
    assert made.shape == given.shape
    made = made if channels_last else np.moveaxis(made, 1, -1)
    seen = set()
    for one, image in zip(made, raw, strict=True):
        padded = np.pad(image, ((2, 2), (2, 2), (0, 0)), mode="reflect")
        cuts = {
            (top, left, mirrored): padded[top : top + 6, left : left + 7][:, :: -1 if mirrored else 1]
            for top in range(5) for left in range(5) for mirrored in (False, True)
        }  # fmt: skip
        found = [place for place, cut in cuts.items() if np.array_equal(one, cut)]
        assert len(found) == 1
        seen.add(found[0])
    assert len(seen) > 15 and {mirrored for *_, mirrored in seen} == {True, False}
    assert distorted(given, np.random.default_rng(1), Recipe(), channels_last=channels_last) is given


def test_distortions_want_images() -> None:
    flat = Split({"": np.zeros((4, 6), np.float32)}, None)
    with pytest.raises(InputError, match="moves the pixels"):
        need_images(flat, Recipe(flip=True), channels_last=False)
    small = Split({"": np.zeros((4, 3, 8, 8), np.float32)}, None)
    with pytest.raises(InputError, match="out of sight"):
        need_images(small, Recipe(crop=8), channels_last=False)
    need_images(small, Recipe(crop=2, flip=True), channels_last=False)
    need_images(flat, Recipe(), channels_last=False)

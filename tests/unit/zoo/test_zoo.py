"""The zoo: its recipes, its trained weights and their cards."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from penstock import store, zoo
from penstock.data import DataSettings
from penstock.datasets import cifar10, digits, find
from penstock.errors import MissingError, UsageError
from penstock.jsonable import from_json, to_json
from penstock.zoo.recipe import Recipe


@pytest.mark.parametrize(("name", "source"), [("cifar10", cifar10), ("digits", digits)])
def test_a_recipe_preprocesses_as_its_data_set(name: str, source: object) -> None:
    declared = source.PREPROCESSING  # type: ignore[attr-defined]
    recipe = zoo.RECIPES[name].recipe
    assert (recipe.mean, recipe.std) == (declared.mean, declared.std)
    assert declared.scale == 1 / 255 and declared.layout == "NCHW"


def test_the_cifar10_recipe_is_the_one_that_the_weights_are_trained_with() -> None:
    expected = Recipe(epochs=150, mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))
    assert zoo.RECIPES["cifar10"].recipe == expected


def test_digits_are_never_mirrored() -> None:
    assert zoo.RECIPES["digits"].recipe.flip_probability == 0.0


def test_importing_the_zoo_imports_no_framework() -> None:
    code = "import sys, penstock.zoo, penstock.zoo.training, penstock.zoo.digits; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_unknown_network() -> None:
    for call in (zoo.load, zoo.card, zoo.network):
        with pytest.raises(UsageError, match="no network named 'resnet'"):
            call("resnet")


def test_untrained_network_says_how_to_train_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo, "WEIGHTS", tmp_path)
    for call in (zoo.load, zoo.card):
        with pytest.raises(MissingError) as caught:
            call("digits")
        assert caught.value.do == "train them with: penstock zoo train digits"
        assert caught.value.exit_code == 3


def test_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "penstock.zoo._network", raising=False)
    with pytest.raises(MissingError) as caught:
        zoo.network("digits")
    assert "penstock[torch]" in caught.value.do


@pytest.mark.torch
def test_the_digits_weights_are_as_good_as_their_card_says() -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("sklearn")
    from penstock.zoo.training import Card

    card = from_json(Card, zoo.card("digits"))
    dataset = find("digits", DataSettings())
    assert card.data_digest == dataset.digest
    assert to_json(card.recipe) == to_json(zoo.RECIPES["digits"].recipe)
    assert card.weights_sha256 == store.file_digest(zoo.WEIGHTS / "digits.safetensors")
    model = zoo.load("digits")
    assert not model.training
    assert sum(parameter.numel() for parameter in model.parameters()) == card.parameters == 666_986
    test = dataset.evaluate
    assert test is not None and test.labels is not None
    with torch.no_grad():
        guessed = model(torch.from_numpy(dataset.preprocessing.apply(test.arrays[""][:]))).argmax(1).numpy()
    accuracy = float((guessed == test.labels).mean())
    assert accuracy == pytest.approx(card.test_accuracy, abs=2 / 597)
    assert 0.93 < accuracy < 0.98
    assert card.test_interval[0] < accuracy < card.test_interval[1]

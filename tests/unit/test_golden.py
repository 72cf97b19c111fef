"""The golden set: what is written is read back, the bytes depend on the arrays alone, tampering is noticed."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from penstock import golden, store
from penstock.errors import InputError
from penstock.feeds import Feeds

FEEDS = ({"x": np.arange(6, dtype=np.float32).reshape(3, 2), "in/put": np.array([1, 2, 3])}, {"x": np.ones((2, 2), np.float32), "in/put": np.array([0, 1])})  # fmt: skip  # noqa: E501
OUTPUTS = ((np.array([[1.5], [np.nan], [2]], np.float32), np.array(True)), (np.zeros((2, 1), np.float32), np.array(False)))  # fmt: skip  # noqa: E501
GOLDEN = golden.Golden({"kind": "seeded"}, "PyTorch", ("logits", "a/flag"), (3, 1), FEEDS, OUTPUTS)


def same(a: golden.Golden, b: golden.Golden) -> bool:
    plain = (a.description, a.computed_by, a.output_names, a.real) == (
        b.description,
        b.computed_by,
        b.output_names,
        b.real,
    )
    fed = all(
        list(x) == list(y) and all(np.array_equal(x[n], y[n]) and x[n].dtype == y[n].dtype for n in x)
        for x, y in zip(a.feeds, b.feeds, strict=True)
    )
    given = all(
        np.array_equal(x, y, equal_nan=x.dtype.kind == "f") and x.dtype == y.dtype
        for p, q in zip(a.outputs, b.outputs, strict=True)
        for x, y in zip(p, q, strict=True)
    )
    return plain and fed and given


def test_round_trip(tmp_path: Path) -> None:
    golden.write(GOLDEN, tmp_path)
    got = golden.read(tmp_path)
    assert {name: sorted(run) for name, run in zip("ab", got.feeds, strict=True)} == {
        "a": ["in/put", "x"],
        "b": ["in/put", "x"],
    }
    ordered = replace(got, feeds=tuple({name: run[name] for name in ("x", "in/put")} for run in got.feeds))
    assert same(ordered, GOLDEN) and got.samples == 4


def test_the_order_of_inputs_survives(tmp_path: Path) -> None:
    """Eager PyTorch takes its feeds by position."""
    golden.write(GOLDEN, tmp_path)
    assert [list(run) for run in golden.read(tmp_path).feeds] == [["x", "in/put"], ["x", "in/put"]]


def test_runs_beyond_ten_keep_their_order(tmp_path: Path) -> None:
    runs = 12
    feeds = tuple({"x": np.array([float(i)])} for i in range(runs))
    outputs = tuple((np.array([10.0 * i]),) for i in range(runs))
    golden.write(golden.Golden({}, "w", ("y",), (1,) * runs, feeds, outputs), tmp_path)
    got = golden.read(tmp_path)
    assert [run["x"][0] for run in got.feeds] == list(range(runs))
    assert [run[0][0] for run in got.outputs] == [10.0 * i for i in range(runs)]


def test_equal_arrays_give_equal_bytes(tmp_path: Path) -> None:
    first = golden.write(GOLDEN, tmp_path / "a")
    turned = tuple({name: np.asfortranarray(run[name]) for name in run} for run in FEEDS)
    assert golden.write(replace(GOLDEN, feeds=turned), tmp_path / "b") == first
    for name in ("inputs.npz", "outputs.npz", "golden.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    with np.load(tmp_path / "a" / "inputs.npz") as plain:  # numpy reads it without us
        assert np.array_equal(plain["0/x"], FEEDS[0]["x"])
    assert first["inputs_sha256"] == store.file_digest(tmp_path / "a" / "inputs.npz")


@pytest.mark.parametrize("name", ["inputs.npz", "outputs.npz"])
def test_a_flipped_bit_is_noticed(tmp_path: Path, name: str) -> None:
    golden.write(GOLDEN, tmp_path)
    data = bytearray((tmp_path / name).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match="changed after it was written"):
        golden.read(tmp_path)


@pytest.mark.parametrize("gone", ["inputs.npz", "outputs.npz", "golden.json"])
def test_an_incomplete_set_is_refused(tmp_path: Path, gone: str) -> None:
    golden.write(GOLDEN, tmp_path)
    (tmp_path / gone).unlink()
    with pytest.raises(InputError) as caught:
        golden.read(tmp_path)
    assert caught.value.id == "bad-golden"


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "description", "runs", "outputs", "computed_by"])
def test_a_damaged_description_is_refused(tmp_path: Path, text: str) -> None:
    facts = golden.write(GOLDEN, tmp_path)
    if text in facts:
        text = json.dumps({key: value for key, value in facts.items() if key != text})
    (tmp_path / "golden.json").write_text(text)
    with pytest.raises(InputError) as caught:
        golden.read(tmp_path)
    assert caught.value.id == "bad-golden"


class Doubling:
    """A session that doubles its input."""

    def __init__(self, factor: float = 2.0) -> None:
        self.factor = factor

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        return [feeds["x"] * np.float32(self.factor), np.arange(len(feeds["x"]))]


def some(count: int, fixed: int | None = None) -> Feeds:
    rows = np.arange(count, dtype=np.float32).reshape(-1, 1) + 1
    return Feeds({"role": "golden"}, count, None, fixed, lambda a, b: {"x": rows[a:b]})


def test_make_runs_the_source_over_all_samples() -> None:
    made = golden.make(some(20), Doubling(), "me", ["y", "n"])
    assert made.samples == 20 and made.real == (1, 16, 3)
    assert np.array_equal(np.concatenate([run[0] for run in made.outputs])[:, 0], 2 * np.arange(1, 21))
    filled = golden.make(some(5, fixed=3), Doubling(), "me", ["y", "n"])
    assert filled.real == (3, 2) and [len(run["x"]) for run in filled.feeds] == [3, 3]


@pytest.mark.parametrize("factor", [np.nan, np.inf])
def test_a_source_that_gives_nothing_finite_is_refused(factor: float) -> None:
    with pytest.raises(InputError, match="NaN or infinite") as caught:
        golden.make(some(4), Doubling(factor), "me", ["y", "n"])
    assert "'y'" in str(caught.value)


def test_outputs_that_are_texts_are_kept_or_refused_in_plain_words(tmp_path: Path) -> None:
    texts = replace(GOLDEN, output_names=("label",), outputs=((np.array(["a", "b", "c"], object),),) * 2)
    try:
        golden.write(texts, tmp_path)
    except InputError:
        return
    assert golden.read(tmp_path).outputs[0][0].tolist() == ["a", "b", "c"]

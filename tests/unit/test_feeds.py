"""Samples in the model's form: disjoint roles, fixed batches filled, misfits refused."""

from dataclasses import replace

import numpy as np
import pytest

from penstock import feeds, roles
from penstock.data import Dataset, DataSettings, Preprocessing, Split
from penstock.errors import InputError
from penstock.signature import Signature, TensorSpec

COUNT = 40
SETTINGS = DataSettings(calibrate=8, golden=4, select=8)


def signature(batch: str | int = "batch", classes: int | str = 4, dtype: str = "float32") -> Signature:
    return Signature((TensorSpec("x", dtype, (batch, 2)),), (TensorSpec("y", "float32", (batch, classes)),))


def dataset(count: int = COUNT, labelled: bool = True, classes: int = 4) -> Dataset:
    """Row i holds the numbers i and -i, so that a row tells where it comes from."""
    rows = np.stack([np.arange(count), -np.arange(count)], axis=1).astype(np.float32)
    labels = np.arange(count) % classes if labelled else None
    names = tuple(str(i) for i in range(classes)) if labelled else ()
    return Dataset("own", Split({"": rows}, labels), None, names, Preprocessing(), "digest")


def indices(feed: feeds.Feeds) -> list[int]:
    return [int(v) for v in feed.rows(0, feed.count)["x"][:, 0]]


def test_the_roles_are_disjoint_and_labels_stay_with_their_rows() -> None:
    got = feeds.from_data(dataset(), signature(), SETTINGS, seed=0)
    assert got.select is not None and got.evaluate is not None
    dealt = {role: indices(getattr(got, role)) for role in ("golden", "calibrate", "select", "evaluate")}
    assert {role: len(rows) for role, rows in dealt.items()} == {
        "golden": 4, "calibrate": 8, "select": 8, "evaluate": 20,
    }  # fmt: skip
    everything = [row for rows in dealt.values() for row in rows]
    assert sorted(everything) == list(range(COUNT))
    for role in ("select", "evaluate"):
        feed = getattr(got, role)
        assert feed.labels.tolist() == [row % 4 for row in dealt[role]]


def test_the_official_test_set_is_evaluated_whole_and_nothing_else() -> None:
    test = Split({"": np.full((6, 2), 99, np.float32)}, np.zeros(6, np.int64))
    got = feeds.from_data(replace(dataset(), evaluate=test), signature(), SETTINGS, seed=0)
    assert got.evaluate is not None and indices(got.evaluate) == [99] * 6
    for feed in (got.golden, got.calibrate, got.select):
        assert feed is not None and 99 not in indices(feed)


@pytest.mark.parametrize("count", range(8, 40))
def test_small_sets_still_give_disjoint_roles(count: int) -> None:
    got = feeds.from_data(dataset(count), signature(), DataSettings(), seed=0)
    taken = [indices(f) for f in (got.golden, got.calibrate, got.select, got.evaluate) if f is not None]
    flat = [row for rows in taken for row in rows]
    assert len(flat) == len(set(flat)) and all(taken)


@pytest.mark.parametrize(
    ("count", "labelled", "told", "cure"),
    [(7, True, "7 samples with labels, and 8 are the least", "or leave the labels out"),
     (1, False, "has 1 sample, and 2 are the least", "at least 2")],
)  # fmt: skip
def test_too_few_samples(count: int, labelled: bool, told: str, cure: str) -> None:
    with pytest.raises(InputError, match=told) as caught:
        feeds.from_data(dataset(count, labelled=labelled), signature(), DataSettings(), seed=0)
    assert cure in caught.value.do


def test_another_seed_deals_others_and_the_same_seed_the_same() -> None:
    deals = [indices(feeds.from_data(dataset(), signature(), SETTINGS, seed=s).calibrate) for s in (0, 0, 1)]
    assert deals[0] == deals[1] != deals[2]


@pytest.mark.parametrize("change", ["seed", "scale", "mean", "golden"])
def test_the_description_differs_where_the_samples_differ(change: str) -> None:
    """It stands for the samples in cache keys and journal keys: two sets of one description are taken for one another."""  # noqa: E501
    settings, seed, data = SETTINGS, 0, dataset()
    before = feeds.from_data(data, signature(), settings, seed).calibrate
    if change == "seed":
        seed = 1
    elif change == "golden":
        settings = replace(settings, golden=5)
    else:
        other = Preprocessing(scale=0.5) if change == "scale" else Preprocessing(mean=(1.0, 1.0))
        data = replace(data, preprocessing=other)
    after = feeds.from_data(data, signature(), settings, seed).calibrate
    assert not np.array_equal(before.rows(0, 8)["x"], after.rows(0, 8)["x"])
    assert dict(before.description) != dict(after.description)


def test_classes_are_spread_evenly() -> None:
    labels = np.repeat([0, 1, 2, 3], [70, 10, 10, 10])
    dealt = roles.deal(labels, 100, seed=3, golden=8, calibrate=16, select=16)
    for part in (dealt.golden, dealt.calibrate, dealt.select):
        share = np.array([0.7, 0.1, 0.1, 0.1]) * len(part)
        assert np.abs(np.bincount(labels[part], minlength=4) - share).max() < 2
    assert len(set(dealt.golden) | set(dealt.calibrate) | set(dealt.select)) == 40


def test_unlabelled_data_has_nothing_to_select_or_evaluate() -> None:
    got = feeds.from_data(dataset(labelled=False), signature(), SETTINGS, seed=0)
    assert got.select is None and got.evaluate is None and got.golden.count == 4


@pytest.mark.parametrize(("count", "golden", "calibrate"), [(2, 1, 1), (7, 1, 6), (40, 5, 35), (130, 16, 114)])
def test_all_unlabelled_samples_but_a_golden_part_calibrate(count: int, golden: int, calibrate: int) -> None:
    got = feeds.from_data(dataset(count, labelled=False), signature(), DataSettings(), seed=0)
    assert (got.golden.count, got.calibrate.count) == (golden, calibrate)
    assert set(indices(got.golden)).isdisjoint(indices(got.calibrate)) and got.calibrate.description["of"] == count
    few = feeds.from_data(dataset(count, labelled=False), signature(), DataSettings(calibrate=1), seed=0)
    assert few.calibrate.count == 1 and few.golden.count == golden


# --- batches


def test_batches_of_a_dynamic_model() -> None:
    feed = feeds.from_data(dataset(), signature(), SETTINGS, seed=0).calibrate
    assert [(real, len(b["x"])) for real, b in feed.batches(3)] == [(3, 3), (3, 3), (2, 2)]
    whole = list(feed.batches(3, whole=True))  # the last one overlaps: none is smaller, none is left out
    assert [(real, len(b["x"])) for real, b in whole] == [(3, 3)] * 3
    assert whole[-1][1]["x"][:, 0].tolist() == indices(feed)[5:]
    assert [real for real, _ in feed.batches(100, whole=True)] == [8]
    assert np.concatenate([b["x"] for _, b in feed.batches(3)])[:, 0].tolist() == indices(feed)


def test_a_fixed_batch_is_filled_up_by_repetition() -> None:
    feed = feeds.from_data(dataset(), signature(3), SETTINGS, seed=0).calibrate
    got = list(feed.batches(100))
    assert [(real, len(b["x"])) for real, b in got] == [(3, 3), (3, 3), (2, 3)]
    rows = indices(feed)
    assert got[-1][1]["x"][:, 0].tolist() == [rows[6], rows[7], rows[6]]
    assert [real for real, _ in feed.batches(100, whole=True)] == [3, 3, 3]


def test_the_first_batch_is_exactly_as_large_as_asked() -> None:
    made = feeds.from_data(dataset(), signature(), SETTINGS, seed=0).golden
    rows = indices(made)
    assert made.first(6)["x"][:, 0].tolist() == [*rows, rows[0], rows[1]]
    assert len(feeds.from_data(dataset(), signature(3), SETTINGS, seed=0).golden.first(100)["x"]) == 3


# --- what doesn't fit


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        (TensorSpec("x", "int64", ("batch", 2)), "wants int64"),
        (TensorSpec("x", "float16", ("batch", 2)), "wants float16"),
        (TensorSpec("x", "float32", ("batch", 3)), r"shape \[2\]"),
        (TensorSpec("x", "float32", ("batch", 2, 1)), r"shape \[2\]"),
        (TensorSpec("x", "float32", ("batch",)), r"shape \[2\]"),
        (TensorSpec("x", "float32", ()), r"shape \[2\]"),
    ],
)
def test_data_of_another_form_is_refused(spec: TensorSpec, told: str) -> None:
    with pytest.raises(InputError, match=told) as caught:
        feeds.from_data(dataset(), Signature((spec,), ()), SETTINGS, seed=0)
    assert caught.value.id == "data-does-not-fit" and caught.value.do


@pytest.mark.parametrize("shape", [None, ("n", "m"), (None, None), (5, 2)])
def test_data_of_a_form_that_fits(shape: tuple | None) -> None:
    feeds.from_data(dataset(), Signature((TensorSpec("x", "float32", shape),), ()), SETTINGS, seed=0)


def test_several_inputs_go_by_name() -> None:
    array = np.zeros((16, 2), np.float32)
    data = replace(dataset(), train=Split({"b": array + 1, "a": array}, None))
    both = Signature((TensorSpec("a", "float32", ("n", 2)), TensorSpec("b", "float32", ("n", 2))), ())
    got = feeds.from_data(data, both, SETTINGS, seed=0).golden.first(1)
    assert list(got) == ["a", "b"] and got["b"].tolist() == [[1, 1]]
    with pytest.raises(InputError, match="gives b, a; the model wants x"):
        feeds.from_data(data, signature(), SETTINGS, seed=0)
    with pytest.raises(InputError, match="one unnamed array; the model wants a, b"):
        feeds.from_data(dataset(), both, SETTINGS, seed=0)


def test_an_input_without_axes_gets_the_number_of_each_sample() -> None:
    specs = (TensorSpec("x", "float32", ("n", 3)), TensorSpec("rate", "int64", ()))
    signature = Signature(specs, (TensorSpec("y", "float32", ("n", 3)),))
    arrays = {"x": np.repeat(np.arange(16, dtype=np.float32)[:, None], 3, 1), "rate": np.arange(16)}
    data = Dataset("d", Split(arrays, None), None, (), Preprocessing(), "0")
    made = feeds.from_data(data, signature, DataSettings(golden=2, calibrate=4, select=0), 0)
    given = [batch for _, batch in made.calibrate.batches(32)]
    assert [(batch["x"].shape, batch["rate"].shape) for batch in given] == [((1, 3), ())] * 4
    assert [batch["rate"] for batch in given] == [batch["x"][0, 0] for batch in given]


def whole_data() -> tuple[Dataset, Signature]:
    specs = (TensorSpec("state", "float32", (2, "n", 3)), TensorSpec("rate", "int64", ()))
    arrays = {"state": np.arange(96, dtype=np.float32).reshape(16, 2, 1, 3), "rate": np.arange(16)}
    data = Dataset("d", Split(arrays, None), None, (), Preprocessing(), "0", whole=True)
    return data, Signature(specs, (TensorSpec("y", "float32", ("n", 3)),))


def test_a_whole_sample_is_what_one_run_reads() -> None:
    data, signature = whole_data()
    made = feeds.from_data(data, signature, DataSettings(golden=2, calibrate=4, select=0), 0)
    assert made.golden.description["whole"] is True
    given = list(made.calibrate.batches(32, whole=True))
    assert [(real, one["state"].shape, one["rate"].shape) for real, one in given] == [(1, (2, 1, 3), ())] * 4
    assert all(one["state"][0, 0, 0] == 6 * one["rate"] and type(one["rate"]) is np.ndarray for _, one in given)
    assert made.golden.first(8)["state"].shape == (2, 1, 3)  # there is no other size than that of one run


@pytest.mark.parametrize(
    ("shape", "told"),
    [((3, "n", 3), r"shape \[2, 1, 3\]"), (("n", 3), r"shape \[2, 1, 3\]"), ((2, 1, 4), r"shape \[2, 1, 3\]")],
)
def test_a_whole_sample_of_another_form_is_refused(shape: tuple, told: str) -> None:
    data, signature = whole_data()
    other = replace(signature, inputs=(TensorSpec("state", "float32", shape), signature.inputs[1]))
    with pytest.raises(InputError, match=told):
        feeds.from_data(data, other, SETTINGS, seed=0)


def test_samples_keep_their_numbers_in_the_data() -> None:
    signature = Signature((TensorSpec("x", "float32", ("n",)),), (TensorSpec("y", "float32", ("n",)),))
    data = Dataset("d", Split({"x": np.arange(64, dtype=np.float32)}, None), None, (), Preprocessing(), "0")
    made = feeds.from_data(data, signature, DataSettings(golden=8, calibrate=16, select=0), 0).calibrate
    assert made.numbers is not None and list(made.numbers) != sorted(made.numbers)
    np.testing.assert_array_equal(made.rows(0, 16)["x"], made.numbers)


def test_more_classes_than_the_model_knows_are_refused() -> None:
    got = feeds.from_data(dataset(classes=5), signature(), SETTINGS, seed=0)
    with pytest.raises(InputError, match="5 classes") as caught:
        feeds.check_classes(got, signature(classes=4), "own")
    assert caught.value.id == "wrong-class-count"


@pytest.mark.parametrize("classes", ["n", 4])
def test_a_fitting_or_unknown_number_of_classes_is_let_through(classes: int | str) -> None:
    got = feeds.from_data(dataset(classes=4), signature(), SETTINGS, seed=0)
    feeds.check_classes(got, signature(classes=classes), "own")


def test_a_sample_in_which_the_last_classes_are_absent_is_let_through() -> None:
    """Numbered labels only tell the least number of classes: 40 images of a set of 1,000 classes fit its model."""
    got = feeds.from_data(dataset(classes=4), signature(), SETTINGS, seed=0)
    feeds.check_classes(got, signature(classes=1000), "own")


# --- made from a seed


def test_seeded_inputs_are_the_same_in_any_cut_and_differ_between_roles() -> None:
    got = feeds.from_seed(signature(), {}, SETTINGS, 0)
    assert got.select is None and got.evaluate is None
    one_by_one = np.concatenate([got.golden.rows(i, i + 1)["x"] for i in range(got.golden.count)])
    assert np.array_equal(one_by_one, got.golden.rows(0, got.golden.count)["x"])
    both = np.concatenate([one_by_one, got.calibrate.rows(0, got.calibrate.count)["x"]])
    assert len(np.unique(both, axis=0)) == len(both)
    other = feeds.from_seed(signature(), {}, SETTINGS, 1)
    assert dict(other.golden.description) != dict(got.golden.description)


def test_seeded_inputs_of_a_fixed_batch_and_a_scalar() -> None:
    got = feeds.from_seed(signature(3), {}, SETTINGS, 0)
    assert all(len(b["x"]) == 3 for _, b in got.golden.batches(16))
    scalar = Signature((TensorSpec("s", "float32", ()), TensorSpec("x", "float32", ("n", 2))), ())
    _, first = next(iter(feeds.from_seed(scalar, {}, SETTINGS, 0).golden.batches(16)))
    assert first["s"].shape == () and first["x"].shape == (1, 2)


def test_an_integer_stays_below_its_bound() -> None:
    ids = Signature((TensorSpec("ids", "int64", ("n", 50)),), ())
    made = feeds.from_seed(ids, {"ids": 7}, SETTINGS, 0).golden
    values = made.rows(0, made.count)["ids"]
    assert values.dtype == np.int64 and values.min() == 0 and values.max() == 6


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize("labelled", [True, False])
def test_no_row_that_judges_is_trained_on(labelled: bool, seed: int) -> None:
    test = Split({"": np.full((6, 2), 99, np.float32)}, np.zeros(6, np.int64) if labelled else None)
    for own, count in ((replace(dataset(labelled=labelled), evaluate=test), 28), (dataset(labelled=labelled), 8)):
        got = feeds.from_data(own, signature(), SETTINGS, seed=seed)
        rows = feeds.training_rows(own, SETTINGS, seed).tolist()
        judging = {row for feed in (got.golden, got.select, got.evaluate) if feed is not None for row in indices(feed)}
        assert rows == sorted(set(rows)) and len(rows) >= count and not judging & set(rows)
        assert set(indices(got.calibrate)) <= set(rows)
        if labelled:
            assert len(rows) == count, "without a test set of its own, all else is the evaluate role's"

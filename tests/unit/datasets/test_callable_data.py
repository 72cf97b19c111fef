"""Reading what a user's function gives, and telling where it went wrong."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from penstock.data import Dataset, DataSettings
from penstock.datasets import callable as source
from penstock.datasets import find
from penstock.errors import InputError

pytestmark = pytest.mark.usefixtures("held_bytes")


def written(tmp_path: Path, body: str) -> str:
    path = tmp_path / "mydata.py"
    path.write_text("import numpy as np\n\n" + textwrap.dedent(body))
    return f"{path}:data"


def read(tmp_path: Path, body: str) -> Dataset:
    return find(written(tmp_path, body), DataSettings())


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("module:function", True),
        ("package.module:function", True),
        ("some/where/file.py:function", True),
        ("a b/file.py:function", True),
        ("zoo:digits", False),
        ("zoo:file.py:f", False),
        ("digits", False),
        ("module:", False),
        (":function", False),
        ("module:fun ction", False),
        ("some/where/file.txt:function", False),
        ("https://example.org/x", False),
        ("data.npz", False),
        ("", False),
    ],
)
def test_claims(spec: str, expected: bool) -> None:
    assert source.claims(spec) is expected


@pytest.mark.parametrize(
    "body",
    [
        "def data():\n    return np.arange(8.0).reshape(4, 2), np.array([0, 1, 2, 1])",
        "def data():\n    for i in range(0, 4, 2):\n"
        "        yield np.arange(8.0).reshape(4, 2)[i:i+2], np.array([0, 1, 2, 1])[i:i+2]",
        "def data():\n    return [(np.arange(8.0).reshape(4, 2), [0, 1, 2, 1])]",
        "def data(count=4):\n    return {'x': np.arange(8.0).reshape(4, 2)}, np.array([[0], [1], [2], [1]])",
    ],
)
def test_whole_arrays_and_batches_are_the_same(tmp_path: Path, body: str) -> None:
    dataset = read(tmp_path, body)
    np.testing.assert_array_equal(dataset.train.arrays[""][:], np.arange(8.0).reshape(4, 2))
    assert dataset.train.labels is not None and dataset.train.labels.tolist() == [0, 1, 2, 1]
    assert dataset.classes == ("0", "1", "2")
    assert dataset.evaluate is None


def test_inputs_alone_and_by_name(tmp_path: Path) -> None:
    dataset = read(
        tmp_path,
        """
        def data():
            for _ in range(3):
                yield {"ids": np.zeros((2, 5), np.int64), "mask": np.ones((2, 5), bool)}
        """,
    )
    assert {name: array.shape for name, array in dataset.train.arrays.items()} == {"ids": (6, 5), "mask": (6, 5)}
    assert dataset.train.labels is None and dataset.classes == ()


WHOLE = """
from penstock.data import Whole

def data():
    for i in range(4):
        yield Whole({"state": np.full((2, 1, 3), i, np.float32), "rate": np.int64(i), "x": np.ones((1, 5))}), [i % 2]
"""


def test_whole_feeds(tmp_path: Path) -> None:
    dataset = read(tmp_path, WHOLE)
    assert dataset.whole and len(dataset.train) == 4
    assert dataset.train.labels is not None and dataset.train.labels.tolist() == [0, 1, 0, 1]
    sample = dataset.feeds(dataset.train, 2, 3)
    assert {name: array.shape for name, array in sample.items()} == {"state": (2, 1, 3), "rate": (), "x": (1, 5)}
    assert sample["rate"] == 2 and (sample["state"] == 2).all()
    assert {name: array.shape for name, array in dataset.example().items()} == {
        name: array.shape for name, array in sample.items()
    }


def test_some_whole_feeds(tmp_path: Path) -> None:
    body = (
        WHOLE
        + "    yield {'state': np.ones((1, 2, 1, 3), np.float32), 'rate': np.ones(1, int), 'x': np.ones((1, 1, 5))}"
    )
    with pytest.raises(InputError, match="some batches are Whole") as caught:
        read(tmp_path, body)
    assert caught.value.where.endswith("batch 4")


def test_whole_feeds_take_no_preprocessing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no preprocessing is declared"):
        find(written(tmp_path, WHOLE), DataSettings(scale=2.0))


def test_a_buffer_that_is_filled_again(tmp_path: Path) -> None:
    body = "def data():\n    x = np.zeros((1, 2))\n    for i in range(3):\n        x[:] = i\n        yield x"
    assert read(tmp_path, body).train.arrays[""][:][:, 0].tolist() == [0, 1, 2]


@pytest.mark.torch
def test_torch_tensors(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    body = """
        import torch

        def data():
            sets = torch.utils.data.TensorDataset(torch.arange(6.0).reshape(3, 2).requires_grad_(), torch.arange(3))
            return torch.utils.data.DataLoader(sets, batch_size=2)
        """
    dataset = read(tmp_path, body)
    assert dataset.train.arrays[""].dtype == np.float32
    assert dataset.train.labels is not None and dataset.train.labels.tolist() == [0, 1, 2]


def test_a_module_of_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "penstock_test_module.py").write_text("import numpy\ndef samples():\n    return numpy.ones((2, 3))\n")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    assert len(find("penstock_test_module:samples", DataSettings()).train) == 2
    assert sys.path == before


def test_an_error_names_the_line_of_the_user(tmp_path: Path) -> None:
    body = """
        def data():
            yield np.ones((1, 2))
            yield helper()

        def helper():
            return np.concatenate([])
        """
    with pytest.raises(InputError, match="need at least one array") as caught:
        read(tmp_path, body)
    assert caught.value.id == "user-code-failed"
    assert caught.value.where.startswith("mydata.py:9: ")


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ("def data(:\n", 3),
        ("raise ValueError('no')", 3),
        ("import no_such_module_anywhere", 3),
        ("def data():\n    raise SystemExit(3)", 4),
    ],
)
def test_errors_while_importing(tmp_path: Path, body: str, line: int) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path, body)
    assert caught.value.id == "user-code-failed"
    assert caught.value.where.startswith(f"mydata.py:{line}")


@pytest.mark.parametrize(
    ("body", "id", "says"),
    [
        ("def other(): ...", "no-such-function", "no function 'data'"),
        ("data = 3", "no-such-function", "no function 'data'"),
        ("def data(path): ...", "function-arguments", "'path'"),
        ("def data(): ...", "data-wrong-dtype", "object"),
        ("def data(): return 'text'", "data-wrong-dtype", "<U1"),
        ("def data(): return iter(())", "data-empty", "no batch"),
        ("def data(): return np.ones((0, 3))", "data-empty", "(0, 3)"),
        ("def data(): return {}", "data-empty", "no arrays"),
        ("def data(): return np.float32(3)", "data-wrong-shape", "no axes"),
        ("def data(): return np.ones(3), np.ones(3, int), np.ones(3)", "data-wrong-shape", "3 parts"),
        ("def data(): return [([[1, 2], [3]], [0, 1])]", "data-wrong-dtype", "no array"),
        ("def data(): return np.full((2, 2), np.nan)", "data-not-finite", "4 values"),
        ("def data(): return np.ones((2, 3)), np.ones(2)", "labels-wrong-dtype", "float64"),
        ("def data(): return np.ones((2, 3)), 1", "labels-wrong-shape", "()"),
        ("def data(): return np.ones((2, 3)), np.ones(3, int)", "data-lengths-differ", "2 samples and 3 labels"),
        ("def data(): return iter([np.ones((2, 3)), np.ones((2, 4))])", "data-wrong-shape", "float64 (4,)"),
        ("def data(): return [np.ones((2, 3)), np.ones((2, 3), 'f4')]", "data-wrong-shape", "float32 (3,)"),
        ("def data(): return [(np.ones((1, 1)), [0]), np.ones((1, 1))]", "data-wrong-shape", "has no labels"),
        ("def data(): return [np.ones((1, 1)), (np.ones((1, 1)), [0])]", "data-wrong-shape", "has labels"),
    ],
)
def test_wrong_results(tmp_path: Path, body: str, id: str, says: str) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path, body)
    assert caught.value.id == id
    assert says in caught.value.what
    assert "mydata.py" in caught.value.where
    assert caught.value.do


def test_an_endless_function_ends_at_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.datasets._checks.LIMIT_BYTES", 10_000)
    with pytest.raises(InputError) as caught:
        read(tmp_path, "def data():\n    while True:\n        yield np.ones((10, 10))")
    assert caught.value.id == "data-too-large"


def test_absent_file_and_module(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        find(f"{tmp_path}/absent.py:data", DataSettings())
    with pytest.raises(InputError, match="no module 'absent_module_of_mine'"):
        find("absent_module_of_mine:data", DataSettings())

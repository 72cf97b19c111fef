"""The restricted unpickler: reads arrays in every protocol, refuses everything else."""

from __future__ import annotations

import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest

from penstock.datasets import _unpickle
from penstock.errors import InputError

ROWS = np.arange(2 * 3072, dtype=np.uint8).reshape(2, 3072)


def python_2_batch(planes: np.ndarray, labels: list[int]) -> bytes:
    """Write a batch as Python 2's cPickle wrote CIFAR-10's: byte strings for keys and for the array's data."""

    def short(data: bytes) -> bytes:
        return b"U" + bytes([len(data)]) + data

    def count(value: int) -> bytes:
        return b"K" + bytes([value]) if value < 256 else b"M" + struct.pack("<H", value)

    dtype = b"cnumpy\ndtype\n" + short(b"u1") + b"K\x00K\x01\x87R"
    dtype += b"(K\x03" + short(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    raw = planes.tobytes()
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + short(b"b") + b"\x87R"
    array += b"(K\x01" + count(planes.shape[0]) + count(planes.shape[1]) + b"\x86"
    array += dtype + b"\x89" + b"T" + struct.pack("<i", len(raw)) + raw + b"tb"
    listed = b"](" + b"".join(count(label) for label in labels) + b"e"
    return b"\x80\x02}(" + short(b"data") + array + short(b"labels") + listed + b"u."


def test_reads_a_python_2_batch() -> None:
    data = python_2_batch(ROWS, [3, 7])
    reference = pickle.loads(data, encoding="bytes")  # the bytes are a genuine pickle: Python's own reader agrees
    np.testing.assert_array_equal(reference[b"data"], ROWS)
    found = _unpickle.read(data, "batch")
    np.testing.assert_array_equal(found["data"], ROWS)
    assert found["data"].dtype == np.uint8
    assert found["labels"] == [3, 7]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_reads_every_protocol_of_python_3(protocol: int) -> None:
    batch = {b"data": ROWS, b"labels": [3, 7], b"batch_label": b"training batch 1 of 5"}
    found = _unpickle.read(pickle.dumps(batch, protocol), "batch")
    np.testing.assert_array_equal(found["data"], ROWS)
    assert found["labels"] == [3, 7]


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=">i4").reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.zeros((0, 4), np.float32),
        np.array([True, False]),
    ],
)
@pytest.mark.parametrize("protocol", [2, 5])
def test_keeps_order_and_type(array: np.ndarray, protocol: int) -> None:
    found = _unpickle.read(pickle.dumps({"a": array}, protocol), "batch")["a"]
    np.testing.assert_array_equal(found, array)
    assert found.dtype == array.dtype.newbyteorder("=")


class Calls:
    """Pickles as a call of ``function(*args)``."""

    def __init__(self, function: object, *args: object) -> None:
        self.call = function, args

    def __reduce__(self) -> object:
        return self.call


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (Calls(os.system, "true"), "system"),
        (Calls(eval, "1"), "eval"),
        (Calls(getattr, b"", "join"), "getattr"),
        (Calls(np.load, "x.npy"), "load"),
        (Calls(np.frombuffer, b"1"), "frombuffer"),
        (Calls(__import__, "os"), "__import__"),
    ],
)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_refuses_to_call(value: object, named: str, protocol: int) -> None:
    with pytest.raises(InputError, match=named) as caught:
        _unpickle.read(pickle.dumps({"data": value}, protocol), "batch")
    assert caught.value.id == "unsafe-pickle"
    assert caught.value.where == "batch"


def test_a_refused_call_did_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    with pytest.raises(InputError):
        _unpickle.read(pickle.dumps(Calls(os.mkdir, str(marker))), "batch")
    assert not marker.exists()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a pickle",
        pickle.dumps([1, 2]),
        pickle.dumps({"a": np.array([{}], dtype=object)}),
        pickle.dumps({"a": np.zeros(2, dtype=[("x", "i4")])}),
        pickle.dumps({"a": np.array(["text"])}),
        pickle.dumps({"a": ROWS})[:-100],
        b"\x80\x02cnumpy\nndarray\n}X\x01\x00\x00\x00aK\x01sb.",  # a state for a name
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n}X\x07\x00\x00\x00__doc__K\x01sb.",
        b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00zip\x86R.",  # another codec
        b"\x80\x02cnumpy.lib\nload\n.",
        b"\x80\x04\x8c\x05numpy\x8c\x0cndarray.tofile\x93.",  # dotted names are not walked
        b"\x80\x02}r\xff\xff\xff\xff.}",  # a memo index of 4 billion costs nothing
        b"\x80\x02" + b"(" * 100_000,
    ],
    ids=range(14),
)
def test_refuses_what_is_no_dictionary_of_arrays(data: bytes) -> None:
    if data.startswith(b"\x80\x02}r"):
        assert _unpickle.read(data, "batch") == {}
        return
    with pytest.raises(InputError) as caught:
        _unpickle.read(data, "batch")
    assert caught.value.id == "unsafe-pickle"
    assert caught.value.do


def test_an_array_that_lies_about_its_shape() -> None:
    data = python_2_batch(ROWS, [1]).replace(b"K\x02M\x00\x0c\x86", b"K\x03M\x00\x0c\x86")
    with pytest.raises(InputError, match="holds 6144 bytes"):
        _unpickle.read(data, "batch")


def test_a_pickle_that_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_unpickle, "LIMIT_BYTES", 10)
    with pytest.raises(InputError, match="more than"):
        _unpickle.read(pickle.dumps({"a": ROWS}), "batch")

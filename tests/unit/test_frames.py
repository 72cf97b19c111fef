"""Frames: what goes in comes out, whatever it is, and what is no frame is told as such."""

import io

import ml_dtypes
import numpy as np
import pytest

from penstock import frames

RNG = np.random.default_rng(0)
DTYPES = (
    "bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float16", "float32", "float64",
)  # fmt: skip


def whole(told: object, *arrays: np.ndarray) -> bytes:
    return b"".join(frames.packed(told, arrays))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 4), (2, 3, 5)])
def test_numbers(name: str, shape: tuple[int, ...]) -> None:
    array = (RNG.random(shape) * 100).astype(name)
    told, (found,) = frames.of_bytes(whole({"a": 1}, array))
    assert told == {"a": 1} and found.dtype == array.dtype and found.shape == array.shape
    np.testing.assert_array_equal(found, array)
    found[...] = 0  # it is the reader's own


def test_several_that_lie_crosswise_and_texts() -> None:
    turned, brain = np.arange(12, dtype=np.int16).reshape(3, 4).T, np.array([1.5, -2.0], ml_dtypes.bfloat16)
    words = np.array([["für", ""], ["a\0b", "🙂"]], dtype=object)
    told, found = frames.of_bytes(whole(None, turned, words, brain))
    assert told is None and len(found) == 3
    np.testing.assert_array_equal(found[0], turned)
    assert found[1].tolist() == words.tolist() and found[2].dtype == brain.dtype and found[2].tolist() == [1.5, -2.0]


def test_one_after_the_other_from_a_stream() -> None:
    stream = io.BytesIO(whole([1], np.ones(3)) + whole([2]))

    def read(count: int) -> bytes:
        if len(data := stream.read(count)) < count:
            raise EOFError
        return data

    assert frames.unpacked(read)[0] == [1] and frames.unpacked(read)[0] == [2]
    with pytest.raises(EOFError):
        frames.unpacked(read)


def test_every_cut_is_noticed() -> None:
    data = whole({"x": [1, 2]}, np.arange(5))
    for end in range(len(data)):
        with pytest.raises(ValueError, match=r"cut off|Expecting|no frame"):
            frames.of_bytes(data[:end])


def test_a_length_beyond_reason_is_no_frame() -> None:
    with pytest.raises(ValueError, match="no frame"):
        frames.of_bytes(b"HTTP/1.1 200 OK\r\n")

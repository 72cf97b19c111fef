"""ONNX's own backend tests, each model before and after optimizing: the same result in whatever runs it.

The models of ``onnx.backend.test``: a test for every operator and attribute, some graphs, and what PyTorch once wrote.
They run in ONNX Runtime without its optimizations, or in the reference evaluator where it doesn't take them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from penstock.errors import InputError
from penstock.stages.optimize import MAIN, OptimizeSettings, optimize

Run = Callable[[dict[str, Any]], Sequence[Any]]
SETTINGS = OptimizeSettings(proof=False, strict=True)
KINDS = ("simple", "pytorch-converted", "pytorch-operator")
PARTS = 12  # of the node tests, so that a failure names few
BOUNDS = {"float64": 1e-9, "float32": 1e-4}
# not the same from run to run
RANDOM = ("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial")
HOLDERS = {
    "tensor_type": (onnx.TensorProto, onnx.numpy_helper.to_array),
    "sequence_type": (onnx.SequenceProto, onnx.numpy_helper.to_list),
    "optional_type": (onnx.OptionalProto, onnx.numpy_helper.to_optional),
}


@cache
def node_tests() -> list[Any]:
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the cases compute infinities on purpose
        return collect_testcases(None)


def stored(case: Any) -> Iterator[list[Any]]:
    """Yield the inputs of a test that is kept as files."""
    model = onnx.load(Path(case.model_dir) / "model.onnx")
    for folder in sorted(Path(case.model_dir).glob("test_data_set_*")):
        feeds = []
        for i, value in enumerate(model.graph.input[: len(list(folder.glob("input_*.pb")))]):
            proto, to_value = HOLDERS[value.type.WhichOneof("value")]
            held = proto()
            held.ParseFromString((folder / f"input_{i}.pb").read_bytes())
            feeds.append(to_value(held))
        yield feeds


def plain(value: Any) -> Any:
    """Return an input as an array; some tests hold it as a tensor of the format."""
    return onnx.numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value


def runtime(path: Path) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda feeds: session.run(None, feeds)


def evaluator(path: Path) -> Run:
    from onnx.reference import ReferenceEvaluator

    session = ReferenceEvaluator(str(path))
    return lambda feeds: session.run(None, feeds)


def same(got: Any, want: Any) -> bool:
    """Whether two results are: whole numbers and texts exactly, floats within a bound of their type."""
    if want is None or got is None:
        return want is got
    if isinstance(want, list):
        return isinstance(got, list) and len(got) == len(want) and all(map(same, got, want))
    got, want = np.asarray(got), np.asarray(want)
    if got.shape != want.shape or got.dtype != want.dtype:
        return False
    if want.dtype.kind not in "fcV" and want.dtype.name not in ("bfloat16",) and "float" not in want.dtype.name:
        return bool(np.array_equal(got, want))
    bound = BOUNDS.get(want.dtype.name, 1e-2)
    if want.dtype.kind != "c":
        got, want = got.astype(np.float64), want.astype(np.float64)
    scale = np.abs(want[np.isfinite(want)]).max(initial=0.0)
    return bool(np.allclose(got, want, rtol=bound, atol=bound * scale, equal_nan=True))


def check(name: str, model: onnx.ModelProto, sets: list[list[Any]], folder: Path) -> str:
    """Optimize one model and run it before and after; return what is wrong, or nothing."""
    before = folder / "before.onnx"
    before.write_bytes(model.SerializeToString())
    try:
        optimize(before, SETTINGS, folder)
    except InputError as error:
        return f"{name}: refused: {error.what}" if loads(runtime, before) else ""
    except Exception as error:
        return f"{name}: {type(error).__name__}: {error}"
    if any(node.op_type in (*RANDOM, "Gradient") for node in model.graph.node):  # nothing here computes a Gradient
        return ""
    names = [value.name for value in model.graph.input]
    for kind in (runtime, evaluator):
        wanted: list[tuple[dict[str, Any], Sequence[Any]]] = []
        try:
            run = kind(before)
            for arrays in sets:
                feeds = {key: plain(array) for key, array in zip(names, arrays, strict=False) if key}
                wanted.append((feeds, run(feeds)))
        except Exception:
            continue  # this one doesn't support the operator
        try:
            again = kind(folder / MAIN)
            for feeds, want in wanted:
                if not same([*again(feeds)], [*want]):
                    return f"{name}: other results in the {kind.__name__}"
        except Exception as error:
            return f"{name}: the result doesn't run in the {kind.__name__}: {str(error)[:200]}"
        return ""
    return f"{name}: nothing runs it"


def loads(kind: Callable[[Path], Run], path: Path) -> bool:
    try:
        kind(path)
    except Exception:
        return False
    return True


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("part", range(PARTS))
def test_every_operator_means_the_same_afterwards(part: int, tmp_path: Path) -> None:
    cases = node_tests()
    assert len(cases) > 1500
    problems = []
    with np.errstate(all="ignore"):
        for case in cases[part::PARTS]:
            problems.append(check(case.name, case.model, [inputs for inputs, _ in case.data_sets], tmp_path))
    assert not any(problems), "\n".join(filter(None, problems))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_graphs_mean_the_same_afterwards(kind: str, tmp_path: Path) -> None:
    from onnx.backend.test.loader import load_model_tests

    cases = load_model_tests(kind=kind)
    assert len(cases) > 20
    problems = []
    with np.errstate(all="ignore"):
        for case in cases:
            model = onnx.load(Path(case.model_dir) / "model.onnx")
            problems.append(check(case.name, model, [*stored(case)], tmp_path))
    assert not any(problems), "\n".join(filter(None, problems))


def test_a_wrong_result_is_seen() -> None:
    assert same(np.float32([1.0, np.nan]), np.float32([1.0, np.nan]))
    assert not same(np.float32([1.0]), np.float32([1.001]))
    assert not same(np.int64([1]), np.int64([2]))
    assert not same(np.float32([1.0]), np.float64([1.0]))
    assert not same(np.float32([[1.0]]), np.float32([1.0]))
    assert not same([np.float32([1.0])], [])

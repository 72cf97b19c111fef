"""Conformance: the judgement of a test, the data that is kept, and that this machine's runtime still does it."""

import json
import re
import runpy
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from penstock import cli, registry
from penstock.backends import Loadable
from penstock.conformance import measured, measuring, suite
from penstock.conformance.measured import Coverage, Operator
from penstock.conformance.suite import Case, Result
from penstock.deployment import Deployment
from penstock.errors import InputError, UsageError
from penstock.worker import WorkerCrash

ONE = np.ones(3, np.float32)


@pytest.mark.parametrize(
    ("got", "expected", "said"),
    [
        (ONE, ONE + 5e-4, ""),
        (ONE, ONE + 2e-3, "3 of 3 numbers differ, the most by 0.002"),
        (np.array([1, np.nan]), np.array([1, np.nan]), ""),
        (np.array([1, np.nan]), np.array([1, 2.0]), "1 of 2 numbers differ, the most by nan"),
        (np.array([np.inf, 1]), np.array([-np.inf, 1]), "1 of 2 numbers differ, the most by inf"),
        (ONE.astype(np.float64), ONE, "it is float64, not float32"),
        (ONE[None], ONE, r"its shape is \[1, 3\], not \[3\]"),
        (np.array([2**62 + 1]), np.array([2**62]), ""),  # within rtol, as the standard's own runner has it
        (np.array([3]), np.array([5]), "the most by 2"),
        (np.array([True]), np.array([False]), "the most by 1"),
        (np.array(["a", "b"], object), np.array(["a", "b"]), ""),
        (np.array(["a", "b"], object), np.array(["a", "c"]), "its texts are others"),
        ([ONE, ONE], [ONE, 2 * ONE], "element 1: 3 of 3"),
        ([ONE], [ONE, ONE], "a sequence of 2 was expected"),
        (ONE, [ONE], "a sequence of 1 was expected"),
        ([ONE], ONE, "it is a sequence"),
        (None, ONE, "one of the two is empty"),
        (np.array([1 + 1j]), np.array([1 + 2j]), "the most by 1"),
    ],
)
def test_what_differs(got: Any, expected: Any, said: str) -> None:
    found = suite.differs(got, expected, rtol=1e-3, atol=1e-7)
    assert (found == "") if not said else (re.search(said, found) is not None), found


def test_of_what_is_drawn_only_type_and_shape_count() -> None:
    assert suite.differs(2 * ONE, ONE, 1e-3, 0, drawn=True) == ""
    assert "its shape" in suite.differs(ONE[:2], ONE, 1e-3, 0, drawn=True)
    assert "it is float64" in suite.differs(ONE.astype(np.float64), ONE, 1e-3, 0, drawn=True)


def case(*nodes: Any, name: str = "test_relu") -> Case:
    x, y = (helper.make_tensor_value_info(one, TensorProto.FLOAT, [3]) for one in "xy")
    graph = helper.make_graph(list(nodes), "g", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return Case(name, suite.operator(model, name), model, [([ONE], [ONE])], 1e-3, 1e-7)


RELU = helper.make_node("Relu", ["x"], ["y"])


class Runtime:
    """A backend that does what it is told to."""

    def __init__(self, outcome: Any) -> None:
        self.outcome, self.closed = outcome, 0

    def load(self, model: Loadable, deployment: Deployment) -> "Runtime":
        if isinstance(self.outcome, Exception) and getattr(self.outcome, "id", "") != "run-failed":
            raise self.outcome
        return self

    def run(self, feeds: Any) -> Any:
        assert list(feeds) == ["x"]
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome

    def close(self) -> None:
        self.closed += 1


@pytest.mark.parametrize(
    ("outcome", "kind", "reason"),
    [
        ([ONE], "passed", ""),
        ([2 * ONE], "wrong", "output 0: 3 of 3"),
        ([ONE, ONE], "wrong", "it gives 2 outputs, not 1"),
        (InputError("runtime-refuses", "it has no Relu"), "refused", "it has no Relu"),
        (InputError("run-failed", "a size is wrong"), "failed", "a size is wrong"),
        (WorkerCrash("worker-crash", "it was killed"), "crashed", "it was killed"),
        (TypeError("oh"), "refused", "TypeError, which no backend should raise: oh"),
    ],
)
def test_how_a_test_ends(outcome: Any, kind: str, reason: str, tmp_path: Path) -> None:
    runtime = Runtime(outcome)
    found = suite.run(case(RELU), runtime, "toy", tmp_path)
    assert found.kind == kind and found.reason.startswith(reason)
    assert runtime.closed == (kind in ("passed", "wrong", "failed"))


def test_a_test_is_of_the_operator_that_its_name_tells() -> None:
    both = (helper.make_node("Identity", ["x"], ["h"]), helper.make_node("Relu", ["h"], ["y"]))
    assert case(*both).operator == "Relu"
    assert case(*both, name="test_something").operator == "Identity"
    own = helper.make_node("Binarizer", ["x"], ["y"], domain="ai.onnx.ml")
    assert case(own, name="test_ai_onnx_ml_binarizer").operator == "ai.onnx.ml.Binarizer"


def test_what_is_written_is_read_again() -> None:
    operators = {
        "Relu": Operator(2, {"test_b": Result("wrong", "so"), "test_a": Result("refused", "no")}),
        "Add": Operator(1, {}), "If": Operator(0, {"test_if": Result("wrong", "so")}),
    }  # fmt: skip
    made = Coverage("toy", {"version": "1"}, "onnx 1", "2026-01-01", "Linux", operators)
    text = measured.written(made)
    assert measured.read(text) == made and json.loads(text)["reasons"] == ["no", "so"]
    assert made.tests == 6 and made.opened == 5 and made.whole == ("Add",) and made.partial == ("Relu",)
    assert made.counts == {"passed": 3, "wrong": 2, "refused": 1, "failed": 0, "crashed": 0, "hung": 0}


def built_in() -> list[str]:
    return [plugin.name for plugin in registry.describe("backends") if plugin.origin == "built in"]


def test_every_backend_that_takes_onnx_was_measured() -> None:
    found = {name: one for name in built_in() if (one := measured.of(name)) is not None}
    assert {*built_in()} - {*found} == {*measuring.LEFT_OUT} | {*measuring.UNMEASURED}
    for name, one in found.items():
        assert one.backend == name and one.version and one.tests == 1884, name
        assert measured.written(one).encode() == (measured.HERE / f"{name}.json").read_bytes()
        assert not [r for r in one.others.values() if "which no backend should raise" in r.reason], name


def test_the_page_shows_what_the_data_holds() -> None:
    script = Path(__file__).parents[2] / "scripts" / "measure_coverage.py"
    told = runpy.run_path(str(script), run_name="measure_coverage")
    assert told["page"]() == told["PAGE"].read_text()


def test_onnx_runtime_passes_what_it_opens() -> None:
    one = measured.of("onnxruntime")
    assert one is not None and one.counts["passed"] / one.opened >= 0.98


@pytest.mark.slow
def test_onnx_runtime_does_what_is_written_of_it(tmp_path: Path) -> None:
    """Whoever makes a test fail that passed, in our backend or with a newer runtime, learns which one."""
    written = measured.of("onnxruntime")
    assert written is not None
    backend: Any = registry.load("backends", "onnxruntime")
    same = (backend.facts()["version"], suite.version()) == (written.version, written.suite)
    now: dict[str, Result] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for one in suite.cases():
            if same or one.name not in written.others:
                now[one.name] = suite.run(one, backend, "onnxruntime", tmp_path)
    before = {name: written.others.get(name, Result("passed")).kind for name in now}
    assert {name: result.kind for name, result in now.items() if result.kind != before[name]} == {}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["openvino", "litert", "reference"])
def test_a_sample_of_others_ends_as_is_written(name: str) -> None:
    """Every 48th test, in processes that may die of one: of a newer runtime what passed, of the same one all."""
    written, backend = measured.of(name), registry.load("backends", name)
    assert written is not None
    if problem := backend.available():  # type: ignore[attr-defined]
        pytest.skip(f"{name}: {problem}")
    names = [one.name for one in suite.cases()][::48]
    now = measuring.measure(name, only=names)
    same = (now.version, suite.version()) == (written.version, written.suite)

    def kinds(coverage: Coverage) -> dict[str, str]:
        held = {test: coverage.others.get(test, Result("passed")).kind for test in names}
        return {test: kind for test, kind in held.items() if same or test not in written.others}

    assert kinds(now) == kinds(written) and len(names) > 30


def test_what_isn_t_measured() -> None:
    with pytest.raises(UsageError, match="it runs modules of its framework"):
        measuring.measure("torch")


def test_tests_run_in_a_process_of_their_own() -> None:
    found = measuring.measure("reference", only=["test_abs", "test_relu"], jobs=1)
    assert found.operators == {"Abs": Operator(1, {}), "Relu": Operator(1, {})}
    assert found.suite == suite.version() and found.facts["version"]


def test_the_list_shows_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["list", "backends", "--coverage"]) == 0
    shown = capsys.readouterr().out
    assert "onnxruntime" in shown and "not measured  torch: it runs modules" in shown
    assert cli.run(["list", "--coverage", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["result"]
    assert sum(told["coverage"]["onnxruntime"]["counts"].values()) == 1884
    assert {*told["not_measured"]} >= {*measuring.LEFT_OUT}
    assert cli.run(["list", "backends", "--coverage", "--operator", "Conv"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("onnxruntime ") and line.endswith("passed") for line in lines)
    assert cli.run(["list", "--operator", "Conv", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["result"]["backends"]["onnxruntime"]["passed"] > 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["list", "--coverage", "--operator", "conv"], "did you mean Conv?"),
        (["list", "--operator", "Nothing"], "there is no test of an operator 'Nothing'"),
        (["list", "passes", "--coverage"], "--coverage is of backends, not of passes"),
    ],
)
def test_a_wrong_question(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(words) == 2
    assert said in capsys.readouterr().err

"""Consistency: every variant on every backend, what differs, what can't be run, and what got worse since."""

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from penstock import api, crossing, registry, trial
from penstock.backends import litert
from penstock.cli import run
from penstock.deployment import Deployment
from penstock.errors import InputError, MissingError, UsageError
from penstock.measures import Runnable
from penstock.metrics import Difference
from penstock.stages import consistency
from penstock.stages.consistency import Cell
from penstock.stages.verify import VerifySettings
from penstock.worker import WorkerCrash, WorkerTimeout

FAST = ["--bench-seconds", "0.05", "--no-footprint", "--min-rounds", "3", "--warmup-calls", "3", "-q"]
BOTH = ("onnxruntime", "litert")


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sessions of this process, which a test can change: the next one to be opened aside knows nothing of that."""
    monkeypatch.setattr("penstock.aside.opened", Runnable.open)


@pytest.fixture
def pair(tiny: ModuleType, tmp_path: Path) -> tuple[Path, Path]:
    """A model, and one whose weights differ by a hundredth."""
    model = tiny.mlp()
    good = tiny.save(model, tmp_path / "good.onnx")
    weights = model.graph.initializer[0]
    moved = numpy_helper.to_array(weights) * np.float32(1.01)
    weights.CopyFrom(numpy_helper.from_array(moved, weights.name))
    return good, tiny.save(model, tmp_path / "moved.onnx")


def test_all_that_can_run_here_is_run_and_the_rest_says_why(pair: tuple[Path, Path]) -> None:
    matrix = crossing.crossed([pair[0]], str(pair[0]))
    held = {cell.backend: cell for cell in matrix.cells}
    assert set(held) == {*registry.names("backends")} - {"torch", "torch-compile"}, "they run modules, not files"
    for name in ("onnxruntime", "reference", *BOTH):
        cell = held[name]
        assert cell.state == "agrees" and cell.samples == matrix.samples and (cell.relative or 0.0) < 1e-5
        assert cell.asked["threads"] == 1 and cell.actual["device"] == "cpu"
    for name, cell in held.items():
        if problem := registry.load("backends", name).available():  # type: ignore[attr-defined]
            assert (cell.state, cell.reason) == ("not here", problem)
    assert matrix.holds


def test_what_differs_is_a_breach_and_the_others_go_on(pair: tuple[Path, Path]) -> None:
    matrix = crossing.crossed(pair, str(pair[0]), backends=BOTH)
    assert [(cell.variant, cell.backend, cell.state) for cell in matrix.cells] == [
        ("good", "litert", "agrees"), ("good", "onnxruntime", "agrees"),
        ("moved", "litert", "differs"), ("moved", "onnxruntime", "differs"),
    ]  # fmt: skip
    assert not matrix.holds
    worst = matrix.cell("moved", "onnxruntime")
    assert worst is not None and 1e-3 < (worst.relative or 0) < 0.1 and "the limit is 0.0001" in worst.reason
    assert worst.worst_sample is not None and worst.worst_output == "y"


def test_what_a_backend_can_not_run_is_a_cell_with_the_reason(tiny: ModuleType, tmp_path: Path) -> None:
    model = tiny.mlp()
    model.graph.node.append(onnx.helper.make_node("CumSum", ["y", "axis"], ["z"]))
    model.graph.initializer.append(numpy_helper.from_array(np.int64(1), "axis"))
    model.graph.output.append(onnx.helper.make_tensor_value_info("z", 1, ["n", 3]))
    path = tiny.save(model, tmp_path / "m.onnx")
    matrix = crossing.crossed([path], str(path), backends=BOTH)
    cell = matrix.cell("m", "litert")
    assert cell is not None and cell.state == "can't run" and "CumSum" in cell.reason
    assert matrix.cell("m", "onnxruntime").state == "agrees" and matrix.holds  # type: ignore[union-attr]
    assert "CumSum" in crossing.markdown(matrix)


def test_a_variant_that_nothing_could_run_is_a_breach(
    pair: tuple[Path, Path], here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: object, feeds: object) -> list[np.ndarray]:
        raise InputError("run-failed", "the device\nis gone")

    monkeypatch.setattr(litert.LiteRtSession, "run", broken)
    matrix = crossing.crossed([pair[0]], str(pair[0]), backends=BOTH)
    cell = matrix.cell("good", "litert")
    assert cell is not None and cell.state == "can't run" and "is gone" in cell.reason and matrix.holds
    alone = crossing.crossed([pair[0]], str(pair[0]), backends=("litert",))
    assert alone.unrun == ("good",) and not alone.holds and "no backend could run it" in crossing.markdown(alone)


@pytest.mark.parametrize("how", ["dies", "takes long"])
def test_a_model_that_the_trial_does_not_survive(
    how: str, pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that ends the trial's runtime is still run on others; one that takes too long is run nowhere."""
    plain = trial.survive

    def survive(model: Path, *given: Any) -> None:
        if model != pair[1]:
            plain(model, *given)
        elif how == "dies":
            raise WorkerCrash("worker-crash", "the process was ended by SIGSEGV")
        else:
            raise WorkerTimeout("worker-timeout", "the work took more than 60 s and was stopped")

    monkeypatch.setattr("penstock.trial.survive", survive)
    matrix = crossing.crossed(pair, str(pair[0]), backends=BOTH)
    assert [cell.state for cell in matrix.cells if cell.variant == "good"] == ["agrees", "agrees"]
    others = [cell for cell in matrix.cells if cell.variant == "moved"]
    assert [cell.state for cell in others] == (["differs"] * 2 if how == "dies" else ["can't run"] * 2)
    assert all("60 s" in cell.reason for cell in others) == (how == "takes long")
    assert matrix.unrun == (("moved",) if how == "takes long" else ())


def test_numbers_stay_where_a_runtime_fails_to_tell_what_ran(
    pair: tuple[Path, Path], here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: object) -> None:
        raise InputError("run-failed", "its profile is damaged")

    monkeypatch.setattr(litert.LiteRtSession, "actual", fails)
    (cell,) = crossing.crossed([pair[0]], str(pair[0]), backends=("litert",)).cells
    assert cell.state == "agrees" and cell.actual == {"problem": "its profile is damaged"}
    assert cell.note == "what ran isn't known: its profile is damaged"


def test_int8_in_float_is_noted(pair: tuple[Path, Path], here: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.stages.consistency.in_float", lambda *given: "it computes 1 of its 2 layers in float")
    found = crossing.crossed([pair[0]], str(pair[0]), backends=("litert",))
    assert found.holds and found.cells[0].note in crossing.markdown(found)


def test_a_model_of_another_source_is_refused(pair: tuple[Path, Path], tiny: ModuleType, tmp_path: Path) -> None:
    other = tiny.save(tiny.several(), tmp_path / "several.onnx")
    with pytest.raises(InputError, match=r"is not among the golden inputs|other inputs"):
        crossing.crossed([pair[0], other], str(pair[0]), backends=("onnxruntime",))


@pytest.mark.parametrize(
    ("actual", "told"),
    [({"device": "GPU.0"}, "on the device GPU.0, cpu was asked for"),
     ({"device": "CPU", "threads": 4}, "with 4 threads, 1"), ({"device": "CPU", "threads": 1}, ""), ({}, "")],
)  # fmt: skip
def test_what_ran_instead_of_what_was_asked_for_is_a_breach(
    actual: dict, told: str, pair: tuple[Path, Path], here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(litert.LiteRtSession, "actual", lambda self: actual)
    given = {"backends": ("litert",)}
    (cell,) = crossing.crossed([pair[0]], str(pair[0]), **given).cells
    assert cell.state == ("fell back" if told else "agrees") and told in cell.reason
    assert ("FELL BACK" in crossing.shown(cell)) == bool(told)
    let = crossing.crossed([pair[0]], str(pair[0]), VerifySettings(allow_fallback=True), **given)
    assert let.holds and let.cells[0].state == "agrees" and told in let.cells[0].reason


def test_a_name_that_is_missing_or_wrong_stops(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    against = str(pair[0])
    monkeypatch.setenv("PENSTOCK_ENVIRONMENTS", str(pair[0].parent / "none"))
    with pytest.raises(MissingError) as caught:
        crossing.crossed([pair[0]], against, backends=("onnxruntime", "iree"))
    assert caught.value.exit_code == 3 and "penstock env add iree" in caught.value.do
    with pytest.raises(UsageError, match="no backend named"):
        crossing.crossed([pair[0]], against, backends=("onnx",))
    with pytest.raises(UsageError, match=r"runs no \.onnx files"):
        crossing.crossed([pair[0]], against, backends=("torch",))
    with pytest.raises(UsageError, match="nothing to hold"):
        crossing.crossed([pair[0]], "")
    with pytest.raises(InputError):
        crossing.crossed([pair[0].with_name("none.onnx")], against)


def cell(name: str = "int8@x", precision: str = "int8", **figures: float | None) -> Cell:
    shown = Difference(**({"max_abs": 1.0, "relative": 1e-4, "sqnr_db": 30.0} | figures))  # type: ignore[arg-type]
    return consistency.of_outputs(Deployment(name, "int8", "", precision, "x"), {"y": shown}, "agrees")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("before", "now", "told"),
    [
        (cell(), cell(sqnr_db=29.5), ""),
        (cell(), cell(sqnr_db=28.5), "SQNR 28.5 dB, it was 30.0"),
        (cell(precision="fp32"), cell(precision="fp32", relative=1.5e-4), ""),
        (cell(precision="fp32"), cell(precision="fp32", relative=3e-4), "relative difference 0.0003, it was 0.0001"),
        (cell(precision="fp32", relative=0.0), cell(precision="fp32", relative=5e-7), ""),
        (cell(top1_agreement=1.0), cell(top1_agreement=0.99), "of its top answers 1.00% differ, they were 0.00%"),
        (cell(), replace(cell(), state="can't run", reason="it broke"), "now can't run: it broke"),
        (cell(), replace(cell(), state="differs", reason="20 dB"), "now differs: 20 dB"),
        (replace(cell(), state="differs"), replace(cell(), state="can't run"), ""),
        (cell("other@x"), cell(), "isn't among what was run"),
    ],
)
def test_what_got_worse(before: Cell, now: Cell, told: str) -> None:
    found = consistency.regressions([now], {before.name: before})
    assert bool(found) == bool(told) and told in "".join(found.values())


def test_a_build_is_held_against_its_golden_set_and_an_earlier_one(
    tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.save(tiny.conv(), tmp_path / "m.onnx")
    assert run(["build", "m.onnx", "-o", "out", "--backends", "onnxruntime", *FAST]) == 0
    capsys.readouterr()
    words = ["verify", "out", "--backends", "onnxruntime,litert", "-q"]
    assert run([*words, "--baseline", "out", "--markdown", "s.md", "--json"]) == 0
    first = capsys.readouterr().out
    Path("first.json").write_text(first)
    told = json.loads(first)["result"]
    assert told["regressions"] == {} and {one["variant"] for one in told["cells"]} >= {"fp32", "int8"}
    text = Path("s.md").read_text()
    assert text.startswith("**Consistent**") and "\n| litert | " in text and "\n| backend | fp32 |" in text
    assert run([*words, "--baseline", "first.json"]) == 0
    said = capsys.readouterr().out
    assert "consistent" in said and "int8@litert" in said
    worse = json.loads(first)
    for one in worse["result"]["cells"]:
        one["sqnr_db"], one["relative"], one["flips"] = 200.0, 0.0, None
    Path("better.json").write_text(json.dumps(worse))
    assert run([*words, "--baseline", "better.json", "--markdown", "s.md"]) == 1
    assert "int8@litert: worse than before: SQNR" in " ".join(capsys.readouterr().out.split())
    assert Path("s.md").read_text().startswith("**Not consistent**")
    (model,) = Path("out/models/int8").glob("*.onnx")
    model.write_bytes(model.read_bytes() + b"\0")
    assert run(words) == 2 and "isn't what the build made" in capsys.readouterr().err


def test_a_build_stops_where_something_else_ran(
    tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.save(tiny.mlp(), tmp_path / "m.onnx")
    monkeypatch.setattr(litert.LiteRtSession, "actual", lambda self: {"device": "cpu", "threads": 8})
    words = ["build", "m.onnx", "-o", "out", "--backends", "onnxruntime,litert", "--no-quantize", *FAST]
    for _ in range(2):  # the second goes on where the first one stopped
        assert run(words) == 1
        said = capsys.readouterr().err
        assert "fp32@litert: it ran with 8 threads, 1 were asked for" in said and "--allow-fallback" in said
    assert run([*words, "--allow-fallback", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["result"]["deployments"]
    assert "fp32@litert" in {row["deployment"]["name"] for row in rows}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"result": {}}', '{"result": {"cells": [3]}}'])
def test_a_baseline_that_is_none(
    text: str, pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "b.json").write_text(text)
    words = ["verify", str(pair[0]), "--against", str(pair[0]), "--backends", "onnxruntime", "--baseline"]
    assert run([*words, str(tmp_path / "b.json"), "-q"]) == 2
    assert "this is no earlier result" in capsys.readouterr().err
    assert run([*words, str(tmp_path), "-q"]) == 2 and "no build" in capsys.readouterr().err


def test_flags_that_go_with_a_matrix_alone(pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    alone = ["verify", str(pair[0]), "--against", str(pair[0]), "-q"]
    for flags in (["--baseline", "x"], ["--markdown", "x.md"]):
        assert run([*alone, *flags]) == 2 and "goes with --backends" in capsys.readouterr().err
    assert run(["verify", str(pair[0]), "-q"]) == 2 and "nothing to hold the model against" in capsys.readouterr().err
    assert run([*alone, "--backend", "onnxruntime", "--backends", "litert"]) == 2


def test_what_ran_fewer_samples_says_so(pair: tuple[Path, Path]) -> None:
    """The oracle's time is limited; the figures beside it are of all samples."""
    given = {"backends": ("onnxruntime", "reference")}
    found = crossing.crossed([pair[0]], str(pair[0]), VerifySettings(oracle_seconds=1e-9), **given)
    ((name, told),) = found.shortened.items()
    assert name.endswith("@reference") and told.endswith(f"of the {found.samples} samples")
    assert f"- {name}: ran {told}" in crossing.markdown(found)
    assert crossing.crossed([pair[0]], str(pair[0]), **given).shortened == {}


def test_what_a_named_backend_finds_missing_as_it_loads_stops_all(
    pair: tuple[Path, Path], here: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An adapter of a browser, say, that was asked for: with "all" it is one cell of the matrix."""

    def refuses(*arguments: object) -> None:
        raise MissingError("backend-missing", "there is no such adapter", do="give another")

    monkeypatch.setattr(litert, "load", refuses)
    words = ["verify", str(pair[0]), "--against", str(pair[0]), "-q", "--backends"]
    assert run([*words, "onnxruntime,litert"]) == 3
    assert "there is no such adapter" in capsys.readouterr().err
    matrix = crossing.crossed([pair[0]], str(pair[0]))
    cell = matrix.cell("good", "litert")
    assert cell is not None and (cell.state, cell.reason) == ("can't run", "there is no such adapter")


MODULE = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed({seed})
        self.layer = torch.nn.Linear(6, 4)

    def forward(self, x):
        return self.layer(x).relu()

    example_inputs = staticmethod(lambda: (torch.zeros(2, 6),))
"""


@pytest.mark.torch
def test_a_module_is_a_variant_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a source that is named, and of a build: one that changed since differs, one that is gone can't be run."""
    monkeypatch.chdir(tmp_path)
    module, out = tmp_path / "net.py", tmp_path / "out"
    module.write_text(MODULE.format(seed=0))
    quick = ["--bench-seconds", "0.1", "--min-rounds", "3", "--warmup-calls", "2", "--no-footprint", "--no-quantize"]
    asked = ["--input", "x:float32[batch,6]", "--backends", "onnxruntime", "-o", str(out), "--quiet"]
    assert run(["build", "net.py:Net", *asked, *quick]) == 0, capsys.readouterr()
    fp32 = next((out / "models" / "fp32").glob("*.onnx"))
    both = ("torch", "onnxruntime")
    for found in (
        crossing.crossed([fp32], f"{module}:Net", backends=both),
        crossing.crossed([out], backends=both),
    ):
        assert found.holds and {cell.name for cell in found.cells} >= {"source@torch"}
        held = found.cell("source", "torch")
        assert held is not None and held.samples and held.relative == 0.0
        assert found.cells[0].variant == "source" and found.cell("source", "onnxruntime") is None
    assert not any(cell.variant == "source" for cell in crossing.crossed([out], backends=("onnxruntime",)).cells)
    module.write_text(MODULE.format(seed=1))
    changed = crossing.crossed([out], backends=both).cell("source", "torch")
    assert changed is not None and changed.state == "differs"
    module.write_text("raise SystemExit('somebody else wrote this')")  # isn't run unasked: a folder may be anybody's
    every = crossing.crossed([out], backends=("all",))
    assert every.holds and not any(cell.variant == "source" for cell in every.cells)
    module.unlink()
    gone = crossing.crossed([out], backends=both)
    held = gone.cell("source", "torch")
    assert held is not None and held.state == "can't run" and "net.py" in held.reason and gone.holds


def test_what_is_not_here_is_told_beside_a_module(
    tmp_path: Path, tiny: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And a file that is called as the module is refused: their cells would have one name."""
    pytest.importorskip("torch")
    monkeypatch.setenv("PENSTOCK_ENVIRONMENTS", str(tmp_path / "none"))
    monkeypatch.setattr("penstock.backends.torch_compile.available", lambda: "no compiler")
    (tmp_path / "net.py").write_text(MODULE.format(seed=0))
    against = f"{tmp_path / 'net.py'}:Net"
    api.export(against, tmp_path / "net.onnx")
    assert run(["verify", str(tmp_path / "net.onnx"), "--against", against, "--backends", "all", "--quiet"]) == 0
    told = capsys.readouterr().out
    assert told.count("iree: not here: ") == 1 and "penstock env add iree" in told and told.count("not here") >= 6
    (tmp_path / "net.onnx").rename(tmp_path / "source.onnx")
    with pytest.raises(UsageError, match="called as the module"):
        crossing.crossed([tmp_path / "source.onnx"], against, backends=("onnxruntime",))
    plain = crossing.crossed([tmp_path / "source.onnx"], str(tmp_path / "source.onnx"), backends=("onnxruntime",))
    assert plain.holds and not plain.cells[0].of_module


def test_a_matrix_of_a_module_alone_that_is_gone_does_not_hold() -> None:
    gone = Cell("source@torch", "source", "torch", "fp32", "can't run", "there is no such file", of_module=True)
    other = cell("fp32@x", "fp32")
    assert consistency.Matrix("o", 4, (gone,)).unrun == ("source",)
    assert consistency.Matrix("o", 4, (gone, other)).unrun == ()
    assert consistency.Matrix("o", 4, (replace(gone, of_module=False), other)).unrun == ("source",)

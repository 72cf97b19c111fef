"""Plug-ins: found by folder and by entry point; a broken one is listed and breaks nothing."""

from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

import penstock
from penstock import registry, worker
from penstock.errors import MissingError, UsageError

HOME = Path(penstock.__file__).parent


class Entry:
    """Stands for an entry point of a distribution."""

    def __init__(self, name: str, loads: object) -> None:
        self.name, self.value, self.dist = name, f"third.party:{name}", SimpleNamespace(name="third-party")
        self.module = "penstock"  # which is imported already, so that no other process is asked
        self._loads = loads

    def load(self) -> object:
        if isinstance(self._loads, BaseException):
            raise self._loads
        return self._loads


def plug(monkeypatch: pytest.MonkeyPatch, kind: str, *entries: Entry) -> None:
    monkeypatch.setattr(registry, "_entry_points", lambda asked: list(entries) if asked == kind else [])


@pytest.mark.parametrize("kind", registry.KINDS)
def test_names_are_the_files(kind: registry.Kind) -> None:
    folder = HOME / ("cli" if kind == "commands" else kind)
    files = {path.stem.replace("_", "-") for path in folder.glob("*.py") if not path.stem.startswith("_")}
    assert registry.names(kind) == sorted(files)


@pytest.mark.parametrize("kind", registry.KINDS)
def test_every_built_in_loads_and_says_what_it_is(kind: registry.Kind) -> None:
    for plugin in registry.describe(kind):
        assert plugin.origin == "built in" and plugin.summary and isinstance(plugin.problem, str), plugin


def test_an_unknown_name_offers_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'onnxruntime'"):
        registry.load("backends", "onnxruntim")
    with pytest.raises(UsageError, match=r"known are: .*onnxruntime, .*openvino"):
        registry.load("backends", "qqq")


@pytest.mark.parametrize(
    ("kind", "singular"),
    [("backends", "backend"), ("passes", "pass"), ("datasets", "data"), ("quantizers", "quantizer")],
)
def test_the_kind_is_named_in_plain_english(kind: registry.Kind, singular: str) -> None:
    with pytest.raises(UsageError, match=rf"no {singular}( set|set)? named"):
        registry.load(kind, "qqq")


def test_a_third_party_plug_in_is_found_beside_the_built_in(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = ModuleType("theirs", "Runs on theirs.\n\nMore.")
    vars(theirs).update(ROLE="candidate", FORMATS=("onnx",), available=lambda: "", facts=dict, load=None)
    plug(monkeypatch, "backends", Entry("theirs", theirs))
    assert "theirs" in registry.names("backends") and "onnxruntime" in registry.names("backends")
    assert registry.load("backends", "theirs") is theirs
    shown = next(p for p in registry.describe("backends") if p.name == "theirs")
    assert shown.origin == "third-party" and shown.summary == "Runs on theirs." and shown.problem == ""


def test_a_built_in_is_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    plug(monkeypatch, "backends", Entry("onnxruntime", ModuleType("evil")))
    assert registry.load("backends", "onnxruntime").__name__ == "penstock.backends.onnxruntime"  # type: ignore[attr-defined]
    assert registry.names("backends").count("onnxruntime") == 1


@pytest.mark.parametrize("error", [ImportError("no libx"), ImportError(), SyntaxError("bad"), RuntimeError("a\nb")])
def test_a_broken_one_is_listed_with_its_error(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    plug(monkeypatch, "backends", Entry("broken", error))
    listed = {plugin.name: plugin for plugin in registry.describe("backends")}
    assert listed["broken"].problem and "\n" not in listed["broken"].problem
    assert listed["onnxruntime"].problem == ""
    with pytest.raises(MissingError) as caught:
        registry.load("backends", "broken")
    assert caught.value.id == "broken-plug-in" and "third.party" in caught.value.where


@pytest.mark.parametrize("error", [RuntimeError("no driver"), AssertionError(), ValueError("\n")])
def test_one_whose_available_fails_is_listed_too(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def available() -> str:
        raise error

    plug(
        monkeypatch,
        "backends",
        Entry("broken", SimpleNamespace(available=available, ROLE="", FORMATS=(), facts=dict, load=None)),
    )
    listed = {plugin.name: plugin for plugin in registry.describe("backends")}
    assert listed["broken"].problem and listed["onnxruntime"].problem == ""


def test_a_broken_frontend_breaks_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    from penstock.frontends import Source
    from penstock.stages.export import frontend

    plug(monkeypatch, "frontends", Entry("aaa", ImportError("no libx")))
    assert frontend(Source("model.onnx"))[0] == "onnx"


def test_a_broken_data_source_breaks_no_other(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import numpy as np

    from penstock import datasets
    from penstock.data import DataSettings

    plug(monkeypatch, "datasets", Entry("aaa", ImportError("no libx")))
    np.savez(tmp_path / "d.npz", x=np.zeros((8, 2), np.float32))
    assert len(datasets.find(str(tmp_path / "d.npz"), DataSettings()).train) == 8


def test_a_built_in_that_does_not_import_is_a_missing_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_built_in", lambda kind: {"gone": "penstock.backends.not_there"})
    with pytest.raises(MissingError):
        registry.load("backends", "gone")
    assert [plugin.problem != "" for plugin in registry.describe("backends")] == [True]


def test_one_that_hangs_is_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    entry, asked = Entry("hangs", None), []
    entry.module = "not_imported_yet"

    def call(*given: object, **named: object) -> None:
        asked.append(given)
        raise worker.WorkerTimeout("took-too-long", "it hangs")

    monkeypatch.setattr(worker, "call", call)
    monkeypatch.setattr(registry, "_TRIED", {})
    plug(monkeypatch, "backends", entry)
    for _ in range(3):
        with pytest.raises(MissingError, match="takes more than 30 s to import"):
            registry.load("backends", "hangs")
    assert len(asked) == 1


def test_what_one_distribution_brings_is_first_imported_in_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where one of them ends that process, each is tried alone, and only that one is broken."""
    entries = [Entry(name, None) for name in ("one", "two", "three")]
    for entry in entries:
        entry.module = "not_imported_yet"
    asked: list[list[str]] = []

    def call(target: str, argument: dict, *, timeout_s: float) -> list[list[str]]:
        names = [name for _, name, _ in argument["plug-ins"]]
        asked.append(names)
        if "two" in names and broken:
            raise worker.WorkerCrash("worker-crash", "the process was ended by SIGABRT")
        return [[f"{name} does it", "", ""] for name in names]

    monkeypatch.setattr(worker, "call", call)
    for broken in (False, True):
        monkeypatch.setattr(registry, "_TRIED", {})
        plug(monkeypatch, "backends", *entries)
        listed = {plugin.name: plugin for plugin in registry.describe("backends")}
        assert asked[0] == ["one", "two", "three"] and listed["one"].summary == "one does it"
        assert ("SIGABRT" in listed["two"].problem) == broken and not listed["three"].problem
        assert len(asked) == (4 if broken else 1)
        list(registry.describe("backends"))
        assert len(asked) == (4 if broken else 1), "it is remembered"
        asked.clear()

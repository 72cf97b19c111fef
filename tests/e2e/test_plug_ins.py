"""A third party's package that brings one plug-in of every kind, used in a whole build; broken ones break nothing."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from onnx import helper

import quick
from penstock import registry

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "tests" / "plugin_package" / "toy_penstock.py"
ENTRIES = {
    "frontends": "toy = toy_penstock:frontend",
    "passes": "eliminate-negations = toy_penstock:eliminate",
    "quantizers": "toy = toy_penstock:quantizer",
    "backends": "toy = toy_penstock:backend",
    "datasets": "toy = toy_penstock:dataset",
    "targets": "toy-board = toy_penstock:target",
    "commands": "toy-hello = toy_penstock:command",
}
BACKENDS = {name: registry.load("backends", name) for name in registry.names("backends")}
UNASKED = [name for name, backend in BACKENDS.items() if not getattr(backend, "BY_DEFAULT", True)]
FAST = [*quick.BUILD, "-q", "--json"]


def install(home: Path, name: str, entries: dict[str, str], files: dict[str, str]) -> None:
    """Put a distribution where Python finds it, as an installer would."""
    folder = home / f"{name.replace('-', '_')}-2.5.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 2.5\n")
    (folder / "entry_points.txt").write_text("".join(f"[penstock.{kind}]\n{line}\n" for kind, line in entries.items()))
    for file, text in files.items():
        (home / file).write_text(text)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    home = tmp_path / "site"
    install(home, "toy-penstock", ENTRIES, {"toy_penstock.py": PACKAGE.read_text()})
    return home


def penstock(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    code = "import sys; from penstock.cli import main; main(sys.argv[1:])"
    environ = os.environ | {"PYTHONPATH": str(site)}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=site.parent, env=environ, capture_output=True, text=True,
        check=False, timeout=300,
    )  # fmt: skip


def result(done: subprocess.CompletedProcess[str], code: int = 0) -> dict:
    assert done.returncode == code, done.stdout + done.stderr
    return json.loads(done.stdout)["result"]


def test_all_seven_kinds_are_listed_with_their_origin(site: Path) -> None:
    assert set(ENTRIES) == set(registry.KINDS)
    shown = result(penstock(site, "list", "--json"))
    for kind, line in ENTRIES.items():
        name = line.partition(" = ")[0]
        (mine,) = [plugin for plugin in shown[kind] if plugin["name"] == name]
        assert mine["origin"] == "toy-penstock 2.5" and mine["summary"] and mine["problem"] == "", mine
        assert any(p["origin"] == "built in" for p in shown[kind]) or kind == "targets"
    assert "[toy-penstock 2.5]" in penstock(site, "list", "backends").stdout


def test_a_build_uses_them(site: Path) -> None:
    source = ["build", "toy:5", "--data", "toy-data:300", "--method", "toy", "--backends", "toy,onnxruntime"]
    shown = result(penstock(site, *source, "-o", "out", *FAST))
    rows = {row["deployment"]["name"]: row for row in shown["deployments"]}
    assert {"fp32@toy", "slim@toy", "int8@toy", "fp32@onnxruntime"} <= set(rows) and shown["chosen"]
    verdicts = [v for v in rows["fp32@toy"]["verdicts"] if v["gate"] == "verify"]
    assert verdicts and all(v["measured"]["passed"] for v in verdicts)
    records = site.parent / "out" / "records"
    assert json.loads((records / "export" / "fp32.json").read_text())["facts"]["negations"] == 5
    assert json.loads((records / "quantize" / "int8.json").read_text())["facts"]["toy"] is True
    passes = json.loads((records / "optimize" / "slim.json").read_text())["facts"]["passes"]
    assert sum(p["changes"] for p in passes if p["name"] == "eliminate-negations") == 2, "five negations become one"
    again = result(penstock(site, *source, "-o", "other", *FAST))
    assert again["resumed"] == []
    # its code is a part of the cache's keys: when it changes, what it made is made anew
    (site / "toy_penstock.py").write_text(PACKAGE.read_text().replace('"toy": True', '"toy": False'))
    result(penstock(site, *source, "-o", "third", *FAST))
    changed = json.loads((site.parent / "third" / "records" / "quantize" / "int8.json").read_text())
    assert changed["facts"]["toy"] is False


def test_their_command_runs_and_is_in_the_help(site: Path) -> None:
    shown = penstock(site, "--help").stdout
    assert "Commands of plug-ins" in shown and re.search(r"toy-hello +from toy-penstock 2.5", shown)
    done = penstock(site, "toy-hello", "world")
    assert (done.returncode, done.stdout) == (0, "hello world\n")
    assert penstock(site, "toy-hello").returncode == 2
    assert "Did you mean 'toy-hello'" in penstock(site, "toy-helo").stderr


def test_what_is_wrong_with_their_input_is_told_in_their_words(site: Path) -> None:
    done = penstock(site, "build", "toy:many", "-o", "out", "-q")
    assert done.returncode == 2 and "'many' is no number" in done.stderr and "Traceback" not in done.stderr


BROKEN = """
from types import SimpleNamespace

def fail(*arguments, **named):
    raise RuntimeError("the licence has run out")

backend = SimpleNamespace(__doc__="Fails.", ROLE="candidate", FORMATS=("onnx",), available=fail, facts=fail, load=fail)
frontend = SimpleNamespace(__doc__="Claims badly.", claims=fail, tools=fail, export=fail)
dataset = SimpleNamespace(__doc__="Claims badly.", claims=fail, open=fail)
half = SimpleNamespace(__doc__="Lacks all.")
"""
BROKEN_ENTRIES = {
    "frontends": "aaa = broken_penstock:frontend",
    "datasets": "aaa = broken_penstock:dataset",
    "backends": "onnxruntime = broken_penstock:backend\nfailing = broken_penstock:backend",
    "passes": "half = broken_penstock:half",
    "quantizers": "gone = broken_penstock:not_there",
    "targets": "exits = exits_penstock:target",
    "commands": "absent = no_such_module:command\nbuild = broken_penstock:half",
}


def test_broken_ones_are_listed_and_break_nothing(site: Path) -> None:
    files = {"broken_penstock.py": BROKEN, "exits_penstock.py": "raise SystemExit(9)\n"}
    install(site, "broken-penstock", BROKEN_ENTRIES, files)
    shown = result(penstock(site, "list", "--json"))
    problems = {
        (kind, p["name"], p["origin"]): p["problem"] for kind, found in shown.items() for p in found if p["problem"]
    }
    theirs = "broken-penstock 2.5"
    assert "licence" in problems["backends", "failing", theirs]
    assert "the name is taken: 'onnxruntime' is built in" in problems["backends", "onnxruntime", theirs]
    assert "it has no PHASE, AFTER, run" in problems["passes", "half", theirs]
    assert problems["quantizers", "gone", theirs] and problems["targets", "exits", theirs]
    assert "no_such_module" in problems["commands", "absent", theirs]
    assert "is taken" in problems["commands", "build", theirs]
    assert not any(name == "aaa" for _, name, _ in problems), "their protocol is whole; what they do shows in use"
    lacking = {(kind, name) for kind, name, origin in problems if origin == "built in"}  # extras and environments
    assert {origin for _, _, origin in problems} == {theirs, "built in"}
    assert lacking <= {("quantizers", "nncf"), *(("backends", name) for name in UNASKED)}
    assert "absent" in penstock(site, "--help").stdout
    done = penstock(site, "absent")
    assert done.returncode == 3 and "no_such_module" in done.stderr and "Traceback" not in done.stderr
    built = result(
        penstock(site, "build", "toy:2", "--data", "toy-data:300", "-o", "out", "--backends", "onnxruntime", *FAST)
    )
    assert built["chosen"]
    done = penstock(site, "build", "toy:2", "-o", "other", "--backends", "failing", *FAST)
    assert done.returncode in (2, 3) and "licence" in done.stdout and "Traceback" not in done.stderr


WILD = {
    "aborts_penstock.py": "import os\nos.abort()\n",
    "hangs_penstock.py": "import time\ntime.sleep(600)\n",
    "stops_penstock.py": "raise KeyboardInterrupt\n",
    "prints_penstock.py": "print('hello from the import')\nfrom toy_penstock import backend\n",
    "badphase_penstock.py": "PHASE, AFTER, run = 'nophase', (), print\n",
    "fails_penstock.py": "import click\n\n\n@click.command()\ndef command():\n    raise KeyError('lost')\n",
}
WILD_ENTRIES = {
    "backends": "aborts = aborts_penstock\nhangs = hangs_penstock\nprints = prints_penstock:backend",
    "passes": "badphase = badphase_penstock\nstops = stops_penstock",
    "commands": "fails = fails_penstock:command",
}


FAULTY = """
import os
from types import SimpleNamespace

def fail(*arguments, **named):
    raise RuntimeError("the licence has run out")

def backend(run):
    session = SimpleNamespace(run=run, close=fail)  # it can't tell what runs, nor be closed
    return SimpleNamespace(__doc__="Odd.", ROLE="candidate", FORMATS=("onnx",), available=lambda: "",
                           facts=lambda: {}, load=lambda model, deployment: session)

raises, gives_a_dict, gives_floats, gives_nothing, aborts = (
    backend(run) for run in (fail, lambda feeds: {}, lambda feeds: [1.5], lambda feeds: [], lambda feeds: os.abort()))
exits = SimpleNamespace(__doc__="Odd.", ROLE="candidate", FORMATS=("onnx",), available=lambda: "",
                        facts=lambda: {}, load=lambda model, deployment: os._exit(0))
no_session = SimpleNamespace(__doc__="Odd.", ROLE="candidate", FORMATS=("onnx",), available=lambda: "",
                             facts=lambda: {}, load=lambda model, deployment: 7)
frontend = SimpleNamespace(__doc__="Fails.", claims=lambda spec: spec.startswith("odd:"), tools=dict, export=fail)
says_no = SimpleNamespace(__doc__="Says no.", claims=lambda spec: "no", tools=dict, export=fail)
dataset = SimpleNamespace(__doc__="Fails.", claims=lambda spec: spec.startswith("odd:"), open=fail)
quantizer = SimpleNamespace(__doc__="Fails.", available=lambda: "", quantize=fail)
idle = SimpleNamespace(__doc__="Does nothing.", available=lambda: "", quantize=lambda *arguments: None)
"""
FAULTY_ENTRIES = {
    "backends": "\n".join(f"{name.replace('_', '-')} = faulty_penstock:{name}" for name in (
        "raises", "gives_a_dict", "gives_floats", "gives_nothing", "no_session", "aborts", "exits")),
    "frontends": "odd = faulty_penstock:frontend\nno = faulty_penstock:says_no",
    "datasets": "odd = faulty_penstock:dataset",
    "quantizers": "odd = faulty_penstock:quantizer\nidle = faulty_penstock:idle",
}  # fmt: skip


def test_what_fails_when_it_is_used_is_named_and_a_backend_ends_no_build(site: Path) -> None:
    install(site, "faulty-penstock", FAULTY_ENTRIES, {"faulty_penstock.py": FAULTY})
    x = [helper.make_tensor_value_info("x", 1, ["n", 4])]
    y = [helper.make_tensor_value_info("y", 1, ["n", 4])]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", x, y)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), site.parent / "m.onnx"
    )
    rows = {
        row["deployment"]["backend"]: row
        for row in result(penstock(site, "build", "m.onnx", "-o", "out", *FAST))["deployments"]
    }
    told = {name: " ".join(v["measured"]["reason"] for v in row["verdicts"]) for name, row in rows.items()}
    assert rows["onnxruntime"]["verdicts"][0]["measured"]["passed"]
    assert "'raises' can't run the model: the licence has run out" in told["raises"]
    assert "it returns no list of arrays, but a dict" in told["gives-a-dict"]
    assert "it returns no list of arrays, but a list of float" in told["gives-floats"]
    assert told["gives-nothing"] == "it gives 0 outputs, the model has 1"
    assert "can't run the model" in told["no-session"]
    assert told["aborts"] == "the backend 'aborts' took its process down: the process was ended by SIGABRT"
    assert told["exits"].endswith("the process ended with code 0 and no answer")
    for words, kind in (
        (["export", "odd:x", "-o", "n.onnx"], "frontend 'odd'"), (["build", "odd:x", "-o", "b"], "frontend 'odd'"),
        (["build", "m.onnx", "--data", "odd:x", "-o", "b"], "data set 'odd'"),
        (["quantize", "m.onnx", "-o", "q.onnx", "--method", "odd"], "quantizer 'odd'"),
    ):  # fmt: skip
        done = penstock(site, *words)
        assert done.returncode == 2 and done.stderr.splitlines()[0] != "", words
        assert f"error: the {kind} of faulty-penstock 2.5 failed: RuntimeError: the licence" in done.stderr, done.stderr
    done = penstock(site, "quantize", "m.onnx", "-o", "q.onnx", "--method", "idle")
    assert done.returncode == 2 and "the quantizer 'idle' of faulty-penstock 2.5 wrote no model" in done.stderr
    assert not (site.parent / "q.onnx").exists() and not (site.parent / "b").exists()


def test_not_even_one_that_ends_the_process_is_fatal(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are imported in a process of their own first; ``IMPORT_SECONDS`` is cut short by a sitecustomize."""
    files = WILD | {"sitecustomize.py": "from penstock import registry\nregistry.IMPORT_SECONDS = 3.0\n"}
    install(site, "wild-penstock", WILD_ENTRIES, files)
    shown = result(penstock(site, "list", "--json"))
    problems = {p["name"]: p["problem"] for found in shown.values() for p in found if p["problem"]}
    assert "SIGABRT" in problems["aborts"] and "more than 3 s" in problems["hangs"]
    assert "KeyboardInterrupt" in problems["stops"] and "names the phase 'nophase'" in problems["badphase"]
    assert "prints" not in problems
    built = result(penstock(site, "build", "toy:2", "--data", "toy-data:300", "-o", "out", *FAST))
    assert {"fp32@prints", "fp32@onnxruntime"} <= {row["deployment"]["name"] for row in built["deployments"]}
    done = penstock(site, "build", "toy:2", "-o", "other", "--backends", "aborts", *FAST)
    assert done.returncode == 3 and json.loads(done.stdout)["error"]["id"] == "broken-plug-in"
    done = penstock(site, "fails")
    assert done.returncode == 2 and "wild-penstock 2.5 failed: KeyError" in done.stderr
    assert "to the authors of wild-penstock" in done.stderr and "Traceback" not in done.stderr


RUBBISH = """
import os
import shutil
import click
from types import SimpleNamespace
from toy_penstock import frontend as toy, dataset as numbers
from penstock.errors import InputError
from penstock.frontends import Exported

def export(source, settings, example, into):
    how = source.spec.partition(":")[2]
    if how == "own":
        raise InputError("my-own", "these are my own words", do="read them")
    done = toy.export(SimpleNamespace(spec="toy:3"), settings, example, into)
    if how == "file":
        into.write_bytes(b"rubbish" * 100)
    return {"none": None, "text": "rubbish", "nothing": Exported(None, {}, {}, {})}.get(how, done)

def quantize(model, batches, settings, into):
    how = os.environ["HOW"]
    if how == "file":
        into.write_bytes(b"x" * 1000)
    elif how == "folder":
        into.mkdir()
    else:
        shutil.copy(model, into)
    return [1, 2, 3] if how == "list" else {}

def opened(spec, settings, progress):
    how = spec.partition(":")[2]
    print("a word on standard output", flush=True)
    os.write(1, b"another")
    if how == "close":
        os.close(1)
        os.close(2)
    given = {"none": lambda: None, "dict": lambda: {"a": 1}}
    return given.get(how, lambda: numbers.open("toy-data:300", settings, progress))()

frontend = SimpleNamespace(__doc__="Odd.", claims=lambda spec: spec.startswith("rubbish:"), tools=dict, export=export)
dataset = SimpleNamespace(__doc__="Odd.", claims=lambda spec: spec.startswith("rubbish:"), open=opened)
quantizer = SimpleNamespace(__doc__="Odd.", available=lambda: "", quantize=quantize)
"""


def test_what_is_none_of_what_was_asked_for_is_told_with_their_name(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = {kind: f"rubbish = rubbish_penstock:{kind[:-1]}" for kind in ("frontends", "datasets", "quantizers")}
    install(site, "rubbish-penstock", entries, {"rubbish_penstock.py": RUBBISH})
    assert penstock(site, "export", "toy:2", "-o", "m.onnx").returncode == 0
    before = {path.name for path in site.parent.iterdir()}

    def refused(*words: str, told: str) -> None:
        done = penstock(site, *words)
        assert done.returncode == 2 and "internal" not in done.stderr and told in done.stderr, done.stderr
        assert {path.name for path in site.parent.iterdir()} == before, "nothing stays behind"

    for how, told in (("none", "gave no facts of its export"), ("text", "gave no facts"), ("nothing", "gave no facts"),
                      ("file", "wrote what can't be opened: this is no ONNX model")):  # fmt: skip
        wrong = [["export", f"rubbish:{how}", "-o", "n.onnx"]]
        wrong += [["build", f"rubbish:{how}", "-o", "b"]] if how in ("none", "file") else []
        for words in wrong:
            refused(*words, told=f"error: the frontend 'rubbish' of rubbish-penstock 2.5 {told}")
    for how, told in (("none", "gave no Dataset but a NoneType"), ("dict", "gave no Dataset but a dict")):
        refused(
            "build",
            "m.onnx",
            "--data",
            f"rubbish:{how}",
            "-o",
            "b",
            told=f"error: the data set 'rubbish' of rubbish-penstock 2.5 {told}",
        )
    ways = {
        "file": "wrote what can't be opened",
        "folder": "wrote no model",
        "as it was": "gave the model back as it was",
    }
    for how, told in {**ways, "list": "failed: TypeError"}.items():
        monkeypatch.setenv("HOW", how)
        told = f"error: the quantizer 'rubbish' of rubbish-penstock 2.5 {told}"
        refused("quantize", "m.onnx", "--method", "rubbish", "-o", "q.onnx", told=told)
    done = penstock(site, "export", "rubbish:own", "-o", "n.onnx")
    assert "these are my own words" in done.stderr and "explain" not in done.stderr, "there is nothing on that id"
    rest = ["--backends", "onnxruntime", "--method", "rubbish"]
    built = result(penstock(site, "build", "toy:2", "--data", "rubbish:close", "-o", "out", *FAST, *rest))
    assert built["chosen"] and any("'rubbish' of rubbish-penstock 2.5" in note for note in built["notes"]), built[
        "notes"
    ]


def test_they_are_found_by_a_path_of_this_process_alone(site: Path) -> None:
    code = f"import sys; sys.path.insert(0, {str(site)!r}); from penstock.cli import main; main(sys.argv[1:])"
    for words in (["export", "toy:2", "-o", "m.onnx"], ["list", "frontends"], ["optimize", "m.onnx", "-o", "n.onnx"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *words], cwd=site.parent, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0 and "StopIteration" not in done.stdout, done.stdout + done.stderr


ENDING = """
import os
import sys
from types import SimpleNamespace
from penstock.passes import PassResult

def passing(run):
    return SimpleNamespace(__doc__="Odd.", PHASE="clean", AFTER=(), run=run)

ends, leaves = passing(lambda model: os.abort()), passing(lambda model: sys.exit(0))
rule = SimpleNamespace(__doc__="Odd.", PHASE="clean", AFTER=(), OPERATORS=("Relu",),
                       rewrite=lambda node, site: sys.exit(0))
runs = []

def run(feeds):
    runs.append(1)
    if len(runs) == 3:
        os._exit(7)
    return [next(iter(feeds.values()))[:, :3] * 0.5]

def end(*arguments):
    os.abort() if os.environ.get("ABORT") else os._exit(0)

frontend = SimpleNamespace(__doc__="Odd.", claims=lambda spec: spec.startswith("ends:"), tools=dict, export=end)
dataset = SimpleNamespace(__doc__="Odd.", claims=lambda spec: spec.startswith("ends:"), open=end)
quantizer = SimpleNamespace(__doc__="Odd.", available=lambda: "", quantize=end)
later = SimpleNamespace(__doc__="Odd.", ROLE="candidate", FORMATS=("onnx",), available=lambda: "", facts=lambda: {},
                        load=lambda model, deployment: SimpleNamespace(run=run, actual=dict, close=lambda: None))
"""


def test_what_ends_the_process_later_is_named_and_a_pass_or_a_backend_ends_no_build(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = "ends = ending_penstock:ends\nleaves = ending_penstock:leaves\nleaves-too = ending_penstock:rule"
    entries = {"passes": passes, "backends": "later = ending_penstock:later"}
    entries |= {kind: f"ends = ending_penstock:{kind[:-1]}" for kind in ("frontends", "datasets", "quantizers")}
    install(site, "ending-penstock", entries, {"ending_penstock.py": ENDING})
    built = result(
        penstock(
            site, "build", "toy:2", "--data", "toy-data:300", "-o", "out", "--backends", "onnxruntime,later", *FAST
        )
    )
    told = " ".join(built["notes"])
    assert "left out ends: it took its process down: the process was ended by SIGABRT" in told
    assert "failed leaves at the whole model: taken back: SystemExit" in told, told
    assert re.search(r"failed leaves-too at \S+: SystemExit", told), told
    (row,) = [row for row in built["deployments"] if row["deployment"]["name"] == "fp32@later"]
    assert "took its process down: the process ended with code 7" in row["verdicts"][0]["measured"]["reason"]
    assert built["chosen"]
    assert penstock(site, "export", "toy:2", "-o", "m.onnx").returncode == 0
    for words, who in (  # nothing can go on without it; who it was is told
        (["export", "ends:x", "-o", "x.onnx"], "frontend"), (["build", "ends:x", "-o", "b"], "frontend"),
        (["build", "toy:2", "--data", "ends:x", "-o", "b"], "data set"),
        (["quantize", "m.onnx", "-o", "x.onnx", "--method", "ends"], "quantizer"),
    ):  # fmt: skip
        for ends, how in ({"ABORT": "1"}, "was ended by SIGABRT"), ({}, "ended with code 0 and no answer"):
            monkeypatch.delenv("ABORT", raising=False)
            for name, value in ends.items():
                monkeypatch.setenv(name, value)
            done = penstock(site, *words)
            told = f"error: the {who} 'ends' of ending-penstock 2.5 took its process down: the process {how}"
            assert done.returncode == 2 and told in done.stderr, done.stderr
    assert not (site.parent / "x.onnx").exists() and not (site.parent / "b").exists()
    files = {"gone_penstock.py": "import os\nos._exit(9)\n"}
    install(site, "exits-penstock", {"commands": "gone = gone_penstock:command"}, files)
    done = penstock(site, "gone")
    assert done.returncode == 3 and "ended with code 9" in done.stderr


def test_a_runtime_that_ends_the_process_at_its_import_is_listed_and_left_out(site: Path) -> None:
    (site / "openvino").mkdir()
    (site / "openvino" / "__init__.py").write_text("import os\nos.abort()\n")
    (shown,) = [
        one for one in result(penstock(site, "list", "backends", "--json"))["backends"] if one["name"] == "openvino"
    ]
    assert shown["problem"] == "openvino doesn't import: the process was ended by SIGABRT"
    built = result(penstock(site, "build", "toy:2", "-o", "out", *FAST))
    assert not any(row["deployment"]["backend"] == "openvino" for row in built["deployments"]) and built["chosen"]
    done = penstock(site, "build", "toy:2", "-o", "other", "--backends", "openvino", *FAST)
    assert done.returncode == 3 and "SIGABRT" in json.loads(done.stdout)["error"]["do"]
    looked = result(penstock(site, "doctor", "--json"))
    assert "SIGABRT" in json.dumps(looked)


def test_without_onnxruntime_each_command_that_needs_it_says_so(site: Path) -> None:
    assert penstock(site, "export", "toy:2", "-o", "m.onnx").returncode == 0
    (site / "onnxruntime").mkdir()
    (site / "onnxruntime" / "__init__.py").write_text("raise ImportError('libgomp.so.1: cannot open')\n")
    for words in (
        ["build", "toy:2", "-o", "out", "--no-quantize", "--dry-run"], ["build", "toy:2", "-o", "out", "--no-quantize"],
        ["optimize", "m.onnx", "-o", "slim.onnx", "--for", "ort"], ["quantize", "m.onnx", "-o", "int8.onnx"],
        ["verify", "m.onnx", "--against", "m.onnx"], ["bench", "m.onnx"],
    ):  # fmt: skip
        done = penstock(site, *words)
        assert done.returncode == 3 and "libgomp" in done.stderr and "Traceback" not in done.stderr, words
    for words in (["inspect", "m.onnx"], ["optimize", "m.onnx", "-o", "slim.onnx"], ["check", "m.onnx"]):
        assert penstock(site, *words).returncode == 0, words


def test_the_page_names_every_kind() -> None:
    page = (ROOT / "docs" / "writing-a-plug-in.md").read_text()
    assert set(re.findall(r'"penstock\.(\w+)"\]', page)) == set(registry.KINDS)

"""Everyday comfort: the plan of a build, a first settings file, the schema, completion, colours, quiet and loud."""

import json
import os
import re
import select
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import jsonschema
import numpy as np
import pytest

from penstock import cli, history, python_outline, settings, starting
from penstock.cli import run
from penstock.schema import schema

ROOT = Path(__file__).parents[2]
FAST = ["--bench-seconds", "0.05", "--no-footprint", "--min-rounds", "3", "--warmup-calls", "3", "-q"]
FAST += ["--backends", "onnxruntime"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: ModuleType) -> Path:
    monkeypatch.chdir(tmp_path)
    tiny.save(tiny.mlp(), tmp_path / "m.onnx")
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "d.npz", x=rng.normal(size=(300, 6)).astype(np.float32), y=rng.integers(0, 3, 300))
    return tmp_path


def plan(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[dict[str, str], dict]:
    capsys.readouterr()
    assert run(["build", *arguments, *FAST, "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["result"]["plan"]
    return {step["name"]: step["state"] for step in found["steps"]}, found


# --- the plan


def test_a_plan_before_the_first_build_writes_nothing(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    states, found = plan(capsys, "m.onnx", "-o", "out")
    assert set(states.values()) == {"will run"} and found["seconds"] is None
    assert not Path("out").exists() and not list(Path(os.environ["PENSTOCK_CACHE"]).rglob("*"))
    assert run(["build", "m.onnx", "-o", "out", *FAST, "--dry-run"]) == 0
    assert "no estimate yet" in capsys.readouterr().out


def test_a_plan_agrees_with_the_build(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["m.onnx", "--data", "d.npz", "-o", "out"]
    assert run(["build", *words, *FAST]) == 0
    before = {path: path.stat().st_mtime_ns for path in Path("out").rglob("*")}
    states, found = plan(capsys, *words)
    assert set(states.values()) == {"done"} and found["changed"] == []
    states, found = plan(capsys, *words, "--per-tensor")
    done = {name for name, state in states.items() if state == "done"}
    assert done == {"export", "trial", "optimize"} and found["changed"] == ["quantize.per_channel"]
    assert found["seconds"] is not None and found["seconds"] > 0
    assert {path: path.stat().st_mtime_ns for path in Path("out").rglob("*")} == before
    other, found = plan(capsys, *words[:-1], "new")
    assert {name for name, state in other.items() if state == "cached"} == {"export", "optimize", "quantize"}
    assert other["bench"] == "will run" and not Path("new").exists()
    assert run(["build", *words, "--per-tensor", *FAST, "--json"]) == 0
    assert done <= set(json.loads(capsys.readouterr().out)["result"]["resumed"]) <= done | {"place"}


def test_a_plan_restores_nothing_that_is_gone(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["m.onnx", "--data", "d.npz", "-o", "out"]
    assert run(["build", *words, *FAST]) == 0
    answers = Path("out/golden/outputs.npz")
    answers.unlink()
    before = {path: path.stat().st_mtime_ns for path in Path("out").rglob("*")}
    states, _ = plan(capsys, *words)
    assert states["place"] == "done" and {states[name] for name in ("golden", "verify", "bench")} == {"will run"}
    assert {path: path.stat().st_mtime_ns for path in Path("out").rglob("*")} == before
    assert run(["build", *words, *FAST]) == 0 and answers.is_file()


def test_what_a_build_would_refuse_its_plan_refuses(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("bad.onnx").write_bytes(b"nonsense")
    for words in (["absent.onnx"], ["m.onnx", "--data", "absent.npz"], ["m.onnx", "--max-drop", "1"]):
        assert run(["build", *words, "-o", "out", *FAST, "--dry-run"]) == 2
    assert not Path("out").exists()


@pytest.mark.torch
@pytest.mark.parametrize(
    ("text", "words", "id"),
    [("class Net(torch.nn.Module): ...", ["net.py:Nope"], "no-such-name"),
     ("class Net(torch.nn.Module): ...", ["net.py:Net"], "no-example"),
     ("class Net(torch.nn.Module): ...", ["net.py:Net", "--input", "x:float32[b,3]"], ""),
     ("class Net(torch.nn.Module): ...\ndef example_inputs(): ...", ["net.py:Net"], ""),
     ("from somewhere import Base\nclass Net(Base): ...", ["net.py:Net"], ""),
     ("from somewhere import *", ["net.py:Nope"], ""), ("def net(): ...", ["net.py:net"], ""),
     ("if True:\n    from a.b import c as Net", ["net.py:Net"], ""), ("globals()['Net'] = 1", ["net.py:Net"], ""),
     ("locals()['Alias'] = 1", ["net.py:Alias"], ""),
     ("import helpers\nhelpers.register(__name__)", ["net.py:Alias"], ""),
     ("import sys\nsys.modules[__name__].Alias = 1", ["net.py:Alias"], ""),
     ("def make():\n    global Alias\n    Alias = 1", ["net.py:Alias"], ""),
     ("from mybase import Module\nclass Net(Module): ...", ["net.py:Net"], ""),
     ("class nn:\n    class Module: ...\nclass Net(nn.Module): ...", ["net.py:Net"], ""),
     ("def given(cls): return cls\n@given\nclass Net(torch.nn.Module): ...", ["net.py:Net"], ""),
     ("class Net(", ["net.py:Net"], "not-python")],
)  # fmt: skip
def test_a_plan_looks_at_the_users_file_without_running_it(
    text: str, words: list[str], id: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What surely isn't there is told; where the text leaves it open, the plan stands."""
    Path("net.py").write_text(f"import torch\n{text}\nopen('ran', 'w')\n")
    capsys.readouterr()
    assert run(["build", *words, "-o", "out", *FAST, "--dry-run", "--json"]) == (2 if id else 0)
    shown = json.loads(capsys.readouterr().out)
    assert shown.get("error", {}).get("id", "") == id and not Path("ran").exists()


@pytest.mark.torch
@pytest.mark.parametrize("head", [b"\xef\xbb\xbf", b"# -*- coding: latin-1 -*-\n# \xe9\n"])
def test_a_plan_reads_a_file_in_its_own_encoding(head: bytes, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("net.py").write_bytes(head + b"import torch\nclass Net(torch.nn.Module): ...\n")
    assert run(["build", "net.py:Net", "--input", "x:float32[b,3]", "-o", "out", *FAST, "--dry-run"]) == 0
    assert run(["init", "net.py", "--yes", "-o", "made.toml"]) == 0


def test_a_number_that_is_none_is_told_under_the_flag_that_was_given(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["optimize", "m.onnx", "-o", "x.onnx", "--opset", "abc"]) == 2
    assert "error: --opset wants a whole number, got 'abc'" in capsys.readouterr().err


def test_two_error_ids_are_no_model_and_node(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["explain", "baked-in-size", "branch-lost"]) == 2
    shown = capsys.readouterr().err
    assert "'baked-in-size' is the id of an error, not a model" in shown and "one at a time" in shown


def test_estimates_are_of_this_source_and_damage_is_passed_over(home: Path) -> None:
    cache = home / "cache"
    history.remember(cache, "m.onnx", {"export": 2.0, "bench": 3.0, "place": 0.0})
    history.remember(cache, "other.onnx", {"export": 50.0})
    with (cache / history.NAME).open("ab") as file:
        file.write(b'{"source": "m.onnx", "machine"\n\xff\xfe\n[]\n')
    history.remember(cache, "m.onnx", {"export": 1.0})
    assert history.recall(cache, "m.onnx") == {"export": 1.0, "bench": 3.0, "place": 0.0}
    assert history.recall(home / "nowhere", "m.onnx") == {}


def test_the_history_stays_small(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "LONGEST", 2000)
    for number in range(100):
        history.remember(home / "cache", "m.onnx", {"export": float(number + 1)})
    assert (home / "cache" / history.NAME).stat().st_size < 2500
    assert history.recall(home / "cache", "m.onnx") == {"export": 100.0}


# --- a first settings file


def test_init_then_build(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["init", "m.onnx", "--data", "d.npz", "--yes"]) == 0
    text = Path("penstock.toml").read_text()
    assert "input   x:float32" in text and 'source = "m.onnx"' in text
    table = tomllib.loads(text)
    assert table["data"] == {"data": "d.npz"} and table["select"] == {"objective": "latency", "max_drop": 1.0}
    for section in settings.SECTIONS:
        for field in settings.fields(section):
            assert re.search(rf"^(# )?{field.name} = ", text, re.M), field.name
            assert f"# {field.help}" in text
    uncommented = re.sub(r"^# (\w+ = (?!\"\"$).*)$", r"\1", text.replace("# weights", "#weights"), flags=re.M)
    jsonschema.validate(tomllib.loads(uncommented), schema())
    assert run(["build", "-o", "out", *FAST, "--dry-run"]) == 0
    assert run(["build", "-o", "out", *FAST]) in (0, 1)
    assert Path("out/penstock.lock.toml").is_file()


def test_init_overwrites_nothing(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("penstock.toml").write_text("mine")
    assert run(["init", "m.onnx", "--yes"]) == 2
    assert Path("penstock.toml").read_text() == "mine" and "--force" in capsys.readouterr().err
    assert run(["init", "m.onnx", "--yes", "--force"]) == 0
    assert "mine" not in Path("penstock.toml").read_text()


def test_init_finds_modules_without_running_the_file(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("net.py").write_text(
        "raise SystemExit('never run')\nimport torch\nfrom torch import nn\nclass Block(nn.Module): pass\n"
        "class Other: pass\nclass Net(Block): pass\n"
    )
    assert python_outline.read(Path("net.py")).modules == ["Block", "Net"]
    assert run(["init", "net.py", "--yes", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["result"]["source"] == "net.py:Net"
    (home / "cifar-10-batches-bin").mkdir()
    assert starting.nearby(home) == "", "an empty folder is no data set"
    (home / "cifar-10-batches-bin" / "data_batch_1.bin").write_bytes(b"")
    assert run(["init", "net.py:Net", "--yes", "--force", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["result"]["data"] == "cifar-10-batches-bin"


@pytest.mark.parametrize(
    ("source", "text", "id"),
    [("absent.onnx", None, "no-such-file"), ("absent.py", None, "no-such-file"), ("n.py", "x = (", "not-python"),
     ("n.py", "x = 1", "no-such-name"), ("bad.onnx", "nonsense", "not-onnx"), (None, None, "no-source")],
)  # fmt: skip
def test_init_refuses_what_is_no_model(
    source: str | None, text: str | None, id: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("m.onnx").unlink()
    if text is not None and source is not None:
        Path(source).write_text(text)
    assert run(["init", *([source] if source else []), "--yes", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["id"] == id
    assert not Path("penstock.toml").exists()


def test_init_asks_three_questions_on_a_terminal(home: Path) -> None:
    import pty

    code = "import sys; from penstock.cli import main; main(sys.argv[1:])"
    for answers, exit_code in ((b"m.onnx\nd.npz\nsize\n", 0), (b"m.onnx\n\x03", 130)):
        Path("penstock.toml").unlink(missing_ok=True)
        pid, terminal = pty.fork()
        if pid == 0:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # a run in the background ignores it, and hands that on
            signal.alarm(60)
            os.execv(sys.executable, [sys.executable, "-c", code, "init"])
        shown = b""
        for line in re.findall(rb"[^\n\x03]*\n|\x03", answers):
            while not shown.rstrip().endswith(b":"):
                shown += os.read(terminal, 1000)
            shown = b""
            os.write(terminal, line)
        try:
            while True:
                if select.select([terminal], [], [], 1.0)[0]:
                    if not os.read(terminal, 1000):
                        break
                elif exit_code == 130:  # an interrupt between the prompt and the read of the answer is not heard
                    os.write(terminal, b"\x03")
        except OSError:
            pass
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == exit_code
        os.close(terminal)
        assert Path("penstock.toml").exists() == (exit_code == 0)
        if exit_code == 0:
            table = tomllib.loads(Path("penstock.toml").read_text())
            assert table["select"]["objective"] == "size" and table["data"]["data"] == "d.npz"


# --- the schema


def test_the_schema_holds_for_what_there_is(home: Path) -> None:
    jsonschema.Draft202012Validator.check_schema(schema())
    assert run(["build", "m.onnx", "-o", "out", *FAST]) == 0
    for path in (ROOT / "examples" / "penstock.toml", Path("out/penstock.lock.toml")):
        jsonschema.validate(tomllib.loads(path.read_text()), schema())


@pytest.mark.parametrize(
    "table",
    [{"sauce": "m.onnx"}, {"export": {"opsett": 17}}, {"export": {"opset": 3}}, {"export": {"exporter": "other"}},
     {"seed": -1}, {"bench": {"threads": "many"}}, {"export": 3}],
)  # fmt: skip
def test_the_schema_refuses_what_the_settings_refuse(table: dict, home: Path) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(table, schema())
    import tomli_w

    Path("penstock.toml").write_text(tomli_w.dumps({"source": "m.onnx"} | table))
    assert run(["build", "-o", "out", *FAST, "--dry-run"]) == 2


# --- completion


def complete(line: str, *, kinds: bool = False) -> list[str]:
    words = line.split(" ")
    environ = os.environ | {
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
        "_PENSTOCK_COMPLETE": "bash_complete",
    }
    code = "import sys; from penstock.cli import main; sys.argv[0] = 'penstock'; main()"
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=False)
    return [row.partition(",")[0 if kinds else 2] for row in done.stdout.splitlines()]


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("penstock bui", ["build"]),
        ("penstock build --dry", ["--dry-run"]),
        ("penstock build --exporter ", ["auto", "dynamo", "torchscript"]),
        ("penstock build --backends onnxruntime,op", ["onnxruntime,openvino", "onnxruntime,openvino-bf16"]),
        ("penstock build --method o", ["ort"]),
        ("penstock build --skip fold-batchnorm,fold-c", ["fold-batchnorm,fold-constants"]),
        ("penstock build --data di", ["digits"]),
        ("penstock bench --backends open", ["openvino", "openvino-bf16"]),
        ("penstock explain baked-in-si", ["baked-in-size"]),
        ("penstock cache ", ["dir", "info", "prune"]),
    ],
)
def test_completion(line: str, offered: list[str]) -> None:
    assert complete(line) == offered


@pytest.mark.parametrize("command", ["build", "init", "export", "doctor", "build --data"])
def test_files_are_left_to_the_shell(command: str) -> None:
    """The script hands what is of the type "file" to the shell's own completion."""
    assert complete(f"penstock {command} mod", kinds=True) == ["file"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_call_penstock(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["completion", shell]) == 0
    assert f"_PENSTOCK_COMPLETE={shell}_complete" in capsys.readouterr().out


# --- colours, quiet and loud


def on_a_terminal(arguments: list[str], **environ: str) -> bytes:
    """Run a command with a terminal for stdout and stderr; return all that it wrote."""
    import pty

    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.update({"TERM": "xterm-256color"} | environ)
        code = "import sys; from penstock.cli import main; main(sys.argv[1:])"
        os.execv(sys.executable, [sys.executable, "-c", code, *arguments])
    shown = b""
    try:
        while data := os.read(terminal, 1000):
            shown += data
    except OSError:
        pass
    os.waitpid(pid, 0)
    os.close(terminal)
    return shown


COLOUR = re.compile(rb"\x1b\[[0-9;]*m")


@pytest.mark.parametrize(
    "arguments", [["inspect", "absent.onnx"], ["inspect", "m.onnx"], ["optimize", "m.onnx", "-o", "o.onnx"]]
)
def test_no_color(arguments: list[str], home: Path) -> None:
    assert not COLOUR.search(on_a_terminal(arguments, NO_COLOR="1"))


def test_a_terminal_has_colours(home: Path) -> None:
    assert COLOUR.search(on_a_terminal(["inspect", "absent.onnx"]))


COMMANDS = {
    "check": ["m.onnx"], "inspect": ["m.onnx"], "optimize": ["m.onnx", "-o", "o.onnx"],
    "quantize": ["m.onnx", "--data", "d.npz", "-o", "q.onnx"], "list": [], "verify": ["m.onnx", "--against", "m.onnx"],
    "bench": ["m.onnx", "--bench-seconds", "0.05", "--no-footprint"], "build": ["m.onnx", "-o", "out", *FAST[:-3]],
    "export": ["m.onnx", "-o", "e.onnx"], "schema": [], "init": ["m.onnx", "-o", "i.toml"], "doctor": [],
    "convert": ["m.onnx", "-o", "c.onnx", "--opset", "21"], "completion": ["bash"],
    "evaluate": ["m.onnx", "--data", "d.npz"], "write": ["m.onnx", "-o", "m.tflite"],
}  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_where_there_is_no_terminal_nothing_is_coloured_and_quiet_is_quiet(name: str, home: Path) -> None:
    code = "import sys; from penstock.cli import main; main(sys.argv[1:])"
    environ = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "FORCE_COLOR")}
    words = [sys.executable, "-c", code, name, *COMMANDS[name], "-q"]
    done = subprocess.run(words, env=environ, capture_output=True, check=False, timeout=300)
    assert done.returncode in (0, 1), done.stderr.decode()
    assert b"\x1b" not in done.stdout + done.stderr
    assert done.stderr == b"", "with -q only errors go to stderr"
    assert done.stdout


def test_every_command_was_asked() -> None:
    asked = {*COMMANDS} | {"zoo", "bisect", "cache", "env", "select", "diff", "explain", "search", "qat"}
    assert asked >= {*cli.COMMANDS}


EVIL = 'x\nexample = "pwn.py:f"\nbackends = ["reference"]\n#\x1b]0;owned\x07'


def test_init_lets_no_name_of_a_model_write_settings(
    home: Path, tiny: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny.mlp()
    model.graph.input[0].name = model.graph.node[0].input[0] = EVIL
    tiny.save(model, home / "evil.onnx")
    assert run(["init", "evil.onnx", "--yes"]) == 0
    assert "\x1b" not in capsys.readouterr().out
    table = tomllib.loads(Path("penstock.toml").read_text())
    assert {key for key, value in table.items() if value} == {"source", "select"}
    assert settings.read_file(Path("penstock.toml"))["source"] == "evil.onnx"


@pytest.mark.parametrize("arguments", [["zoo:nothing"], ["absent.pt2"], ["nomod"], ["m.onnx", "--data", "nowhere"]])
def test_init_writes_nothing_that_can_not_be_built(arguments: list[str], home: Path) -> None:
    assert run(["init", *arguments, "--yes"]) == 2
    assert not Path("penstock.toml").exists()


def test_the_time_is_that_of_the_same_file(home: Path, tiny: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    """Many models are called model.onnx."""
    for name in "ab":
        tiny.save(tiny.mlp(), home / name / "model.onnx")
    assert run(["build", "a/model.onnx", "-o", "out", *FAST]) == 0
    _, first = plan(capsys, "a/model.onnx", "-o", "other")
    _, second = plan(capsys, "b/model.onnx", "-o", "other")
    seconds = [{step["name"]: step["seconds"] for step in found["steps"]} for found in (first, second)]
    assert seconds[0]["bench"] is not None and seconds[1]["bench"] is None


@pytest.mark.parametrize("flags", [["-v"], ["-vq"], ["-qv"], ["--verbose"]])
def test_verbose_is_seen_in_any_form(flags: list[str], home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", "absent.onnx", *flags]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_verbose_shows_the_whole_traceback(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", "absent.onnx"]) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert run(["inspect", "absent.onnx", "-v"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_torch_that_does_not_import_is_told_by_doctor_and_export(tmp_path: Path) -> None:
    """It is installed, and a library of it is missing: exit code 3 and a cure, no fault of ours."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text('raise ImportError("libtorch.so: cannot open shared object")\n')
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "small.py").write_text("import torch\nclass Net(torch.nn.Module): ...\n")
    code = "import sys; from penstock.cli import main; main(sys.argv[1:])"
    for words, told in (
        (["doctor", "small.py:Net"], "blocked  torch: it can't be used: ImportError: libtorch.so"),
        (["export", "small.py:Net", "-o", "n.onnx"], "error: torch doesn't import: libtorch.so"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code, *words], cwd=tmp_path / "net", capture_output=True, text=True, check=False,
            env=os.environ | {"PYTHONPATH": str(tmp_path)}, timeout=300,
        )  # fmt: skip
        assert done.returncode == 3 and told in done.stdout + done.stderr, done.stdout + done.stderr

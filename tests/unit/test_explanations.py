"""Every error id that the source can raise is explained, and nothing else is."""

import ast
import json
import re
from pathlib import Path

import pytest

import penstock
from penstock import explanations
from penstock.cli import run

HOME = Path(penstock.__file__).parent
ID = re.compile(r"[a-z0-9]+(-[a-z0-9]+)+|internal")


def raised() -> dict[str, str]:
    """Return the ids that are given to an error, a finding or a refusal, with a place of each."""
    found = {}
    for path in sorted(HOME.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            if not (name.endswith("Error") or name in ("Finding", "refusal", "refuse") or name.startswith("Worker")):
                continue
            for first in node.args[:1]:
                if isinstance(first, ast.Constant) and isinstance(first.value, str) and ID.fullmatch(first.value):
                    found.setdefault(first.value, f"{path.relative_to(HOME)}:{node.lineno}")
    return found


def test_every_id_is_explained() -> None:
    missing = {id: place for id, place in raised().items() if id not in explanations.everything()}
    assert missing == {}, "write what, why, cure and see of these into explanations.toml"


def test_nothing_else_is_explained() -> None:
    source = "\n".join(path.read_text() for path in HOME.rglob("*.py"))
    orphans = [id for id in explanations.everything() if f'"{id}"' not in source]
    assert orphans == []


def test_the_texts_say_something() -> None:
    known = explanations.everything()
    assert len(known) > 140
    for id, one in known.items():
        assert all(text.endswith(".") and len(text) > 15 for text in (one.what, one.why)), id
        assert one.cure and one.see and all(command.startswith("penstock ") for command in one.see), id
    assert len({one.what for one in known.values()}) > len(known) - 5, "no boilerplate"


def test_explain(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["explain", "baked-in-size"]) == 0
    out = capsys.readouterr().out
    titles = [line for line in out.splitlines() if line and not line.startswith(" ")]
    assert titles == ["NAME", "WHAT", "WHY", "CURE", "SEE ALSO"]
    assert run(["explain"]) == 0
    assert all(id in capsys.readouterr().out for id in ("baked-in-size",))
    assert run(["explain", "baked-in-sise", "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["id"] == "unknown-code" and "baked-in-size" in error["do"]


def test_an_operator_is_told_of(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["explain", "resize"]) == 0
    out = capsys.readouterr().out
    assert "ai.onnx::Resize, versions 10, 11, 13, 18, 19" in out
    assert "new attribute coordinate_transformation_mode=half_pixel" in out and "converted up:" in out
    assert run(["explain", "ai.onnx.ml::TreeEnsembleClassifier", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["result"]["operator"]
    assert (told["domain"], [one["since"] for one in told["versions"]]) == ("ai.onnx.ml", [1, 3, 5])
    assert told["deprecated"]
    assert run(["explain", "Softmax", "--json"]) == 0
    versions = json.loads(capsys.readouterr().out)["result"]["operator"]["versions"]
    assert "attribute axis=1 became axis=-1" in versions[-1]["changes"] and versions[-1]["down"]


@pytest.mark.parametrize(("name", "said"), [
    ("com.microsoft::FusedConv", "isn't standard"), ("Resise", "did you mean Resize"),
    ("baked-in-sise", "did you mean baked-in-size"),
])  # fmt: skip
def test_what_is_neither_is_said_so(name: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["explain", name]) == 2
    assert said in capsys.readouterr().err


def test_a_message_says_where_to_learn_more(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", "absent.onnx"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "  more:  penstock explain no-such-file"

"""Every hostile file ends within 10 s and 1 GB in a result or one clear message; no text of it steers a terminal."""

import json
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import hostile_data  # noqa: F401 (its attacks register themselves)
import hostile_graphs  # noqa: F401
import hostile_limits  # noqa: F401
import numpy as np
import pytest
from forked import RESIDENT_BYTES, SECONDS, Ended, Server, server
from hostile import ATTACKS, Attack

COMMANDS = (["check"], ["inspect"], ["inspect", "--json"], ["optimize", "-o", "slim.onnx"])
MOST_TEXT = 200_000  # characters, all tables included
FAULTS = 50  # bit flips and cuts of each of the two real models
LONG = 0.3  # seconds: text and JSON come of the same work; of what takes longer only the one or the other is made


@pytest.fixture(scope="module")
def penstock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with server(tmp_path_factory.mktemp("attacks")) as running:
        yield running


def harmless(ended: Ended) -> None:
    told = f"{ended.arguments}: {ended.text[:2000]!r}"
    assert ended.code in (0, 1, 2, 3), f"exit code {ended.code} after {ended.seconds:.1f} s: {told}"
    spent = f"{ended.seconds:.1f} s ({ended.busy_seconds:.1f} s of work)"
    assert ended.seconds <= SECONDS, f"{spent}: {told}"
    assert ended.peak_bytes <= RESIDENT_BYTES, f"{ended.peak_bytes / 1e6:.0f} MB: {told}"
    assert "Traceback" not in ended.text and "internal error" not in ended.text, told
    assert "CANARY" not in ended.text, told
    assert len(ended.text) <= MOST_TEXT or "--json" in ended.arguments, f"{len(ended.text)} characters: {told}"
    raw = {letter for letter in ended.text if letter != "\n" and unicodedata.category(letter) in ("Cc", "Cf", "Cs")}
    assert not raw, f"control characters {raw}: {told}"
    if ended.code == 2 and "--json" not in ended.arguments and ended.arguments[0] != "check":
        lines = [line for line in ended.stderr.splitlines() if line]
        assert lines[0].startswith("error: ") and 3 <= len(lines) <= 4, told
        assert lines[-1].startswith("  more:  penstock explain "), told
        assert all(len(line) <= 1000 for line in lines), told


def refusals(ended: Ended) -> set[str]:
    """Return the ids of what ``check --json`` refused."""
    found = json.loads(ended.stdout)
    if "error" in found:
        return {found["error"]["id"]}
    return {entry["id"] for entry in found["result"]["findings"] if entry["severity"] == "refused"}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=lambda attack: attack.name)
def test_an_attack(attack: Attack, penstock: Server, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    path = attack.build(folder)
    assert path is not None
    checked = penstock.run("check", str(path), "--json")
    harmless(checked)
    refused = refusals(checked)
    if attack.refused:
        assert refused & {*attack.refused}, f"expected {attack.refused}, found {refused}"
    if attack.opened:
        assert not refused
    took = {"check": checked.seconds}
    for command, *options in sorted(COMMANDS, key=lambda words: "--json" in words, reverse=len(attack.name) % 2 == 1):
        if took.get(command, 0.0) > LONG:
            continue
        ended = penstock.run(command, str(path), *options)
        took[command] = ended.seconds
        harmless(ended)
        assert (ended.code == 2) >= bool(refused), "what check refuses, every command refuses"
        if attack.opened:
            assert ended.code == 0, ended.text


def test_there_are_enough() -> None:
    assert len(ATTACKS) >= 40


@pytest.mark.shared
@pytest.mark.parametrize("kind", ["hostile/*", "models/*/model.onnx"])
def test_the_shared_files(kind: str, shared: Path, penstock: Server) -> None:
    """The models are optimized in test_optimize_real_models, which looks at more."""
    paths = sorted(shared.glob(kind))
    assert len(paths) >= 5
    for path in paths:
        for command, *options in COMMANDS if kind.startswith("hostile") else COMMANDS[:3]:
            ended = penstock.run(command, str(path), "-q", *options)
            harmless(ended)
            assert ended.code == 0 or kind.startswith("hostile"), ended.text


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """Flip up to 8 bits, or cut the end off, or repeat or drop a piece."""
    changed = bytearray(data)
    kind = int(rng.integers(4))
    a, b = sorted(int(place) for place in rng.integers(0, len(data), 2))
    b = min(b, a + 200)
    if kind == 0:
        del changed[b:]
    elif kind == 1:
        changed[a:a] = changed[a:b]
    elif kind == 2:
        del changed[a:b]
    else:
        for place in rng.integers(0, len(data), int(rng.integers(1, 9))):
            changed[int(place)] ^= 1 << int(rng.integers(8))
    return bytes(changed)


@pytest.mark.shared
@pytest.mark.parametrize("name", ["ort-crop-and-resize-loop", "onnxscript-functions-if"])
def test_damaged_files(name: str, shared: Path, penstock: Server, tmp_path: Path) -> None:
    """Two small models with bodies and functions, damaged in every way: most of their bytes are structure.

    All are looked at, every third is optimized too, which takes ten times as long.
    """
    data = (shared / "models" / name / "model.onnx").read_bytes()
    rng = np.random.default_rng(len(name))
    codes = []
    for number in range(FAULTS):
        path = tmp_path / f"{number}.onnx"
        path.write_bytes(damaged(data, rng))
        for command, *options in (COMMANDS[0], COMMANDS[1 + number % 2], *([COMMANDS[3]] if number % 3 == 0 else [])):
            ended = penstock.run(command, str(path), *options)
            harmless(ended)
            codes.append(ended.code)
    assert 0 in codes and 2 in codes


def test_the_server_sees_what_goes_wrong(penstock: Server, tmp_path: Path) -> None:
    """The measure itself is held against what it must find."""
    ended = penstock.run("check", str(tmp_path / "none.onnx"))
    assert ended.code == 2 and re.search(r"there is no such file", ended.stderr)
    killed = penstock.run("check", "/dev/null/none", seconds=0.001)
    assert killed.code in (-9, 2)

"""The cache as a user sees it: where it is, what it holds, and how it is pruned."""

import json
import os
import time
from pathlib import Path

import pytest

from penstock import cli
from penstock.store import Cache, Made


def filled(root: Path) -> Cache:
    cache = Cache(root)
    for age_days, key in ((40, "aa" * 32), (10, "bb" * 32), (0, "cc" * 32)):
        cache.put(key, lambda into: (into / "model").write_bytes(b"x" * 1000) and Made({}))  # type: ignore[func-returns-value]
        used = time.time() - age_days * 86_400
        os.utime(cache.folder(key) / "entry.json", (used, used))
    return cache


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = cli.run([*arguments])
    return code, capsys.readouterr().out


def test_dir_and_info(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path)
    monkeypatch.setenv("PENSTOCK_CACHE", str(tmp_path))
    assert run(capsys, "cache", "dir") == (0, f"{tmp_path}\n")
    code, out = run(capsys, "cache", "info", "--json")
    result = json.loads(out)["result"]
    assert code == 0 and len(result["entries"]) == 3 and result["size_bytes"] > 3000
    assert result["entries"][0]["key"] == "aa" * 32


@pytest.mark.parametrize(
    ("flags", "left"),
    [
        (["--older-than", "30"], {"bb", "cc"}),
        (["--older-than", "5"], {"cc"}),
        (["--max-size", "2.5KB"], {"cc", "bb"}),
        (["--all"], {"cc"}),  # used a moment ago: a build may be reading it
        (["--all", "--dry-run"], {"aa", "bb", "cc"}),
    ],
)
def test_prune(flags: list[str], left: set[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache = filled(tmp_path)
    size = cache.entries()[0].size_bytes
    flags = [f"{2 * size + 1}" if flag == "2.5KB" else flag for flag in flags]
    assert run(capsys, "cache", "prune", *flags, "--cache", str(tmp_path))[0] == 0
    assert {kept.key[:2] for kept in cache.entries()} == left


@pytest.mark.parametrize("flags", [[], ["--max-size", "much"], ["--older-than", "-1"], ["--older-than", "nan"]])
def test_prune_refuses_what_says_nothing(flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    filled(tmp_path)
    assert run(capsys, "cache", "prune", *flags, "--cache", str(tmp_path))[0] == 2
    assert len(Cache(tmp_path).entries()) == 3


def test_use_counts_as_use(tmp_path: Path) -> None:
    cache = filled(tmp_path)
    assert cache.get("aa" * 32) is not None
    assert cache.entries()[0].key == "bb" * 32


def test_leftovers_of_killed_builds_go(tmp_path: Path) -> None:
    cache = filled(tmp_path)
    old, new = tmp_path / "scratch" / "penstock-old", tmp_path / "scratch" / "penstock-new"
    old.mkdir(parents=True)
    new.mkdir()
    os.utime(old, (1, 1))
    cache.prune(older_than_s=1e9, max_bytes=None)
    assert not old.exists() and new.exists()

"""Files of an npm package: only those that are wanted, only those that were pinned, and nothing left of a failure."""

import hashlib
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from penstock import environment
from penstock.cli import run
from penstock.errors import MissingError
from penstock.progress import SILENT

Put = Callable[[dict[str, bytes | str]], None]
CONTENT = b"export default 1;\n"


@pytest.fixture
def put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Put:
    """Let there be an npm that hands out an archive of the test's own, and an environment that wants a file of it."""
    pinned, archive, bin = tmp_path / "pinned", tmp_path / "thing-1.0.0.tgz", tmp_path / "bin"
    for folder in (pinned, bin):
        folder.mkdir()
    digest = hashlib.sha256(CONTENT).hexdigest()
    (pinned / "thing.toml").write_text(
        f'summary = "A thing"\npackage = "thing"\nversion = "1.0.0"\n[files]\n"dist/a.mjs" = "{digest}"\n'
    )
    npm = bin / "npm"
    npm.write_text(f'#!/bin/sh\n[ "$1 $2 $3" = "pack thing@1.0.0 --pack-destination" ] || exit 9\ncp {archive} "$4"\n')
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin}:/usr/bin:/bin")
    monkeypatch.setattr(environment, "PINNED", pinned)
    monkeypatch.setenv("PENSTOCK_ENVIRONMENTS", str(tmp_path / "made"))

    def write(members: dict[str, bytes | str]) -> None:
        with tarfile.open(archive, "w:gz") as made:
            for name, data in members.items():
                info = tarfile.TarInfo(name)
                if isinstance(data, str):
                    info.type, info.linkname = tarfile.SYMTYPE, data
                    made.addfile(info)
                else:
                    info.size = len(data)
                    made.addfile(info, io.BytesIO(data))

    return write


def test_only_the_wanted_files_are_taken(put: Put, capsys: pytest.CaptureFixture[str]) -> None:
    put({"package/dist/a.mjs": CONTENT, "package/dist/b.mjs": b"no", "package/../../../evil": b"no", "/evil": b"no"})
    assert environment.problem("thing") == "penstock env add thing"
    assert run(["env", "add", "thing", "-q"]) == 0
    assert "1 package in" in capsys.readouterr().out
    found = environment.find("thing")
    assert (found.state, found.packages, found.summary) == ("", {"thing": "1.0.0"}, "A thing")
    assert sorted(path.name for path in found.folder.iterdir()) == ["a.mjs", "environment.json"]
    assert sorted(path.name for path in found.folder.parent.iterdir()) == [".thing.lock", "thing"]
    (found.folder / "a.mjs").unlink()
    assert environment.problem("thing") == "penstock env add thing  # its a.mjs is gone"
    assert environment.add("thing", SILENT).state == "" and environment.remove("thing")
    assert not found.folder.exists()


@pytest.mark.parametrize(("members", "said"), [
    ({"package/dist/a.mjs": b"something else"}, "not the file that was pinned"),
    ({"package/dist/b.mjs": CONTENT}, "package/dist/a.mjs is not in it"),
    ({"package/dist/a.mjs": "/etc/passwd"}, "package/dist/a.mjs is not in it"),
])  # fmt: skip
def test_what_is_not_as_pinned_leaves_nothing(members: dict[str, bytes | str], said: str, put: Put) -> None:
    put(members)
    with pytest.raises(MissingError, match=said):
        environment.add("thing", SILENT)
    assert [path.name for path in environment.home().iterdir()] == [".thing.lock"]


def test_an_archive_that_is_cut_off(put: Put, tmp_path: Path) -> None:
    put({"package/dist/a.mjs": CONTENT * 1000})
    archive = tmp_path / "thing-1.0.0.tgz"
    archive.write_bytes(archive.read_bytes()[:60])
    with pytest.raises(MissingError, match="its archive can't be read"):
        environment.add("thing", SILENT)


def test_an_npm_that_fails_is_told(put: Put) -> None:
    with pytest.raises(MissingError, match=r"the environment 'thing' can't be made: .*thing-1"):
        environment.add("thing", SILENT)


def test_without_npm_it_tells_what_to_install(put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MissingError, match="npm is not installed") as caught:
        environment.add("thing", SILENT)
    assert "apt-get install npm" in caught.value.do and not environment.find("thing").folder.exists()

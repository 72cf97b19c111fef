"""Places: relative, never absolute, the innermost line that is the user's."""

import sys
import sysconfig
from pathlib import Path

import pytest

import penstock
from penstock import places


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("src/app/net.py", "src/lib/blocks.py", "apart/far.py", "site-packages/timm/vit.py"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("one\n  two\n")
    monkeypatch.syspath_prepend(str(tmp_path / "src"))
    monkeypatch.chdir(tmp_path / "src" / "app")
    return tmp_path


def test_the_folder_of_the_source_comes_first_then_the_nearest_import_folder(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tree / "src" / "app"
    assert places.place(f"{root}/net.py", 2, root) == "net.py:2"
    assert places.place(f"{tree}/src/lib/blocks.py", 1, root) == "lib/blocks.py:1"
    monkeypatch.syspath_prepend(str(tree))
    assert places.place(f"{tree}/src/lib/blocks.py", 1, root) == "lib/blocks.py:1", "the nearest"
    assert places.text("lib/blocks.py:2") == "lib/blocks.py:2: two"


def test_what_lies_in_no_import_folder_is_told_by_its_name(tree: Path) -> None:
    assert places.place(f"{tree}/apart/far.py", 7, tree / "src" / "app") == "far.py:7"


def test_a_link_is_the_same_file(tree: Path) -> None:
    (tree / "link").symlink_to(tree / "src")
    assert places.place(f"{tree}/link/app/net.py", 2, (tree / "src" / "app").resolve()) == "net.py:2"


def test_libraries_are_not_the_users(tree: Path) -> None:
    frames = [
        (f"{sysconfig.get_path('stdlib')}/json/decoder.py", 3),
        (f"{tree}/site-packages/timm/vit.py", 4),
        (f"{Path(penstock.__file__).parent}/pipeline.py", 5),
        ("<string>", 6),
        ("torch/csrc/x.cpp", 7),
    ]
    assert [places.place(file, line) for file, line in frames] == [""] * 5
    assert places.innermost([*frames, (f"{tree}/src/app/net.py", 1)]).endswith("net.py:1")
    installed = tree / "site-packages"
    assert places.place(f"{installed}/timm/vit.py", 4, installed, "timm") == "timm/vit.py:4", "the source itself"
    assert sys.path[0] == str(tree / "src")

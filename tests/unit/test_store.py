"""Writes are whole or not at all; the cache notices damage; a build folder is nobody else's."""

import errno
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from penstock import store
from penstock.errors import StoreError
from penstock.ledger import Done
from penstock.store import BuildFolder, Cache, Made

KEY = "ab" + "0" * 62


def full(*args: object, **kwargs: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def making(text: str, reads: dict[str, str] | None = None, calls: list[str] | None = None):
    def make(into: Path) -> Made:
        if calls is not None:
            calls.append(text)
        (into / "sub").mkdir()
        (into / "sub" / "model.onnx").write_text(text)
        return Made({"fact": text}, {}, reads or {})

    return make


def held(cache: Cache) -> str:
    return (cache.folder(KEY) / "files" / "sub" / "model.onnx").read_text()


# --- writes


@pytest.mark.parametrize("step", ["os.fsync", "os.replace", "os.chmod"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "file"
    store.write_bytes(path, b"old")
    monkeypatch.setattr(step, full)
    with pytest.raises(StoreError) as caught:
        store.write_bytes(path, b"new")
    assert caught.value.id == "disk-full" and caught.value.do
    monkeypatch.undo()
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_copy_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, source = tmp_path / "file", tmp_path / "source"
    path.write_bytes(b"old")
    source.write_bytes(b"new")
    monkeypatch.setattr("shutil.copyfileobj", full)
    with pytest.raises(StoreError, match="disk is full"):
        store.copy_file(source, path)
    assert path.read_bytes() == b"old" and sorted(p.name for p in tmp_path.iterdir()) == ["file", "source"]


def test_writes_make_folders_and_equal_values_give_equal_bytes(tmp_path: Path) -> None:
    store.write_json(tmp_path / "a" / "b.json", {"y": 1, "x": [2.5, None]})
    store.write_json(tmp_path / "c.json", {"x": [2.5, None], "y": 1})
    assert (tmp_path / "a" / "b.json").read_bytes() == (tmp_path / "c.json").read_bytes()
    assert json.loads((tmp_path / "c.json").read_text()) == {"x": [2.5, None], "y": 1}


def test_a_path_below_a_file_is_a_store_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError) as caught:
        store.write_bytes(tmp_path / "file" / "below", b"")
    assert caught.value.id == "not-a-folder" and "file" in caught.value.where


def test_a_folder_in_the_way_is_named_not_the_temporary_file(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(StoreError) as caught:
        store.write_bytes(tmp_path / "taken", b"")
    assert caught.value.where == str(tmp_path / "taken")


@pytest.mark.parametrize(
    ("code", "id"),
    [(errno.EACCES, "not-writable"), (errno.EROFS, "not-writable"), (errno.ENOSPC, "disk-full"), (errno.EIO, "file-error"),  # noqa: E501
     (errno.EDQUOT, "disk-full")],
)  # fmt: skip
def test_errors_of_the_system_are_explained(code: int, id: str, tmp_path: Path) -> None:
    with pytest.raises(StoreError) as caught, store.explained(tmp_path / "x"):
        raise OSError(code, os.strerror(code))
    assert caught.value.id == id and caught.value.where == str(tmp_path / "x") and caught.value.exit_code == 2


def test_scratch_is_gone_afterwards_even_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError), store.scratch(tmp_path / "s") as folder:
        (folder / "x").write_text("")
        raise KeyError
    assert list((tmp_path / "s").iterdir()) == []


def test_resuming_keeps_the_part_until_it_is_whole(tmp_path: Path) -> None:
    with pytest.raises(KeyError), store.resuming(tmp_path / "f") as file:
        file.write(b"half")
        raise KeyError
    assert not (tmp_path / "f").exists()
    with store.resuming(tmp_path / "f") as file:
        file.write(b"+half")
        with pytest.raises(StoreError, match="another process"), store.resuming(tmp_path / "f"):
            pass
    assert (tmp_path / "f").read_bytes() == b"half+half" and [p.name for p in tmp_path.iterdir()] == ["f"]


# --- the cache


def test_what_was_put_is_got_back(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    assert cache.get(KEY) is None
    made = cache.put(KEY, making("v"))
    assert cache.get(KEY) == made and made.facts == {"fact": "v"}
    assert [file.path for file in made.files] == ["sub/model.onnx"]
    assert held(cache) == "v" and list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.parametrize(
    "damage", ["changed", "same size", "gone", "entry torn", "entry of another shape", "entry not text", "other facts"]
)
def test_a_damaged_entry_is_noticed_dropped_and_redone(damage: str, tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.put(KEY, making("good"))
    file, entry = cache.folder(KEY) / "files/sub/model.onnx", cache.folder(KEY) / "entry.json"
    if damage == "changed":
        file.write_text("longer than before")
    elif damage == "same size":
        file.write_text("evil")
    elif damage == "gone":
        file.unlink()
    elif damage == "entry torn":
        entry.write_bytes(entry.read_bytes()[:20])
    elif damage == "entry of another shape":
        entry.write_text('{"files": 3}')
    elif damage == "other facts":  # JSON as good as before, of the right shape
        entry.write_text(entry.read_text().replace('"fact": "good"', '"fact": "evil"'))
    else:
        entry.write_bytes(b"\xff\xfe\x00")
    assert cache.get(KEY) is None
    assert not cache.folder(KEY).exists()
    cache.put(KEY, making("good"))
    assert cache.get(KEY) is not None and held(cache) == "good"


def test_a_changed_read_invalidates_and_the_next_put_replaces(tmp_path: Path) -> None:
    cache, read = Cache(tmp_path / "cache"), tmp_path / "net.py"
    read.write_text("one")
    cache.put(KEY, making("v1", {str(read): store.file_digest(read)}))
    assert cache.get(KEY) is not None
    read.write_text("two")
    assert cache.get(KEY) is None
    cache.put(KEY, making("v2", {str(read): store.file_digest(read)}))
    assert cache.get(KEY) is not None and held(cache) == "v2"
    read.unlink()
    assert cache.get(KEY) is None


def test_an_exception_goes_through_and_nothing_is_kept(tmp_path: Path) -> None:
    cache = Cache(tmp_path)

    def make(into: Path) -> Made:
        (into / "half").write_text("x")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cache.put(KEY, make)
    assert cache.get(KEY) is None and [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_who_comes_second_keeps_the_first_ones_entry(tmp_path: Path) -> None:
    """The first may be reading its files while the second ends: taking them away would harm it."""
    cache = Cache(tmp_path)

    def slow(into: Path) -> Made:
        Cache(tmp_path).put(KEY, making("first"))  # another process is faster
        return making("second")(into)

    returned = cache.put(KEY, slow)
    assert held(cache) == "first"
    assert returned == cache.get(KEY), "the entry returned describes what lies there"


def test_two_processes_putting_the_same_key_both_succeed(tmp_path: Path) -> None:
    code = f"""
import sys, time
from pathlib import Path
from penstock.store import Cache, Made
cache = Cache(Path({str(tmp_path)!r}))
def make(into):
    for i in range(20):
        (into / f"{{i}}.bin").write_bytes(b"x" * 1000)
    time.sleep(0.05)
    return Made({{}})
for n in range(8):
    key = f"{{n:064x}}"
    cache.put(key, make)
    entry = cache.get(key)
    assert entry is not None and len(entry.files) == 20, n
"""
    runs = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE) for _ in range(2)]
    errors = [run.communicate(timeout=120)[1].decode() for run in runs]
    assert [run.returncode for run in runs] == [0, 0], "\n".join(errors)
    assert not list((tmp_path / "scratch").iterdir())


def test_a_cache_that_cannot_be_written_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError):
        Cache(tmp_path / "file" / "cache").put(KEY, making("v"))


def test_a_full_disk_while_the_transform_writes_is_a_store_error(tmp_path: Path) -> None:
    def make(into: Path) -> Made:
        full()
        raise AssertionError

    with pytest.raises(StoreError, match="disk is full"):
        Cache(tmp_path).put(KEY, make)


def test_default_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PENSTOCK_CACHE", str(tmp_path / "named"))
    assert store.default_cache() == tmp_path / "named"
    monkeypatch.delenv("PENSTOCK_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert store.default_cache() == tmp_path / "penstock"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert store.default_cache() == tmp_path / ".cache" / "penstock"


# --- the build folder


def test_a_new_folder_is_made_and_an_empty_one_taken(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for root in (tmp_path / "a" / "b", tmp_path / "empty"):
        folder = BuildFolder(root)
        folder.open()
        folder.cut_ledger(0)
        folder.close()
        folder.open()  # an earlier build's folder
        folder.close()
        assert folder.read_ledger() == []


def test_a_foreign_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(StoreError) as caught:
        BuildFolder(tmp_path).open()
    assert caught.value.id == "not-a-build-folder" and "thesis.tex" in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_files_that_penstock_did_not_write_are_never_deleted(tmp_path: Path) -> None:
    mine = tmp_path / "out" / "models" / "fp32" / "notes.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    source = tmp_path / "cache"
    (source).mkdir()
    (source / "model.onnx").write_text("m")
    folder = BuildFolder(tmp_path / "out")
    try:
        folder.open()
        folder.adopt("fp32", source, store.list_files(source))
    except StoreError:
        pass  # refusing the folder is as good
    finally:
        folder.close()
    assert mine.read_text() == "mine"


def test_a_second_build_in_the_folder_is_refused_until_the_first_ends(tmp_path: Path) -> None:
    first, second = BuildFolder(tmp_path / "out"), BuildFolder(tmp_path / "out")
    first.open()
    with pytest.raises(StoreError) as caught:
        second.open()
    assert caught.value.id == "folder-in-use"
    first.close()
    second.open()
    second.close()


def test_a_lock_of_another_process_counts(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from penstock.store import BuildFolder\n"
        f"f = BuildFolder(Path({str(tmp_path / 'out')!r})); f.open(); print('held', flush=True); sys.stdin.read()"
    )
    run = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert run.stdout is not None and run.stdout.readline() == b"held\n"
    with pytest.raises(StoreError, match="another build"):
        BuildFolder(tmp_path / "out").open()
    run.kill()  # killed, not closed: the lock goes with it
    run.communicate()
    folder = BuildFolder(tmp_path / "out")
    folder.open()
    folder.close()


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StoreError) as caught:
            BuildFolder(root).open()
        assert caught.value.id == "not-a-folder"


def test_a_read_only_folder_is_a_store_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(self: Path, *args: object, **kwargs: object) -> io.BytesIO:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", denied)  # root may write everywhere, so permissions alone prove nothing
    with pytest.raises(StoreError) as caught:
        BuildFolder(tmp_path).open()
    assert caught.value.id == "not-writable" and caught.value.do


def test_a_full_disk_while_appending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = BuildFolder(tmp_path)
    folder.open()
    folder.cut_ledger(0)

    class Full(io.BytesIO):
        write = full  # type: ignore[assignment]

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda self, *args, **kwargs: Full())
        with pytest.raises(StoreError, match="disk is full"):
            folder.append(Done("s", "k"))
    folder.close()


def test_adopt_copies_what_differs_and_drops_what_is_stale(tmp_path: Path) -> None:
    source = tmp_path / "cache"
    (source / "sub").mkdir(parents=True)
    (source / "model.onnx").write_text("m")
    (source / "sub" / "w.data").write_text("w")
    folder = BuildFolder(tmp_path / "out")
    folder.open()
    files = store.list_files(source)
    home = folder.adopt("fp32", source, files)
    assert store.list_files(home) == files
    untouched = (home / "model.onnx").stat().st_mtime_ns
    (home / "sub" / "w.data").write_text("tampered")
    folder.adopt("fp32", source, files)
    assert store.list_files(home) == files and (home / "model.onnx").stat().st_mtime_ns == untouched
    (source / "sub" / "w.data").unlink()
    folder.adopt("fp32", source, store.list_files(source))
    assert [file.path for file in store.list_files(home)] == ["model.onnx"]
    folder.close()


def test_blobs_lie_under_their_digest(tmp_path: Path) -> None:
    import hashlib

    folder = BuildFolder(tmp_path)
    sha = folder.blob(b"data")
    assert sha == hashlib.sha256(b"data").hexdigest() and (tmp_path / "blobs" / sha).read_bytes() == b"data"
    assert folder.blob(b"data") == sha


def test_a_ledger_that_is_no_text_or_no_folder_is_an_error_of_ours(tmp_path: Path) -> None:
    from penstock.errors import PenstockError

    (tmp_path / "ledger.jsonl").write_bytes(b"\xff\xff")
    with pytest.raises(PenstockError):
        BuildFolder(tmp_path).read_ledger()
    with pytest.raises(PenstockError):
        BuildFolder(tmp_path / "ledger.jsonl").read_ledger()

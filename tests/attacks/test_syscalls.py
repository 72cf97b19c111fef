"""What penstock opens, writes and connects to, as the kernel sees it (strace)."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import hostile_data
import pytest
from hostile import save

import penstock

pytestmark = pytest.mark.strace
SOURCE = Path(penstock.__file__).parent
CALLS = (
    "open,openat,openat2,creat,socket,connect,rename,renameat,renameat2,unlink,unlinkat,link,linkat,symlink,symlinkat,"
    "mkdir,mkdirat,rmdir,truncate"
)
_LINE = re.compile(r'^\d+ +(\w+)\((.*)\) += (-?\d+)')  # fmt: skip
_PATH = re.compile(r'(?:<([^<>"]*)>, )?"((?:[^"\\]|\\.)*)"')  # with the folder that a relative one starts from
WRITING = re.compile(r"O_WRONLY|O_RDWR|O_CREAT|O_TRUNC|O_APPEND")
FREE = ("/dev/null", "/dev/urandom", "/dev/tty", "/dev/shm/", "/proc/self/", "/sys/")


@dataclass(frozen=True)
class Call:
    name: str
    text: str
    paths: tuple[str, ...]
    result: int


def traced(arguments: list[str], folder: Path, home: Path, **more: str) -> tuple[int, list[Call], str]:
    """Run penstock under strace in ``folder``; return exit code, system calls and what it printed."""
    home.mkdir(exist_ok=True)
    env = {key: text for key, text in os.environ.items() if not key.startswith(("PENSTOCK_", "XDG_"))}
    scratch = home / "tmp"
    scratch.mkdir(exist_ok=True)
    env |= {"HOME": str(home / "user"), "TMPDIR": str(scratch), "PENSTOCK_CACHE": str(home / "cache")}
    env |= {"PYTHONDONTWRITEBYTECODE": "1", **more}
    (home / "user").mkdir(exist_ok=True)
    log = home / "strace.log"
    program = [sys.executable, "-P", "-c", "import sys; from penstock.cli import main; main(sys.argv[1:])"]
    command = ["strace", "-f", "-qq", "-s", "4096", "-y", "-e", f"trace={CALLS}", "-o", str(log), *program, *arguments]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=500, check=False)
    calls = []
    for line in log.read_text(errors="replace").splitlines():
        if found := _LINE.match(line):
            name, inside, result = found.groups()
            paths = tuple(os.path.normpath(folder / base / path) for base, path in _PATH.findall(inside))
            calls.append(Call(name, inside, paths, int(result)))
    assert calls, f"strace saw nothing: {done.stderr}"
    return done.returncode, calls, done.stdout + done.stderr


def opened(calls: list[Call]) -> set[str]:
    return {path for call in calls if call.name.startswith(("open", "creat")) for path in call.paths}


def changed(calls: list[Call]) -> set[str]:
    """Return the paths that were opened for writing, made, renamed or removed, with success."""
    found = set()
    for call in calls:
        if call.result < 0 or call.name in ("socket", "connect"):
            continue
        if not call.name.startswith("open") or WRITING.search(call.text):
            found |= {path for path in call.paths if not path.startswith(FREE) and path != "/dev/shm"}
    return found


def inside(paths: set[str], *folders: Path) -> list[str]:
    """Return the paths that lie in none of the folders."""
    return sorted(p for p in paths if not any(p == str(f) or p.startswith(f"{f}/") for f in folders))


def networked(calls: list[Call]) -> list[str]:
    return [call.text for call in calls if call.name == "socket" and "AF_INET" in call.text]


LOCATIONS = ["../secret.bin", "ABSOLUTE", "sub/secret.bin", "soft.data", "hard.data", "/proc/self/mem"]


@pytest.mark.parametrize("location", LOCATIONS)
def test_nothing_outside_the_folder_is_opened(location: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    secret = hostile_data.outside(folder)
    (folder / "soft.data").symlink_to(secret)
    os.link(secret, folder / "hard.data")
    (folder / "sub").symlink_to(tmp_path)
    path = save(hostile_data.pointing(location=str(secret) if location == "ABSOLUTE" else location), folder)
    for command, *options in (["check"], ["inspect"], ["optimize", "-o", "slim.onnx"]):
        code, calls, text = traced([command, str(path), *options], folder, tmp_path / "home")
        assert code == 2 and "CANARY" not in text
        assert str(path) in opened(calls), "the trace doesn't see the model itself"
        names = {str(secret), *(str(folder / name) for name in ("soft.data", "hard.data", "sub/secret.bin"))}
        assert not names & opened(calls)
        assert "/proc/self/mem" not in opened(calls)
        assert not networked(calls)


@pytest.mark.shared
@pytest.mark.parametrize("command", [["check"], ["inspect"], ["optimize", "-o", "slim.onnx"]], ids=" ".join)
def test_shared_hostile_files_open_what_a_sound_one_opens(
    command: list[str], shared: Path, tiny: ModuleType, tmp_path: Path
) -> None:
    """Beside the model's folder and Python's own, nothing is opened that a sound model doesn't have opened too."""
    sound = tiny.save(tiny.mlp(), tmp_path / "sound" / "m.onnx")
    code, calls, text = traced([command[0], str(sound), *command[1:]], sound.parent, tmp_path / "home")
    assert code == 0, text
    usual = opened(calls)
    found = sorted((shared / "hostile").glob("*.onnx"))
    assert found
    for file in found:
        folder = tmp_path / file.stem
        folder.mkdir()
        shutil.copy(file, folder / "m.onnx")
        _, calls, _ = traced([command[0], str(folder / "m.onnx"), *command[1:]], folder, tmp_path / "home")
        more = {path for call in calls if call.name.startswith("open") and call.result >= 0 for path in call.paths}
        free = (folder, tmp_path / "home", Path(sys.prefix), Path(sys.base_prefix), SOURCE)
        assert not inside({path for path in more - usual if not path.startswith(FREE)}, *free), file.name
        assert not networked(calls)


def test_data_of_a_sound_model_is_all_that_is_opened(tiny: ModuleType, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    path = tiny.with_external(tiny.mlp(), folder / "m.onnx", "sub/w.data")
    (folder / "other.data").write_bytes(b"not asked for")
    (tmp_path / "beside.data").write_bytes(b"not asked for")
    for command, *options in (["check"], ["inspect"], ["optimize", "-o", "slim.onnx"]):
        code, calls, text = traced([command, str(path), *options], folder, tmp_path / "home")
        assert code == 0, text
        below = {p for p in opened(calls) if p.startswith(str(tmp_path)) and not p.startswith(str(tmp_path / "home"))}
        written = {p for p in below if "slim." in Path(p).name}
        # a library may open the folder itself to look up one that is named in it
        assert below - written <= {str(path), str(folder / "sub/w.data"), str(folder), str(folder / "sub")}
        assert not inside(changed(calls), folder, tmp_path / "home" / "tmp", tmp_path / "home" / "cache")
        assert not networked(calls)


@pytest.mark.parametrize("backends", ["onnxruntime,reference", "openvino"])
def test_a_build_writes_where_it_should_and_calls_nobody(backends: str, tiny: ModuleType, tmp_path: Path) -> None:
    if backends == "openvino":
        pytest.importorskip("openvino")
    path = tiny.save(tiny.mlp(), tmp_path / "model" / "m.onnx")
    build_is_contained([str(path)], backends, path.parent, tmp_path)


@pytest.mark.torch
def test_a_build_from_pytorch_writes_where_it_should_and_calls_nobody(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "net.py").write_text(
        "import torch\n\n\nclass Net(torch.nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.layer = torch.nn.Linear(6, 3)\n\n    def forward(self, x):\n        return self.layer(x)\n"
    )
    arguments = [f"{folder / 'net.py'}:Net", "--input", "x:float32[batch,6]"]
    build_is_contained(arguments, "onnxruntime,torch", folder, tmp_path)


def build_is_contained(arguments: list[str], backends: str, folder: Path, tmp_path: Path) -> None:
    out, home = tmp_path / "out", tmp_path / "home"
    quick = ["--min-rounds", "3", "--bench-seconds", "0.1", "-q"]
    options = ["-o", str(out), "--backends", backends, *quick]
    code, calls, text = traced(["build", *arguments, *options], folder, home)
    assert code in (0, 1), text
    assert (out / "ledger.jsonl").is_file()
    assert not networked(calls)
    assert not inside(changed(calls), out, home / "tmp", home / "cache")


def test_the_trace_sees_a_write_and_a_connection(tmp_path: Path) -> None:
    """The measure itself is held against what it must find."""
    module = tmp_path / "net.py"
    module.write_text("import socket\nsocket.socket()\nopen('here.txt', 'w').close()\nclass Net: pass\n")
    arguments = ["export", f"{module}:Net", "-o", "m.onnx", "--input", "x:float32[1,2]"]
    _, calls, _ = traced(arguments, tmp_path, tmp_path / "home")
    assert networked(calls) and str(tmp_path / "here.txt") in changed(calls)

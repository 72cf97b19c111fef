"""A model that never ends or asks for all memory is stopped with a message by every command that runs one."""

import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import hostile_data
import numpy as np
import pytest
from hostile import model, node, save, tensor
from onnx import TensorProto, helper

SECONDS, BYTES = 4, 600 << 20


def endless(folder: Path) -> Path:
    """A Loop that turns for ever as long as its input holds: no runtime can know that it won't end."""
    folder.mkdir()
    made = hostile_data._loop(2**63 - 1, [node("Relu", ["v"], ["w"])])
    made.graph.node.append(node("Add", ["y", "x"], ["z"]))
    made.graph.output[0].CopyFrom(hostile_data.value("z", ["k"]))
    return save(made, folder)


def endless_on(what: str, folder: Path) -> Path:
    """A Loop that ends on one sample, and never on several at a time, or never on samples beyond a bound."""
    folder.mkdir()
    floats, shape = TensorProto.FLOAT, ["n", 1]
    inner = helper.make_graph(
        [node("Identity", ["go"], ["on"]), node("Identity", ["v"], ["w"])], "loop",
        [hostile_data.value("i", [], TensorProto.INT64), hostile_data.value("go", [], TensorProto.BOOL),
         hostile_data.value("v", shape, floats)],
        [hostile_data.value("on", [], TensorProto.BOOL), hostile_data.value("w", shape, floats)],
    )  # fmt: skip
    seen = [node("Shape", ["x"], ["s"]), node("ReduceMax", ["s"], ["m"], keepdims=0)]
    if what == "a sample":
        seen = [node("ReduceMax", ["x"], ["m"], keepdims=0)]
    bound = np.int64(1) if what == "a batch" else np.float32(1.5)
    nodes = [*seen, node("Greater", ["m", "t"], ["more"]), node("Loop", ["trips", "more", "x"], ["y"], body=inner)]
    held = [tensor(np.int64(2**62), "trips"), tensor(bound, "t")]
    made = model(nodes, inputs=[hostile_data.value("x", shape)], outputs=[hostile_data.value("y", shape)], held=held)
    return save(made, folder)


def bomb(folder: Path) -> Path:
    """A Tile of the input to three gigabytes, of which one number comes out."""
    folder.mkdir()
    nodes = [node("Tile", ["x", "s"], ["big"]), node("ReduceMax", ["big"], ["y"], keepdims=1)]
    made = model(nodes, held=[tensor(np.array([800 << 20], np.int64), "s")])
    made.opset_import[0].CopyFrom(helper.make_opsetid("", 17))
    return save(made, folder)


def run(arguments: list[str], folder: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {f"PENSTOCK_CHECK_{key.upper()}": value for key, value in settings.items()}
    program = [sys.executable, "-P", "-c", "import sys; from penstock.cli import main; main(sys.argv[1:])"]
    return subprocess.run(
        [*program, *arguments], cwd=folder, env=env, capture_output=True, text=True, timeout=120, check=False
    )


def commands(path: Path, sound: Path) -> dict[str, list[str]]:
    return {
        "quantize": ["quantize", str(path), "-o", "int8.onnx"],
        "verify": ["verify", str(path), "--against", str(sound)],
        "verify against": ["verify", str(sound), "--against", str(path)],
        "bench": ["bench", str(path)],
        "build": ["build", str(path), "-o", "out"],
    }


@pytest.mark.parametrize("command", ["quantize", "verify", "verify against", "bench", "build"])
@pytest.mark.parametrize("attack", [endless, bomb])
def test_a_session_is_stopped(attack, command: str, tmp_path: Path) -> None:
    path = attack(tmp_path / "in")
    (tmp_path / "sound").mkdir()
    output = "z" if attack is endless else "y"
    sound = model([node("Relu", ["x"], [output])])
    sound.graph.output[0].CopyFrom(hostile_data.value(output))
    arguments = commands(path, save(sound, tmp_path / "sound"))[command]
    began = time.monotonic()
    limits = ["--session-seconds", str(SECONDS)] if attack is endless else ["--session-memory-bytes", str(BYTES)]
    ended = run([*arguments, "-q", *limits], tmp_path)
    told = ended.stdout + ended.stderr
    assert ended.returncode == 2, told
    assert ("more than 4 s" if attack is endless else "of memory") in told, told
    assert "Traceback" not in told and str(path) in told
    assert time.monotonic() - began < 60
    assert not (tmp_path / "int8.onnx").exists()


@pytest.mark.parametrize(
    ("what", "command"),
    [
        ("a batch", "verify"), ("a batch", "bench"), ("a batch", "build"), ("a batch", "quantize"),
        ("a sample", "verify"), ("a sample", "build"),
    ],
)  # fmt: skip
def test_a_session_that_ends_on_one_sample_only(what: str, command: str, tmp_path: Path) -> None:
    """What is tried is what is run: all golden samples, in their batches; to quantize, a batch of each size."""
    path = endless_on(what, tmp_path / "in")
    arguments = {"verify": ["verify", str(path), "--against", str(path)], "bench": ["bench", str(path)],
                 "build": ["build", str(path), "-o", "out"],
                 "quantize": ["quantize", str(path), "-o", "int8.onnx"]}  # fmt: skip
    began = time.monotonic()
    ended = run([*arguments[command], "-q", "--session-seconds", str(SECONDS)], tmp_path)
    told = ended.stdout + ended.stderr
    assert ended.returncode == 2 and "more than 4 s" in told and str(path) in told, told
    assert time.monotonic() - began < 60


@pytest.mark.parametrize("how", ["flag", "environment", "file"])
@pytest.mark.parametrize("command", ["inspect", "optimize", "quantize", "verify", "bench", "export"])
def test_every_command_holds_to_the_limits(command: str, how: str, tiny: ModuleType, tmp_path: Path) -> None:
    path = tiny.save(tiny.conv(), tmp_path / "m.onnx")
    more = {"optimize": ["-o", "o.onnx"], "quantize": ["-o", "o.onnx"], "export": ["-o", "o.onnx"],
            "verify": ["--against", str(path)]}  # fmt: skip
    arguments = [command, str(path), "-q", *more.get(command, [])]
    settings = {}
    if how == "flag":
        arguments += ["--max-nodes", "3"]
    elif how == "environment":
        settings = {"max_nodes": "3"}
    else:
        (tmp_path / "penstock.toml").write_text("[check]\nmax_nodes = 3\n")
    ended = run(arguments, tmp_path, **settings)
    assert ended.returncode == 2 and "more than 3 nodes" in ended.stderr, ended.stdout + ended.stderr


def test_the_limits_reach_the_worker(tiny: ModuleType, tmp_path: Path) -> None:
    from penstock import precheck, worker
    from penstock.errors import InputError

    path = tiny.save(tiny.conv(), tmp_path / "m.onnx")
    argument = {"model": str(path), "seed": 0}
    assert worker.call("penstock.trial:serve_sizes", argument, timeout_s=60) is not None
    with precheck.limits(precheck.CheckSettings(max_nodes=3)), pytest.raises(InputError) as caught:
        worker.call("penstock.trial:serve_sizes", argument, timeout_s=60)
    assert caught.value.id == "too-many-nodes"

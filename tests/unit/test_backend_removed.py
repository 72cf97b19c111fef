"""Each backend taken away: who asks for it by name gets exit code 3 and the line that brings it back, nothing else."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import onnxruntime
import pytest

from penstock import registry
from penstock.backends._provider import ProviderSession
from penstock.cli import run

LIBRARIES = {
    "litert": ("ai_edge_litert", "pip install 'penstock[litert]'"),
    "onnxruntime": ("onnxruntime", "pip install onnxruntime"),
    "openvino": ("openvino", "pip install 'penstock[openvino]'"),
    "openvino-bf16": ("openvino", "pip install 'penstock[openvino]'"),
    "torch": ("torch", "pip install torch==2.13.0"),
    "torch-compile": ("torch", "pip install torch==2.13.0"),
}
ENVIRONMENTS = {
    "iree": "iree", "onnxruntime-cuda": "onnxruntime-gpu", "onnxruntime-openvino": "onnxruntime-openvino",
    "onnxruntime-tensorrt": "onnxruntime-gpu", "onnxruntime-web": "onnxruntime-web",
    "onnxruntime-webgpu": "onnxruntime-web", "tflite-micro": "tflite-micro", "tvm": "tvm",
}  # fmt: skip
MODULE = "import torch\n\ndef net():\n    return torch.nn.Linear(2, 2)\n"


def test_all_backends_but_the_reference_evaluator_are_taken_away() -> None:
    """It is of the onnx package, which nothing here goes without."""
    assert {*LIBRARIES, *ENVIRONMENTS, "reference"} == {*registry.names("backends")}


COMMANDS = ("verify", "matrix", "bench", "bisect", "evaluate", "build")
CASES = [
    (name, command) for name in (*LIBRARIES, *ENVIRONMENTS) for command in COMMANDS
    if not name.startswith("torch") or command in ("matrix", "build")  # these run the source itself
]  # fmt: skip


@pytest.mark.parametrize(("name", "command"), CASES)
def test_what_is_asked_for_and_missing_is_exit_code_3(
    name: str, command: str, tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    model = str(tiny.save(tiny.mlp(), tmp_path / "m.onnx"))
    words = {
        "verify": ["verify", model, "--against", model, "--backend", name],
        "matrix": ["verify", model, "--against", model, "--backends", f"reference,{name}"],
        "bench": ["bench", model, "--backends", f"onnxruntime,{name}"],
        "bisect": ["bisect", model, "--backend", name, "--against", "reference"],
        "evaluate": ["evaluate", model, "--data", str(tmp_path / "data.npz"), "--backend", name],
        "build": ["build", model, "--backends", f"onnxruntime,{name}"],
    }
    labels = np.arange(64) % 3
    np.savez(tmp_path / "data.npz", x=np.ones((64, 6), np.float32), y=labels)
    if name.startswith("torch"):
        (tmp_path / "net.py").write_text(MODULE)
        source = f"{tmp_path / 'net.py'}:net"
        words["matrix"] = ["verify", model, "--against", source, "--backends", name]
        words["build"] = ["build", source, "--input", "x:float32[batch,2]", "--backends", name]
    if name in LIBRARIES:
        library, line = LIBRARIES[name]
        for one in [known for known in sys.modules if known.partition(".")[0] == library]:
            monkeypatch.delitem(sys.modules, one)
        monkeypatch.setitem(sys.modules, library, None)
    else:
        monkeypatch.setattr("penstock.backends._nvidia.devices", lambda: 1)
        monkeypatch.setenv("PENSTOCK_ENVIRONMENTS", str(tmp_path / "none"))
        line = f"penstock env add {ENVIRONMENTS[name]}"
    out = ["-o", str(tmp_path / "out")] if command == "build" else []
    assert run([*words[command], *out, "--quiet"]) == 3
    told = capsys.readouterr()
    assert line in told.err.replace("\n         ", " ") and not told.out
    assert "Traceback" not in told.err


@pytest.mark.parametrize("lacks", ["the build", "the library"])
@pytest.mark.parametrize("command", ["verify", "matrix", "bench", "build"])
def test_a_provider_that_can_not_be_loaded_is_exit_code_3(
    command: str, lacks: str, tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """ONNX Runtime would go on without it; its environment is there, and a library in it isn't."""
    model, name = str(tiny.save(tiny.mlp(), tmp_path / "m.onnx")), "onnxruntime-openvino"

    def load(*given: object) -> object:
        path, real = str(given[0].path), onnxruntime.InferenceSession  # type: ignore[attr-defined]
        with monkeypatch.context() as patch:
            if lacks == "the library":  # the build names it, and goes on without
                patch.setattr(onnxruntime, "get_available_providers", lambda: ["ItsProvider"])
                patch.setattr(onnxruntime, "InferenceSession", lambda path, options, **_: real(path, options))
            return ProviderSession("It", path, 1, [("ItsProvider", {})], "instead", (), name)

    backend = registry.load("backends", name)
    monkeypatch.setattr(backend, "load", load)
    monkeypatch.setattr(backend, "available", lambda: "")
    monkeypatch.setattr(backend, "facts", dict)
    words = {
        "verify": ["verify", model, "--against", model, "--backend", name],
        "matrix": ["verify", model, "--against", model, "--backends", f"onnxruntime,{name}"],
        "bench": ["bench", model, "--backends", f"onnxruntime,{name}"],
        "build": ["build", model, "--backends", f"onnxruntime,{name}", "-o", str(tmp_path / "out"), "--no-quantize"],
    }
    assert run([*words[command], "--quiet"]) == 3
    told = capsys.readouterr().err
    assert ("couldn't be loaded by ONNX Runtime" in told) == (lacks == "the library")
    assert "ItsProvider" in told and f"penstock env add {name}" in told

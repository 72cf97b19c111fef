"""Exports a module that a test writes down, and returns what was made of it or what was told."""

import textwrap
from pathlib import Path

import pytest

from penstock.errors import PenstockError
from penstock.frontends import Exported, Source
from penstock.stages.export import ExportSettings, export

HEAD = "import math\nimport numpy as np\nimport torch\nfrom torch import nn\nimport torch.nn.functional as F\n"


def write(folder: Path, body: str, name: str = "net.py") -> Path:
    """Write a source file with the usual imports."""
    path = folder / name
    path.write_text(HEAD + textwrap.dedent(body))
    return path


def made(folder: Path, body: str, *inputs: str, **settings: object) -> Exported:
    """Export ``Net`` of the body; with TorchScript, which is 20 times faster, unless told otherwise."""
    settings.setdefault("exporter", "torchscript")
    for key in ("example",):
        if settings.get(key):
            settings[key] = f"{folder}/net.py:{settings[key]}"
    if settings.get("probe"):
        settings["probe"] = (f"{folder}/net.py:{settings['probe']}",)
    source = Source(f"{write(folder, body)}:Net")
    return export(source, ExportSettings(input=inputs, **settings), folder / "net.onnx")  # type: ignore[arg-type]


def told(folder: Path, body: str, *inputs: str, **settings: object) -> PenstockError:
    """Export, and return the error that this has to end with."""
    with pytest.raises(PenstockError) as caught:
        made(folder, body, *inputs, **settings)
    return caught.value


def forward(code: str, init: str = "") -> str:
    """Return a module with this code in its forward."""
    start = f"    def __init__(self):\n        super().__init__()\n        {init}\n" if init else ""
    lines = "".join(f"        {line}\n" for line in textwrap.dedent(code).strip().splitlines())
    return f"class Net(nn.Module):\n{start}    def forward(self, x):\n{lines}"

"""Which line of the user's code a node comes from: read out of the exporters' stack traces. Imports torch."""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import torch

from penstock import places

if TYPE_CHECKING:
    import onnx_ir as ir

STACK = "pkg.torch.onnx.stack_trace"  # where dynamo's exporter leaves a node's stack, the outermost frame first
PYTHON = re.compile(r'File "(?P<file>[^"\n]+)", line (?P<line>\d+)')
TRACED = re.compile(r"^(?P<file>[^\n<>]+?)\((?P<line>\d+)\): ", re.M)  # TorchScript's, the innermost frame first


@dataclass(frozen=True, slots=True)
class Home:
    """Where the user's code lies; lines are told relative to ``root``. ``package`` names an installed package in it."""

    root: Path
    package: str = ""

    def place(self, file: str, line: int) -> str:
        """Return ``file:line`` relative to the root, or an empty text for code that isn't the user's."""
        return places.place(file, line, self.root, self.package)

    def innermost(self, frames: Iterable[tuple[str, int]]) -> str:
        """Return the first place that is the user's, of frames from the innermost outwards."""
        return places.innermost(frames, self.root, self.package)

    def text(self, place: str) -> str:
        """Return ``file:line: the text of that line``."""
        return places.text(place)


def of_stack(text: str, home: Home) -> str:
    """Find the innermost frame of the user's in a stack trace of dynamo's or of TorchScript's, as ``file:line``."""
    return home.innermost(_frames(text))


def _frames(text: str) -> list[tuple[str, int]]:
    traced = [(match["file"], int(match["line"])) for match in TRACED.finditer(text)]
    python = [(match["file"], int(match["line"])) for match in PYTHON.finditer(text)]
    return [*traced, *reversed(python)]


def of_error(error: BaseException, home: Home) -> str:
    """Find the innermost frame of the user's where an exception was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    return home.innermost((frame.filename, frame.lineno or 0) for frame in reversed(frames))


Frames = list[tuple[str, int, str]]  # file, line and function, from the innermost outwards


def stack(frame: FrameType | None) -> Frames:
    """List a frame and all around it."""
    found = []
    while frame is not None:
        found.append((frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name))
        frame = frame.f_back
    return found


def here(home: Home) -> str:
    """Find the innermost frame of the user's on the stack of the moment."""
    return home.innermost((file, line) for file, line, _ in stack(sys._getframe(1)))


_LAYERS = str(Path(torch.__file__).parent / "nn")
# they call the forward of others, and decide nothing
_CALLS = {cls.__init__.__code__.co_filename for cls in (torch.nn.Module, torch.nn.Sequential)}


def layer(frames: Iterable[tuple[str, int]], home: Home) -> str:
    """Name the file of the layer of torch's that the user's innermost line calls, if one stands behind these frames."""
    found = ""
    for file, line in frames:
        if home.place(file, line):
            return found
        if file.startswith(_LAYERS) and file not in _CALLS:
            found = f"torch{file.removeprefix(str(Path(_LAYERS).parent))}"
    return ""


def layer_of_node(node: ir.Node, home: Home) -> str:
    """Name the layer of torch's that a node of a fresh export comes from, if it comes from one."""
    return layer(_frames(node.metadata_props.get(STACK) or node.doc_string or ""), home)


def of_node(node: ir.Node, home: Home) -> str:
    """Find the line that a node of a fresh export comes from."""
    return of_stack(node.metadata_props.get(STACK) or node.doc_string or "", home)

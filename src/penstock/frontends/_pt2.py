"""Open an exported program (.pt2) without running anything from it.

torch's own loader unpickles weights and constants that the archive marks as pickled, with all that pickle can do.
So the archive is looked through first, and only one whose tensors are plain bytes reaches the loader.
"""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import torch

from penstock.errors import InputError
from penstock.graph import first_line


def load_program(path: Path) -> torch.export.ExportedProgram:
    """Load an exported program. Raises ``InputError`` for a broken archive or one that holds pickled objects."""
    if not path.is_file():
        raise InputError("no-such-file", "there is no such file", where=str(path), do="check the path")
    try:
        _look_through(path)
        return torch.export.load(path)
    except InputError:
        raise
    except Exception as error:  # a parser meets arbitrary bytes: whatever it raises is about the file
        what = f"the exported program can't be read: {first_line(error)}"
        raise InputError("bad-pt2", what, where=str(path), do="write it anew with torch.export.save") from error


def _look_through(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        configs = [
            name for name in names if name.endswith(("model_weights_config.json", "model_constants_config.json"))
        ]
        if len(configs) < 2:
            raise InputError(
                "bad-pt2",
                "this is no archive of an exported program in today's format",
                where=str(path),
                do="write it anew with torch.export.save of torch 2.9 or later",
            )
        for name in configs:
            for tensor, entry in json.loads(archive.read(name)).get("config", {}).items():
                plain = not entry.get("use_pickle") and entry.get("tensor_meta") is not None
                if not plain:
                    raise _pickled(path, tensor)
        for name in names:
            if "/sample_inputs/" in name and name.endswith(".pt"):
                try:
                    torch.load(io.BytesIO(archive.read(name)), weights_only=True)
                except Exception as error:  # the weights-only loader refuses what is no plain data
                    raise _pickled(path, "its sample inputs") from error


def _pickled(path: Path, what: str) -> InputError:
    do = "export a program whose weights, constants and sample inputs are plain tensors"
    return InputError("pickled-pt2", f"{what} is a pickled object, which could run code", where=str(path), do=do)

"""PyTorch modules, exported programs and the zoo, through dynamo or TorchScript tracing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from penstock import python_outline
from penstock.errors import InputError, MissingError, UsageError, missing_extra
from penstock.frontends import Exported, Source
from penstock.graph import first_line

if TYPE_CHECKING:
    import numpy as np
    import torch

    from penstock.frontends._torch_source import Loaded
    from penstock.stages.export import ExportSettings


def claims(spec: str) -> bool:
    """Tell whether ``spec`` is ``zoo:name``, ``file.py:Class``, ``package.module:factory`` or a ``.pt2`` file."""
    if spec.endswith(".pt2"):
        return True
    head, _, name = spec.rpartition(":")
    return bool(head) and name.isidentifier() and (head == "zoo" or head.endswith(".py") or _is_module_path(head))


def _is_module_path(text: str) -> bool:
    return all(part.isidentifier() for part in text.split("."))


def need(source: Source) -> None:
    """Raise ``MissingError`` without torch, ``InputError`` or ``UsageError`` where the source isn't there."""
    head, _, name = source.spec.rpartition(":")
    path = Path(source.spec if source.spec.endswith(".pt2") else head)
    if path.suffix in (".py", ".pt2") and not path.is_file():
        raise InputError("no-such-file", "there is no such file", where=str(path), do="check the path")
    if head == "zoo":
        from penstock import zoo

        zoo.trained(name)
    if path.suffix == ".py":
        outline = python_outline.read(path)
        if outline.lacks(name):
            do = f"it has: {', '.join(outline.modules)}" if outline.modules else "name a class or a function of it"
            raise InputError("no-such-name", f"{path.stem} has no {name!r}", where=source.spec, do=do)
    need_torch()


def need_example(source: Source, settings: ExportSettings) -> None:
    """Raise ``UsageError`` where nothing can say what shapes the module takes; only asked where there is no data."""
    head, _, name = source.spec.rpartition(":")
    told = settings.input or settings.example
    if head.endswith(".py") and not told and python_outline.read(Path(head)).has_no_example(name):
        raise no_example()


def no_example() -> UsageError:
    """Return the error for a module whose inputs nobody describes."""
    do = "give --input 'x:float32[batch,3,32,32]', or --data, or define example_inputs() beside the module"
    return UsageError("no-example", "the module's input shapes are not known", do=do)


def tools() -> Mapping[str, str]:
    """Return the versions of torch, onnxscript and onnx-ir; absent ones are left out."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("torch", "onnxscript", "onnx-ir", "onnx"):
        try:
            found[name] = version(name).split("+")[0]
        except PackageNotFoundError:
            continue
    return found


def load_module(source: Source) -> Loaded:
    """Load the module that the user named, with its weights, in eval mode."""
    need_torch()
    from penstock.frontends._torch_source import load

    return load(source)


def export(source: Source, settings: ExportSettings, example: Mapping[str, np.ndarray] | None, into: Path) -> Exported:
    """Export the module and prove the result against it."""
    _imported()
    from penstock.frontends._torch_export import run

    return run(load_module(source), settings, example, into)


def need_torch() -> None:
    """Raise ``MissingError`` with the install line where torch or what writes its models is absent."""
    from importlib.util import find_spec

    for package in ("torch", "onnxscript"):
        if find_spec(package) is None:
            raise missing_extra(package, "torch", "a source in PyTorch")


def _imported() -> None:
    """Import torch; raise ``MissingError`` where it is absent, or there and doesn't import."""
    need_torch()
    try:
        import torch  # noqa: F401  # a broken wheel raises what it likes
    except Exception as error:
        do = "install it anew: pip install --force-reinstall torch==2.13.0"
        raise MissingError("missing-extra", f"torch doesn't import: {first_line(error)}", do=do) from error


def flat(outputs: object) -> list[torch.Tensor]:
    """Return the tensors of a module's result (a tensor, or tuples, lists and dicts of them), in order."""
    import torch
    from torch.utils import _pytree

    return [leaf for leaf in _pytree.tree_leaves(outputs) if isinstance(leaf, torch.Tensor)]

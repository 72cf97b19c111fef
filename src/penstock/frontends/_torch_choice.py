"""Which exporter a source goes through. Imports torch: load it inside functions only."""

from __future__ import annotations

import torch

from penstock.errors import UsageError


def need_exporter(loaded_program: bool, scripted: bool, exporter: str) -> str:
    """Settle on an exporter: what was asked for, or what the source needs. Raises ``UsageError`` where they differ."""
    if loaded_program and exporter == "torchscript":
        raise UsageError("wrong-exporter", "an exported program goes through dynamo", do="leave --exporter out")
    if scripted and exporter == "dynamo":
        what = "the source is scripted with torch.jit.script, which dynamo can't export"
        raise UsageError("wrong-exporter", what, do="leave --exporter out, or give --exporter torchscript")
    if exporter == "auto":
        return "torchscript" if scripted else "dynamo"
    return exporter


def is_scripted(module: torch.nn.Module) -> bool:
    """Tell whether a module or a function that its forward names is scripted: such control flow needs TorchScript.

    A function that is called by another name shows in the first run alone.
    """
    if any(isinstance(part, torch.jit.ScriptModule) for part in module.modules()):
        return True
    for part in module.modules():
        forward = getattr(type(part), "forward", None)
        code, names = getattr(forward, "__code__", None), getattr(forward, "__globals__", {})
        if code is not None and any(isinstance(names.get(name), torch.jit.ScriptFunction) for name in code.co_names):
            return True
    return False


def need_opset(error: BaseException) -> tuple[int, str]:
    """Return the opset from which on the TorchScript exporter knows an operator that it just refused, and its name."""
    import re

    told = re.search(r"Exporting the operator '(?P<op>[\w:]+)'.* added in version (?P<version>\d+)", str(error), re.S)
    return (int(told["version"]), told["op"]) if told else (0, "")

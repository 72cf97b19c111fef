"""Which way a module's Python goes: two runs step by step, and the line at which they part. Imports torch.

A branch or a loop over a size is lost without a word where an exporter evaluates it: the model is right for sizes that
go the same way, and wrong for others. Where it is wrong, the line is found by watching the user's own code run.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import torch

from penstock.frontends._torch_lines import Home
from penstock.frontends._torch_module import Feeds, run_module

MOST_STEPS = 200_000  # of one run; what comes later is not compared
_TORCH = Path(torch.__file__).parent
_DISPATCH = tuple(str(_TORCH / name) for name in ("_library", "_ops.py", "library.py", "_custom_op"))
_Step = tuple[CodeType, int, int]  # the function, the instruction's offset in it, its line


def parting(module: torch.nn.Module, home: Home, one: Feeds, two: Feeds) -> str:
    """Return the place after which the module goes another way on ``two`` than on ``one``, "" where it doesn't."""
    return _parting(steps(lambda: run_module(module, one), home), steps(lambda: run_module(module, two), home), home)


def parting_from(work: Callable[[], Any], module: torch.nn.Module, home: Home, feeds: Feeds) -> str:
    """Return the place after which ``work``, an export, takes the module another way than a plain run on ``feeds``."""
    return _parting(steps(work, home), steps(lambda: run_module(module, feeds), home), home)


def steps(work: Callable[[], Any], home: Home) -> list[_Step]:
    """Do the work and list the instructions of the user's that ran, but for those inside operators of the user's own.

    An operator's body is no part of the module's way: an exporter runs another function in its place. Empty where
    something else traces already (a debugger), or where the work fails.
    """
    if sys.gettrace() is not None:
        return []
    found: list[_Step] = []
    mine: dict[str, bool] = {}

    def within(frame: FrameType, event: str, _: Any) -> Any:
        if event == "opcode" and len(found) < MOST_STEPS:
            found.append((frame.f_code, frame.f_lasti, frame.f_lineno))
        return within

    def called(frame: FrameType, event: str, _: Any) -> Any:
        file = frame.f_code.co_filename
        if file not in mine:
            mine[file] = bool(home.place(file, 1))
        if event != "call":
            return None
        if not mine[file] or _of_an_operator(frame, mine):
            return None
        frame.f_trace_opcodes = True
        return within

    sys.settrace(called)
    try:
        work()
    except Exception:  # of the exporter or the module; it was told before
        return []
    finally:
        sys.settrace(None)
    return found


def _of_an_operator(frame: FrameType, mine: Mapping[str, bool]) -> bool:
    """Tell whether a function was called by torch's dispatcher, and not by the user's code or a module."""
    outer = frame.f_back
    while outer is not None and not mine.get(outer.f_code.co_filename, False):
        if outer.f_code.co_filename.startswith(_DISPATCH):
            return True
        outer = outer.f_back
    return outer is not None and outer.f_trace is None and _of_an_operator(outer, mine)


def _parting(one: list[_Step], two: list[_Step], home: Home) -> str:
    """Return the place of the last step before the first that differs; an end before the other's is no difference."""
    last: _Step | None = None
    for a, b in zip(one, two, strict=False):
        if a[:2] != b[:2]:
            return home.place(last[0].co_filename, last[2]) if last is not None else ""
        last = a
    return ""

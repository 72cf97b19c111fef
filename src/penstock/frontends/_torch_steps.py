"""Which way a module's Python goes: two runs step by step, and the line at which they part. Imports torch.

A branch or a loop over a size is lost without a word where an exporter evaluates it: the model is right for sizes that
go the same way, and wrong for others. Where it is wrong, the line is found by watching the user's own code run.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

import torch

from penstock.errors import PenstockError
from penstock.frontends._torch_lines import Home
from penstock.frontends._torch_module import Feeds, run_module

MOST_STEPS = 200_000  # of one run; what comes later is not compared
_Step = tuple[CodeType, int, int]  # the function, the instruction's offset in it, its line


def parting(module: torch.nn.Module, home: Home, one: Feeds, two: Feeds) -> str:
    """Return the place after which the module goes another way on ``two`` than on ``one``, "" where it doesn't."""
    return _parting(
        steps(lambda: run_module(module, one), module, home), steps(lambda: run_module(module, two), module, home), home
    )


def parting_from(work: Callable[[], Any], module: torch.nn.Module, home: Home, feeds: Feeds) -> str:
    """Return the place after which ``work``, an export, takes the module another way than a plain run on ``feeds``."""
    return _parting(steps(work, module, home), steps(lambda: run_module(module, feeds), module, home), home)


def steps(work: Callable[[], Any], module: torch.nn.Module, home: Home) -> list[_Step]:
    """Do the work and list the instructions of the user's that ran in the last call of the module's forward.

    Empty where something else traces already (a debugger), where forward isn't Python, or where the work fails.
    """
    code = getattr(getattr(type(module), "forward", None), "__code__", None)
    if code is None or sys.gettrace() is not None:
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
        if event != "call" or not mine[file]:
            return None
        if frame.f_code is code and not _inside(frame, code):
            found.clear()
        frame.f_trace_opcodes = True
        return within

    sys.settrace(called)
    try:
        work()
    except PenstockError:
        return []
    except Exception:  # of the exporter; it was told before
        return []
    finally:
        sys.settrace(None)
    return found


def _inside(frame: FrameType, code: CodeType) -> bool:
    """Tell whether a call of forward stands in another one of the same code: a part of the same kind."""
    outer = frame.f_back
    while outer is not None:
        if outer.f_code is code:
            return True
        outer = outer.f_back
    return False


def _parting(one: list[_Step], two: list[_Step], home: Home) -> str:
    """Return the place of the last step before the first that differs; an end before the other's is no difference."""
    last: _Step | None = None
    for a, b in zip(one, two, strict=False):
        if a[:2] != b[:2]:
            return home.place(last[0].co_filename, last[2]) if last is not None else ""
        last = a
    return ""

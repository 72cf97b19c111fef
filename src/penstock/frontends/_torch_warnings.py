"""What a tracer warns of: which of it is a loss, told with the user's line and the cure. Imports torch."""

from __future__ import annotations

import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch._ops import HigherOrderOperator
from torch.jit._trace import TracerWarning

from penstock.errors import InputError
from penstock.frontends._torch_cures import BRANCH, LOOP, SIZE, TENSOR, for_branch, for_size
from penstock.frontends._torch_eager import Leaves
from penstock.frontends._torch_lines import Frames, Home, here, stack

NUMBER = "a number that depends on the input: the trace keeps the example's"
NUMPY = "what numpy computes: the trace keeps the example's result"
# a tensor becomes something of Python's: what the warning says → what is lost if it depends on values, and the cure
CONVERSIONS = (
    ("to a Python boolean", "a branch: the trace keeps the side that the example takes", BRANCH),
    ("to a Python integer", NUMBER, TENSOR),
    ("to a Python index", NUMBER, TENSOR),
    ("to a Python float", NUMBER, TENSOR),
    ("to a Python number", NUMBER, TENSOR),
    ("to a Python list", "the values of a tensor: the trace keeps the example's", TENSOR),
    ("to a NumPy array", NUMPY, "compute it with torch"),
)  # fmt: skip
# what depends on sizes alone
SIZES = (
    ("Using len to get", "the length of a tensor: the trace keeps the example's", "write x.shape[0], not len(x)"),
    ("Iterating over a tensor", "the number of steps of a loop: the trace keeps the example's", LOOP),
)  # fmt: skip
CONSTANT = "registered as constants in the trace"
_TORCH = Path(torch.__file__).parent
# a method of a tensor that the user calls, and its printing: what they take out of it, the user takes
_PRINTING = str(_TORCH / "_tensor_str.py")
_THROUGH = {str(_TORCH / "_tensor.py"), str(_TORCH / "overrides.py"), _PRINTING}


@dataclass(frozen=True, slots=True)
class Watch:
    """What is known when a trace is judged: where the user's code lies, and what the module does as plain Python."""

    home: Home
    static: bool  # no size is to be free, so that none can be lost
    leaves: Callable[[], Leaves]


@dataclass(frozen=True, slots=True)
class _Heard:
    text: str
    place: str  # the user's innermost line
    in_torch: bool  # between that line and the warning stands code of torch's own
    printed: bool  # the tensor was made a text, for which torch asks it many things


@contextmanager
def losses_are_errors(watch: Watch) -> Iterator[None]:
    """Raise ``InputError`` for the first loss, when the trace has ended, well or not.

    Raised at once, it would come out of C++ code that goes on, and some would be lost. A check in torch's own code,
    such as that of a recurrent layer on its input's shape, is no loss by itself: the proof decides.
    """
    heard: list[_Heard] = []
    control: list[str] = []

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if issubclass(category, TracerWarning):
            frames = stack(sys._getframe(1))
            printed = any(file == _PRINTING for file, _, _ in frames)
            heard.append(_Heard(str(message), *_origin(frames, watch.home), printed))

    with warnings.catch_warnings(), _noting_operators(control, watch.home):
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", TracerWarning)
        warnings.showwarning = show
        try:
            yield
        except Exception as error:
            control += _in_operator(error, watch.home)
            if told := _first(heard, control, watch):
                raise told from error
            raise
    if told := _first(heard, control, watch):
        raise told


@contextmanager
def _noting_operators(places: list[str], home: Home) -> Iterator[None]:
    """Note where the module calls torch.cond or while_loop, of which a trace keeps one side or one number of steps."""
    plain: Any = HigherOrderOperator.__call__

    def noting(operator: Any, *rest: Any, **named: Any) -> Any:
        places.append(here(home))
        return plain(operator, *rest, **named)

    HigherOrderOperator.__call__ = noting  # type: ignore[method-assign]  # put back below
    try:
        yield
    finally:
        HigherOrderOperator.__call__ = plain  # type: ignore[method-assign]


def _in_operator(error: BaseException, home: Home) -> list[str]:
    """Return the user's line at which torch.cond or while_loop raised an error, if one did."""
    frames = [(frame.filename, frame.lineno or 0) for frame in reversed(traceback.extract_tb(error.__traceback__))]
    inside = [i for i, (file, _) in enumerate(frames) if file.startswith(str(_TORCH / "_higher_order_ops"))]
    return [home.innermost(frames[inside[0] :])] if inside else []


def _origin(frames: Frames, home: Home) -> tuple[str, bool]:
    in_torch = False
    for file, line, _ in frames:
        if place := home.place(file, line):
            return place, in_torch
        in_torch = in_torch or (file.startswith(str(_TORCH)) and file not in _THROUGH)
    return "", in_torch


def _first(heard: list[_Heard], control: list[str], watch: Watch) -> InputError | None:
    if control:
        where = watch.home.text(control[0]) if control[0] else ""
        what = "tracing would lose a torch.cond or a while_loop: the trace keeps the way that the example takes"
        do = "leave --exporter torchscript out: dynamo writes it as If or Loop; beside scripted code, script it too"
        return InputError("trace-lost-something", what, where=where, do=do)
    known = watch.leaves() if heard else Leaves(set(), set(), set())
    for one in heard:
        # torch's own checks are of truths, and mostly on sizes; a number of the input's is the user's, by whatever way
        if one.in_torch and not (one.place in known.numbers and "Python boolean" not in one.text):
            continue
        if found := _loss(one, watch, known):
            where = watch.home.text(one.place) if one.place else ""
            return InputError("trace-lost-something", f"tracing would lose {found[0]}", where=where, do=found[1])
    return None


def _loss(one: _Heard, watch: Watch, known: Leaves) -> tuple[str, str] | None:
    """Say what a warning means and the cure, or nothing where the trace loses nothing."""
    where = watch.home.text(one.place) if one.place else ""
    if CONSTANT in one.text:
        return (NUMBER, TENSOR) if one.place in known.values else None
    for mark, lost, do in SIZES:
        if mark in one.text:
            return None if watch.static else (lost, LOOP if for_size(where) == LOOP else do)
    for mark, lost, do in CONVERSIONS:
        if mark in one.text:
            lost, do = (NUMBER, TENSOR) if one.printed else (lost, do)
            if one.place in known.values:
                return lost, for_branch(where, do) if do == BRANCH else do
            if watch.static or one.place in known.constants:
                return None
            return lost, for_branch(where) if do == BRANCH else for_size(where, number="math." in where)
    return one.text.split(". ")[0].rstrip("."), f"{BRANCH}; {SIZE}"

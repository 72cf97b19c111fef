"""What a user can do about a size, a value or a branch that an export would lose."""

from __future__ import annotations

import re

from penstock import places

SCRIPT = "torch.jit.script"
BRANCH = f"write the branch with torch.cond or torch.where, or script the function that has it with {SCRIPT}"
SIZE = "take sizes from x.shape, without int(), len() or numpy; a reshape takes -1 for an axis that moves"
NUMBER = "take the size as x.shape has it, without int(), float(), len(), round() or math; a root is n ** 0.5"
LOOP = f"script the function that has the loop with {SCRIPT}, or write it with while_loop"
INDEX = f"what the size is an index of: keep it in a tensor; a loop further in: {LOOP}"
TENSOR = f"keep it in a tensor, without int(), float() or .item(); a loop over it: script its function with {SCRIPT}"
CONTROL = f"write a branch with torch.cond or torch.where and a loop with while_loop, or script it with {SCRIPT}"
CHECK = "leave the check out of forward: a model can't raise; check its inputs before it is called"
OTHER = "try --exporter torchscript"
_STEPS = re.compile(r"\bfor\b.+\bin\b|(^|\s|:)while\s")
_NUMBERS = re.compile(r"(?<![.\w])(int|float|len|round|math\.\w+|numpy\.\w+|np\.\w+)\((?![\"'])")
_SLICES = re.compile(r"\[[^\]]*:[^\]]*\]")
_BRANCHES = re.compile(r"(^|\s|:)(if|elif|assert)\s")


def for_size(where: str, *, number: bool = False) -> str:
    """Return the cure for a size that is a constant, by the line that made it one: a loop, a branch, a reshape.

    ``number`` says that a number of Python's was made of it: by a function of that, or by a loop further in.
    """
    code = where.partition(": ")[2]
    if is_check(where):
        return CHECK
    if is_loop(where):
        return LOOP
    if _BRANCHES.search(code):
        return BRANCH
    if number:
        return NUMBER if _NUMBERS.search(code) else INDEX if "[" in code else LOOP
    return SIZE


def for_branch(where: str, cure: str = BRANCH) -> str:
    """Return the cure for a line that decides something: a check that raises, a loop, or else what is given."""
    if is_check(where):
        return CHECK
    return LOOP if is_loop(where) else cure


def is_loop(where: str) -> bool:
    """Tell whether a line, as ``file:line: text``, repeats something."""
    return bool(_STEPS.search(where.partition(": ")[2]))


def is_slice(where: str) -> bool:
    """Tell whether a line, as ``file:line: text``, cuts something out, and makes no number of Python's of a size."""
    return bool(_SLICES.search(where.partition(": ")[2])) and not makes_number(where)


def makes_number(where: str) -> bool:
    """Tell whether a line, as ``file:line: text``, makes a number of Python's, by int(), len(), math and the like."""
    return bool(_NUMBERS.search(where.partition(": ")[2]))


def is_check(where: str) -> bool:
    """Tell whether a line, as ``file:line: text``, does no more than raise where a condition doesn't hold."""
    place, _, code = where.partition(": ")
    if code.startswith("assert"):
        return True
    head, _, then = code.partition(":")
    if not head.startswith(("if ", "elif ")):
        return False
    file, _, line = place.rpartition(":")
    following = places.text(f"{file}:{int(line) + 1}").partition(": ")[2] if line.isdigit() else ""
    return (then.strip() or following).startswith("raise")

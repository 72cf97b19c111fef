"""What a user can do about a size, a value or a branch that an export would lose."""

from __future__ import annotations

import re

SCRIPT = "torch.jit.script"
BRANCH = f"write the branch with torch.cond or torch.where, or script the function that has it with {SCRIPT}"
SIZE = "take sizes from x.shape, without int(), len() or numpy; a reshape takes -1 for an axis that moves"
NUMBER = "take the size as x.shape has it, without int(), float(), len(), round() or math; a root is n ** 0.5"
LOOP = f"script the function that has the loop with {SCRIPT}, or write it with while_loop"
TENSOR = f"keep it in a tensor, without int(), float() or .item(); a loop over it: script its function with {SCRIPT}"
CONTROL = f"write a branch with torch.cond or torch.where and a loop with while_loop, or script it with {SCRIPT}"
_STEPS = re.compile(r"\bfor\b.+\bin\b|(^|\s|:)while\s")
_NUMBERS = re.compile(r"\b(int|float|len|round|math\.\w+|numpy\.\w+|np\.\w+)\(")
_BRANCHES = re.compile(r"(^|\s|:)(if|elif|assert)\s")


def for_size(where: str, *, number: bool = False) -> str:
    """Return the cure for a size that is a constant, by the line that made it one: a loop, a branch, a reshape.

    ``number`` says that a number of Python's was made of it: by a function of that, or by a loop further in.
    """
    code = where.partition(": ")[2]
    if _STEPS.search(code):
        return LOOP
    if _BRANCHES.search(code):
        return BRANCH
    if number:
        return NUMBER if _NUMBERS.search(code) else LOOP
    return SIZE

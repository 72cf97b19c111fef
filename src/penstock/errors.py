"""The errors that a user may see, and what each does to the exit code.

::

    PenstockError
    ├── GateError       1   a gate said no: a verdict, not a fault
    ├── UsageError      2   the command or the settings are wrong
    ├── InputError      2   a model, a module, weights or data are wrong
    ├── StoreError      2   a file or folder can't be read or written, or the disk is full
    └── MissingError    3   something has to be installed on this machine

Every error has an id (stable, for scripts and for the docs), says what happened, where, and what to do next.
"""

from __future__ import annotations


class PenstockError(Exception):
    """The base of all errors a user may see."""

    exit_code = 2

    def __init__(self, id: str, what: str, *, where: str = "", do: str = "") -> None:
        super().__init__(what)
        self.id = id
        self.what = what
        self.where = where
        self.do = do

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> list[str]:
        """Return the message as a user reads it: what, where, what to do."""
        shown = [self.what]
        if self.where:
            shown.append(f"  where: {self.where}")
        if self.do:
            first, *more = self.do.split("\n")
            shown += [f"  do:    {first}", *(f"         {line}" for line in more)]
        return shown

    def to_json(self) -> dict[str, str | int]:
        """Return the error as one JSON object."""
        return {
            "id": self.id,
            "what": self.what,
            "where": self.where,
            "do": self.do,
            "exit_code": self.exit_code,
        }


class GateError(PenstockError):
    """A gate said no."""

    exit_code = 1


class UsageError(PenstockError):
    """The command line or the settings are wrong."""


class InputError(PenstockError):
    """A model, a module, weights or data are wrong."""


class StoreError(PenstockError):
    """A file or folder can't be read or written."""


class MissingError(PenstockError):
    """Something needed is not installed on this machine."""

    exit_code = 3


def missing_extra(package: str, extra: str, needed_for: str) -> MissingError:
    """Build the error for an absent optional dependency, with the exact line that installs it."""
    line = "pip install torch==2.13.0  # then: " if extra == "torch" else ""
    return MissingError(
        "missing-extra",
        f"{package} is not installed; {needed_for} needs it",
        do=f"{line}pip install 'penstock[{extra}]'",
    )

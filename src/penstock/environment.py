"""Environments: runtimes that clash with others live in a folder of their own, made from pinned packages.

``environments/NAME.txt`` in this package has what pip installs into the virtual environment of that name,
``environments/NAME.toml`` which files of an npm package (:mod:`penstock.npm`). Nothing is installed unasked:
``penstock env add NAME`` makes it, below ``PENSTOCK_ENVIRONMENTS`` or the user's folder for data. The file that says
that it is whole is written last: an installation that was cut short is none, and begins anew.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from penstock import npm, store
from penstock.errors import MissingError, UsageError
from penstock.jsonable import Json

if TYPE_CHECKING:
    from penstock.progress import Progress

PINNED = Path(__file__).parent / "environments"
WHOLE = "environment.json"  # written when all is installed
LINES = 8  # of what the installer says last


@dataclass(frozen=True, slots=True)
class Environment:
    """One environment: whether it is there, and what is in it."""

    name: str
    summary: str
    folder: Path
    state: str  # "", or why it can't be used
    packages: Mapping[str, str]  # name → version; empty where it isn't there

    @property
    def python(self) -> Path:
        """The path of its Python, where pip made it."""
        return self.folder / "bin" / "python"


def names() -> list[str]:
    """List the environments that there could be."""
    return sorted(path.stem for path in (*PINNED.glob("*.txt"), *PINNED.glob("*.toml")))


def home() -> Path:
    """Return the folder that they are made in."""
    if named := os.environ.get("PENSTOCK_ENVIRONMENTS"):
        return Path(named).expanduser()
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(data) / "penstock" / "environments"


def find(name: str) -> Environment:
    """Return an environment as it is. Raises ``UsageError`` for an unknown name."""
    if name not in names():
        raise UsageError("unknown-environment", f"there is no environment named {name!r}",
                         do=f"known are: {', '.join(names())}")  # fmt: skip
    pinned = _pinned(name)
    summary = _summary(pinned)
    folder = home() / name
    add = f"penstock env add {name}"
    try:
        told = cast("dict[str, Json]", json.loads((folder / WHOLE).read_bytes()))
        packages = {str(name): str(version) for name, version in cast("dict[str, Json]", told["packages"]).items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return Environment(name, summary, folder, add, {})
    state = ""
    if told.get("requirements") != store.file_digest(pinned):
        state = f"{add}  # the one that is there was made for other versions"
    elif gone := _gone(pinned, folder):
        state = f"{add}  # its {gone} is gone"
    return Environment(name, summary, folder, state, packages)


def _pinned(name: str) -> Path:
    """Return the file that says what goes into it: of npm where it is TOML, else pip's."""
    toml = PINNED / f"{name}.toml"
    return toml if toml.exists() else PINNED / f"{name}.txt"


def _summary(pinned: Path) -> str:
    if pinned.suffix == ".toml":
        return npm.read(pinned).summary
    return pinned.read_text().splitlines()[0].removeprefix("#").strip()


def _gone(pinned: Path, folder: Path) -> str:
    """Name what an environment can't do without and isn't there, "" where it is."""
    if pinned.suffix == ".toml":
        return npm.lacking(npm.read(pinned), folder)
    return "" if os.access(folder / "bin" / "python", os.X_OK) else "Python"


def problem(name: str) -> str:
    """Return "" where an environment is there and whole, else what makes it."""
    return find(name).state


def needed(name: str, what: str) -> Environment:
    """Return an environment that is there. Raises ``MissingError`` with the line that makes it; ``what`` wants it."""
    found = find(name)
    if found.state:
        raise MissingError("environment-missing", f"{what} needs the environment {name!r}", do=found.state)
    return found


def add(name: str, progress: Progress) -> Environment:
    """Make an environment, anew where it was made for other versions; one that is whole is returned as it is.

    Raises ``MissingError`` where something can't be installed; nothing is left then.
    """
    found = find(name)
    if not found.state:
        return found
    pinned = _pinned(name)
    progress.begin("env", f"installing {', '.join(_wanted(pinned))}")
    with store.locked(found.folder.parent / f".{name}.lock"), store.explained(found.folder):
        if not find(name).state:  # another process was faster
            progress.end("it is there")
            return find(name)
        store.drop_folder(found.folder)
        try:
            packages = _install(found, pinned)
            told: dict[str, Json] = {"requirements": store.file_digest(pinned), "packages": packages}
            store.write_json(found.folder / WHOLE, told)
        except BaseException:
            store.drop_folder(found.folder)
            raise
    progress.end(f"{len(packages)} package{'s' * (len(packages) != 1)}")
    return find(name)


def _install(found: Environment, pinned: Path) -> dict[str, Json]:
    """Install what was pinned; return name → version."""
    if pinned.suffix == ".toml":
        package = npm.read(pinned)
        npm.fetch(package, found.folder, lambda command: _run([*command], found.name))
        return {package.package: package.version}
    _run([sys.executable, "-m", "venv", str(found.folder)], found.name)
    pip = [str(found.python), "-m", "pip", "--disable-pip-version-check"]
    _run([*pip, "install", "--no-input", "-q", "-r", str(pinned)], found.name)
    return {one["name"]: one["version"] for one in json.loads(_run([*pip, "list", "--format", "json"], found.name))}


def remove(name: str) -> bool:
    """Remove an environment; return whether there was one."""
    found = find(name)
    there = found.folder.exists()
    with store.locked(found.folder.parent / f".{name}.lock"):
        store.drop_folder(found.folder)
    return there


def _wanted(pinned: Path) -> list[str]:
    if pinned.suffix == ".toml":
        package = npm.read(pinned)
        return [f"{package.package} {package.version}"]
    return [line for line in pinned.read_text().splitlines() if line and not line.startswith("#")]


def _run(command: list[str], name: str) -> str:
    """Run a command that ends with Ctrl-C as this process does. Raises ``MissingError`` with its last words."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, errors="replace")
    if done.returncode:
        said = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        told = [line for line in said if line.startswith("ERROR")] or said
        what = f"the environment {name!r} can't be made: {'; '.join(told[-LINES:])[:600] or 'no reason was given'}"
        raise MissingError("environment-failed", what, do="look at the package index and the disk, then try again")
    return done.stdout

"""Files of an npm package of one version, each of a known SHA-256: what a runtime in a browser is made of.

npm fetches the package's archive; none of its scripts is run, and nothing but the named files leaves the archive.
"""

from __future__ import annotations

import shutil  # noqa: TID251  # to find npm
import tarfile
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from penstock import store
from penstock.errors import MissingError

Runner = Callable[[Sequence[str]], str]
QUIET = ("--silent", "--ignore-scripts", "--no-update-notifier", "--no-fund", "--no-audit")


@dataclass(frozen=True, slots=True)
class Package:
    """A package, and which of its files are wanted. ``files``: path in the archive → SHA-256."""

    summary: str
    package: str
    version: str
    files: Mapping[str, str]


def read(pinned: Path) -> Package:
    """Read the file that pins a package."""
    return Package(**tomllib.loads(pinned.read_text()))


def lacking(package: Package, folder: Path) -> str:
    """Return the name of a file that isn't in the folder, "" where all are there."""
    names = (Path(path).name for path in package.files)
    return next((name for name in names if not (folder / name).is_file()), "")


def damaged(package: Package, folder: Path, names: Sequence[str]) -> str:
    """Return the first of the named files that isn't what was pinned, "" where each one is."""
    wanted = {Path(path).name: digest for path, digest in package.files.items()}
    with store.explained(folder):
        return next((name for name in names if store.file_digest(folder / name) != wanted[name]), "")


def fetch(package: Package, folder: Path, run: Runner) -> None:
    """Put the package's files into the folder; ``run`` runs a command and raises where it fails.

    Raises ``MissingError`` where npm isn't there, or a file is absent or not the one that was pinned.
    """
    npm = shutil.which("npm")
    if npm is None:
        what = f"{package.package} comes from npm's registry, and npm is not installed"
        raise MissingError("environment-failed", what, do="apt-get install npm  # or Node.js, which brings it")
    with store.scratch(folder.parent) as work:
        named = f"{package.package}@{package.version}"
        run([npm, "pack", named, "--pack-destination", str(work), "--cache", str(work / "cache"), *QUIET])
        archive = next(iter(work.glob("*.tgz")), None)
        if archive is None:
            raise _unlike(package, "npm brought no archive")
        _unpack(package, archive, work / "unpacked")
        for path, digest in package.files.items():
            found = work / "unpacked" / "package" / path
            if store.file_digest(found) != digest:
                raise _unlike(package, f"{path} is not the file that was pinned")
            store.copy_file(found, folder / found.name)


def _unpack(package: Package, archive: Path, into: Path) -> None:
    """Take the wanted files out of the archive, and nothing else."""
    wanted = {f"package/{path}" for path in package.files}
    try:
        with tarfile.open(archive, "r:gz") as opened:
            members = [one for one in opened.getmembers() if one.name in wanted and one.isreg()]
            if absent := wanted - {one.name for one in members}:
                raise _unlike(package, f"{min(absent)} is not in it")
            opened.extractall(into, members, filter="data")
    except (tarfile.TarError, EOFError) as error:
        raise _unlike(package, f"its archive can't be read: {error}") from error


def _unlike(package: Package, why: str) -> MissingError:
    what = f"{package.package} {package.version} didn't come as it should: {why}"
    return MissingError("environment-failed", what, do="look at which registry npm is set to, then try again")

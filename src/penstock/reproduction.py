"""Building again: from a lock file, or as a script that makes the same models."""

from __future__ import annotations

import dataclasses
import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock import store
from penstock.build_settings import BuildSettings
from penstock.errors import UsageError
from penstock.settings import SECTIONS
from penstock.transforms import versions

SUFFIX = ".lock.toml"


@dataclass(frozen=True, slots=True)
class Lock:
    """A lock file as read: where it lies, the folder that its relative paths count from, and what it was made of."""

    path: Path
    base: Path
    tools: Mapping[str, str]
    read: Mapping[str, str]  # file name → SHA-256 of each file that the export read
    resolved: tuple[str, ...] = ()  # settings that the build chose by itself, such as "export.opset"


def read_lock(path: Path) -> Lock:
    """Read what a lock file says beside the settings. Raises ``UsageError`` where it can't be read."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError("no-such-file", "there is no such lock file", where=str(path), do="check the path") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError("bad-settings-file", f"the lock can't be read: {error}", where=str(path)) from error
    inputs = table.get("inputs", {})
    tools = table.get("tools", {})
    if not isinstance(inputs, dict) or not isinstance(tools, dict) or not isinstance(inputs.get("base", ""), str):
        raise UsageError("bad-settings-file", "[inputs] and [tools] are tables", where=str(path))
    read = inputs.get("read", {})
    base = (path.resolve().parent / str(inputs.get("base", "."))).resolve()
    texts = {str(k): str(v) for k, v in read.items()} if isinstance(read, dict) else {}
    chosen = inputs.get("resolved", [])
    resolved = tuple(str(name) for name in chosen) if isinstance(chosen, list) else ()
    return Lock(path, base, {str(k): str(v) for k, v in tools.items()}, texts, resolved)


def base_of(output: Path) -> str:
    """Return the way from a build's folder to the current one, which the relative paths of its settings count from."""
    return Path(os.path.relpath(Path.cwd(), output.resolve())).as_posix()


def other_tools(lock: Lock) -> list[str]:
    """Tell which tools have another version here than when the lock was written."""
    here = versions(*lock.tools)
    return [
        f"{name} was {then} and is {here.get(name, 'not installed')}"
        for name, then in lock.tools.items()
        if here.get(name) != then
    ]


def changed_files(lock: Lock, reads: Mapping[str, str]) -> list[str]:
    """Tell which of the files that an export read have other contents than when the lock was written."""
    now = names_of(reads)
    told = [f"{name} has changed since" for name in lock.read if name in now and now[name] != lock.read[name]]
    told += [f"{name} is no longer read" for name in lock.read if name not in now]
    return told + [f"{name} is read in addition" for name in now if name not in lock.read]


def names_of(reads: Mapping[str, str]) -> dict[str, str]:
    """Name files without the folders of this machine; of equal names the later digests are joined to one."""
    found: dict[str, str] = {}
    for path, digest in sorted(reads.items(), key=lambda item: (Path(item[0]).name, item[1])):
        name = Path(path).name
        found[name] = store.digest_of([found[name], digest]) if name in found else digest
    return found


def as_python(settings: BuildSettings, output: str) -> str:
    """Return a script that makes the same build through the Python API; what is at its default is left out."""
    sections = []
    classes = ["BuildSettings"]
    for name, home in SECTIONS.items():
        held = getattr(settings, name)
        changed = _changed(held)
        if changed:
            cls = home.rpartition(":")[2]
            classes.append(cls)
            given = ", ".join(f"{key}={value!r}" for key, value in changed.items())
            sections.append(f"    {name}={cls}({given}),")
    top = [f"    {settings.source!r},"]
    if settings.weights:
        top.append(f"    weights={settings.weights!r},")
    if settings.backends:
        top.append(f"    backends={settings.backends!r},")
    if settings.seed:
        top.append(f"    seed={settings.seed!r},")
    lines = [
        '"""A build as a script: it makes the same models as the command did. Relative paths count from here."""',
        "",
        "from penstock import build",
        *(f"from {_home(cls)} import {cls}" for cls in sorted(classes, key=_home)),
        "",
        "settings = BuildSettings(",
        *top,
        *sections,
        ")",
        "",
        'if __name__ == "__main__":',
        f"    result = build(settings, {output!r})",
        "    print(f\"chosen    {result.chosen or 'none fits'}\")",
        "",
    ]
    return "\n".join(lines)


def _changed(held: Any) -> dict[str, object]:
    return {
        field.name: getattr(held, field.name)
        for field in dataclasses.fields(held)
        if getattr(held, field.name) != field.default
    }


def _home(name: str) -> str:
    homes = {home.rpartition(":")[2]: home.rpartition(":")[0] for home in SECTIONS.values()}
    return homes.get(name, "penstock.build_settings")


def flat(table: Mapping[str, Any]) -> dict[str, object]:
    """Flatten a settings table: ``export.opset`` → 18."""
    found: dict[str, object] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            found |= {f"{key}.{name}": item for name, item in value.items()}
        else:
            found[key] = value
    return found


def settings_of(path: Path, without: Iterable[str] = ("tools", "inputs")) -> dict[str, object]:
    """Return a lock file's settings, flat. Raises ``UsageError`` where it can't be read."""
    read_lock(path)
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    return flat({key: value for key, value in table.items() if key not in [*without]})

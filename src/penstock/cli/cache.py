"""penstock cache."""

from __future__ import annotations

import re
import time
from pathlib import Path

import click

from penstock.cli import _console
from penstock.cli._options import common
from penstock.errors import UsageError

EPILOG = """\b
Examples:
  penstock cache dir
  penstock cache info --json
  penstock cache prune --older-than 30
  penstock cache prune --max-size 5GB --dry-run
"""
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def _folder(cache: str | None) -> Path:
    from penstock import store

    return Path(cache) if cache else store.default_cache()


def _size(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?B?)", text.strip().upper())
    unit = (match[2] if match[2] in _UNITS else match[2] + "B") if match else ""
    if match is None or unit not in _UNITS:
        raise UsageError("bad-setting", f"{text!r} is no size", where="--max-size", do="write 500MB or 5GB")
    return int(float(match[1]) * _UNITS[unit])


_cache = click.option("--cache", type=click.Path(file_okay=False), help="Cache folder (default: PENSTOCK_CACHE).")


@click.group(epilog=EPILOG)
def command() -> None:
    """Show and prune the cache of transforms: exports, optimized graphs, quantized models."""


@command.command("dir")
@_cache
@common
def _dir(cache: str | None, as_json: bool, quiet: bool, verbose: bool) -> int:
    """Print where the cache lies."""
    folder = _folder(cache)
    if as_json:
        _console.emit("cache dir", {"folder": str(folder)})
    else:
        click.echo(str(folder))
    return 0


@command.command("info")
@_cache
@common
def _info(cache: str | None, as_json: bool, quiet: bool, verbose: bool) -> int:
    """Tell how much the cache holds."""
    from penstock.store import Cache

    folder = _folder(cache)
    entries = Cache(folder).entries()
    size = sum(kept.size_bytes for kept in entries)
    if as_json:
        _console.emit("cache info", {"folder": str(folder), "size_bytes": size, "entries": entries})
        return 0
    click.echo(f"{folder}: {len(entries):,} entries, {size / 1e6:,.1f} MB")
    if entries:
        days = (time.time() - entries[0].used_at) / 86_400
        click.echo(f"the least recently used one was used {days:.1f} days ago")
    return 0


@command.command("prune")
@click.option("--older-than", type=float, metavar="DAYS", help="Remove what was not used for so many days.")
@click.option("--max-size", metavar="SIZE", help="Remove the least recently used until so much is left: 500MB, 5GB.")
@click.option("--all", "everything", is_flag=True, help="Remove all but what was used within the last hour.")
@click.option("--dry-run", is_flag=True, help="Only tell what would be removed.")
@_cache
@common
def _prune(
    older_than: float | None, max_size: str | None, everything: bool, dry_run: bool, cache: str | None, as_json: bool,
    quiet: bool, verbose: bool,
) -> int:  # fmt: skip
    """Remove entries, the least recently used first. Those used within the last hour stay: a build may need them."""
    from penstock.store import Cache

    if older_than is None and max_size is None and not everything:
        do = "give --older-than DAYS, --max-size SIZE or --all"
        raise UsageError("nothing-to-prune", "it isn't said what to remove", do=do)
    if older_than is not None and not older_than >= 0:
        raise UsageError("bad-setting", f"{older_than!r} is no number of days", where="--older-than")
    limit = 0 if everything else None if max_size is None else _size(max_size)
    seconds = None if older_than is None else older_than * 86_400
    gone = Cache(_folder(cache)).prune(older_than_s=seconds, max_bytes=limit, dry_run=dry_run)
    size = sum(kept.size_bytes for kept in gone)
    if as_json:
        _console.emit("cache prune", {"removed": gone, "size_bytes": size, "dry_run": dry_run})
    else:
        click.echo(f"{'would remove' if dry_run else 'removed'} {len(gone):,} entries, {size / 1e6:,.1f} MB")
    return 0

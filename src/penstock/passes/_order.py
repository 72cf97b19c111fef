"""The order of passes: by phase, then by what each says it comes after, then by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

from penstock import registry
from penstock.errors import UsageError
from penstock.passes import Pass, Phase, Rule


def in_order(passes: Mapping[str, Pass | Rule]) -> list[tuple[str, Pass | Rule]]:
    """Sort passes. Raises ``UsageError`` where they wait for each other in a circle or name an unknown phase."""
    phases: tuple[str, ...] = get_args(Phase)
    for name, rewrite in passes.items():
        if rewrite.PHASE not in phases:
            what = f"the pass {name!r} names the phase {rewrite.PHASE!r}"
            raise UsageError("bad-pass", what, do=f"phases are {', '.join(phases)}")
    ordered: list[tuple[str, Pass | Rule]] = []
    for phase in phases:
        waiting = {name: rewrite for name, rewrite in sorted(passes.items()) if phase == rewrite.PHASE}
        while waiting:
            ready = next((n for n, p in waiting.items() if not set(p.AFTER) & (waiting.keys() - {n})), None)
            if ready is None:
                what = f"these passes each come after another of them: {', '.join(waiting)}"
                raise UsageError("pass-order", what, do="leave one of them out with --skip")
            ordered.append((ready, waiting.pop(ready)))
    return ordered


def run_unasked() -> list[str]:
    """List the passes that run when none is named: all but those that say that they are optional."""
    return [name for name in registry.names("passes") if not getattr(registry.load("passes", name), "OPTIONAL", False)]

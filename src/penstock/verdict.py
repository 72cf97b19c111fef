"""Verdict: what a gate says of a deployment."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Outcome:
    """Passed, or refused with a reason that a user can act on. The reason quotes measured figures."""

    passed: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One gate's outcome for one deployment."""

    gate: str  # "load", "verify", "fallback", "evaluate", "accuracy", "latency", "size", "speed"
    deployment: str  # the deployment's name
    measured: Outcome

    @property
    def passed(self) -> bool:
        """Whether the gate let it through."""
        return self.measured.passed

    @property
    def reason(self) -> str:
        """Why not; empty when it passed."""
        return self.measured.reason

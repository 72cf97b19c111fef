"""What the suite gave on each backend, by version: data files beside this module, and what they add up to."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from penstock.conformance.suite import KINDS, Kind, Result
from penstock.jsonable import Json, dumps

HERE = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Operator:
    """What came of an operator's tests: how many passed, and the others by name."""

    passed: int
    others: Mapping[str, Result]

    @property
    def counts(self) -> Mapping[Kind, int]:
        """How many tests ended how, in the order of ``KINDS``, without those that there are none of."""
        found = Counter[Kind]({"passed": self.passed})
        found.update(result.kind for result in self.others.values())
        return {kind: found[kind] for kind in KINDS if found[kind]}


@dataclass(frozen=True)
class Coverage:
    """What came of the tests on one backend."""

    backend: str
    facts: Mapping[str, Json]  # the runtime's version, and what else it hangs on
    suite: str  # "onnx 1.22.0"
    measured: str  # the day, year-month-day
    system: str
    operators: Mapping[str, Operator]

    @property
    def version(self) -> str:
        """The runtime's version."""
        return str(self.facts["version"])

    @cached_property
    def counts(self) -> Mapping[Kind, int]:
        """How many tests ended how, all kinds."""
        found: Counter[Kind] = Counter()
        for operator in self.operators.values():
            found.update(operator.counts)
        return {kind: found[kind] for kind in KINDS}

    @property
    def tests(self) -> int:
        """How many there were."""
        return sum(self.counts.values())

    @property
    def opened(self) -> int:
        """How many were not refused: a session was made of them, or died or hung on the way."""
        return self.tests - self.counts["refused"]

    @property
    def whole(self) -> tuple[str, ...]:
        """The operators of which every test passed."""
        return tuple(name for name, one in sorted(self.operators.items()) if one.passed and not one.others)

    @property
    def partial(self) -> tuple[str, ...]:
        """The operators of which some tests passed, not all."""
        return tuple(name for name, one in sorted(self.operators.items()) if one.passed and one.others)

    @property
    def others(self) -> Mapping[str, Result]:
        """The tests that didn't pass, by name."""
        return {test: result for one in self.operators.values() for test, result in one.others.items()}


def summed(tests: Mapping[str, str], results: Mapping[str, Result]) -> dict[str, Operator]:
    """Sort results by operator; ``tests`` has the operator of each test."""
    passed: Counter[str] = Counter()
    others: dict[str, dict[str, Result]] = {}
    for test, result in sorted(results.items()):
        mine = others.setdefault(tests[test], {})
        if result.kind == "passed":
            passed[tests[test]] += 1
        else:
            mine[test] = result
    return {name: Operator(passed[name], mine) for name, mine in sorted(others.items())}


def written(coverage: Coverage) -> str:
    """Return the text of a data file: one line for each operator and for each test that didn't pass, reasons once."""
    reasons = sorted({result.reason for result in coverage.others.values()})
    places = {reason: place for place, reason in enumerate(reasons)}
    lines = []
    for name, one in sorted(coverage.operators.items()):
        inner = [f"{dumps(test)}: {dumps([result.kind, places[result.reason]])}" for test, result in one.others.items()]
        held = "{\n      " + ",\n      ".join(inner) + "\n    }" if inner else "{}"
        lines.append(f'{dumps(name)}: {{"passed": {one.passed}, "others": {held}}}')
    head = {name: getattr(coverage, name) for name in ("backend", "facts", "suite", "measured", "system")}
    parts = [f"{dumps(name)}: {dumps(value)}" for name, value in head.items()]
    parts.append('"reasons": [\n    ' + ",\n    ".join(map(dumps, reasons)) + "\n  ]")
    parts.append('"operators": {\n    ' + ",\n    ".join(lines) + "\n  }")
    return "{\n  " + ",\n  ".join(parts) + "\n}\n"


def read(text: str) -> Coverage:
    """Read a data file."""
    told = json.loads(text)
    reasons = told["reasons"]
    operators = {
        name: Operator(one["passed"], {test: Result(kind, reasons[at]) for test, (kind, at) in one["others"].items()})
        for name, one in told["operators"].items()
    }
    return Coverage(told["backend"], told["facts"], told["suite"], told["measured"], told["system"], operators)


def of(backend: str) -> Coverage | None:
    """Return what was measured of a backend that comes with the package; ``None`` where nothing was."""
    path = HERE / f"{backend}.json"
    return read(path.read_text(encoding="utf-8")) if path.is_file() else None

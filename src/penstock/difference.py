"""How two finished builds differ, and why: causes first (inputs, settings, tools, machine), then what followed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from penstock import reproduction
from penstock.errors import InputError
from penstock.jsonable import Json
from penstock.ledger import Entry, finished
from penstock.record import Record
from penstock.store import BuildFolder
from penstock.summary import Row, rows
from penstock.variant import Variant

Cause = Literal["input", "setting", "tool", "machine"]
Effect = Literal["variant", "golden", "verdict", "score", "latency", "chosen"]
LOCK = "penstock.lock.toml"


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that two builds were given differently; ``None`` where one of them lacks it."""

    kind: Cause
    name: str
    a: Json
    b: Json


@dataclass(frozen=True, slots=True)
class Followed:
    """One thing that came out differently, and the nearest reason for it."""

    kind: Effect
    name: str
    what: str
    why: str


@dataclass(frozen=True, slots=True)
class Difference:
    """All that differs between two builds. ``same_models``: every variant has the same bytes in both."""

    causes: tuple[Change, ...]
    followed: tuple[Followed, ...]
    same_models: bool


@dataclass(frozen=True, slots=True)
class _Built:
    folder: Path
    entries: list[Entry]
    variants: dict[str, Variant]
    table: dict[str, Row]
    lock: Path

    def record(self, stage: str, subject: str = "") -> Record | None:
        return next(
            (e for e in self.entries if isinstance(e, Record) and e.stage == stage and subject in ("", e.subject)), None
        )


def compare(a: Path, b: Path) -> Difference:
    """Compare two build folders. Raises ``InputError`` for a folder that holds no finished build."""
    one, two = _read(a), _read(b)
    causes = [*_inputs(one, two), *_settings(one, two), *_tools(one, two), *_machine(one, two)]
    followed = [
        *_variants(one, two, causes),
        *_golden(one, two),
        *_verdicts(one, two),
        *_scores(one, two),
        *_latencies(one, two),
    ]
    picked = [built.record("select", "build") for built in (one, two)]
    chosen = [str(record.measured.get("chosen") or "none") if record else "none" for record in picked]
    if chosen[0] != chosen[1]:
        why = _why_chosen(one, two, chosen, causes)
        followed.append(Followed("chosen", "build", f"{chosen[0]} → {chosen[1]}", why))
    same = {n: v.digest for n, v in one.variants.items()} == {n: v.digest for n, v in two.variants.items()}
    return Difference(tuple(causes), tuple(followed), same)


def _read(folder: Path) -> _Built:
    if folder.is_file():
        what = "this is a file; the output folders of two builds are compared"
        raise InputError("no-build", what, where=str(folder), do="give the folders that penstock build wrote")
    built = BuildFolder(folder)
    if not built.ledger_path.is_file():
        raise InputError("no-build", "here is no build", where=str(folder), do="give the output folder of a build")
    steps = finished(built.read_ledger())
    if not steps or steps[-1][0].step != "select" or not (folder / LOCK).is_file():
        last = steps[-1][0].step if steps else "none"
        what = f"the build isn't finished: the last step that ended is {last}"
        if last == "select":
            what = f"the build has no {LOCK}, which is written last"
        raise InputError("unfinished-build", what, where=str(folder), do="give its command again: it goes on there")
    entries = [entry for _, found in steps for entry in found]
    variants = {entry.name: entry for entry in entries if isinstance(entry, Variant)}
    return _Built(folder, entries, variants, {row.deployment.name: row for row in rows(entries)}, folder / LOCK)


def _pairs(a: Mapping[str, object], b: Mapping[str, object]) -> Iterator[tuple[str, Json, Json]]:
    for name in dict.fromkeys([*a, *b]):
        if a.get(name) != b.get(name):
            yield name, a.get(name), b.get(name)  # type: ignore[misc]  # values of TOML and JSON


def _inputs(one: _Built, two: _Built) -> Iterator[Change]:
    locks = [reproduction.read_lock(built.lock) for built in (one, two)]
    for name, a, b in _pairs(locks[0].read, locks[1].read):
        yield Change("input", name, a, b)
    described = [built.record("golden") for built in (one, two)]
    data = [dict(record.inputs) if record else {} for record in described]
    for name, a, b in _pairs(*({k: v for k, v in d.items() if k in ("digest", "name", "kind")} for d in data)):
        yield Change("input", f"data {name}", a, b)


def _settings(one: _Built, two: _Built) -> Iterator[Change]:
    locks = [reproduction.read_lock(built.lock) for built in (one, two)]
    chosen = {*locks[0].resolved} & {*locks[1].resolved}  # nobody set these: they follow from what was read
    for name, a, b in _pairs(*(reproduction.settings_of(built.lock) for built in (one, two))):
        if name not in chosen:
            yield Change("setting", name, a, b)


def _chosen(one: _Built, two: _Built) -> list[str]:
    """Tell what the exports chose differently of what both builds left to them."""
    locks = [reproduction.read_lock(built.lock) for built in (one, two)]
    both = {*locks[0].resolved} & {*locks[1].resolved}
    pairs = _pairs(*(reproduction.settings_of(built.lock) for built in (one, two)))
    return [
        f"so it was exported with {name.partition('.')[2]} {b} in place of {a}" for name, a, b in pairs if name in both
    ]


def _tools(one: _Built, two: _Built) -> Iterator[Change]:
    for name, a, b in _pairs(*(reproduction.read_lock(built.lock).tools for built in (one, two))):
        yield Change("tool", name, a, b)


def _machine(one: _Built, two: _Built) -> Iterator[Change]:
    hosts = [next((e.host for e in built.entries if isinstance(e, Record) and e.host), {}) for built in (one, two)]
    for name, a, b in _pairs(*({k: v for k, v in host.items() if k != "load_1min"} for host in hosts)):
        yield Change("machine", name, a, b)


def _variants(one: _Built, two: _Built, causes: list[Change]) -> Iterator[Followed]:
    for name in dict.fromkeys([*one.variants, *two.variants]):
        a, b = one.variants.get(name), two.variants.get(name)
        if a is None or b is None:
            built, made = (one, b) if a is None else (two, a)
            assert made is not None
            why = _skipped(built, name) or _absent(built, made, causes)
            yield Followed("variant", name, f"only in {'B' if a is None else 'A'}", why)
        elif a.digest != b.digest:
            sizes = f" ({a.size_bytes:,} and {b.size_bytes:,})" if a.files or b.files else ""
            what = "other bytes" if sizes else "another source or other weights"
            yield Followed("variant", name, what + sizes, _why(a, b, one, two, causes))


def _skipped(built: _Built, name: str) -> str:
    record = built.record("quantize", name)
    return str(record.facts.get("skipped", "")) if record else ""


def _absent(built: _Built, made: Variant, causes: list[Change]) -> str:
    """Say why a build has no variant that the other one ``made``."""
    settings = [c.name for c in causes if c.kind == "setting" and c.name.startswith(f"{made.step}.")]
    if f"{made.step}.{made.step}" in settings:
        return "the settings ask for it in one build alone"
    why = [f"settings: {', '.join(settings)}"] if settings else []
    why += [f"inputs: {', '.join(names)}" for names in [[c.name for c in causes if c.kind == "input"]] if names]
    if built.record("optimize", made.name) is not None:
        why.insert(0, "there the passes found nothing to change")
    return "; ".join(why) or "no cause was found in settings or inputs"


def _why(a: Variant, b: Variant, one: _Built, two: _Built, causes: list[Change]) -> str:
    """Name the nearest cause: a parent, else the step's own settings, else its tools, else what it read."""
    made_of = {v.digest: v.name for v in one.variants.values()}
    if a.parents != b.parents:
        return f"it is made of {', '.join(made_of.get(d, 'another variant') for d in a.parents)}, which differs"
    reasons, given = [], {c.name for c in causes if c.kind == "setting"}
    if settings := [name for name, _, _ in _pairs(a.settings, b.settings) if f"{a.step}.{name}" in given]:
        reasons.append(f"settings: {', '.join(settings)}")
    if a.tools != b.tools:
        reasons.append("tools: " + ", ".join(f"{n} {x} → {y}" for n, x, y in _pairs(a.tools, b.tools)))
    if not a.parents:
        reasons += _chosen(one, two) if a.step == "export" else []
        reasons += [f"inputs: {', '.join(names)}" for names in [[c.name for c in causes if c.kind == "input"]] if names]
    machines = [c.name for c in causes if c.kind == "machine" and c.name in ("cpu_flags", "architecture", "cpu")]
    if not reasons and machines:
        reasons.append(f"another machine ({', '.join(machines)}): a runtime computed in it")
    return "; ".join(reasons) or "no cause was found in inputs, settings, tools or machine"


def _golden(one: _Built, two: _Built) -> Iterator[Followed]:
    records = [built.record("golden") for built in (one, two)]
    if records[0] is None or records[1] is None:
        return
    a, b = records[0].facts, records[1].facts
    if a.get("inputs_sha256") != b.get("inputs_sha256"):
        yield Followed("golden", "inputs", "other samples", "the data, the seed or the roles differ")
    outs = [record.measured.get("outputs_sha256") for record in records if record]
    if outs[0] != outs[1]:
        same = a.get("inputs_sha256") == b.get("inputs_sha256")
        yield Followed("golden", "outputs", "other bytes", "the source differs" if same else "the inputs differ")


def _both(one: _Built, two: _Built) -> Iterator[tuple[str, Row, Row]]:
    for name, row in one.table.items():
        if name in two.table:
            yield name, row, two.table[name]


def _verdicts(one: _Built, two: _Built) -> Iterator[Followed]:
    for name, a, b in _both(one, two):
        said = [{v.gate: v for v in row.verdicts} for row in (a, b)]
        for gate in dict.fromkeys([*said[0], *said[1]]):
            x, y = said[0].get(gate), said[1].get(gate)
            if (x.passed if x else None) != (y.passed if y else None):
                states = ["not asked" if v is None else "passed" if v.passed else "refused" for v in (x, y)]
                why = next((v.reason for v in (y, x) if v is not None and not v.passed), "")
                yield Followed("verdict", f"{name} {gate}", f"{states[0]} → {states[1]}", why)


def _scores(one: _Built, two: _Built) -> Iterator[Followed]:
    for name, a, b in _both(one, two):
        if a.score is None or b.score is None or a.score == b.score:
            continue
        ranges = [(row.score_low or 0.0, row.score_high or 1.0) for row in (a, b)]
        noise = "the intervals overlap" if _overlap(*ranges) else "beyond the intervals"
        yield Followed("score", name, f"{a.score:.2%} → {b.score:.2%}, {noise}", _why_scored(name, a, b, one, two))


def _why_scored(name: str, a: Row, b: Row, one: _Built, two: _Built) -> str:
    """Say why a deployment's score differs: other samples, another model, or another machine or runtime."""
    records = [built.record("evaluate", name) for built in (one, two)]
    facts = [(record.inputs, record.facts) if record else None for record in records]
    reasons = ["other samples or another metric"] if facts[0] != facts[1] else []
    if a.deployment.digest != b.deployment.digest:
        reasons.append(f"the model {a.deployment.variant} differs")
    return "; ".join(reasons) or "the model is the same: the runtime or the machine computes otherwise"


def _why_chosen(one: _Built, two: _Built, names: list[str], causes: list[Change]) -> str:
    """Say why another deployment was chosen: limits, what isn't built or is refused, else the objective."""
    if settings := [c.name for c in causes if c.kind == "setting" and c.name.startswith("select.")]:
        return f"settings: {', '.join(settings)}"
    reasons = []
    for name, built, where in ((names[0], two, "B"), (names[1], one, "A")):
        row = built.table.get(name)
        if row is None and name != "none":
            reasons.append(f"{name} isn't built in {where}")
        elif row is not None and row.refusals:
            reasons.append(f"{name} is refused in {where}: {row.refusals[0].reason}")
    if reasons:
        return "; ".join(reasons)
    record = one.record("select", "build")
    objective = str(record.facts.get("objective", "")) if record else ""
    shown = [
        f"{name} {_figure(one.table.get(name), objective)} in A and {_figure(two.table.get(name), objective)} in B"
        for name in names if name != "none"
    ]  # fmt: skip
    noise = "; two builds are not interleaved, so the machine counts" if objective in ("latency", "throughput") else ""
    return f"by {objective}: {', '.join(shown)}{noise}"


def _figure(row: Row | None, objective: str) -> str:
    if row is None:
        return "absent"
    value, form = {
        "latency": (row.p50_ms, "{:.3g} ms"), "throughput": (row.throughput, "{:,.0f} per s"),
        "size": (row.size_bytes / 1e6, "{:.2f} MB"), "accuracy": (row.select_score, "{:.2%}"),
    }.get(objective, (None, ""))  # fmt: skip
    return "not measured" if value is None else form.format(value)


def _latencies(one: _Built, two: _Built) -> Iterator[Followed]:
    for name, a, b in _both(one, two):
        if a.p50_ms is None or b.p50_ms is None or not a.rounds_ms or not b.rounds_ms:
            continue
        spreads = [_spread(row.rounds_ms) for row in (a, b)]
        if not _overlap(*spreads):
            why = "the rounds' 5th to 95th percentiles are apart; two builds are not interleaved, so the machine counts"
            yield Followed("latency", name, f"{a.p50_ms:.3g} → {b.p50_ms:.3g} ms", why)


def _spread(rounds: tuple[float, ...]) -> tuple[float, float]:
    ordered = sorted(rounds)
    return ordered[int(0.05 * (len(ordered) - 1))], ordered[round(0.95 * (len(ordered) - 1))]


def _overlap(a: tuple[float, float], b: tuple[float, float]) -> bool:
    return a[0] <= b[1] and b[0] <= a[1]

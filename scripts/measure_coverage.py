"""Run the standard's node tests on backends, and write what came of them: the package's data, and docs/coverage.md.

    python scripts/measure_coverage.py                    all backends that can run here
    python scripts/measure_coverage.py onnxruntime iree   these
    python scripts/measure_coverage.py --page             nothing but the page, of the data as they are

A backend whose tests end otherwise than before is named, test by test; what is written is what was measured now.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from penstock import registry, store
from penstock.conformance import measured, measuring
from penstock.conformance.measured import Coverage
from penstock.conformance.suite import KINDS
from penstock.errors import PenstockError

PAGE = Path(__file__).parents[1] / "docs" / "coverage.md"
HEAD = """# What each backend can do

<!-- written by scripts/measure_coverage.py -->

The `onnx` package generates tests of every operator of the standard: small models with inputs, expected outputs and the
bounds within which they hold. Penstock runs them on each backend that takes ONNX, on one thread, each in a process that
may die of it. `penstock list backends --coverage` prints this table of the data in the package, with
`--operator Resize` what each backend makes of one operator and why, and with `--json` every test that didn't pass.
`make coverage` measures all backends that can run on your machine anew.

"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backends", nargs="*")
    parser.add_argument("--jobs", type=int, default=2, help="processes beside each other")
    parser.add_argument("--page", action="store_true", help="write the page alone")
    asked = parser.parse_args()
    wanted = asked.backends or [name for name in registry.names("backends") if name not in measuring.LEFT_OUT]
    for name in [] if asked.page else wanted:
        try:
            found = measuring.measure(name, jobs=asked.jobs, told=lambda done, of, name=name: progress(name, done, of))
        except PenstockError as error:
            if asked.backends:
                print(error, file=sys.stderr)
                return 1
            print(f"{name}: left as it is: {error.what}", file=sys.stderr)
            continue
        before = measured.of(name)
        store.write_bytes(measured.HERE / f"{name}.json", measured.written(found).encode())
        tell(before, found)
    store.write_bytes(PAGE, page().encode())
    return 0


def progress(name: str, done: int, of: int) -> None:
    if done % 50 == 0 or done == of:
        print(f"\r{name}  {done:,} of {of:,}", end="\n" if done == of else "", file=sys.stderr, flush=True)


def tell(before: Coverage | None, found: Coverage) -> None:
    counts = ", ".join(f"{count:,} {kind}" for kind, count in found.counts.items() if count)
    print(f"{found.backend} {found.version}: {counts}")
    if before is None or before.suite != found.suite:
        return
    old, new = before.others, found.others
    for test in sorted({*old, *new}):
        was, now = (held[test].kind if test in held else "passed" for held in (old, new))
        if was != now:
            print(f"  {test}: {was} with {before.version}, {now} now")


def page() -> str:
    found = {name: one for name in registry.names("backends") if (one := measured.of(name)) is not None}
    lines = [
        "| backend | version | measured | tests | " + " | ".join(KINDS) + " | passed, of sessions | operators whole |"
    ]
    lines.append("|---|---|---|" + "--:|" * (len(KINDS) + 3))
    for name, one in found.items():
        share = f"{100 * one.counts['passed'] / one.opened:.1f} %" if one.opened else "–"
        cells = [name, one.version, one.measured, f"{one.tests:,}", *(f"{count:,}" for count in one.counts.values())]
        lines.append("| " + " | ".join([*cells, share, f"{len(one.whole)} of {len(one.operators)}"]) + " |")
    text = HEAD + "\n".join(lines) + "\n\n"
    text += "".join(f"- **{kind}**: {meaning}.\n" for kind, meaning in KINDS.items())
    text += "- **passed, of sessions**: without those that were refused.\n\n"
    for name, share in measuring.RELATIVE.items():
        text += (
            f"Floats of `{name}` are held to {share:g} of the largest value, as by `penstock verify`: its row isn't "
        )
        text += "to be held against the others', whose bounds are the tests' own.\n\n"
    others = measuring.LEFT_OUT | {name: why for name, why in measuring.UNMEASURED.items() if name not in found}
    text += "Not measured:\n\n" + "".join(f"- `{name}`: {reason}.\n" for name, reason in others.items()) + "\n"
    text += "## Why not\n\n"
    for name, one in found.items():
        text += reasons(name, one)
    text += "## By operator\n\nTests that passed, of how many.\n\n"
    operators = sorted({operator for one in found.values() for operator in one.operators}, key=str.lower)
    text += "| operator | " + " | ".join(found) + " |\n|---|" + "--:|" * len(found) + "\n"
    for operator in operators:
        cells = []
        for one in found.values():
            mine = one.operators.get(operator)
            cells.append("–" if mine is None else f"{mine.passed}/{mine.passed + len(mine.others)}")
        text += f"| {operator} | " + " | ".join(cells) + " |\n"
    return text


def reasons(name: str, coverage: Coverage) -> str:
    """Return the wrong, failed, crashed and hung tests of a backend, by reason, the most frequent first."""
    tests: dict[tuple[str, str], list[str]] = {}
    for test, result in coverage.others.items():
        if result.kind != "refused":
            tests.setdefault((result.kind, result.reason), []).append(test.removeprefix("test_"))
    if not tests:
        return ""
    lines = [f"### {name}\n\n"]
    ordered = sorted(tests.items(), key=lambda item: (-len(item[1]), item[0]))
    for (kind, reason), names in ordered:
        shown = reason.replace("|", "/").replace("<", "‹").replace(">", "›")
        lines.append(f"- {kind}: {shown} ({', '.join(names)})\n")
    return "".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())

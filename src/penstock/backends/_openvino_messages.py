"""What OpenVINO says when it refuses a model, in a line that a user can act on."""

from __future__ import annotations

NO_RULE = "-- No conversion rule found for operations:"  # how its report on operators puts it
RULE_FAILED = "-- Conversion is failed for:"


def cause(error: Exception) -> str:
    """Return what of OpenVINO's message says something: the first lines name its own source files.

    Of a report on operators, that is which ones it can't convert, and the last line of each one's own message.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if reported := _operators(lines):
        return reported
    told = [line for line in lines if not line.startswith(("Exception from", "Check '"))]
    for index, line in enumerate(told[:-1]):
        if line.endswith(":"):  # a heading: what it announces stands under it
            told[index] = f"{line} {told[index + 1]}"
    return (told or lines or [type(error).__name__])[0][:300]


def _operators(lines: list[str]) -> str:
    """Return what a report on unconverted operators says of them, "" where there is no such report."""
    found: list[str] = []
    reasons: dict[str, str] = {}  # operator → the last line of its message
    of = ""
    for line in lines:
        if line.endswith("with a message:"):
            of = line.removeprefix("-- ").removesuffix("with a message:").strip()
        elif line == "Summary:":
            of = ""
        elif line.startswith(NO_RULE):
            found.append(f"it has no rule for {line.removeprefix(NO_RULE).strip()}")
        elif line.startswith(RULE_FAILED):
            names = [name.strip() for name in line.removeprefix(RULE_FAILED).split(",")]
            found += [f"{name}: {reasons[name][:200]}" if name in reasons else f"{name} fails" for name in names]
        elif of:
            reasons[of] = line
    return "; ".join(found)[:600]

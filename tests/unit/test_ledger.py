"""The ledger: whole lines or an error, a torn last line dropped, what differs between builds under three keys."""

import json

import pytest

from penstock import ledger
from penstock.deployment import Deployment
from penstock.errors import InputError
from penstock.ledger import Done, Entry
from penstock.record import Record
from penstock.signature import Signature, TensorSpec
from penstock.variant import ModelFile, Variant
from penstock.verdict import Outcome, Verdict

SPEC = TensorSpec("x", "float32", ("batch", 3, None))
VARIANT = Variant(
    "fp32", "d" * 64, "onnx", "fp32", (ModelFile("model.onnx", "a" * 64, 10),), "model.onnx",
    Signature((SPEC,), (TensorSpec("y", "float32", None),)), (), "export", {"opset": 17, "input": ["x"]}, {"onnx": "1"},
)  # fmt: skip
ENTRIES: list[Entry] = [
    VARIANT,
    Record("export", "fp32", {}, {"n": 1}, {"seconds": float("inf")}, {"cpu": "x"}),
    Done("export", "k1"),
    Deployment("fp32@onnxruntime", "fp32", "d", "fp32", "onnxruntime", options={"optimization": "all"}),
    Verdict("verify", "fp32@onnxruntime", Outcome(False, "too far")),
    Done("verify", "k2"),
]


def text(entries: list[Entry] = ENTRIES, at: float = 1.0) -> str:
    made = [ledger.header()]
    for entry in entries:
        made.append(ledger.line(entry, at, ledger.link(made[-1])))
    return "".join(made)


def test_round_trip() -> None:
    got = ledger.parse(text(), "here")
    assert [type(entry) for entry in got] == [type(entry) for entry in ENTRIES]
    assert got[0] == VARIANT and got[2:] == ENTRIES[2:]
    assert isinstance(got[1], Record) and got[1].facts == {"n": 1} and got[1].measured == {"seconds": "inf"}


def test_every_line_is_json_and_the_first_names_the_schema() -> None:
    lines = [json.loads(line) for line in text().splitlines()]
    assert lines[0] == {"kind": "header", "schema": ledger.SCHEMA}
    assert [line["kind"] for line in lines[1:]] == ["variant", "record", "done", "deployment", "verdict", "done"]
    assert all(line["at"] == 1.0 for line in lines[1:])


def test_a_torn_last_line_is_dropped_wherever_it_is_torn() -> None:
    whole = text()
    keep = len(text(ENTRIES[:-1]))
    for cut in range(keep, len(whole)):
        assert ledger.parse(whole[:cut], "here") == ledger.parse(text(ENTRIES[:-1]), "here"), cut


def test_an_empty_or_torn_header_is_an_empty_ledger() -> None:
    assert ledger.parse("", "here") == []
    assert ledger.parse(ledger.header()[:-4], "here") == []


@pytest.mark.parametrize(
    "broken",
    [
        "{ not json",
        '{"kind": "novel", "at": 1, "body": {}}',
        '{"kind": "done", "at": 1}',
        '{"kind": "done", "at": 1, "body": {"step": "s"}}',
        '{"kind": "done", "at": 1, "body": {"step": "s", "key": "k", "more": 1}}',
        "[]",
        "3",
        "",
    ],
)
def test_a_broken_middle_line_is_an_error_that_names_it(broken: str) -> None:
    lines = text().splitlines(keepends=True)
    lines.insert(2, broken + "\n")
    with pytest.raises(InputError, match="line 3") as caught:
        ledger.parse("".join(lines), "out/ledger.jsonl")
    assert caught.value.id == "bad-ledger" and caught.value.where == "out/ledger.jsonl" and caught.value.do


@pytest.mark.parametrize("first", ['{"kind": "header", "schema": 999}', '{"kind": "done"}', "[]"])
def test_another_schema_is_refused(first: str) -> None:
    with pytest.raises(InputError, match="line 1"):
        ledger.parse(first + "\n", "here")


def test_finished_groups_by_step_and_leaves_the_tail_out() -> None:
    grouped = ledger.finished([*ENTRIES, Record("bench", "run")])
    assert [(done.step, len(part)) for done, part in grouped] == [("export", 2), ("verify", 2)]


def test_without_measurements_takes_out_what_may_differ_and_nothing_else() -> None:
    other = [*ENTRIES]
    other[1] = Record("export", "fp32", {}, {"n": 1}, {"seconds": 3.0}, {"cpu": "another"})
    other[4] = Verdict("verify", "fp32@onnxruntime", Outcome(True))
    assert ledger.without_measurements(text()) == ledger.without_measurements(text(other, at=9.0))
    other[1] = Record("export", "fp32", {}, {"n": 2}, {}, {})
    assert ledger.without_measurements(text()) != ledger.without_measurements(text(other))


def test_line_separators_inside_texts_split_no_line() -> None:
    """U+2028 and U+0085 are line ends to str.splitlines, and stand as they are in our JSON."""
    entries: list[Entry] = [Record("export", "a\u2028b\u0085c")]
    assert ledger.parse(text(entries), "here") == entries
    assert len(ledger.without_measurements(text(entries))) == 2


@pytest.mark.parametrize("index", range(1, 6))
def test_a_line_that_is_missing_or_changed_is_noticed(index: int) -> None:
    """Each line carries a digest of the one before; only the end can be missing, as after a kill."""
    lines = text().splitlines(keepends=True)
    with pytest.raises(InputError, match="lines are missing") as caught:
        ledger.parse("".join(lines[:index] + lines[index + 1 :]), "here")
    assert "delete this one whole" in caught.value.do
    changed = [*lines]
    changed[index] = changed[index].replace('"at": 1.0', '"at": 2.0')
    with pytest.raises(InputError, match=f"line {index + 2}"):
        ledger.parse("".join(changed), "here")

"""A build goes on where it stopped: equal keys are taken over, the first other key cuts the ledger."""

from collections.abc import Callable
from pathlib import Path

import pytest

from penstock import ledger
from penstock.journal import Journal
from penstock.ledger import Append, Entry
from penstock.record import Record
from penstock.store import BuildFolder


@pytest.fixture
def folder(tmp_path: Path) -> BuildFolder:
    made = BuildFolder(tmp_path / "out")
    made.root.mkdir()
    return made


def note(name: str, ran: list[str]) -> Callable[[Append], None]:
    def run(append: Append) -> None:
        ran.append(name)
        append(Record(name, "subject", measured={"n": len(ran)}))

    return run


def build(folder: BuildFolder, *steps: tuple[str, object], close: bool = True) -> tuple[list[str], Journal]:
    ran: list[str] = []
    journal = Journal(folder)
    for name, key in steps:
        journal.step(name, key, note(name, ran))
    if close:
        journal.close()
    return ran, journal


def stages(folder: BuildFolder) -> list[str]:
    return [entry.stage if isinstance(entry, Record) else f"done {entry.step}" for entry in folder.read_ledger()]  # type: ignore[union-attr]


def test_the_first_build_runs_all(folder: BuildFolder) -> None:
    ran, journal = build(folder, ("a", 1), ("b", 2))
    assert ran == ["a", "b"] and journal.resumed == []
    assert stages(folder) == ["a", "done a", "b", "done b"]


def test_equal_keys_are_taken_over_with_their_entries(folder: BuildFolder) -> None:
    _, first = build(folder, ("a", 1), ("b", {"x": [1]}))
    before = folder.ledger_path.read_bytes()
    ran, second = build(folder, ("a", 1), ("b", {"x": [1]}))
    assert ran == [] and second.resumed == ["a", "b"]
    assert second.entries == first.entries
    assert folder.ledger_path.read_bytes() == before


def test_another_key_cuts_the_ledger_there(folder: BuildFolder) -> None:
    build(folder, ("a", 1), ("b", 2), ("c", 3))
    ran, journal = build(folder, ("a", 1), ("b", 99), ("c", 3), close=False)
    assert ran == ["b", "c"] and journal.resumed == ["a"], "c may depend on what b made"
    assert stages(folder) == ["a", "done a", "b", "done b", "c", "done c"]
    assert isinstance(journal.entries[0], Record) and journal.entries[0].measured == {"n": 1}


def test_the_ledger_is_cut_before_the_new_step_runs(folder: BuildFolder) -> None:
    """A build killed inside the new step must not find the old steps behind it."""
    build(folder, ("a", 1), ("b", 2), ("c", 3))

    def killed(append: Append) -> None:
        append(Record("b", "half"))
        raise KeyboardInterrupt

    journal = Journal(folder)
    journal.step("a", 1, note("a", []))
    with pytest.raises(KeyboardInterrupt):
        journal.step("b", 99, killed)
    assert stages(folder) == ["a", "done a", "b"]
    ran, _ = build(folder, ("a", 1), ("b", 99))
    assert ran == ["b"] and stages(folder) == ["a", "done a", "b", "done b"], "the unfinished tail is dropped"


def test_another_name_with_the_same_key_is_another_step(folder: BuildFolder) -> None:
    build(folder, ("a", 1))
    ran, _ = build(folder, ("b", 1))
    assert ran == ["b"] and stages(folder) == ["b", "done b"]


def test_steps_that_the_build_no_longer_has_are_cut_at_the_end(folder: BuildFolder) -> None:
    build(folder, ("a", 1), ("b", 2))
    ran, _ = build(folder, ("a", 1))
    assert ran == [] and stages(folder) == ["a", "done a"]


def test_a_torn_tail_of_a_finished_build_is_dropped(folder: BuildFolder) -> None:
    build(folder, ("a", 1))
    whole = folder.ledger_path.read_text()
    extra: Entry = Record("b", "never done")
    folder.ledger_path.write_text(
        whole + ledger.line(extra, 1.0, ledger.link(whole.splitlines()[-1])) + '{"kind": "rec'
    )
    ran, journal = build(folder, ("a", 1))
    assert ran == [] and extra not in journal.entries
    assert len(ledger.without_measurements(folder.ledger_path.read_text())) == 3
    assert stages(folder) == ["a", "done a"]


def test_when_a_step_was_taken_over_it_keeps_its_time(folder: BuildFolder) -> None:
    """``at`` says when a thing was measured; a later run doesn't move it."""
    folder.cut_ledger(0)
    from penstock.ledger import Done
    from penstock.store import digest_of

    lines = [ledger.line(Record("a", "s"), 5.0, ledger.link(ledger.header()))]
    lines.append(ledger.line(Done("a", digest_of(1)), 5.0, ledger.link(lines[0])))
    folder.ledger_path.write_text(ledger.header() + "".join(lines))
    build(folder, ("a", 1), ("b", 2))
    assert folder.ledger_path.read_text().splitlines()[1:3] == [line.rstrip("\n") for line in lines]


def test_records_are_written_again_and_a_missing_blob_runs_the_step_again(folder: BuildFolder) -> None:
    ran: list[str] = []

    def take() -> list[str]:
        ran.clear()
        journal = Journal(folder)

        def run(append: Append) -> None:
            ran.append("a")
            append(Record("a", "s", measured={"inner": {"samples_blob": folder.blob(b"numbers")}}))

        journal.step("a", 1, run)
        journal.close()
        return [*ran]

    assert take() == ["a"] and take() == []
    record = folder.root / "records" / "a" / "s.json"
    whole = record.read_bytes()
    for damage in (record.unlink, lambda: record.write_text("{}")):
        damage()
        assert take() == [] and record.read_bytes() == whole
    blob = next((folder.root / "blobs").iterdir())
    for damage in (blob.unlink, lambda: blob.write_bytes(b"other")):
        damage()
        assert take() == ["a"] and blob.read_bytes() == b"numbers"


def test_a_step_whose_evidence_is_gone_runs_again(folder: BuildFolder) -> None:
    build(folder, ("a", 1), ("b", 2))
    journal, ran = Journal(folder), []
    journal.step("a", 1, note("a", ran), lambda entries: False)
    journal.step("b", 2, note("b", ran))
    assert ran == ["a", "b"] and journal.resumed == []

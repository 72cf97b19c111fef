"""Kept: blocks may lie in each other or overlap; each ends what it kept, and nothing stays behind."""

from penstock import kept


class Thing:
    def __init__(self) -> None:
        self.closed = 0

    def close(self) -> None:
        self.closed += 1


def test_a_thing_is_kept_for_the_next_and_ended_at_the_end() -> None:
    thing = Thing()
    assert not kept.wanted() and not kept.give("a", thing)
    with kept.keeping():
        assert kept.wanted() and kept.give("a", thing) and kept.take("b") is None
        assert kept.take("a") is thing and kept.take("a") is None
        assert kept.give("a", thing)
    assert thing.closed == 1 and not kept.wanted() and kept.take("a") is None


def test_only_what_was_asked_for_is_kept() -> None:
    with kept.keeping(lambda key: key == "mine"):
        assert kept.wanted() and kept.wanted("mine") and not kept.wanted("yours")
        assert kept.give("mine", Thing()) and not kept.give("yours", Thing())


def test_blocks_that_overlap_as_those_of_two_threads() -> None:
    one, other = kept.keeping(), kept.keeping()
    first, second = Thing(), Thing()
    one.__enter__()
    assert kept.give("a", first)
    other.__enter__()
    assert kept.take("a") is None and kept.give("a", second)
    one.__exit__(None, None, None)
    assert (first.closed, second.closed) == (1, 0) and kept.take("a") is second and kept.give("a", second)
    other.__exit__(None, None, None)
    assert second.closed == 1 and not kept.wanted()

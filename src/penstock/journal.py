"""Journal: run a build's steps once, and take up where an interrupted build stopped.

Each step has a key, the digest of everything that it depends on. As long as the steps of the earlier ledger have the
same keys in the same order, their entries stand and the steps don't run; at the first difference the ledger is cut
and the build goes on from there. A step whose evidence is no longer whole counts as a difference.
"""

from __future__ import annotations

from collections.abc import Callable

from penstock.ledger import Append, Done, Entry, finished
from penstock.store import BuildFolder, digest_of


class Journal:
    """The ledger of one build while it runs."""

    def __init__(self, folder: BuildFolder) -> None:
        self._folder = folder
        self._earlier = finished(folder.read_ledger())
        self._kept: list[Entry] = []
        self._steps = 0
        self._diverged = False
        self.entries: list[Entry] = []
        self.resumed: list[str] = []  # names of steps that were taken over

    def step(
        self,
        name: str,
        inputs: object,
        run: Callable[[Append], None],
        whole: Callable[[list[Entry]], bool] = lambda entries: True,
    ) -> list[Entry]:
        """Run a step, or take its entries from the earlier ledger; return them.

        ``inputs`` is what it depends on; ``whole`` tells whether what it left outside the ledger is still there.
        """
        done = Done(name, digest_of(inputs))
        if (taken := self._take_over(done, whole)) is not None:
            return taken
        self._diverge()
        made: list[Entry] = []

        def append(entry: Entry) -> None:
            self._folder.append(entry)
            made.append(entry)

        run(append)
        self._folder.append(done)
        self.entries += made
        return made

    def _take_over(self, done: Done, whole: Callable[[list[Entry]], bool]) -> list[Entry] | None:
        """Return a step's entries from the earlier ledger, or ``None`` where it has to run."""
        if self._diverged or self._steps >= len(self._earlier):
            return None
        earlier, entries = self._earlier[self._steps]
        if earlier != done or not self._folder.mend(entries) or not whole(entries):
            return None
        self._steps += 1
        self._kept += [*entries, done]
        self.entries += entries
        self.resumed.append(done.step)
        return entries

    def close(self) -> None:
        """End the build: whatever the earlier ledger held beyond the last step is cut off."""
        if not self._diverged:
            self._folder.cut_ledger(len(self._kept))

    def _diverge(self) -> None:
        if not self._diverged:
            self._diverged = True
            self._folder.cut_ledger(len(self._kept))

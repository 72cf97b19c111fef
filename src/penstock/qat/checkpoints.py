"""Checkpoints of the given loop: a file, written whole after each epoch. Imports torch: load inside functions only."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from penstock import store
from penstock.errors import UsageError

if TYPE_CHECKING:
    from penstock.qat.loop import Epoch
    from penstock.qat.preparation import Prepared
    from penstock.qat.settings import Recipe

KEYS = ("key", "module", "optimizer", "epochs", "best", "chosen")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where a run is kept, and what it began with: only the same run is gone on with."""

    path: Path
    key: str

    def load(self) -> dict[str, Any] | None:
        """Return the state of this run after its last whole epoch; ``None`` where there is none yet.

        Raises ``UsageError`` for a file that holds something else, or another run: neither is written over.
        """
        with store.explained(self.path):
            if not self.path.exists() or not self.path.stat().st_size:
                return None
            held = self.path.read_bytes()
        found = _read(held)
        if found is None:
            what = "the file that would keep the run holds something else than a checkpoint of penstock qat"
            raise UsageError("not-a-checkpoint", what, where=str(self.path), do="name another file: --checkpoint")
        if found["key"] != self.key:
            what = "the checkpoint is another run's: its weights, grids, recipe, seed or data are others"
            do = "give the command that it was begun with, name another file with --checkpoint, or remove this one"
            raise UsageError("not-a-checkpoint", what, where=str(self.path), do=do)
        return found

    def save(
        self, module: nn.Module, optimizer: torch.optim.Optimizer, epochs: Sequence[Epoch], best: dict[str, Any],
        chosen: int,
    ) -> None:  # fmt: skip
        """Write the state after an epoch."""
        buffer = io.BytesIO()
        state = {
            "key": self.key, "module": module.state_dict(), "optimizer": optimizer.state_dict(),
            "epochs": [asdict(epoch) for epoch in epochs], "best": best, "chosen": chosen,
        }  # fmt: skip
        torch.save(state, buffer)
        store.write_bytes(self.path, buffer.getvalue())


def _read(held: bytes) -> dict[str, Any] | None:
    """Return what a checkpoint of the given loop holds; ``None`` for a file of something else."""
    try:
        found = torch.load(io.BytesIO(held), weights_only=True)
    except Exception:  # torch raises many types for what it can't read
        return None
    return found if isinstance(found, dict) and found.keys() == set(KEYS) else None


def of(path: str | Path | None, prepared: Prepared, recipe: Recipe, seed: int, data: str) -> Checkpoint | None:
    """Name the run: its weights and grids before training, the recipe, the seed, and what the data says of itself."""
    if path is None:
        return None
    digests = {
        name: store.digest_of(np.ascontiguousarray(tensor.detach().cpu().numpy()).tobytes().hex())
        for name, tensor in prepared.module.state_dict().items()
    }
    return Checkpoint(Path(path), store.digest_of([digests, asdict(recipe), seed, data]))

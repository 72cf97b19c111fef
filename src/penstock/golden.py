"""The golden set: inputs and the source's own float32 outputs, which every deployment is held against."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from penstock import store
from penstock.errors import InputError
from penstock.jsonable import Json

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from penstock.backends import Session
    from penstock.feeds import Feeds

BATCH = 16


@dataclass(frozen=True, slots=True)
class Golden:
    """Runs of the source: ``feeds[i]`` gave ``outputs[i]`` (in the signature's order).

    ``real`` is the number of samples of each run that count; a fixed batch may be filled up by repetition.
    """

    description: Mapping[str, Json]
    computed_by: str
    output_names: tuple[str, ...]
    real: tuple[int, ...]
    feeds: tuple[Mapping[str, np.ndarray], ...]
    outputs: tuple[tuple[np.ndarray, ...], ...]

    @property
    def samples(self) -> int:
        """How many samples it holds."""
        return sum(self.real)


def make(feeds: Feeds, session: Session, computed_by: str, output_names: Sequence[str]) -> Golden:
    """Run the source over the golden inputs. Raises ``InputError`` when it gives NaN or infinities everywhere."""
    import numpy as np

    real, taken, outputs = [], [], []
    for count, batch in feeds.batches(BATCH):
        real.append(count)
        taken.append(batch)
        outputs.append(tuple(session.run(batch)))
    for position, name in enumerate(output_names):
        values = [run[position] for run in outputs]
        floating = [v for v in values if np.issubdtype(v.dtype, np.floating) and v.size]
        if floating and not any(np.isfinite(v).any() for v in floating):
            what = f"the source's output {name!r} is NaN or infinite on every golden input"
            raise InputError("source-not-finite", what, do="check the weights, or give real inputs with --data")
    return Golden(feeds.description, computed_by, tuple(output_names), tuple(real), tuple(taken), tuple(outputs))


def _pack(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Serialise arrays as an .npz whose bytes depend on the arrays alone (numpy's own carries the time)."""
    import zipfile

    import numpy as np

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(arrays):
            item = io.BytesIO()
            np.lib.format.write_array(item, np.ascontiguousarray(arrays[name]), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0)), item.getvalue())
    return buffer.getvalue()


def write(golden: Golden, folder: Path) -> dict[str, Json]:
    """Write ``inputs.npz``, ``outputs.npz`` and ``golden.json``; return what the record says of them."""
    inputs = {f"{i}/{name}": array for i, run in enumerate(golden.feeds) for name, array in run.items()}
    outputs = {
        f"{i}/{name}": array
        for i, run in enumerate(golden.outputs)
        for name, array in zip(golden.output_names, run, strict=True)
    }
    for name, arrays in (("inputs.npz", inputs), ("outputs.npz", outputs)):
        store.write_bytes(folder / name, _pack(arrays))
    facts: dict[str, Json] = {
        "computed_by": golden.computed_by,
        "samples": golden.samples,
        "runs": list(golden.real),
        "outputs": list(golden.output_names),
        "inputs_sha256": store.file_digest(folder / "inputs.npz"),
        "outputs_sha256": store.file_digest(folder / "outputs.npz"),
        "description": dict(golden.description),
    }
    store.write_json(folder / "golden.json", facts)
    return facts


def read(folder: Path) -> Golden:
    """Read a golden set back, checking its digests. Raises ``InputError`` when it is damaged or incomplete."""
    import numpy as np

    try:
        facts = json.loads((folder / "golden.json").read_bytes())
        for name in ("inputs", "outputs"):
            if store.file_digest(folder / f"{name}.npz") != facts[f"{name}_sha256"]:
                raise ValueError(f"{name}.npz was changed after it was written")
        with np.load(folder / "inputs.npz", allow_pickle=False) as data:
            given = {key: data[key] for key in data.files}
        with np.load(folder / "outputs.npz", allow_pickle=False) as data:
            wanted = {key: data[key] for key in data.files}
        names = tuple(facts["outputs"])
        runs = tuple(int(n) for n in facts["runs"])
        feeds = []
        for i in range(len(runs)):
            feeds.append({key.split("/", 1)[1]: given[key] for key in given if key.split("/", 1)[0] == str(i)})
        outputs = tuple(tuple(wanted[f"{i}/{name}"] for name in names) for i in range(len(runs)))
    except (OSError, KeyError, ValueError) as error:
        what = f"the golden set can't be read: {error}"
        raise InputError("bad-golden", what, where=str(folder), do="build again into a new folder") from error
    return Golden(facts["description"], facts["computed_by"], names, runs, tuple(feeds), outputs)

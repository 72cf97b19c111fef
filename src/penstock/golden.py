"""The golden set: inputs and the source's own float32 outputs, which every deployment is held against."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
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

    ``real`` is the number of samples of each run that count; a fixed batch may be filled up by repetition. ``noise``
    is, for inputs that were made up, how far each output moves (relative, as in :mod:`penstock.metrics`) when every
    float input moves by one unit in its last place: the source's own rounding noise on such inputs.
    """

    description: Mapping[str, Json]
    computed_by: str
    output_names: tuple[str, ...]
    real: tuple[int, ...]
    feeds: tuple[Mapping[str, np.ndarray], ...]
    outputs: tuple[tuple[np.ndarray, ...], ...]
    noise: Mapping[str, float] = field(default_factory=dict)
    logits: tuple[str, ...] = ()  # the outputs that hold class scores

    @property
    def samples(self) -> int:
        """How many samples it holds."""
        return sum(self.real)


def make(
    feeds: Feeds, session: Session, computed_by: str, output_names: Sequence[str], logits: tuple[str, ...] = ()
) -> Golden:
    """Run the source over the golden inputs; ``logits`` names the outputs that hold class scores.

    Raises ``InputError`` when it gives NaN or infinities everywhere.
    """
    import numpy as np

    real, taken, outputs = [], [], []
    for count, batch in runs(feeds):
        real.append(count)
        taken.append(batch)
        outputs.append(tuple(session.run(batch)))
    for position, name in enumerate(output_names):
        values = [run[position] for run in outputs]
        _need_tensors(name, values)
        floating = [v for v in values if np.issubdtype(v.dtype, np.floating) and v.size]
        if floating and not any(np.isfinite(v).any() for v in floating):
            what = f"the source's output {name!r} is NaN or infinite on every golden input"
            raise InputError("source-not-finite", what, do="check the weights, or give real inputs with --data")
    made = Golden(
        feeds.description, computed_by, tuple(output_names), tuple(real), tuple(taken), tuple(outputs), logits=logits
    )
    return replace(made, noise=_noise(made, session)) if feeds.description.get("kind") == "seeded" else made


def runs(feeds: Feeds) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Cut the samples into runs: one sample by itself first, so that a slow oracle has a small run to begin with."""
    if feeds.fixed_batch is not None:
        yield from feeds.batches(BATCH)
        return
    yield 1, feeds.rows(0, 1)
    for start in range(1, feeds.count, BATCH):
        stop = min(start + BATCH, feeds.count)
        yield stop - start, feeds.rows(start, stop)


def _need_tensors(name: str, values: Sequence[object]) -> None:
    import numpy as np

    if any(not isinstance(value, np.ndarray) or value.dtype.hasobject for value in values):
        what = f"the output {name!r} holds texts, sequences or maps, which are not compared"
        raise InputError("unsupported-output", what, do="export the model without it, for example with zipmap off")


def _noise(golden: Golden, session: Session) -> dict[str, float]:
    """Run the source again with every float input one unit in the last place higher or lower, by a seeded coin."""
    import numpy as np

    from penstock.metrics import compare

    random = np.random.RandomState(0)
    worst = dict.fromkeys(golden.output_names, 0.0)
    scale = dict.fromkeys(golden.output_names, 0.0)
    for feeds, outputs in zip(golden.feeds, golden.outputs, strict=True):
        moved = {
            name: np.asarray(np.nextafter(array, array.dtype.type(random.choice((-np.inf, np.inf)))))
            if np.issubdtype(array.dtype, np.floating)
            else array
            for name, array in feeds.items()
        }
        for name, got, want in zip(golden.output_names, session.run(moved), outputs, strict=True):
            found = compare(got, want, logits=False)
            if found.max_abs is not None and np.isfinite(found.max_abs):
                worst[name] = max(worst[name], found.max_abs)
                scale[name] = max(scale[name], float(np.abs(want[np.isfinite(want)]).max(initial=0.0)))
    return {name: worst[name] / scale[name] if scale[name] else 0.0 for name in worst}


def pack(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Serialise arrays as an .npz whose bytes depend on the arrays alone (numpy's own carries the time)."""
    import zipfile

    import numpy as np

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(arrays):
            item = io.BytesIO()
            np.lib.format.write_array(item, np.asarray(arrays[name], order="C"), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0)), item.getvalue())
    return buffer.getvalue()


def write(golden: Golden, folder: Path) -> dict[str, Json]:
    """Write ``inputs.npz``, ``outputs.npz`` and ``golden.json``; return what the record says of them."""
    for position, name in enumerate(golden.output_names):
        _need_tensors(name, [run[position] for run in golden.outputs])
    inputs = {f"{i}/{name}": array for i, run in enumerate(golden.feeds) for name, array in run.items()}
    outputs = {
        f"{i}/{name}": array
        for i, run in enumerate(golden.outputs)
        for name, array in zip(golden.output_names, run, strict=True)
    }
    for name, arrays in (("inputs.npz", inputs), ("outputs.npz", outputs)):
        store.write_bytes(folder / name, pack(arrays))
    facts: dict[str, Json] = {
        "computed_by": golden.computed_by,
        "samples": golden.samples,
        "runs": list(golden.real),
        "inputs": list(golden.feeds[0]),
        "outputs": list(golden.output_names),
        "inputs_sha256": store.file_digest(folder / "inputs.npz"),
        "outputs_sha256": store.file_digest(folder / "outputs.npz"),
        "description": dict(golden.description),
        "noise": dict(golden.noise),
        "logits": list(golden.logits),
    }
    store.write_json(folder / "golden.json", facts)
    return facts


def is_whole(folder: Path, recorded: Mapping[str, Json]) -> bool:
    """Tell whether a golden set, and the preprocessing beside it, are still what their record says."""
    try:
        read(folder)
        facts = json.loads((folder / "golden.json").read_bytes())
        preprocessing = recorded.get("preprocessing")
        if preprocessing is not None and json.loads((folder / "preprocessing.json").read_bytes()) != preprocessing:
            return False
    except (InputError, OSError, ValueError):
        return False
    return bool(facts == {key: value for key, value in recorded.items() if key != "preprocessing"})


def read(folder: Path) -> Golden:
    """Read a golden set back, checking its digests. Raises ``InputError`` when it is damaged or incomplete."""

    try:
        facts = json.loads((folder / "golden.json").read_bytes())
        for name in ("inputs", "outputs"):
            if store.file_digest(folder / f"{name}.npz") != facts[f"{name}_sha256"]:
                raise ValueError(f"{name}.npz was changed after it was written")
        given, wanted = _arrays(folder / "inputs.npz"), _arrays(folder / "outputs.npz")
        names = tuple(facts["outputs"])
        runs = tuple(int(n) for n in facts["runs"])
        # in the model's own order: PyTorch takes inputs by position
        feeds = [{name: given[f"{i}/{name}"] for name in facts["inputs"]} for i in range(len(runs))]
        description, computed_by = dict(facts["description"]), str(facts["computed_by"])
        noise = {str(name): float(value) for name, value in facts["noise"].items()}
        outputs = tuple(tuple(wanted[f"{i}/{name}"] for name in names) for i in range(len(runs)))
        logits = tuple(str(name) for name in facts["logits"])
    except Exception as error:  # parsers meet arbitrary bytes: whatever they raise is about the folder
        what = f"the golden set can't be read: {error}"
        raise InputError("bad-golden", what, where=str(folder), do="build again into a new folder") from error
    return Golden(description, computed_by, names, runs, tuple(feeds), outputs, noise, logits)


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """Read an .npz that :func:`pack` made. Raises what a damaged one raises."""
    import zipfile

    import numpy as np

    with zipfile.ZipFile(path) as file:  # as it was written, nothing in it is smaller than what it unpacks to
        if any(one.file_size > one.compress_size for one in file.infolist()):
            raise ValueError(f"{path.name} holds compressed arrays")
    with np.load(path, allow_pickle=False) as data:
        return {key: data[key] for key in data.files}

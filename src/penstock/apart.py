"""A third party's frontend or quantizer works in a process of its own, and a data set of theirs is first opened in one.

What they raise could be caught where they are called. One that ends its process (``os._exit``, a fault in native code)
would end the build without a word.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

from penstock import handover, precheck, registry, store, worker
from penstock.errors import InputError
from penstock.frontends import Exported, Frontend, Source
from penstock.jsonable import Json, from_json, to_json
from penstock.rehearsal import PATIENCE

if TYPE_CHECKING:
    import numpy as np

    from penstock.data import DataSettings
    from penstock.quantizers import Quantizer
    from penstock.stages.export import ExportSettings
    from penstock.stages.quantize import QuantizeSettings

FOREVER = float("inf")  # an export or a quantization takes what it takes


def foreign(kind: registry.Kind, name: str) -> bool:
    """Whether a plug-in is a third party's, and this process not one that was made for it."""
    return name in registry.origins(kind) and not os.environ.get(registry.INSIDE)


def export(
    name: str, source: Source, settings: ExportSettings, example: Mapping[str, np.ndarray] | None, into: Path
) -> Exported:
    """Let a third party's frontend export; see :meth:`penstock.frontends.Frontend.export`. Raises what it raises."""
    with store.scratch() as work:
        argument: dict[str, Json] = {"name": name, "source": to_json(source), "settings": to_json(settings)}
        argument |= {"into": str(into.resolve()), "example": handover.save([example] if example else [], work)}
        given = _call("frontends", name, "serve_export", argument, FOREVER)
    _need_model("frontends", name, into)
    try:
        return from_json(Exported, given)
    except ValueError as error:
        raise _faulty("frontends", name, f"gave no facts of its export: {error}") from error


def quantize(
    name: str, model: Path, batches: Iterable[Mapping[str, np.ndarray]], settings: QuantizeSettings, into: Path
) -> Mapping[str, Json]:
    """Let a third party's quantizer work; see :meth:`penstock.quantizers.Quantizer.quantize`. Raises what it raises."""
    with store.scratch() as work:
        argument: dict[str, Json] = {"name": name, "model": str(model.resolve()), "settings": to_json(settings)}
        argument |= {"into": str(into.resolve()), "batches": handover.save(batches, work)}
        facts = cast("dict[str, Json]", _call("quantizers", name, "serve_quantize", argument, FOREVER))
    _need_model("quantizers", name, into)
    if store.file_digest(into) == store.file_digest(model):
        raise _faulty("quantizers", name, "gave the model back as it was")
    return facts


def open_first(name: str, spec: str, settings: DataSettings) -> None:
    """Open a third party's data set and let it go again; it is opened once more where its samples are needed.

    Raises ``InputError`` where that ends its process, or takes longer than a rehearsal may.
    """
    argument: dict[str, Json] = {"name": name, "spec": spec, "settings": to_json(settings)}
    _call("datasets", name, "serve_data", argument, PATIENCE * precheck.settings().session_seconds)


@contextlib.contextmanager
def own_streams() -> Iterator[None]:
    """Let what somebody else's code prints go to standard error, and keep both streams whatever it does with them."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    kept = os.dup(1), os.dup(2)
    try:
        os.dup2(2, 1)
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        for place, copy in enumerate(kept, 1):
            os.dup2(copy, place)
            os.close(copy)


def _need_model(kind: registry.Kind, name: str, path: Path) -> None:
    """Raise ``InputError`` where the file is no model that can be opened."""
    from penstock import graph

    if not path.is_file():
        raise _faulty(kind, name, "wrote no model")
    try:
        graph.load(path)
    except InputError as error:
        raise _faulty(kind, name, f"wrote what can't be opened: {error.what}") from error


def _faulty(kind: registry.Kind, name: str, what: str) -> InputError:
    owner = registry.origins(kind)[name]
    return InputError(
        "plug-in-failed", f"the {registry.singular(kind)} {name!r} of {owner} {what}",
        do=f"update or uninstall it, or tell the authors of {owner}",
    )  # fmt: skip


def need_dataset(name: str, found: object) -> None:
    """Raise ``InputError`` where a third party's data set is none."""
    import numpy as np

    from penstock.data import Dataset, Preprocessing, Split

    if not isinstance(found, Dataset):
        raise _faulty("datasets", name, f"gave no Dataset but a {type(found).__name__}")
    splits = [found.train] if found.evaluate is None else [found.train, found.evaluate]
    for split in splits:
        arrays = split.arrays.values() if isinstance(split, Split) and isinstance(split.arrays, Mapping) else ()
        if not arrays or not all(isinstance(one, np.ndarray) and one.ndim for one in arrays):
            raise _faulty("datasets", name, "gave a Dataset without arrays of samples")
    if not isinstance(found.preprocessing, Preprocessing):
        raise _faulty("datasets", name, "gave a Dataset without a Preprocessing")


def _call(kind: registry.Kind, name: str, served: str, argument: dict[str, Json], seconds: float) -> Json:
    argument["path"] = [*sys.path]
    try:
        return worker.call(f"penstock.apart:{served}", argument, timeout_s=seconds)
    except worker.WorkerTimeout as error:
        raise _faulty(kind, name, f"took more than {seconds:g} s, ten times [check] session_seconds") from error
    except worker.WorkerCrash as error:
        how = "failed" if error.id == "worker-fault" else "took its process down"
        raise _faulty(kind, name, f"{how}: {error.what.splitlines()[0]}") from error


def _served(argument: Json, kind: registry.Kind) -> tuple[dict[str, Json], object]:
    """Find the plug-in: the worker's side, with what the caller can import."""
    asked = cast("dict[str, Json]", argument)
    sys.path += [path for path in cast("list[str]", asked["path"]) if path not in sys.path]
    os.environ[registry.INSIDE] = "1"
    return asked, registry.load(kind, str(asked["name"]))


def serve_export(argument: Json) -> Json:
    """Export: the worker's side."""
    from penstock.stages.export import ExportSettings

    asked, found = _served(argument, "frontends")
    example = next(iter(handover.Saved(asked["example"])), None)
    source, settings = from_json(Source, asked["source"]), from_json(ExportSettings, asked["settings"])
    with registry.blamed("frontends", str(asked["name"])):
        return to_json(cast("Frontend", found).export(source, settings, example, Path(str(asked["into"]))))


def serve_quantize(argument: Json) -> Json:
    """Quantize: the worker's side."""
    from penstock.stages.quantize import QuantizeSettings, quantize_with

    asked, found = _served(argument, "quantizers")
    batches = handover.Saved(asked["batches"])
    settings, into = from_json(QuantizeSettings, asked["settings"]), Path(str(asked["into"]))
    return to_json(quantize_with(cast("Quantizer", found), Path(str(asked["model"])), batches, settings, into))


def serve_data(argument: Json) -> Json:
    """Open a data set: the worker's side."""
    from penstock.data import DatasetSource, DataSettings
    from penstock.progress import SILENT

    asked, found = _served(argument, "datasets")
    with registry.blamed("datasets", str(asked["name"])):
        opened = cast("DatasetSource", found).open(
            str(asked["spec"]), from_json(DataSettings, asked["settings"]), SILENT
        )
        need_dataset(str(asked["name"]), opened)
    return True

"""A third party's frontend or quantizer works in a process of its own, and a data set of theirs is first opened in one.

What they raise could be caught where they are called. One that ends its process (``os._exit``, a fault in native code)
would end the build without a word.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

from penstock import precheck, registry, store, worker
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
        argument |= {"into": str(into.resolve()), "work": str(work)}
        argument["example"] = _save(work, [example] if example else [])
        return from_json(Exported, _call("frontends", name, "serve_export", argument, FOREVER))


def quantize(
    name: str, model: Path, batches: Iterable[Mapping[str, np.ndarray]], settings: QuantizeSettings, into: Path
) -> Mapping[str, Json]:
    """Let a third party's quantizer work; see :meth:`penstock.quantizers.Quantizer.quantize`. Raises what it raises."""
    with store.scratch() as work:
        argument: dict[str, Json] = {"name": name, "model": str(model.resolve()), "settings": to_json(settings)}
        argument |= {"into": str(into.resolve()), "work": str(work), "batches": _save(work, batches)}
        return cast("dict[str, Json]", _call("quantizers", name, "serve_quantize", argument, FOREVER))


def open_first(name: str, spec: str, settings: DataSettings) -> None:
    """Open a third party's data set and let it go again; it is opened once more where its samples are needed.

    Raises ``InputError`` where that ends its process, or takes longer than a rehearsal may.
    """
    argument: dict[str, Json] = {"name": name, "spec": spec, "settings": to_json(settings)}
    _call("datasets", name, "serve_data", argument, PATIENCE * precheck.settings().session_seconds)


def _call(kind: registry.Kind, name: str, served: str, argument: dict[str, Json], seconds: float) -> Json:
    who, owner = f"the {registry.singular(kind)} {name!r}", registry.origins(kind)[name]
    do = f"update or uninstall it, or tell the authors of {owner}"
    argument["path"] = [*sys.path]
    try:
        return worker.call(f"penstock.apart:{served}", argument, timeout_s=seconds)
    except worker.WorkerTimeout as error:
        what = f"{who} of {owner} took more than {seconds:g} s"
        raise InputError("plug-in-failed", what, do="raise [check] session_seconds if it is only slow") from error
    except worker.WorkerCrash as error:
        how = "failed" if error.id == "worker-fault" else "took its process down"
        what = f"{who} of {owner} {how}: {error.what.splitlines()[0]}"
        raise InputError("plug-in-failed", what, do=do) from error


def _save(work: Path, batches: Iterable[Mapping[str, np.ndarray]]) -> list[Json]:
    """Write arrays into numbered files; return the names of each. A name may be none that a file could have."""
    from penstock.golden import pack

    names: list[Json] = []
    for number, batch in enumerate(batches):
        store.write_bytes(work / f"{number}.npz", pack({str(i): array for i, array in enumerate(batch.values())}))
        names.append([*batch])
    return names


class _Batches:
    """The arrays that were saved, read one file at a time, as often as they are asked for."""

    def __init__(self, work: Path, names: Json) -> None:
        self.work, self.names = work, cast("list[list[str]]", names)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        import numpy as np

        for number, names in enumerate(self.names):
            with np.load(self.work / f"{number}.npz", allow_pickle=False) as data:
                yield {name: data[str(i)] for i, name in enumerate(names)}


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
    example = next(iter(_Batches(Path(str(asked["work"])), asked["example"])), None)
    source, settings = from_json(Source, asked["source"]), from_json(ExportSettings, asked["settings"])
    with registry.blamed("frontends", str(asked["name"])):
        return to_json(cast("Frontend", found).export(source, settings, example, Path(str(asked["into"]))))


def serve_quantize(argument: Json) -> Json:
    """Quantize: the worker's side."""
    from penstock.stages.quantize import QuantizeSettings, by

    asked, found = _served(argument, "quantizers")
    batches = _Batches(Path(str(asked["work"])), asked["batches"])
    settings, into = from_json(QuantizeSettings, asked["settings"]), Path(str(asked["into"]))
    return to_json(by(cast("Quantizer", found), Path(str(asked["model"])), batches, settings, into))


def serve_data(argument: Json) -> Json:
    """Open a data set: the worker's side."""
    from penstock.data import DatasetSource, DataSettings
    from penstock.progress import SILENT

    asked, found = _served(argument, "datasets")
    with registry.blamed("datasets", str(asked["name"])):
        cast("DatasetSource", found).open(str(asked["spec"]), from_json(DataSettings, asked["settings"]), SILENT)
    return True

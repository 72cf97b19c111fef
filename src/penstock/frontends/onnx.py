"""An existing .onnx file: taken as it is, with its external data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from penstock import custom_domains, graph, precheck, store
from penstock.errors import InputError
from penstock.frontends import Exported, Source
from penstock.jsonable import Json

if TYPE_CHECKING:
    import numpy as np

    from penstock.stages.export import ExportSettings


def claims(spec: str) -> bool:
    """Tell whether ``spec`` names an .onnx file, or any file that is no Python and no archive of torch."""
    return spec.endswith(".onnx") or (Path(spec).is_file() and not spec.endswith((".py", ".pt2", ".pt", ".pth")))


def need(source: Source) -> None:
    """Raise ``InputError`` where the file isn't there, or weights are given beside it."""
    if not Path(source.spec).exists():
        raise InputError("no-such-file", "there is no such file", where=source.spec, do="check the path")
    if source.weights:
        do = "leave --weights out: an .onnx file carries its own"
        raise InputError("weights-do-not-fit", "an .onnx model takes no weights", where=source.spec, do=do)


def tools() -> Mapping[str, str]:
    """Return nothing: the bytes are copied, no tool changes them."""
    return {}


def export(source: Source, settings: ExportSettings, example: Mapping[str, np.ndarray] | None, into: Path) -> Exported:
    """Copy the model and the files of its external data; from here on nobody reads the user's own file."""
    path = Path(source.spec)
    checked = precheck.check(path)
    uses = custom_domains.need_allowed(graph.parse(path), str(path))
    reads = {}
    for file in [path, *checked.external]:
        target = into if file == path else into.parent / file.relative_to(path.parent)
        if file != path and target == into:
            do = "save the model again with its external data under another name"
            raise InputError("bad-external-data", f"a file of weights is named {into.name!r}", where=str(path), do=do)
        store.copy_file(file, target)
        reads[str(file.resolve())] = store.file_digest(file)
    facts: dict[str, Json] = {"exporter": "none: the file is taken as it is"}
    if uses:
        facts["custom_domains"] = dict(custom_domains.facts(uses))
    return Exported(graph.signature(graph.load(into)), facts, {}, reads)

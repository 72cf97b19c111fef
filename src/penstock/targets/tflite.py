"""TensorFlow Lite files, sizes fixed, in float or on integers, without TensorFlow: for LiteRT and boards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from penstock.errors import UsageError
from penstock.jsonable import Json
from penstock.settings import option

SUFFIX = ".tflite"
LAYOUTS, ENDS = ("nchw", "nhwc"), ("float", "int8")


@dataclass(frozen=True, slots=True)
class TfliteSettings:
    """What is fixed in the file, and what its inputs and outputs are."""

    batch: int = option(1, "samples that go in at once", minimum=1)
    sizes: tuple[str, ...] = option((), "sizes of other named axes: height=160,width=160")
    layout: str = option("nchw", "order of axes of inputs and outputs of four", choices=LAYOUTS)
    ends: str = option("float", "what goes in and comes out; int8 for boards, of an integer-only model", choices=ENDS)


def available() -> str:
    """Return "": it needs nothing that isn't there."""
    return ""


def facts() -> Mapping[str, Json]:
    """Return the version of the schema, and ONNX's operators that can be said in it."""
    from penstock.tflite.flatfile import VERSION
    from penstock.tflite.writing import RULES

    return {"format": "tflite", "schema": VERSION, "operators": [*sorted(RULES)]}


def write(model: Path, settings: TfliteSettings, into: Path) -> Mapping[str, Json]:
    """Write an ONNX model as a TFLite file; return what became of it.

    Raises ``InputError`` for a model that can't be said in TFLite's operators, with the nodes, ``UsageError`` for sizes
    that aren't numbers.
    """
    from penstock import store
    from penstock.tflite.writing import written

    done = written(
        model, batch=settings.batch, sizes=_sizes(settings.sizes), layout=settings.layout, ends=settings.ends
    )
    store.write_bytes(into, done.data)
    return done.facts


def _sizes(given: tuple[str, ...]) -> dict[str, int]:
    found = {}
    for one in given:
        name, _, size = one.partition("=")
        if not name or not size.isdigit() or not int(size):
            raise UsageError("bad-setting", f"{one!r} is no size", where="--sizes", do="give it as name=number")
        found[name] = int(size)
    return found

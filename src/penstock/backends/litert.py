"""LiteRT on the CPU: runs what Penstock writes of the model as TensorFlow Lite, one file for each size of the batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from penstock import graph
from penstock.backends import Loadable, _inputs
from penstock.deployment import Deployment, Role
from penstock.errors import InputError, MissingError, missing_extra
from penstock.graph import first_line
from penstock.jsonable import Json
from penstock.streams import unsaid
from penstock.tflite import WEIGHTED
from penstock.timing import pinning
from penstock.variant import Format

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

ROLE: Role = "candidate"
FORMATS: tuple[Format, ...] = ("onnx",)
BY_DEFAULT = False  # what ships then isn't the model but a file of one batch size: for who asks for that
_FLOATS = {"float16", "float32", "float64"}
SHIPS = ".tflite"  # what it runs isn't the model's own file, but written of it


def available() -> str:
    """Return "" when LiteRT imports here."""
    try:
        _interpreter()
    except ImportError:
        return str(missing_extra("ai-edge-litert", "litert", "the backend litert").do)
    except Exception as error:  # a broken wheel raises more than ImportError
        return f"ai-edge-litert doesn't import: {first_line(error)}"
    return ""


def facts() -> Mapping[str, Json]:
    """Return the version."""
    from importlib.metadata import version

    _interpreter()
    return {"version": version("ai-edge-litert"), "delegate": "XNNPACK"}


def load(model: Loadable, deployment: Deployment) -> LiteRtSession:
    """Write the model as TFLite and open an interpreter with so many threads.

    Raises ``InputError`` with the nodes that TFLite has no operator for.
    """
    if deployment.device != "cpu":
        raise MissingError("backend-missing", f"litert has no device {deployment.device!r} here", do="use device cpu")
    assert model.path is not None
    return LiteRtSession(model.path, deployment.threads)


def _interpreter() -> Any:
    from ai_edge_litert.interpreter import Interpreter

    return Interpreter


class _Opened(NamedTuple):
    """An interpreter, and the places of its inputs and outputs, which it is slow to tell."""

    interpreter: Any
    inputs: list[int]
    outputs: list[int]


class LiteRtSession:
    """An interpreter for each size that comes in: TFLite's sizes are fixed."""

    def __init__(self, path: Path, threads: int) -> None:
        self._path, self._threads = path, threads
        self._narrow = graph.has_narrow_floats(path)
        self._signature = _inputs.signature(path)
        self._open = _inputs.open_axes(self._signature)
        self._made: dict[object, _Opened] = {}
        self._fitting: dict[tuple[object, ...], _Opened] = {}  # by what came in: what fitted once fits again
        self._facts: Mapping[str, Json] = {}
        self._counted: int | None = None  # its threads
        if not self._open:
            self._opened(_inputs.Given({}, self._signature.fixed_batch or 1, {}))

    def _opened(self, given: _inputs.Given) -> _Opened:
        key = given.batch, *sorted((name, given.sizes[name]) for name in self._open if name in given.sizes)
        if key in self._made:
            return self._made[key]
        from penstock.tflite.writing import written

        done = written(self._path, batch=given.batch, sizes=given.sizes)
        self._facts = done.facts
        try:
            with unsaid():
                kind, before = _interpreter(), pinning.threads()
                made = kind(model_content=done.data, num_threads=self._threads)
                made.allocate_tensors()
                self._counted = pinning.runtimes_own(before)
        except Exception as error:  # it raises ValueError and RuntimeError for all causes
            what = f"LiteRT can't load the model: {first_line(error)}"
            raise InputError("runtime-refuses", what, where=str(self._path),
                             do="run this model on another backend") from error  # fmt: skip
        given_at, made_at = ([told["index"] for told in details()] for details in (
            made.get_input_details, made.get_output_details))  # fmt: skip
        self._made[key] = found = _Opened(made, given_at, made_at)
        return found

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Run one batch. The first of its size takes longer: the file is written for it."""
        import numpy as np

        key = tuple((name, getattr(array, "dtype", None), getattr(array, "shape", ())) for name, array in feeds.items())
        opened = self._fitting.get(key)
        if opened is None:
            opened = self._fitting[key] = self._opened(_inputs.given(self._signature, feeds))
        interpreter = opened.interpreter
        try:
            for place, spec in zip(opened.inputs, self._signature.inputs, strict=True):
                interpreter.set_tensor(place, feeds[spec.name])
            interpreter.invoke()
            return [np.asarray(interpreter.get_tensor(place)) for place in opened.outputs]
        except Exception as error:  # as at loading
            raise InputError("run-failed", f"LiteRT can't run the model: {first_line(error)}") from error

    def actual(self) -> Mapping[str, Json]:
        """Tell the threads, the types of the interpreter's operators, and how many parts of the model XNNPACK has."""
        told: dict[str, Json] = {"device": "cpu", "precision": "as written"}
        try:
            told |= self._types()
        except Exception as error:  # a face that isn't public may be another in the next version
            told["problem"] = f"{type(error).__name__}: {first_line(error)}"
        # its pool is made where XNNPACK takes a node: of a model that has none for it, one thread is all there can be
        if self._counted is not None and (self._counted > 1 or self._threads == 1):
            told["threads"] = self._counted
        for name in ("operators_on_integers", "operators_in_float"):
            if name in self._facts:
                told[name] = self._facts[name]
        return told

    def _types(self) -> dict[str, Json]:
        """Return the types of floats, and in which types the operators that multiply compute.

        Of the last interpreter that was made, by its own list of operators and tensors. It doesn't tell their times.
        """
        if not self._made:
            return {}
        interpreter = [*self._made.values()][-1].interpreter
        operators = interpreter._get_ops_details()  # its public face hides both

        def kinds(operator: Mapping[str, Any]) -> list[str]:
            places = [int(place) for place in operator["inputs"] if place >= 0]
            return [interpreter._get_tensor_details(place, 0)["dtype"].__name__ for place in places]

        mine = [one for one in operators if one["op_name"] != "DELEGATE"]
        seen = {kind for one in mine for kind in kinds(one)} & _FLOATS
        layers = [kinds(one)[1] for one in mine if one["op_name"] in WEIGHTED]
        counted = {"int8": sum(kind in ("int8", "uint8") for kind in layers)}
        counted["fp32"] = len(layers) - counted["int8"]
        told: dict[str, Json] = {
            "floats": [*sorted(seen)], "delegated_parts": len(operators) - len(mine),
            "weighted_in": {name: count for name, count in counted.items() if count},
        }  # fmt: skip
        return told | {"precision": next(iter(seen))} if len(seen) == 1 and not self._narrow else told

    def close(self) -> None:
        """Drop the interpreters."""
        self._made.clear()
        self._fitting.clear()

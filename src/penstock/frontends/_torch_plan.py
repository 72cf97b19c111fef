"""The plan of an export: an example of the inputs, their names, and which axes are dynamic. Imports torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from penstock import inputs, user_code
from penstock.errors import GateError, InputError, PenstockError, UsageError
from penstock.frontends._torch_memory import need_room
from penstock.frontends._torch_module import arrays_of, parameters, run_module
from penstock.frontends._torch_source import Loaded
from penstock.frontends.torch import no_example
from penstock.signature import Signature, TensorSpec, parse_input
from penstock.stages.export import ExportSettings

BATCH = "batch"


@dataclass(frozen=True, slots=True)
class Plan:
    """What an export is told of the inputs: their names, an example, and which axes are dynamic under which name."""

    names: tuple[str, ...]
    example: dict[str, np.ndarray]  # by input name, in the order of forward's parameters
    dynamic: dict[str, dict[int, str]]  # input → axis → name of the dimension
    notes: tuple[str, ...] = ()

    def sizes(self) -> dict[str, int]:
        """Return the example's size of every dynamic dimension."""
        return {
            dim: self.example[name].shape[axis] for name, axes in self.dynamic.items() for axis, dim in axes.items()
        }

    def batch(self) -> str:
        """Return the dimension that is the batch: the one of that name, else the first that is an axis 0."""
        if BATCH in self.sizes():
            return BATCH
        return next((axes[0] for axes in self.dynamic.values() if 0 in axes), "")

    def specs(self) -> list[TensorSpec]:
        """Describe the inputs, with the names of the dynamic dimensions."""
        return [
            TensorSpec(
                name, str(a.dtype), tuple(self.dynamic.get(name, {}).get(i, size) for i, size in enumerate(a.shape))
            )
            for name, a in self.example.items()
        ]

    def fixing(self, dim: str, note: str) -> Plan:
        """Return the plan with a dimension fixed at the example's size, and a note on it."""
        free = {name: {a: d for a, d in axes.items() if d != dim} for name, axes in self.dynamic.items()}
        return replace(self, dynamic=free).noting(note)

    def noting(self, note: str) -> Plan:
        """Return the plan with one more note for the user."""
        return replace(self, notes=(*self.notes, note))


def resized(plan: Plan, sizes: Mapping[str, int], turn: int) -> dict[str, np.ndarray]:
    """Make inputs of other sizes out of the example's own values, so that whatever holds for them still holds.

    Along each dynamic axis the slices are repeated in order, from another one at each ``turn``; at odd turns the other
    axes are reversed, which puts other values into every place. At turns other than 0 a float input that has one value
    everywhere gets others around it: moved, it would show nothing.
    """
    made = {}
    for name, array in plan.example.items():
        array = _varied(array, turn) if turn else array
        axes = plan.dynamic.get(name, {})
        for axis in range(array.ndim):
            if axis in axes:
                size = sizes.get(axes[axis], array.shape[axis])
                array = np.take(array, (np.arange(size) + turn) % array.shape[axis], axis=axis)
            elif turn % 2:
                array = np.flip(array, axis=axis)
        made[name] = np.ascontiguousarray(array) if array.ndim else array
    return made


def _varied(array: np.ndarray, turn: int) -> np.ndarray:
    if array.dtype.kind != "f" or array.size < 2 or not (array == array.flat[0]).all():
        return array
    rng, value = np.random.default_rng(turn), float(array.flat[0])
    if value == 0.0:
        return rng.standard_normal(array.shape).astype(array.dtype)
    return (value * rng.uniform(0.5, 1.5, array.shape)).astype(array.dtype)


def make(loaded: Loaded, settings: ExportSettings, data: Mapping[str, np.ndarray] | None) -> Plan:
    """Decide example inputs, names and dynamic axes, from --input, --example, the source or the data."""
    shown = bool(settings.example) or (loaded.example_inputs is not None and loaded.program is None)
    texts = settings.input or (loaded.input_specs if data is None and not shown else ())
    specs, sizes = _specs(texts)
    specs, notes = _forward_order(loaded, specs)
    if specs and not shown:
        return _made_up(specs, sizes, notes, settings.static)
    arrays, where = _example_arrays(loaded, settings, data)
    if loaded.program is not None:
        return _program_plan(loaded.program, arrays, settings)
    if specs:
        return _combined(specs, sizes, arrays, where, notes, settings.static)
    names = _names(loaded, arrays, where)
    example = (
        {name: arrays[name] for name in names}
        if set(names) == set(arrays)
        else dict(zip(names, arrays.values(), strict=True))
    )
    if settings.static:
        return Plan(tuple(names), example, {name: {} for name in names})
    return _batched(loaded, example, where)


def _specs(texts: tuple[str, ...]) -> tuple[list[TensorSpec], dict[str, int]]:
    sizes: dict[str, int] = {}
    specs: list[TensorSpec] = []
    for text in texts:
        spec, named = parse_input(text)
        if spec.name in {other.name for other in specs}:
            do = "give --input once for each input"
            raise UsageError(
                "bad-input-spec", f"the input {spec.name!r} is given twice", where=f"--input {text}", do=do
            )
        for dim, size in named.items():
            if sizes.setdefault(dim, size) != size:
                what = f"the dimension {dim!r} is given two sizes, {sizes[dim]} and {size}"
                do = "a name has one size everywhere: use two names where they may differ"
                raise UsageError("bad-input-spec", what, where=f"--input {text}", do=do)
        specs.append(spec)
    return specs, sizes


def _forward_order(loaded: Loaded, specs: list[TensorSpec]) -> tuple[list[TensorSpec], tuple[str, ...]]:
    """Put inputs that are named like forward's parameters into their order; other names count by position."""
    order = parameters(loaded.module)
    if all(spec.name in order for spec in specs):
        return sorted(specs, key=lambda spec: order.index(spec.name)), ()
    pairs = [(spec.name, name) for spec, name in zip(specs, order, strict=False) if spec.name != name]
    return specs, tuple(f"the input {given!r} is the parameter {name!r} of forward" for given, name in pairs)


def _made_up(specs: list[TensorSpec], sizes: dict[str, int], notes: tuple[str, ...], static: bool) -> Plan:
    """Make the example up: the batch is 2, other axes have 64 in images and 8 elsewhere, a name one size everywhere."""
    dynamic = {s.name: {a: d for a, d in enumerate(s.shape or ()) if isinstance(d, str)} for s in specs}
    first = {axes[0] for axes in dynamic.values() if 0 in axes}
    named = {BATCH} if any(BATCH in axes.values() for axes in dynamic.values()) else first
    full = dict(sizes)
    for spec in specs:
        for dim in dynamic[spec.name].values():
            full.setdefault(dim, 2 if dim in named else 64 if len(spec.shape or ()) == 4 else 8)
    need_room(specs, full, "the example", "--input")
    example = inputs.seeded(Signature(tuple(specs), ()), batch=2, seed=0, sizes=full)
    return Plan(tuple(example), example, {n: ({} if static else axes) for n, axes in dynamic.items()}, notes)


def _example_arrays(
    loaded: Loaded, settings: ExportSettings, data: Mapping[str, np.ndarray] | None
) -> tuple[dict[str, np.ndarray], str]:
    """Return the example's arrays, by name or by number, and where it comes from."""
    made: Any = None
    where = settings.example or "example_inputs"
    if settings.example:
        function = user_code.without_arguments(settings.example, "the example function")
        made = user_code.call(function, "the example function failed", settings.example)
    elif loaded.example_inputs is not None:
        made = loaded.example_inputs
        if callable(made):
            made = user_code.call(made, "example_inputs() failed", "example_inputs")
    elif data is not None:
        return dict(data), "the data"
    if made is None:
        raise no_example()
    if isinstance(made, Mapping):
        named = {str(key): value for key, value in made.items()}
    else:
        named = {str(i): value for i, value in enumerate(made if isinstance(made, (tuple, list)) else (made,))}
    if not named:
        do = "return one tensor or array for each parameter of forward"
        raise InputError("bad-example", "the example function returned no inputs", where=where, do=do)
    return arrays_of(named, "bad-example", "the example's", where), where


def _names(loaded: Loaded, arrays: Mapping[str, np.ndarray], where: str) -> list[str]:
    """Name the inputs: as the example names them, else after forward's parameters."""
    if all(name and not name.isdigit() for name in arrays):
        named = [TensorSpec(name, "", None) for name in arrays]
        return [spec.name for spec in _forward_order(loaded, named)[0]]
    taken = parameters(loaded.module)
    if len(arrays) > len(taken):
        what = f"the example has {len(arrays)} inputs, the module's forward takes {len(taken)}"
        raise InputError("bad-example", what, where=where, do="give one example for each parameter of forward")
    return taken[: len(arrays)]


def _combined(
    specs: list[TensorSpec], asked: dict[str, int], arrays: dict[str, np.ndarray], where: str, notes: tuple[str, ...],
    static: bool,
) -> Plan:  # fmt: skip
    """Take names and dynamic axes from --input, values and sizes from the example. Raises where they disagree."""
    do = "change --input or the example; leave =SIZE out to take the example's size"

    def contradiction(what: str) -> InputError:
        return InputError("bad-example", what, where=where, do=do)

    names = [spec.name for spec in specs]
    if len(arrays) != len(specs):
        raise contradiction(f"--input names {len(specs)} inputs, the example has {len(arrays)}")
    if set(names) != set(arrays):
        if not all(name.isdigit() or not name for name in arrays):
            raise contradiction(f"--input names {', '.join(names)}, the example {', '.join(arrays)}")
        arrays = dict(zip(names, arrays.values(), strict=True))
    sizes = dict(asked)
    for spec in specs:
        array, shape = arrays[spec.name], spec.shape or ()
        told = f"the example's {spec.name!r} is {array.dtype}{list(array.shape)}, --input says {spec.text()}"
        fixed = [(size, dim) for size, dim in zip(array.shape, shape, strict=False) if isinstance(dim, int)]
        if str(array.dtype) != spec.dtype or array.ndim != len(shape) or any(size != dim for size, dim in fixed):
            raise contradiction(told)
        for size, dim in zip(array.shape, shape, strict=True):
            if isinstance(dim, str) and sizes.setdefault(dim, size) != size:
                raise contradiction(f"{told}; {dim!r} is {sizes[dim]} elsewhere")
    dynamic = {s.name: {a: d for a, d in enumerate(s.shape or ()) if isinstance(d, str)} for s in specs}
    plan = Plan(tuple(names), {name: arrays[name] for name in names}, dynamic, notes)
    if static:
        return replace(plan, dynamic={name: {} for name in names})
    _need_rows(plan, where)
    ones = {dim: 2 for dim, size in plan.sizes().items() if size == 1}  # exporters take a size of 1 for a constant
    return replace(plan, example=resized(plan, ones, 0)) if ones else plan


def _need_rows(plan: Plan, where: str) -> None:
    for name, axes in plan.dynamic.items():
        shape = plan.example[name].shape
        if any(shape[axis] == 0 for axis in axes):
            what = f"the example's {name!r} is empty: {plan.example[name].dtype}{list(shape)}"
            raise InputError("bad-example", what, where=where, do="give it at least one row, better two")


def _batched(loaded: Loaded, example: dict[str, np.ndarray], where: str) -> Plan:
    """Find out which axes go with the batch: those with which the module takes another one.

    The batch is as long as the first input. An input that is longer or shorter on axis 0, such as the state of a
    recurrent network, isn't one row a sample; it may have the batch on another axis.
    """
    found = []
    for axes in _candidates(example):
        plan = Plan(tuple(example), example, axes)
        _need_rows(plan, where)
        if (size := plan.sizes().get(BATCH)) == 1:  # exporters take a size of 1 for a constant
            plan = replace(plan, example=resized(plan, {BATCH: 2}, 0))
        found.append(plan)
        try:
            run_module(loaded.module, resized(plan, {BATCH: (size or 1) + 1}, 0))
        except PenstockError:
            continue
        return plan
    return found[0]


def _candidates(example: Mapping[str, np.ndarray]) -> Iterator[dict[str, dict[int, str]]]:
    rows = next((len(array) for array in example.values() if array.ndim), 0)
    first = next((name for name, array in example.items() if array.ndim), "")

    def later(array: np.ndarray, start: int) -> dict[int, str]:
        return next(({axis: BATCH} for axis in range(start, array.ndim) if array.shape[axis] == rows), {})

    front = {name: {0: BATCH} if a.ndim and len(a) == rows else {} for name, a in example.items()}
    yield front
    yield {name: axes or later(example[name], 1) for name, axes in front.items()}
    yield {name: {0: BATCH} if name == first else later(array, 1) for name, array in example.items()}
    yield {name: {0: BATCH} if name == first else {} for name in example}


def _program_plan(program: Any, arrays: Mapping[str, np.ndarray], settings: ExportSettings) -> Plan:
    """Read names and dynamic axes out of an exported program: what it fixed stays fixed."""
    names = [str(name) for name in program.graph_signature.user_inputs]
    example = dict(zip(names, arrays.values(), strict=False))
    dims: dict[str, str] = {}
    dynamic: dict[str, dict[int, str]] = {}
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in example:
            shape = getattr(node.meta.get("val"), "shape", ())
            dynamic[node.name] = {
                axis: dims.setdefault(str(size), f"{node.name}_{axis}" if axis else BATCH)
                for axis, size in enumerate(shape)
                if not isinstance(size, int)
            }
    first = next(iter(example), "")
    if not settings.static and example[first].ndim and 0 not in dynamic.get(first, {}):
        what = f"the program was exported with a fixed batch of {example[first].shape[0]}"
        do = "export it with dynamic_shapes and an example of 2 or more; or give --static if that is meant"
        raise GateError("baked-in-size", what, where=f"the input {first!r}", do=do)
    return Plan(tuple(example), example, dynamic)

"""The proof of an export: module and model on the same inputs, at several sizes and values. Imports torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from penstock import custom_domains, registry, user_code
from penstock.backends import Backend, Loadable, Session
from penstock.deployment import Deployment
from penstock.errors import GateError, InputError
from penstock.frontends._torch_judge import Judge
from penstock.frontends._torch_lines import Home
from penstock.frontends._torch_module import Feeds, arrays_of, line_of, run_module
from penstock.frontends._torch_plan import Plan, resized
from penstock.frontends._torch_sizes import Sizes
from penstock.frontends.torch import flat
from penstock.signature import Signature

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True, slots=True)
class Proof:
    """Where module and model were compared, and by how much they differ there."""

    sizes: tuple[Mapping[str, int], ...]
    differences: Mapping[str, float]  # "batch 3, height 65" → largest relative difference
    probes: int


@dataclass(frozen=True, slots=True)
class Asked:
    """What the proof has to show, and what helps to explain a failure."""

    plan: Plan
    sizes: Sizes
    probes: list[Feeds]
    tolerance: float
    home: Home
    exporter: str
    again: Callable[[Plan], ir.Model]  # exports from another example, to see what changes with it
    layers: Mapping[str, str]  # node → the layer of torch's own that it comes from


def prove(module: torch.nn.Module, path: Path, signature: Signature, asked: Asked) -> Proof:
    """Compare module and exported model. Raises ``GateError`` naming node, line and cure where they differ.

    The example itself comes first: what fails there has nothing to do with another size.
    """
    plan = asked.plan
    _same_twice(module, plan)
    session = load(path)
    judge = Judge(
        module, session, load, path, signature, asked.tolerance, asked.home, plan, asked.exporter, asked.again,
        asked.layers,
    )  # fmt: skip
    own = plan.sizes()
    differences: dict[str, float] = {_label(sizes): 0.0 for sizes in (*asked.sizes.wanted, own)}
    for turn, sizes in enumerate((own, *asked.sizes.wanted, own)):
        feeds, want = _run(module, plan, sizes, turn)
        label = _label(sizes)
        differences[label] = max(judge.difference(feeds, want, label, sizes), differences[label])
    for number, feeds in enumerate(asked.probes, 1):
        want = flat(run_module(module, feeds, f"the inputs of probe {number}"))
        differences[f"probe {number}"] = judge.difference(feeds, want, f"probe {number}", None)
    session.close()
    proved = {_label(sizes): sizes for sizes in (*asked.sizes.wanted, own)}
    return Proof(tuple(proved.values()), differences, len(asked.probes))


def _label(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {size}" for name, size in sizes.items()) or "the example's sizes"


def load(path: Path) -> Session:
    """Open the graph as written, without the runtime's own rewrites."""
    backend: Backend = registry.load("backends", "onnxruntime")  # type: ignore[assignment]  # the registry is untyped
    deployment = Deployment("export", "fp32", "", "fp32", "onnxruntime", options={"optimization": "disabled"})
    try:
        return backend.load(Loadable(path, libraries=custom_domains.libraries(path)), deployment)
    except InputError as error:
        if error.id != "runtime-refuses":
            raise
        what = error.what.replace(f"Load model from {path} failed:", "").replace(str(path), "it")
        raise GateError("export-differs", " ".join(what.split()), do=error.do) from error


def _run(module: torch.nn.Module, plan: Plan, sizes: Mapping[str, int], turn: int) -> tuple[Feeds, list[torch.Tensor]]:
    """Run the module on resized inputs; in the example's own order of values where it minds another one."""
    for order in (turn, 0):
        feeds = resized(plan, sizes, order)
        try:
            return feeds, flat(run_module(module, feeds))
        except InputError as error:
            failed = error
    if sizes == plan.sizes():
        raise failed
    do = "give --export-batches with the sizes that it takes, or --static; axes that go together share a name"
    raise InputError("module-refuses-size", failed.what, where=failed.where, do=do) from failed


def _same_twice(module: torch.nn.Module, plan: Plan) -> None:
    runs = [flat(run_module(module, plan.example)) for _ in range(2)]
    for first, second in zip(*runs, strict=True):
        if not torch.equal(torch.nan_to_num(first.float()), torch.nan_to_num(second.float())):
            what = "the module gives another output for the same input: it draws random numbers or keeps a state"
            do = "take the randomness out of forward; nn.Dropout is off here, and F.dropout with training=self.training"
            raise GateError("not-deterministic", what, where=line_of(module), do=do)


def read_probes(specs: tuple[str, ...], plan: Plan) -> list[Feeds]:
    """Call the probe functions; each returns one set of inputs, or a list of sets. Raises ``InputError``."""
    found: list[Feeds] = []
    for spec in specs:
        function = user_code.without_arguments(spec, "the probe function")
        made = user_code.call(function, "the probe function failed", spec)
        sets = made if isinstance(made, list) else [made]
        if not sets:
            raise InputError(
                "bad-probe", "the probe function returned no inputs", where=spec, do="return at least one set"
            )
        found += [_probe(one, spec, plan) for one in sets]
    return found


def _probe(made: Any, spec: str, plan: Plan) -> Feeds:
    if isinstance(made, Mapping):
        values = {str(name): value for name, value in made.items()}
    else:
        several = made if isinstance(made, tuple) else (made,)
        values = dict(zip(plan.names, several, strict=False)) if len(several) == len(plan.names) else {}
    if set(values) != set(plan.names):
        do = f"return a dict or a tuple with one array or tensor for each of: {', '.join(plan.names)}"
        raise InputError("bad-probe", "the probe's inputs aren't the module's", where=spec, do=do)
    arrays = arrays_of({name: values[name] for name in plan.names}, "bad-probe", "the probe's", spec)
    for name, array in arrays.items():
        example = plan.example[name]
        given = f"the probe's {name!r} is {array.dtype}{list(array.shape)}"
        if array.dtype != example.dtype or array.ndim != example.ndim:
            what = f"{given}, the example's {example.dtype}{list(example.shape)}"
            raise InputError("bad-probe", what, where=spec, do="give it the same type and the same number of axes")
        free = plan.dynamic.get(name, {})
        for axis in range(array.ndim):
            if axis not in free and array.shape[axis] != example.shape[axis]:
                what = f"{given}, but its axis {axis} is fixed at {example.shape[axis]}"
                do = "give it the example's size there, or name the axis in --input, so that it is dynamic"
                raise InputError("bad-probe", what, where=spec, do=do)
    return arrays


def need_free(signature: Signature, plan: Plan) -> None:
    """Raise ``GateError`` where the exporter fixed, without a word, a size that was to be dynamic."""
    for spec in signature.inputs:
        for axis, dim in plan.dynamic.get(spec.name, {}).items():
            if spec.shape is not None and isinstance(spec.shape[axis], int):
                what = f"the exporter fixed axis {axis} at {spec.shape[axis]}; {dim!r} was to be dynamic"
                do = "give an example of 2 or more; a .pt2 program: export it with dynamic_shapes; or give --static"
                raise GateError("baked-in-size", what, where=f"the input {spec.name!r}", do=do)

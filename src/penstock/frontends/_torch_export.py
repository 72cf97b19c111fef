"""Export a torch module and hold the result against it. Imports torch: load it inside functions only."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from penstock import custom_domains, graph, source_lines, user_code
from penstock.errors import GateError, InputError, PenstockError
from penstock.frontends import Exported, _torch_custom, _torch_functions
from penstock.frontends._torch_choice import is_scripted, need_exporter
from penstock.frontends._torch_cures import OTHER
from penstock.frontends._torch_custom import Translation
from penstock.frontends._torch_errors import InSliceError, InTorchError, InUsersCodeError, Told, explained
from penstock.frontends._torch_lines import layer_of_node, of_node
from penstock.frontends._torch_memory import need_room
from penstock.frontends._torch_module import Feeds, FirstRun, first_run
from penstock.frontends._torch_plan import Plan, make
from penstock.frontends._torch_proof import Asked, Proof, need_free, prove, read_probes
from penstock.frontends._torch_sizes import Sizes, find
from penstock.frontends._torch_source import Loaded
from penstock.frontends._torch_writers import Order, dynamo, quiet, recapture, torchscript
from penstock.jsonable import Json, to_json
from penstock.stages.export import ExportSettings

if TYPE_CHECKING:
    import torch

# the opsets that each exporter writes by itself, without converting afterwards; the lowest not below 13
LOWEST_NATIVE = {"dynamo": 18, "torchscript": 13}
WRITERS = {"dynamo": dynamo, "torchscript": torchscript}


@dataclass(frozen=True, slots=True)
class _Job:
    loaded: Loaded
    settings: ExportSettings
    plan: Plan
    sizes: Sizes
    probes: list[Feeds]
    first: FirstRun
    translations: tuple[Translation, ...]
    into: Path


def run(loaded: Loaded, settings: ExportSettings, example: Mapping[str, np.ndarray] | None, into: Path) -> Exported:
    """Export, tidy, prove, and write ``into``. Raises ``InputError``, or ``GateError`` when the proof fails."""
    scripted = is_scripted(loaded.module)
    _torch_custom.need_dynamo(settings, need_exporter(loaded.program is not None, scripted, settings.exporter))
    translations = _torch_custom.load(settings, loaded)
    plan = make(loaded, settings, example)
    for size in settings.batches if (batch := plan.batch()) else ():
        need_room(plan.specs(), plan.sizes() | {batch: size}, f"a batch of {size}", "--export-batches")
    probes = read_probes(settings.probe, plan)
    first = first_run(loaded.module, plan.example)
    for name in first.changed:
        note = f"the module writes into its input {name!r}, which the exported model leaves as it is"
        plan = plan.noting(note)
    exporter = need_exporter(loaded.program is not None, scripted or first.scripted, settings.exporter)
    _torch_custom.need_dynamo(settings, exporter)
    job = _Job(loaded, settings, plan, find(loaded.module, plan, settings.batches), probes, first, translations, into)
    try:
        return _exported(job, exporter)
    except (GateError, InputError) as error:
        auto = settings.exporter == "auto" and exporter == "dynamo" and loaded.program is None
        if not auto or settings.translate or settings.keep_function or OTHER not in error.do:
            raise
        return _by_the_other(job, error)


def _by_the_other(job: _Job, error: PenstockError) -> Exported:
    """Export with TorchScript where it may be right and dynamo isn't; raise the error that says more where it isn't."""
    if job.sizes.fixed:  # the module itself takes no other size
        error.do = error.do.replace(f"; or {OTHER}", "").replace(f"{OTHER}; or ", "")
        raise error
    where = f" ({error.where})" if error.where else ""
    place = next((text for kind, text in _PLACES if isinstance(error, kind)), "")
    fixed = error.id == "baked-in-size"
    reason = f"dynamo fixes a size{place}{where}" if fixed else f"with dynamo {error.what}{where}"
    try:
        return _exported(_noted(job, f"exported with torchscript, as {reason}"), "torchscript")
    except (GateError, InputError) as other:
        only = error.do.startswith(OTHER)  # it is all that could be said
        mine = not isinstance(error, InTorchError) or isinstance(error, InUsersCodeError | InSliceError)
        if only and mine and other.where:
            raise other from None
        last = "give the axis a fixed size in --input: --exporter torchscript can't keep it free either"
        last = last if fixed else "-v shows the whole report; --exporter torchscript can't export it either"
        error.do = last if only else error.do.replace(f"; or {OTHER}", "")
        raise error from None


_PLACES = ((InSliceError, " at a slice"), (InUsersCodeError, ""), (InTorchError, " in torch's own code"))


def _noted(job: _Job, note: str) -> _Job:
    return replace(job, plan=job.plan.noting(note))


def _exported(job: _Job, exporter: str) -> Exported:
    loaded, settings, into = job.loaded, job.settings, job.into
    plan, sizes, fixed = job.plan, job.sizes, job.sizes.fixed
    if sizes.fixed and loaded.program is None:
        if exporter == "dynamo":  # it mostly finds out by itself, and names the node that holds the size
            _written(job, exporter)
        own = plan.sizes()
        for dim in sizes.fixed:
            plan = plan.fixing(dim, f"{dim!r} is fixed at {own[dim]}: the module takes no other size that was tried")
        sizes = find(loaded.module, plan, settings.batches)
    job = replace(job, plan=plan, sizes=sizes)
    model, layers, opset, notes = _written(job, exporter)
    graph.save(model, into)
    signature = graph.signature(graph.load(into))
    if dropped := sorted(set(plan.names) - {spec.name for spec in signature.inputs}):
        what = f"the exporter left out the input {dropped[0]!r}: nothing in the module's forward depends on it"
        raise InputError("input-dropped", what, do="take it out of forward, or use --exporter dynamo, which keeps it")
    need_free(signature, plan)
    uses = custom_domains.need_allowed(model, type(loaded.module).__name__)
    runnable = all(use.library for use in uses)
    proof = Proof((), {}, 0)
    if runnable:
        again = functools.partial(_again, job, exporter, opset)
        asked = Asked(plan, sizes, job.probes, settings.tolerance, loaded.home, exporter, again, layers)
        with _torch_custom.suspected(job.translations):
            proof = prove(loaded.module, into, signature, asked)
    facts: dict[str, Json] = {
        "exporter": exporter,
        "opset": opset,
        "raw": settings.raw,
        "batch_normalizations": _normalizations(loaded.module),
        "dynamic": {name: {str(a): d for a, d in axes.items()} for name, axes in plan.dynamic.items()},
        "proved_at": [dict(sizes) for sizes in proof.sizes],
        "probes": proof.probes,
        "not_varied": list(fixed),
        "notes": [*plan.notes, *notes],
        "tolerance": settings.tolerance,
    }
    if uses:
        facts["custom_domains"] = dict(custom_domains.facts(uses))
    if not runnable:
        facts["not_proved"] = "no library is named for the model's custom operators, so nothing here can run it"
    if settings.keep_function:
        facts["functions"] = to_json(_torch_functions.calls(model))
    measured: dict[str, Json] = {"relative_difference": dict(proof.differences)}
    return Exported(signature, facts, measured, _reads(job))


def _normalizations(module: torch.nn.Module) -> int:
    """Count the BatchNorm layers that remember statistics: an export folds them, but for a raw one."""
    from torch.nn.modules.batchnorm import _BatchNorm

    return sum(isinstance(one, _BatchNorm) and one.running_mean is not None for one in module.modules())


def _reads(job: _Job) -> dict[str, str]:
    reads = dict(job.loaded.reads) | _torch_custom.reads(job.translations)
    given = [(job.settings.example, "the example function"), *((p, "the probe function") for p in job.settings.probe)]
    for spec, what in given:
        if spec:
            reads |= user_code.files([user_code.module(spec, what)])
    return reads


def _written(job: _Job, exporter: str) -> tuple[Any, dict[str, str], int, list[str]]:
    """Write the model in the opset that was asked for, or in the lowest that has all of its operators."""
    asked = job.settings.opset
    opset, notes = asked or LOWEST_NATIVE[exporter], []
    while True:
        try:
            model, layers = _once(job, exporter, opset)
        except _torch_custom.NeedsOpsetError as error:
            if asked or error.opset <= opset:
                raise InputError("no-translation", error.what, where=error.where, do=error.do) from error
            opset = error.opset
            notes = [f"opset {opset}, which {error.op} needs"]
            continue
        written = model.opset_imports.get("", 0)
        if written != opset:
            raise _not_honoured(exporter, opset, written)
        return model, layers, written, notes


def _not_honoured(exporter: str, asked: int, written: int) -> InputError:
    lowest = LOWEST_NATIVE[exporter]
    do = f"give --opset {lowest} or higher, or --exporter torchscript, which writes 13 and higher by itself"
    if asked > written:
        do = f"give --opset {lowest}, or leave it out: {exporter} knows no opset {asked}"
    return InputError("opset-not-honoured", f"opset {asked} was asked for, the exporter wrote {written}", do=do)


def _once(job: _Job, exporter: str, opset: int) -> tuple[Any, dict[str, str]]:
    """Export once; return the model and the layers of torch's own that its nodes come from."""
    loaded, plan = job.loaded, job.plan
    order = Order(loaded, plan, job.sizes, job.first.outputs, opset, job.settings, job.translations)
    again = functools.partial(recapture, loaded.module, plan)
    told = Told(exporter, loaded.module, plan, loaded.home, again)
    with quiet(), explained(told), _torch_custom.told(job.translations, again, loaded.home):
        data = WRITERS[exporter](order)
    model = _parse(data)
    _name_dims(model, plan)
    layers = {}
    for node in graph.all_nodes(model):
        if behind := layer_of_node(node, loaded.home):
            layers[node.name or ""] = behind
        if place := of_node(node, loaded.home):
            node.metadata_props[source_lines.KEY] = place
    source_lines.inherit(graph.all_nodes(model), {})
    graph.tidy(model)
    return model, layers


def _again(job: _Job, exporter: str, opset: int, plan: Plan) -> Any:
    """Export from another example, to see which constants come from it."""
    return _once(replace(job, plan=plan), exporter, opset)[0]


def _parse(data: bytes) -> Any:
    import onnx
    import onnx_ir as ir

    return ir.from_proto(onnx.ModelProto.FromString(data))


def _name_dims(model: Any, plan: Plan) -> None:
    """Give the symbols that the exporter made up the names that the user gave."""
    import onnx_ir as ir

    named: dict[str, str] = {}
    for value in model.graph.inputs:
        for axis, dim in plan.dynamic.get(value.name, {}).items():
            there = value.shape[axis] if value.shape is not None else None
            if isinstance(there, ir.SymbolicDim) and there.value:
                named[there.value] = dim
    values = [*model.graph.inputs, *model.graph.outputs]
    values += [output for node in graph.all_nodes(model) for output in node.outputs]
    for value in values:
        if value.shape is not None:
            dims = [d.value if isinstance(d, ir.SymbolicDim) else d for d in value.shape]
            value.shape = ir.Shape([named.get(d, d) if isinstance(d, str) else d for d in dims])

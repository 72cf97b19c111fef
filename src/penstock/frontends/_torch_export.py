"""Export a torch module and hold the result against it. Imports torch: load it inside functions only."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.jit._trace import TracerWarning

from penstock import graph, inputs, registry, user_code
from penstock.backends import Backend, Loadable
from penstock.deployment import Deployment
from penstock.errors import GateError, InputError, UsageError
from penstock.frontends import Exported
from penstock.frontends._torch_source import Loaded
from penstock.frontends.torch import flat
from penstock.jsonable import Json
from penstock.metrics import compare
from penstock.signature import Signature, TensorSpec, parse_input
from penstock.stages.export import ExportSettings

# the lowest opset that each exporter writes by itself, without converting afterwards, and not below 13
LOWEST_NATIVE = {"dynamo": 18, "torchscript": 13}


@dataclass(frozen=True, slots=True)
class _Plan:
    names: tuple[str, ...]
    example: dict[str, np.ndarray]  # by input name, in the order of forward's parameters
    dynamic: dict[str, dict[int, str]]  # input → axis → name of the dimension


def run(loaded: Loaded, settings: ExportSettings, example: Mapping[str, np.ndarray] | None, into: Path) -> Exported:
    """Export, tidy, prove, and write ``into``. Raises ``InputError``, or ``GateError`` when the proof fails."""
    plan = _plan(loaded, settings, example)
    output_names = _output_names(loaded.module, plan)
    opset = settings.opset or LOWEST_NATIVE[settings.exporter]
    write = {"dynamo": _dynamo, "torchscript": _torchscript}[settings.exporter]
    with _quiet(), _exporter_errors(settings.exporter):
        data = write(loaded, plan, output_names, opset, settings.raw)
    model = _parse(data)
    written = model.opset_imports.get("", 0)
    if written != opset:
        lowest = LOWEST_NATIVE[settings.exporter]
        do = f"pin {lowest} or higher, or use --exporter torchscript, which writes 13 and higher by itself"
        raise InputError("opset-not-honoured", f"opset {opset} was asked for, the exporter wrote {written}", do=do)
    graph.tidy(model)
    graph.save(model, into)
    signature = graph.signature(graph.load(into))
    if dropped := sorted(set(plan.names) - {spec.name for spec in signature.inputs}):
        what = f"the exporter left out the input {dropped[0]!r}: nothing in the module's forward depends on it"
        raise InputError("input-dropped", what, do="take it out of forward, or use --exporter dynamo, which keeps it")
    proof = _prove(loaded.module, plan, into, signature, settings)
    facts: dict[str, Json] = {
        "exporter": settings.exporter,
        "opset": written,
        "raw": settings.raw,
        "dynamic": {name: {str(a): d for a, d in axes.items()} for name, axes in plan.dynamic.items()},
        "proved_at_batch": [int(batch) for batch in proof],
        "tolerance": settings.tolerance,
    }
    measured: dict[str, Json] = {"relative_difference": {str(batch): figure for batch, figure in proof.items()}}
    reads = dict(loaded.reads)
    if settings.example:
        reads |= user_code.files([user_code.module(settings.example, "the example function")])
    return Exported(signature, facts, measured, reads)


def _plan(loaded: Loaded, settings: ExportSettings, data: Mapping[str, np.ndarray] | None) -> _Plan:
    """Decide example inputs, names and dynamic axes, from --input, --example, the source or the data."""
    sizes: dict[str, int] = {}
    specs: list[TensorSpec] = []
    for text in settings.input or (loaded.input_specs if data is None and not settings.example else ()):
        spec, named = parse_input(text)
        specs.append(spec)
        sizes |= named
    if specs:
        specs = _forward_order(loaded, specs)
        example = inputs.seeded(Signature(tuple(specs), ()), batch=2, seed=0, sizes=sizes)
        dynamic = {s.name: {a: d for a, d in enumerate(s.shape or ()) if isinstance(d, str)} for s in specs}
        return _Plan(tuple(example), example, {n: ({} if settings.static else axes) for n, axes in dynamic.items()})
    arrays = _example_arrays(loaded, settings, data)
    names = _names(loaded, arrays)
    example = (
        {name: arrays[name] for name in names}
        if set(names) == set(arrays)
        else dict(zip(names, arrays.values(), strict=True))
    )
    if settings.static:
        return _Plan(tuple(names), example, {name: {} for name in names})
    example = {n: a if a.ndim == 0 or len(a) > 1 else np.repeat(a, 2, axis=0) for n, a in example.items()}
    return _Plan(tuple(names), example, {n: {0: "batch"} if a.ndim else {} for n, a in example.items()})


def _forward_order(loaded: Loaded, specs: list[TensorSpec]) -> list[TensorSpec]:
    """Put inputs that are named like forward's parameters into their order; other names count by position."""
    order = list(inspect.signature(loaded.module.forward).parameters)
    if all(spec.name in order for spec in specs):
        return sorted(specs, key=lambda spec: order.index(spec.name))
    return specs


def _example_arrays(
    loaded: Loaded, settings: ExportSettings, data: Mapping[str, np.ndarray] | None
) -> dict[str, np.ndarray]:
    made: Any = None
    if settings.example:
        function = user_code.without_arguments(settings.example, "the example function")
        made = user_code.call(function, "the example function failed", settings.example)
    elif loaded.example_inputs is not None:
        made = loaded.example_inputs
        if callable(made):
            made = user_code.call(made, "example_inputs() failed", "example_inputs")
    elif data is not None:
        return dict(data)
    if made is None:
        raise UsageError(
            "no-example", "the module's input shapes are not known",
            do="give --input 'x:float32[batch,3,32,32]', or --data, or define example_inputs() beside the module",
        )  # fmt: skip
    if isinstance(made, Mapping):
        named = {str(key): value for key, value in made.items()}
    else:
        named = {str(i): value for i, value in enumerate(made if isinstance(made, (tuple, list)) else (made,))}
    return {k: v.detach().numpy() if isinstance(v, torch.Tensor) else np.asarray(v) for k, v in named.items()}


def _names(loaded: Loaded, arrays: Mapping[str, np.ndarray]) -> list[str]:
    """Name the inputs: as the example names them, else after forward's parameters."""
    if all(name and not name.isdigit() for name in arrays):
        named = [TensorSpec(name, "", None) for name in arrays]
        return [spec.name for spec in _forward_order(loaded, named)]
    if loaded.program is not None:
        return [str(name) for name in loaded.program.graph_signature.user_inputs][: len(arrays)]
    parameters = list(inspect.signature(loaded.module.forward).parameters)
    if len(arrays) > len(parameters):
        what = f"the example has {len(arrays)} inputs, the module's forward takes {len(parameters)}"
        raise InputError("bad-example", what, do="give one example for each parameter of forward")
    return parameters[: len(arrays)]


def _tensors(feeds: Mapping[str, np.ndarray]) -> tuple[torch.Tensor, ...]:
    return tuple(torch.from_numpy(np.ascontiguousarray(array)) for array in feeds.values())


def _run_module(module: torch.nn.Module, feeds: Mapping[str, np.ndarray]) -> Any:
    def forward() -> Any:
        with torch.no_grad():
            return module(*_tensors(feeds))

    shapes = ", ".join(f"{name} {array.dtype}{list(array.shape)}" for name, array in feeds.items())
    return user_code.call(forward, f"the module fails on {shapes}", type(module).__name__)


def _output_names(module: torch.nn.Module, plan: _Plan) -> list[str]:
    outputs = _run_module(module, plan.example)
    tensors = flat(outputs)
    if not tensors:
        raise InputError("no-output", "the module returns no tensor", where=type(module).__name__)
    if isinstance(outputs, Mapping) and len(outputs) == len(tensors):
        return [str(key) for key in outputs]
    return ["output"] if len(tensors) == 1 else [f"output_{i}" for i in range(len(tensors))]


def _dynamo(loaded: Loaded, plan: _Plan, outputs: list[str], opset: int, raw: bool) -> bytes:
    dims: dict[str, Any] = {}
    for axes in plan.dynamic.values():
        for name in axes.values():
            dims.setdefault(name, torch.export.Dim(name))
    shapes = tuple({axis: dims[name] for axis, name in plan.dynamic[key].items()} for key in plan.names)
    program = torch.onnx.export(
        loaded.program if loaded.program is not None else loaded.module,
        () if loaded.program is not None else _tensors(plan.example),
        dynamo=True,
        opset_version=opset,
        dynamic_shapes=None if loaded.program is not None else shapes,
        input_names=list(plan.names),
        output_names=outputs,
        optimize=not raw,
        verbose=False,
        external_data=False,
    )
    assert program is not None
    data: bytes = program.model_proto.SerializeToString()
    return data


def _torchscript(loaded: Loaded, plan: _Plan, outputs: list[str], opset: int, raw: bool) -> bytes:
    if loaded.program is not None:
        raise UsageError("wrong-exporter", "an exported program goes through dynamo", do="leave --exporter out")
    buffer = io.BytesIO()
    axes: dict[str, dict[int, str]] = {name: dict(plan.dynamic[name]) for name in plan.names}
    if any("batch" in named.values() for named in axes.values()):
        axes |= {name: {0: "batch"} for name in outputs}
    with warnings.catch_warnings():
        warnings.simplefilter("error", TracerWarning)  # it tells that the trace lost a branch or a size
        torch.onnx.export(
            loaded.module,
            _tensors(plan.example),
            buffer,  # type: ignore[arg-type]  # a buffer is accepted
            dynamo=False,
            opset_version=opset,
            input_names=list(plan.names),
            output_names=outputs,
            dynamic_axes=axes,
            do_constant_folding=not raw,
            training=torch.onnx.TrainingMode.PRESERVE if raw else torch.onnx.TrainingMode.EVAL,
        )
    return buffer.getvalue()


def _parse(data: bytes) -> Any:
    import onnx
    import onnx_ir as ir

    return ir.from_proto(onnx.ModelProto.FromString(data))


def _prove(
    module: torch.nn.Module, plan: _Plan, path: Path, signature: Signature, settings: ExportSettings
) -> dict[int, float]:
    """Run module and export at every batch size; return the largest relative difference at each."""
    backend: Backend = registry.load("backends", "onnxruntime")  # type: ignore[assignment]  # the registry is untyped
    # the graph as written, without the runtime's own rewrites
    deployment = Deployment("export", "fp32", "", "fp32", "onnxruntime", options={"optimization": "disabled"})
    session = backend.load(Loadable(path), deployment)
    moving = any(0 in axes for axes in plan.dynamic.values())
    worst: dict[int, float] = {}
    for first, second in zip(
        flat(_run_module(module, plan.example)), flat(_run_module(module, plan.example)), strict=True
    ):
        if not torch.equal(torch.nan_to_num(first.float()), torch.nan_to_num(second.float())):
            what = "the module gives another output for the same input: it draws random numbers or keeps a state"
            do = "take the randomness out of forward; dropout and the like are off in eval mode"
            raise GateError("not-deterministic", what, where=type(module).__name__, do=do)
    names = [spec.name for spec in signature.inputs]
    for batch in settings.batches if moving else (len(next(iter(plan.example.values()))),):
        feeds = inputs.resize_batch(plan.example, batch) if moving else plan.example
        want = flat(_run_module(module, feeds))
        renamed = dict(
            zip(names, (a for n, a in feeds.items() if n in names or len(names) == len(feeds)), strict=False)
        )
        try:
            got = session.run(renamed)
        except InputError as error:
            what = f"the exported model can't run a batch of {batch}: {error.what}"
            do = "a size is baked in: take sizes from the input's shape with tensor methods, not from the example"
            raise GateError("export-differs", what, where=type(module).__name__, do=do) from error
        for spec, ours, theirs in zip(signature.outputs, got, want, strict=True):
            difference = compare(ours, theirs.detach().numpy(), logits=False)
            figure = difference.relative
            if figure is None:  # integers and booleans have no tolerance
                figure = 0.0 if difference.equal else float("inf")
            if difference.reason or not figure <= settings.tolerance:
                told = difference.reason or f"{figure:.2g} relative"
                other = "torchscript" if settings.exporter == "dynamo" else "dynamo"
                what = f"at batch {batch} the output {spec.name!r} differs from the module's: {told}"
                do = f"the limit is {settings.tolerance:g}; try --exporter {other}"
                raise GateError("export-differs", what, where=type(module).__name__, do=do)
            worst[batch] = max(worst.get(batch, 0.0), figure)
    session.close()
    return worst


@contextlib.contextmanager
def _exporter_errors(exporter: str) -> Iterator[None]:
    """Turn what the exporter raises into one message; a tracer's warning is an error here."""
    try:
        yield
    except (InputError, UsageError):
        raise
    except Exception as error:  # exporters raise dozens of types
        raise _told(exporter, error) from error


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and all that led to it, the outermost first."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def _told(exporter: str, error: Exception) -> InputError:
    links = list(_chain(error))
    for link in links:
        if isinstance(link, TracerWarning):
            do = "write a branch with torch.where or torch.cond, and take sizes with tensor methods"
            return InputError("trace-lost-something", f"tracing would lose something: {graph.first_line(link)}", do=do)
    what = f"the {exporter} exporter can't export this module: {graph.first_line(links[-1])}"
    other = "torchscript" if exporter == "dynamo" else "dynamo"
    do = f"try --exporter {other}; -v shows the whole report"
    if any("data-dependent" in str(link).lower() or "DataDependent" in type(link).__name__ for link in links):
        do = "a branch or a size depends on the data: write it with torch.where or torch.cond"
    return InputError("export-failed", what, do=do)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' chatter (deprecations, progress, missing torchvision) from the terminal."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    sink = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)

"""Export a torch module and hold the result against it. Imports torch: load it inside functions only."""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from penstock import custom_domains, graph, inputs, source_lines, user_code
from penstock.errors import GateError, InputError, UsageError
from penstock.frontends import Exported, _torch_custom, _torch_functions
from penstock.frontends._torch_custom import Translation
from penstock.frontends._torch_errors import explained, is_scripted, need_exporter, warnings_are_errors
from penstock.frontends._torch_lines import of_node
from penstock.frontends._torch_proof import Plan, Proof, need_free, prove, read_probes, run_module, tensors
from penstock.frontends._torch_source import Loaded
from penstock.frontends.torch import flat
from penstock.jsonable import Json, to_json
from penstock.signature import Signature, TensorSpec, parse_input
from penstock.stages.export import ExportSettings

# the lowest opset that each exporter writes by itself, without converting afterwards, and not below 13
LOWEST_NATIVE = {"dynamo": 18, "torchscript": 13}


def run(loaded: Loaded, settings: ExportSettings, example: Mapping[str, np.ndarray] | None, into: Path) -> Exported:
    """Export, tidy, prove, and write ``into``. Raises ``InputError``, or ``GateError`` when the proof fails."""
    exporter = need_exporter(loaded.program is not None, is_scripted(loaded.module), settings.exporter)
    translations = _torch_custom.load(settings, loaded, exporter)
    plan = _plan(loaded, settings, example)
    probes = read_probes(settings.probe, plan)
    output_names = _output_names(loaded.module, plan)
    opset = settings.opset or LOWEST_NATIVE[exporter]
    write = {"dynamo": _dynamo, "torchscript": _torchscript}[exporter]
    recapture = functools.partial(_recapture, loaded.module, plan)
    with _quiet(), explained(exporter, loaded.home, recapture), _torch_custom.told(translations):
        data = write(loaded, plan, output_names, opset, settings, translations)
    model = _parse(data)
    written = model.opset_imports.get("", 0)
    if written != opset:
        lowest = LOWEST_NATIVE[exporter]
        do = f"pin {lowest} or higher, or use --exporter torchscript, which writes 13 and higher by itself"
        raise InputError("opset-not-honoured", f"opset {opset} was asked for, the exporter wrote {written}", do=do)
    _name_dims(model, plan)
    for node in graph.all_nodes(model):
        if place := of_node(node, loaded.home):
            node.metadata_props[source_lines.KEY] = place
    source_lines.inherit(graph.all_nodes(model), {})
    graph.tidy(model)
    graph.save(model, into)
    signature = graph.signature(graph.load(into))
    if dropped := sorted(set(plan.names) - {spec.name for spec in signature.inputs}):
        what = f"the exporter left out the input {dropped[0]!r}: nothing in the module's forward depends on it"
        raise InputError("input-dropped", what, do="take it out of forward, or use --exporter dynamo, which keeps it")
    need_free(signature, plan, loaded.home)
    uses = custom_domains.need_allowed(model, type(loaded.module).__name__)
    runnable = all(use.library for use in uses)
    proof = Proof((), {}, (), 0)
    if runnable:
        with _torch_custom.suspected(translations):
            proof = prove(
                loaded.module,
                plan,
                into,
                signature,
                settings.batches,
                settings.tolerance,
                probes,
                loaded.home,
                exporter,
            )
    facts: dict[str, Json] = {
        "exporter": exporter,
        "opset": written,
        "raw": settings.raw,
        "dynamic": {name: {str(a): d for a, d in axes.items()} for name, axes in plan.dynamic.items()},
        "proved_at": [dict(sizes) for sizes in proof.sizes],
        "probes": proof.probes,
        "not_varied": list(proof.fixed),
        "tolerance": settings.tolerance,
    }
    if uses:
        facts["custom_domains"] = dict(custom_domains.facts(uses))
    if not runnable:
        facts["not_proved"] = "no library is named for the model's custom operators, so nothing here can run it"
    if settings.keep_function:
        facts["functions"] = to_json(_torch_functions.calls(model))
    measured: dict[str, Json] = {"relative_difference": dict(proof.differences)}
    reads = dict(loaded.reads) | _torch_custom.reads(translations)
    for spec, what in [
        (settings.example, "the example function"),
        *((p, "the probe function") for p in settings.probe),
    ]:
        if spec:
            reads |= user_code.files([user_code.module(spec, what)])
    return Exported(signature, facts, measured, reads)


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


def _plan(loaded: Loaded, settings: ExportSettings, data: Mapping[str, np.ndarray] | None) -> Plan:
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
        return Plan(tuple(example), example, {n: ({} if settings.static else axes) for n, axes in dynamic.items()})
    arrays = _example_arrays(loaded, settings, data)
    if loaded.program is not None:
        return _program_plan(loaded.program, arrays, settings)
    names = _names(loaded, arrays)
    example = (
        {name: arrays[name] for name in names}
        if set(names) == set(arrays)
        else dict(zip(names, arrays.values(), strict=True))
    )
    if settings.static:
        return Plan(tuple(names), example, {name: {} for name in names})
    example = {n: a if a.ndim == 0 or len(a) > 1 else np.repeat(a, 2, axis=0) for n, a in example.items()}
    return Plan(tuple(names), example, {n: {0: "batch"} if a.ndim else {} for n, a in example.items()})


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
                axis: dims.setdefault(str(size), f"{node.name}_{axis}" if axis else "batch")
                for axis, size in enumerate(shape)
                if not isinstance(size, int)
            }
    first = next(iter(example), "")
    if not settings.static and example[first].ndim and 0 not in dynamic.get(first, {}):
        what = f"the program was exported with a fixed batch of {example[first].shape[0]}"
        do = "export it with dynamic_shapes and an example of 2 or more; or give --static if that is meant"
        raise GateError("baked-in-size", what, where=f"the input {first!r}", do=do)
    return Plan(tuple(example), example, dynamic)


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
    parameters = list(inspect.signature(loaded.module.forward).parameters)
    if len(arrays) > len(parameters):
        what = f"the example has {len(arrays)} inputs, the module's forward takes {len(parameters)}"
        raise InputError("bad-example", what, do="give one example for each parameter of forward")
    return parameters[: len(arrays)]


def _output_names(module: torch.nn.Module, plan: Plan) -> list[str]:
    outputs = run_module(module, plan.example)
    tensors = flat(outputs)
    if not tensors:
        raise InputError("no-output", "the module returns no tensor", where=type(module).__name__)
    if isinstance(outputs, Mapping) and len(outputs) == len(tensors):
        return [str(key) for key in outputs]
    return ["output"] if len(tensors) == 1 else [f"output_{i}" for i in range(len(tensors))]


def _dynamo(
    loaded: Loaded, plan: Plan, outputs: list[str], opset: int, settings: ExportSettings,
    translations: tuple[Translation, ...],
) -> bytes:  # fmt: skip
    dims: dict[str, Any] = {}
    for axes in plan.dynamic.values():
        for name in axes.values():
            dims.setdefault(name, torch.export.Dim(name))
    shapes = tuple({axis: dims[name] for axis, name in plan.dynamic[key].items()} for key in plan.names)
    captured = loaded.program
    if captured is None:
        captured = _capture(loaded.module, tensors(plan.example), shapes)
    program = torch.onnx.export(
        captured,
        (),
        dynamo=True,
        opset_version=opset,
        input_names=list(plan.names),
        output_names=outputs,
        optimize=not settings.raw,
        verbose=False,
        external_data=False,
        custom_translation_table=_torch_custom.table(translations),
    )
    assert program is not None and program.exported_program is not None
    _torch_custom.need_used(translations, program.exported_program)
    if settings.keep_function:
        _torch_functions.outline(program.model, program.exported_program, settings.keep_function)
    data: bytes = program.model_proto.SerializeToString()
    return data


def _capture(module: torch.nn.Module, example: tuple[torch.Tensor, ...], shapes: Any) -> torch.export.ExportedProgram:
    """Capture the module; in strict mode where the other fails without having lost or fixed anything.

    Control flow is captured in strict mode too where that works, as only there its bodies keep their source lines.
    """
    try:
        captured = torch.export.export(module, example, dynamic_shapes=shapes, strict=False)
    except Exception as error:
        if any(mark in str(error) for mark in ("Constraints violated", "data-dependent")):
            raise
        try:
            return torch.export.export(module, example, dynamic_shapes=shapes, strict=True)
        except Exception:
            raise error from None
    if any(isinstance(part, torch.fx.GraphModule) for part in captured.graph_module.children()):
        with contextlib.suppress(Exception):  # the capture at hand is right, only less telling
            return torch.export.export(module, example, dynamic_shapes=shapes, strict=True)
    return captured


def _recapture(module: torch.nn.Module, plan: Plan) -> torch.export.ExportedProgram:
    """Capture with every size left to torch, for a message: what it fixes now is what it complained of."""
    auto = torch.export.Dim.AUTO
    shapes = tuple(dict.fromkeys(plan.dynamic[name], auto) for name in plan.names)
    return torch.export.export(module, tensors(plan.example), dynamic_shapes=shapes, strict=False)


def _torchscript(
    loaded: Loaded, plan: Plan, outputs: list[str], opset: int, settings: ExportSettings, _: tuple[Translation, ...]
) -> bytes:
    buffer = io.BytesIO()
    axes: dict[str, dict[int, str]] = {name: dict(plan.dynamic[name]) for name in plan.names}
    if any("batch" in named.values() for named in axes.values()):
        axes |= {name: {0: "batch"} for name in outputs}
    with warnings_are_errors(loaded.home), _deaf():
        torch.onnx.export(
            loaded.module,
            tensors(plan.example),
            buffer,  # type: ignore[arg-type]  # a buffer is accepted
            dynamo=False,
            opset_version=opset,
            input_names=list(plan.names),
            output_names=outputs,
            dynamic_axes=axes,
            do_constant_folding=not settings.raw,
            training=torch.onnx.TrainingMode.PRESERVE if settings.raw else torch.onnx.TrainingMode.EVAL,
            verbose=True,  # it leaves each node's stack in the model, and prints the graph, which nobody sees
        )
    return buffer.getvalue()


def _parse(data: bytes) -> Any:
    import onnx
    import onnx_ir as ir

    return ir.from_proto(onnx.ModelProto.FromString(data))


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """Send what C++ code writes to standard output nowhere: the exporter prints the whole graph where it is verbose."""
    kept = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


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

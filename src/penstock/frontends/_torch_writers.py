"""The two exporters of PyTorch: a module and a plan in, a serialized model out. Imports torch."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from penstock.frontends import _torch_custom, _torch_functions
from penstock.frontends._torch_custom import Translation
from penstock.frontends._torch_eager import leaves
from penstock.frontends._torch_module import parameters, tensors
from penstock.frontends._torch_plan import Plan
from penstock.frontends._torch_sizes import Sizes
from penstock.frontends._torch_source import Loaded
from penstock.frontends._torch_warnings import Watch, losses_are_errors
from penstock.stages.export import ExportSettings
from penstock.streams import unsaid


@dataclass(frozen=True, slots=True)
class Order:
    """What an exporter is to write."""

    loaded: Loaded
    plan: Plan
    sizes: Sizes
    outputs: tuple[str, ...]
    opset: int
    settings: ExportSettings
    translations: tuple[Translation, ...]


def dynamo(order: Order) -> bytes:
    """Capture the module with torch.export and write it with the exporter that is built on that."""
    loaded, plan, settings = order.loaded, order.plan, order.settings
    dims: dict[str, Any] = {}
    for axes in plan.dynamic.values():
        for name in axes.values():
            dims.setdefault(name, torch.export.Dim(name))
    shapes = tuple({axis: dims[name] for axis, name in plan.dynamic[key].items()} for key in plan.names)
    captured = loaded.program
    if captured is None:
        captured = _capture(loaded.module, tensors(plan.example), shapes)
    with _aligned():
        program = torch.onnx.export(
            captured,
            (),
            dynamo=True,
            opset_version=order.opset,
            input_names=list(plan.names),
            output_names=list(order.outputs),
            optimize=not settings.raw,
            verbose=False,
            external_data=False,
            custom_translation_table=_torch_custom.table(order.translations),
        )
    assert program is not None and program.exported_program is not None
    _torch_custom.need_used(order.translations, program.exported_program)
    if settings.keep_function:
        _torch_functions.outline(program.model, program.exported_program, settings.keep_function)
    data: bytes = program.model_proto.SerializeToString()
    return data


@contextlib.contextmanager
def _aligned() -> Iterator[None]:
    """Let functions import the domain of the exporter's own functions in the version that the model does.

    The exporter gives the body of a loop that holds a branch one version of that domain and the model another, and then
    its own inliner refuses the body.
    """
    from onnx_ir.passes.common import InlinePass

    plain: Any = InlinePass.call

    def call(inliner: Any, model: Any) -> Any:
        own = {function.domain for function in model.functions.values()}
        for function in model.functions.values():
            for domain in own & set(function.opset_imports) & set(model.opset_imports):
                function.opset_imports[domain] = model.opset_imports[domain]
        return plain(inliner, model)

    InlinePass.call = call  # type: ignore[method-assign,assignment]  # put back below
    try:
        yield
    finally:
        InlinePass.call = plain  # type: ignore[method-assign]


def _capture(module: torch.nn.Module, example: tuple[torch.Tensor, ...], shapes: Any) -> torch.export.ExportedProgram:
    """Capture the module; in strict mode where the other fails without having lost or fixed anything.

    Control flow is captured in strict mode too where that works, as only there its bodies keep their source lines.
    """
    try:
        with _whole_stacks():
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


@contextlib.contextmanager
def _whole_stacks() -> Iterator[None]:
    """Let a capture note the frames of the user's helpers too: torch keeps those of functions named ``forward`` alone.

    Of torch's own code the layers stay, by which messages tell what the user has called. torch says of this method that
    it may be overridden for that.
    """
    from torch.fx.proxy import TracerBase

    name, own = "_filter_traceback_frames", str(Path(torch.__file__).parent)
    layers = str(Path(own, "nn"))
    plain: Any = TracerBase.__dict__.get(name)
    if plain is None:  # a torch that does it otherwise keeps the frames that it keeps
        yield
        return

    def filtered(self: TracerBase, summary: traceback.StackSummary) -> traceback.StackSummary:
        first = next((place for place, frame in enumerate(summary) if frame.name == "forward"), len(summary))
        kept = {id(frame) for frame in plain(self, summary)}
        return traceback.StackSummary.from_list([
            frame for frame in summary[first:]
            if id(frame) in kept or not frame.filename.startswith(own) or frame.filename.startswith(layers)
        ])  # fmt: skip

    setattr(TracerBase, name, filtered)
    try:
        yield
    finally:
        setattr(TracerBase, name, plain)


def recapture(module: torch.nn.Module, plan: Plan) -> torch.export.ExportedProgram:
    """Capture with every size left to torch, for a message: what it fixes now is what it complained of."""
    auto = torch.export.Dim.AUTO
    shapes = tuple(dict.fromkeys(plan.dynamic[name], auto) for name in plan.names)
    return torch.export.export(module, tensors(plan.example), dynamic_shapes=shapes, strict=False)


def torchscript(order: Order) -> bytes:
    """Trace the module and write it with the exporter that is built on TorchScript."""
    module, plan, settings = order.loaded.module, order.plan, order.settings
    axes: dict[str, dict[int, str]] = {name: dict(plan.dynamic[name]) for name in plan.names}
    for name, found in zip(order.outputs, order.sizes.outputs, strict=False):
        axes[name] = dict(found)
    example = tensors(plan.example)
    free = any(plan.dynamic.values())
    watch = Watch(order.loaded.home, not free, lambda: leaves(module, plan.example, order.loaded.home))
    with losses_are_errors(watch), unsaid(1), _without_defaults(module, len(example)):
        if _holds_scripted(module):  # a trace for ONNX knows scripted functions, and scripted submodules alone not
            module = torch.jit.trace(module, example, check_trace=False)  # type: ignore[no-untyped-call]
        torch.onnx.export(
            module,
            example,
            buffer := io.BytesIO(),  # type: ignore[arg-type]  # a buffer is accepted
            dynamo=False,
            opset_version=order.opset,
            input_names=list(plan.names),
            output_names=list(order.outputs),
            dynamic_axes=axes,
            do_constant_folding=not settings.raw,
            training=torch.onnx.TrainingMode.PRESERVE if settings.raw else torch.onnx.TrainingMode.EVAL,
            verbose=True,  # it leaves each node's stack in the model, and prints the graph, which nobody sees
        )
    return buffer.getvalue()


@contextlib.contextmanager
def _without_defaults(module: torch.nn.Module, given: int) -> Iterator[None]:
    """Hide parameters of forward that keep their defaults: the exporter makes an input of each number among them."""
    plain = module.forward
    names = parameters(module)[:given]
    if len(parameters(module)) <= given or isinstance(module, torch.jit.ScriptModule) or "forward" in vars(module):
        yield
        return

    def forward(*rest: Any) -> Any:
        return plain(*rest)

    kinds = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
    forward.__signature__ = inspect.Signature(kinds)  # type: ignore[attr-defined]  # what inspect.signature returns
    vars(module)["forward"] = forward
    try:
        yield
    finally:
        del vars(module)["forward"]


def _holds_scripted(module: torch.nn.Module) -> bool:
    parts = [isinstance(part, torch.jit.ScriptModule) for part in module.modules()]
    return any(parts) and not parts[0]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporters' chatter (deprecations, progress, missing torchvision) from the terminal."""
    previous = logging.root.manager.disable
    logging.disable(logging.CRITICAL)  # what goes wrong is raised as well
    sink = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)

"""Prepare: a float model as the quantizer wants it, functions inlined, BatchNormalization folded, all nodes named."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, cast

from penstock import custom_domains, graph, registry
from penstock.errors import InputError, UsageError
from penstock.quantization import finite
from penstock.quantization.unfuse import unfuse
from penstock.rewriting import PassBroke

if TYPE_CHECKING:
    import onnx_ir as ir

    from penstock.passes import Pass, Rule

QUANTIZED = frozenset({
    "ConvInteger", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "QLinearConv", "QLinearMatMul",
    "QuantizeLinear", "DynamicQuantizeMatMul", "MatMulIntegerToFloat", "QGemm", "MatMulNBits", "DynamicQuantizeLSTM",
    "QAttention",
})  # fmt: skip
OPSET = 13  # the first with a scale for each channel
ROUNDS = 30  # of the passes, at most


def prepared(
    path: Path, *, opset: int = OPSET, exclude: Collection[str] = (), need_finite: bool = True
) -> ir.Model:  # fmt: skip
    """Load a float model and get it ready, in memory. Raises ``InputError`` for one that can't be quantized at all.

    ``need_finite``: refuse weights with NaN or infinity, before and after folding, which may make some.
    """
    loaded = graph.load(path)
    refuse_quantized(loaded, path)
    if custom := custom_domains.used(loaded):
        libraries = custom_domains.libraries(path)
        if not libraries:
            what = f"calibrating would run operators of {custom[0].domain!r}, and no library of theirs is named"
            do = f"name it: --allow-domain {custom[0].domain}=LIBRARY"
            raise InputError("cannot-quantize", what, where=str(path), do=do)
    graph.inline(loaded)
    if need_finite:
        finite.check(loaded, path)
    unfuse(loaded)
    before = results(loaded)
    model = raised(folded(loaded), opset, path)
    named(model)
    if need_finite:
        finite.check(model, path)
    known_names(model, exclude, before)
    return model


def refuse_quantized(model: ir.Model, path: Path) -> None:
    """Raise ``InputError`` for a model that has quantized operators already."""
    found = sorted({node.op_type for node in graph.all_nodes(model)} & QUANTIZED)
    if found:
        what = f"the model is quantized already: it has {found[0]}"
        raise InputError("already-quantized", what, where=str(path), do="start from the float model")


def folded(model: ir.Model, without: Collection[str] = ()) -> ir.Model:
    """Run the graph optimizer's own passes but those named: what it folds needn't be quantized."""
    from penstock.passes._order import in_order
    from penstock.rewriting.run import rewrite

    foreign = registry.origins("passes")
    passes = {name: cast("Pass | Rule", registry.load("passes", name)) for name in registry.names("passes")
              if name not in foreign and name not in without}  # fmt: skip
    chosen = {name: one for name, one in passes.items() if not getattr(one, "OPTIONAL", False)}
    backup = model.clone()
    try:
        return rewrite(model, in_order(chosen), max_rounds=ROUNDS).model
    except PassBroke:
        return backup


def raised(model: ir.Model, opset: int, path: Path) -> ir.Model:
    """Return the model in ``opset`` or a later one. Raises ``InputError`` where its meaning would be lost."""
    from penstock.opsets.whole import NotConvertibleError, in_opset

    if (model.opset_imports.get("") or 1) >= opset:
        return model
    try:
        return in_opset(model, opset, str(path))[0]
    except NotConvertibleError as error:
        what = f"opset {model.opset_imports.get('')} can't be raised to {opset}: {error.what}"
        raise InputError("cannot-raise-opset", what, where=str(path), do="export again at a later opset") from error


def named(model: ir.Model) -> None:
    """Give every node of the main graph, and every value, a name of its own."""
    taken = {node.name for node in graph.all_nodes(model) if node.name}
    seen: set[str] = set()
    for node in model.graph:
        name = node.name or ""
        if not name or name in seen:
            stem = name or (node.outputs[0].name if node.outputs and node.outputs[0].name else node.op_type)
            number = 0
            while (name := f"{stem}_{number}" if number else str(stem)) in taken or name in seen:
                number += 1
            node.name = name
            taken.add(name)
        seen.add(name)
    values = {
        value.name for node in graph.all_nodes(model) for value in (*node.inputs, *node.outputs) if value is not None
    }
    for node in model.graph:
        for index, value in enumerate(node.outputs):
            if not value.name and value.uses():
                name = f"{node.name}_output_{index}"
                while name in values:
                    name += "_"
                value.name = name
                values.add(name)


def results(model: ir.Model) -> dict[str, list[str]]:
    """Return the names of what each named node makes, by the node's."""
    return {
        node.name: [value.name for value in node.outputs if value.name]
        for node in model.graph.all_nodes() if node.name
    }  # fmt: skip


def fitting(names: Iterable[str], patterns: Collection[str]) -> frozenset[str]:
    """Return the names that are among those given, or fit one with ``*`` and ``?``."""
    exact, globs = frozenset(patterns), [one for one in patterns if any(mark in one for mark in "*?[")]
    return frozenset(name for name in names if name in exact or any(fnmatchcase(name, one) for one in globs))


def known_names(
    model: ir.Model, exclude: Collection[str], before: Mapping[str, list[str]] | None = None
) -> frozenset[str]:  # fmt: skip
    """Return the names of the nodes to exclude. Refuses one that no node fits: a slip would leave the node quantized.

    ``before`` are the :func:`results` before anything was folded: of a node that is gone since, it is told so, with the
    node that makes its result now.
    """
    known = {node.name: node for node in model.graph.all_nodes() if node.name}
    for pattern in exclude:
        if fitting(known, (pattern,)):
            continue
        if gone := sorted(fitting(before or {}, (pattern,))):
            what = f"the node {gone[0]!r} isn't there when layers are quantized: it was folded into others"
            made = {value.name: one for one, node in known.items() for value in node.outputs}
            now = next((made[value] for value in (before or {})[gone[0]] if value in made), None)
            do = f"exclude {now!r}, which makes its result now" if now else "leave it out: nothing of it is quantized"
            raise UsageError("unknown-node", what, where="--exclude", do=do)
        near = difflib.get_close_matches(pattern, known, 1)
        do = f"did you mean {near[0]!r}?" if near else "`penstock inspect` lists the nodes"
        raise UsageError("unknown-node", f"there is no node named {pattern!r} to exclude", where="--exclude", do=do)
    return fitting(known, exclude)

"""Asked and actual: what a deployment was asked for, beside what the runtime says that it ran.

A runtime may go on without what it was asked for: on another device, with a provider that took only some of the nodes,
with fewer threads, in narrower numbers. What its own record says is held against what was asked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING

from penstock import registry
from penstock.deployment import ANY_DEVICE, Deployment
from penstock.errors import PenstockError
from penstock.jsonable import Json

if TYPE_CHECKING:
    from pathlib import Path

    import onnx_ir as ir

# how runtimes call a type that floats are computed in → how precisions are called
_TYPES = {"f32": "fp32", "float32": "fp32", "fp32": "fp32", "f16": "fp16", "float16": "fp16", "fp16": "fp16",
          "bf16": "bf16", "bfloat16": "bf16"}  # fmt: skip
_MOST_OPERATORS = 6  # that a message names
_COPIES = "Memcpy"  # nodes that the runtime adds to take tensors from a device to another


def asked_of(deployment: Deployment) -> dict[str, Json]:
    """Return what was asked of a deployment, to stand beside what it says of itself."""
    provider = provider_of(deployment.backend)
    return {
        "backend": deployment.backend, "device": deployment.device, **({"provider": provider} if provider else {}),
        "precision": deployment.precision, "precision_hint": deployment.precision_hint,
        "threads": deployment.threads, **({"options": dict(deployment.options)} if deployment.options else {}),
    }  # fmt: skip


def provider_of(backend: str) -> str:
    """Return the execution provider that a backend stands for, "" where it has none, or isn't installed any more."""
    try:
        return str(getattr(registry.load("backends", backend), "PROVIDER", ""))
    except PenstockError:
        return ""


def fallback(asked: Deployment, actual: Mapping[str, Json]) -> str:
    """Say what ran that wasn't asked for, by the runtime's own word: "" where nothing did, or it tells nothing."""
    device = actual.get("device")
    if isinstance(device, str) and asked.device != ANY_DEVICE and device.casefold() != asked.device.casefold():
        return f"it ran on the device {device}, {asked.device} was asked for"
    if told := _elsewhere(asked, actual):
        return told
    threads = actual.get("threads")
    if asked.threads and isinstance(threads, int) and threads != asked.threads:
        return f"it ran with {threads} threads, {asked.threads} were asked for"
    wanted, ran = asked.precision_hint or "fp32", _TYPES.get(str(actual.get("precision")).casefold())
    if ran is not None and ran != _TYPES.get(wanted.casefold()) and asked.precision not in ("fp16", "bf16"):
        return f"it computes floats in {ran}, {_TYPES.get(wanted.casefold(), wanted)} was asked for"
    return ""


def in_float(asked: Deployment, actual: Mapping[str, Json], model: Path) -> str:
    """Say how many layers an int8 deployment computes in float that its file has on integers; "" for none.

    Layers are Conv, Gemm and MatMul, which take the time. A runtime that doesn't tell is none. It is no breach: the
    numbers are those of the file, which may be made for another runtime's fusions, and the time is measured.
    """
    from penstock.quantization import written

    whole, floats = _counted(actual)
    if asked.precision != "int8" or not whole + floats:
        return ""
    there, left = written.on_integers(model)
    if not there or floats <= left:
        return ""
    return f"it computes {floats} of its {whole + floats} layers in float, and the file has {there} of them on integers"


def _counted(actual: Mapping[str, Json]) -> tuple[int, int]:
    """Return how many layers a runtime says that it computed on integers, and in float."""
    told = actual.get("weighted_in")
    counts = {name: count for name, count in told.items() if isinstance(count, int)} if isinstance(told, dict) else {}
    whole = counts.pop("int8", 0)
    return whole, sum(counts.values())


def _elsewhere(asked: Deployment, actual: Mapping[str, Json]) -> str:
    """Say how many nodes another provider ran than the one asked for, sizes and copies left out."""
    counts, others = actual.get("nodes_by_provider"), actual.get("nodes_elsewhere")
    provider = provider_of(asked.backend)
    if not provider or not isinstance(counts, dict) or not counts:  # all may be folded into constants
        return ""
    if not counts.get(provider):
        return f"{' and '.join(counts)} ran its nodes, {provider} was asked for"
    for name, operators in others.items() if isinstance(others, dict) else ():
        if isinstance(operators, dict) and operators:
            total = sum(count for count in counts.values() if isinstance(count, int))
            here = {kind: count for kind, count in operators.items() if isinstance(count, int)}
            kinds = [f"{count} {kind}" for kind, count in sorted(here.items(), key=lambda item: -item[1])]
            more = [f"{len(kinds) - _MOST_OPERATORS} more operators"] if len(kinds) > _MOST_OPERATORS else []
            said = ", ".join([*kinds[:_MOST_OPERATORS], *more])
            return f"{name} ran {sum(here.values())} of its {total} nodes ({said}), {provider} was asked for"
    return ""


def placed(nodes: Iterable[tuple[str, str, str]], provider: str, sizes: Collection[str]) -> dict[str, Json]:
    """Return how many nodes each provider got, and which of others than ``provider`` by operator.

    ``nodes`` are (provider, node's name, operator), ``sizes`` tells which only compute sizes, as :func:`of_sizes` does:
    a runtime keeps those on the CPU on purpose.
    """
    counts: dict[str, int] = {}
    elsewhere: dict[str, dict[str, int]] = {}
    left = Counter(sizes)  # of nodes without names as many as there are
    for where, name, kind in nodes:
        counts[where] = counts.get(where, 0) + 1
        if where == provider or kind.startswith(_COPIES):
            continue
        if left[called := name or _unnamed(kind)]:
            left[called] -= not name
        else:
            held = elsewhere.setdefault(where, {})
            held[kind] = held.get(kind, 0) + 1
    told: dict[str, Json] = {"nodes_by_provider": {**counts}}
    if elsewhere:
        told["nodes_elsewhere"] = {where: {**kinds} for where, kinds in elsewhere.items()}
    return told


def of_sizes(model: ir.Model) -> list[str]:
    """Return the names of nodes, of bodies too, that compute sizes: what Shape and Size give, and constants, alone.

    A node without a name stands there by its operator, "?Gather", once for each.
    """
    known: set[ir.Value] = set()
    names: list[str] = []

    def is_size(value: ir.Value) -> bool:
        return value in known or value.const_value is not None or value.is_initializer()

    for node in model.graph.all_nodes():
        reads = [value for value in node.inputs if value is not None]
        source = node.op_type in ("Shape", "Size") and node.domain in ("", "ai.onnx")
        from_sizes = bool(reads) and all(map(is_size, reads)) and any(value in known for value in reads)
        constant = node.op_type == "Constant" and not reads
        if source or from_sizes or constant:
            known.update(node.outputs)
            names.append(node.name or _unnamed(node.op_type))
    return names


def _unnamed(operator: str) -> str:
    return f"?{operator}"

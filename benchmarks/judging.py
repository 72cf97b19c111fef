"""What an optimizer's result is worth: how many nodes, whether it is still standard ONNX, whether it computes the same.

python benchmarks/judging.py serves the comparison as a warm process (see ``warm``).
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from onnx import inliner

SEEDS = 2


@dataclass(frozen=True, slots=True)
class Interface:
    """What a result must share with the model it came from."""

    opset: int
    domains: frozenset[str]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Judged:
    """One result. ``problem`` is empty where it is right; ``left`` says how it left what the input was."""

    nodes: int
    problem: str
    left: str
    worst: float
    note: str = ""

    @property
    def competes(self) -> bool:
        """Whether it is right, loads, and is what the input was: standard, of the same opset and inputs."""
        return not self.problem and not self.left


def read(path: Path) -> onnx.ModelProto:
    """Read a model's structure with its functions inlined; data beside the file stays there."""
    model = onnx.load(str(path), load_external_data=False)
    return inliner.inline_local_functions(model) if model.functions else model


def interface(model: onnx.ModelProto) -> Interface:
    """Return opset, domains in use, inputs without a default, and outputs."""
    held = {tensor.name for tensor in model.graph.initializer}
    opset = next((one.version for one in model.opset_import if one.domain in ("", "ai.onnx")), 0)
    domains = frozenset("" if node.domain == "ai.onnx" else node.domain
                        for node in every_node(model.graph.node))  # fmt: skip
    inputs = tuple(value.name for value in model.graph.input if value.name not in held)
    return Interface(opset, domains, inputs, tuple(value.name for value in model.graph.output))


def every_node(nodes: Iterable[onnx.NodeProto]) -> Iterable[onnx.NodeProto]:
    """Yield nodes, and those of bodies in them."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for body in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
                yield from every_node(body.node)


def count(model: onnx.ModelProto) -> int:
    """Count nodes, those of bodies and of inlined functions too; Constants are no work and don't count."""
    return sum(node.op_type != "Constant" for node in every_node(model.graph.node))


def left_behind(before: Interface, after: Interface) -> str:
    """Say how a result isn't what the input was."""
    if new := sorted(after.domains - before.domains - {""}):
        return f"not standard: {', '.join(new)}"
    if after.opset != before.opset and "" in after.domains:
        return f"opset {before.opset} became {after.opset}"
    if set(after.inputs) != set(before.inputs):
        return "other inputs"
    return "" if after.outputs == before.outputs else "other outputs"


def digest(path: Path) -> str:
    """Return the digest of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> None:
    """Serve: ``before`` and ``after`` are paths; the answer is Penstock's proof that they compute the same."""
    from penstock import custom_domains, proof
    from penstock.errors import PenstockError
    from penstock.jsonable import to_json

    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        asked = json.loads(line)
        before, after = Path(asked["before"]), Path(asked["after"])
        answer: Any
        try:
            answer = to_json(proof.compare(before, after, SEEDS, tuple(custom_domains.libraries(before))))
        except PenstockError as error:
            answer = {"error": error.what}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"[:500]}
        out.write(json.dumps(answer) + "\n")
        out.flush()


if __name__ == "__main__":
    main()

"""Look through the names of a model's outline: who makes what, who reads it, and whether the graph can be run in order.

Reading is by scope, as the ONNX specification has it: a body (of If, Loop, Scan) sees its own names and those of the
graphs around it, a function only its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from penstock.analysis.finding import Finding, refusal, shown
from penstock.analysis.outline import Function, Graph, Node, Outline, all_nodes

_EXPORT = "export the model again, or tell its producer"
_STANDARD = {"", "ai.onnx", "ai.onnx.ml", "ai.onnx.training", "ai.onnx.preview.training", "ai.onnx.preview"}
_RUNTIME = {"com.microsoft", "com.microsoft.nchwc", "com.microsoft.experimental", "com.ms.internal.nhwc"}
KNOWN_DOMAINS = frozenset(_STANDARD | _RUNTIME)
Key = tuple[str, str, str]  # domain, name, overload of a function


def examine(model: Outline, file: str, max_nodes: int) -> Iterator[Finding]:
    """Yield what is wrong or strange about opsets, domains, functions and names."""
    if model.no_text is not None:
        yield refusal("not-text", f"the name {shown(model.no_text)} is no text in UTF-8", file, _EXPORT)
        return  # nothing can be said of names that aren't any
    yield from _opsets(model, file)
    yield from _domains(model, file)
    yield from _functions(model, file, max_nodes)
    yield from _Names(file).graph(model.graph)
    for function in model.functions:
        yield from _Names(file).function(function)


def _opsets(model: Outline, file: str) -> Iterator[Finding]:
    versions: dict[str, set[int]] = {}
    count: dict[str, int] = {}
    for domain, version in model.opsets:
        versions.setdefault(domain, set()).add(version)
        count[domain] = count.get(domain, 0) + 1
    for domain, found in versions.items():
        if beyond := [version for version in found if not 0 <= version < 1 << 31]:
            what = f"the opset of {shown(domain or 'ai.onnx')} has the version {beyond[0]}, which can't be one"
            yield refusal("bad-opset", what, file, _EXPORT)
        told = f"the opset of {shown(domain or 'ai.onnx')} is declared"
        if len(found) > 1:
            what = f"{told} with different versions: {', '.join(map(str, sorted(found)))}"
            yield refusal("duplicate-opset", what, file, _EXPORT)
        elif count[domain] > 1:
            yield Finding("duplicate-opset", "note", f"{told} {count[domain]} times", file)


def _domains(model: Outline, file: str) -> Iterator[Finding]:
    declared = {domain for domain, _ in model.opsets}
    own = {function.domain for function in model.functions}
    custom: dict[str, set[str]] = {}
    undeclared: dict[str, str] = {}
    for node in all_nodes(model.graph.nodes):
        if node.domain not in declared:
            undeclared.setdefault(node.domain, node.op_type)
        if node.domain not in KNOWN_DOMAINS and node.domain not in own:
            custom.setdefault(node.domain, set()).add(node.op_type)
    for function in model.functions:
        inner = {*function.imports, *declared}
        for node in all_nodes(function.nodes):
            if node.domain not in inner:
                undeclared.setdefault(node.domain, node.op_type)
    for domain, op in undeclared.items():
        what = f"the operator {shown(op)} is of the domain {shown(domain or 'ai.onnx')}, which the model doesn't import"
        yield refusal("undeclared-domain", what, file, _EXPORT)
    for domain, ops in sorted(custom.items()):
        named = ", ".join(shown(op) for op in sorted(ops)[:5])
        what = f"operators of the custom domain {shown(domain)}, which no runtime knows by itself: {named}"
        do = "export it with standard operators, or name the library with --allow-domain; docs/custom-operators.md"
        yield Finding("custom-domain", "warning", what, file, do)


def _functions(model: Outline, file: str, max_nodes: int) -> Iterator[Finding]:
    """Count the nodes that are left when every function is expanded, without expanding one."""
    known = {(f.domain, f.name, f.overload): f for f in model.functions}
    if len(known) < len(model.functions):
        yield refusal("duplicate-name", "two functions have the same name", file, _EXPORT)
    cost: dict[Key, int] = {}
    for start in known:
        path: list[tuple[Key, Iterator[Key]]] = [(start, _calls(known[start].nodes, known))]
        active = {start}
        while path:
            key, calls = path[-1]
            called = next(calls, None)
            if called is None:
                cost[key] = sum(cost.get(_key(node), 1) for node in all_nodes(known[key].nodes))
                active.discard(key)
                path.pop()
            elif called in active:
                what = f"the function {shown(called[1])} calls itself, directly or through others"
                yield refusal("recursive-function", what, file, _EXPORT)
                return
            elif called not in cost:
                active.add(called)
                path.append((called, _calls(known[called].nodes, known)))
    total = sum(cost.get(_key(node), 1) for node in all_nodes(model.graph.nodes))
    if total > max_nodes or any(figure > max_nodes for figure in cost.values()):
        most = max([total, *cost.values()])
        told = f"{most:,}" if most < 10**15 else f"more than 10^{len(str(most)) - 1}"
        what = f"its functions ask for {told} nodes when they are expanded, {max_nodes:,} are allowed"
        yield refusal("function-explosion", what, file, "raise [check] max_nodes if you trust the model")


def _key(node: Node) -> Key:
    return (node.domain, node.op_type, node.overload)


def _calls(nodes: Iterable[Node], known: dict[Key, Function]) -> Iterator[Key]:
    return (_key(node) for node in all_nodes(nodes) if _key(node) in known)


@dataclass(slots=True)
class _Frame:
    """A graph that is being looked through: which node makes a name, which nodes each one needs, and where we are."""

    maker: dict[str, int]
    needs: list[list[int]]
    at: int = 0


class _Names:
    """The names that can be read at one place, those of the graphs around it too; each is looked up once."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.frames: list[_Frame] = []
        self.level: dict[str, int] = {}  # name → the frame that makes it, the innermost of several

    def graph(self, graph: Graph) -> Iterator[Finding]:
        """Yield what is wrong in a graph and in the bodies inside it."""
        yield from self._twice(graph.inputs, "inputs")
        yield from self._twice(graph.held, "initializers")
        inputs = set(graph.inputs)
        if shadowed := sorted(inputs.intersection(graph.held)):
            first = shown(shadowed[0])
            what = f"{len(shadowed)} initializers are inputs as well (first: {first}): a caller may change them"
            yield Finding("shadowed-input", "warning", what, self.file)
        yield from self._scope(inputs.union(graph.held), graph.nodes, graph.outputs)

    def function(self, function: Function) -> Iterator[Finding]:
        """Yield what is wrong in a function's body."""
        yield from self._twice(function.inputs, f"inputs of the function {shown(function.name)}")
        yield from self._scope(set(function.inputs), function.nodes, function.outputs)

    def _twice(self, names: Sequence[str], what: str) -> Iterator[Finding]:
        seen: set[str] = set()
        for name in names:
            if name in seen and name:
                yield refusal("duplicate-name", f"two {what} are named {shown(name)}", self.file, _EXPORT)
                return
            seen.add(name)

    def _scope(self, given: set[str], nodes: Sequence[Node], outputs: Sequence[str]) -> Iterator[Finding]:
        maker: dict[str, int] = {}
        for index, node in enumerate(nodes):
            for name in node.outputs:
                if name and (name in maker or name in given):
                    what = f"the name {shown(name)} is given twice, the second time by {_called(node)}"
                    yield refusal("duplicate-name", what, self.file, _EXPORT)
                    return
                if name:
                    maker[name] = index
        level, made = len(self.frames), (*given, *maker)
        outer = {name: self.level[name] for name in made if name in self.level}
        self.level.update(dict.fromkeys(made, level))
        self.frames.append(_Frame(maker, [[] for _ in nodes]))
        try:
            yield from self._read(level, nodes, outputs)
        finally:
            self.frames.pop()
            for name in made:
                self.level.pop(name, None)
            self.level.update(outer)

    def _read(self, level: int, nodes: Sequence[Node], outputs: Sequence[str]) -> Iterator[Finding]:
        frame = self.frames[level]
        for name in outputs:
            if name and not self._reads(name, level, None):
                yield refusal("undefined-value", f"nothing makes the output {shown(name)}", self.file, _EXPORT)
                return
        for index, node in enumerate(nodes):
            frame.at = index
            for name in node.inputs:
                if name and not self._reads(name, level, frame):
                    what = f"{_called(node)} reads {shown(name)}, which nothing makes"
                    yield refusal("undefined-value", what, self.file, _EXPORT)
                    return
            for body in node.bodies:
                yield from self.graph(body)
        if (stuck := _cycle(frame.needs)) is not None:
            what = f"the graph goes in a circle through {_called(nodes[stuck])}"
            yield refusal("cyclic-graph", what, self.file, _EXPORT)

    def _reads(self, name: str, level: int, here: _Frame | None) -> bool:
        """Note that the node at hand, or the one around it whose body this is, needs what makes a name."""
        made_at = self.level.get(name)
        if made_at is None:
            return False
        frame = here if made_at == level else self.frames[made_at]
        if frame is not None and (maker := frame.maker.get(name)) is not None:
            frame.needs[frame.at].append(maker)
        return True


def _called(node: Node) -> str:
    return f"the node {shown(node.name)} ({shown(node.op_type)})" if node.name else f"a node {shown(node.op_type)}"


def _cycle(needs: list[list[int]]) -> int | None:
    """Return one node of a circle, ``None`` where there is an order (Kahn's algorithm)."""
    waiting = [len(before) for before in needs]
    readers: list[list[int]] = [[] for _ in needs]
    for index, before in enumerate(needs):
        for other in before:
            readers[other].append(index)
    ready = [index for index, count in enumerate(waiting) if not count]
    done = 0
    while ready:
        index = ready.pop()
        done += 1
        for reader in readers[index]:
            waiting[reader] -= 1
            if not waiting[reader]:
                ready.append(reader)
    return None if done == len(needs) else next(index for index, count in enumerate(waiting) if count)

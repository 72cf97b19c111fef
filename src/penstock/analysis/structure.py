"""Look through the names of a parsed model: who makes what, who reads it, and whether the graph can be run in order.

Reading is by scope, as the ONNX specification has it: a body (of If, Loop, Scan) sees its own names and those of the
graphs around it, a function only its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from penstock.analysis.finding import Finding, refusal, shown

if TYPE_CHECKING:
    import onnx

_EXPORT = "export the model again, or tell its producer"
_STANDARD = {"", "ai.onnx", "ai.onnx.ml", "ai.onnx.training", "ai.onnx.preview.training", "ai.onnx.preview"}
_RUNTIME = {"com.microsoft", "com.microsoft.nchwc", "com.microsoft.experimental", "com.ms.internal.nhwc"}
KNOWN_DOMAINS = frozenset(_STANDARD | _RUNTIME)
Key = tuple[str, str, str]  # domain, name, overload of a function


def examine(model: onnx.ModelProto, file: str, max_nodes: int) -> Iterator[Finding]:
    """Yield what is wrong or strange about opsets, domains, functions and names."""
    if (name := next((name for name in _names(model) if isinstance(name, bytes)), None)) is not None:
        yield refusal("not-text", f"the name {shown(name)} is no text in UTF-8", file, _EXPORT)
        return  # nothing can be said of names that aren't any
    yield from _opsets(model, file)
    yield from _domains(model, file)
    yield from _functions(model, file, max_nodes)
    yield from _Scope(file).graph(model.graph)
    for function in model.functions:
        yield from _Scope(file).function(function)


def _names(model: onnx.ModelProto) -> Iterator[object]:
    """Yield every name that is looked at here or printed; protobuf gives bytes for one that is no text."""
    yield from (entry.domain for entry in model.opset_import)
    for function in model.functions:
        yield from (function.name, function.domain, function.overload, *function.input, *function.output)
        yield from (entry.domain for entry in function.opset_import)
    graphs = [model.graph]
    for nodes in [model.graph.node, *(function.node for function in model.functions)]:
        for node in all_nodes(nodes):
            yield from (node.name, node.op_type, node.domain, node.overload, *node.input, *node.output)
            yield from (attribute.name for attribute in node.attribute)
            graphs += bodies(node)
    for graph in graphs:
        yield from (value.name for value in [*graph.input, *graph.output, *graph.value_info])
        yield from (tensor.name for tensor in graph.initializer)
        yield from (tensor.values.name for tensor in graph.sparse_initializer)


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name


def _opsets(model: onnx.ModelProto, file: str) -> Iterator[Finding]:
    versions: dict[str, set[int]] = {}
    count: dict[str, int] = {}
    for entry in model.opset_import:
        versions.setdefault(_domain(entry.domain), set()).add(entry.version)
        count[_domain(entry.domain)] = count.get(_domain(entry.domain), 0) + 1
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


def _domains(model: onnx.ModelProto, file: str) -> Iterator[Finding]:
    declared = {_domain(entry.domain) for entry in model.opset_import}
    own = {function.domain for function in model.functions}
    custom: dict[str, set[str]] = {}
    undeclared: dict[str, str] = {}
    for node in all_nodes(model.graph.node):
        domain = _domain(node.domain)
        if domain not in declared:
            undeclared.setdefault(domain, node.op_type)
        if domain not in KNOWN_DOMAINS | own:
            custom.setdefault(domain, set()).add(node.op_type)
    for function in model.functions:
        inner = {_domain(entry.domain) for entry in function.opset_import} | declared
        for node in all_nodes(function.node):
            if _domain(node.domain) not in inner:
                undeclared.setdefault(_domain(node.domain), node.op_type)
    for domain, op in undeclared.items():
        what = f"the operator {shown(op)} is of the domain {shown(domain or 'ai.onnx')}, which the model doesn't import"
        yield refusal("undeclared-domain", what, file, _EXPORT)
    for domain, ops in sorted(custom.items()):
        named = ", ".join(shown(op) for op in sorted(ops)[:5])
        what = f"operators of the custom domain {shown(domain)}, which no runtime knows by itself: {named}"
        do = "export it with standard operators, or name the library with --allow-domain; docs/custom-operators.md"
        yield Finding("custom-domain", "warning", what, file, do)


def all_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Yield nodes and those of their bodies."""
    stack = [iter(nodes)]
    while stack:
        node = next(stack[-1], None)
        if node is None:
            stack.pop()
            continue
        yield node
        stack.extend(iter(body.node) for body in bodies(node))


def bodies(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """Return the graphs that a node holds as attributes."""
    found = []
    for attribute in node.attribute:
        found.extend([attribute.g] if attribute.HasField("g") else [])
        found.extend(attribute.graphs)
    return found


def _functions(model: onnx.ModelProto, file: str, max_nodes: int) -> Iterator[Finding]:
    """Count the nodes that are left when every function is expanded, without expanding one."""
    known = {(_domain(f.domain), f.name, f.overload): f for f in model.functions}
    if len(known) < len(model.functions):
        yield refusal("duplicate-name", "two functions have the same name", file, _EXPORT)
    cost: dict[Key, int] = {}
    for start in known:
        path: list[tuple[Key, Iterator[Key]]] = [(start, _calls(known[start].node, known))]
        active = {start}
        while path:
            key, calls = path[-1]
            called = next(calls, None)
            if called is None:
                own = list(all_nodes(known[key].node))
                cost[key] = sum(cost.get(_key(node), 1) for node in own)
                active.discard(key)
                path.pop()
            elif called in active:
                what = f"the function {shown(called[1])} calls itself, directly or through others"
                yield refusal("recursive-function", what, file, _EXPORT)
                return
            elif called not in cost:
                active.add(called)
                path.append((called, _calls(known[called].node, known)))
    total = sum(cost.get(_key(node), 1) for node in all_nodes(model.graph.node))
    if total > max_nodes or any(figure > max_nodes for figure in cost.values()):
        most = max([total, *cost.values()])
        told = f"{most:,}" if most < 10**15 else f"more than 10^{len(str(most)) - 1}"
        what = f"its functions ask for {told} nodes when they are expanded, {max_nodes:,} are allowed"
        yield refusal("function-explosion", what, file, "raise [check] max_nodes if you trust the model")


def _key(node: onnx.NodeProto) -> Key:
    return (_domain(node.domain), node.op_type, node.overload)


def _calls(nodes: Iterable[onnx.NodeProto], known: dict[Key, onnx.FunctionProto]) -> Iterator[Key]:
    return (_key(node) for node in all_nodes(nodes) if _key(node) in known)


@dataclass(slots=True)
class _Scope:
    """The names that can be read at one place: those made here, and the scope around."""

    file: str
    outer: _Scope | None = None
    made: set[str] = field(default_factory=set)

    def sees(self, name: str) -> bool:
        """Tell whether a name is made here or around."""
        scope: _Scope | None = self
        while scope is not None:
            if name in scope.made:
                return True
            scope = scope.outer
        return False

    def graph(self, graph: onnx.GraphProto) -> Iterator[Finding]:
        """Yield what is wrong in a graph and in the bodies inside it."""
        inputs = [value.name for value in graph.input]
        held = [t.name for t in graph.initializer] + [t.values.name for t in graph.sparse_initializer]
        yield from self._twice(inputs, "inputs")
        yield from self._twice(held, "initializers")
        if shadowed := sorted(set(inputs) & set(held)):
            first = shown(shadowed[0])
            what = f"{len(shadowed)} initializers are inputs as well (first: {first}): a caller may change them"
            yield Finding("shadowed-input", "warning", what, self.file)
        self.made |= {*inputs, *held}
        yield from self._body(graph.node, [value.name for value in graph.output])

    def function(self, function: onnx.FunctionProto) -> Iterator[Finding]:
        """Yield what is wrong in a function's body."""
        yield from self._twice([*function.input], f"inputs of the function {shown(function.name)}")
        self.made |= set(function.input)
        yield from self._body(function.node, [*function.output])

    def _twice(self, names: list[str], what: str) -> Iterator[Finding]:
        seen: set[str] = set()
        for name in names:
            if name in seen and name:
                yield refusal("duplicate-name", f"two {what} are named {shown(name)}", self.file, _EXPORT)
                return
            seen.add(name)

    def _body(self, nodes: Iterable[onnx.NodeProto], outputs: list[str]) -> Iterator[Finding]:
        nodes = list(nodes)
        maker: dict[str, int] = {}
        for index, node in enumerate(nodes):
            for name in node.output:
                if name and (name in maker or name in self.made):
                    what = f"the name {shown(name)} is given twice, the second time by {_called(node)}"
                    yield refusal("duplicate-name", what, self.file, _EXPORT)
                    return
                if name:
                    maker[name] = index
        self.made |= set(maker)
        for name in outputs:
            if name and not self.sees(name):
                yield refusal("undefined-value", f"nothing makes the output {shown(name)}", self.file, _EXPORT)
                return
        needs: list[set[int]] = []
        for node in nodes:
            read = set(node.input) | {name for body in bodies(node) for name in _captured(body)}
            for name in node.input:
                if name and not self.sees(name):
                    what = f"{_called(node)} reads {shown(name)}, which nothing makes"
                    yield refusal("undefined-value", what, self.file, _EXPORT)
                    return
            needs.append({maker[name] for name in read if name in maker})
        if (stuck := _cycle(needs)) is not None:
            what = f"the graph goes in a circle through {_called(nodes[stuck])}"
            yield refusal("cyclic-graph", what, self.file, _EXPORT)
            return
        for node in nodes:
            for body in bodies(node):
                yield from _Scope(self.file, self).graph(body)


def _called(node: onnx.NodeProto) -> str:
    return f"the node {shown(node.name)} ({shown(node.op_type)})" if node.name else f"a node {shown(node.op_type)}"


def _captured(graph: onnx.GraphProto) -> set[str]:
    """Return the names that a body reads from around it."""
    own = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    own |= {name for node in graph.node for name in node.output}
    read = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    for node in graph.node:
        for body in bodies(node):
            read |= _captured(body)
    return read - own


def _cycle(needs: list[set[int]]) -> int | None:
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

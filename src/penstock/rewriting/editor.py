"""Carry rewrites out on a graph: each whole or not at all, and each as an event that can be replayed."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, cast

from penstock import source_lines
from penstock.graph import first_line
from penstock.passes._library import node_label
from penstock.rewriting import PassBroke, Refusal, Rewrite, wiring
from penstock.rewriting.knowledge import Knowledge, count
from penstock.rewriting.schema_types import misfit
from penstock.rewriting.site import Site
from penstock.rewriting.sizes import Product
from penstock.rewriting.trace import Event, Trace
from penstock.rewriting.walk import bodies_in, graphs_of, inside, nodes_in, nodes_of

if TYPE_CHECKING:
    import onnx_ir as ir

MOST_NEIGHBOURS = 64  # readers of one value that are looked at again after a rewrite
REACH = 3  # how far below a rewrite nodes are looked at again


class Editor:
    """A model while it is rewritten. All changes of nodes go through here."""

    def __init__(self, model: ir.Model, trace: Trace) -> None:
        self.model = model
        self.trace = trace
        self.known = Knowledge(model)
        self.site = Site(self.known)
        self.touched: list[ir.Node] = []  # nodes to look at again, in the order of the changes
        self.work = 0  # so far: for each change the nodes around it, and all that these and a changed interface hold
        graphs = graphs_of(model)
        self._names = {name for graph in graphs for name in graph.initializers}
        self._names |= {str(value.name) for graph in graphs for value in graph.inputs}
        self._names |= {str(v.name) for node in nodes_of(model) for v in node.outputs}
        self._numbers: dict[str, int] = {}  # the last one that was tried behind a name

    def put_back(self, backup: ir.Model, before: list[ir.Node]) -> None:
        """Take a copy in the place of a model that was spoilt; ``before`` are the nodes that were copied, in order."""
        for old, new in zip(before, nodes_of(backup), strict=True):
            self.trace.replaced(old, new)
        self.model = backup
        self.touched.clear()

    def learn(self) -> None:
        """Find out anew what is known of the values."""
        self.known.forget()
        self.site.forget()
        self.site.functions = {id(function.graph) for function in self.model.functions.values()}
        for function in self.model.functions.values():
            self.site.functions |= {id(graph) for graph in function.subgraphs()}
        self.find_owners()
        self.known.learn(self.model.graph)
        for function in self._functions():
            self.known.learn(function.graph, believed=False)

    def nodes(self) -> list[ir.Node]:
        """Return the nodes that may be rewritten: all but those of functions of another opset than the model's."""
        found = nodes_in(self.model.graph)
        for function in self._functions():
            found += nodes_in(function.graph)
        return found

    def _functions(self) -> list[ir.Function]:
        own = self.model.opset_imports.get("")
        return [one for one in self.model.functions.values() if one.opset_imports.get("", own) == own]

    def find_owners(self) -> None:
        """Note in which node each body lies."""
        self.site.owners = {body: node for node in nodes_of(self.model) for body in bodies_in(node)}

    def drop(self) -> None:
        """Forget nodes that a rule made and that won't be used."""
        for made in self.site.made:
            for node in inside(made):
                wiring.let_go(node)
        self.site.made.clear()

    def carry_out(self, root: ir.Node, rewrite: Rewrite, rule: str) -> Event:
        """Change the graph as a rewrite says.

        Raises ``Refusal`` or ``ValueError``, with nothing changed, where it can't be done; and ``PassBroke`` for an
        error after the first change: the model may then be half rewritten, and is to be read anew.
        """
        root = rewrite.before or root
        made = self._needed(rewrite)
        self._check(root, rewrite, made)
        try:
            return self._change(root, rewrite, made, rule)
        except Exception as error:  # whatever it is, the graph may be half changed
            raise PassBroke(rule, f"at {node_label(root)}: {type(error).__name__}: {first_line(error, 200)}") from error

    def _change(self, root: ir.Node, rewrite: Rewrite, made: list[ir.Node], rule: str) -> Event:
        graph = root.graph
        assert graph is not None
        line = source_lines.line_of(root)
        old_readers = [use.node for old in rewrite.values for use in old.uses()]
        renamed = [use.node for old, new in rewrite.values.items() if old.is_graph_output() for use in new.uses()]
        makers = [value.producer() for value in root.inputs if value is not None]
        copied = {node: node.name for node in made if node.name}
        self._place(root, made, rewrite)
        self._take_over(rewrite.values, made)
        places = {node: rewrite.places[node.outputs[0]] for node in made if node.outputs[0] in rewrite.places}
        for node in made:
            own = source_lines.line_of(places[node]) if node in places else line
            if own and not source_lines.line_of(node):
                node.metadata_props[source_lines.KEY] = own
            self.site.owners |= {body: inner for inner in inside(node) for body in bodies_in(inner)}
            self.known.visit(node)
        removed, freed = self._remove_dead(old.producer() for old in rewrite.values)
        self._hand_on(copied, removed)
        if root.name and root.graph is None:  # what stands in its place goes by its name
            for new in rewrite.values.values():
                if (producer := new.producer()) in made and producer is not None:
                    if producer not in copied:
                        producer.name = root.name
                    break
        changed = dict.fromkeys([*old_readers, *renamed, *(new.producer() for new in rewrite.values.values())])
        new_nodes = set(made)
        updated = [node for node in changed if node is not None and node.graph is not None and node not in new_nodes]
        self.work += sum(1 + len(node.inputs) + len(node.outputs) for node in itertools.chain(made, updated, removed))
        self.work += len(graph.outputs) if any(new.is_graph_output() for new in rewrite.values.values()) else 0
        saved = freed - self._made(made)
        event = self.trace.add(rule, rewrite.what, removed, made, updated, before=root, saved=saved, places=places)
        self._touch(made, old_readers, makers)
        self.site.made.clear()
        return event

    # -- steps of it ---------------------------------------------------------------------------------------------------

    def _needed(self, rewrite: Rewrite) -> list[ir.Node]:
        """Return the nodes that the new values need, in the order in which they were made; drop the others."""
        made, wanted = set(self.site.made), set()
        stack = [new.producer() for new in rewrite.values.values()]
        while stack:
            node = stack.pop()
            if node is None or node not in made or node in wanted:
                continue
            wanted.add(node)
            stack.extend(value.producer() for one in inside(node) for value in one.inputs if value is not None)
        kept = [node for node in self.site.made if node in wanted]
        self.site.made[:] = [node for node in self.site.made if node not in wanted]
        self.drop()
        self.site.made[:] = kept
        return kept

    def _check(self, root: ir.Node, rewrite: Rewrite, made: list[ir.Node]) -> None:
        given: set[ir.Value] = set()
        if reason := next((told for node in made if (told := misfit(node, self.site.opset))), ""):
            raise Refusal(reason)
        if self.site.in_function(root):
            read = [value for node in made for value in node.inputs] + list(rewrite.values.values())
            if any(value is not None and value.producer() is None and value.name is None for value in read):
                raise Refusal("it lies in a function, which can't hold constants")
        self._check_scope(root, rewrite, made)
        for old, new in rewrite.values.items():
            if not old.is_graph_output():
                continue
            producer = new.producer()
            if producer is None:
                raise Refusal("it hands out, as an output of its graph, an input or a constant")
            home = producer.graph if producer.graph is not None else root.graph
            if home is not root.graph:
                raise Refusal("it hands out a value of an outer graph")
            if new.is_graph_output() or new in given:
                raise Refusal("its input is an output of its graph too")
            given.add(new)

    def _check_scope(self, root: ir.Node, rewrite: Rewrite, made: list[ir.Node]) -> None:
        """Raise ``ValueError`` where a rule wires what can't be: that is a fault of the rule."""
        seen, graph = set(made), root.graph
        for place in rewrite.places.values():
            if place.graph is not graph:
                raise ValueError(f"a new node is put beside {node_label(place)!r}, which lies in another graph")
        scope = {graph}
        while (owner := self.site.owners.get(cast("ir.Graph", graph))) is not None:
            graph = owner.graph
            scope.add(graph)
        for value in (value for node in made for value in node.inputs if value is not None):
            if value in rewrite.values:
                raise ValueError(f"a new node reads {value.name!r}, in whose place it is put")
            if value.producer() not in seen and not _lies_in(value, scope):
                raise ValueError(f"a new node reads {value.name!r}, which is not to be seen from its graph")
        for new in rewrite.values.values():
            if new in rewrite.values:
                raise ValueError(f"{new.name!r} is put in the place of another value, and another one in its place")
            if new.producer() not in seen and not _lies_in(new, scope):
                raise ValueError(f"{new.name!r} is not to be seen from the graph of the node")

    def _place(self, root: ir.Node, made: list[ir.Node], rewrite: Rewrite) -> None:
        """Name the new nodes, register their constants, and put them before the root."""
        graph = root.graph
        assert graph is not None
        base = next((old.name for old in rewrite.values if old.name), None) or root.op_type
        for node in made:
            node.name = None
            for value in node.inputs:
                if value is not None and value.producer() is None and value.name is None:
                    self._register(graph, value, base)
            for value in node.outputs:
                value.name = self.free_name(base)
            node.name = node.outputs[0].name
        for place, nodes in itertools.groupby(made, lambda node: rewrite.places.get(node.outputs[0], root)):
            group = tuple(nodes)
            graph.insert_before(place, group)
            self.site.placed(group, place)
        for new in rewrite.values.values():
            if new.producer() is None and new.name is None:
                self._register(graph, new, base)

    def _hand_on(self, copied: dict[ir.Node, str], removed: list[ir.Node]) -> None:
        """Let a copy go by the name of the node that went: the user knows it by that."""
        gone = {inner.name for node in removed for inner in inside(node)}
        for node, name in copied.items():
            if name in gone:
                node.name = name
                gone.discard(name)

    def _register(self, graph: ir.Graph, value: ir.Value, base: str) -> None:
        """Make a new constant an initializer of the graph."""
        assert value.const_value is not None
        value.name = self.free_name(f"{base}_const")
        value.const_value.name = value.name
        graph.register_initializer(value)

    def free_name(self, wanted: str) -> str:
        """Return a name that no value has, and take it."""
        name = wanted
        while name in self._names:
            number = self._numbers[wanted] = self._numbers.get(wanted, 1) + 1
            name = f"{wanted}_{number}"
        self._names.add(name)
        return name

    def _take_over(self, values: Mapping[ir.Value, ir.Value], made: Iterable[ir.Node]) -> None:
        """Let the readers of each value read what stands for it; a fresh value takes over name, type and shape."""
        fresh = {value for node in made for value in node.outputs}
        handed_out = {old for old in values if old.is_graph_output()}
        for old, new in values.items():
            if new.type is None or old in handed_out:
                new.type = old.type or new.type
            if new in fresh and old in self.known.shapes and new not in self.known.shapes:
                self.known.shapes[new] = self.known.shapes[old]
            if old in self.known.elements and new not in self.known.elements:
                self.known.elements[new] = self.known.elements[old]
            if old in handed_out:
                new.shape = old.shape
        wiring.take_over(values)
        for old, new in values.items():
            if new in fresh or old in handed_out:
                old.name, new.name = new.name, old.name

    def _remove_dead(self, start: Iterable[ir.Node | None]) -> tuple[list[ir.Node], int]:
        """Remove nodes that nothing reads any more, from ``start`` upwards; return them, and the bytes they made."""
        removed: list[ir.Node] = []
        freed = 0
        stack = [node for node in start if node is not None]
        while stack:
            node = stack.pop()
            graph = node.graph
            if graph is None or not _unread(node):
                continue
            stack.extend(self._let_go(node))
            wiring.remove(node)
            removed.append(node)
            for value in node.outputs:
                freed += self._bytes(value)
                self.known.shapes.pop(value, None)
                self.known.elements.pop(value, None)
        return removed, freed

    def _let_go(self, node: ir.Node) -> list[ir.Node]:
        """Detach a node, and all inside its bodies, from what they read; return the nodes that made that."""
        found = []
        for inner in inside(node):
            found += [maker for value in inner.inputs if value is not None and (maker := value.producer()) is not None]
            wiring.let_go(inner)
        return found

    def _made(self, made: list[ir.Node]) -> int:
        """Return how many bytes new nodes make per run, dynamic sizes counted as 1."""
        return sum(self._bytes(value) for node in made for value in node.outputs)

    def _bytes(self, value: ir.Value) -> int:
        size = count(self.known.shapes.get(value))
        elements = size.factor if isinstance(size, Product) else size
        if elements is None or value.dtype is None or value.dtype.is_string():
            return 0  # texts have no size before a run
        return int(elements * value.dtype.itemsize)

    def _touch(self, made: list[ir.Node], readers: list[ir.Node], makers: list[ir.Node | None]) -> None:
        """Note the nodes whose surroundings have changed."""
        found: dict[ir.Node, None] = dict.fromkeys(
            node for node in makers if node is not None and node.graph is not None
        )
        for maker in [*found]:
            for value in maker.outputs:
                if wiring.read_count(value) <= MOST_NEIGHBOURS:
                    found |= dict.fromkeys(use.node for use in value.uses())
        layer = [*made, *readers[:MOST_NEIGHBOURS]]
        for _ in range(REACH):
            found |= dict.fromkeys(layer)
            outputs = [v for node in layer for v in node.outputs if wiring.read_count(v) <= MOST_NEIGHBOURS]
            layer = [use.node for value in outputs for use in value.uses()][:MOST_NEIGHBOURS]
        self.touched.extend(node for node in found if node.graph is not None)


def _unread(node: ir.Node) -> bool:
    return not any(value.is_graph_output() or wiring.read_count(value) for value in node.outputs)


def _lies_in(value: ir.Value, scope: Collection[object]) -> bool:
    """Whether a value is of one of these graphs; a new constant is of none, and will be of the innermost."""
    if value.producer() is None and value.name is None:
        return True
    return value.graph in scope

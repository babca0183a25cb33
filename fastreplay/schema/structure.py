# SPDX-License-Identifier: MIT
"""How the fields of a transition nest: nodes that are a field, or a dict or tuple of nodes. Knows no arrays."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["RESERVED_NAMES", "Names", "Node", "fields_within", "is_within", "nodes_of_names", "now_of", "walk"]

# Attributes of a Minibatch, and what may become one.
RESERVED_NAMES = frozenset(["batch_size", "get", "items", "keys", "numpy", "schema", "ticket", "to", "values"])

_NEXT, _IS_NEXT = "next_", "_next"


def now_of(name: str) -> str | None:
    """Return what a field is the next of, by its own name: X of `next_X` and of `X_next`; None of others."""
    part, slash, rest = name.partition("/")
    now = part.removeprefix(_NEXT) if part.startswith(_NEXT) else part.removesuffix(_IS_NEXT)
    return now + slash + rest if now not in ("", part) else None


def is_within(name: str, part: str) -> bool:
    """Return whether a field is that part of a transition, or below it."""
    return name == part or name.startswith(f"{part}/")


def fields_within(argument: str, part: str, fields: Collection[str]) -> list[str]:
    """Return the names of those of the fields that are that part of a transition, or below it.

    Raises:
        ValueError: There is none.
    """
    found = [name for name in fields if is_within(name, part)]
    if not found:
        raise ValueError(f"{argument}: expected names of fields, got {part!r}; the fields are {', '.join(fields)}")
    return found


@dataclass(frozen=True)
class Node:
    """A field, or a dict or tuple of nodes.

    Attributes:
        name: The field's name; of a dict or tuple, what the names below it begin with.
        position: The field's place in schema order, -1 of a dict or tuple.
        children: The nodes by key, or in their order; None of a field.
    """

    name: str
    position: int = -1
    children: dict[Hashable, Node] | tuple[Node, ...] | None = None

    @property
    def is_field(self) -> bool:
        """Whether there is nothing below."""
        return self.children is None

    def fold(self, values: tuple[Any, ...]) -> Any:
        """Return this node of what is given for the fields in schema order: a value, or dicts and tuples of them."""
        if isinstance(self.children, dict):
            return {key: child.fold(values) for key, child in self.children.items()}
        if isinstance(self.children, tuple):
            return tuple([child.fold(values) for child in self.children])
        return values[self.position]

    def unfold(self, value: object, nodes: Mapping[str, Node]) -> Iterator[tuple[str, object]]:
        """Yield the name and value of each field in a value of this node's form.

        Args:
            value: A dict for a dict, a tuple or list for a tuple; a dict may name the nodes of either by the rest
                of their names, too.
            nodes: All nodes by name.

        Raises:
            TypeError: The value is of another form, or has what this node has not.
        """
        if self.children is None:
            if isinstance(value, Mapping):
                raise TypeError(f"{self.name}: expected the value of a field, got {type(value).__name__}")
            yield self.name, value
        elif isinstance(value, Mapping):
            for key, item in value.items():
                yield from self._child(key, nodes).unfold(item, nodes)
        elif isinstance(self.children, tuple) and isinstance(value, (tuple, list)):
            if len(value) != len(self.children):
                raise TypeError(f"{self.name}: expected a tuple of {len(self.children)}, got one of {len(value)}")
            for child, item in zip(self.children, value, strict=True):
                yield from child.unfold(item, nodes)
        else:
            raise TypeError(f"{self.name}: expected {self._form()}, got {type(value).__name__}")

    def _child(self, key: Hashable, nodes: Mapping[str, Node]) -> Node:
        if isinstance(self.children, dict) and key in self.children:
            return self.children[key]
        try:
            return nodes[f"{self.name}/{key}"]
        except KeyError:
            raise TypeError(f"unknown field {f'{self.name}/{key}'!r}; {self.name} is {self._form()}") from None

    def _form(self) -> str:
        if isinstance(self.children, dict):
            return f"a dict of {', '.join(map(repr, self.children))}"
        return f"a tuple of {len(self.children or ())}"

    def moved(self, by: int) -> Node:
        """Return the node as it is in a schema that has `by` more fields before it."""
        if isinstance(self.children, dict):
            return Node(self.name, children={key: child.moved(by) for key, child in self.children.items()})
        if isinstance(self.children, tuple):
            return Node(self.name, children=tuple([child.moved(by) for child in self.children]))
        return Node(self.name, self.position + by)


def walk(nodes: Iterable[Node]) -> Iterator[Node]:
    """Yield nodes and all that is below them, in order."""
    for node in nodes:
        yield node
        children = node.children.values() if isinstance(node.children, dict) else node.children
        yield from walk(children or ())


class Names:
    """Gives each node below another a name of its own: the keys joined by "/", with a number where that is taken."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def below(self, parent: str, key: object) -> str:
        """Return a name that was not given before."""
        name = joined = f"{parent}/{key}"
        count = 1
        while name in self._taken:
            count += 1
            name = f"{joined}#{count}"
        self._taken.add(name)
        return name


def nodes_of_names(names: Iterable[str]) -> dict[str, Node]:
    """Return the nodes that fields named with "/" make: dicts, or tuples where the keys count from 0."""
    tree: dict[str, Any] = {}
    for position, name in enumerate(names):
        *parents, last = name.split("/")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[last] = position
    return {name: _node_of_tree(name, branch) for name, branch in tree.items()}


def _node_of_tree(name: str, branch: Any) -> Node:
    if isinstance(branch, int):
        return Node(name, branch)
    children: dict[Hashable, Node] = {key: _node_of_tree(f"{name}/{key}", child) for key, child in branch.items()}
    if list(children) == [str(i) for i in range(len(children))]:
        return Node(name, children=tuple(children.values()))
    return Node(name, children=children)

# SPDX-License-Identifier: MIT
"""What a buffer says of itself in a checkpoint, in JSON, and what is made of it again. Each message names the entry."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from fastreplay.batch.state import Counters, checked_counters
from fastreplay.buffer.priorities import Priorities
from fastreplay.checkpoint.said import Said
from fastreplay.schema import Field, Schema
from fastreplay.schema.structure import Node

if TYPE_CHECKING:
    from collections.abc import Hashable

    from fastreplay.buffer.frames import ShareNext

__all__ = ["Described", "describe_priorities", "describe_schema", "rule_of"]


def _beta_of_caller(_calls: int) -> float:
    """Stand for a function of the number of calls, which no file holds."""
    raise RuntimeError("a checkpoint holds no functions")


@dataclass(frozen=True)
class Described:
    """What a checkpoint says of its buffer.

    Attributes:
        capacity: Transitions that it holds.
        schema: Of what they are.
        options: Of the constructor.
        rng_state: Of the next minibatch.
        num_spawned: Samplers and faces made.
        inserted: Transitions since it was made.
        overwritten: Of these, lost.
        largest: Priority so far; None where it is drawn from uniformly.
        skips_resets: Whether the step after an end only resets.
        lanes: Where each lane stands, and one past its newest ticket.
        counters: What was counted of minibatches; None where it was not said.
    """

    capacity: int
    schema: Schema
    options: dict[str, Any]
    rng_state: dict[str, Any]
    num_spawned: int
    inserted: int
    overwritten: int
    largest: float | None
    skips_resets: bool
    lanes: tuple[list[int], list[int]]
    counters: Counters | None = None

    def json(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        states, ends = self.lanes
        return {
            "capacity": self.capacity,
            **describe_schema(self.schema),
            **_describe_options(self.options),
            "rng_state": self.rng_state,
            "num_spawned": self.num_spawned,
            "inserted": self.inserted,
            "overwritten": self.overwritten,
            "largest_priority": self.largest,
            "skips_resets": self.skips_resets,
            "lane_states": states,
            "lane_ends": ends,
            **({} if self.counters is None else {"counters": self.counters}),
        }

    @classmethod
    def of(cls, entries: dict[str, Any], path: str) -> Described:
        """Check what a checkpoint says.

        Args:
            entries: It.
            path: What a message calls it.

        Raises:
            ValueError: It is malformed.
        """
        said = Said(entries, path)
        options = _options(said)
        states, ends = said.integers("lane_states", 0, 4), said.integers("lane_ends")
        if len(states) != (options["lanes"] or 0) or len(ends) != len(states):
            said.refuse(f"the states of {options['lanes'] or 0} lanes", len(states))
        inserted = said.integer("inserted")
        return cls(
            said.integer("capacity", 1),
            _schema(said),
            options,
            said.generator("rng_state"),
            said.integer("num_spawned"),
            inserted,
            said.integer("overwritten", 0, inserted),
            None if options["priorities"] is None else said.number("largest_priority", 0),
            said.flag("skips_resets"),
            (states, ends),
            _counters(said),
        )


def _counters(said: Said) -> Counters | None:
    if said.entries.get("counters") is None:  # by an earlier fastreplay
        return None
    try:
        return checked_counters(said.entries["counters"])
    except ValueError as error:
        raise ValueError(f"{said.path}: {error}") from error


def describe_schema(schema: Schema) -> dict[str, Any]:
    """Return the fields of a transition, and how they nest.

    Raises:
        ValueError: They nest by keys that JSON has not.
    """
    fields = [{"name": name, "shape": [*f.shape], "dtype": f.dtype.name} | _given_out(f) for name, f in schema.items()]
    nodes = None if schema._follows_from_names() else [[name, _node(node)] for name, node in schema.parts.items()]
    return {"fields": fields, "nodes": nodes}


def _given_out(field: Field) -> dict[str, Any]:
    """Return what a field is besides, as far as it is anything."""
    out = None if field.out is None else field.out.name
    said = {
        "stack": field.stack,
        "out": out,
        "divide": field.divide,
        "scale": field.scale,
        "shift": field.shift or None,
    }
    return {key: value for key, value in said.items() if value is not None}


def _options_of_field(each: Said) -> dict[str, Any]:
    has = each.entries.keys()
    options: dict[str, Any] = {key: each.number(key, -math.inf) for key in ("divide", "scale") if key in has}
    options |= {key: each.integer(key, 1) for key in ("stack", "shift") if key in has}
    return options | ({"out": each.text("out")} if "out" in has else {})


def _node(node: Node) -> dict[str, Any]:
    if node.is_field:
        return {"name": node.name, "position": node.position}
    if isinstance(node.children, tuple):
        return {"name": node.name, "tuple": [_node(child) for child in node.children]}
    children = node.children or {}
    for key in children:
        if type(key) not in (str, int, bool, type(None)):
            raise ValueError(f"save: expected strings or integers for keys of {node.name!r}, got {key!r}")
    return {"name": node.name, "dict": [[key, _node(child)] for key, child in children.items()]}


def _schema(said: Said) -> Schema:
    fields: dict[str, Field] = {}
    for each in said.objects("fields"):
        name, shape = each.text("name"), each.integers("shape", 1)
        options = _options_of_field(each)
        stack = options.get("stack")
        if stack is not None and shape[:1] != [stack]:
            each.refuse(f"a shape of {stack} frames", shape)
        if name in fields:
            each.refuse("each field once", name)
        try:
            fields[name] = Field(tuple(shape if stack is None else shape[1:]), each.text("dtype"), **options)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{each.path}: {error}") from error
    try:
        if said.entries.get("nodes") is None:
            return Schema(fields)
        return Schema._restored(fields, {name: _node_in(said, node) for name, node in said.entries["nodes"]})
    except (TypeError, ValueError, KeyError, RecursionError) as error:
        raise ValueError(f"{said.path}: fields: {error}") from error


def _node_in(said: Said, value: Any) -> Node:
    node = Said(value, f"{said.path}: nodes")
    if "position" in node.entries:
        return Node(node.text("name"), node.integer("position"))
    children: dict[Hashable, Node] | tuple[Node, ...]
    if "tuple" in node.entries:
        children = tuple(_node_in(said, child) for child in node.entries["tuple"])
    else:
        children = {key: _node_in(said, child) for key, child in node.entries["dict"]}
    return Node(node.text("name"), children=children)


def describe_priorities(rule: Priorities | None) -> dict[str, Any] | None:
    """Return a rule to draw by; a function of it as null."""
    return None if rule is None else asdict(rule) | ({"beta": None} if callable(rule.beta) else {})


def _describe_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a constructor."""
    said = describe_priorities(options["priorities"])
    share_next = options["share_next"]
    pairs = share_next if isinstance(share_next, bool) else dict(share_next)
    return options | {"priorities": said, "share_next": pairs}


def _options(said: Said) -> dict[str, Any]:
    entries = said.entries
    ends = None if entries.get("ends") is None else said.texts("ends")
    share_next: ShareNext = said.flag("share_next") if entries.get("share_next") in (True, False) else _pairs(said)
    return {
        "device": said.text("device"),
        "storage": said.one_of("storage", ("host", "cuda")),
        "output": said.one_of("output", ("torch", "numpy")),
        "timeout": None if entries.get("timeout") is None else said.number("timeout", 0),
        "priorities": _priorities(said),
        "lanes": None if entries.get("lanes") is None else said.integer("lanes", 1),
        "ends": ends,
        "share_next": share_next,
    }


def rule_of(saved: Priorities | None, given: Priorities | None) -> Priorities | None:
    """Return the rule to draw by: that which was saved, with the caller's function, where it has one.

    Raises:
        TypeError: The caller's is no rule.
        ValueError: It is another; or it is missing.
    """
    if given is None:
        if saved is not None and saved.beta is _beta_of_caller:
            raise ValueError("priorities: expected the buffer's rule, as its beta was a function, which no file holds")
        return saved
    if type(given) is not Priorities:
        raise TypeError(f"priorities: expected fastreplay.Priorities or None, got {type(given).__name__}")
    if saved is None:
        raise ValueError("priorities: expected None, as the buffer was saved without")
    expected = replace(saved, beta=given.beta) if saved.beta is _beta_of_caller else saved
    if given != expected:
        raise ValueError(f"priorities: expected the rule that the buffer was saved with, {expected}, got {given}")
    return given


def _pairs(said: Said) -> dict[str, str]:
    pairs = said.below("share_next")
    return {name: pairs.text(name) for name in pairs.entries}


def _priorities(said: Said) -> Priorities | None:
    if said.entries.get("priorities") is None:
        return None
    rule = said.below("priorities")
    try:
        return Priorities(
            alpha=rule.number("alpha", 0),
            beta=_beta_of_caller if rule.entries.get("beta") is None else rule.number("beta", 0),
            eps=rule.number("eps", 0),
            draws=rule.one_of("draws", ("stratified", "independent")),
            normalize=rule.one_of("normalize", ("batch", "buffer", None)),
            initial="max" if rule.entries.get("initial") == "max" else rule.number("initial", 0),
            uniform_mix=rule.number("uniform_mix", 0),
            floor=rule.number("floor", 0),
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"{rule.path}: {error}") from error

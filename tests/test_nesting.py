# SPDX-License-Identifier: MIT
"""Nested observations and actions: what goes in by a space's form comes out in that form, whatever its keys."""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict, UserDict
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from support import NativeBuffer

import fastreplay as fr

if TYPE_CHECKING:
    from collections.abc import Sequence

Dict: Any = spaces.Dict  # untyped: its types know strings alone for keys
BOX = spaces.Box(-1, 1, (3,), np.float32)
BOX64 = spaces.Box(-1, 1, (2, 2), np.float64)
CAPACITY, ROWS = 6, 9

SPACES: dict[str, Any] = {
    "dict of one": Dict({"image": BOX}),
    "tuple of one": spaces.Tuple([BOX]),
    "dict of a dict of one": Dict({"a": Dict({"b": spaces.Discrete(5)})}),
    "tuple of a tuple of one": spaces.Tuple([spaces.Tuple([BOX])]),
    "tuple of a dict of one": spaces.Tuple([Dict({"": BOX})]),
    "dm_control": Dict({"walker/pos": BOX, "walker/vel": BOX64, "walker": BOX}),
    "slashes": Dict({"/": BOX, "//": BOX, "a/": BOX, "/a": BOX, "a": BOX}),
    "the same when joined": Dict({"a/b": BOX, "a": Dict({"b": BOX64, "b#2": BOX})}),
    "a dict's name and a field's": Dict({"a/b": BOX, "a": Dict({"b": Dict({"c": BOX})})}),
    "numbers": Dict({"0": BOX, "1": BOX}),
    "integers": Dict({0: BOX, 1: BOX64, 7: BOX}),
    "integers and numbers": Dict({0: BOX, "0": BOX64, "x": BOX}),
    "no name": Dict({"": BOX, "x": spaces.Tuple([BOX, Dict({"": BOX})])}),
    "reserved names": Dict({"keys": BOX, "_": BOX, "ticket": BOX, "__len__": BOX}),
    "other keys": Dict({(1, 2): BOX, None: BOX, 2.5: spaces.MultiBinary(3)}),
    "mixed": spaces.Tuple(
        [spaces.Discrete(3), Dict({"x": spaces.Tuple([BOX, spaces.MultiDiscrete([3, 4])]), "y": BOX64})]
    ),
    "numbers in pairs": spaces.Tuple([spaces.Box(-1, 1, (2,), np.float32), spaces.Box(-1, 1, (2,), np.float32)]),
    "box": BOX,
}

leaves = st.sampled_from(
    [
        BOX,
        BOX64,
        spaces.Box(-1, 1, (), np.float32),
        spaces.Discrete(5, start=-2),
        spaces.MultiBinary((2, 1)),
        spaces.MultiDiscrete([3, 4]),
    ]
)
keys = st.one_of(st.text("ab/01#_", max_size=3), st.integers(0, 2), st.sampled_from(["0", "1", "walker/pos", "keys"]))
nested = st.recursive(
    leaves,
    lambda children: st.one_of(
        st.dictionaries(keys, children, min_size=1, max_size=3).map(Dict),
        st.lists(children, min_size=1, max_size=3).map(spaces.Tuple),
    ),
    max_leaves=6,
)


def stacked(space: Any, elements: Sequence[Any]) -> Any:
    """Stack elements of a space as a vector environment does."""
    if isinstance(space, spaces.Dict):
        return {key: stacked(part, [element[key] for element in elements]) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(stacked(part, [element[i] for element in elements]) for i, part in enumerate(space.spaces))
    return np.stack([np.asarray(element) for element in elements])


def assert_same_form(got: Any, expected: Any) -> None:
    if isinstance(expected, dict):
        assert type(got) is dict
        assert [(type(key), key) for key in got] == [(type(key), key) for key in expected]
        for key, value in expected.items():
            assert_same_form(got[key], value)
    elif isinstance(expected, tuple):
        assert type(got) is tuple
        assert len(got) == len(expected)
        for part, value in zip(got, expected, strict=True):
            assert_same_form(part, value)
    else:
        array = np.asarray(got)
        assert array.dtype == expected.dtype
        np.testing.assert_array_equal(array, expected)


class Twin:
    """A buffer, and what was put into it."""

    def __init__(self, observation: Any, action: Any, output: str, seed: int = 0) -> None:
        self.observation, self.action = observation, action
        schema = fr.Schema.from_spaces(observation, action)
        self.buffer = NativeBuffer(CAPACITY, schema, seed=0, output=output)
        observation.seed(seed)
        action.seed(seed)
        self.rows = [(observation.sample(), action.sample(), observation.sample()) for _ in range(ROWS)]

    def columns(self, rows: Any) -> tuple[Any, ...]:
        first, second, third = zip(*rows, strict=True)
        observation = self.observation
        return stacked(observation, first), stacked(self.action, second), stacked(observation, third)

    def fill(self) -> None:
        for i, (observation, action, after) in enumerate(self.rows[:4]):
            self.buffer.add(observation, action, 0.5 * i, after, i % 2 == 0, False)
        observation, action, after = self.columns(self.rows[4:])
        count = ROWS - 4
        rewards, flags = np.arange(4, ROWS) * 0.5, np.zeros(count, bool)
        self.buffer.extend(observation, action, rewards, after, flags, truncated=flags)

    def check(self, batch: Any) -> None:
        tickets = np.asarray(batch.ticket)
        if tickets.ndim == 0:
            expected: Any = [stacked_one(part) for part in self.rows[int(tickets)]]
        else:
            expected = self.columns([self.rows[ticket] for ticket in tickets])
        for name, value in zip(("observation", "action", "next_observation"), expected, strict=True):
            assert_same_form(batch[name], value)
            assert_same_form(getattr(batch, name), value)
        np.testing.assert_array_equal(np.asarray(batch.reward), np.float32(0.5 * tickets))


def stacked_one(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: stacked_one(part) for key, part in value.items()}
    return tuple(map(stacked_one, value)) if isinstance(value, tuple) else np.asarray(value)


def check_everything(observation: Any, action: Any, output: str) -> None:
    twin = Twin(observation, action, output)
    twin.fill()
    buffer = twin.buffer
    again = [pickle.loads(pickle.dumps(buffer, protocol)) for protocol in (2, 5)] + [copy.deepcopy(buffer)]
    for each in (buffer, *again):
        assert each.schema == buffer.schema
        batch = each.sample(5)
        with each.loader(4, steps=1) as loader:
            batches = [batch, each.gather([0, 3]), each[1:4], each[-1], *loader, each.sample(5, out=batch)]
        for made in batches:
            twin.check(made)
    for made in (batch, buffer[2]):
        for other in (made.numpy(), made.to("cpu"), pickle.loads(pickle.dumps(made)), copy.deepcopy(made)):
            twin.check(other)
            assert other.schema == buffer.schema


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_what_goes_in_comes_out(space: Any, output: str) -> None:
    check_everything(space, spaces.Discrete(2), output)
    check_everything(BOX, space, output)


@settings(max_examples=30)
@given(observation=nested, action=nested)
def test_what_goes_in_comes_out_of_any_space(observation: Any, action: Any) -> None:
    check_everything(observation, action, "numpy")


@settings(max_examples=60)
@given(observation=nested, other=nested)
def test_schemas_are_equal_where_the_form_is(observation: Any, other: Any) -> None:
    schema = fr.Schema.from_spaces(observation, BOX, extra={"more/a": (), "more/b": (2,), "last": ()})
    assert schema.names[-3:] == ("more/a", "more/b", "last")
    for same in (pickle.loads(pickle.dumps(schema)), fr.Schema(schema), copy.deepcopy(schema)):
        assert same == schema
        assert hash(same) == hash(schema)
        assert repr(same) == repr(schema)
    second = fr.Schema.from_spaces(other, BOX, extra={"more/a": (), "more/b": (2,), "last": ()})
    assert (second == schema) == (second.names == schema.names and repr(second) == repr(schema))


def test_equal_names_and_fields_of_another_form_are_another_schema() -> None:
    forms = [
        spaces.Tuple([BOX, BOX]),
        Dict({"0": BOX, "1": BOX}),
        Dict({0: BOX, 1: BOX}),
        Dict({"0": BOX, 1: BOX}),
    ]
    schemas = [fr.Schema.from_spaces(form, BOX) for form in forms]
    assert len({schema.names for schema in schemas}) == 1
    assert len({repr(schema) for schema in schemas}) == 4
    for i, schema in enumerate(schemas):
        assert [schema == other for other in schemas] == [i == j for j in range(4)]
        batch = Twin(forms[i], BOX, "numpy")
        batch.fill()
        with pytest.raises(ValueError, match="out: expected a minibatch of"):
            NativeBuffer(4, schemas[i - 1], output="numpy").gather([], out=batch.buffer.gather([]))


def test_plain_keys_make_the_schema_that_their_names_make() -> None:
    schema = fr.Schema.from_spaces(Dict(pos=BOX, in_=spaces.Tuple([BOX, BOX])), BOX)
    assert schema == fr.Schema(dict(schema))
    assert repr(schema) == f"Schema({dict(schema)})"


@pytest.mark.parametrize("name", ["dm_control", "the same when joined", "integers and numbers"])
def test_every_field_has_a_name(name: str) -> None:
    twin = Twin(SPACES[name], BOX, "numpy")
    twin.fill()
    names = twin.buffer.schema.names
    assert len(set(names)) == len(names)
    batch = twin.buffer[:]
    again = NativeBuffer(CAPACITY, twin.buffer.schema, output="numpy")
    again.extend(**dict(batch.items()))
    again.extend(*batch.values())
    for field in names:
        np.testing.assert_array_equal(again[:][field], batch[field])
        assert twin.buffer.view(field).shape == (CAPACITY, *twin.buffer.schema[field].shape)


def test_fields_by_place_in_a_schema_that_nests() -> None:
    """Single fields in schema order go in as well as parts, also where there are as many of one as of the other."""
    twin = Twin(SPACES["dict of one"], BOX, "numpy")
    row = np.array([1, 2, 3], np.float32)
    for values in ((row, row, 0.5, row, True, False), ({"image": row}, row, 0.5, {"image": row}, True, False)):
        for cut in range(len(values) + 1):
            names = ("observation", "action", "reward", "next_observation", "terminated", "truncated")
            named = dict(zip(names[cut:], values[cut:], strict=True))
            if not isinstance(values[0], dict):
                named = {twin.buffer.schema.names[names.index(name)]: value for name, value in named.items()}
            twin.buffer.add(*values[:cut], **named)
            twin.buffer.extend(*map(batched, values[:cut]), **{key: batched(value) for key, value in named.items()})
            assert_same_form(twin.buffer[-1].observation, {"image": row})
            assert_same_form(twin.buffer[-2].next_observation, {"image": row})
            assert twin.buffer[-1].terminated


def batched(value: Any) -> Any:
    return {key: batched(part) for key, part in value.items()} if isinstance(value, dict) else np.asarray(value)[None]


class Read(UserDict[Any, Any]):
    """A mapping that is no dict."""


@pytest.mark.parametrize("kind", [dict, OrderedDict, Read])
def test_any_mapping_and_order_of_keys(kind: Any) -> None:
    twin = Twin(SPACES["dm_control"], BOX, "numpy")
    observation, action, after = twin.rows[0]
    twin.buffer.add(kind(reversed(observation.items())), action, 0.0, kind(after), True, False)
    twin.check(twin.buffer[:])


@pytest.mark.parametrize("kind", [list, tuple])
def test_a_list_may_stand_for_a_tuple(kind: Any) -> None:
    twin = Twin(SPACES["numbers in pairs"], spaces.Discrete(2), "numpy")
    observation, action, after = twin.rows[0]
    twin.buffer.add(kind(observation), action, 0.0, kind(after), True, False)
    twin.buffer.add(observation=kind(observation), action=action, reward=0.5, next_observation=after,
                    terminated=False, truncated=True)  # fmt: skip
    twin.rows[1] = twin.rows[0]
    twin.check(twin.buffer[:])
    # The fields one by one, which are lists themselves.
    values = [part.tolist() for part in observation]
    twin.buffer.add(*values, action, 1.0, *values, True, False)
    assert_same_form(twin.buffer[-1].observation, observation)


@pytest.mark.parametrize(
    ("space", "value", "message"),
    [
        ("dict of one", {}, "missing field 'observation/image'"),
        (
            "dict of one",
            {"image": np.zeros(3, "f4"), "more": 1},
            "unknown field 'observation/more'.* a dict of 'image'",
        ),
        ("dict of one", {"Image": np.zeros(3, "f4")}, "unknown field 'observation/Image'"),
        ("dict of one", (np.zeros(3, "f4"),), "observation: expected a dict of 'image', got tuple"),
        ("dm_control", {"walker": {"pos": 0, "vel": 1}}, "observation/walker: expected the value of a field, got dict"),
        ("tuple of one", (), "observation: expected a tuple of 1, got one of 0"),
        ("numbers in pairs", (1, 2, 3), "observation: expected a tuple of 2, got one of 3"),
        ("tuple of a tuple of one", (np.zeros(3, "f4"),), "observation/0: expected a tuple of 1, got ndarray"),
        ("dict of a dict of one", {"a": 3}, "observation/a: expected a dict of 'b', got int"),
        ("integers", {0: np.zeros(3, "f4")}, "missing field 'observation/1'"),
        ("dict of one", {"image": {"x": 1}}, "observation/image: "),
    ],
)
def test_another_form_is_refused(space: str, value: Any, message: str) -> None:
    twin = Twin(SPACES[space], BOX, "numpy")
    twin.fill()
    before = [array.copy() for array in twin.buffer[:]]
    good = twin.rows[0][0]
    for bad in (
        (value, twin.rows[0][1], 0.0, good, True, False),
        (good, twin.rows[0][1], 0.0, value, True, False),
    ):
        for call in (twin.buffer.add, twin.buffer.extend):
            expected = message if bad[0] is value else message.replace("observation", "next_observation")
            with pytest.raises((TypeError, ValueError), match=expected):
                call(*bad) if call == twin.buffer.add else call(*bad[:2], [0.0], *bad[3:4], [True], [False])
    assert twin.buffer.stats()["inserted"] == ROWS
    for array, copied in zip(twin.buffer[:], before, strict=True):
        np.testing.assert_array_equal(array, copied)


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_vector_environments(space: Any) -> None:
    class Env(gym.Env[Any, Any]):
        observation_space = space
        action_space = spaces.Discrete(2)

        def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
            super().reset(seed=seed, options=options)
            space.seed(seed)
            return space.sample(), {}

        def step(self, action: Any) -> Any:
            return space.sample(), float(action), False, False, {}

    envs = gym.vector.SyncVectorEnv([Env, Env])
    buffer = fr.ReplayBuffer.from_env(envs, 10, seed=0, output="numpy")
    assert buffer.schema == fr.ReplayBuffer.from_env(Env(), 10).schema
    observation, _ = envs.reset(seed=0)
    for _ in range(3):
        kept = copy.deepcopy(observation)
        action = envs.action_space.sample()
        after, reward, terminated, truncated, _ = envs.step(action)
        buffer.extend(kept, action, reward, after, terminated, truncated)
        assert_same_form(buffer[-2:].observation, kept)
        assert_same_form(buffer[-2:].next_observation, after)
        assert_same_form(buffer[-2:]["action"], action)
        observation = after
    envs.close()


@pytest.mark.parametrize(
    "space",
    [
        spaces.OneOf([BOX, spaces.Discrete(2)]),
        spaces.Graph(BOX, None),
        spaces.Text(3),
        spaces.Sequence(BOX),
        Dict({}),
        spaces.Tuple([]),
        spaces.Box(-1, 1, (3, 0), np.float32),
    ],
    ids=lambda space: type(space).__name__,
)
def test_what_has_no_fields_is_refused_by_its_place(space: Any) -> None:
    for outer, place in (
        (space, "observation"),
        (Dict({"a/b": space}), "observation/a/b"),
        (spaces.Tuple([BOX, Dict({"x": space})]), "observation/1/x"),
    ):
        with pytest.raises((TypeError, ValueError), match=f"^{place}: "):
            fr.Schema.from_spaces(outer, BOX)
        with pytest.raises((TypeError, ValueError), match=f"^{place.replace('observation', 'action')}: "):
            fr.Schema.from_spaces(BOX, outer)


def test_a_float64_leaf_is_stored_as_asked() -> None:
    buffer = NativeBuffer(3, fr.Schema.from_spaces(SPACES["dm_control"], BOX, dtype="float32"))
    observation = SPACES["dm_control"].sample()
    buffer.add(observation, BOX.sample(), 1.0, observation, False, False)
    got = buffer[0].observation
    assert {key: value.dtype for key, value in got.items()} == dict.fromkeys(observation, torch.float32)
    torch.testing.assert_close(got["walker/vel"], torch.from_numpy(observation["walker/vel"]).float())
    for bad in ("nonsense", "U3", object):
        with pytest.raises(TypeError, match="dtype: expected"):
            fr.Schema.from_spaces(BOX, BOX, dtype=bad)

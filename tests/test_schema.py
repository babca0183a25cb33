# SPDX-License-Identifier: MIT
"""Field and Schema: what they hold, what they refuse, and how spaces and environments map to them."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from support import NativeBuffer

import fastreplay as fr

NUMERIC = sorted({np.dtype(char).name for char in "?bBhHiIlLqQefdgFDG"})
SWAPPED = np.dtype("float32").newbyteorder()


def layout(schema: fr.Schema) -> dict[str, tuple[tuple[int, ...], str]]:
    return {name: (field.shape, field.dtype.name) for name, field in schema.items()}


def test_field_has_a_shape_and_a_dtype() -> None:
    field = fr.Field((2, 3), "uint8")
    assert (field.shape, field.dtype) == ((2, 3), np.dtype("uint8"))
    assert isinstance(field.dtype, np.dtype)
    assert fr.Field() == fr.Field((), np.float32) != fr.Field((), "float64")
    assert hash(fr.Field((3,))) == hash(fr.Field((3,), "float32"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        field.shape = (1,)  # type: ignore[misc]


def test_schema_is_an_ordered_immutable_mapping() -> None:
    spec: Any = {"b": fr.Field((2,), "int8"), "a": ((4, 1), np.float64), "c": (5,), "d": ()}
    schema = fr.Schema(spec)
    assert isinstance(schema, Mapping)
    assert schema.names == tuple(schema) == ("b", "a", "c", "d")
    assert len(schema) == 4
    assert "a" in schema
    assert "z" not in schema
    assert layout(schema) == {
        "b": ((2,), "int8"),
        "a": ((4, 1), "float64"),
        "c": ((5,), "float32"),
        "d": ((), "float32"),
    }
    with pytest.raises(KeyError):
        schema["z"]
    with pytest.raises(TypeError):
        schema["z"] = fr.Field()  # type: ignore[index]
    for name in spec:
        assert name in repr(schema)
    spec["late"] = ()
    assert "late" not in schema


def test_schema_equality_hash_and_pickle() -> None:
    schema = fr.Schema({"a": (3,), "b": ((), "bool")})
    same = fr.Schema({"a": fr.Field((3,), "float32"), "b": ((), np.bool_)})
    assert schema == same == fr.Schema(schema) == pickle.loads(pickle.dumps(schema))
    assert hash(schema) == hash(same)
    assert schema != fr.Schema({"b": ((), "bool"), "a": (3,)})  # values go in by this order
    assert schema != fr.Schema({"a": (3,), "b": ((), "uint8")})
    assert schema != fr.Schema({"a": (4,), "b": ((), "bool")})
    assert schema != fr.Schema({"a": (3,)})


@pytest.mark.parametrize("name", NUMERIC)
def test_every_numeric_dtype_is_a_field(name: str) -> None:
    schema = fr.Schema({"x": ((2,), name), "flag": ((), "bool"), "y": ((), name)})
    assert schema["x"].dtype == schema["y"].dtype == np.dtype(name)


@pytest.mark.parametrize(
    "fields",
    [
        {"x": ()},
        {"x": ((), "bool")},
        {"x": ((7,), "uint8"), "y": ((), "float64"), "z": ((3, 1), "int16")},
        {"x": (17,), "y": (6,), "reward": (), "next": (17,), "done": ((), "bool")},
        {"x": ((4, 84, 84), "uint8"), "done": ((), "bool")},
    ],
)
def test_nbytes_tells_the_memory_before_it_is_taken(fields: dict[str, Any]) -> None:
    schema = fr.Schema(fields)
    payload = sum(int(np.prod(f.shape)) * f.dtype.itemsize for f in schema.values())
    assert schema.record_bytes % 16 == 0
    assert payload <= schema.record_bytes <= payload + 16 * len(schema) + 64
    for capacity in (1, 2, 1000, 4321):
        assert schema.nbytes(capacity) >= capacity * (schema.record_bytes + 4)  # and a lap word
    assert schema.nbytes(10**7) <= 10**7 * (schema.record_bytes + 8) + 2**22
    assert NativeBuffer(1000, schema).nbytes == schema.nbytes(1000)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({}, ValueError, "schema|field"),
        ({"x": ((), object)}, TypeError, "x: .*object"),
        ({"x": ((), "U3")}, TypeError, "x: .*U3"),
        ({"x": ((), "S3")}, TypeError, "x: .*S3"),
        ({"x": ((), "V3")}, TypeError, "x: .*V3"),
        ({"x": ((), "M8[s]")}, TypeError, "x: .*datetime64"),
        ({"x": ((), "m8[s]")}, TypeError, "x: .*timedelta64"),
        ({"x": ((), [("a", "f4")])}, TypeError, "x: .*'a'"),
        ({"x": ((), SWAPPED)}, ValueError, "x: .*byte order"),
        ({"x": (3, 0)}, ValueError, r"x: .*\(3, 0\)"),
        ({"x": ((-1,), "int8")}, ValueError, r"x: .*\(-1,\)"),
        ({"x": ((2.5,), "int8")}, TypeError, "int"),
        ({"fine": (), 3: ()}, TypeError, "3"),
        ({"": ()}, ValueError, "name"),
        ({"x": (), "x/y": ()}, ValueError, "x"),
    ],
)
def test_refused_schemas(fields: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        fr.Schema(fields)
    with pytest.raises(error, match=message):
        NativeBuffer(10, fields)


@pytest.mark.parametrize("name", ["get", "items", "keys", "numpy", "schema", "ticket", "to", "values"])
def test_names_that_a_minibatch_needs_are_reserved(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        fr.Schema({"observation": (3,), name: ()})


@pytest.mark.parametrize("name", ["__len__", "__class__", "__iter__", "__getitem__"])
def test_a_field_cannot_break_a_minibatch(name: str) -> None:
    """Either refused as reserved, or harmless."""
    try:
        buffer = NativeBuffer(4, {name: ()}, output="numpy")
    except ValueError as error:
        assert name in str(error)  # noqa: PT017
        return
    buffer.add(3.0)
    batch = buffer.sample(2)
    assert len(batch) == 2
    assert batch[name].tolist() == [3.0, 3.0]


BOX = spaces.Box(-1, 1, (3, 2), np.float64)
MULTI_DTYPE: Any = np.int32
LEAVES: list[tuple[Any, tuple[tuple[int, ...], str]]] = [
    (BOX, ((3, 2), "float64")),
    (spaces.Box(0, 255, (4, 8, 8), np.uint8), ((4, 8, 8), "uint8")),
    (spaces.Box(-1, 1, (), np.float32), ((), "float32")),
    (spaces.Discrete(5), ((), "int64")),
    (spaces.Discrete(5, start=-2), ((), "int64")),
    (spaces.MultiDiscrete([3, 4]), ((2,), "int64")),
    (spaces.MultiDiscrete(np.array([[3, 4, 2]]), dtype=MULTI_DTYPE), ((1, 3), "int32")),
    (spaces.MultiBinary(4), ((4,), "int8")),
    (spaces.MultiBinary((2, 3)), ((2, 3), "int8")),
]
NESTED = spaces.Dict(
    pos=spaces.Box(-1, 1, (2,), np.float32),
    eyes=spaces.Tuple([spaces.Discrete(3), spaces.Dict(left=BOX)]),
)


@pytest.mark.parametrize(("space", "field"), LEAVES, ids=str)
def test_from_spaces_of_each_kind(space: Any, field: tuple[tuple[int, ...], str]) -> None:
    as_observation = fr.Schema.from_spaces(space, spaces.Discrete(2))
    assert list(layout(as_observation).items()) == [
        ("observation", field),
        ("action", ((), "int64")),
        ("reward", ((), "float32")),
        ("next_observation", field),
        ("terminated", ((), "bool")),
        ("truncated", ((), "bool")),
    ]
    assert layout(fr.Schema.from_spaces(BOX, space))["action"] == field


def test_from_spaces_joins_nested_names() -> None:
    schema = fr.Schema.from_spaces(NESTED, spaces.Tuple([spaces.Discrete(2), BOX]))
    leaves = {
        f"{key}/{rest}" if rest else key: field
        for key in NESTED.spaces
        for rest, field in (
            [("", ((2,), "float32"))] if key == "pos" else [("0", ((), "int64")), ("1/left", ((3, 2), "float64"))]
        )
    }
    assert list(layout(schema).items()) == [
        *((f"observation/{name}", field) for name, field in leaves.items()),
        ("action/0", ((), "int64")),
        ("action/1", ((3, 2), "float64")),
        ("reward", ((), "float32")),
        *((f"next_observation/{name}", field) for name, field in leaves.items()),
        ("terminated", ((), "bool")),
        ("truncated", ((), "bool")),
    ]


def test_from_spaces_dtype_changes_floating_fields_only() -> None:
    space = spaces.Dict(x=BOX, image=spaces.Box(0, 255, (2,), np.uint8), n=spaces.Discrete(3))
    schema = fr.Schema.from_spaces(space, BOX, dtype="float16")
    got = {name: dtype for name, (_, dtype) in layout(schema).items()}
    assert got["observation/x"] == got["next_observation/x"] == got["action"] == "float16"
    assert got["observation/image"] == "uint8"
    assert got["observation/n"] == "int64"
    assert got["reward"] == "float32"


IMAGE = spaces.Box(0, 255, (4, 9, 8), np.uint8)
GIVEN: dict[str, Any] = {"out": "float32", "divide": 255, "shift": 3}


@pytest.mark.parametrize("images", [GIVEN, {"shift": 2}, {"out": "float32", "scale": 0.5}, {}], ids=str)
def test_from_spaces_gives_images_out_otherwise(images: Any) -> None:
    plain, given = (fr.Schema.from_spaces(IMAGE, BOX, images=how) for how in (None, images))
    image = fr.Field((4, 9, 8), "uint8", **images)
    assert dict(given) == dict(plain) | {"observation": image, "next_observation": image}
    stacked = fr.Schema.from_spaces(IMAGE, BOX, images=images, stack=4)
    assert stacked["next_observation"] == fr.Field((9, 8), "uint8", stack=4, **images)


def test_from_spaces_knows_images_by_their_dtype_and_axes() -> None:
    others: dict[str, Any] = {
        "flat": spaces.Box(0, 255, (9,), np.uint8),
        "wide": spaces.Box(0, 9, (9, 9), np.int64),
        "x": BOX,
    }
    space = spaces.Dict({"image": IMAGE, "map": spaces.Box(0, 255, (9, 9), np.uint8), **others})
    schema = fr.Schema.from_spaces(space, IMAGE, extra={"more": fr.Field((9, 9), "uint8")}, images=GIVEN)
    given = {name for name, field in schema.items() if field.out is not None}
    assert given == {f"{which}/{name}" for which in ("observation", "next_observation") for name in ("image", "map")}


@pytest.mark.parametrize(
    ("space", "images", "error", "message"),
    [
        (BOX, GIVEN, ValueError, r"images: expected an observation of uint8 with two axes or more, got observation \("),
        (IMAGE, {"dtype": "uint8"}, TypeError, "images: expected a dict of out, divide, scale, shift, got"),
        (IMAGE, 255, TypeError, "images: expected a dict of out, divide, scale, shift, got 255"),
        (IMAGE, {"divide": 255}, ValueError, "images: divide: expected None without out='float32'"),
        (IMAGE, {"shift": 8}, ValueError, r"images: shift: expected an integer in \[0, 7\], got 8"),
        (IMAGE, {"out": "nonsense"}, TypeError, "images: out: expected a NumPy dtype"),
    ],
)
def test_from_spaces_refuses_what_images_cannot_be(space: Any, images: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        fr.Schema.from_spaces(space, BOX, images=images)


def test_from_spaces_extra_fields_come_last() -> None:
    extra: Any = {"log_prob": (), "mask": ((4,), "bool"), "state": fr.Field((2,), "float64")}
    schema = fr.Schema.from_spaces(BOX, BOX, extra=extra)
    assert schema.names[-4:] == ("truncated", "log_prob", "mask", "state")
    assert layout(schema)["mask"] == ((4,), "bool")


@pytest.mark.parametrize(
    "space",
    [
        spaces.Text(3),
        spaces.Sequence(BOX),
        spaces.Graph(BOX, None),
        spaces.OneOf([BOX, spaces.Discrete(2)]),
    ],
    ids=lambda space: type(space).__name__,
)
def test_from_spaces_refuses_other_spaces(space: Any) -> None:
    kind = type(space).__name__
    with pytest.raises(TypeError, match=f"observation.*{kind}"):
        fr.Schema.from_spaces(space, BOX)
    with pytest.raises(TypeError, match=f"action.*{kind}"):
        fr.Schema.from_spaces(BOX, space)
    with pytest.raises(TypeError, match=f"observation/deep/1.*{kind}"):
        fr.Schema.from_spaces(spaces.Dict(deep=spaces.Tuple([BOX, space])), BOX)
    with pytest.raises(TypeError, match="observation"):
        fr.Schema.from_spaces((3,), BOX)  # type: ignore[arg-type]


def test_from_spaces_refuses_duplicate_names() -> None:
    with pytest.raises(ValueError, match="reward"):
        fr.Schema.from_spaces(BOX, BOX, extra={"reward": ()})
    for name in ("observation/more", "action/0", "terminated/x"):
        with pytest.raises(ValueError, match=f"{name}: duplicate name"):
            fr.Schema.from_spaces(NESTED, BOX, extra={name: ()})


def test_from_env_single() -> None:
    env = gym.make("Pendulum-v1")
    buffer = fr.ReplayBuffer.from_env(env, 50, extra={"cost": ((), "float64")}, output="numpy")
    expected = fr.Schema.from_spaces(env.observation_space, env.action_space, extra={"cost": ((), "float64")})
    assert (buffer.capacity, buffer.schema) == (50, expected)
    observation, _ = env.reset(seed=0)
    action = env.action_space.sample()
    after, reward, terminated, truncated, _ = env.step(action)
    buffer.add(observation, action, float(reward), after, terminated, truncated, 0.125)
    batch = buffer[0]
    np.testing.assert_array_equal(batch.observation, observation)
    np.testing.assert_array_equal(batch.next_observation, after)
    assert batch.reward == np.float32(reward)
    assert batch.cost == 0.125
    env.close()


class Images(gym.Env[Any, Any]):
    observation_space = IMAGE
    action_space = BOX


@pytest.mark.parametrize("lanes", [None, True])
def test_from_env_gives_images_out_otherwise(lanes: Any) -> None:
    """As a buffer of the same fields does, and it takes what the constructor takes."""
    how: dict[str, Any] = {"seed": 5, "share_next": bool(lanes), "output": "numpy", "timeout": 3}
    stack = 4 if lanes else None
    buffer: Any = fr.ReplayBuffer.from_env(Images(), 20, images=GIVEN, stack=stack, lanes=lanes, **how)
    schema = fr.Schema.from_spaces(IMAGE, BOX, images=GIVEN, stack=stack)
    twin: Any = fr.ReplayBuffer(20, schema, lanes=None if lanes is None else 1, **how)
    assert buffer.schema == twin.schema
    frames = np.random.default_rng(0).integers(0, 256, (15, 9, 8), np.uint8)
    for at in range(11):
        row = (frames[at : at + 4], BOX.sample(), 0.0, frames[at + 1 : at + 5], False, False)
        for each in (buffer, twin):
            each.add(*row)
    batch, expected = buffer.sample(6), twin.sample(6)
    assert batch.observation.dtype == np.float32
    for name, value in expected.items():
        np.testing.assert_array_equal(batch[name], value)


def test_from_env_vector() -> None:
    envs = gym.make_vec("CartPole-v1", num_envs=3, vectorization_mode="sync")
    buffer = fr.ReplayBuffer.from_env(envs, 100, dtype="float16", seed=3)
    assert layout(buffer.schema)["observation"] == ((4,), "float16")
    assert layout(buffer.schema)["action"] == ((), "int64")
    observation, _ = envs.reset(seed=0)
    for _ in range(40):
        action = envs.action_space.sample()
        after, reward, terminated, truncated, _ = envs.step(action)
        buffer.extend(observation, action, reward, after, terminated, truncated)
        observation = after
    assert len(buffer) == 100
    last = buffer[-3:].numpy()
    np.testing.assert_array_equal(last["next_observation"], after.astype(np.float16))
    np.testing.assert_array_equal(last["action"], action)
    envs.close()


def test_from_env_nested() -> None:
    class Env(gym.Env[Any, Any]):
        observation_space = NESTED
        action_space = spaces.Discrete(2)

    buffer = fr.ReplayBuffer.from_env(Env(), 10, dtype="float32", output="numpy")
    NESTED.seed(0)
    first, second = NESTED.sample(), NESTED.sample()
    buffer.add(
        observation=first,
        action=1,
        reward=0.5,
        next_observation=second,
        terminated=False,
        truncated=True,
    )
    batch = buffer[0]
    np.testing.assert_array_equal(batch["observation/pos"], first["pos"])
    np.testing.assert_array_equal(batch["observation/eyes/0"], first["eyes"][0])
    np.testing.assert_array_equal(batch["next_observation/eyes/1/left"], second["eyes"][1]["left"].astype(np.float32))

# SPDX-License-Identifier: MIT
"""Fields that are given out in another way than they are stored: as float32, and shifted. torch is the oracle."""

from __future__ import annotations

import copy
import pickle
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from given_out_support import FACTORS, RULES, STORED, as_float, assert_same_bits, numbers, shifted, tensor_of, words_of
from hypothesis import given, settings
from hypothesis import strategies as st
from support import NativeBuffer

import fastreplay as fr
from fastreplay import _core

if TYPE_CHECKING:
    from pathlib import Path


# Of which each is another case of the gather: one number, lines of vectors and what is left of them, and images.
SHAPES: list[tuple[int, ...]] = [(), (3,), (31,), (2, 5, 6)]


EVERY_NUMBER = [
    *((dtype, factor, "torch") for dtype in STORED[:3] for factor in FACTORS),
    *((dtype, factor, "torch") for dtype, factor in zip(STORED[3:5], FACTORS[1:3], strict=True)),
    *((dtype, factor, "torch") for dtype in STORED[5:] for factor in FACTORS[:3]),
    *((dtype, FACTORS[1], "numpy") for dtype in ("uint8", *STORED[5:])),
]


@pytest.mark.parametrize(("dtype", "factor", "output"), EVERY_NUMBER, ids=str)
def test_every_number_becomes_what_torch_makes_of_it(dtype: Any, factor: dict[str, Any], output: str) -> None:
    bits = np.arange(2 ** (8 * np.dtype(dtype).itemsize), dtype=f"u{np.dtype(dtype).itemsize}")
    every = bits != 0 if dtype == "bool" else bits.view(dtype)
    field = fr.Field(every.shape, dtype, out="float32", **factor)
    buffer = NativeBuffer(1, {"x": field}, seed=0, output=output)
    buffer.add(x=every)
    expected = as_float(tensor_of(every), **factor)
    batch = buffer.sample(2)
    assert_same_bits(batch.x, torch.stack([expected] * 2))
    np.asarray(batch.x)[:] = 0
    assert buffer.sample(2, out=batch) is batch
    assert_same_bits(batch.x, torch.stack([expected] * 2))
    with buffer.loader(2, steps=1) as loader:
        assert_same_bits(next(loader).x, torch.stack([expected] * 2))
    assert type(batch.x) is (torch.Tensor if output == "torch" else np.ndarray)
    # What is read as it is has the stored dtype.
    for stored in (
        buffer[0].x,
        buffer.gather([0]).x,
        buffer.view("x"),
        buffer[:].x,
        buffer.gather([0], out=buffer[:]).x,
    ):
        assert str(stored.dtype).removeprefix("torch.") == every.dtype.name
        bits = stored if isinstance(stored, np.ndarray) else stored.view(torch.uint8).numpy()
        assert bits.tobytes() == every.tobytes()


def two_buffers(options: dict[str, Any], fields: dict[str, tuple[tuple[int, ...], dict[str, Any]]]) -> tuple[Any, Any]:
    """Give a buffer that converts, and one of the same draws that does not."""
    converting = {name: fr.Field(shape, **kwargs) for name, (shape, kwargs) in fields.items()}
    plain = {
        name: fr.Field(f.shape if f.stack is None else f.shape[1:], f.dtype, stack=f.stack)
        for name, f in converting.items()
    }
    ends = {"reward": fr.Field(), "terminated": fr.Field((), "bool")}
    return tuple(NativeBuffer(40, each | ends, seed=3, lanes=2, **options) for each in (converting, plain))


@settings(max_examples=40)
@given(
    st.sampled_from(STORED),
    st.sampled_from(SHAPES),
    st.sampled_from(FACTORS),
    st.sampled_from(RULES),
    st.integers(1, 70),
    st.sampled_from([{}, {"priorities": fr.Priorities()}, {"share_next": True}]),
    st.booleans(),
)
def test_minibatches_are_those_of_torch(
    dtype: Any, shape: tuple[int, ...], factor: dict[str, Any], rule: Any, batch_size: int, options: Any, stacks: bool
) -> None:
    kwargs: Any = {"dtype": dtype, "out": "float32", **factor, "stack": 2 if stacks else None}
    ours, plain = two_buffers(
        options, {"a": (shape, kwargs), "next_a": (shape, kwargs), "d/e": ((), {"dtype": "uint8", "out": "float32"})}
    )
    rows = ours.schema["a"].shape
    for seed in range(30):
        step = {name: numbers(dtype, (2, *rows), seed + i) for i, name in enumerate(["a", "next_a"])}
        given_rows = step | {"d/e": [seed, 1], "reward": [seed, 1], "terminated": [seed % 7 == 3, seed % 5 == 3]}
        ours.extend(**given_rows)
        plain.extend(**given_rows)
    batch, expected = ours.sample(batch_size, follow=rule), plain.sample(batch_size, follow=rule)
    assert torch.equal(batch.ticket, expected.ticket)
    for name, field in ours.schema.items():
        factors = {"divide": field.divide, "scale": field.scale}
        stored = expected[name]
        assert_same_bits(batch[name], as_float(stored, **factors)) if field.out else torch.equal(batch[name], stored)
    if isinstance(rule, fr.Sequence):
        assert torch.equal(batch.mask, expected.mask)


@pytest.mark.parametrize(
    "rule", [None, fr.Sequence(3), fr.Sequence(3, time_major=True), fr.Sequence(9, time_major=True)]
)
@pytest.mark.parametrize("stack", [None, 2])
def test_images_are_shifted_as_by_a_pad_and_a_slice(rule: Any, stack: int | None) -> None:
    fields: dict[str, Any] = {
        "a": ((2, 7, 9), {"dtype": "uint8", "out": "float32", "divide": 255, "shift": 4, "stack": stack}),
        "next_a": ((5, 6), {"dtype": "float64", "shift": 1, "stack": stack}),
    }
    ours, plain = two_buffers({}, fields)
    for seed in range(20):
        step = {name: numbers("uint8", (2, *ours.schema[name].shape), seed) for name in fields}
        for buffer in (ours, plain):
            buffer.extend(**step, reward=[0, 0], terminated=[seed % 6 == 5] * 2)
    state, places = ours.rng_state, set()
    for call in range(2):
        batch, expected = ours.sample(6, follow=rule), plain.sample(6, follow=rule)
        for number, name in enumerate(fields):
            field = ours.schema[name]
            for row in range(6):
                where = (slice(None), row) if rule is not None and rule.time_major else row
                words = words_of(state, call, row, number)
                places.add(tuple(word * (2 * field.shift + 1) >> 64 for word in words))
                stored = expected[name][where]
                one = as_float(stored, field.divide) if field.out else stored
                assert torch.equal(batch[name][where], shifted(one, field.shift, words)), (name, row)
    assert len(places) > 12
    # Another sampler of the same rows has other places.
    assert not torch.equal(ours.sampler(seed=1).sample(6).a, ours.sampler(seed=2).sample(6).a)


def test_every_shift_is_as_likely_as_every_other() -> None:
    """The pixel of a row of which each is another says where it was cut out."""
    image = np.arange(9 * 9, dtype=np.uint8).reshape(9, 9)
    buffer = NativeBuffer(1, {"x": fr.Field((9, 9), "uint8", shift=4)}, seed=0, output="numpy")
    buffer.add(x=image)
    count = np.bincount(buffer.sample(81 * 200).x[:, 4, 4], minlength=81)
    assert ((count - 200) ** 2 / 200).sum() < 140  # chi-square of 80 degrees: one in 30,000


def test_shares_of_threads_are_shifted_by_their_rows() -> None:
    buffer = NativeBuffer(50, {"x": fr.Field((4, 40, 40), "uint8", out="float32", divide=255, shift=4)}, seed=0)
    buffer.extend(x=numbers("uint8", (50, 4, 40, 40)))
    twin, third = copy.deepcopy(buffer), copy.deepcopy(buffer)
    before, one = _core.num_threads(), twin.sample(200)
    try:
        _core.set_num_threads(1)
        alone = buffer.sample(200)
        _core.set_num_threads(4)
        assert torch.equal(alone.x, third.sample(200).x)
    finally:
        _core.set_num_threads(before)
    assert torch.equal(alone.x, one.x)


def test_a_fields_conversion_comes_back(tmp_path: Path) -> None:
    fields = {
        "image": fr.Field((4, 8, 8), "uint8", out="float32", divide=255, shift=4),
        "half": fr.Field((3,), "float16", out="float32", scale=0.5),
        "other_half": fr.Field((3,), "bfloat16", out="float32", divide=3),
        "frames": fr.Field((6, 6), "uint8", stack=3, out="float32", shift=2),
        "plain": fr.Field((2,)),
    }
    buffer = NativeBuffer(20, fields, seed=0, lanes=1, ends=(), path=tmp_path / "ring.fr")
    image, frames = numbers("uint8", (15, 4, 8, 8)), numbers("uint8", (15, 3, 6, 6))
    buffer.extend(
        image=image, half=np.ones((15, 3)), other_half=np.ones((15, 3)), frames=frames, plain=np.ones((15, 2))
    )
    buffer.save(tmp_path / "kept")
    pickled = pickle.dumps(buffer)
    expected, state = buffer.sample(4), buffer.rng_state
    buffer.close()
    twin: Any
    for twin in (fr.ReplayBuffer.load(tmp_path / "kept"), pickle.loads(pickled)):
        assert twin.schema == fr.Schema(fields)
        assert hash(twin.schema) == hash(fr.Schema(fields))
        assert all(
            torch.equal(twin.gather(range(15))[name], torch.as_tensor(value))
            for name, value in (("image", image), ("frames", frames))
        )
        batch = twin.sample(4)
        assert all(torch.equal(batch[name], expected[name]) for name in fields)
    with NativeBuffer(20, fields, lanes=1, ends=(), path=tmp_path / "ring.fr") as found:
        found.rng_state = {**state, "calls": 0}
        assert torch.equal(found.sample(4).image, expected.image)
    with pytest.raises(ValueError, match="divide"):
        NativeBuffer(
            20,
            fields | {"image": fr.Field((4, 8, 8), "uint8", out="float32", divide=127, shift=4)},
            lanes=1,
            ends=(),
            path=tmp_path / "ring.fr",
        )
    assert repr(fields["frames"]) == "Field((6, 6), 'uint8', stack=3, out='float32', shift=2)"
    assert eval(repr(fr.Schema(fields)), {"Schema": fr.Schema, "Field": fr.Field}) == fr.Schema(fields)


def test_what_was_converted_does_not_go_in_again() -> None:
    field = fr.Field((3,), "float16", out="float32", divide=2)
    buffer = NativeBuffer(9, {"x": field}, seed=0)
    buffer.extend(x=numbers("float16", (5, 3)))
    with pytest.raises(ValueError, match="x: expected a minibatch as it is stored"):
        buffer.extend(buffer.sample(3))
    with pytest.raises(ValueError, match="x: expected a minibatch as it is stored"):
        buffer.extend(pickle.loads(pickle.dumps(buffer.sample(3))))
    assert len(buffer) == 5
    buffer.extend(buffer.gather([0, 1]))
    buffer.extend(buffer[:2])
    assert len(buffer) == 9
    floats = NativeBuffer(9, {"x": (3,)}, output="numpy")
    with pytest.raises(ValueError, match="x: expected a minibatch as it is stored"):
        floats.extend(buffer.sample(3))
    floats.extend(x=buffer.sample(3).x)  # by name it is the caller's word
    with pytest.raises(ValueError, match="out: expected a minibatch of"):
        buffer.gather([0, 1, 2], out=buffer.sample(3))


def test_members_of_a_mixture_agree() -> None:
    def filled(seed: int, **options: Any) -> Any:
        buffer = NativeBuffer(9, {"x": fr.Field((6, 6), "uint8", **options)}, seed=seed)
        buffer.extend(x=numbers("uint8", (9, 6, 6), seed))
        return buffer

    how: Any = {"out": "float32", "divide": 255, "shift": 2}
    members = [filled(0, **how), filled(1, **how)]
    parts = [copy.deepcopy(member).sample(4).x for member in members]
    assert torch.equal(fr.Mixture(dict.fromkeys(members, 0.5)).sample(8).x, torch.cat(parts))
    for other in ({}, {"out": "float32"}, how | {"divide": 127}, how | {"shift": 1}):
        with pytest.raises(ValueError, match="x: expected"):
            fr.Mixture({members[0]: 0.5, filled(1, **other): 0.5})


@pytest.mark.parametrize("time_major", [False, True])
def test_members_fill_their_shares_with_what_surrounds_rows(time_major: bool) -> None:
    def filled(seed: int) -> Any:
        field = fr.Field((6, 6), "uint8", out="float32", divide=255, shift=2)
        buffer = NativeBuffer(9, {"x": field}, seed=seed, lanes=1, ends=())
        buffer.extend(x=numbers("uint8", (9, 6, 6), seed))
        return buffer.sampler(follow=fr.Sequence(5, pad="zero", time_major=time_major), seed=seed)

    members = [filled(0), filled(1)]
    parts = [filled(seed).sample(4).x for seed in range(2)]
    mixed = fr.Mixture(dict.fromkeys(members, 0.5)).sample(8).x
    assert torch.equal(mixed, torch.cat(parts, dim=int(time_major)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float32", "out": "float32"}, "out: expected None, or a stored bool, .*, got float32"),
        ({"dtype": "int32", "out": "float32"}, "out: expected None, or a stored bool, .*, got int32"),
        ({"dtype": "uint8", "out": "float16"}, "out: expected 'float32' or None, got 'float16'"),
        ({"dtype": "uint8", "divide": 255}, "divide: expected None without out='float32', got 255"),
        ({"dtype": "uint8", "scale": 2}, "scale: expected None without out='float32', got 2"),
        (
            {"dtype": "uint8", "out": "float32", "divide": 2, "scale": 2},
            r"scale: expected None with divide=2\.0, got 2",
        ),
        ({"dtype": "uint8", "out": "float32", "divide": 0}, "divide: expected a number that is not 0"),
        ({"dtype": "uint8", "out": "float32", "divide": 1e-60}, "divide: expected a number that is not 0"),
        ({"dtype": "uint8", "out": "float32", "divide": float("nan")}, "divide: expected a number in"),
        ({"dtype": "uint8", "out": "float32", "scale": 1e39}, "scale: expected a number in"),
        ({"dtype": "uint8", "shift": 5}, r"shift: expected an integer in \[0, 4\], got 5"),
        ({"dtype": "uint8", "shift": -1}, r"shift: expected an integer in \[0, 4\], got -1"),
        ({"dtype": "uint8", "shape": (9,), "shift": 1}, "as rows are no images"),
        ({"dtype": "uint8", "shape": (9,), "stack": 5, "shift": 1}, "as rows are no images"),
    ],
)
def test_what_cannot_be_given_out_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fr.Field(**{"shape": (5, 6), **options})


def test_what_is_summed_is_not_shifted() -> None:
    buffer = NativeBuffer(9, {"reward": fr.Field((4, 4), shift=1)}, lanes=1, ends=())
    with pytest.raises(ValueError, match="reward: expected no shift of a field that is summed"):
        buffer.sampler(follow=fr.NStep(2, gamma=0.9))


@pytest.mark.parametrize("dtype", ["float16", "int16", "uint8"])
def test_what_is_summed_is_stored_as_floats(dtype: str) -> None:
    buffer = NativeBuffer(10, {"reward": fr.Field((), dtype, out="float32"), "terminated": ((), "bool")}, lanes=1)
    buffer.add(reward=1, terminated=False)
    with pytest.raises(
        ValueError, match=f"reward: expected to be stored as float32 or float64, and 'reward' is {dtype}"
    ):
        buffer.sample(1, follow=fr.NStep(3, 0.9))

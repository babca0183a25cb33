# SPDX-License-Identifier: MIT
"""The drop-ins with `dedupe`: side by side with themselves without, everything that comes out is the same."""

from __future__ import annotations

import copy
import io
import pickle
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from dedupe_support import ACTIONS, COLORS, IMAGES, PARTS, VECTORS, Pair, Stream
from gymnasium import spaces
from sb3_support import assert_same
from stable_baselines3.common import buffers as sb3_buffers

import fastreplay.cleanrl
import fastreplay.sb3

if TYPE_CHECKING:
    from collections.abc import Callable

SB3, SB3_DICT, CLEANRL = fastreplay.sb3.ReplayBuffer, fastreplay.sb3.DictReplayBuffer, fastreplay.cleanrl.ReplayBuffer
# Class, observations, frames of a stack, and what says so.
KINDS: dict[str, tuple[Any, spaces.Space[Any], int, Any]] = {
    "images": (SB3, IMAGES, 4, 4),
    "images, next ones only": (SB3, IMAGES, 4, True),
    "colors": (SB3, COLORS, 4, 4),
    "vectors": (SB3, VECTORS, 3, 3),
    "longer stacks than said": (SB3, IMAGES, 4, 2),
    "parts": (SB3_DICT, PARTS, 4, {"image": 4}),
    "parts, next ones only": (SB3_DICT, PARTS, 4, True),
    "parts that are all stacks": (
        SB3_DICT,
        spaces.Dict({"image": IMAGES, "vector": spaces.Box(-9, 9, (8,), np.float64)}),
        4,
        4,
    ),
    "cleanrl": (CLEANRL, IMAGES, 4, 4),
    "cleanrl, next ones only": (CLEANRL, VECTORS, 3, True),
    "numbers": (CLEANRL, spaces.Box(-9, 9, (2,), np.float64), 1, True),
}


def pair_of(
    kind: str, n_envs: int, resets: str = "same_step", num_rows: int = 30, **options: Any
) -> tuple[Pair, Stream]:
    cls, space, frames, dedupe = KINDS[kind]
    pair = Pair(cls, dedupe, num_rows * n_envs + n_envs // 2, space, ACTIONS["box"], "cpu", n_envs, **options)
    return pair, Stream(space, ACTIONS["box"], n_envs, frames, resets, seed=n_envs)


def drive(pair: Pair, stream: Stream, num_steps: int = 100) -> None:
    for number in range(num_steps):
        step = stream.draw()
        pair.do(lambda buffer: buffer.add(*copy.deepcopy(step)))  # noqa: B023
        if number % 3 == 0:
            pair.do(lambda buffer: buffer.sample(9)[:5])
        if number % 20 == 19:
            pair.compare()


@pytest.mark.share(2)
@pytest.mark.parametrize("n_envs", [1, 2, 5])
@pytest.mark.parametrize("resets", ["same_step", "next_step", "anew"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_minibatches(kind: str, resets: str, n_envs: int) -> None:
    pair, stream = pair_of(kind, n_envs, resets)
    drive(pair, stream)
    assert pair.deduped.full
    pair.do(lambda buffer: buffer._get_samples(np.array([0, -1, 29, 5]))[:5])
    pair.do(lambda buffer: buffer._get_samples(np.array([3, 4], np.int16))[:5])


@pytest.mark.parametrize("kind", ["images", "parts", "cleanrl"])
@pytest.mark.parametrize("num_rows", [1, 2, 3, 5])
def test_buffers_of_few_rows(kind: str, num_rows: int) -> None:
    drive(*pair_of(kind, 3, num_rows=num_rows))


@pytest.mark.parametrize("kind", ["images", "parts", "cleanrl"])
@pytest.mark.parametrize(
    "options",
    [{"handle_timeout_termination": False}, {"rng": "native"}, {"n_envs": 1}],
    ids=str,
)
def test_options(kind: str, options: dict[str, Any]) -> None:
    drive(*pair_of(kind, options.pop("n_envs", 2), **options))


@pytest.mark.parametrize("kind", ["images", "parts", "cleanrl"])
def test_what_native_code_does_not_take_goes_the_general_way(kind: str) -> None:
    pair, stream = pair_of(kind, 2)
    for number in range(80):
        obs, next_obs, action, reward, done, infos = stream.draw()
        unusual = np.asfortranarray(action), action.astype(np.float16), action
        step = (obs, next_obs, unusual[number % 3], reward.astype(np.float16), done, infos)
        given = copy.deepcopy(step)
        pair.do(lambda buffer: buffer.add(*given))  # noqa: B023
        assert_same(step[:2], given[:2])
        pair.do(lambda buffer: buffer.sample(7)[:5])
    pair.compare()


@pytest.mark.parametrize("kind", ["images", "parts", "cleanrl"])
def test_begin_anew(kind: str) -> None:
    pair, stream = pair_of(kind, 2)
    for num_steps in (3, 45, 20):
        drive(pair, stream, num_steps)
        pair.do(lambda buffer: buffer.reset())
        with pytest.raises(ValueError, match=r"high|low"):
            pair.deduped.sample(2)


@pytest.mark.share(2)
@pytest.mark.parametrize("protocol", [0, 2, pickle.HIGHEST_PROTOCOL])
@pytest.mark.parametrize("num_steps", [0, 4, 70])
@pytest.mark.parametrize("kind", KINDS)
def test_pickles(kind: str, num_steps: int, protocol: int) -> None:
    pair, stream = pair_of(kind, 2, "next_step")
    for _ in range(num_steps):
        step = stream.draw()
        pair.do(lambda buffer: buffer.add(*step))  # noqa: B023
    pair.buffers = [pickle.loads(pickle.dumps(buffer, protocol)) for buffer in pair.buffers]
    pair.compare()
    drive(pair, stream, 40)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy], ids=["copy", "deepcopy"])
@pytest.mark.parametrize("kind", ["images", "parts", "cleanrl"])
def test_copies(kind: str, copied: Callable[[Any], Any]) -> None:
    pair, stream = pair_of(kind, 2)
    drive(pair, stream, 40)
    pair.buffers = [copied(buffer) for buffer in pair.buffers]
    pair.compare()
    drive(pair, stream, 40)


def test_a_pickle_has_each_frame_once() -> None:
    pair, stream = pair_of("images", 2, num_rows=2000)
    for _ in range(2000):
        step = stream.draw()
        pair.do(lambda buffer: buffer.add(*step))  # noqa: B023
    plain, deduped = (len(pickle.dumps(buffer)) for buffer in pair.buffers)
    # An episode of 7 steps has 11 frames of 7 * 8; each frame of an observation is told in 8 bytes, beside its 30.
    assert deduped < plain / 2


@pytest.mark.parametrize("damage", [lambda data: data[:-40] + b".", lambda data: data.replace(b"I00\n", b"I01\n")])
def test_pickles_that_are_damaged(damage: Callable[[bytes], bytes]) -> None:
    pair, stream = pair_of("images", 2)
    drive(pair, stream, 40)
    data = damage(pickle.dumps(pair.deduped, 0))
    with pytest.raises(Exception):  # noqa: B017, PT011  whatever the pickler meets first
        io.BytesIO(pickle.loads(data[: len(data) // 2]))


@pytest.mark.parametrize("kind", ["images", "parts"])
def test_to_sb3_and_back(kind: str) -> None:
    pair, stream = pair_of(kind, 2)
    drive(pair, stream, 45)
    theirs = pair.deduped.to_sb3()
    assert type(theirs) in {sb3_buffers.ReplayBuffer, sb3_buffers.DictReplayBuffer}
    assert vars(theirs).keys() == vars(pair.buffers[0].to_sb3()).keys()
    assert_same(theirs.next_observations, pair.buffers[0].to_sb3().next_observations)
    back = type(pair.deduped).from_sb3(pair.deduped)
    assert back.dedupe is False
    back.rewards[0] = 5


def test_hooks_get_what_they_get_without() -> None:
    class Own(fastreplay.sb3.ReplayBuffer):
        def to_torch(self, array: Any, copy: bool = True) -> torch.Tensor:  # noqa: ARG002
            array += 1
            return torch.as_tensor(array)

    pair = Pair(Own, 4, 60, IMAGES, ACTIONS["box"], "cpu", 2)
    drive(pair, Stream(IMAGES, ACTIONS["box"], 2))


@pytest.mark.parametrize(
    "index",
    [
        3,
        -1,
        (3, 1),
        slice(2, 9, 3),
        (slice(None), 1),
        (slice(3), slice(None), slice(None), slice(1, 2)),
        ...,
        (np.array([1, 5]), np.array([0, 1])),
        (np.array([1, 5]), np.array([0, 1]), slice(None)),
        ([2, 3], 1),
        np.arange(30) > 20,
        np.arange(60).reshape(30, 2) > 50,
        (3, ..., slice(1)),
        np.zeros(0, np.int64),
    ],
    ids=str,
)
def test_columns_are_indexed_like_arrays(index: Any) -> None:
    pair, stream = pair_of("images", 2)
    for _ in range(40):
        step = stream.draw()
        pair.do(lambda buffer: buffer.add(*step))  # noqa: B023
    for name in ("observations", "next_observations"):
        expected, got = (getattr(buffer, name)[index] for buffer in pair.buffers)
        assert_same(np.array(expected), np.array(got))
    column = pair.deduped.observations
    assert (column.shape, column.dtype, column.ndim, len(column)) == ((30, 2, 4, 6, 5), np.uint8, 5, 30)
    assert repr(column) == "<observations uint8 (30, 2, 4, 6, 5), put together where it is read>"


def test_what_cannot_be_assigned() -> None:
    for kind in ("images", "parts"):
        pair, stream = pair_of(kind, 2)
        drive(pair, stream, 5)
        deduped = pair.deduped
        for name in ("observations", "next_observations", "rewards", "dones"):
            with pytest.raises(ValueError, match="with dedupe it is put together where it is read, and cannot be"):
                setattr(deduped, name, getattr(pair.buffers[0], name))
        with pytest.raises(ValueError, match="with dedupe"):
            deduped.observations["image" if kind == "parts" else 0] = 0
        with pytest.raises(ValueError, match="read-only"):
            deduped.actions[2][...] = 1
        with pytest.raises(ValueError, match="only copies"):
            np.array(deduped.rewards, copy=False)
        pair.compare()


def test_refusals() -> None:
    def made(cls: Any = SB3, space: Any = IMAGES, **options: Any) -> Any:
        return cls(20, space, ACTIONS["box"], "cpu", 2, **options)

    with pytest.raises(ValueError, match="dedupe: cannot be had together with optimize_memory_usage"):
        made(optimize_memory_usage=True, handle_timeout_termination=False, dedupe=True)
    with pytest.raises(ValueError, match="dedupe: cannot be had together with optimize_memory_usage"):
        made(CLEANRL, optimize_memory_usage=True, handle_timeout_termination=False, dedupe=4)
    with pytest.raises(
        ValueError, match=r"dedupe: expected a first axis of 3 frames, and observation_space is \(4, 6, 5\)"
    ):
        made(dedupe=3)
    with pytest.raises(ValueError, match="dedupe: expected at least 1, got 0"):
        made(dedupe=0)
    with pytest.raises(ValueError, match="dedupe: expected at most 64 frames, got 65"):
        made(space=spaces.Box(0, 1, (65,)), dedupe=65)
    with pytest.raises(TypeError, match="dedupe: expected an integer, got str 'next'"):
        made(dedupe="next")
    with pytest.raises(ValueError, match="dedupe: expected names of an observation's parts, got 'depth'"):
        made(SB3_DICT, PARTS, dedupe={"depth": 4})
    for frames, message in (
        (True, "expected an integer, got True"),
        (4.0, "expected an integer, got float 4.0"),
        (0, "expected at least 1, got 0"),
        (65, "expected at most 64 frames, got 65"),
        (3, r"expected a first axis of 3 frames, and image is \("),
    ):
        with pytest.raises((TypeError, ValueError), match=rf"^dedupe\['image'\]: {message}"):
            made(SB3_DICT, PARTS, dedupe={"image": frames})
    with pytest.raises(ValueError, match=r"dedupe: expected a first axis of 4 frames, and (vector|room) is"):
        made(SB3_DICT, PARTS, dedupe=4)


@pytest.mark.parametrize("kind", ["images", "cleanrl"])
def test_a_cursor_that_is_set_elsewhere(kind: str) -> None:
    pair, stream = pair_of(kind, 2)
    drive(pair, stream, 40)
    deduped = pair.deduped
    deduped.pos = 3
    with pytest.raises(ValueError, match="pos: with dedupe steps are stored one after another, expected row 10, or 0"):
        deduped.add(*stream.draw())
    deduped.pos = 10
    pair.compare()
    drive(pair, stream, 40)
    deduped.pos = 0
    deduped.add(*stream.draw())
    with pytest.raises(IndexError, match="row 1: holds no step, of 1 in 30 rows"):
        deduped._get_samples(np.array([0, 1]))
    with pytest.raises(IndexError, match="out of bounds"):
        deduped._get_samples(np.array([30]))


@pytest.mark.parametrize("cls", [SB3, CLEANRL], ids=["sb3", "cleanrl"])
def test_memory(cls: Any) -> None:
    """Resident bytes of a full buffer of Atari's observations, in pages that were touched."""
    space = spaces.Box(0, 255, (4, 84, 84), np.uint8)
    taken = {}
    for dedupe in (False, True, 4):
        buffer = cls(1000, space, spaces.Discrete(4), "cpu", 2, dedupe=dedupe)
        stream = Stream(space, spaces.Discrete(4), 2)
        before = resident_bytes()
        for _ in range(1000):
            buffer.add(*stream.draw())
        taken[dedupe] = resident_bytes() - before
    assert taken[False] > 0.9 * 1000 * 2 * 28224
    assert taken[True] < 0.65 * taken[False]  # an episode of 7 steps has 8 observations of 14
    assert taken[4] < 0.45 * taken[False]
    assert buffer._table.num_bytes < 1020 * 7300


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:  # noqa: PTH123
        return int(file.read().split()[1]) * 4096

# SPDX-License-Identifier: MIT
"""Frames that transitions have in common: minibatches are what was inserted, byte for byte, whatever that was."""

from __future__ import annotations

import os
import pickle
import threading
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stall import stalled_insert
from support import NativeBuffer, assert_same
from test_fork import in_child

import fastreplay as fr

SHAPE = (6, 5)
PAGE = 4096


def fields(stack: int | None = 3, shape: tuple[int, ...] = SHAPE) -> dict[str, Any]:
    observation = fr.Field(shape, "uint8", stack=stack)
    return {
        "observation": observation,
        "action": ((), "int64"),
        "next_observation": observation,
        "terminated": ((), "bool"),
    }


def frame(number: int, shape: tuple[int, ...] = SHAPE) -> Any:
    """Give a frame that tells its number, and is like no other."""
    return np.random.default_rng(number).integers(0, 256, shape, dtype=np.uint8)


def steps(numbers: list[int], stack: int = 3, shape: tuple[int, ...] = SHAPE) -> dict[str, Any]:
    """Give the transitions of a trajectory of these frames, the first of them repeated, as wrappers do."""
    frames = np.stack([frame(number, shape) for number in [numbers[0]] * (stack - 1) + numbers])
    stacks = np.stack([frames[i : i + stack] for i in range(len(numbers))])
    stacks = stacks if stack > 1 else stacks[:, 0]
    count = len(numbers) - 1
    terminated = np.arange(count) == count - 1
    return {
        "observation": stacks[:-1],
        "action": np.array(numbers[:-1]),
        "next_observation": stacks[1:],
        "terminated": terminated,
    }


def assert_holds(buffer: Any, made: dict[str, Any]) -> None:
    """Check that the newest transitions are these."""
    count = len(made["action"])
    batch = buffer[-count:].numpy()
    for name, values in made.items():
        np.testing.assert_array_equal(batch[name], values, err_msg=name)


def made_bytes(buffer: Any) -> int:
    """Return what lies beside the ring's own memory, without lanes and links."""
    return int(buffer.stats()["bytes"]) - int(NativeBuffer(**like(buffer)).stats()["bytes"])


def like(buffer: Any) -> dict[str, Any]:
    return {
        "capacity": buffer.capacity,
        "fields": buffer.schema,
        "lanes": buffer.lanes,
        "share_next": buffer._frames.share_next,
        "output": "numpy",
    }


@pytest.mark.parametrize("output", ["numpy", "torch"])
@pytest.mark.parametrize("stack", [None, 1, 2, 3, 8])
@pytest.mark.parametrize("share_next", [True, False])
def test_trajectories_come_out_as_they_went_in(output: str, stack: int | None, *, share_next: bool) -> None:
    if stack is None and not share_next:
        return
    buffer = NativeBuffer(100, fields(stack), lanes=1, share_next=share_next, output=output, seed=0)
    for begin in range(0, 400, 40):
        made = steps([*range(begin, begin + 1 + begin % 27), begin + 99], stack or 1)
        if stack == 1:
            made = {k: v[:, None] if k.endswith("observation") else v for k, v in made.items()}
        buffer.extend(**made)
        assert_holds(buffer, made)
    whole = buffer[:].numpy()
    drawn = buffer.sample(64).numpy()
    at = [np.flatnonzero(whole.ticket == ticket)[0] for ticket in drawn.ticket]
    for name in buffer.schema:
        np.testing.assert_array_equal(drawn[name], whole[name][at])
        slots = drawn.ticket % len(buffer.view("action"))
        np.testing.assert_array_equal(buffer.gather(slots).numpy()[name], drawn[name])


@pytest.mark.parametrize("shape", [(3,), (64, 65)])
def test_a_frame_is_stored_once(shape: tuple[int, ...]) -> None:
    """Beside the newest frames of transitions lies the first of each trajectory; in pages where frames are large."""
    buffer = NativeBuffer(1000, fields(4, shape), lanes=1, share_next=True, output="numpy")
    frame_bytes = int(np.prod(shape))
    row_bytes = buffer.nbytes / (1000 + buffer._ring.num_spare)
    assert row_bytes < frame_bytes + 8 * 8 + 9 + 64
    room = -(-frame_bytes // PAGE) * PAGE if 7 * frame_bytes >= PAGE // 16 else frame_bytes
    for trajectory in range(12):
        buffer.extend(**steps([*range(200 * trajectory, 200 * trajectory + 101)], 4, shape))
        assert made_bytes(buffer) == room * min(trajectory + 1, 10)


def test_what_does_not_go_on_is_stored_in_full() -> None:
    buffer = NativeBuffer(50, fields(), lanes=1, share_next=True, output="numpy", seed=0)
    rng = np.random.default_rng(0)
    for count in (1, 7, 60, 3):
        made: dict[str, Any] = {
            "observation": rng.integers(0, 256, (count, 3, *SHAPE), dtype=np.uint8),
            "action": np.arange(count),
            "next_observation": rng.integers(0, 256, (count, 3, *SHAPE), dtype=np.uint8),
            "terminated": rng.random(count) < 0.1,
        }
        buffer.extend(**made)
        assert_holds(buffer, {name: values[-50:] for name, values in made.items()})


def test_one_byte_that_differs_is_seen() -> None:
    for byte in (0, 13, 29):
        buffer = NativeBuffer(50, fields(), lanes=1, share_next=True, output="numpy", seed=0)
        made = steps([*range(10)])
        for name in ("observation", "next_observation"):
            made[name] = made[name].copy()
        made["observation"][5].reshape(3, -1)[1, byte] ^= 1
        made["next_observation"][7].reshape(3, -1)[0, byte] ^= 1
        buffer.extend(**made)
        assert_holds(buffer, made)


def test_a_slow_lane_begins_anew_and_is_right() -> None:
    """A lane whose newest transition is too long ago has nothing in common with it any more."""
    buffer = NativeBuffer(100, fields(), lanes=2, share_next=True, output="numpy", seed=0)
    slow = steps([*range(1000, 1030)])
    fast = steps([*range(3000)])
    for i in range(28):
        buffer.extend(**{name: values[i : i + 1] for name, values in slow.items()}, lanes=0)
        buffer.extend(**{name: values[50 * i : 50 * (i + 1)] for name, values in fast.items()}, lanes=1)
        batch = buffer[-51:]
        np.testing.assert_array_equal(batch.observation[0], slow["observation"][i])
        np.testing.assert_array_equal(batch.next_observation[0], slow["next_observation"][i])
        np.testing.assert_array_equal(batch.observation[1:], fast["observation"][50 * i : 50 * (i + 1)])


class Lazy:
    """A stack of frames that is put together when it is asked for, as wrappers of Atari give it."""

    def __init__(self, frames: list[Any]) -> None:
        self._frames = frames

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        stack = np.stack(self._frames)
        return stack if dtype is None else stack.astype(dtype)


def test_lazy_frames_and_tensors_are_taken() -> None:
    buffer = NativeBuffer(50, fields(), lanes=1, share_next=True, output="numpy", seed=0)
    made = steps([*range(20)])
    for i in range(19):
        now, later = made["observation"][i], made["next_observation"][i]
        given = (Lazy([*now]), Lazy([*later])) if i % 2 else (torch.from_numpy(now), later.tolist())
        buffer.add(given[0], i, given[1], bool(made["terminated"][i]))
    assert_holds(buffer, made)
    assert made_bytes(buffer) == made_bytes_of(made)


def made_bytes_of(made: dict[str, Any]) -> int:
    buffer = NativeBuffer(50, fields(), lanes=1, share_next=True, output="numpy", seed=0)
    buffer.extend(**made)
    return made_bytes(buffer)


def test_leaves_of_dicts_are_shared_one_by_one() -> None:
    space = gym.spaces.Dict(
        {"camera": gym.spaces.Box(0, 255, (16, 16), np.uint8), "speed": gym.spaces.Box(-1, 1, (2,))}
    )

    class Env(gym.Env[Any, Any]):
        observation_space, action_space = space, gym.spaces.Discrete(2)

    options: dict[str, Any] = {"output": "numpy", "seed": 3}
    shared = fr.ReplayBuffer.from_env(Env(), 30, lanes=True, share_next=True, **options)
    full = fr.ReplayBuffer.from_env(Env(), 30, lanes=True, **options)
    space.seed(0)
    now = space.sample()
    for i in range(70):
        later = space.sample()
        if i % 7 == 0:
            later = {**later, "camera": now["camera"]}
        for buffer in (shared, full):
            buffer.add(
                observation=now, action=i % 2, reward=i, next_observation=later, terminated=i % 9 == 8, truncated=False
            )
        now = {**later, "speed": later["speed"] + np.float32(i % 5 == 0)} if i % 9 < 8 else space.sample()
        assert_same(shared.sample(16), full.sample(16))
        assert_same(shared[:], full[:])
    assert shared.nbytes < full.nbytes


def test_a_slot_without_a_transition_is_told_of_all_slots() -> None:
    buffer = NativeBuffer(9, fields(), lanes=1, share_next=True, output="numpy")
    made = steps([*range(30)])
    buffer.extend(**made)
    num_slots = len(buffer.view("action"))
    held = buffer[:].ticket % num_slots
    np.testing.assert_array_equal(buffer.gather(held).action, made["action"][-9:])
    (empty, *_) = sorted({*range(num_slots)} - {*held.tolist()})
    with pytest.raises(
        IndexError, match=f"^slot {empty} holds no transition: .* 9 of at most 9, in {num_slots} slots$"
    ):
        buffer.gather([empty])


def test_names_may_be_given() -> None:
    described = {"s": (2,), "a": (), "after": (2,), "more": (2,), "done": ((), "bool")}
    buffer = NativeBuffer(9, described, lanes=1, ends=["done"], share_next={"after": "s"}, output="numpy")
    for i in range(30):
        buffer.add([i, i], i, [i + 1, i + 1], [i, 0], i % 4 == 3)
    batch = buffer[:]
    assert batch.s[:, 0].tolist() == [*range(21, 30)]
    assert batch.after[:, 0].tolist() == [*range(22, 31)]
    assert len(buffer.view("more")) == 9 + buffer._ring.num_spare
    for name in ("s", "after"):
        with pytest.raises(KeyError, match=f"'{name}' is put together from frames that transitions have in common"):
            buffer.view(name)


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_stacks_of_environments_equal_those_stored_in_full(mode: Any) -> None:
    def make() -> Any:
        env = gym.wrappers.TimeLimit(gym.make("CartPole-v1").unwrapped, 17)
        return gym.wrappers.FrameStackObservation(env, 4)

    envs = SyncVectorEnv([make] * 3, autoreset_mode=mode)
    options: dict[str, Any] = {"lanes": True, "seed": 3, "output": "numpy"}
    shared = fr.ReplayBuffer.from_env(envs, 200, share_next=True, stack=4, **options)
    full = fr.ReplayBuffer.from_env(envs, 200, **options)
    now, _ = envs.reset(seed=0)
    envs.action_space.seed(0)
    for _ in range(150):
        action = envs.action_space.sample()
        later, reward, terminated, truncated, info = envs.step(action)
        last = later.copy()
        for i in np.flatnonzero(info.get("_final_obs", np.zeros(3, bool))):
            last[i] = info["final_obs"][i]
        for buffer in (shared, full):
            buffer.extend(
                observation=now,
                action=action,
                reward=reward,
                next_observation=last,
                terminated=terminated,
                truncated=truncated,
            )
        now = later
    assert_same(shared[:], full[:])
    for follow in (None, fr.NStep(3, 0.9), fr.Sequence(5, burn_in=2), fr.Window({"observation": range(-3, 1)})):
        for _ in range(5):
            assert_same(shared.sample(32, follow=follow), full.sample(32, follow=follow))


def test_what_leaves_the_window_has_no_mass() -> None:
    """Some transitions are kept longer than they can be drawn: nothing of their priorities is left."""
    buffer = NativeBuffer(40, fields(), lanes=1, share_next=True, priorities=fr.Priorities(alpha=1.0, eps=0.0), seed=0)
    for begin in range(0, 400, 20):
        made = steps([*range(begin, begin + 11)])
        buffer.extend(**made, priority=made["action"] + 1.0)
        batch = buffer.sample(64)
        masses = buffer[:].action + 1.0
        expected = (batch.action + 1.0) / masses.sum()
        torch.testing.assert_close(batch.probability, expected.float(), rtol=1e-5, atol=0)


def test_writers_and_samplers_see_whole_transitions() -> None:
    """Frames tell whose they are; a small ring is lapped under the samplers."""
    lanes, shape = 2, (40, 40)
    buffer = NativeBuffer(48, fields(4, shape), lanes=lanes, share_next=True, output="numpy", seed=0, timeout=30)
    stop, wrong = threading.Event(), []

    def write(lane: int) -> None:
        number = 0
        frames = [np.full(shape, 100 * lane, np.uint8)] * 4
        while not stop.is_set():
            number += 1
            if number % 13 == 0:
                frames = [np.full(shape, 100 * lane + number % 100, np.uint8)] * 4
            now, frames = np.stack(frames), [*frames[1:], np.full(shape, 100 * lane + number % 100, np.uint8)]
            buffer.add(now, 100 * lane + number % 100, np.stack(frames), number % 13 == 12, lane=lane)

    def read() -> None:
        sampler = buffer.sampler(follow=fr.Sequence(3))
        for _ in range(150):
            batch = buffer.sample(16)
            newest = batch.next_observation[:, -1, 0, 0]
            both = np.concatenate([batch.observation, batch.next_observation], 1)
            is_right = (
                (batch.action == newest)
                & (both == both[:, :, :1, :1]).all((1, 2, 3))
                & (batch.observation[:, 1:] == batch.next_observation[:, :-1]).all((1, 2, 3))
            )
            wrong.extend(batch.ticket[~is_right].tolist())
            row = sampler.sample(8)
            goes_on = (row.next_observation[:, :-1] == row.observation[:, 1:]).all((2, 3, 4)) | ~row.mask[:, 1:]
            wrong.extend(row.ticket[~goes_on.all(1)].tolist())

    writers = [threading.Thread(target=write, args=(lane,)) for lane in range(lanes)]
    readers = [threading.Thread(target=read) for _ in range(2)]
    for thread in writers:
        thread.start()
    while len(buffer) < 48:
        pass
    for thread in readers:
        thread.start()
    for thread in readers:
        thread.join()
    stop.set()
    for thread in writers:
        thread.join()
    assert wrong == []
    assert buffer.stats()["overwritten"] > 48


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_of_an_unfinished_insert_has_its_frames() -> None:
    """What is unfinished is dropped, what came later moves, and its frames with it."""
    buffer = NativeBuffer(120, fields(3, (40, 40)), lanes=3, share_next=True, output="numpy", timeout=5)
    made = {lane: steps([*range(1000 * lane, 1000 * lane + 41)], 3, (40, 40)) for lane in range(3)}
    held: list[tuple[int, int]] = []

    def insert(lane: int, i: int, values: dict[str, Any] | None = None) -> None:
        given = {name: each[i] for name, each in (values or made[lane]).items()}
        buffer.add(**given, lane=lane)
        held.append((lane, i))

    def found() -> Any:
        batch = buffer[:]
        return batch.observation, batch.next_observation

    def child() -> Any:
        before = found()
        for i in range(20, 24):
            for lane in (0, 2, 1):
                insert(lane, i)
        return before, found(), buffer.stats()["bytes"]

    for i in range(10):
        for lane in range(3):
            insert(lane, i)
    stalled = {name: values[10:18] for name, values in made[1].items()}
    with stalled_insert(buffer, stalled, "action", at=3, lanes=1):
        for i in range(10, 20):
            for lane in (2, 0):
                insert(lane, i)
        buffer.add(**{name: each[0] for name, each in steps([7, 8], 3, (40, 40)).items()}, lane=2)
        before, after, _ = in_child(child)
    expected = (
        [made[lane]["observation"][i] for lane, i in held],
        [made[lane]["next_observation"][i] for lane, i in held],
    )
    alone = steps([7, 8], 3, (40, 40))
    for got, wanted, name in zip(before, expected, ("observation", "next_observation"), strict=True):
        np.testing.assert_array_equal(got, [*wanted, alone[name][0]])
    later = [(lane, i) for i in range(20, 24) for lane in (0, 2, 1)]
    for got, name in zip(after, ("observation", "next_observation"), strict=True):
        np.testing.assert_array_equal(got[-12:], [made[lane][name][i] for lane, i in later])


@pytest.mark.parametrize("shape", [(3,), (40, 40)])
def test_pickles_hold_each_frame_once_and_go_on(shape: tuple[int, ...]) -> None:
    buffer = NativeBuffer(300, fields(4, shape), lanes=1, share_next=True, output="numpy", seed=0)
    made = steps([*range(1000)], 4, shape)
    part = {name: values[:700] for name, values in made.items()}
    buffer.extend(**part)
    saved = pickle.dumps(buffer)
    assert len(saved) < 330 * (int(np.prod(shape)) + 90) + 3000
    loaded = pickle.loads(saved)
    assert_same(loaded[:], buffer[:])
    assert loaded.stats()["bytes"] == buffer.stats()["bytes"]
    for each in (buffer, loaded):
        each.extend(**{name: values[700:900] for name, values in made.items()})
    assert_same(loaded[:], buffer[:])
    assert loaded.stats()["bytes"] == buffer.stats()["bytes"]  # the trajectory went on in what was loaded
    assert_same(loaded.sample(50), buffer.sample(50))


def test_pickles_beside_a_writer_are_whole() -> None:
    buffer = NativeBuffer(200, fields(3, (30, 30)), lanes=1, share_next=True, output="numpy", timeout=30)
    frames = np.random.default_rng(0).integers(0, 256, (256, 30, 30), dtype=np.uint8)
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            at = (number + np.arange(4)) % 256
            buffer.add(frames[at[:3]], number, frames[at[1:]], number % 50 == 49)
            number += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        while len(buffer) < 200:
            pass
        for _ in range(10):
            batch = pickle.loads(pickle.dumps(buffer))[:]
            assert len(batch) > 0
            at = (batch.action[:, None] + np.arange(4)) % 256
            np.testing.assert_array_equal(batch.observation, frames[at[:, :3]])
            np.testing.assert_array_equal(batch.next_observation, frames[at[:, 1:]])
            assert (np.diff(batch.ticket) == 1).all()
    finally:
        stop.set()
        writer.join()


def test_loaded_places_are_checked() -> None:
    """Whatever a pickle says, no place lies outside of the ring, and what does not fit is refused."""
    buffer = NativeBuffer(8, fields(2, (2,)), lanes=1, share_next=True, output="numpy")
    buffer.extend(**steps([*range(6)], 2, (2,)))
    saved: Any = buffer.__reduce__()[2]["columns"].__reduce_ex__(4)
    receive, arguments, _, numbers = saved
    good = [*numbers]

    def fresh() -> Any:
        return receive(NativeBuffer(8, fields(2, (2,)), lanes=1, share_next=True, output="numpy"), arguments[1])

    taken = fresh()
    taken.extend(good)
    assert taken.is_complete
    rng = np.random.default_rng(0)
    outcomes = set()
    for _ in range(400):
        bad = [*good]
        i = int(rng.integers(len(bad)))
        bad[i] = int(rng.choice([0, 1, 2, 7, 200, 2**31, 2**63 - 1, 2**64, int.from_bytes(rng.bytes(40), "little")]))
        received = fresh()
        try:
            received.extend(bad)
            outcome = "taken" if received.is_complete else "incomplete"
        except (ValueError, OverflowError) as error:
            outcome = type(error).__name__
        outcomes.add(outcome)
        received.buffer[:]
        received.buffer.extend(**steps([*range(30)], 2, (2,)))
        assert_holds(received.buffer, {name: values[-8:] for name, values in steps([*range(30)], 2, (2,)).items()})
    assert outcomes >= {"ValueError", "taken"}


@pytest.mark.parametrize("how", ["one field", "a dict", "stacks"])
def test_n_steps_end_at_what_is_said_to_be_the_next(how: str) -> None:
    """Whatever it is called: `share_next` says it."""
    frame: Any = fr.Field((2,), "float32", stack=3 if how == "stacks" else None)
    names = ("before/a", "after/a") if how == "a dict" else ("before", "after")
    fields: dict[str, Any] = {**dict.fromkeys(names, frame), "reward": (), "other": (), "done": ((), "bool")}
    options: dict[str, Any] = {"lanes": 1, "ends": ["done"], "seed": 0, "output": "numpy"}
    buffer = NativeBuffer(40, fields, share_next={"after": "before"}, **options)
    plain = NativeBuffer(40, {name.replace("after", "next_before"): each for name, each in fields.items()}, **options)
    stream = np.repeat(np.arange(33.0, dtype=np.float32)[:, None], 2, 1)
    if how == "stacks":
        stream = np.stack([stream[k : k + 30] for k in range(3)], 1)
    done = np.arange(len(stream) - 1) % 11 == 10
    for each in (buffer, plain):
        each.extend(stream[:-1], stream[1:], np.ones(len(done)), np.arange(len(done)), done)
    rule, order = fr.NStep(3, 0.9), fr.Epochs(shuffle=False)
    expected = plain.sampler(draw=order, follow=rule).sample(40)
    steps = np.arange(len(done))
    last = np.minimum(steps + 2, steps // 11 * 11 + 10)
    np.testing.assert_array_equal(list(expected)[1], stream[1:][np.minimum(last, len(done) - 1)])
    for each in (buffer, pickle.loads(pickle.dumps(buffer)), buffer.resized(50)):
        got = each.sampler(draw=order, follow=rule).sample(40)
        for one, other in zip(got, expected, strict=True):
            np.testing.assert_array_equal(one, other)

# SPDX-License-Identifier: MIT
"""Saving and loading: ours, SB3's, and from one to the other."""

from __future__ import annotations

import copy
import io
import pickle
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from gymnasium import spaces
from sb3_support import ACTIONS, BOX, DICT, Steps, Twins, assert_same, pickled
from stable_baselines3.common import buffers as sb3_buffers
from stable_baselines3.common.save_util import load_from_pkl, save_to_pkl

import fastreplay.sb3 as fsb3

if TYPE_CHECKING:
    from pathlib import Path

KINDS: dict[str, dict[str, Any]] = {
    "ReplayBuffer": {},
    "DictReplayBuffer": {},
    "NStepReplayBuffer": {"n_steps": 4, "gamma": 0.9},
}


def twins_of(name: str, num_steps: int = 25, **options: Any) -> Twins:
    space = DICT if name == "DictReplayBuffer" else BOX
    twins = Twins(name, 40, space, ACTIONS["box64"], "cpu", 2, **KINDS[name], **options)
    steps = Steps(space, ACTIONS["box64"], 2)
    for _ in range(num_steps):
        twins.call("add", *steps.draw())
    return twins


def go_on(twins: Twins) -> None:
    """Use both for another lap."""
    steps = Steps(twins.ours.observation_space, ACTIONS["box64"], 2, seed=8)
    for _ in range(25):
        twins.call("add", *steps.draw())
        twins.call("sample", 8)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("num_steps", [1, 13, 25])
@pytest.mark.parametrize("save", [pickled, copy.deepcopy, copy.copy])
def test_round_trip(name: str, num_steps: int, save: Any) -> None:
    twins = twins_of(name, num_steps)
    before = twins.ours
    twins.replace(save)
    assert type(twins.ours) is type(before)
    assert not np.shares_memory(before.rewards, twins.ours.rewards)
    twins.ours.rewards[0] = 5  # views of the new storage, which samples read
    twins.theirs.rewards[0] = 5
    go_on(twins)


def test_round_trip_with_shared_observations() -> None:
    twins = twins_of("ReplayBuffer", optimize_memory_usage=True, handle_timeout_termination=False)
    twins.replace(pickled)
    assert not hasattr(twins.ours, "next_observations")
    go_on(twins)


@pytest.mark.parametrize("name", KINDS)
def test_through_sb3s_files(name: str, tmp_path: Path) -> None:
    twins = twins_of(name)
    for where in (tmp_path / "buffer", io.BytesIO()):
        save_to_pkl(where, twins.ours)
        if isinstance(where, io.BytesIO):
            where.seek(0)
        loaded = load_from_pkl(where)
        assert isinstance(loaded, getattr(fsb3, name))
        assert isinstance(loaded, sb3_buffers.ReplayBuffer)
        go_on_as = Twins.__new__(Twins)
        go_on_as.__dict__.update(copy.deepcopy({**vars(twins), "buffers": [twins.theirs, loaded]}))
        go_on(go_on_as)


@pytest.mark.parametrize("name", KINDS)
def test_from_sb3s_pickle(name: str) -> None:
    twins = twins_of(name)
    twins.buffers[1] = getattr(fsb3, name).from_sb3(pickled(twins.theirs))
    go_on(twins)
    twins.buffers[1] = getattr(fsb3, name).from_sb3(twins.ours)
    go_on(twins)


@pytest.mark.parametrize("name", KINDS)
def test_to_sb3s_own_class(name: str) -> None:
    twins = twins_of(name)
    made = twins.ours.to_sb3()
    assert type(made) is getattr(sb3_buffers, name)
    assert b"fastreplay" not in pickle.dumps(made)
    assert not np.shares_memory(made.rewards, twins.ours.rewards)
    assert vars(made).keys() == vars(twins.theirs).keys()
    twins.buffers[1] = pickled(made)
    go_on(twins)


def test_from_another_kind_is_refused() -> None:
    plain, n_step = twins_of("ReplayBuffer"), twins_of("NStepReplayBuffer")
    with pytest.raises(TypeError, match="expected a NStepReplayBuffer of SB3, got ReplayBuffer"):
        fsb3.NStepReplayBuffer.from_sb3(plain.theirs)
    with pytest.raises(TypeError, match="expected a DictReplayBuffer of SB3, got NStepReplayBuffer"):
        fsb3.DictReplayBuffer.from_sb3(n_step.theirs)


def test_the_state_has_sb3s_names() -> None:
    twins = twins_of("ReplayBuffer")
    state = twins.ours.__getstate__()
    assert state.keys() - vars(twins.theirs).keys() == {"_integers"}
    assert vars(twins.theirs).keys() <= state.keys()


def test_own_generator_goes_on_where_it_was() -> None:
    np.random.seed(3)
    buffer = fsb3.ReplayBuffer(40, BOX, ACTIONS["box64"], "cpu", 2, rng="native")
    buffer.rewards[...] = np.arange(40).reshape(20, 2)
    buffer.full = True
    buffer.sample(8)
    again = pickled(buffer)
    assert_same(buffer.sample(32), again.sample(32))
    assert_same(buffer.sample(32), again.sample(32))


class Tagged(fsb3.ReplayBuffer):
    """With an attribute of its own."""

    tag = ""


def test_attributes_of_subclasses() -> None:
    buffer = Tagged(10, BOX, ACTIONS["box64"], "cpu")
    buffer.tag = "mine"
    vars(buffer).update(anything=[1, 2], nothing=None)
    again = pickled(buffer)
    assert type(again) is Tagged
    assert (again.tag, vars(again)["anything"]) == ("mine", [1, 2])
    assert vars(again).keys() == vars(buffer).keys()


def test_a_damaged_state_is_refused() -> None:
    buffer = twins_of("ReplayBuffer").ours
    state = buffer.__getstate__()
    with pytest.raises(ValueError, match=r"rewards: expected float32 \(20, 2\), got float32 \(19, 2\)"):
        buffer.__class__.__new__(buffer.__class__).__setstate__({**state, "rewards": state["rewards"][:-1]})


class Counting(io.RawIOBase):
    """Counts what is written to it and keeps none of it."""

    def __init__(self) -> None:
        self.num_bytes = 0
        self.largest = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        self.num_bytes += size
        self.largest = max(self.largest, size)
        return size


def test_pickles_name_lengths_in_64_bits() -> None:
    """Of more than 4 GB nothing is built here: frames have 8-byte lengths, and hold a small part of the data each."""
    buffer = fsb3.ReplayBuffer(2000, spaces.Box(0, 255, (64, 64), np.uint8), ACTIONS["discrete"], "cpu")
    buffer.observations[...] = buffer.next_observations[...] = 255
    file = Counting()
    pickle.dump(buffer, file, pickle.HIGHEST_PROTOCOL)
    column = 2000 * 64 * 64
    assert file.num_bytes > 2 * column
    assert file.largest < column / 10  # and never much at once
    assert pickle.HIGHEST_PROTOCOL >= 4

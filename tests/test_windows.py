# SPDX-License-Identifier: MIT
"""Sequences and windows: what people meet; test_lanes.py has the machine that compares every step with an oracle."""

from __future__ import annotations

import pickle
import signal
import threading
import time
from contextlib import contextmanager
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from support import NativeBuffer

import fastreplay as fr

FIELDS: dict[str, Any] = {"step": ((), "int64"), "reward": (), "terminated": ((), "bool"), "state": (2,)}


def filled(lengths: list[int], capacity: int = 1000, **options: Any) -> Any:
    """Give a buffer of trajectories of these lengths, the last one open, whose steps count up."""
    buffer = NativeBuffer(capacity, FIELDS, seed=0, lanes=1, **{"output": "numpy", **options})
    for i, length in enumerate(lengths):
        steps = np.arange(length)
        ends = (steps == length - 1) & (i < len(lengths) - 1)
        buffer.extend(step=steps, reward=steps, terminated=ends, state=np.stack([steps, steps], 1))
    return buffer


def in_order(buffer: Any, follow: Any) -> Any:
    return buffer.sampler(draw=fr.Epochs(shuffle=False), follow=follow).sample(len(buffer))


def test_the_drawn_row_is_the_first_that_is_trained() -> None:
    batch = in_order(filled([5, 3]), fr.Sequence(3, burn_in=2, first_only="state"))
    assert batch.step.tolist()[:2] == [[0, 0, 0, 1, 2], [0, 0, 1, 2, 3]]
    assert batch.mask.tolist()[4] == [True, True, True, False, False]
    assert batch.trained.tolist()[0] == [False, False, True, True, True]
    assert batch.is_first.tolist()[1] == [False, True, False, False, False]
    assert batch.state[:, 0].tolist() == [0, 0, 0, 1, 2, 0, 0, 0]
    assert (batch.step.shape, batch.state.shape, batch.mask.dtype) == ((8, 5), (8, 2), np.bool_)


@pytest.mark.parametrize("time_major", [False, True])
def test_steps_of_many_fields(time_major: bool) -> None:
    """More fields than are copied in one go (16 of csrc/core/batch/windows.cpp), each of another width."""
    shapes = [(1 + i % 23,) for i in range(40)]
    buffer = NativeBuffer(300, {f"f{i}": shape for i, shape in enumerate(shapes)}, lanes=2, ends=(), output="numpy")
    number = np.arange(400, dtype=np.float32)
    columns = {
        f"f{i}": number[:, None] * 100 + i + np.linspace(0, 0.5, width, dtype=np.float32)
        for i, (width,) in enumerate(shapes)
    }
    buffer.extend(**columns, lanes=np.random.default_rng(0).integers(0, 2, 400))
    batch = buffer.sample(50, follow=fr.Sequence(7, time_major=time_major))
    steps = np.swapaxes(batch.f0[..., 0], 0, 1) if time_major else batch.f0[..., 0]
    assert (steps[:, 0] == batch.ticket * 100).all()
    for i, (name, column) in enumerate(columns.items()):
        expected = column[(batch.f0[..., 0] / 100).astype(int)]
        np.testing.assert_array_equal(batch[name], expected, err_msg=f"field {i}")


def test_zeros_and_every_other_step() -> None:
    batch = in_order(filled([6, 1]), fr.Sequence(2, burn_in=1, stride=2, pad="zero"))
    assert batch.step.tolist()[1:6] == [[0, 1, 3], [0, 2, 4], [1, 3, 5], [2, 4, 0], [3, 5, 0]]
    assert batch.mask.tolist()[1:3] == [[False, True, True], [True, True, True]]


def test_the_first_step_of_a_stride_is_one_of_the_sequence() -> None:
    batch = in_order(filled([9]), fr.Sequence(2, burn_in=2, stride=3, first_only="state"))
    assert batch.state[:, 0].tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2]
    space = gym.spaces.Box(-1, 1, (2,))
    fields = {"memory/h": fr.Field((3,)), "memory/c": fr.Field((3,))}
    buffer: Any = fr.ReplayBuffer(10, fr.Schema.from_spaces(space, space, extra=fields), lanes=1, seed=0)
    buffer.add([0, 0], [0, 0], 1.0, [0, 0], False, False, memory={"h": [1, 2, 3], "c": [4, 5, 6]})
    drawn = buffer.sample(4, follow=fr.Sequence(3, first_only=["memory"]))
    assert drawn.memory["h"].shape == drawn.memory["c"].shape == (4, 3)


@pytest.mark.parametrize("output", ["numpy", "torch"])
def test_incomplete_rows_are_drawn_again(output: str) -> None:
    """Where a step has left the buffer, or is not in it yet; what the trajectory has not is padded."""
    buffer = filled([30, 30], capacity=40, output=output)
    for _ in range(20):
        batch = buffer.sample(64, follow=fr.Sequence(4, burn_in=3, incomplete="redraw")).numpy()
        steps, in_second = batch.step[:, 3], batch.ticket >= 30
        assert (in_second | (steps >= 23)).all()  # the first trajectory's oldest step there is its 20th
        assert (~in_second | (steps <= 26)).all()
    assert buffer.stats()["redraws"] > 0
    drawn = np.bincount(buffer.sample(20_000, follow=fr.Sequence(4, 3, incomplete="redraw")).numpy().ticket)
    counts = drawn[drawn > 0]
    assert len(counts) == 7 + 27
    assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() < 33 + 5 * np.sqrt(
        66
    )  # uniform among what is complete


def test_one_complete_row_of_many_is_found() -> None:
    buffer = filled([1] * 400 + [50] + [1] * 400)
    window = fr.Window({"step": range(-20, 1)}, incomplete="redraw")
    assert buffer.sample(8, follow=window).step.shape == (8, 21)
    buffer = NativeBuffer(5000, FIELDS, seed=0, lanes=1, ends=(), output="numpy")
    buffer.extend(
        step=np.arange(5000), reward=np.zeros(5000), terminated=np.zeros(5000, bool), state=np.zeros((5000, 2))
    )
    whole = fr.Window({"step": range(5000)}, incomplete="redraw")
    batch = buffer.sample(4, follow=whole)
    assert batch.ticket.tolist() == [0] * 4
    np.testing.assert_array_equal(batch.step[3], np.arange(5000))


def test_nothing_complete_says_what_is_missing_and_changes_nothing() -> None:
    buffer = filled([31, 20])
    out = buffer.sample(4, follow=fr.Sequence(80, incomplete="pad"))
    before = {name: value.copy() for name, value in out.items()}
    buffer.clear()
    steps = np.arange(31)
    buffer.extend(step=steps, reward=steps, terminated=steps < 0, state=np.zeros((31, 2)))
    message = (
        "no window of 80 steps is complete among what can be drawn; of 31 transitions the longest trajectory has 31"
    )
    for draw in (None, fr.Uniform(newest_of=5)):
        with pytest.raises(ValueError, match=message):
            buffer.sampler(draw=draw).sample(4, follow=fr.Sequence(80, incomplete="redraw"), out=out)
    for name, value in out.items():
        np.testing.assert_array_equal(value, before[name])
    with (
        buffer.loader(4, follow=fr.Sequence(80, incomplete="redraw")) as loader,
        pytest.raises(ValueError, match=message),
    ):
        next(loader)
    with pytest.raises(ValueError, match="incomplete: expected no 'redraw' in epochs"):
        in_order(buffer, fr.Sequence(4, incomplete="redraw"))


@pytest.mark.parametrize("draws", ["stratified", "independent"])
@pytest.mark.parametrize("unlikely", [0.0, None])
def test_complete_ones_without_a_priority_are_told(draws: Any, unlikely: float | None) -> None:
    """They cannot be drawn, though `trajectory_stats` counts them: the longest trajectory is not what is amiss."""
    rule = fr.Priorities(alpha=1, eps=0, draws=draws)
    buffer = NativeBuffer(100, {"reward": ()}, seed=0, output="numpy", lanes=1, ends=(), priorities=rule)
    buffer.extend(reward=range(51), priority=unlikely)
    buffer.extend(reward=range(51, 100))
    follow = fr.Sequence(50, incomplete="redraw")
    assert buffer.trajectory_stats(follow)["complete"] == 51
    told = "no window of 50 steps is complete among what can be drawn; 51 others are, without a priority above 0"
    with pytest.raises(ValueError, match=told):
        buffer.sample(4, follow=follow)
    assert buffer.sampler(draw=fr.Uniform()).sample(400, follow=follow).ticket.max() == 50
    buffer.update_priorities([7], [1.0])
    assert buffer.sample(4, follow=follow).ticket.tolist() == [7] * 4


def test_what_is_complete_is_told_beforehand() -> None:
    buffer = filled([31, 20, 7], capacity=50)
    stats = buffer.trajectory_stats()
    assert stats == {"transitions": 50, "trajectories": 3, "longest": 23, "without_beginning": 1, "complete": 50}
    assert buffer.trajectory_stats(fr.Sequence(80))["complete"] == 23 + 20  # these have no more
    assert buffer.trajectory_stats(fr.Sequence(3, burn_in=4))["complete"] == 19 + 20 + 5
    assert buffer.trajectory_stats(fr.NStep(4, 0.9))["complete"] == 23 + 20 + 4
    assert buffer.trajectory_stats(fr.Window({"step": [-25, 0]}))["complete"] == 20 + 7
    buffer.cut()
    assert buffer.trajectory_stats(fr.Sequence(80))["complete"] == 50
    buffer.clear()
    nothing = dict.fromkeys(stats, 0)
    assert buffer.trajectory_stats() == buffer.trajectory_stats(fr.Sequence(2)) == nothing
    with pytest.raises(ValueError, match="trajectory_stats: the buffer was made without lanes"):
        NativeBuffer(10, FIELDS).trajectory_stats()
    with pytest.raises(TypeError, match="follow: expected NStep, Sequence, Window or None, got 3"):
        buffer.trajectory_stats(3)
    for pages in (255, 256, 257, 1000):  # links are looked at some hundred at a time
        large = filled([pages], capacity=2000)
        assert large.trajectory_stats(fr.NStep(2, 1.0))["complete"] == pages - 1


def test_what_is_complete_is_told_beside_writers() -> None:
    """Of episodes of five steps: never more than is there, nor steps of several episodes for one."""
    buffer = filled([], capacity=600, timeout=30)
    lanes = NativeBuffer(600, FIELDS, lanes=3, output="numpy", timeout=30)
    stop = threading.Event()

    def write(lane: int) -> None:
        step = np.arange(35)
        while not stop.is_set():
            lanes.extend(step=step, reward=step, terminated=step % 5 == 4, state=np.zeros((35, 2)), lanes=lane)

    writers = [threading.Thread(target=write, args=(lane,)) for lane in range(3)]
    for writer in writers:
        writer.start()
    try:
        while len(lanes) < 600:
            pass
        for _ in range(300):
            for follow, most_open in ((fr.NStep(5, 1.0), 0), (fr.Sequence(1, burn_in=4), 3)):
                told = lanes.trajectory_stats(follow)
                assert told["transitions"] <= 600
                assert told["longest"] <= 5
                assert told["without_beginning"] <= 3
                assert told["trajectories"] * 5 >= told["transitions"]
                assert told["transitions"] - 4 * 3 - 4 * most_open <= told["complete"] <= told["transitions"]
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    assert len(buffer) == 0


SEARCHED = fr.NStep(300_000, 1.0, reward=(), incomplete="redraw")  # of as many transitions: one row is complete


@pytest.fixture
def searched() -> Any:
    fields = {"number": ((), "int64"), "done": ((), "bool")}
    buffer = NativeBuffer(300_000, fields, lanes=1, ends=["done"], output="numpy", seed=0)
    buffer.extend(np.arange(300_000), np.zeros(300_000, bool))
    return buffer


class SignalError(Exception):
    pass


@contextmanager
def interrupted_after(seconds: float) -> Any:
    def interrupt(*_: Any) -> None:
        raise SignalError

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    began = time.monotonic()
    try:
        with pytest.raises(SignalError):
            yield
        assert time.monotonic() - began < seconds + 15  # on a busy machine; what is interrupted takes more than 25
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_one_row_of_very_many_is_found_in_one_pass(searched: Any) -> None:
    began = time.monotonic()
    assert searched.sample(1, follow=SEARCHED).number.tolist() == [0]
    assert time.monotonic() - began < 5  # a walk from each of them would take minutes


@pytest.mark.share(2)
@pytest.mark.parametrize("batch_size", [10_000, 100_000])  # with the GIL, and without
def test_a_long_search_is_given_up_at_a_signal(searched: Any, batch_size: int) -> None:
    with interrupted_after(0.2):
        searched.sample(batch_size, follow=SEARCHED)
    out = searched.sample(4, follow=SEARCHED)
    before = out.number.copy()
    with interrupted_after(0.2), searched.loader(batch_size, follow=SEARCHED) as loader:
        next(loader)
    np.testing.assert_array_equal(out.number, before)
    assert searched.sample(1, follow=SEARCHED).number.tolist() == [0]


def test_n_steps_are_drawn_again_where_they_would_be_fewer() -> None:
    buffer = filled([10])
    batch = buffer.sample(500, follow=fr.NStep(4, 1.0, incomplete="redraw"))
    assert batch.discount.tolist() == [1.0] * 500
    assert set(batch.ticket.tolist()) == set(range(7))
    with pytest.raises(
        ValueError, match="no window of 11 steps is complete among what can be drawn; of 10 transitions"
    ):
        buffer.sample(4, follow=fr.NStep(11, 1.0, incomplete="redraw"))


def test_a_lost_beginning_is_none_after_a_pickle() -> None:
    """A lane whose newest transition had left the ring goes on where it was: in the middle of its trajectory."""
    fields: dict[str, Any] = {"step": ((), "int64"), "done": ((), "bool")}
    buffer = NativeBuffer(4, fields, seed=0, lanes=3, ends=["done"], output="numpy")
    buffer.extend(step=[0, 0], done=[False, True], lanes=[1, 2])
    buffer.extend(step=range(6), done=np.zeros(6, bool), lanes=0)
    for made in (buffer, pickle.loads(pickle.dumps(buffer))):
        made.extend(step=[1, 1], done=[False, False], lanes=[1, 2])
        batch = in_order(made, fr.Sequence(1, burn_in=1))
        assert batch.is_first[-2:, 1].tolist() == [False, True]
    for left_out, is_first in ([], True), ([False], False), ([True], True), ([True, False], True):
        empty = NativeBuffer(4, fields, seed=0, lanes=1, ends=["done"], output="numpy")
        for is_end in left_out:
            empty.extend(step=[0], done=[is_end], mask=[False])
        empty = pickle.loads(pickle.dumps(empty))
        empty.add(0, False)
        assert empty.sample(1, follow=fr.Sequence(1)).is_first.tolist() == [[is_first]]


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor, lambda x: torch.tensor(x, requires_grad=True)])
def test_errors_of_sequences_are_reduced_over_trained_steps(kind: Any) -> None:
    buffer = filled([5, 3], priorities=fr.Priorities(alpha=1, eps=0))
    batch = buffer.sample(16, follow=fr.Sequence(3, burn_in=2))
    errors = np.where(batch.trained, -1.0 - np.arange(5), np.nan)  # what is not trained counts for nothing
    assert buffer.update_priorities(batch, kind(errors)) == (16, 0)
    trained = [np.abs(errors[i][batch.trained[i]]) for i in range(16)]
    expected = [0.9 * each.max() + 0.1 * each.mean() for each in trained]
    assert buffer.max_priority == pytest.approx(max(expected))
    buffer.update_priorities(batch, kind(errors), eta=0.5)
    again = buffer.sample(64)
    by_ticket = {
        t: 0.5 * each.max() + 0.5 * each.mean() for t, each in zip(batch.ticket.tolist(), trained, strict=True)
    }
    total = sum(by_ticket.get(t, 1.0) for t in range(8))
    for ticket, probability in zip(again.ticket.tolist(), again.probability.tolist(), strict=True):
        assert probability == pytest.approx(by_ticket.get(ticket, 1.0) / total, rel=1e-5)
    errors[3, 2] = np.inf
    with pytest.raises(ValueError, match=r"priorities\[3\]: expected a finite number"):
        buffer.update_priorities(batch, kind(errors))
    with pytest.raises(ValueError, match=r"priorities: expected \(16,\) or \(16, 5\), got \(16, 3\)"):
        buffer.update_priorities(batch, kind(errors[:, 2:]))
    with pytest.raises(ValueError, match=r"priorities: expected \(64,\), got \(64, 2\)"):
        buffer.update_priorities(again, kind(np.ones((64, 2))))


def test_windows_of_dicts_have_a_mask_a_name() -> None:
    space = gym.spaces.Dict({"eye": gym.spaces.Box(0, 255, (2, 2), np.uint8), "arm": gym.spaces.Box(-1, 1, (3,))})
    schema = fr.Schema.from_spaces(space, gym.spaces.Box(-1, 1, (1,)))
    buffer: Any = fr.ReplayBuffer(100, schema, lanes=1, seed=0, output="numpy")
    for t in range(12):
        seen = {"eye": np.full((2, 2), t, np.uint8), "arm": np.full(3, t / 12)}
        buffer.add(seen, [0.0], 1.0, seen, t == 11, False)
    batch = in_order(buffer, fr.Window({"observation": [-4, -2, 0], "action": range(8)}))
    assert batch.observation["eye"].shape == (12, 3, 2, 2)
    assert batch.observation["eye"][5, :, 0, 0].tolist() == [1, 3, 5]
    assert batch.observation_mask[1].tolist() == [False, False, True]
    assert batch["action_mask"].sum(1).tolist() == [8] * 5 + [7, 6, 5, 4, 3, 2, 1]
    assert batch.next_observation["arm"].shape == (12, 3)
    assert batch.to(torch.float64).observation["eye"].dtype == torch.uint8


def test_rules_are_values() -> None:
    one, same = (fr.Window({"step": [0, 2, 4]}), fr.Window({"step": range(0, 5, 2)}))
    assert one == same
    assert hash(one) == hash(same)
    assert pickle.loads(pickle.dumps(one)) == one
    sampler = filled([9, 9]).sampler(follow=one, seed=1)
    again = pickle.loads(pickle.dumps(sampler))
    np.testing.assert_array_equal(sampler.sample(32).step, again.sample(32).step)
    assert "Window(steps=" in repr(sampler)


def test_names_that_a_minibatch_needs_are_refused() -> None:
    buffer = NativeBuffer(10, {"trained": (), "x_mask": (), "x": ()}, lanes=1, ends=(), output="numpy")
    buffer.extend([1.0], [1.0], [1.0])
    with pytest.raises(ValueError, match="follow: a field named 'trained' is stored"):
        buffer.sample(1, follow=fr.Sequence(2))
    with pytest.raises(ValueError, match="follow: a field named 'x_mask' is stored"):
        buffer.sample(1, follow=fr.Window({"x": range(2)}))


def test_large_windows_by_several_threads() -> None:
    """Rows of megabytes, whose parts are copied by helpers."""
    fields: dict[str, Any] = {"number": ((), "int64"), "x": ((64, 64), "uint8")}
    buffer = NativeBuffer(2000, fields, lanes=2, ends=(), output="numpy", seed=0)
    numbers = np.arange(2000)
    buffer.extend(number=numbers, x=np.broadcast_to((numbers % 251).astype(np.uint8)[:, None, None], (2000, 64, 64)),
                  lanes=numbers % 2)  # fmt: skip
    before = fr.get_num_threads()
    try:
        drawn = {}
        for threads in (1, 4):
            fr.set_num_threads(threads)
            sampler = buffer.sampler(seed=3, follow=fr.Sequence(65, burn_in=10))
            drawn[threads] = sampler.sample(50)
        for batch in drawn.values():
            np.testing.assert_array_equal(batch.x[..., 5, 7], batch.number % 251)
            there = batch.ticket[:, None] + 2 * (np.arange(75) - 10)
            np.testing.assert_array_equal(batch.mask, (there >= 0) & (there < 2000))
            np.testing.assert_array_equal(batch.number[batch.mask], there[batch.mask])
        np.testing.assert_array_equal(drawn[1].x, drawn[4].x)
    finally:
        fr.set_num_threads(before)

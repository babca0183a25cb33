# SPDX-License-Identifier: MIT
"""Samplers over one buffer: of the newest, in epochs, by priority, each with a generator of its own."""

from __future__ import annotations

import copy
import os
import pickle
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support import FIELDS, NativeBuffer, arrays, assert_same, fill, transitions

import fastreplay as fr

if TYPE_CHECKING:
    from fake_cuda import FakeCuda


def buffer_of(output: str = "numpy", count: int = 150, **options: Any) -> Any:
    return fill(NativeBuffer(100, FIELDS, seed=3, output=output, **options), count)


def tickets(batch: Any) -> list[int]:
    return [int(ticket) for ticket in batch.ticket]


def assert_is_of(buffer: Any, batch: Any) -> None:
    """Every row is the transition that its ticket says."""
    expected = arrays(buffer.gather([ticket % buffer.capacity for ticket in tickets(batch)]))
    found = arrays(batch)
    for name in buffer.schema:
        np.testing.assert_array_equal(found[name], expected[name])


# Of the newest.


@pytest.mark.parametrize("newest_of", [1, 7, 100, 10**30])
@pytest.mark.parametrize("newest", [0, 1, 5, 64, 10**30])
def test_the_newest(output: str, newest_of: int, newest: int) -> None:
    buffer = buffer_of(output)
    sampler = buffer.sampler(draw=fr.Uniform(newest_of=newest_of, newest=newest), seed=1)
    oldest = 150 - min(newest_of, 100)
    drawn = set()
    for _ in range(200):
        batch = sampler.sample(40)
        assert_is_of(buffer, batch)
        count = min(newest, 40, newest_of)
        assert tickets(batch)[:count] == list(range(150 - count, 150))
        drawn |= set(tickets(batch)[count:])
    if newest < 40 and newest_of <= 100:
        assert drawn == set(range(oldest, 150))
    assert all(ticket >= oldest for ticket in drawn)
    assert sampler.stats() == {"sampled": 8000, "redraws": 0, "without_mass": 0, "incomplete": 0, "left_out": 0}


@pytest.mark.parametrize("newest_of", [60, 61, 100, 500])
@pytest.mark.parametrize(
    "rule", [fr.Sequence(1, burn_in=3, incomplete="redraw"), fr.Window({"reward": [-3]}, incomplete="redraw")]
)
def test_what_comes_before_the_newest_surrounds_them(newest_of: int, rule: Any) -> None:
    """Also where so few can be drawn that all are looked at: of the newest one is complete, by what is older."""
    buffer = NativeBuffer(1000, {"reward": ()}, seed=0, output="numpy", lanes=2, ends=())
    alone: dict[str, Any] = {"lanes": [1] * 2, "mask": [True, False]}
    buffer.extend(reward=range(5), lanes=0)
    for _ in range(500):
        buffer.extend(reward=[-1, 0], **alone)
    buffer.add(5, lane=0)
    for _ in range(59):
        buffer.extend(reward=[-1, 0], **alone)
    draw = fr.Uniform(newest_of=newest_of)
    for seed in range(20):
        assert tickets(buffer.sampler(draw=draw, follow=rule, seed=seed).sample(3)) == [505] * 3
    told = "no window of 4 steps is complete among what can be drawn; [0-9]+ others are, .* or too old for newest_of$"
    with pytest.raises(ValueError, match=told):
        buffer.sampler(draw=fr.Uniform(newest_of=59), follow=rule).sample(3)


def test_combined_replay_learns_from_each_transition_at_once() -> None:
    buffer = NativeBuffer(100, FIELDS, seed=0, output="numpy")
    sampler = buffer.sampler(draw=fr.Uniform(newest=1))
    for step in range(250):
        buffer.add(**{name: value[0] for name, value in transitions(step, 1).items()})
        assert tickets(sampler.sample(8))[0] == step
    with sampler.loader(8, steps=3, depth=1) as loader:
        assert [tickets(batch)[0] for batch in loader] == [249] * 3


# In epochs.


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("batch_size", [1, 32, 100, 300])
@pytest.mark.parametrize("ways", ["sample", "loader", "buffer"])
def test_an_epoch_has_every_transition_once(output: str, batch_size: int, ways: str, *, shuffle: bool) -> None:
    buffer = buffer_of(output)
    sampler = buffer.sampler(draw=fr.Epochs(shuffle=shuffle), seed=7)
    num_batches = -(-100 // batch_size)
    if ways == "sample":
        batches = [sampler.sample(batch_size) for _ in range(2 * num_batches)]
    elif ways == "loader":
        batches = list(sampler.loader(batch_size, steps=2 * num_batches))
    else:
        batches = list(buffer.loader(batch_size, replacement=False, shuffle=shuffle, steps=2 * num_batches))
    for batch in batches:
        assert_is_of(buffer, batch)
        assert len(batch) == len(batch.ticket) == len(batch.reward)
    first = [ticket for batch in batches[:num_batches] for ticket in tickets(batch)]
    second = [ticket for batch in batches[num_batches:] for ticket in tickets(batch)]
    assert sorted(first) == sorted(second) == list(range(50, 150))
    assert (first == sorted(first)) is not shuffle
    assert (first == second) is not shuffle
    assert len(batches[-1]) == (100 - 1) % batch_size + 1


def test_drop_last() -> None:
    buffer = buffer_of()
    sampler = buffer.sampler(draw=fr.Epochs(drop_last=True))
    out = buffer.sample(30)
    assert {len(sampler.sample(30)) for _ in range(9)} == {30}
    assert sampler.rng_state["epoch"] == (2, 50, 100, 90)
    assert sampler.sample(30, out=out) is out
    assert_is_of(buffer, out)
    assert sampler.rng_state["epoch"] == (3, 50, 100, 30)
    with pytest.raises(ValueError, match="100 transitions are fewer than 101, and drop_last"):
        sampler.sample(101)


def test_what_is_gone_is_left_out_and_counted() -> None:
    buffer = buffer_of()
    sampler = buffer.sampler(draw=fr.Epochs())
    seen = tickets(sampler.sample(40))
    buffer.extend(**transitions(150, 60))
    rest = tickets(sampler.sample(100))
    assert sorted({*seen, *rest} | set(range(50, 110))) == list(range(50, 150))
    assert min(rest) >= 110
    assert len({*seen, *rest}) == len(seen) + len(rest)
    assert sampler.stats()["left_out"] == 100 - len(seen) - len(rest)
    assert sorted(tickets(sampler.sample(100))) == list(range(110, 210))
    left_out = sampler.stats()["left_out"]
    sampler.rng_state = sampler.rng_state
    assert sampler.stats()["left_out"] == left_out > 0
    assert sampler.stats()["sampled"] == len(seen) + len(rest) + 100


def test_a_loader_counts_what_it_left_out() -> None:
    buffer = buffer_of()
    loader = buffer.loader(10, replacement=False, depth=1)
    next(loader)
    buffer.extend(**transitions(150, 100))
    assert sorted(tickets(next(loader)) + tickets(next(loader))) != []
    assert loader.num_left_out >= 70
    loader.close()


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("draw", [fr.Uniform(), fr.Uniform(newest=2), fr.Epochs(), fr.Epochs(shuffle=False)], ids=repr)
def test_going_on_from_what_was_not_handed_out(draw: Any, depth: int) -> None:
    """The state of a loader is that of its next minibatch, however many are drawn ahead."""
    buffer = buffer_of()
    loader = buffer.sampler(draw=draw, seed=5).loader(7, depth=depth)
    for _ in range(20):
        again = buffer.sampler(draw=draw, seed=99)
        again.rng_state = pickle.loads(pickle.dumps(loader.rng_state))
        expected = [tickets(batch) for batch in again.loader(7, steps=4, depth=2)]
        for_sample = buffer.sampler(draw=draw)
        for_sample.rng_state = loader.rng_state
        assert [tickets(for_sample.sample(7)) for _ in range(4)] == expected
        assert tickets(next(loader)) == expected[0]
    loader.close()


def test_a_buffers_own_loader_tells_where_to_go_on() -> None:
    buffer, twin = buffer_of(), buffer_of()
    with buffer.loader(7, depth=3) as loader:
        for _ in range(5):
            next(loader)
        twin.rng_state = loader.rng_state
        assert buffer.rng_state["calls"] == 8
        assert twin.rng_state["calls"] == 5
        assert tickets(twin.sample(7)) == tickets(next(loader))


def test_a_loader_that_was_empty_goes_on_in_order() -> None:
    buffer = NativeBuffer(100, FIELDS, output="numpy")
    sampler = buffer.sampler(draw=fr.Epochs(shuffle=False))
    fill(buffer, 20)
    sampler.sample(20)
    buffer.clear()
    with sampler.loader(4, depth=3) as loader:
        with pytest.raises(ValueError, match="the buffer is empty"):
            next(loader)
        assert loader.rng_state == sampler.rng_state
        assert loader.rng_state["calls"] == 1
        buffer.extend(**transitions(20, 40))
        assert [ticket for _ in range(10) for ticket in tickets(next(loader))] == list(range(20, 60))


# Samplers.


def test_samplers_follow_from_the_buffers_key_or_a_seed() -> None:
    one, two = buffer_of(), buffer_of()
    for buffer in (one, two):
        buffer.sample(5)
    for draw in (None, fr.Uniform(), fr.Epochs()):
        assert tickets(one.sampler(draw=draw).sample(50)) == tickets(two.sampler(draw=draw).sample(50))
        assert tickets(one.sampler(draw=draw, seed=4).sample(50)) == tickets(one.sampler(draw=draw, seed=4).sample(50))
        assert tickets(one.sampler(draw=draw).sample(50)) != tickets(one.sampler(draw=draw).sample(50))
        for _ in range(2):
            two.sampler(draw=draw)
    assert tickets(one.sample(50)) == tickets(two.sample(50))  # whose generator nobody used
    one, two = buffer_of(), buffer_of()
    assert tickets(one.sampler().sample(50)) == tickets(two.spawn(1)[0].sample(50))


def test_counters_go_on_under_another_state() -> None:
    buffer = NativeBuffer(100, FIELDS, output="numpy", priorities=fr.Priorities(eps=0))
    buffer.extend(**transitions(0, 100), priority=0.0)
    samplers = [buffer.sampler(draw=draw) for draw in (fr.Prioritized(), fr.Epochs())]
    for sampler in samplers:
        sampler.sample(10)
    buffer.extend(**transitions(100, 100))
    for sampler in samplers:
        sampler.sample(10)
    counted = [sampler.stats() for sampler in samplers]
    assert counted[0]["without_mass"] == 1
    assert counted[1]["left_out"] == 90
    for sampler in samplers:
        sampler.rng_state = sampler.rng_state
    assert [sampler.stats() for sampler in samplers] == counted


@pytest.mark.parametrize("draw", [fr.Uniform(newest_of=50), fr.Epochs(), None], ids=repr)
@pytest.mark.parametrize("way", [copy.deepcopy, lambda sampler: pickle.loads(pickle.dumps(sampler))])
def test_a_sampler_is_pickled_with_its_buffer(draw: Any, way: Any) -> None:
    sampler = buffer_of().sampler(draw=draw)
    sampler.sample(30)
    again = way(sampler)
    assert again.buffer is not sampler.buffer
    assert again.draw == sampler.draw
    assert tickets(again.sample(30)) == tickets(sampler.sample(30))
    assert_same(arrays(again.sample(30)), arrays(sampler.sample(30)))


def test_workers_draw_their_own() -> None:
    buffer = buffer_of()
    samplers = [buffer.sampler(draw=draw) for draw in (fr.Uniform(newest_of=40), fr.Epochs())]
    for sampler in samplers:
        sampler.sample(20)
    fr.worker_init_fn(1)
    twins = [sampler.sample(20) for sampler in samplers]
    assert samplers[1].rng_state["epoch"] == (0, 50, 100, 20)
    other = buffer_of()
    others = [other.sampler(draw=draw) for draw in (fr.Uniform(newest_of=40), fr.Epochs())]
    fr.worker_init_fn(2)
    assert [tickets(sampler.sample(20)) for sampler in others] != [tickets(twin) for twin in twins]


def test_a_buffer_with_priorities_is_drawn_from_uniformly_too(output: str) -> None:
    buffer = NativeBuffer(100, FIELDS, seed=3, output=output, priorities=fr.Priorities())
    buffer.extend(**transitions(0, 100), priority=np.where(np.arange(100) == 5, 1e6, 1e-3))
    uniform = buffer.sampler(draw=fr.Uniform())
    drawn = np.concatenate([tickets(uniform.sample(100)) for _ in range(50)])
    assert np.bincount(drawn, minlength=100).max() < 100
    assert sum(ticket == 5 for ticket in tickets(buffer.sampler(draw=fr.Prioritized()).sample(100))) > 90
    assert sum(ticket == 5 for ticket in tickets(buffer.sampler().sample(100))) > 90
    batch = uniform.sample(10)
    assert "weight" not in dir(batch)
    assert buffer.update_priorities(batch, np.ones(10)).stale == 0
    other = NativeBuffer(100, FIELDS, seed=3, output=output, priorities=fr.Priorities())
    other.extend(**transitions(0, 100))
    for foreign in (batch, buffer.gather([1, 2]), next(iter(buffer.sampler(draw=fr.Epochs()).loader(3, steps=1)))):
        with pytest.raises(ValueError, match="of another"):
            other.update_priorities(foreign, np.ones(len(foreign)))


def test_what_is_unfinished_is_told_from_what_is_empty() -> None:
    buffer = NativeBuffer(100, FIELDS, output="numpy")
    for sampler in (buffer, buffer.sampler(draw=fr.Epochs()), buffer.sampler(draw=fr.Uniform(newest=1))):
        with pytest.raises(ValueError, match="sample: the buffer is empty"):
            sampler.sample(4)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_child_goes_on() -> None:
    sampler = buffer_of().sampler(draw=fr.Epochs(), seed=1)
    first = tickets(sampler.sample(40))
    reader, writer = os.pipe()
    if not (child := os.fork()):
        os.write(writer, bytes(tickets(sampler.sample(60))))
        os._exit(0)
    os.waitpid(child, 0)
    rest = list(os.read(reader, 100))
    assert sorted(first + rest) == list(range(50, 150))
    assert tickets(sampler.sample(60)) == rest


# On a device.


def test_minibatches_to_a_device(cuda: FakeCuda) -> None:
    buffer = buffer_of("torch", device="cuda")
    twin = buffer_of("torch")
    for draw in (fr.Uniform(newest_of=20, newest=3), fr.Epochs(), fr.Epochs(shuffle=False, drop_last=True)):
        there, here = buffer.sampler(draw=draw, seed=2), twin.sampler(draw=draw, seed=2)
        for _ in range(9):
            batch, expected = there.sample(33), here.sample(33)
            cuda.run_all()
            assert len(batch) == len(expected)
            assert_same({name: cuda.bytes_of(value) for name, value in batch.items()}, dict(expected.numpy().items()))
        with there.loader(40, steps=6) as loader:
            for batch, expected in zip(loader, here.loader(40, steps=6), strict=True):
                cuda.run_all()
                assert_same(
                    {name: cuda.bytes_of(value) for name, value in batch.items()}, dict(expected.numpy().items())
                )


def test_what_the_device_itself_draws_is_uniform(cuda: FakeCuda) -> None:
    buffer = buffer_of("torch", device="cuda", storage="cuda")
    for draw in (fr.Uniform(newest_of=20), fr.Uniform(newest=1), fr.Epochs()):
        with pytest.raises(ValueError, match="with storage='cuda'"):
            buffer.sampler(draw=draw)
    sampler = buffer.sampler(draw=fr.Uniform())
    sampler.sample(4)
    with sampler.loader(4, steps=9, depth=3) as loader:
        next(loader)
        cuda.run_all()
        assert loader.rng_state["calls"] == 2
        assert sampler.rng_state["calls"] > 2

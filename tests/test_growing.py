# SPDX-License-Identifier: MIT
"""Buffers of another capacity, and buffers that take others in."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support import FIELDS, NativeBuffer, arrays, assert_holds, assert_same, fill, transitions
from test_checkpoints import KINDS, LANES, Streams, assert_same_contents, assert_same_draws, filled, make

import fastreplay as fr
from fastreplay.buffer import grown
from fastreplay.buffer.contents import Contents
from fastreplay.buffer.written import whole_trajectories
from fastreplay.checkpoint import laying
from fastreplay.checkpoint.stored import Stored

if TYPE_CHECKING:
    from fake_cuda import FakeCuda


def assert_go_on_alike(kind: str, streams: Streams, other: Any) -> None:
    """Insert the same into both buffers, and compare what they have and draw."""
    twin = Streams(other, streams.step)
    twin.stacks = streams.stacks
    for each in (streams, twin):
        each.insert(30)
    assert_same_contents(streams.buffer, other)
    assert_same_draws(streams.buffer, other, None if kind == "plain" else fr.Sequence(4, incomplete="pad"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_steps", [0, 20, 150])
def test_of_the_same_capacity_it_goes_on_as_this_one_would(kind: str, num_steps: int) -> None:
    buffer, streams = filled(kind, num_steps) if num_steps else (made := make(kind), Streams(made))
    buffer.resized(200)  # of which nothing is seen
    other = buffer.resized(200)
    assert type(other) is type(buffer)
    assert (other.capacity, other.lanes, other.ends, other.rng_state) == (
        buffer.capacity,
        buffer.lanes,
        buffer.ends,
        buffer.rng_state,
    )
    assert {k: v for k, v in other.stats().items() if "ed" not in k[-4:]}["bytes"] == buffer.stats()["bytes"]
    for key in ("inserted", "overwritten"):
        assert other.stats()[key] == buffer.stats()[key]
    if num_steps:
        assert_same_contents(buffer, other)
        assert_same_draws(buffer, other)
    assert_go_on_alike(kind, streams, other)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("capacity", [17, 90, 1000])
def test_another_capacity_has_the_newest(kind: str, capacity: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(laying, "_BYTES", 700)  # some rows at a time
    buffer, streams = filled(kind)
    before = arrays(buffer[:])
    other = buffer.resized(capacity)
    assert other.capacity == capacity
    kept = min(capacity, len(buffer))
    assert_same({name: value[-kept:] for name, value in before.items()}, other[:])
    assert_same(before, buffer[:])
    if kind == "priorities":
        tickets = other[:].ticket
        assert_same_masses(buffer, other, tickets)
        assert other.max_priority == buffer.max_priority
    if kind != "plain" and capacity == 1000:
        follow = fr.Sequence(4, incomplete="pad")
        assert buffer.trajectory_stats(follow) == other.trajectory_stats(follow)
    if kind in {"lanes", "frames"} and capacity == 1000:
        assert_same_draws(buffer, other)  # uniform draws follow from what there is
    twin = Streams(other, streams.step)
    twin.stacks = streams.stacks
    for each in (streams, twin):
        each.insert(2)
    assert_same({name: value[-6:] for name, value in arrays(buffer[:]).items()}, other[-6:])


def assert_same_masses(buffer: Any, other: Any, tickets: Any) -> None:
    first, count = int(tickets[0]), len(tickets)
    np.testing.assert_array_equal(buffer._masses.read(first, count), other._masses.read(first, count))


def test_a_face_and_what_a_subclass_has() -> None:
    class Named(fr.ReplayBuffer[Any]):
        def __init__(self) -> None:
            super().__init__(10, FIELDS, seed=3, output="numpy")
            self.name = "mine"

    buffer: Any = fill(Named(), 15)
    face = buffer.spawn(1)[0]
    face.sample(3)
    other = face.resized(20)
    assert (type(other), other.name, len(other), other.capacity) == (Named, "mine", 10, 20)
    assert other.rng_state == face.rng_state != buffer.rng_state
    assert_same(other.sample(5), face.sample(5))
    assert other.sampler().rng_state == face.sampler().rng_state  # as many were made before


def test_with_a_twin_on_a_device(cuda: FakeCuda) -> None:
    options = {"device": "cuda:0", "storage": "cuda", "priorities": fr.Priorities()}
    buffer = fill(NativeBuffer(30, FIELDS, seed=1, **options), 40)
    buffer.update_priorities(np.arange(10, 40), np.arange(10.0, 40.0))
    cuda.run_all()
    other = buffer.resized(30)
    ours, theirs = other.sample(16), buffer.sample(16)
    cuda.run_all()
    assert_same(ours, theirs)
    np.testing.assert_array_equal(ours.numpy().weight, theirs.numpy().weight)


def test_what_was_saved_of_the_smaller_one_is_not_written_again(tmp_path: Any) -> None:
    buffer, _ = filled("lanes")
    buffer.save(tmp_path)
    names = {path.name for path in tmp_path.iterdir() if path.name.startswith("records")}
    other = buffer.resized(500)
    other.save(tmp_path)
    assert names <= {path.name for path in tmp_path.iterdir()}
    assert_same_contents(fr.ReplayBuffer.load(tmp_path), other)


@pytest.mark.parametrize("kind", ["plain", "frames"])
def test_resized_while_others_insert(kind: str) -> None:
    """What it has is whole, in one piece, and the newest there was, but for the oldest that were overwritten."""
    buffer, streams = filled(kind, 100)
    stop = threading.Event()

    def insert() -> None:
        while not stop.is_set():
            streams.insert(1)

    thread = threading.Thread(target=insert)
    thread.start()
    try:
        for capacity in (150, 200, 400) * 3:
            newest = buffer.stats()["inserted"]
            other = buffer.resized(capacity)
            tickets = other[:].ticket
            assert len(other) > 0
            assert (np.diff(tickets) == 1).all()
            assert tickets[-1] >= newest - 1
            if kind == "plain":
                assert (other[:].action == tickets).all()
    finally:
        stop.set()
        thread.join()


def test_what_is_overwritten_before_it_is_copied_is_all_that_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = fill(NativeBuffer(100, FIELDS, output="numpy"), 100)
    read = buffer._read_state

    def beside_a_writer(first: int, count: int) -> Any:
        state = read(first, count)
        fill(buffer, 5)
        return state

    monkeypatch.setattr(buffer, "_read_state", beside_a_writer)
    assert_holds(buffer.resized(200)[:], np.arange(5, 100))


def test_a_buffer_that_was_cleared_goes_on() -> None:
    buffer = fill(NativeBuffer(10, FIELDS, output="numpy", lanes=1), 15)
    buffer.clear()
    other = buffer.resized(20)
    assert len(other) == 0
    for each in (buffer, other):
        each.extend(**transitions(15, 2))
    assert_same(buffer[:], other[:])


def test_writers_that_leave_nothing_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = fill(NativeBuffer(10, FIELDS, output="numpy"), 10)
    original = Stored.read

    def overtaken(self: Any, first: int, count: int) -> Any:
        result = original(self, first, count)
        fill(buffer, 11)
        return (self.oldest_whole(), *result[1:])

    monkeypatch.setattr(Stored, "read", overtaken)
    with pytest.raises(RuntimeError, match="overwrote all of 10 transitions"):
        buffer.resized(10)


@pytest.mark.parametrize("kind", ["frames", "lanes", "plain"])
def test_of_a_cleared_one_nothing_is_read(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was there may be overwritten meanwhile: no frame of it is looked up."""
    buffer, streams = filled(kind)
    buffer.clear()
    with monkeypatch.context() as patch:
        patch.setattr(Stored, "read", lambda self, *_: (self.ring.num_reserved, [], []))
        other = buffer.resized(200)
    assert len(other) == 0
    assert_go_on_alike(kind, streams, other)


@pytest.mark.parametrize("capacity", [0, -1, 2.5, "many", None, True])
def test_no_capacity(capacity: Any) -> None:
    buffer = fill(NativeBuffer(10, FIELDS, output="numpy"), 5)
    with pytest.raises((TypeError, ValueError), match="capacity"):
        buffer.resized(capacity)
    with pytest.raises(MemoryError):
        buffer.resized(2**50)


def test_another_buffer_is_inserted_in_order() -> None:
    buffer, other = fill(NativeBuffer(100, FIELDS), 7), NativeBuffer(40, FIELDS, output="numpy")
    other.extend(**transitions(7, 60))
    buffer.extend(other)
    expected = transitions(0, 7)
    rest = transitions(27, 40)  # its newest forty
    assert_same(
        {name: np.concatenate([expected[name], rest[name]]) for name in FIELDS} | {"ticket": np.arange(47)}, buffer[:]
    )
    buffer.extend(NativeBuffer(5, FIELDS))
    assert len(buffer) == 47
    small = NativeBuffer(10, FIELDS)
    small.extend(other)
    assert_same(dict(list(arrays(small[:]).items())[:-1]), {name: value[-10:] for name, value in rest.items()})


def test_fields_in_another_order_and_priorities_of_its_own() -> None:
    other = fill(NativeBuffer(40, FIELDS, priorities=fr.Priorities()), 30)
    other.update_priorities(np.arange(30), np.arange(30.0))
    buffer = NativeBuffer(40, dict(reversed(FIELDS.items())), output="numpy", priorities=fr.Priorities())
    buffer.extend(other)
    np.testing.assert_array_equal(buffer[:].reward, transitions(0, 30)["reward"])
    assert (buffer.sample(64).weight == 1).all()  # new ones, all alike


def links_of(buffer: Any, start: int = 0) -> Any:
    """Tell of each transition how far the sequences before and after it reach, and whether they begin."""
    window = fr.Window({"reward": range(-4, 6)}, incomplete="pad")
    sampler = buffer.sampler(draw=fr.Epochs(shuffle=False), follow=window)
    batch = sampler.sample(len(buffer))
    first = buffer.sampler(draw=fr.Epochs(shuffle=False), follow=fr.Sequence(3, burn_in=2, incomplete="pad"))
    sequences = first.sample(len(buffer))
    told = {"mask": batch.reward_mask, "reward": batch.reward * batch.reward_mask, "first": sequences.is_first}
    return {name: value[start:] for name, value in told.items()}


@pytest.mark.parametrize("rows", [1, 4, 1000])
@pytest.mark.parametrize("capacity", [60, 400])
def test_trajectories_stay_what_they_are(capacity: int, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastreplay.buffer.grown.run_length", lambda _: rows)
    other = make("lanes", capacity)
    streams = Streams(other)
    for number in range(60):
        streams.insert(1)
        if number % 7 == 3:
            other.cut(number % LANES)
        if number % 11 == 5:  # of which nobody knows what came before the next
            row = {name: value[-1:] for name, value in arrays(other[:]).items() if name != "ticket"}
            row["terminated"] = np.array([False])
            other.extend(**row, lanes=[number % LANES], mask=[False])
    expected = links_of(other)
    for lanes in (None, [2, 0, 1]):
        buffer = make("lanes", 1000)
        Streams(buffer, 500).insert(3)
        buffer.extend(other, lanes=lanes)
        before = len(buffer)
        got = links_of(buffer, 9)
        for name, value in expected.items():
            np.testing.assert_array_equal(got[name], value, err_msg=name)
        Streams(buffer, 600).insert(2)  # which continue nothing
        for name, value in links_of(buffer, 9).items():
            np.testing.assert_array_equal(value[: before - 9], expected[name], err_msg=name)


def complete_of(buffer: Any, first: int) -> set[int]:
    """Tell which transitions from `first` on have all of two steps, or end before; by their rewards."""
    drawn = buffer.sample(2000, follow=fr.Window({"reward": range(2)}, incomplete="redraw"))
    return {int(reward) for reward in drawn.reward[:, 0] if reward >= first}


@pytest.mark.parametrize("rows", [1, 3, 1000])
@pytest.mark.parametrize("then", ["nothing", "a cut", "an end that is left out", "its next", "an end, and a reset"])
def test_what_is_beside_a_left_out_row_is_so_there(then: str, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It went on, by what is not there: no end of a trajectory, of which nothing else comes."""
    monkeypatch.setattr("fastreplay.buffer.grown.run_length", lambda _: rows)
    fields: dict[str, Any] = {"reward": (), "terminated": ((), "bool")}
    other = NativeBuffer(100, fields, seed=0, lanes=3, output="numpy")
    for first in (10, 20):
        for lane, end in ((0, False), (1, first == 20), (2, False)):
            other.extend(
                reward=range(first + 3 * lane, first + 3 * lane + 3), terminated=[False, False, end], lanes=lane
            )
        is_end = then.startswith("an end")
        other.extend(reward=[0], terminated=[is_end], lanes=0, mask=[False])
        if then == "a cut":
            other.cut(0)
        other.cut(1)
        other.extend(reward=[0], terminated=[False], lanes=1, mask=[False])  # beside no transition
        if then == "its next":
            other.add(first + 9, False, lane=0)
        if then == "an end, and a reset":
            other.extend(reward=[0], terminated=[False], lanes=0, mask=[False])
    buffer = NativeBuffer(100, fields, seed=0, lanes=3, output="numpy")
    buffer.extend(reward=[1, 2, 3], terminated=[False] * 3)
    buffer.extend(other)
    open_ones = {28} | ({29} if then == "its next" else set())  # which are cut
    assert complete_of(buffer, 10) == complete_of(other, 10) | open_ones
    assert not {12, 22} & complete_of(buffer, 10)
    buffer.extend(reward=[4, 5, 6], terminated=[False] * 3)  # begin anew
    assert buffer.sampler(draw=fr.Epochs(shuffle=False), follow=fr.Sequence(1)).sample(100).is_first[-3:].all()


def test_a_step_after_an_end_is_a_transition_there() -> None:
    """Into a buffer that leaves out what only resets an environment: of another buffer everything is a transition."""
    fields: dict[str, Any] = {"reward": (), "terminated": ((), "bool")}
    buffer = NativeBuffer(100, fields, lanes=2, output="numpy")
    buffer._lanes.core.skips_resets = True
    other = NativeBuffer(100, fields, lanes=2, output="numpy")
    for step in range(20):
        other.extend(reward=[step, 100 + step], terminated=[step % 3 == 0, step % 2 == 0])
    buffer.extend(other)
    np.testing.assert_array_equal(buffer[:].reward, other[:].reward)
    buffer.extend(reward=[1, 2], terminated=[False, True])  # transitions, too: nothing of these lanes has ended
    assert len(buffer) == 42


def test_frames_are_shared_there_as_here() -> None:
    other, _ = filled("frames")
    buffer = make("frames", 400)
    buffer.extend(other)
    expected, got = arrays(other[:]), arrays(buffer[:])
    for name in expected.keys() - {"ticket"}:
        np.testing.assert_array_equal(got[name], expected[name])
    plain = NativeBuffer(400, {name: (f.shape, f.dtype) for name, f in other.schema.items()}, output="numpy")
    plain.extend(other)
    np.testing.assert_array_equal(plain[:].observation, expected["observation"])


@pytest.mark.parametrize("has_lanes", [False, True])
def test_what_others_overwrite_meanwhile_is_left_out(has_lanes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastreplay.buffer.grown.run_length", lambda _: 10)
    options = {"lanes": LANES} if has_lanes else {}
    other = make("plain", 90, **options)
    streams = Streams(other)
    streams.insert(12)
    if has_lanes:
        other.cut(0)
    streams.insert(18)
    buffer = make("plain", 200, **options)
    insert: Any = Contents.extend

    def slow(self: Any, **fields: Any) -> None:
        insert(self, **fields)
        if self is buffer and len(buffer) == 20 and streams.step == 30:
            streams.insert(12)  # the 36 oldest go, of which 20 are there

    monkeypatch.setattr(grown, "Contents", SimpleNamespace(extend=slow))
    buffer.extend(other)
    numbers = buffer[:].action
    np.testing.assert_array_equal(numbers, [*range(20), *range(36, 90)])
    if has_lanes:
        told = links_of(buffer)
        assert told["first"][20].any()
        assert not told["first"][21:23].any()  # nobody knows what came before these
        assert not told["mask"][20:23, :4].any()
        assert not told["mask"][17:20, 5:].any()


OTHERS: dict[str, tuple[type[Exception], str, Any, Any]] = {
    "itself": (ValueError, "got this one", lambda b: b, {}),
    "a face of itself": (ValueError, "got this one", lambda b: b.spawn(1)[0], {}),
    "another dtype": (
        ValueError,
        r"reward: expected \(\) float32, got \(\) float64",
        lambda _: NativeBuffer(3, {**FIELDS, "reward": ((), "float64")}),
        {},
    ),
    "a field less": (
        ValueError,
        "terminated: expected",
        lambda _: NativeBuffer(3, dict(list(FIELDS.items())[:-1])),
        {},
    ),
    "a field more": (ValueError, "more: expected none", lambda _: NativeBuffer(3, {**FIELDS, "more": ()}), {}),
    "priorities beside": (TypeError, "'priority'", lambda _: NativeBuffer(3, FIELDS), {"priority": 1}),
    "lanes of none": (ValueError, "lanes: expected None", lambda _: NativeBuffer(3, FIELDS), {"lanes": [0]}),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_no_such_buffer(kind: str) -> None:
    error, message, other, beside = OTHERS[kind]
    buffer = fill(NativeBuffer(10, FIELDS), 5)
    with pytest.raises(error, match=message):
        buffer.extend(other(buffer), **beside)
    assert_holds(buffer[:], np.arange(5))


@pytest.mark.parametrize("lanes", [None, [0], [0, 0], [0, 3], [-1, 0], [0.0, 1.0], [[0, 1]], "01"])
def test_no_such_lanes(lanes: Any) -> None:
    buffer = fill(NativeBuffer(10, FIELDS, lanes=3), 0)
    other = NativeBuffer(10, FIELDS, lanes=2)
    with pytest.raises((TypeError, ValueError), match="lanes"):
        buffer.extend(other, lanes=lanes)
    with pytest.raises(ValueError, match="expected a buffer with lanes"):
        buffer.extend(NativeBuffer(10, FIELDS))


def test_a_minibatch_is_inserted_without_what_is_said_of_its_draw() -> None:
    other = fill(NativeBuffer(40, FIELDS, priorities=fr.Priorities(), lanes=1), 30)
    buffer = NativeBuffer(100, FIELDS)
    buffer.extend(other.sample(8))
    buffer.extend(other[:])
    assert len(buffer) == 38
    np.testing.assert_array_equal(buffer[8:].reward, transitions(0, 30)["reward"])
    for follow, name in ((fr.NStep(3, 0.9), "discount"), (fr.Sequence(3), "mask")):
        with pytest.raises(ValueError, match=f"{name}: expected a minibatch of transitions"):
            buffer.extend(other.sample(4, follow=follow))
    assert len(buffer) == 38


def test_n_steps_go_where_there_is_a_field_for_their_discount() -> None:
    fields: dict[str, Any] = {"reward": (), "next_observation": (2,), "terminated": ((), "bool")}
    other = NativeBuffer(40, fields, lanes=1, output="numpy")
    other.extend(reward=np.ones(20), next_observation=np.zeros((20, 2)), terminated=np.zeros(20, bool))
    buffer = NativeBuffer(40, {**fields, "discount": ()}, output="numpy")
    batch = other.sample(8, follow=fr.NStep(3, 0.5))
    buffer.extend(batch)
    np.testing.assert_array_equal(buffer[:].discount, batch.discount)
    np.testing.assert_array_equal(buffer[:].reward, batch.reward)


def test_what_comes_of_an_empty_buffer_cuts_lanes_as_ever() -> None:
    fields: dict[str, Any] = {"x": ((), "int64"), "terminated": ((), "bool")}
    buffer, empty = (fr.ReplayBuffer(9, fields, lanes=2, output="numpy", seed=0) for _ in range(2))
    buffer.add(x=1, terminated=False, lane=1)
    buffer.extend(empty)
    buffer.add(x=2, terminated=False, lane=1)
    buffer.cut()
    assert [each.tolist() for each in whole_trajectories(buffer)] == [[0], [1]]

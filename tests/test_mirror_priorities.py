# SPDX-License-Identifier: MIT
"""Draws by priority with storage="cuda": on a fake device, and on a real one where there is one.

Beside each buffer stands one on the CPU: of equal masses both draw the same rows, with the same probabilities, bit for
bit. So exponents are 1 where masses are worked out over there; weights are near enough.
"""

from __future__ import annotations

import copy
import ctypes
import gc
import os
import pickle
import re
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from fake_cuda import DEVICE, FakeCuda, Stream, cuda_device, queue_check, the_host_never_waits
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule
from stall import stalled_insert
from support import IS_LONG_FORM, NativeBuffer
from two_streams import TwoStreams

import fastreplay as fr
from fastreplay.gpu import masses

if TYPE_CHECKING:
    from collections.abc import Callable

FIELDS: dict[str, Any] = {"n": ((), "int64"), "x": (2,)}
EXACT: dict[str, Any] = {"alpha": 1.0, "eps": 0.0}
SIZES = [1, 15, 16, 17, 255, 1000]


def rows(count: int, first: int = 0) -> dict[str, Any]:
    n = np.arange(first, first + count)
    return {"n": n, "x": np.stack([n, -n], 1).astype(np.float32)}


def pair(capacity: int, *, seed: int = 0, **rule: Any) -> tuple[Any, Any]:
    """Make a buffer on the device, and one on the CPU."""
    priorities = fr.Priorities(**{**EXACT, **rule})
    there = NativeBuffer(capacity, FIELDS, seed=seed, device="cuda:0", storage="cuda", priorities=priorities)
    return there, NativeBuffer(capacity, FIELDS, seed=seed, output="numpy", priorities=priorities)


def filled(priorities: Any, capacity: int = 0, **rule: Any) -> tuple[Any, Any]:
    both = pair(capacity or len(priorities), **rule)
    for each in both:
        each.extend(**rows(len(priorities)), priority=priorities)
    return both


def exponential(count: int, seed: int = 0) -> Any:
    """Return priorities of several decades, some of them 0."""
    random = np.random.default_rng(seed)
    return random.exponential(size=count) ** 4 * (np.arange(count) % 7 != 3)


def expected_of(twin: Any, batch_size: int, **options: Any) -> dict[str, Any]:
    batch = twin.sample(batch_size, **options)
    return {name: getattr(batch, name).copy() for name in ("n", "x", "weight", "probability", "ticket")}


def found_in(batch: Any) -> dict[str, Any]:
    return {name: getattr(batch, name).cpu().numpy() for name in ("n", "x", "weight", "probability", "ticket")}


def assert_draw(found: dict[str, Any], expected: dict[str, Any]) -> None:
    np.testing.assert_allclose(found["weight"], expected["weight"], rtol=2e-6)
    for name in ("n", "x", "probability", "ticket"):
        assert found[name].tobytes() == expected[name].tobytes(), name


def draw_both(cuda: Any, there: Any, twin: Any, batch_size: int = 33, times: int = 3, **options: Any) -> None:
    for _ in range(times):
        batch, expected = there.sample(batch_size, **options), expected_of(twin, batch_size, **options)
        cuda.run_all()
        assert_draw(found_in(batch), expected)


def without_waits(cuda: Any) -> int:
    return getattr(cuda, "num_host_waits", 0)


class TestOnAnyDevice:
    """The same on the fake device and on a real one."""

    @pytest.mark.parametrize("batch_size", [1, 16, 300])
    @pytest.mark.parametrize("count", SIZES)
    def test_it_draws_what_the_cpu_draws(self, any_cuda: Any, count: int, batch_size: int) -> None:
        there, twin = filled(exponential(count) + (count == 1))
        draw_both(any_cuda, there, twin, batch_size)
        assert there.rng_state == twin.rng_state
        assert there.stats()["sampled"] == 3 * batch_size
        assert without_waits(any_cuda) == 0

    @pytest.mark.parametrize("normalize", ["batch", "buffer", None])
    @pytest.mark.parametrize("mix", [0.0, 0.3, 1.0])
    @pytest.mark.parametrize("draws", ["stratified", "independent"])
    def test_conventions(self, any_cuda: Any, draws: str, mix: float, normalize: str | None) -> None:
        there, twin = filled(
            exponential(300), alpha=0.6, eps=1e-6, draws=draws, uniform_mix=mix, normalize=normalize, beta=0.7
        )
        draw_both(any_cuda, there, twin)
        draw_both(any_cuda, there, twin, beta=0)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("count", SIZES)
    def test_updates(self, any_cuda: Any, count: int, dtype: torch.dtype) -> None:
        """With duplicates, of which the last wins."""
        there, twin = filled(np.ones(count))
        random = np.random.default_rng(count)
        for size in (1, 40, 700):
            tickets = random.integers(0, count, size)
            p = torch.as_tensor(random.normal(size=size) * (random.random(size) < 0.8), dtype=dtype)
            done = there.update_priorities(any_cuda.tensor(tickets), any_cuda.tensor(p))
            assert twin.update_priorities(tickets, p.numpy()) == (size, 0)
            twin_total = twin.sample(1)
            there_total = there.sample(1)
            any_cuda.run_all()
            assert (int(done.applied), int(done.stale)) == (size, 0)
            assert_draw(found_in(there_total), {name: getattr(twin_total, name) for name in found_in(there_total)})
            draw_both(any_cuda, there, twin)
        assert there.max_priority == twin.max_priority

    def test_a_minibatch_names_its_transitions(self, any_cuda: Any) -> None:
        there, twin = filled(exponential(100))
        for step in range(5):
            batch, other = there.sample(20), twin.sample(20)
            p = np.arange(20, dtype=np.float32) + step
            there.update_priorities(batch, any_cuda.tensor(p))
            assert twin.update_priorities(other, p) == (20, 0)
            for each in (there, twin):
                each.extend(**rows(7, 100 + 7 * step))
        draw_both(any_cuda, there, twin)

    def test_what_is_gone_is_passed_over_and_counted(self, any_cuda: Any) -> None:
        there, twin = filled(np.arange(1.0, 11.0), capacity=8)
        p = np.full(13, 5.0)
        p[[4, 7, 9]] = np.nan, np.inf, -np.inf
        tickets = np.array([0, 1, 2, 3, 4, 4, 5, 6, 7, 8, 9, 10, -1])  # 0 and 1 are gone, two never were
        done = there.update_priorities(any_cuda.tensor(tickets), any_cuda.tensor(p))
        is_good = np.isfinite(p) & (tickets >= 0) & (tickets < 10)
        assert twin.update_priorities(tickets[is_good], p[is_good]) == (6, 2)
        draw_both(any_cuda, there, twin)
        assert (int(done.applied), int(done.stale)) == (6, 4)
        assert there.stats()["refused"] == 3
        assert twin.stats()["refused"] == 0

    def test_what_is_inserted_between_draws(self, any_cuda: Any) -> None:
        """Around the ring's end, many laps, with priorities of its own and without, and after clear()."""
        there, twin = pair(100)
        random = np.random.default_rng(0)
        first = 0
        for i, count in enumerate((1, 1, 5, 90, 30, 100, 99, 101, 350, 7)):
            given: dict[str, Any] = {} if i % 3 else {"priority": random.exponential(size=count)}
            if i == 7:
                given = {"priority": None}
            for each in (there, twin):
                if i in {4, 8}:
                    each.clear()
                each.extend(**rows(count, first), **given)
            first += count
            if i % 2:
                tickets = np.arange(max(first - 50, 0), first)
                p = random.exponential(size=len(tickets))
                there.update_priorities(any_cuda.tensor(tickets), any_cuda.tensor(p))
                twin.update_priorities(tickets, p)
            draw_both(any_cuda, there, twin)

    def test_new_transitions_get_the_largest_so_far(self, any_cuda: Any) -> None:
        there, twin = pair(64, eps=0.5)
        assert there.max_priority == twin.max_priority == 1
        for each in (there, twin):
            each.extend(**rows(2))
            each.add(n=2, x=[0, 0], priority=3.25)
            each.extend(**rows(2, 3))  # as large as the one before
        update = np.array([7.5, 3.5])
        there.update_priorities(any_cuda.tensor([0, 1]), any_cuda.tensor(update))
        twin.update_priorities([0, 1], update)
        for each in (there, twin):
            each.add(n=5, x=[0, 0])
            each.max_priority = 2
            each.add(n=6, x=[0, 0])
            each.add(n=7, x=[0, 0], priority=0.25)
            each.add(n=8, x=[0, 0])
        draw_both(any_cuda, there, twin, 400)
        assert there.max_priority == twin.max_priority == 2
        batch = there.sample(500)
        any_cuda.run_all()
        drawn = found_in(batch)
        expected = np.array([8, 4, 3.75, 3.75, 3.75, 8, 2, 0.75, 2], np.float32)
        np.testing.assert_allclose(drawn["probability"], (expected / expected.sum())[drawn["n"]], rtol=1e-6)

    def test_an_initial_priority(self, any_cuda: Any) -> None:
        there, twin = pair(16, initial=3)
        for each in (there, twin):
            each.extend(**rows(2))
        there.update_priorities(any_cuda.tensor([0]), any_cuda.tensor([9.0]))
        twin.update_priorities([0], [9.0])
        for each in (there, twin):
            each.extend(**rows(1, 2))
        draw_both(any_cuda, there, twin)

    def test_where_nothing_has_a_mass_the_draw_is_uniform(self, any_cuda: Any) -> None:
        for normalize in ("batch", "buffer", None):
            there, twin = pair(40, normalize=normalize)
            for each in (there, twin):
                each.extend(**rows(33), priority=None)
            draw_both(any_cuda, there, twin)
            assert there.stats()["without_mass"] == twin.stats()["without_mass"] == 3
            there.update_priorities(any_cuda.tensor([7]), any_cuda.tensor([0.5]))
            batch = there.sample(50)
            any_cuda.run_all()
            drawn = found_in(batch)
            assert set(drawn["n"]) == {7}
            assert (drawn["weight"] == 1).all()
            assert there.stats()["without_mass"] == 3

    def test_edges_of_every_group(self, any_cuda: Any) -> None:
        """One transition with a mass, at each place beside an edge; a second one there takes half of the draws."""
        for count in (17, 255, 257):
            there, twin = filled(np.zeros(count))
            for place in sorted({p for edge in range(0, count, 16) for p in (edge - 1, edge) if 0 <= p < count}):
                named, other = [(place - 1) % count, place], [0.0, 1.0]
                there.update_priorities(any_cuda.tensor(named), any_cuda.tensor(other))
                twin.update_priorities(named, other)
                batch = there.sample(9)
                any_cuda.run_all()
                assert (batch.n.cpu() == place).all()
                assert (batch.probability.cpu() == 1).all()
                there.update_priorities(any_cuda.tensor([place]), any_cuda.tensor([0.0]))
            assert there.stats()["without_mass"] == 0

    def test_draws_follow_the_priorities(self, any_cuda: Any) -> None:
        p = np.geomspace(1e-4, 1e4, 200) * (np.arange(200) % 9 > 0)
        there, _ = filled(p, alpha=0.6, eps=0.0, draws="independent")
        counts = np.zeros(200)
        for _ in range(20):
            batch = there.sample(1000)
            any_cuda.run_all()
            counts += np.bincount(batch.n.cpu().numpy(), minlength=200)
        mass = p**0.6
        expected = 20_000 * mass / mass.sum()
        assert not counts[expected == 0].any()
        often = expected >= 5
        observed, wanted = [np.append(v[often], v[~often].sum()) for v in (counts, expected)]
        assert ((observed - wanted) ** 2 / wanted).sum() < often.sum() + 6 * np.sqrt(2 * often.sum())

    def test_uniform_draws_beside_those_by_priority(self, any_cuda: Any) -> None:
        there, twin = filled(exponential(60))
        uniform, expected = (each.sampler(draw=fr.Uniform(), seed=4) for each in (there, twin))
        other, other_twin = (each.sampler(draw=fr.Prioritized(), seed=5) for each in (there, twin))
        draw_both(any_cuda, other, other_twin)
        batch, want = uniform.sample(16), expected.sample(16)
        any_cuda.run_all()
        assert np.array_equal(batch.n.cpu(), want.n)
        done = there.update_priorities(batch, any_cuda.tensor(np.ones(16, np.float32)))
        assert twin.update_priorities(want, np.ones(16)) == (16, 0)
        draw_both(any_cuda, there, twin)
        assert done == (16, 0)
        assert "weight" not in dir(batch)

    def test_a_loader(self, any_cuda: Any) -> None:
        there, twin = filled(exponential(60), beta=lambda calls: calls / 10)
        with there.loader(16, depth=3, steps=10) as loader, twin.loader(16, depth=3, steps=10) as expected:
            for batch, other in zip(loader, expected, strict=True):
                any_cuda.run_all()
                assert_draw(found_in(batch), {name: getattr(other, name) for name in found_in(batch)})
        draw_both(any_cuda, there, twin)

    def test_out_and_graphs(self, any_cuda: Any) -> None:
        """A graph draws by the masses of its replay; an update in a graph changes those of what was flushed by then."""
        there, twin = filled(exponential(60), capacity=90)
        out, p = there.sample(16), any_cuda.tensor(np.zeros(16, np.float32))
        expected_of(twin, 16)
        assert there.sample(16, out=out) is out
        twin_batch = twin.sample(16)
        any_cuda.run_all()
        assert_draw(found_in(out), {name: getattr(twin_batch, name) for name in found_in(out)})
        with any_cuda.capture() as graph:
            done = there.update_priorities(out, p)
            there.sample(16, out=out)
        any_cuda.run_all()
        for i in range(6):
            new = np.random.default_rng(i).exponential(size=16).astype(np.float32)
            p.copy_(torch.as_tensor(new))
            for each in (there, twin):
                each.extend(**rows(10, 60 + 10 * i))
            there.flush()
            any_cuda.replay(graph)
            expected = twin.update_priorities(twin_batch, new)
            twin_batch = twin.sample(16)
            any_cuda.run_all()
            assert done == expected
            assert_draw(found_in(out), {name: getattr(twin_batch, name) for name in found_in(out)})
        assert there.rng_state == twin.rng_state

    @pytest.mark.parametrize("again", [copy.deepcopy, lambda buffer: pickle.loads(pickle.dumps(buffer))])
    @pytest.mark.parametrize("capacity", [60, 33])
    def test_copies_go_on(self, any_cuda: Any, again: Any, capacity: int) -> None:
        there, twin = filled(exponential(50), capacity=capacity)
        for _ in range(3):
            p = np.arange(8, dtype=np.float32)
            there.update_priorities(there.sample(8), any_cuda.tensor(p))
            twin.update_priorities(twin.sample(8), p)
        for each in (there, twin):
            each.extend(**rows(3, 50))
        other = again(there)
        assert other.max_priority == there.max_priority == twin.max_priority
        draw_both(any_cuda, other, twin)
        for each in (other, twin):
            each.extend(**rows(3, 53))
        draw_both(any_cuda, other, twin)

    def test_a_copy_on_the_cpu_has_the_same_masses(self, any_cuda: Any) -> None:
        there, twin = filled(exponential(50))
        there.update_priorities(any_cuda.tensor([3, 4]), any_cuda.tensor([0.5, 2.5]))
        twin.update_priorities([3, 4], [0.5, 2.5])
        found, expected = (each.__reduce__()[2]["masses"] for each in (there, twin))
        for name in ("first", "values", "largest"):
            np.testing.assert_array_equal(found[name], expected[name])

    def test_faces_share_the_masses(self, any_cuda: Any) -> None:
        there, _ = filled(np.ones(20))
        (face,) = there.spawn(1)
        one_of_all = (np.arange(20) == 7).astype(np.float32)
        face.update_priorities(any_cuda.tensor(np.arange(20)), any_cuda.tensor(one_of_all))
        for each in (there, face):
            batch = each.sample(30)
            any_cuda.run_all()
            assert (batch.n.cpu() == 7).all()

    def test_numbers_of_the_host(self, any_cuda: Any) -> None:
        """They are checked as on the host, and refused with nothing changed."""
        there, twin = filled(np.ones(20))
        batch = there.sample(4)
        twin.sample(4)
        for name, (wrong, p) in {
            r"priorities\[1\]: expected a finite number, got nan": (batch, [1.0, np.nan, 1.0, 1.0]),
            r"priorities\[0\]: expected a finite number, got inf": ([3], [np.inf]),
            r"tickets\[1\]: 20 was never given to a transition: the next is 20": ([3, 20], [1.0, 1.0]),
            r"tickets\[0\]: -1 was never given": ([-1], [1.0]),
            "priorities: expected one for each of 4 transitions, got 3": (batch, any_cuda.tensor([1.0, 2.0, 3.0])),
            "priorities: expected one for each of 1 transitions, got 2": ([1], [1.0, 2.0]),
        }.items():
            with pytest.raises(ValueError, match=name):
                there.update_priorities(wrong, p)
        for wrong, p in ((any_cuda.tensor([0.5]), [1.0]), ([1], any_cuda.tensor([1j])), ([1], ["a"])):
            with pytest.raises(TypeError, match=r"tickets: expected integers|priorities: expected numbers"):
                there.update_priorities(wrong, p)
        draw_both(any_cuda, there, twin)
        for tickets, p in (([3, 4, 3], [5.0, 6.0, 7.0]), (np.array([9]), np.array([0.5], np.float32))):
            done = there.update_priorities(tickets, p)
            any_cuda.run_all()
            assert done == twin.update_priorities(tickets, p)
        there.update_priorities(any_cuda.tensor([1, 2]), [0.25, 4])
        there.update_priorities([5, 6], any_cuda.tensor([0.25, 4.0]))
        twin.update_priorities([1, 2, 5, 6], [0.25, 4, 0.25, 4])
        draw_both(any_cuda, there, twin)
        done = there.update_priorities([], [])
        any_cuda.run_all()
        assert done == (0, 0)

    def test_what_a_graph_cannot_repeat_is_refused(self, any_cuda: Any) -> None:
        there, twin = filled(exponential(30))
        out = there.sample(4)
        twin.sample(4)
        refused: list[Callable[[], object]] = [
            lambda: there.update_priorities([3], [1.0]),
            lambda: there.update_priorities(out, [1.0] * 4),
            lambda: there.max_priority,
            lambda: setattr(there, "max_priority", 2.0),
            lambda: there.sample(4),
            there.stats,
        ]
        with any_cuda.capture() as graph:
            for call in refused:
                with pytest.raises(RuntimeError, match="in the capture of a graph"):
                    call()
            there.sample(4, out=out)
        any_cuda.replay(graph)
        twin.sample(4)
        draw_both(any_cuda, there, twin)

    def test_many_updates_at_once(self, any_cuda: Any) -> None:
        """More than a block's threads, each ticket some hundred times."""
        there, twin = filled(np.ones(50))
        random = np.random.default_rng(0)
        tickets, p = random.integers(0, 50, 5000), random.exponential(size=5000)
        there.update_priorities(any_cuda.tensor(tickets), any_cuda.tensor(p))
        twin.update_priorities(tickets, p)
        draw_both(any_cuda, there, twin)


def test_it_waits_for_nothing(cuda: FakeCuda) -> None:
    """Draws and updates are queued; what runs later finds its rows."""
    there, twin = filled(exponential(100), capacity=150)
    ran = []
    for step in range(2):
        batch, expected = there.sample(16), expected_of(twin, 16)
        ran.append((batch, expected))
        p = np.arange(16, dtype=np.float32) + step
        there.update_priorities(batch, cuda.tensor(p))
        twin.update_priorities(expected["ticket"], p)
        for each in (there, twin):
            each.extend(**rows(5, 100 + 5 * step))
    assert cuda.num_host_waits == 0
    assert all(len(stream.queue) > 0 for stream in cuda.streams[:1])
    cuda.run_all()
    for batch, expected in ran:
        assert_draw(found_in(batch), expected)


def test_a_number_that_is_not_finite_counts_once(cuda: FakeCuda) -> None:
    there, _ = filled(np.ones(4))
    p = cuda.tensor(np.array([np.nan, 1], np.float32))
    done = there.update_priorities(cuda.tensor([9, 1]), p)
    cuda.run_all()
    assert (int(done.applied), int(done.stale), there.stats()["refused"]) == (1, 0, 1)


def test_other_dtypes_of_the_device(cuda: FakeCuda) -> None:
    there, twin = filled(np.ones(20))
    for dtype in (torch.float16, torch.bfloat16, torch.int32, torch.bool):
        p = torch.tensor([3, 0, 1, 1], dtype=dtype)
        there.update_priorities([1, 2, 3, 4], p)
        twin.update_priorities([1, 2, 3, 4], p)
        draw_both(cuda, there, twin)


def test_what_has_a_gradient_is_detached(cuda: FakeCuda) -> None:
    there, _ = filled(np.ones(20))
    p = cuda.tensor(np.array([4.0], np.float32)).requires_grad_()
    done = there.update_priorities(cuda.tensor([3]), p * 1)
    assert not done.applied.requires_grad


def test_unfinished_inserts_weigh_nothing(cuda: FakeCuda) -> None:
    """What they overwrite is gone, with its mass."""
    there, twin = filled(np.r_[1e9, np.ones(3999)])
    draw_both(cuda, there, twin)
    with stalled_insert(there, rows(4000, 4000), "x"):
        gone = there._ring.num_reserved - 4000
        batch = there.sample(200)
        cuda.run_all()
        assert 0 < gone <= min(batch.n.numpy())
        np.testing.assert_allclose(batch.probability, 1 / (4000 - gone), rtol=1e-6)
        done = there.update_priorities(cuda.tensor([0, 3999]), cuda.tensor([1e6, 2.0]))
        cuda.run_all()
        assert done == (1, 1)


def test_a_clear_beside_an_unfinished_insert(cuda: FakeCuda) -> None:
    """What counts begins beyond the end of what was sent."""
    there, _ = filled(np.ones(4000))
    there.sample(4)
    with stalled_insert(there, rows(4000, 4000), "x"):
        there.clear()
        there.flush()
        with pytest.raises(ValueError, match=r"nothing can be drawn yet|the buffer is empty"):
            there.sample(4)
        cuda.run_all()
        assert not there._mirror.masses._there.read().any()


def test_masses_are_read_of_what_is_there(cuda: FakeCuda) -> None:
    there, _ = filled(np.arange(1.0, 13.0), capacity=10)
    np.testing.assert_array_equal(there._mirror.masses.read(0, 15), [0, 0, *range(3, 13), 0, 0, 0])


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_leaves_the_device_alone(cuda: FakeCuda) -> None:
    """It inserts and reads; whatever is asked of the device, also where the last reference goes, it ends."""
    there, _ = filled(exponential(20))
    held: list[Any] = [there, there.sample(4), there.loader(4), there.update_priorities([1], [2.0])]
    cuda.run_all()
    pid = os.fork()
    if pid == 0:

        def end_in_child(*_: object) -> int:
            os._exit(3)

        cuda.handles[:] = [SimpleNamespace(token=None, wait=end_in_child)] * len(cuda.handles)
        Stream.wait_event = end_in_child  # type: ignore[assignment,method-assign]
        there.extend(**rows(3, 20), priority=1.0)
        assert there.view("n")[2] == 22
        del there
        held.clear()
        gc.collect()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.mark.parametrize("draw", [fr.Epochs(), fr.Uniform(newest_of=3), fr.Uniform(newest=1)])
def test_other_draws_stay_refused(cuda: FakeCuda, draw: Any) -> None:
    there, _ = filled(np.ones(4))
    with pytest.raises(ValueError, match="with storage='cuda'"):
        there.sampler(draw=draw)


def test_a_minibatch_of_another_buffer_is_refused(cuda: FakeCuda) -> None:
    (there, _), (other, _) = filled(np.ones(4)), filled(np.ones(4))
    with pytest.raises(ValueError, match="expected a minibatch of this buffer"):
        there.update_priorities(other.sample(2), [1.0, 1.0])
    with pytest.raises(ValueError, match="out: with storage='cuda'"):
        there.sample(2, out=other.sample(2))
    uniform = there.sampler(draw=fr.Uniform())
    with pytest.raises(ValueError, match="out: expected a minibatch with weight, probability"):
        there.sample(2, out=uniform.sample(2))


def test_a_failed_launch_says_so_and_what_comes_next_goes_on(cuda: FakeCuda) -> None:
    there, twin = filled(exponential(30), capacity=64)
    for each in (there, twin):
        each.extend(**rows(20, 30))
    cuda.launch_error = 700
    for call in (lambda: there.sample(4), lambda: there.update_priorities([1], [2.0]), there.flush):
        with pytest.raises(RuntimeError, match="storage: the launch on cuda:0 failed: fake error 700"):
            call()
    cuda.launch_error = 0
    draw_both(cuda, there, twin)


def test_no_priorities_without_the_cuda_part(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masses, "cuda_masses", lambda _: (None, "no compiler"))
    with pytest.raises(RuntimeError, match="priorities: on cuda:0 they need the CUDA part of fastreplay: no compiler"):
        pair(10)


@pytest.mark.parametrize(
    ("name", "struct"),
    [
        ("masses", masses._Masses),
        ("weighing", masses.Weighing),
        ("settling", masses._Settling),
        ("update", masses._Update),
    ],
)
def test_the_struct_is_that_of_the_header(name: str, struct: Any) -> None:
    header = (Path(__file__).parents[1] / "csrc/cuda/masses.h").read_text()
    start = header.index(f"struct fastreplay_cuda_{name} {{")
    body = re.sub(r"/\*.*?\*/", "", header[start : header.index("};", start)], flags=re.DOTALL)
    fields = re.findall(r"^\s*(.+?[ *])(\w+);", body, re.MULTILINE)
    kinds = {
        "uint64_t ": ctypes.c_uint64,
        "double ": ctypes.c_double,
        "struct fastreplay_cuda_masses ": masses._Masses,
    }
    assert [(name, kinds.get(kind, ctypes.c_void_p)) for kind, name in fields] == list(struct._fields_)
    assert f"#define FASTREPLAY_CUDA_FIRST_MASS {masses._FIRST_MASS}\n" in header


class Interleavings(TwoStreams):
    """Inserts, updates, draws, on two streams that run when the machine says. Every read must find its rows."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[tuple[Any, Any]] = []
        self.num_inserted = 0

    @initialize(seed=st.integers(0, 3), capacity=st.sampled_from([1, 7, 20]), initial=st.sampled_from(["max", 0.5]))
    def begin(self, seed: int, capacity: int, initial: Any) -> None:
        self.there, self.twin = pair(capacity, seed=seed, initial=initial, beta=0.0)

    @rule(count=st.integers(1, 25), given=st.sampled_from(["largest", "none", "each"]))
    def insert(self, count: int, given: str) -> None:
        each_has = np.arange(count) % 5 / 2
        choices: dict[str, Any] = {"largest": {}, "none": {"priority": None}, "each": {"priority": each_has}}
        chosen = choices[given]
        for each in (self.there, self.twin):
            each.extend(**rows(count, self.num_inserted), **chosen)
        self.num_inserted += count

    @rule()
    def clear(self) -> None:
        self.there.clear(), self.twin.clear()

    @rule()
    def flush(self) -> None:
        self.there.flush()

    @rule(value=st.sampled_from([0.0, 2.0]))
    def set_largest(self, value: float) -> None:
        self.there.max_priority = self.twin.max_priority = value

    @precondition(lambda self: len(self.twin) > 0)
    @rule(batch_size=st.sampled_from([3, 8]))
    def sample(self, batch_size: int) -> None:
        batch, other = self.there.sample(batch_size), self.twin.sample(batch_size)
        expected = {name: getattr(other, name).copy() for name in ("n", "x", "weight", "probability", "ticket")}
        self.reads.append(queue_check(self.cuda.current, batch, expected))
        self.batches = [*self.batches[-3:], (batch, other)]

    @precondition(lambda self: self.batches)
    @rule(data=st.data())
    def update(self, data: st.DataObject) -> None:
        batch, other = self.batches[data.draw(st.integers(0, len(self.batches) - 1))]
        p = np.array([data.draw(st.sampled_from([0.0, 0.5, 3.0])) for _ in range(len(batch))])
        done, expected = self.there.update_priorities(batch, self.cuda.tensor(p)), self.twin.update_priorities(other, p)
        applied, stale = done.applied, done.stale
        ran: list[bool] = []
        self.cuda.current.do(lambda: ran.append((int(applied), int(stale)) == expected))
        self.reads.append(ran)


TestInterleavings = Interleavings.TestCase
TestInterleavings.settings = settings(max_examples=100 if IS_LONG_FORM else 40, stateful_step_count=50)


class TestOnADevice:
    pytestmark = cuda_device

    def test_the_host_never_waits(self) -> None:
        there, _ = filled(exponential(500), alpha=0.6, beta=lambda calls: 1 / (1 + calls))
        for _ in range(5):
            batch = there.sample(64)
            there.update_priorities(batch, batch.x[:, 0])
        torch.cuda.synchronize()
        with the_host_never_waits():
            for _ in range(20):
                batch = there.sample(64)
                done = there.update_priorities(batch, batch.x[:, 0].abs())
        assert done == (64, 0)

    def test_other_dtypes_and_strides(self) -> None:
        there, twin = filled(np.ones(20))
        tickets = torch.arange(0, 20, 3, dtype=torch.int32, device=DEVICE)
        for dtype in (torch.float16, torch.bfloat16, torch.int32, torch.bool):
            p = torch.tensor([[3, 0, 1, 1, 2, 5, 4]] * 2, dtype=dtype, device=DEVICE).t()[:, 1]
            there.update_priorities(tickets, p)
            twin.update_priorities(tickets, p)
            assert_draw(found_in(there.sample(50)), expected_of(twin, 50))

    def test_masses_are_those_of_the_cpu(self) -> None:
        """Within the last bit of float32, over many decades."""
        p = np.geomspace(1e-20, 1e20, 4000)
        for alpha in (0.4, 0.6, 2.0):
            there, twin = filled(np.ones(4000), alpha=alpha, eps=1e-6)
            there.update_priorities(torch.arange(4000, device=DEVICE), torch.as_tensor(p, device=DEVICE))
            twin.update_priorities(np.arange(4000), p)
            found, expected = (each.__reduce__()[2]["masses"]["values"] for each in (there, twin))
            np.testing.assert_allclose(found, expected, rtol=2.5e-7)

    def test_a_large_ring(self) -> None:
        """Of five levels, filled in two laps; sums after thousands of updates are those of the CPU's tree."""
        there, twin = pair(200_000)
        random = np.random.default_rng(0)
        for first in (0, 150_000, 300_000):
            p = random.exponential(size=150_000) ** 3
            for each in (there, twin):
                each.extend(**rows(150_000, first), priority=p)
            batch, expected = there.sample(1000), expected_of(twin, 1000)
            assert_draw(found_in(batch), expected)
        for _ in range(200):
            batch, other = there.sample(256), twin.sample(256)
            p = random.exponential(size=256).astype(np.float32)
            there.update_priorities(batch, torch.as_tensor(p, device=DEVICE))
            twin.update_priorities(other, p)
        batch, expected = there.sample(5000), expected_of(twin, 5000)
        assert_draw(found_in(batch), expected)

    def test_threads_update_on_streams_of_their_own(self) -> None:
        there, _ = filled(np.ones(1000))
        wrong: list[object] = []

        def work() -> None:
            with torch.cuda.stream(torch.cuda.Stream()):  # type: ignore[no-untyped-call]
                for _ in range(50):
                    batch = there.sample(32)
                    done = there.update_priorities(batch, batch.weight)
                    if done != (32, 0):
                        wrong.append(done)

        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong

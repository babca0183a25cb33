# SPDX-License-Identifier: MIT
"""Draws by priority through Python: what is drawn how often, weights, updates, inserts, loaders, copies, forks."""

from __future__ import annotations

import copy
import os
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from stall import Thread
from support import NativeBuffer

import fastreplay as fr

FIELDS: dict[str, Any] = {"n": ((), "int64"), "x": (2,)}
OUTPUTS = ["numpy", "torch"]


def rows(count: int, first: int = 0) -> dict[str, Any]:
    n = np.arange(first, first + count)
    return {"n": n, "x": np.stack([n, -n], 1).astype(np.float32)}


def filled(priorities: Any, *, output: str = "numpy", capacity: int = 0, seed: int = 0, **rule: Any) -> Any:
    buffer = NativeBuffer(
        capacity or len(priorities), FIELDS, seed=seed, output=output, priorities=fr.Priorities(**rule)
    )
    buffer.extend(**rows(len(priorities)), priority=priorities)
    return buffer


def counts_of(buffer: Any, num_batches: int, batch_size: int = 100) -> Any:
    counts = np.zeros(buffer.capacity)
    for _ in range(num_batches):
        counts += np.bincount(buffer.sample(batch_size).numpy().n, minlength=buffer.capacity)
    return counts


def chi_square(counts: Any, expected: Any) -> float:
    drawn = expected > 0
    assert not counts[~drawn].any()
    return float(((counts - expected)[drawn] ** 2 / expected[drawn]).sum())


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("draws", ["stratified", "independent"])
@pytest.mark.parametrize(("alpha", "eps", "mix"), [(1.0, 0.0, 0.0), (0.6, 1e-6, 0.0), (0.5, 0.1, 0.3), (0.0, 0.0, 0.0)])
def test_draws_follow_the_priorities(output: str, draws: str, alpha: float, eps: float, mix: float) -> None:
    p = np.random.default_rng(1).exponential(size=200) * (np.arange(200) % 9 > 0)
    buffer = filled(p, output=output, alpha=alpha, eps=eps, uniform_mix=mix, draws=draws)
    mass = (p + eps) ** alpha
    expected = mix / 200 + (1 - mix) * mass / mass.sum()
    counts = counts_of(buffer, 2000)
    assert chi_square(counts, 200_000 * expected) < 200 + 6 * np.sqrt(2 * 200)
    batch = buffer.sample(64).numpy()
    np.testing.assert_allclose(batch.probability, expected[batch.n], rtol=1e-5)
    assert batch.probability.dtype == batch.weight.dtype == np.float32


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("normalize", ["batch", "buffer", None])
def test_weights(normalize: Any, beta: float) -> None:
    p = np.arange(1, 51) / 7
    buffer = filled(p, alpha=0.7, beta=beta, normalize=normalize)
    expected = (p + 1e-6) ** 0.7
    expected = (50 * expected / expected.sum()) ** -beta
    for _ in range(5):
        batch = buffer.sample(20)
        weight = expected[batch.n]
        weight /= {"batch": weight.max(), "buffer": expected.max(), None: 1.0}[normalize]
        np.testing.assert_allclose(batch.weight, weight, rtol=1e-5)
    np.testing.assert_allclose(buffer.sample(9, beta=0).weight, 1)


def test_beta_may_be_a_function_of_the_minibatches_drawn() -> None:
    seen: list[int] = []

    def beta(calls: int) -> float:
        seen.append(calls)
        return calls / 10

    buffer = filled(np.arange(1, 9), beta=beta)
    for calls in range(3):
        batch = buffer.sample(8)
        largest = (batch.probability.min() / batch.probability) ** (calls / 10)
        np.testing.assert_allclose(batch.weight, largest, rtol=1e-5)
    with buffer.loader(8, depth=2, steps=4) as loader:
        for calls, batch in enumerate(loader, 3):
            expected = (batch.probability.min() / batch.probability) ** (calls / 10)
            np.testing.assert_allclose(batch.weight, expected, rtol=1e-5)
    assert seen == [0, 1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("normalize", ["batch", "buffer", None])
def test_weights_where_nothing_has_a_mass(normalize: Any) -> None:
    buffer = filled(np.zeros(5), eps=0.0, normalize=normalize)
    assert (buffer.sample(20).weight == 1).all()


def test_lap_gives_no_weights_and_raises_small_priorities_to_one() -> None:
    buffer = NativeBuffer(4, FIELDS, seed=0, output="numpy", priorities=fr.Priorities.lap())
    buffer.extend(**rows(4), priority=[0.0, 0.5, 1.0, 32.0])
    batch = buffer.sample(1000)
    assert (batch.weight == 1).all()
    np.testing.assert_allclose(batch.probability[batch.n == 3], 4 / 7, rtol=1e-6)
    np.testing.assert_allclose(batch.probability[batch.n < 3], 1 / 7, rtol=1e-6)


def given_as(kind: str, values: list[float]) -> Any:
    import torch

    makers: dict[str, Any] = {
        "list": lambda: values,
        "float32": lambda: np.array(values, np.float32),
        "strided": lambda: np.repeat(values, 2)[::2],
        "tensor": lambda: torch.tensor(values),
        "graph": lambda: torch.tensor(values, requires_grad=True) * 1,
        "bfloat16": lambda: torch.tensor(values, dtype=torch.bfloat16),
        "integers": lambda: np.array(values, np.int64),
    }
    return makers[kind]()


@pytest.mark.parametrize("kind", ["list", "float32", "strided", "tensor", "graph", "bfloat16", "integers"])
@pytest.mark.parametrize("named_by", ["batch", "ticket", "list"])
def test_updates(kind: str, named_by: str) -> None:
    buffer = filled(np.ones(8), output="torch", alpha=1.0, eps=0.0)
    batch = buffer.gather([1, 3, 3, 6])
    named: Any = {"batch": batch, "ticket": batch.ticket, "list": batch.ticket.tolist()}[named_by]
    assert buffer.update_priorities(named, given_as(kind, [2.0, 9.0, -4.0, 0.0])) == (4, 0)
    expected = np.array([1, 2, 1, 4, 1, 1, 0, 1]) / 11  # the last wins, without its sign
    drawn = buffer.sample(500).numpy()
    np.testing.assert_allclose(drawn.probability, expected[drawn.n], rtol=1e-6)
    assert set(drawn.n) == {0, 1, 2, 3, 4, 5, 7}
    assert buffer.max_priority == 9


def test_stale_tickets_are_counted_and_change_nothing() -> None:
    buffer = filled(np.ones(10), alpha=1.0, eps=0.0, capacity=8)
    assert buffer.update_priorities(np.arange(10), np.full(10, 5.0)) == fr.PriorityUpdate(applied=8, stale=2)
    held = buffer.sample(6)
    buffer.clear()
    assert buffer.update_priorities(held, np.ones(6)) == (0, 6)
    buffer.extend(**rows(3, 10), priority=[1, 2, 3])
    assert buffer.update_priorities(held, np.ones(6)) == (0, 6)
    assert set(buffer.sample(100).n) == {10, 11, 12}


def test_new_transitions_get_the_largest_priority_so_far() -> None:
    buffer = NativeBuffer(16, FIELDS, seed=0, output="numpy", priorities=fr.Priorities(alpha=1.0, eps=0.5))
    assert buffer.max_priority == 1
    buffer.extend(**rows(2))
    buffer.update_priorities([0, 1], [7.5, 3.5])
    assert buffer.max_priority == 8
    buffer.add(n=2, x=[0, 0])
    buffer.max_priority = 2
    buffer.add(n=3, x=[0, 0])
    buffer.add(n=4, x=[0, 0], priority=0.5)
    batch = buffer.sample(400)
    np.testing.assert_allclose(batch.probability, np.array([8, 4, 8, 2, 1])[batch.n] / 23, rtol=1e-6)


def test_an_initial_priority() -> None:
    buffer = NativeBuffer(16, FIELDS, output="numpy", priorities=fr.Priorities(alpha=1.0, eps=0.0, initial=3))
    buffer.extend(**rows(2))
    buffer.update_priorities([0], [9.0])
    buffer.extend(**rows(1, 2))
    batch = buffer.sample(100)
    np.testing.assert_allclose(batch.probability, np.array([9, 3, 3])[batch.n] / 15, rtol=1e-6)


def test_what_has_no_priority_yet_is_not_drawn() -> None:
    buffer = NativeBuffer(16, FIELDS, output="numpy", priorities=fr.Priorities())
    buffer.extend(**rows(3), priority=None)
    buffer.add(n=3, x=[0, 0], priority=None)
    batch = buffer.sample(400)  # of these alone, any
    assert set(batch.n) == {0, 1, 2, 3}
    assert (batch.weight == 1).all()
    assert (batch.probability == 0.25).all()
    assert buffer.stats()["without_mass"] == 1
    buffer.update_priorities([2], [0.1])
    assert set(buffer.sample(100).n) == {2}
    assert buffer.stats()["without_mass"] == 1


def test_a_buffer_without_priorities_takes_a_field_of_that_name() -> None:
    buffer = NativeBuffer(4, {"priority": (), "weight": ()}, output="numpy")
    buffer.add(priority=1.0, weight=2.0)
    assert (buffer.sample(1).priority, buffer.sample(1).weight) == (1, 2)


@pytest.mark.parametrize("output", OUTPUTS)
def test_the_same_seed_gives_the_same_minibatches(output: str) -> None:
    def run(**other: Any) -> list[Any]:
        buffer = filled(np.arange(50), output=output, seed=3, **other)
        found = []
        for step in range(20):
            batch = buffer.sample(16)
            buffer.update_priorities(batch, np.arange(16) + step)
            found.append((batch.numpy().n.tolist(), batch.numpy().weight.tolist()))
        return found

    assert run() == run()
    assert run() != run(draws="independent")


@pytest.mark.parametrize("output", OUTPUTS)
def test_a_loader_yields_what_sample_would(output: str) -> None:
    one, other = filled(np.arange(50), output=output), filled(np.arange(50), output=output)
    with one.loader(16, depth=3, steps=10) as loader:
        for batch in loader:
            expected = other.sample(16).numpy()
            for name in ("n", "weight", "probability", "ticket"):
                np.testing.assert_array_equal(getattr(batch.numpy(), name), getattr(expected, name))


@pytest.mark.parametrize("output", OUTPUTS)
def test_out_is_written_with_its_weights(output: str) -> None:
    buffer, twin = filled(np.arange(50), output=output), filled(np.arange(50), output=output)
    out = buffer.sample(16)
    weight = out.weight
    assert buffer.sample(16, out=out) is out
    twin.sample(16)
    expected = twin.sample(16).numpy()
    np.testing.assert_array_equal(np.asarray(weight), expected.weight)
    np.testing.assert_array_equal(np.asarray(out.n), expected.n)


def test_conversions_keep_the_weights() -> None:
    import torch

    batch = filled(np.arange(50), output="torch").sample(16)
    for other in (batch.numpy(), batch.to(torch.float64), batch.to(copy=True), pickle.loads(pickle.dumps(batch))):
        np.testing.assert_array_equal(np.asarray(other.weight), batch.weight.numpy())
        np.testing.assert_array_equal(np.asarray(other.probability), batch.probability.numpy())
    assert batch.to(torch.float64).weight.dtype == torch.float32
    assert "weight" in dir(batch)
    assert list(batch.keys()) == ["n", "x"]
    assert len(list(batch)) == 2


@pytest.mark.parametrize("again", [copy.deepcopy, lambda buffer: pickle.loads(pickle.dumps(buffer))])
@pytest.mark.parametrize("capacity", [60, 33])
def test_copies_go_on_with_the_same_minibatches(again: Any, capacity: int) -> None:
    buffer = filled(np.arange(50.0) ** 2, capacity=capacity, beta=0.7)
    for _ in range(5):
        buffer.update_priorities(buffer.sample(8), np.arange(8))
    other = again(buffer)
    assert other.max_priority == buffer.max_priority
    for _ in range(5):
        one, two = buffer.sample(16), other.sample(16)
        for name in ("n", "weight", "probability", "ticket"):
            np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
        assert buffer.update_priorities(one, one.n) == other.update_priorities(two, two.n) == (16, 0)
        buffer.extend(**rows(3))
        other.extend(**rows(3))


def test_a_minibatch_knows_which_buffer_it_is_of() -> None:
    buffer = filled(np.arange(20))
    batch = buffer.sample(4)
    other = pickle.loads(pickle.dumps(buffer))
    with pytest.raises(ValueError, match="another"):
        other.update_priorities(batch, np.ones(4))
    assert other.update_priorities(batch.ticket, np.ones(4)) == (4, 0)  # bare tickets are the caller's business
    there_and_back = pickle.loads(pickle.dumps(batch))
    assert buffer.update_priorities(there_and_back, np.ones(4)) == (4, 0)
    assert buffer.spawn(1)[0].update_priorities(batch, np.ones(4)) == (4, 0)


@pytest.mark.parametrize("output", OUTPUTS)
def test_a_minibatch_of_a_buffer_without_priorities_is_anothers(output: str) -> None:
    """Its tickets are of other transitions; drawn, read by slot or by age, copied."""
    buffer = filled(np.arange(20), output=output)
    plain = NativeBuffer(20, FIELDS, seed=0, output=output, lanes=1, ends=())
    plain.extend(**rows(20))
    drawn = plain.sample(4)
    others = [drawn, plain.sample(4, follow=fr.Sequence(2)), plain.gather([1] * 4), plain[3:7], drawn.numpy()]
    largest = buffer.max_priority
    for each in [*others, copy.deepcopy(drawn), pickle.loads(pickle.dumps(drawn)), next(iter(plain.loader(4)))]:
        with pytest.raises(ValueError, match="expected a minibatch of this buffer, got one of another"):
            buffer.update_priorities(each, np.full(4, 1e6))
    assert buffer.max_priority == largest


def test_faces_share_the_priorities() -> None:
    buffer = filled(np.ones(20), alpha=1.0, eps=0.0)
    face = buffer.spawn(1)[0]
    face.update_priorities(np.arange(20), np.arange(20) == 7)
    assert set(buffer.sample(100).n) == set(face.sample(100).n) == {7}


def test_damaged_masses_are_refused() -> None:
    buffer = filled(np.arange(5))
    _, _, state = buffer.__reduce__()
    fresh = NativeBuffer(5, FIELDS, output="numpy", priorities=fr.Priorities())
    for damage in ({"values": np.ones(5)}, {"values": -np.ones(5, np.float32)}, {"first": -1}, {"largest": np.nan}):
        with pytest.raises(ValueError, match="masses"):
            fresh.__setstate__({**state, "masses": {**state["masses"], **damage}})
        assert len(fresh) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_child_draws_and_updates_whatever_its_parent_was_doing() -> None:
    buffer = filled(np.ones(2000), capacity=1000)
    stop = False

    def storm() -> None:
        while not stop:
            buffer.update_priorities(buffer.sample(64), np.arange(64))
            buffer.extend(**rows(50))

    threads = [Thread(storm) for _ in range(2)]
    try:
        for _ in range(20):
            pid = os.fork()
            if pid == 0:
                batch = buffer.sample(64)
                assert buffer.update_priorities(batch, np.zeros(64)).applied == 64
                buffer.extend(**rows(10))
                os._exit(0 if buffer.sample(64).weight.max() == 1 else 1)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    finally:
        stop = True
        for thread in threads:
            thread.finish()


def test_memory_beyond_a_uniform_buffer() -> None:
    capacity = 100_000
    plain = NativeBuffer(capacity, FIELDS)
    weighed = NativeBuffer(capacity, FIELDS, priorities=fr.Priorities())
    assert (weighed.stats()["bytes"] - plain.stats()["bytes"]) / capacity <= 10


@pytest.mark.parametrize("gathers", [False, True])
@pytest.mark.parametrize("output", OUTPUTS)
def test_a_minibatch_is_of_the_buffer_that_filled_it_last(output: str, *, gathers: bool) -> None:
    """Also in arrays of the same memory; what was copied before stays what it was."""
    first, second = (filled(np.arange(10), output=output, seed=i) for i in range(2))
    errors = np.ones(8)
    batch = first.gather([1] * 8) if gathers else first.sample(8)
    same, moved = batch.numpy(), batch.to(torch.float64) if output == "torch" else copy.deepcopy(batch)
    if gathers:
        second.gather([2] * 8, out=batch)
    else:
        second.sample(8, out=batch)
    for each in (batch, same, pickle.loads(pickle.dumps(batch))):
        assert second.update_priorities(each, errors) == (8, 0)
        with pytest.raises(ValueError, match="another"):
            first.update_priorities(each, errors)
    assert first.update_priorities(moved, errors) == (8, 0)
    with pytest.raises(ValueError, match="another"):
        second.update_priorities(moved, errors)
    again = pickle.loads(pickle.dumps(second))
    if not gathers:
        assert again.update_priorities(again.sample(8, out=batch), errors) == (8, 0)


def test_priorities_at_insert_may_be_of_graphs_and_other_dtypes() -> None:
    buffer = NativeBuffer(20, FIELDS, seed=0, output="numpy", priorities=fr.Priorities(alpha=1, eps=0))
    buffer.extend(**rows(2), priority=torch.tensor([1.0, 3.0], requires_grad=True))
    buffer.extend(**rows(2, 2), priority=torch.tensor([1.0, 3.0], dtype=torch.bfloat16))
    drawn = buffer.sample(400)
    found = dict(zip(drawn.ticket.tolist(), drawn.probability.tolist(), strict=True))
    assert found == pytest.approx({0: 1 / 8, 1: 3 / 8, 2: 1 / 8, 3: 3 / 8})
    for masked in (np.ma.masked_array([1.0, 7.0], [False, True]),):
        with pytest.raises(ValueError, match="priority: expected numbers, got masked entries"):
            buffer.extend(**rows(2), priority=masked)
        with pytest.raises(ValueError, match="priorities: expected numbers, got masked entries"):
            buffer.update_priorities([0, 1], masked)
    with pytest.raises(TypeError, match="priorities: expected numbers, got a tensor on meta"):
        buffer.update_priorities([0], torch.ones(1, device="meta"))
    assert buffer.max_priority == 3

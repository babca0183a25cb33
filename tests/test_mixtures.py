# SPDX-License-Identifier: MIT
"""Mixtures: one minibatch of several buffers is what these draw, one after the other, in one block."""

from __future__ import annotations

import copy
import pickle
import signal
import threading
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from support import NativeBuffer, handling

import fastreplay as fr
from fastreplay import _core
from fastreplay.batch.shares import Shares
from fastreplay.buffer import workers

if TYPE_CHECKING:
    from fake_cuda import FakeCuda

Mixture: Any = fr.Mixture
FIELDS: dict[str, Any] = {"observation": (3,), "action": ((), "int64"), "reward": (), "terminated": ((), "bool")}


def make(count: int, seed: int, *, capacity: int = 100, fields: Any = FIELDS, **options: Any) -> Any:
    """Make a buffer whose rewards say which it is: 1000 * seed + ticket."""
    options = {"output": "numpy", "lanes": 2, **options}
    buffer = NativeBuffer(capacity, fields, seed=seed, **options)
    for t in range(0, count, 2):
        tickets = np.arange(t, min(t + 2, count))
        rows = {
            "observation": np.ones((len(tickets), 3)) * tickets[:, None],
            "action": tickets,
            "reward": 1000 * seed + tickets,
        }
        lanes = {} if options["lanes"] is None else {"lanes": np.arange(len(tickets))}
        buffer.extend(**{**rows, "terminated": tickets % 7 == 3}, **lanes)
    return buffer


def parts(batch: Any) -> dict[str, Any]:
    """Copy what a minibatch has, by name."""
    named = {**dict(batch.items()), **batch._beside, "ticket": batch.ticket}
    return {name: np.array(value.cpu().numpy() if hasattr(value, "cpu") else value) for name, value in named.items()}


def together(batches: Any) -> dict[str, Any]:
    """Put minibatches together, one after the other."""
    all_of = [parts(batch) for batch in batches]
    put: dict[str, Any] = {}
    for name in all_of[0]:
        axis = (
            1
            if name in batches[0]._beside.time_major or getattr(batches[0], name).shape[:1] != (len(batches[0]),)
            else 0
        )
        put[name] = np.concatenate([each[name] for each in all_of], axis)
    return put


def assert_is(batch: Any, expected: dict[str, Any], counts: Any) -> None:
    got = parts(batch)
    np.testing.assert_array_equal(got.pop("source"), np.repeat(np.arange(len(counts)), counts))
    for name, value in expected.items():
        np.testing.assert_array_equal(got.pop(name), value, err_msg=name)
    assert got == {}


FOLLOWS: dict[str, Any] = {
    "transitions": None,
    "n steps": fr.NStep(3, 0.9),
    "sequences": fr.Sequence(4, burn_in=1, incomplete="pad"),
    "steps first": fr.Sequence(4, burn_in=1, incomplete="pad", time_major=True),
    "complete ones": fr.Sequence(3, time_major=True, incomplete="redraw"),
    "windows": fr.Window({"observation": (-2, 1)}, incomplete="pad"),
}
DRAWS: dict[str, Any] = {
    "uniform": fr.Uniform(),
    "newest": fr.Uniform(newest_of=20),
    "trajectories": fr.Uniform(over="trajectories"),
    "priorities": fr.Prioritized(),
}


@pytest.mark.parametrize("follow", FOLLOWS)
@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("output", ["numpy", "torch"])
def test_it_is_what_its_members_draw_one_after_the_other(follow: str, draw: str, output: str) -> None:
    buffers = [make(61, seed, output=output, priorities=fr.Priorities()) for seed in (1, 2, 3)]
    for buffer in buffers:
        buffer.update_priorities(np.arange(61), np.arange(61) % 5 + 1)
    samplers, twins = (
        [b.sampler(draw=DRAWS[draw], follow=FOLLOWS[follow], seed=i) for i, b in enumerate(buffers)] for _ in range(2)
    )
    mixture = Mixture(dict(zip(samplers, (2, 1, 1), strict=True)))
    out = None
    for k in range(4):
        counts = (32, 16, 16) if k < 3 else (4, 2, 2)
        alone = [twin.sample(n) for twin, n in zip(twins, counts, strict=True)]
        batch = mixture.sample(sum(counts), out=out if k == 2 else None)
        assert_is(batch, together(alone), counts)
        if k == 2:
            assert batch is out
        out = batch


def test_members_alone_have_weights_and_others_the_weight_1() -> None:
    weighed, plain = make(50, 1, priorities=fr.Priorities()), make(50, 2)
    weighed.update_priorities(np.arange(50), np.arange(50) + 1)
    twin = pickle.loads(pickle.dumps(weighed))
    mixture = Mixture({plain: 0.5, weighed: 0.5})
    for beta in (None, 0.7):
        batch, alone = mixture.sample(32, beta=beta), twin.sample(16, beta=beta)
        np.testing.assert_array_equal(batch.weight[:16], 1)
        np.testing.assert_array_equal(batch.weight[16:], alone.weight)
        np.testing.assert_array_equal(batch.ticket[16:], alone.ticket)
        assert not hasattr(batch, "probability")
    both = Mixture({weighed: 1, make(9, 3, priorities=fr.Priorities()): 1}).sample(8)
    np.testing.assert_allclose(both.probability[4:], 1 / 9, rtol=1e-6)
    with pytest.raises(ValueError, match="no member draws by priority"):
        Mixture({plain: 1}).sample(4, beta=0.5)


def test_different_follows_of_one_form() -> None:
    near, far = (b.sampler(follow=fr.NStep(n, 0.9), seed=1) for b, n in ((make(60, 1), 1), (make(60, 2), 9)))
    twins = [s.buffer.sampler(follow=s.follow, seed=1) for s in (near, far)]
    batch = Mixture({near: 1, far: 3}).sample(64)
    assert_is(batch, together([twins[0].sample(16), twins[1].sample(48)]), (16, 48))


def test_windows_of_one_form_that_reach_otherwise() -> None:
    rules = [fr.Window({"observation": (before, 1)}, incomplete="pad") for before in (-7, -1)]
    samplers, twins = ([make(60, i).sampler(follow=rule, seed=1) for i, rule in enumerate(rules)] for _ in range(2))
    batch = Mixture(dict.fromkeys(samplers, 1)).sample(32)
    assert_is(batch, together([twin.sample(16) for twin in twins]), (16, 16))


# Shares.


@pytest.mark.parametrize("given", [(1, 1), (1, 2), (0.1, 0.9), (1, 1, 1), (0.2, 0.3, 0.5), (0, 1), (1, 0, 3), (5,)])
@pytest.mark.parametrize("sizes", [(256,), (1,), (7, 100, 3)])
def test_exact_shares_are_so_after_any_number_of_rows(given: Any, sizes: Any) -> None:
    shares = Shares(given, len(given))
    rows, so_far = 0, np.zeros(len(given))
    for k in range(500):
        size = sizes[k % len(sizes)]
        counts = shares.exact(rows, size)
        assert sum(counts) == size
        assert all(count >= 0 for count in counts)
        assert all(count == 0 for count, share in zip(counts, given, strict=True) if share == 0)
        wanted = np.array(given) / sum(given) * size
        if (wanted == np.round(wanted)).all():
            assert counts == wanted.tolist()
        assert np.abs(counts - wanted).max() < (1 if len(given) < 3 else 2)
        rows, so_far = rows + size, so_far + counts
        assert np.abs(so_far - np.array(given) / sum(given) * rows).max() <= (0.5 if len(given) < 3 else 2)


def test_a_third_of_256_is_one_in_three_minibatches_more() -> None:
    members = [make(20, i) for i in (1, 2, 3)]
    mixture = Mixture(dict.fromkeys(members, 1 / 3))
    counts = [np.bincount(mixture.sample(256).source, minlength=3) for _ in range(3)]
    assert np.sum(counts, axis=0).tolist() == [256, 256, 256]


def test_expected_shares_are_multinomial_and_seeded() -> None:
    members = [make(20, i) for i in (1, 2, 3)]
    one, same, other = (Mixture(dict(zip(members, (5, 0, 3), strict=True)), exact=False, seed=s) for s in (4, 4, 5))
    counts = np.array([np.bincount(one.sample(64).source, minlength=3) for _ in range(400)])
    again = np.array([np.bincount(same.sample(64).source, minlength=3) for _ in range(400)])
    assert (counts == again).all()
    assert (counts != [np.bincount(other.sample(64).source, minlength=3) for _ in range(400)]).any()
    assert not counts[:, 1].any()
    assert abs(counts[:, 0].mean() - 40) < 4 * np.sqrt(64 * 0.625 * 0.375 / 400)
    assert abs(counts[:, 0].var() / (64 * 0.625 * 0.375) - 1) < 0.3
    batch = one.sample(64)
    assert (np.diff(batch.source) >= 0).all()
    # As NumPy's Philox gives the words of this call.
    key, rows = one.rng_state["key"], one.rng_state["calls"]
    words = np.random.Philox(key=key, counter=[0, rows, 0, 0]).random_raw(64)
    assert np.bincount(one.sample(64).source, minlength=3)[0] == (words < np.uint64(int(5 * 2**64 / 8))).sum()


def test_shares_change_between_calls() -> None:
    a, b = make(20, 1), make(20, 2)
    mixture = Mixture({a: 1, b: 1})
    assert mixture.shares == (0.5, 0.5)
    assert np.bincount(mixture.sample(8, shares=(3, 1)).source).tolist() == [6, 2]
    assert np.bincount(mixture.sample(8).source).tolist() == [4, 4]
    mixture.shares = [0, 2]
    assert mixture.shares == (0, 1)
    assert mixture.sample(8).source.tolist() == [1] * 8
    assert mixture.members == (a, b)
    assert mixture.exact
    assert repr(mixture).startswith("Mixture(0 of ReplayBuffer(20 of 100 ")


@pytest.mark.parametrize(
    "shares", [(1,), (1, 2, 3), (-1, 2), (0, 0), (float("nan"), 1), (float("inf"), 1), 3, "ab", (None, 1)]
)
def test_no_such_shares(shares: Any) -> None:
    mixture = Mixture({make(20, 1): 1, make(20, 2): 3})
    for refuse in (lambda: mixture.sample(4, shares=shares), lambda: setattr(mixture, "shares", shares)):
        with pytest.raises((TypeError, ValueError), match="shares"):
            refuse()
    assert mixture.shares == (0.25, 0.75)
    assert mixture.rng_state["calls"] == 0


# What is refused.


def test_an_empty_member_is_named_and_nothing_has_changed() -> None:
    full, empty = make(20, 1), make(0, 2)
    mixture = Mixture({full: 0.5, empty: 0.5})
    out = Mixture({full: 1, make(9, 5): 1}).sample(7)
    before = parts(out)
    state = mixture.rng_state
    for batch in (None, out):
        with pytest.raises(ValueError, match="sample: member 1: the buffer is empty"):
            mixture.sample(7, out=batch)
    assert mixture.rng_state == state
    for name, value in parts(out).items():
        np.testing.assert_array_equal(value, before[name])
    with mixture.loader(7) as loader:
        with pytest.raises(ValueError, match="member 1: the buffer is empty"):
            next(loader)
        empty.extend(make(4, 9)[:], lanes=[0, 1, 0, 1])
        assert next(loader).source.tolist() == [0] * 4 + [1] * 3
    mixture.shares = (1, 0)
    empty.clear()
    assert mixture.sample(5).source.tolist() == [0] * 5


def test_windows_that_are_not_complete() -> None:
    follow = fr.Sequence(5, incomplete="redraw")
    one, other = make(40, 1, ends=()), make(4, 2, ends=())
    mixture = Mixture({b.sampler(follow=follow): 1 for b in (one, other)})
    out = Mixture({one.sampler(follow=follow): 1}).sample(8)
    before = parts(out)
    for given in (None, out):
        with pytest.raises(ValueError, match="member 1: no window of 5 steps is complete"):
            mixture.sample(8, out=given)
    for name, value in parts(out).items():  # though member 0 had drawn
        np.testing.assert_array_equal(value, before[name], err_msg=name)
    with mixture.loader(8) as loader, pytest.raises(ValueError, match="member 1: no window of 5 steps"):
        next(loader)
    assert mixture.rng_state["calls"] == 24  # of what the loader is to give


UNLIKE: dict[str, tuple[str, Any]] = {
    "dtype": (
        r"reward: expected \(\) float32 in the minibatches of member 1, as of member 0, got \(\) float64",
        lambda: make(4, 2, fields={**FIELDS, "reward": ((), "float64")}),
    ),
    "shape": (
        r"observation: expected \(3,\) float32",
        lambda: NativeBuffer(4, {**FIELDS, "observation": (4,)}, output="numpy"),
    ),
    "less": (
        "terminated: expected .* got none",
        lambda: NativeBuffer(4, dict(list(FIELDS.items())[:-1]), output="numpy"),
    ),
    "more": ("more: expected none", lambda: NativeBuffer(4, {**FIELDS, "more": ()}, output="numpy")),
    "order": ("same order", lambda: NativeBuffer(4, dict(reversed(FIELDS.items())), output="numpy")),
    "output": ("output: expected 'numpy' of member 1, as of member 0, got 'torch'", lambda: make(4, 2, output="torch")),
    "follow": (r"discount: expected none", lambda: make(4, 2).sampler(follow=fr.NStep(3, 0.9))),
    "steps": (
        r"observation: expected \(3,\) float32 .* got \(3, 3\)",
        lambda: make(4, 2).sampler(follow=fr.Sequence(3)),
    ),
}


@pytest.mark.parametrize("kind", UNLIKE)
def test_members_that_are_not_alike(kind: str) -> None:
    message, other = UNLIKE[kind]
    with pytest.raises(ValueError, match=message):
        Mixture({make(4, 1): 1, other(): 1})


def test_steps_first_and_last_are_not_alike() -> None:
    first, last = (make(9, i).sampler(follow=fr.Sequence(3, time_major=i == 1)) for i in (1, 2))
    with pytest.raises(ValueError, match="with steps first"):
        Mixture({last: 1, first: 1})


@pytest.mark.parametrize("members", [{}, [], None, 5, {"a": 1}, {5: 1}])
def test_no_such_members(members: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="members"):
        Mixture(members)


def test_a_field_of_the_name_of_the_source() -> None:
    buffer = NativeBuffer(4, {"source": ()}, output="numpy")
    with pytest.raises(ValueError, match="source: a field has this name"):
        Mixture({buffer: 1})


def test_out_of_another_form() -> None:
    a, b = make(20, 1), make(20, 2)
    mixture = Mixture({a: 1, b: 1})
    for out in (a.sample(8), mixture.sample(7), Mixture({make(3, 3, priorities=fr.Priorities()): 1}).sample(8), 5):
        with pytest.raises((TypeError, ValueError), match="out"):
            mixture.sample(8, out=out)
    with pytest.raises(ValueError, match="out"):
        a.sample(8, out=mixture.sample(8))


# Priorities.


def test_priorities_go_to_their_buffers() -> None:
    rule = fr.Priorities(alpha=1, eps=0)
    a, plain, b = make(30, 1, priorities=rule), make(30, 2), make(30, 3, priorities=rule)
    mixture = Mixture({a: 1, plain: 1, b: 1})
    batch = mixture.sample(60)
    errors = np.arange(60.0) + 1
    assert mixture.update_priorities(batch, errors) == (40, 0)
    for i, buffer in ((0, a), (2, b)):
        expected = np.ones(30, np.float32)
        for ticket, error in zip(batch.ticket[batch.source == i], errors[batch.source == i], strict=True):
            expected[ticket] = error
        np.testing.assert_array_equal(buffer._masses.read(0, 30), expected)
    b.clear()
    assert mixture.update_priorities(batch, torch.ones(60)) == (20, 20)


def test_priorities_of_sequences() -> None:
    buffers = [make(40, i, priorities=fr.Priorities()) for i in (1, 2)]
    for time_major in (False, True):
        follow = fr.Sequence(4, incomplete="pad", time_major=time_major)
        mixture = Mixture({b.sampler(follow=follow): 1 for b in buffers})
        batch = mixture.sample(10)
        assert mixture.update_priorities(batch, np.ones(batch.mask.shape)).applied == 10


def test_priorities_that_are_refused_have_changed_nothing() -> None:
    a, b = (make(30, i, priorities=fr.Priorities()) for i in (1, 2))
    mixture = Mixture({a: 1, b: 1})
    batch, other = mixture.sample(8), Mixture({a: 1, b: 1}).sample(8)
    before = [each._masses.read(0, 30) for each in (a, b)]
    hostile = mixture.sample(8)
    hostile.ticket[-1] = 10**6
    calls: Any = (
        lambda: mixture.update_priorities(batch, [1] * 7),
        lambda: mixture.update_priorities(batch, [1] * 7 + [np.nan]),
        lambda: mixture.update_priorities(batch, np.ones((8, 2))),
        lambda: mixture.update_priorities(batch, "text"),
        lambda: mixture.update_priorities(other, [1] * 8),
        lambda: mixture.update_priorities(a.sample(8), [1] * 8),
        lambda: mixture.update_priorities(np.arange(8), [1] * 8),
        lambda: mixture.update_priorities(hostile, [1] * 8),
        lambda: a.update_priorities(batch, [1] * 8),  # whose tickets are of two buffers
        lambda: Mixture({make(3, 1): 1}).update_priorities(batch, [1] * 8),
    )
    for call in calls:
        with pytest.raises((TypeError, ValueError)):
            call()
    held = [each._masses for each in (a, b)]
    b.close()
    with pytest.raises(RuntimeError, match="update_priorities: the ReplayBuffer was closed"):
        mixture.update_priorities(batch, [2] * 8)
    for each, masses in zip(held, before, strict=True):
        np.testing.assert_array_equal(each.read(0, 30), masses)


# Loaders, states, copies.


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("follow", [None, fr.Sequence(3, time_major=True, incomplete="pad")])
def test_a_loader_gives_what_sample_in_a_loop_would(exact: bool, follow: Any) -> None:
    a, b = make(40, 1, priorities=fr.Priorities()), make(40, 2)
    mixture = Mixture({a.sampler(follow=follow, seed=1): 2, b.sampler(follow=follow, seed=2): 1}, exact=exact, seed=3)
    twin = copy.deepcopy(mixture)
    with mixture.loader(10, depth=3, steps=8) as loader:
        batches = []
        for k, batch in enumerate(loader):
            batches.append(parts(batch))
            if k < 4:
                state = loader.rng_state
            if k == 3:
                kept = state
    for batch in batches:
        for name, value in parts(twin.sample(10)).items():
            np.testing.assert_array_equal(batch[name], value, err_msg=name)
    assert len(batches) == 8
    mixture.rng_state = kept
    for batch in batches[4:]:
        np.testing.assert_array_equal(mixture.sample(10).ticket, batch["ticket"])


def test_a_state_repeats_what_came_from_there() -> None:
    a, b = make(40, 1), make(40, 2)
    mixture = Mixture({a: 1, b.sampler(draw=fr.Epochs()): 2}, exact=False, seed=1)
    mixture.sample(9)
    state = pickle.loads(pickle.dumps(mixture.rng_state))
    expected = [parts(mixture.sample(9)) for _ in range(9)]
    mixture.rng_state = state
    for each in expected:
        got = parts(mixture.sample(9))
        assert all((got[name] == each[name]).all() for name in each)
    for wrong in (
        None,
        {},
        {**state, "members": state["members"][:1]},
        {**state, "calls": -1},
        {**state, "key": [1]},
        {**state, "members": [{}, {}]},
    ):
        with pytest.raises(ValueError, match="rng_state"):
            mixture.rng_state = wrong


def test_epochs_run_on_within_a_share() -> None:
    whole, online = make(10, 1), make(30, 2)
    mixture = Mixture({whole.sampler(draw=fr.Epochs(), seed=1): 1, online: 1})
    seen: Counter[int] = Counter()
    for _ in range(5):
        batch = mixture.sample(12)
        assert len(batch) == 12
        seen.update(batch.ticket[:6].tolist())
    assert set(seen.values()) == {3}
    with mixture.loader(12, steps=5) as loader:
        for batch in loader:
            assert batch.source.tolist() == [0] * 6 + [1] * 6
            seen.update(batch.ticket[:6].tolist())
    assert set(seen.values()) == {6}
    few = Mixture({online: 1, whole.sampler(draw=fr.Epochs(drop_last=True)): 3})
    state = few.rng_state
    with pytest.raises(ValueError, match="member 1: 10 transitions are fewer than 15"):
        few.sample(20)
    assert few.rng_state == state


def test_copies_go_on_alike() -> None:
    a, b = make(40, 1), make(40, 2, priorities=fr.Priorities())
    mixture = Mixture({a: 1 / 3, b.sampler(draw=fr.Uniform(newest_of=9)): 2 / 3}, exact=False, seed=5)
    mixture.sample(5)
    for copied in (pickle.loads(pickle.dumps(mixture)), copy.deepcopy(mixture)):
        assert copied.shares == mixture.shares
        assert not copied.exact
        state = mixture.rng_state
        for _ in range(3):
            np.testing.assert_array_equal(copied.sample(7).reward, mixture.sample(7).reward)
        with pytest.raises(ValueError, match="another's"):
            copied.update_priorities(mixture.sample(4), [1] * 4)
        mixture.rng_state = state
    kept = pickle.loads(pickle.dumps((mixture, a)))
    assert kept[0].members[0] is kept[1]


def test_workers_draw_other_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = make(40, 1), make(40, 2)
    mixture = Mixture({a: 1, b: 1}, exact=False, seed=5)
    monkeypatch.setattr(workers, "keyed", [a, b, mixture])  # not what other tests left
    before = mixture.rng_state
    fr.worker_init_fn(3)
    after = mixture.rng_state
    assert after["key"] != before["key"]
    assert all(x["key"] != y["key"] for x, y in zip(after["members"], before["members"], strict=True))


# Memory, threads, signals.


def test_a_minibatch_is_its_holders_until_it_goes() -> None:
    mixture = Mixture({make(40, 1, output="torch"): 1, make(40, 2, output="torch"): 1})
    held = [mixture.sample(16) for _ in range(50)]
    rewards = [batch.reward.clone() for batch in held]
    for _ in range(50):
        mixture.sample(16)
    for batch, reward in zip(held, rewards, strict=True):
        assert torch.equal(batch.reward, reward)
    assert batch.source.dtype == torch.int64
    assert torch.equal(batch.to("cpu", torch.float64).source, batch.source)
    assert batch.numpy().source.tolist() == batch.source.tolist()


def test_threads_draw_while_others_insert() -> None:
    buffers = [make(40, i, lanes=None) for i in (1, 2)]
    mixture = Mixture(dict.fromkeys(buffers, 1))
    stop = threading.Event()
    errors: list[Exception] = []

    def insert(number: int) -> None:
        while not stop.is_set():
            rows = {"observation": np.zeros((5, 3)), "action": np.zeros(5, int), "terminated": np.zeros(5, bool)}
            buffers[number].extend(reward=np.full(5, 1000 * (number + 1)), **rows)

    def draw() -> None:
        out = mixture.sample(32)
        try:
            with mixture.loader(32, steps=100) as loader:
                for k, ahead in enumerate(loader):
                    for batch in (ahead, mixture.sample(32, out=out), mixture.sample(2 + k % 7)):
                        assert (batch.reward // 1000 == batch.source + 1).all()
        except Exception as error:  # noqa: BLE001 - it is looked at below
            errors.append(error)

    threads = [threading.Thread(target=insert, args=(i,)) for i in (0, 1)] + [
        threading.Thread(target=draw) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads[2:]:
        thread.join()
    stop.set()
    for thread in threads[:2]:
        thread.join()
    assert errors == []
    assert mixture.rng_state["calls"] == sum(32 + 100 * 64 + sum(2 + k % 7 for k in range(100)) for _ in range(3))


def test_an_interrupt_within_leaves_it_usable() -> None:
    mixture = Mixture({make(40, 1): 1, make(40, 2): 1})

    class InterruptedHereError(Exception):
        pass

    def raise_it(*_: Any) -> None:
        raise InterruptedHereError

    with handling(signal.SIGALRM, raise_it):
        for k in range(200):
            with suppress(InterruptedHereError):
                signal.setitimer(signal.ITIMER_REAL, 1e-5 * (k % 20 + 1))
                while True:
                    assert mixture.sample(32).source.sum() == 16
    assert np.bincount(mixture.sample(32).source).tolist() == [16, 16]


def test_minibatches_for_a_device(cuda: FakeCuda) -> None:
    here = [make(40, i, output="torch") for i in (1, 2)]
    there = [make(40, i, output="torch", device="cuda:0") for i in (1, 2)]
    mixture, twin = Mixture(dict.fromkeys(there, 1)), Mixture(dict.fromkeys(here, 1))
    batch = out = mixture.sample(8)
    expected = twin.sample(8)
    cuda.run_all()
    np.testing.assert_array_equal(batch.numpy().reward, expected.numpy().reward)
    np.testing.assert_array_equal(batch.numpy().source, expected.numpy().source)
    mixture.sample(8, out=out)
    cuda.run_all()
    np.testing.assert_array_equal(out.numpy().reward, twin.sample(8).numpy().reward)
    with mixture.loader(8, steps=3) as loader:
        for batch in loader:
            cuda.run_all()
            np.testing.assert_array_equal(batch.numpy().reward, twin.sample(8).numpy().reward)
    with pytest.raises(ValueError, match="device: expected 'cuda:0' of member 1, as of member 0, got 'cpu'"):
        Mixture({there[0]: 1, here[0]: 1})


def test_a_share_of_a_block_is_checked() -> None:
    buffer = NativeBuffer(4, {"x": (3,)}, output="numpy")
    share = _core.BlockShare(_core.transition_parts(buffer.schema.sizes), [0, 1])
    block = _core.Block(_core.transition_parts(buffer.schema.sizes), 8)
    for first, count in ((0, 9), (9, 0), (8, 1), (2**63, 2**63), (1, 2**64 - 1)):
        with pytest.raises(ValueError, match="no such rows"):
            share.of(block, first, count)
    with pytest.raises(ValueError, match="no such rows"):
        share.of(share.of(block, 0, 4), 0, 2)
    for places in ([0], [0, 2], [1, 0]):
        with pytest.raises(ValueError, match=r"rows|room"):
            _core.BlockShare(_core.transition_parts(buffer.schema.sizes), places).of(block, 0, 1)
    marked = _core.Block([*_core.transition_parts(buffer.schema.sizes), (_core.PART_MADE, 8, 0, _core.AS_STORED)], 8)
    for first, count, part in ((0, 9, 2), (9, 0, 2), (1, 2**64 - 1, 2), (0, 1, 3), (0, 1, 0), (0, 1, -1)):
        with pytest.raises(ValueError, match="no such"):
            _core.mark_shares(marked, [(0, first, count, True)], part, -1)
    sampler = _core.Sampler((1, 2))
    for draw in ((0, buffer._ring, None, share), (0, buffer._ring, sampler, None), (0, buffer, sampler, share)):
        with pytest.raises((TypeError, RuntimeError)):
            _core.sample_shares(marked, [(*draw, 0, 1, 0.0)], 2, -1)

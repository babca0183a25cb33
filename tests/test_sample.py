# SPDX-License-Identifier: MIT
"""sample: its exact draws, its uniformity, its seeding, and out=."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from reference import ReferenceBuffer, draw, seed_key
from scipy import stats
from support import FIELDS, MakeBuffer, NativeBuffer, arrays, assert_holds, assert_same, fill, unchanged

import fastreplay as fr

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

FILLS: dict[str, Callable[[Any], Any]] = {  # of a buffer with capacity 100
    "one row": lambda b: fill(b, 1),
    "two rows": lambda b: fill(b, 2),
    "part full": lambda b: fill(b, 37),
    "exactly full": lambda b: fill(b, 100),
    "several laps": lambda b: fill(b, 317),
    "one long extend": lambda b: fill(b, 1234, chunk=1234),
    "after clear": lambda b: (fill(b, 317), b.clear(), fill(b, 41)),
}


@pytest.mark.parametrize("batch_size", [1, 2, 31, 64, 1000, 5000])
@pytest.mark.parametrize("state", FILLS)
def test_exact_draws(make_buffer: MakeBuffer, state: str, batch_size: int) -> None:
    """The definition, written out: Philox words of the call, Lemire's bound, oldest first."""
    buffer = make_buffer(100, seed=12)
    FILLS[state](buffer)
    key = np.random.SeedSequence(12).generate_state(2, np.uint64)
    head, size = buffer.stats()["inserted"], len(buffer)
    for call in range(3):
        words = np.random.Philox(key=key, counter=[0, call, 0, 0]).random_raw(batch_size)
        index = [int(word) * size >> 64 for word in words]  # a redraw has odds of 2**-57
        batch = buffer.sample(batch_size)
        assert_holds(batch, head - size + np.array(index))
        assert len(batch) == batch_size


@pytest.mark.parametrize("state", FILLS)
def test_the_oracle_agrees(output: str, state: str) -> None:
    native = NativeBuffer(100, FIELDS, seed=5, output=output)
    oracle = ReferenceBuffer(100, FIELDS, seed=5)
    for buffer in (native, oracle):
        FILLS[state](buffer)
    for batch_size in (3, 1, 250, 64):
        assert_same(native.sample(batch_size), oracle.sample(batch_size))
        assert native.rng_state == oracle.rng_state


def test_redraws_of_lemires_bound() -> None:
    """The oracle rejects as the paper says; no ring in memory is long enough to show it."""
    size = 3 * 2**62
    words = [int(w) for w in np.random.Philox(key=[1, 2], counter=[0, 9, 0, 0]).random_raw(40)]
    kept = {row: word * size >> 64 for row, word in enumerate(words) if word * size % 2**64 >= 2**62}
    assert 20 < len(kept) < 39
    drawn = draw([1, 2], 9, size, 40)
    assert {row: drawn[row] for row in kept} == kept
    row = next(row for row in range(40) if row not in kept)
    for attempt in range(1, 9):
        word = int(np.random.Philox(key=[1, 2], counter=[row, 9, attempt, 0]).random_raw(1)[0])
        if word * size % 2**64 >= 2**62:
            break
    assert drawn[row] == word * size >> 64


def pvalue(tickets: NDArray[np.int64], first: int, size: int) -> float:
    """Chi-square test that the tickets are uniform over [first, first + size)."""
    counts = np.bincount(tickets - first, minlength=size)
    assert len(counts) == size
    return float(stats.chisquare(counts).pvalue)


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("state", [name for name in FILLS if name != "one row"])
def test_draws_are_uniform(output: str, state: str, seed: int) -> None:
    buffer = NativeBuffer(100, FIELDS, seed=seed, output=output)
    FILLS[state](buffer)
    first = buffer.stats()["inserted"] - len(buffer)
    tickets = np.concatenate([arrays(buffer.sample(500))["ticket"] for _ in range(300)])
    assert pvalue(tickets, first, len(buffer)) > 1e-6
    # successive draws of one call, and the same position of successive calls
    for pairs in (tickets.reshape(-1, 2), tickets.reshape(300, 500).T.reshape(-1, 2)):
        low = (pairs - first) * min(len(buffer), 8) // len(buffer)
        table = np.zeros((min(len(buffer), 8),) * 2)
        np.add.at(table, (low[:, 0], low[:, 1]), 1)
        assert stats.chi2_contingency(table).pvalue > 1e-6


def next_valid(rng: np.random.Generator) -> NDArray[np.int64]:
    """One slot of 100 is unpublished and its draws go to the next one."""
    index = rng.integers(100, size=150_000)
    return np.where(index == 42, 43, index)


def folded(rng: np.random.Generator) -> NDArray[np.int64]:
    """A draw of 0..127 by masking, folded into 100 by the remainder."""
    return rng.integers(128, size=150_000) % 100


def never_the_last(rng: np.random.Generator) -> NDArray[np.int64]:
    return rng.integers(99, size=150_000)


def five_percent_more(rng: np.random.Generator) -> NDArray[np.int64]:
    """The newer half has odds of 1.05 to 1."""
    index = rng.integers(205, size=150_000)
    return np.where(index < 100, index // 2, 50 + (index - 100) * 50 // 105)


@pytest.mark.parametrize("biased", [next_valid, folded, never_the_last, five_percent_more])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_same_statistic_rejects_a_bias(
    biased: Callable[[np.random.Generator], NDArray[np.int64]], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    assert pvalue(rng.integers(100, size=150_000), 0, 100) > 1e-6
    assert pvalue(biased(rng), 0, 100) < 1e-6


def test_one_stored_row_is_always_drawn(make_buffer: MakeBuffer) -> None:
    buffer = fill(make_buffer(10), 14)
    buffer.clear()
    fill(buffer, 1)
    assert_holds(buffer.sample(50), [14] * 50)


def tickets_of(buffer: Any, count: int = 3) -> list[list[int]]:
    return [arrays(buffer.sample(20))["ticket"].tolist() for _ in range(count)]


@pytest.mark.parametrize("seed", [0, 1, 2**32, 2**64 + 3, 2**200])
def test_same_seed_same_minibatches(make_buffer: MakeBuffer, seed: int) -> None:
    buffers = [fill(make_buffer(50, seed=s), 50) for s in (seed, seed, seed + 1)]
    assert buffers[0].rng_state == {"key": seed_key(seed), "calls": 0}
    same, again, other = (tickets_of(buffer) for buffer in buffers)
    assert same == again != other
    assert same[0] != same[1]


def test_seed_sequences_and_generators(make_buffer: MakeBuffer) -> None:
    child = np.random.SeedSequence(5).spawn(3)[2]
    key = [int(word) for word in child.generate_state(2, np.uint64)]
    assert make_buffer(5, seed=child).rng_state["key"] == key != seed_key(5)

    generator, twin = np.random.default_rng(7), np.random.default_rng(7)
    drawn = [int(twin.integers(2**63)) for _ in range(2)]
    keys = [make_buffer(5, seed=generator).rng_state["key"] for _ in drawn]
    assert keys == [seed_key(seed) for seed in drawn]
    assert generator.integers(2**63) == twin.integers(2**63)


def test_no_seed_is_fresh_entropy_and_leaves_global_state_alone(make_buffer: MakeBuffer) -> None:
    np.random.seed(3)  # noqa: NPY002
    before = np.random.get_state(legacy=False)  # noqa: NPY002
    first, second = (fill(make_buffer(50, seed=None), 50) for _ in range(2))
    assert first.rng_state["key"] != second.rng_state["key"]
    assert tickets_of(first) != tickets_of(second)
    after = np.random.get_state(legacy=False)  # noqa: NPY002
    assert np.array_equal(before["state"]["key"], after["state"]["key"])
    assert before["state"]["pos"] == after["state"]["pos"]


@pytest.mark.parametrize(("seed", "error"), [(1.5, TypeError), ("1", TypeError), ({}, TypeError), (-1, ValueError)])
def test_refused_seeds(make_buffer: MakeBuffer, seed: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        make_buffer(5, seed=seed)


def test_rng_state_is_plain_and_can_be_restored(make_buffer: MakeBuffer) -> None:
    buffer = fill(make_buffer(50, seed=9), 50)
    tickets_of(buffer, 4)
    state = json.loads(json.dumps(buffer.rng_state))
    assert state == {"key": seed_key(9), "calls": 4}
    expected = tickets_of(buffer)
    buffer.rng_state = state
    assert tickets_of(buffer) == expected
    assert state["calls"] == 4
    state["key"][0] = state["calls"] = 1
    buffer.rng_state["calls"] = 1
    assert buffer.rng_state == {"key": seed_key(9), "calls": 7}
    other = fill(make_buffer(50, seed=1), 50)
    other.rng_state = {"key": seed_key(9), "calls": 4}
    assert tickets_of(other) == expected


@pytest.mark.parametrize("calls", [2**31, 2**32 + 5, 2**63, 2**64 - 2])
def test_the_call_number_has_64_bits(make_buffer: MakeBuffer, calls: int) -> None:
    buffer = fill(make_buffer(50), 50)
    key = [2**64 - 1, 2**63 + 1]
    buffer.rng_state = {"key": key, "calls": calls}
    assert tickets_of(buffer, 1) == [draw(key, calls, 50, 20)]
    assert buffer.rng_state == {"key": key, "calls": calls + 1}


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"key": [1, 2]},
        {"calls": 3},
        {"key": [1], "calls": 3},
        {"key": [1, 2, 3], "calls": 3},
        {"key": [1, -2], "calls": 3},
        {"key": [1, 2**64], "calls": 3},
        {"key": [1, 2], "calls": -1},
        {"key": [1, 2], "calls": 2**64},
        {"key": [1, 2.5], "calls": 3},
        {"key": [1, 2], "calls": "3"},
    ],
    ids=str,
)
def test_refused_rng_states(make_buffer: MakeBuffer, state: Any) -> None:
    buffer = fill(make_buffer(10), 4)
    tickets_of(buffer, 1)
    with unchanged(buffer), pytest.raises((ValueError, TypeError, KeyError, OverflowError)):
        buffer.rng_state = state


def test_out_is_written_and_returned(make_buffer: MakeBuffer) -> None:
    fresh, reused = (fill(make_buffer(50, seed=4), 60) for _ in range(2))
    out = reused.gather(np.zeros(20, dtype=int))
    views = dict(out.items())
    for _ in range(3):
        expected = fresh.sample(20)
        assert reused.sample(20, out=out) is out
        assert_same(out, expected)
        assert all(out[name] is view for name, view in views.items())
    assert reused.stats() == fresh.stats()
    assert reused.rng_state == fresh.rng_state
    assert reused.gather(np.arange(20), out=out) is out
    assert_holds(out, [*range(50, 60), *range(10, 20)])


def test_out_may_come_from_another_buffer_of_the_same_schema(make_buffer: MakeBuffer) -> None:
    mine, other = (fill(make_buffer(50, seed=s), 60) for s in (1, 2))
    out = other.sample(20)
    other.clear()
    assert_same(mine.sample(20, out=out), fill(make_buffer(50, seed=1), 60).sample(20))


def test_out_of_another_kind_is_refused(make_buffer: MakeBuffer) -> None:
    buffer = fill(make_buffer(50), 60)
    kept = fill(make_buffer(50), 60).sample(20)
    before = arrays(kept)

    def batch_of(fields: dict[str, Any]) -> Any:
        other = make_buffer(5, fields)
        other.add(*(np.zeros(f.shape, f.dtype) for f in fr.Schema(fields).values()))
        return other.gather([0] * 20)

    renamed = {("obs" if name == "observation" else name): f for name, f in FIELDS.items()}
    others = [
        batch_of(renamed),
        batch_of(dict(list(FIELDS.items())[:-1])),
        batch_of({**FIELDS, "more": ()}),
        batch_of({**FIELDS, "reward": ((), "float64")}),
        batch_of({**FIELDS, "reward": ((), "int32")}),
        batch_of({**FIELDS, "reward": (1,)}),
        batch_of({**FIELDS, "pixels": ((3, 2), "uint8")}),
        buffer.gather(np.zeros(19, dtype=int)),
        buffer.gather(np.zeros(21, dtype=int)),
    ]
    for out in others:
        for call in (buffer.sample, lambda _, out: buffer.gather(np.zeros(20, int), out=out)):
            with unchanged(buffer), pytest.raises(ValueError, match="out"):
                call(20, out=out)
    for bad in (dict(kept.items()), arrays(kept)["reward"], [kept], 3):
        with unchanged(buffer), pytest.raises(TypeError, match=r"out.*Minibatch"):
            buffer.sample(20, out=bad)
    with unchanged(buffer), pytest.raises(ValueError, match="out"):
        buffer.sample(1, out=buffer[0])
    with pytest.raises(TypeError):
        buffer.sample(20, kept)
    assert_same(kept, before)


def test_out_on_another_device_is_refused() -> None:
    buffer = fill(NativeBuffer(50, FIELDS, seed=0), 60)
    out = buffer.sample(20).to("meta")
    with unchanged(buffer), pytest.raises((ValueError, TypeError), match="out"):
        buffer.sample(20, out=out)


def test_an_empty_buffer_cannot_be_sampled(make_buffer: MakeBuffer) -> None:
    buffer = make_buffer(10)
    with unchanged(buffer), pytest.raises(ValueError, match=r"empty|no transition"):
        buffer.sample(4)
    buffer.clear()
    with unchanged(buffer), pytest.raises(ValueError, match=r"empty|no transition"):
        buffer.sample(4)


@pytest.mark.parametrize(
    ("batch_size", "error", "message"),
    [
        (0, ValueError, "batch_size.*0"),
        (-3, ValueError, "batch_size.*-3"),
        (2.0, TypeError, "float"),
        ("2", TypeError, "str"),
        (None, TypeError, "None"),
        ([2], TypeError, "list"),
    ],
)
def test_refused_batch_sizes(make_buffer: MakeBuffer, batch_size: Any, error: type[Exception], message: str) -> None:
    buffer = fill(make_buffer(10), 4)
    with unchanged(buffer), pytest.raises(error, match=message):
        buffer.sample(batch_size)


def test_an_absurd_batch_size_is_refused() -> None:
    buffer = fill(NativeBuffer(10, FIELDS, seed=0), 4)
    with unchanged(buffer), pytest.raises(MemoryError):
        buffer.sample(2**50)
    with unchanged(buffer), pytest.raises((MemoryError, OverflowError)):
        buffer.sample(2**80)

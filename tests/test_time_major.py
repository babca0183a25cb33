# SPDX-License-Identifier: MIT
"""Steps before rows: each array is that of the same draw with rows first, transposed, and contiguous."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from support import NativeBuffer

import fastreplay as fr

if TYPE_CHECKING:
    from fake_cuda import FakeCuda

FIELDS: dict[str, Any] = {
    "number": ((), "int64"),
    "observation": (17,),
    "pixels": fr.Field((5, 3), "uint8", stack=3),
    "next_observation": (17,),
    "reward": (),
    "wide": ((2, 300), "float64"),  # rows that are walked one by one
    "done": ((), "bool"),
    "state": (4,),
}
SHARES = {"next_observation": "observation"}


def rows(first: int, count: int, rng: Any) -> dict[str, Any]:
    schema = fr.Schema(FIELDS)
    made = {name: rng.integers(0, 250, (count, *field.shape)).astype(field.dtype) for name, field in schema.items()}
    return {**made, "number": np.arange(first, first + count), "done": rng.random(count) < 0.04}


def filled(capacity: int = 300, lanes: int = 3, **options: Any) -> Any:
    buffer = NativeBuffer(capacity, FIELDS, lanes=lanes, ends=["done"], seed=0, share_next=SHARES,
                          **{"output": "numpy", **options})  # fmt: skip
    rng = np.random.default_rng(0)
    for first in range(0, 400, 40):
        buffer.extend(**rows(first, 40, rng), lanes=rng.integers(0, lanes, 40))
    return buffer


def assert_transposed(batch: Any, other: Any, rule: Any) -> None:
    """Check a minibatch of steps first against the same of rows first."""
    assert batch.ticket.tolist() == other.ticket.tolist()
    assert len(batch) == len(other)
    beside = [name for name in dir(other) if name.endswith(("mask", "trained", "is_first", "weight", "probability"))]
    assert isinstance(rule, fr.Window) or len(beside) >= 3
    for name in (*other.keys(), *beside):
        got, expected = (each[name] for each in (batch, other))
        is_of_steps = name in dict(rule.steps) or name.endswith("mask") if isinstance(rule, fr.Window) else (
            name not in (*rule.first_only, "weight", "probability"))  # fmt: skip
        if isinstance(got, torch.Tensor):
            assert got.is_contiguous(), name
        got, expected = np.asarray(got), np.asarray(expected)
        assert got.flags.c_contiguous, name
        assert got.dtype == expected.dtype
        np.testing.assert_array_equal(got, expected.swapaxes(0, 1) if is_of_steps else expected, err_msg=name)


def rules() -> list[tuple[Any, Any]]:
    """Give rules, each once with rows first and once with steps."""
    some = {"observation": range(-3, 1), "wide": [0, 2], "reward": range(0, 40, 2)}
    made: list[tuple[Any, Any]] = [(fr.Window, (some, "pad", pad)) for pad in ("edge", "zero")]
    made.append((fr.Sequence, (5, 3, 1, "redraw", "edge", ())))
    for length, burn_in, stride, first_only in (
        (1, 0, 1, ()),
        (4, 0, 1, ("state",)),
        (3, 2, 2, ()),
        (40, 25, 1, ("state", "pixels")),
        (70, 0, 3, tuple(FIELDS)),
    ):
        made += [(fr.Sequence, (length, burn_in, stride, "pad", pad, first_only)) for pad in ("edge", "zero")]
    return [(kind(*arguments), kind(*arguments, time_major=True)) for kind, arguments in made]


@pytest.mark.share(2)
@pytest.mark.parametrize("output", ["numpy", "torch"])
def test_each_array_is_the_other_transposed(output: str) -> None:
    buffer = filled(output=output)
    for rule, other in rules():
        for batch_size in (1, 3, 33, 300):
            state = buffer.rng_state
            expected = buffer.sample(batch_size, follow=rule)
            buffer.rng_state = state
            first = buffer.sample(batch_size, follow=other)
            assert_transposed(first, expected, rule)
            buffer.rng_state = state
            buffer.sample(batch_size, follow=other)
            expected = buffer.sample(batch_size, follow=rule)
            buffer.rng_state = {**state, "calls": state["calls"] + 1}
            assert buffer.sample(batch_size, follow=other, out=first) is first
            assert_transposed(first, expected, rule)


def test_loaders_and_the_smaller_end_of_an_epoch() -> None:
    for rule, other in rules()[3:]:
        for batch_size in (64, 7):
            made = [filled().loader(batch_size, replacement=False, steps=7, follow=each) for each in (rule, other)]
            with made[0] as rows_first, made[1] as steps_first:
                for expected, batch in zip(rows_first, steps_first, strict=True):
                    assert_transposed(batch, expected, rule)
        made = [filled().loader(16, steps=3, follow=each) for each in (rule, other)]
        with made[0] as rows_first, made[1] as steps_first:
            for expected, batch in zip(rows_first, steps_first, strict=True):
                assert_transposed(batch, expected, rule)
        last = filled().sampler(draw=fr.Epochs(), follow=other).sample(1000)
        assert_transposed(last, filled().sampler(draw=fr.Epochs(), follow=rule).sample(1000), rule)
        assert len(last) == 300


def test_several_threads_copy_large_minibatches() -> None:
    before = fr.get_num_threads()
    rule, other = (fr.Sequence(20, burn_in=4, pad="zero", time_major=each) for each in (False, True))
    try:
        for threads in (1, 3):
            fr.set_num_threads(threads)
            assert_transposed(filled().sample(700, follow=other), filled().sample(700, follow=rule), rule)
    finally:
        fr.set_num_threads(before)


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_errors_come_as_steps_do(kind: Any) -> None:
    rule, other = (fr.Sequence(6, burn_in=2, time_major=each) for each in (False, True))
    found = []
    for follow in (rule, other):
        buffer = filled(priorities=fr.Priorities(alpha=1, eps=0))
        batch = buffer.sample(8, follow=follow)
        errors = np.random.default_rng(1).random((8, 8))
        errors = errors.T.copy() if follow is other else errors
        for each in (batch, pickle.loads(pickle.dumps(batch)), batch.to(torch.float64)):
            buffer.update_priorities(each, kind(errors))
            found.append((buffer.max_priority, buffer.sample(64).probability.tolist()))
            buffer.sample(8)
        wide = buffer.sample(5, follow=follow)
        wrong = (5, 8) if follow is other else (8, 5)
        with pytest.raises(ValueError, match=rf"expected \(5,\) or \({wrong[1]}, {wrong[0]}\), got"):
            buffer.update_priorities(wide, np.ones(wrong))
    assert found[0] == found[3]
    assert [largest for largest, _ in found] == [found[0][0]] * 6


def test_a_minibatch_keeps_its_axes() -> None:
    """In copies, in NumPy and torch, in trees; trained steps are a slice of the first axis."""
    follow = fr.Sequence(3, burn_in=2, first_only="state", time_major=True)
    batch = filled(output="torch").sample(5, follow=follow)  # as many rows as steps
    assert (batch.observation.shape, batch.state.shape, batch.mask.shape) == ((5, 5, 17), (5, 4), (5, 5))
    assert not batch.trained[:2].any()
    assert batch.trained[2].all()
    again = pickle.loads(pickle.dumps(batch))
    for each in (batch.numpy(), batch.to(torch.float64), again, torch.utils._pytree.tree_map(lambda x: x + 0, batch)):
        assert each._beside.time_major == batch._beside.time_major
        assert (each.numpy().number == batch.numpy().number).all()
        assert (each.numpy().mask == batch.numpy().mask).all()
    tree_map = torch.utils._pytree.tree_map
    some = tree_map(lambda x: x[:, :2] if x.shape[:2] == (5, 5) else x[:2], batch)
    assert (some.batch_size, some.number.shape, some.state.shape) == (2, (5, 2), (2, 4))
    one = tree_map(lambda x: x[:, 1] if x.shape[:2] == (5, 5) else x[1], batch)
    assert (one.batch_size, one.number.shape) == (None, (5,))


def test_out_is_of_the_same_axes() -> None:
    buffer = filled()
    rows_first, steps_first = (buffer.sample(4, follow=fr.Sequence(4, time_major=each)) for each in (False, True))
    for out, time_major in ((rows_first, True), (steps_first, False)):
        with pytest.raises(ValueError, match="out: expected a minibatch whose follow has the same time_major"):
            buffer.sample(4, follow=fr.Sequence(4, time_major=time_major), out=out)
    with pytest.raises(TypeError, match="time_major: expected a bool, got int 1"):
        fr.Sequence(4, time_major=1)  # type: ignore[arg-type]


def test_page_locked_minibatches_and_those_with_out(cuda: FakeCuda) -> None:
    on_device = NativeBuffer(300, FIELDS, lanes=3, ends=["done"], seed=0, share_next=SHARES, device="cuda:0")
    rng = np.random.default_rng(0)
    for first in range(0, 400, 40):
        on_device.extend(**rows(first, 40, rng), lanes=rng.integers(0, 3, 40))
    here = filled()
    for rule, other in rules()[:9:2]:
        batch = on_device.sample(9, follow=other)
        cuda.run_all()
        assert_transposed(batch, here.sample(9, follow=rule), rule)
        on_device.sample(9, follow=other, out=batch)
        cuda.run_all()
        assert_transposed(batch, here.sample(9, follow=rule), rule)

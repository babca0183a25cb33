# SPDX-License-Identifier: MIT
"""Minibatch memory: never reused while anything looks at it, and reused once nothing does."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import resource
import sys
import threading
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from support import FIELDS, NativeBuffer, arrays, assert_holds, assert_same, fill

if TYPE_CHECKING:
    from collections.abc import Callable

IN_ASAN = "asan" in os.environ.get("LD_PRELOAD", "")  # it keeps freed memory in quarantine


def buffer_of(output: str, seed: int = 0) -> Any:
    return fill(NativeBuffer(500, FIELDS, seed=seed, output=output), 700)


def address(batch: Any) -> int:
    """Where the block of a minibatch begins."""
    return min(int(value.ctypes.data) for value in batch.numpy().values())


def sweep(buffer: Any, batch_size: int, count: int) -> set[int]:
    """Sample and drop, one minibatch at a time; give where they lay."""
    return {address(buffer.sample(batch_size)) for _ in range(count)}


def at_once(buffer: Any, batch_size: int, count: int) -> set[int]:
    """Sample, and drop all in the end."""
    held = [buffer.sample(batch_size) for _ in range(count)]
    found = {address(batch) for batch in held}
    assert len(found) == count
    return found


class Saved(torch.autograd.Function):
    """Keep a tensor for backward, where only the graph holds it."""

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(value)
        return (weight * value).sum()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (value,) = ctx.saved_tensors
        return grads[0] * value, None


def rewards(graph: Any) -> Any:
    """Read back, through the gradient, the rewards that a graph has saved."""
    graph, weight = graph
    (gradient,) = torch.autograd.grad(graph, weight, retain_graph=True)
    return gradient


def graph_of(make: Callable[[Any, Any], Any]) -> Callable[[Any], Any]:
    def hold(batch: Any) -> Any:
        weight = torch.ones_like(batch.reward, requires_grad=True)
        return make(weight, batch.reward), weight

    return hold


def same(value: Any) -> Any:
    return value


def of_memoryview(view: Any) -> Any:
    return np.frombuffer(view, dtype=np.float32)


def read_out(value: Any) -> Any:
    """Copy a tensor or an array."""
    return np.asarray(value).copy()


# What holds a minibatch's memory, and how to read the rewards or the like through it.
ANY: dict[str, tuple[Any, Any]] = {
    "minibatch": (lambda b: b, lambda b: b.reward),
    "field": (lambda b: b.reward, same),
    "last field": (lambda b: b.terminated, same),
    "ticket": (lambda b: b.ticket, same),
    "slice": (lambda b: b.observation[3:5], same),
    "element": (lambda b: b.reward[7:8][0:1], same),
    "strided": (lambda b: b.pixels[::3], same),
    "reshape": (lambda b: b.pixels.reshape(-1), same),
    "transpose": (lambda b: b.pixels.swapaxes(0, 2), same),
    "values": (lambda b: list(b.values()), lambda v: v[2]),
    "dict": (dict, lambda d: d["reward"]),
    "iterator": (iter, lambda it: next(copy.copy(it))),
    "bound method": (lambda b: b.get, lambda get: get("reward")),
    "numpy minibatch": (lambda b: b.numpy(), lambda b: b.reward),
    "numpy field": (lambda b: b.numpy().reward, same),
    "numpy ticket": (lambda b: b.numpy().ticket, same),
    "tensors minibatch": (lambda b: b.to("cpu"), lambda b: b.reward),
    "tensors ticket": (lambda b: b.to("cpu").ticket, same),
    "field after its tensors": (lambda b: (b.to("cpu"), b.reward)[1], same),
    "field after its arrays": (lambda b: (b.numpy(), b.ticket, b.reward)[2], same),
    "asarray": (lambda b: np.asarray(b.reward), same),
    "tensor of it": (lambda b: torch.as_tensor(b.reward), same),
    "numpy of a slice": (lambda b: np.asarray(b.observation[2:4]), same),
    "memoryview": (lambda b: memoryview(b.numpy().reward), of_memoryview),
    "cast memoryview": (lambda b: memoryview(b.numpy().reward).cast("B"), of_memoryview),
    "frombuffer": (lambda b: np.frombuffer(b.numpy().reward, dtype=np.uint8), same),
    "other dtype": (lambda b: b.numpy().reward.view(np.uint32), same),
    "np.from_dlpack": (lambda b: np.from_dlpack(b.reward), same),
    "torch.from_dlpack": (lambda b: torch.utils.dlpack.from_dlpack(b.reward), same),
    "slice by dlpack": (lambda b: torch.utils.dlpack.from_dlpack(b.observation[4:6]), same),
    "capsule": (lambda b: b.reward.__dlpack__(), None),
    "other thread": (lambda b: keep_in_a_thread(b.reward), lambda box: box[0]),
}
TORCH: dict[str, tuple[Any, Any]] = {
    "detach": (lambda b: b.reward.detach(), same),
    "data": (lambda b: b.reward.data, same),
    "view as dtype": (lambda b: b.reward.view(torch.int32), same),
    "expand": (lambda b: b.reward.expand(3, -1), same),
    "unbind": (lambda b: b.observation.unbind(1)[2], same),
    "storage": (
        lambda b: b.reward.untyped_storage(),
        lambda s: torch.empty(0, dtype=torch.uint8).set_(s),
    ),
    "parameter": (lambda b: torch.nn.Parameter(b.reward), lambda p: p.detach()),
    "tensordict-like stack of views": (lambda b: b.observation.split(3), lambda s: s[1]),
    "graph": (graph_of(lambda w, r: (w * r).sum()), rewards),
    "graph of a slice": (graph_of(lambda w, r: (w[2:5] * r[2:5]).sum()), rewards),
    "custom graph": (graph_of(Saved.apply), rewards),
}


def keep_in_a_thread(value: Any) -> list[Any]:
    box: list[Any] = []
    thread = threading.Thread(target=box.append, args=(value,))
    thread.start()
    thread.join()
    return box


CASES = [
    *(pytest.param("torch", *case, id=f"torch-{name}") for name, case in {**ANY, **TORCH}.items()),
    *(pytest.param("numpy", *case, id=f"numpy-{name}") for name, case in ANY.items()),
]


@pytest.mark.parametrize("read", ["sample", "gather", "slice"])
@pytest.mark.parametrize(("output", "hold", "look"), CASES)
def test_held_memory_is_left_alone_and_then_recycled(
    output: str,
    hold: Callable[[Any], Any],
    look: Callable[[Any], Any] | None,
    read: str,
) -> None:
    buffer = buffer_of(output)
    for _ in range(3):  # the block is a recycled one already
        buffer.sample(16)
    batch = {
        "sample": lambda: buffer.sample(16),
        "gather": lambda: buffer.gather(np.arange(40, 56)),
        "slice": lambda: buffer[100:116],
    }[read]()
    where = address(batch)
    holder = hold(batch)
    before = read_out(look(holder)) if look else None
    del batch
    assert where not in sweep(buffer, 16, 50)
    assert where not in {address(buffer[i : i + 16]) for i in range(50)}
    if look:
        np.testing.assert_array_equal(read_out(look(holder)), before)
    del holder
    assert where in at_once(buffer, 16, 8)


def test_the_oracle_for_backward_through_a_dropped_minibatch() -> None:
    buffer = buffer_of("torch")
    weight = torch.ones(64, requires_grad=True)
    loss, expected = torch.zeros(()), torch.zeros(64)
    for _ in range(20):
        batch = buffer.sample(64)
        expected += batch.reward.clone() * 3
        loss = loss + (3 * weight * batch.reward).sum()
        del batch
        sweep(buffer, 64, 5)
    loss.backward()  # type: ignore[no-untyped-call]
    assert weight.grad is not None
    assert torch.equal(weight.grad, expected)


@pytest.mark.parametrize("batch_size", [1, 16, 500, 3000])
def test_dropped_blocks_are_recycled(output: str, batch_size: int) -> None:
    buffer = buffer_of(output)
    assert len(sweep(buffer, batch_size, 200)) <= 2


def test_a_training_loop_alternates_between_two_blocks(output: str) -> None:
    """`batch = buffer.sample(n)` drops the old minibatch after the new one was made."""
    buffer = buffer_of(output)
    batch, found = buffer.sample(64), set()
    for _ in range(200):
        batch = buffer.sample(64)
        found.add(address(batch))
    assert len(found) <= 3


def test_ten_thousand_samples_take_no_memory(output: str) -> None:
    buffer = buffer_of(output)
    out = buffer.sample(32)

    def work(count: int) -> set[int]:
        found = set()
        for i in range(count):
            found.add(address(buffer.sample(32)))
            buffer.sample(32, out=out)
            if i % 10 == 0:
                assert [len(buffer[:5]), len(buffer.gather([1, 2])), len(list(buffer[3]))] == [5, 2, 5]
        return found

    work(100)
    kept: list[int] = []
    for _ in range(3):  # what is kept is kept each time; other threads of the process take some for a while
        gc.collect()
        blocks = sys.getallocatedblocks()
        work(10_000)
        gc.collect()
        kept.append(sys.getallocatedblocks() - blocks)
        if kept[-1] < 300:
            break
    assert min(kept) < 300
    assert len(work(100)) <= 4


def test_many_held_minibatches(output: str) -> None:
    buffer, twin = buffer_of(output, seed=5), buffer_of("numpy", seed=5)
    held: list[Any] = [buffer.sample(20) for _ in range(300)]
    expected: list[Any] = [arrays(twin.sample(20)) for _ in range(300)]
    for i in range(0, 300, 3):
        held[i] = expected[i] = None
    for _ in range(150):
        held.append(buffer.sample(20))
        expected.append(arrays(twin.sample(20)))
    kept = [(batch, want) for batch, want in zip(held, expected, strict=True) if batch is not None]
    assert len({address(batch) for batch, _ in kept}) == len(kept) == 350
    for batch, want in kept:
        assert_same(batch, want)


@pytest.mark.skipif(IN_ASAN, reason="AddressSanitizer keeps freed memory in quarantine")
def test_released_minibatches_give_their_memory_back(output: str) -> None:
    fields = {"image": ((64, 64), "uint8")}
    buffer = NativeBuffer(64, fields, seed=0, output=output)
    buffer.extend(np.ones((64, 64, 64), "uint8"))
    unit = 1 if sys.platform == "darwin" else 1024

    def peak_bytes() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

    at_once(buffer, 64, 64)  # 64 blocks of 256 KiB
    before = peak_bytes()
    for i in range(20):
        at_once(buffer, 64 - i, 64)
    assert peak_bytes() - before < 32 * 2**20  # keeping them all would take 280 MB


def test_batch_sizes_interleaved(output: str) -> None:
    buffer, twin = buffer_of(output, seed=2), buffer_of("numpy", seed=2)
    rng = np.random.default_rng(0)
    sizes = rng.choice([1, 2, 7, 64, 65, 300, 1000], size=400)
    held: list[Any] = []
    for size in sizes:
        batch, want = buffer.sample(int(size)), arrays(twin.sample(int(size)))
        assert_same(batch, want)
        held.append((batch, want))
        if len(held) > 12:
            del held[int(rng.integers(len(held)))]
    for batch, want in held:
        assert_same(batch, want)


def test_single_transitions_and_empty_batches_hold_their_memory(output: str) -> None:
    buffer = buffer_of(output)
    ones = [buffer[i] for i in range(40)]
    empty = [buffer[:0] for _ in range(40)]
    sweep(buffer, 1, 50)
    for i, one in enumerate(ones):
        assert_holds(one, 200 + i)
    assert all(len(batch) == 0 for batch in empty)


def test_minibatches_outlive_their_buffer(output: str) -> None:
    buffer = buffer_of(output)
    reference = weakref.ref(buffer) if hasattr(buffer, "__weakref__") else None
    batch, reward = buffer.sample(64), buffer.sample(64).reward
    want, want_reward = arrays(batch), read_out(reward)
    del buffer
    gc.collect()
    assert reference is None or reference() is None
    others = [buffer_of(output, seed) for seed in range(5)]
    for other in others:
        at_once(other, 64, 5)
    assert_same(batch, want)
    assert np.array_equal(read_out(reward), want_reward)
    del others, batch
    assert np.array_equal(read_out(reward), want_reward)


def test_out_writes_where_views_look(output: str) -> None:
    """The caller owns `out`: its views show the new rows, other minibatches do not."""
    buffer = buffer_of(output)
    out, other = buffer.sample(16), buffer.sample(16)
    want, reward = arrays(other), out.reward
    for _ in range(20):
        buffer.sample(16, out=out)
        assert np.array_equal(read_out(reward), 2.0 * read_out(out.ticket))
    assert_same(other, want)


def test_an_unpickled_minibatch_has_memory_of_its_own(output: str) -> None:
    buffer = buffer_of(output)
    loaded = pickle.loads(pickle.dumps(buffer.sample(16)))
    want = arrays(loaded)
    sweep(buffer, 16, 20)
    assert_same(loaded, want)


def test_a_refused_call_loses_no_block(output: str) -> None:
    buffer = buffer_of(output)
    buffer.sample(16)
    for _ in range(20):
        with pytest.raises(IndexError):
            buffer.gather([500] * 16)
        with pytest.raises(IndexError):
            buffer[[0] * 15 + [500]]
    assert len(sweep(buffer, 16, 50)) <= 2
    gc.collect()
    blocks = sys.getallocatedblocks()
    for _ in range(2000):
        with pytest.raises(IndexError):
            buffer.gather([500] * 16)
    gc.collect()
    assert sys.getallocatedblocks() - blocks < 300


@pytest.mark.parametrize("output", ["torch", "numpy"])
def test_lists_of_minibatches_are_recycled(output: str) -> None:
    """A loop that draws ten minibatches at once finds the memory of the ten before the last again."""
    buffer = buffer_of(output)
    seen: set[int] = set()
    held: list[Any] = []
    for _ in range(30):
        held = [buffer.sample(16) for _ in range(10)]
        seen |= {address(batch) for batch in held}
    assert len(seen) <= 30

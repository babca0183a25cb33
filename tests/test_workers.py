# SPDX-License-Identifier: MIT
"""Worker processes of a DataLoader: draws of their own, the same again under the same seeds."""

from __future__ import annotations

import gc
import sys
from typing import Any

import numpy as np
import pytest
import torch
from fake_cuda import FakeCuda  # noqa: TC002 - pytest reads it
from support import FIELDS, NativeBuffer, fill
from test_fork import in_child
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

import fastreplay as fr

METHODS = ["fork", "spawn"] if sys.platform == "linux" else ["spawn"]
NUM_WORKERS, NUM_SAMPLES = 2, 3


class Tickets(IterableDataset[Any]):
    """The rows that each worker draws from each of its buffers."""

    def __init__(self, *buffers: Any) -> None:
        self.buffers = buffers

    def __iter__(self) -> Any:
        info = get_worker_info()
        assert info is not None
        for _ in range(NUM_SAMPLES):
            yield info.id, [rows_of(buffer.sample(20)) for buffer in self.buffers]


def rows_of(samples: Any) -> list[Any]:
    rows = samples.ticket if isinstance(samples, fr.Minibatch) else samples.rewards.ravel()
    found: list[Any] = np.asarray(rows).tolist()
    return found


class Minibatches(IterableDataset[Any]):
    """Whole minibatches."""

    def __init__(self, buffer: Any) -> None:
        self.buffer = buffer

    def __iter__(self) -> Any:
        for _ in range(NUM_SAMPLES):
            yield self.buffer.sample(20)


def drawn(
    buffers: Any, method: str, seed: int, num_workers: int = NUM_WORKERS, **options: Any
) -> dict[tuple[int, int], list[Any]]:
    """Return what each worker drew from each buffer."""
    torch.manual_seed(seed)
    dataset = Tickets(*buffers)
    options = {"worker_init_fn": fr.worker_init_fn, **options}
    found: dict[tuple[int, int], list[Any]] = {}
    for worker, rows in DataLoader(
        dataset, batch_size=None, num_workers=num_workers, multiprocessing_context=method, **options
    ):
        for i, each in enumerate(rows):
            found.setdefault((worker, i), []).extend(each)
    return found


def make(seed: int = 0) -> list[Any]:
    """Make buffers of every kind: one, two faces of it, and one of NumPy's."""
    first = fill(NativeBuffer(1000, FIELDS, seed=seed), 1000, chunk=1000)
    second = fill(NativeBuffer(1000, FIELDS, seed=seed + 1, output="numpy"), 1000, chunk=1000)
    return [first, *first.spawn(2), second]


def make_adapter() -> Any:
    """Make a buffer that stands for SB3's, with a generator of its own."""
    from gymnasium import spaces  # not where spawned workers pay for it

    import fastreplay.sb3 as fsb3

    np.random.seed(0)  # noqa: NPY002 - what it is seeded from
    box = spaces.Box(-1, 1, (2,))
    adapter = fsb3.ReplayBuffer(1000, box, box, "cpu", rng="native")
    adapter.rewards[...] = np.arange(1000)[:, None]
    adapter.full = True
    return adapter


@pytest.mark.share(2)
@pytest.mark.parametrize("method", METHODS)
def test_each_worker_draws_its_own(method: str) -> None:
    buffers = make() if method == "spawn" else [*make(), make_adapter()]
    before = [buffer.rng_state for buffer in buffers[:4]]
    found = drawn(buffers, method, 3)
    assert len(found) == NUM_WORKERS * len(buffers)
    assert len({tuple(rows) for rows in found.values()}) == len(found)
    assert all(len(set(rows)) > NUM_SAMPLES * 10 for rows in found.values())
    assert [buffer.rng_state for buffer in buffers[:4]] == before  # this process's own stay
    if method == "spawn":  # which takes seconds for each
        again = drawn(make(), method, 3, num_workers=1)
        assert again == {key: rows for key, rows in found.items() if key[0] == 0}
    else:
        assert drawn([*make(), make_adapter()], method, 3) == found
        for other in (drawn(make(), method, 4), drawn(make(5), method, 3)):
            assert all(rows != found[key] for key, rows in other.items())


def test_without_it_they_draw_the_same() -> None:
    """What the function is for."""
    found = drawn(make()[:1], "fork", 3, worker_init_fn=None)
    assert found[0, 0] == found[1, 0]


def test_epochs_differ_and_repeat() -> None:
    buffer = make()[0]
    torch.manual_seed(0)
    loader = DataLoader(
        Minibatches(buffer), batch_size=None, num_workers=2, multiprocessing_context="fork",
        worker_init_fn=fr.worker_init_fn,
    )  # fmt: skip
    epochs = [[batch.ticket.tolist() for batch in loader] for _ in range(2)]
    assert epochs[0] != epochs[1]
    torch.manual_seed(0)
    assert [[batch.ticket.tolist() for batch in loader] for _ in range(2)] == epochs
    for batch in loader:
        assert isinstance(batch, fr.Minibatch)
        assert torch.equal(batch.reward, batch.ticket * 2.0)


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_rings_on_a_device_of_the_parent_are_left_alone(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    """A forked process cannot use them: torch refuses every call, here for want of the device."""
    over_there = fill(NativeBuffer(100, FIELDS, seed=0, device="cuda:0", storage="cuda"), 100)
    buffer = make()[0]
    cuda.run_all()
    before = list(buffer.rng_state["key"])

    def child() -> bool:
        monkeypatch.undo()
        fr.worker_init_fn(1)
        return list(buffer.rng_state["key"]) != before

    assert in_child(child)
    fr.worker_init_fn(1)
    assert over_there.rng_state["key"] != [0, 0]
    assert len(over_there.sample(3)) == 3


def test_it_may_be_called_by_other_processes() -> None:
    gc.collect()  # what other tests have left, on devices that are no more

    def keys(worker_id: int) -> list[int]:
        buffer = NativeBuffer(3, FIELDS, seed=0)
        fr.worker_init_fn(worker_id)
        state: dict[str, Any] = buffer.rng_state
        assert state["calls"] == 0
        return tuple(state["key"])  # type: ignore[return-value]

    buffer = NativeBuffer(3, FIELDS, seed=0)
    faces = [tuple(face.rng_state["key"]) for face in buffer.spawn(3)]
    found = [keys(worker_id) for worker_id in (0, 1, 2, 2**40)]
    assert len({*found, *faces, tuple(buffer.rng_state["key"])}) == len(found) + len(faces) + 1
    assert keys(1) == found[1]
    for bad, error in ((-1, ValueError), (1.0, TypeError), (None, TypeError), (True, TypeError)):
        with pytest.raises(error, match="worker_id: expected"):
            fr.worker_init_fn(bad)  # type: ignore[arg-type]

# SPDX-License-Identifier: MIT
"""Generators for the worker processes of a DataLoader, which all start as copies of one."""

from __future__ import annotations

from fastreplay.support.checks import checked_index, imported
from fastreplay.support.keys import keyed

__all__ = ["worker_init_fn"]

# Apart from the keys of `spawn`, which have one number.
_WORKERS = 2**31


def worker_init_fn(worker_id: int) -> None:
    """Give every buffer in a worker process a generator of its own; for a DataLoader's `worker_init_fn`.

    Forked or spawned workers get the same buffer with the same generator, and would draw the same minibatches. Here
    each key becomes one that follows from it, from the worker's number and from the worker's seed, which torch draws
    anew in each epoch: so the minibatches are the same again under the same seed of the buffer and of torch
    (`torch.manual_seed`, or the DataLoader's `generator`). The adapters' generators of their own are given new keys,
    too; NumPy's global one is seeded by torch.

    Args:
        worker_id: The worker's number, from 0 on. Other processes than a DataLoader's may call it with theirs.

    Raises:
        TypeError, ValueError: It is no integer, or negative.

    Thread safety:
        None: to be called before the process samples.

    Example:
        >>> import fastreplay as fr
        >>> from torch.utils.data import DataLoader, IterableDataset
        >>> class Minibatches(IterableDataset):
        ...     def __init__(self, buffer):
        ...         self.buffer = buffer
        ...     def __iter__(self):
        ...         while True:
        ...             yield self.buffer.sample(256)
        >>> buffer = fr.ReplayBuffer(1000, {"observation": (3,)}, seed=0)
        >>> dataset = Minibatches(buffer)
        >>> loader = DataLoader(dataset, batch_size=None, num_workers=2, worker_init_fn=fr.worker_init_fn)
    """
    worker_id = checked_index("worker_id", worker_id)
    if worker_id < 0:
        raise ValueError(f"worker_id: expected a non-negative integer, got {worker_id}")
    torch_data = imported("torch.utils.data")
    info = None if torch_data is None else torch_data.get_worker_info()
    place = (_WORKERS, worker_id, 0 if info is None else info.seed)
    for one in keyed:
        one._rekey(place)

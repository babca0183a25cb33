# SPDX-License-Identifier: MIT
"""How many threads copy the rows of one large minibatch."""

from __future__ import annotations

import os

from fastreplay import _core
from fastreplay.support.checks import checked_count, imported

__all__ = ["follow_torch", "get_num_threads", "set_num_threads"]

# Beyond, memory gives no more: on a server of 2024 eight threads copied 58 GB/s, more than a PCIe 5 link takes.
_MOST_BY_DEFAULT = 8
_MOST = 1024
_was_set = False


def set_num_threads(count: int) -> None:
    """Let so many threads copy the rows of one large minibatch, the caller's among them; 1 for none but that.

    Rows of a minibatch of half a megabyte or more are shared out; of smaller ones never. Whatever the number, the same
    rows are drawn. Unless it was set, it is torch's number of threads where torch is imported, else that of the cores
    this process may use, at most 8, as it is when a buffer, a sampler or a loader is made.

    Args:
        count: In [1, 1024].

    Raises:
        TypeError: `count` is no integer.
        ValueError: It is out of range.

    Thread safety:
        May be called from any thread; minibatches that are being drawn keep theirs.

    Example:
        >>> import fastreplay as fr
        >>> fr.set_num_threads(1)
        >>> fr.get_num_threads()
        1
    """
    global _was_set  # noqa: PLW0603 - of the process, as torch's
    checked = checked_count("count", count)
    if checked > _MOST:
        raise ValueError(f"count: expected at most {_MOST}, got {checked}")
    _was_set = True
    _core.set_num_threads(checked)


def get_num_threads() -> int:
    """Return how many threads copy the rows of one large minibatch.

    Thread safety:
        May be called from any thread.
    """
    follow_torch()
    return _core.num_threads()


def follow_torch() -> None:
    """Take torch's number of threads, or that of the cores, unless a number was set."""
    if _was_set:
        return
    torch = imported("torch")
    get = getattr(torch, "get_num_threads", None)  # not while torch is being imported
    _core.set_num_threads(min(get() if get is not None else _num_cores(), _MOST_BY_DEFAULT))


def _num_cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # where there is none of it
        return os.cpu_count() or 1

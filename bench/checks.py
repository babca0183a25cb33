# SPDX-License-Identifier: MIT
"""Whether a peer stores and returns what it should, asked before and after it is timed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from peers.peer import Peer
from workloads import Workload, contents, decode, steps, transitions

_SMALL_CAPACITY = 512
_DRAWS = 8  # minibatches of one check
_CHECKED_BYTES = 4 << 20  # of all of them, or two


def check_contents(peer: Peer, workload: Workload, batch_size: int, window: range) -> None:
    """Check that minibatches hold stored transitions, whole; names the peer and the field where they do not."""
    _drawn(peer, workload, batch_size, window)


def _drawn(peer: Peer, workload: Workload, batch_size: int, window: range) -> npt.NDArray[np.int64]:
    """Check the contents of minibatches.

    Args:
        peer: A buffer that holds transitions numbered in `window`.
        workload: Its shape.
        batch_size: Transitions of a minibatch.
        window: Which transitions may come out.

    Returns:
        The numbers of the transitions that came, int64 (draws, batch_size).

    Raises:
        AssertionError: If anything is wrong; names the peer and the field.
    """
    call = peer.sampler(batch_size)
    seen = []
    draws = min(_DRAWS, max(2, _CHECKED_BYTES // (batch_size * workload.row_bytes)))
    for _ in range(draws):
        tensors = _checked(peer, call(), workload, batch_size)
        columns = {name: tensor.numpy() for name, tensor in tensors.items()}
        numbers = decode(columns)
        assert numbers.min() >= window.start, f"{peer.label}: a transition from before the window"
        assert numbers.max() < window.stop, f"{peer.label}: a transition that was never stored"
        for name, expected in contents(workload, numbers).items():
            got = columns[name].reshape(expected.shape)
            assert np.array_equal(got, expected), f"{peer.label}: {name}: wrong content"
        seen.append(numbers)
    return np.stack(seen)


def check_sample(peer: Peer, workload: Workload, batch_size: int, window: range) -> None:
    """Check contents as above, and that each minibatch is drawn anew over the whole window."""
    seen = _drawn(peer, workload, batch_size, window)
    assert len(np.unique(seen, axis=0)) == len(seen), f"{peer.label}: a draw came twice"
    spread = np.ptp(seen)
    assert spread > len(window) // 2, f"{peer.label}: draws lie within {spread} of {len(window)}"


def check_insert(peer_type: type[Peer], workload: Workload, *, num_envs: int) -> None:
    """Check `add` or, with num_envs > 1, `extend` over one and a half laps of a small ring.

    Args:
        peer_type: The peer; a fresh buffer is made from it.
        workload: Its shape.
        num_envs: Transitions of one call.

    Raises:
        AbsentError: If the peer cannot hold the workload.
        AssertionError: If other transitions come out than the last lap's.
    """
    capacity = _SMALL_CAPACITY
    peer = peer_type(workload, capacity, num_envs=num_envs)
    numbers = np.arange(capacity + capacity // 2)
    if num_envs == 1:
        peer.adder(transitions(workload, numbers))()
    else:
        peer.extender([steps(workload, block) for block in numbers.reshape(-1, num_envs)])()
    window = range(len(numbers) - capacity, len(numbers))
    check_sample(peer, workload, 128, window)


def _checked(peer: Peer, batch: object, workload: Workload, batch_size: int) -> dict[str, torch.Tensor]:
    tensors = dict(peer.fields(batch))
    for name, spec in workload.fields.items():
        tensor = tensors[name]
        shape = (batch_size, *spec.shape)
        assert isinstance(tensor, torch.Tensor), f"{peer.label}: {name}: not a tensor"
        assert tensor.device.type == "cpu", f"{peer.label}: {name}: on {tensor.device}"
        assert tensor.is_contiguous(), f"{peer.label}: {name}: not contiguous"
        # Some keep scalars as (B, 1), some drop the last axis of (B, 1).
        assert _squeezed(tensor.shape) == _squeezed(shape), f"{peer.label}: {name}: {tensor.shape}"
    return tensors


def _squeezed(shape: Sequence[int]) -> list[int]:
    return [size for size in shape if size != 1]

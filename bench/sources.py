# SPDX-License-Identifier: MIT
"""Where minibatches on a device come from: ours in four ways, and what others do. Knows no clock."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from absence import AbsentError, require
from peers import NumpyRing, StableBaselines3
from peers.ours import empty_buffer, fill
from timing import Call
from workloads import FIELD_NAMES, Workload, chunks, contents, decode

import fastreplay as fr

DEPTH = 2


@dataclass(frozen=True)
class Source:
    """Minibatches.

    Attributes:
        call: Gives the next.
        fields: Names its tensors.
        close: Ends what runs beside.
    """

    call: Call
    fields: Callable[[Any], Mapping[str, torch.Tensor]]
    close: Callable[[], object] = lambda: None


@dataclass(frozen=True)
class Setting:
    """What is drawn from, and where it goes."""

    workload: Workload
    batch_size: int
    capacity: int
    device: str

    @cached_property
    def buffer(self) -> Any:
        """Ours, in the host's memory, full."""
        return self._filled("host")

    @cached_property
    def resident(self) -> Any:
        """Ours, in the device's memory too, full.

        Raises:
            AbsentError: The device is none of CUDA's.
        """
        return self._filled("cuda")

    def prioritized(self, storage: Any) -> Any:
        """Ours, with priorities, full.

        Raises:
            AbsentError: The device is none of CUDA's, and the storage is to be there.
        """
        return self._filled(storage, priorities=fr.Priorities())

    def _filled(self, storage: Any, **options: Any) -> Any:
        if storage == "cuda" and not self.device.startswith("cuda"):
            reason = "storage='cuda' needs a CUDA device"
            raise AbsentError(reason)
        buffer = empty_buffer(self.workload, self.capacity, device=self.device, storage=storage, **options)
        fill(buffer, self.workload)
        return buffer


def _named(batch: Any) -> Mapping[str, torch.Tensor]:
    return dict(batch)


def _naive(setting: Setting) -> Source:
    peer = NumpyRing(setting.workload, setting.capacity)
    peer.fill()
    sample = peer.sampler(setting.batch_size)

    def call() -> tuple[torch.Tensor, ...]:
        return tuple([torch.as_tensor(array).to(setting.device) for array in sample()])

    return Source(call, lambda batch: dict(zip(FIELD_NAMES, batch, strict=True)))


def _sb3(setting: Setting) -> Source:
    peer = StableBaselines3(setting.workload, setting.capacity)
    peer.buffer.device = torch.device(setting.device)
    peer.fill()
    return Source(peer.sampler(setting.batch_size), peer.fields)


def _torchrl(setting: Setting) -> Source:
    data = require("torchrl.data")
    buffer = data.TensorDictReplayBuffer(
        storage=data.LazyTensorStorage(setting.capacity),
        batch_size=setting.batch_size,
        pin_memory=setting.device.startswith("cuda"),
        prefetch=DEPTH,
    )
    _fill_torchrl(buffer, setting, "cpu")

    def call() -> Any:
        return buffer.sample().to(setting.device, non_blocking=True)

    return Source(call, _torchrl_fields)


def _torchrl_device(setting: Setting) -> Source:
    data = require("torchrl.data")
    buffer = data.TensorDictReplayBuffer(
        storage=data.LazyTensorStorage(setting.capacity, device=setting.device), batch_size=setting.batch_size
    )
    _fill_torchrl(buffer, setting, setting.device)
    return Source(buffer.sample, _torchrl_fields)


def _fill_torchrl(buffer: Any, setting: Setting, device: str) -> None:
    tensordict = require("tensordict").TensorDict
    for _, columns in chunks(setting.workload, setting.capacity):
        tensors = {name: torch.from_numpy(column) for name, column in columns.items()}
        buffer.extend(tensordict(tensors, batch_size=[len(columns["reward"])]).to(device))


def _torchrl_fields(batch: Any) -> Mapping[str, torch.Tensor]:
    return {name: batch[name] for name in FIELD_NAMES}


def _columns(setting: Setting) -> Source:
    """Draw as whoever keeps columns on the device draws: indices there, and one kernel a field."""
    parts = [columns for _, columns in chunks(setting.workload, setting.capacity)]
    columns = [
        torch.from_numpy(np.concatenate([part[name] for part in parts])).to(setting.device) for name in FIELD_NAMES
    ]
    capacity, batch_size, device = setting.capacity, setting.batch_size, setting.device

    def call() -> tuple[torch.Tensor, ...]:
        rows = torch.randint(capacity, (batch_size,), device=device)
        return tuple([column[rows] for column in columns])

    return Source(call, lambda batch: dict(zip(FIELD_NAMES, batch, strict=True)))


def _sample(setting: Setting) -> Source:
    buffer, batch_size = setting.buffer, setting.batch_size
    return Source(lambda: buffer.sample(batch_size), _named)


def _out(setting: Setting) -> Source:
    buffer, batch_size = setting.buffer, setting.batch_size
    out = buffer.sample(batch_size)
    return Source(lambda: buffer.sample(batch_size, out=out), _named)


def _loader(setting: Setting) -> Source:
    loader = setting.buffer.loader(setting.batch_size, depth=DEPTH)
    return Source(loader.__next__, _named, loader.close)


def _storage(setting: Setting) -> Source:
    buffer, batch_size = setting.resident, setting.batch_size
    return Source(lambda: buffer.sample(batch_size), _named)


def _torchrl_prioritized(setting: Setting) -> Source:
    data = require("torchrl.data")
    buffer = data.TensorDictPrioritizedReplayBuffer(
        alpha=0.6,
        beta=0.4,
        storage=data.LazyTensorStorage(setting.capacity, device=setting.device),
        batch_size=setting.batch_size,
    )
    _fill_torchrl(buffer, setting, setting.device)
    errors = _errors(setting)

    def call() -> Any:
        batch = buffer.sample()
        buffer.update_priority(batch["index"], errors)
        return batch

    return Source(call, _torchrl_fields)


def _prioritized(storage: str, setting: Setting) -> Source:
    buffer, errors = setting.prioritized(storage), _errors(setting)

    def call() -> Any:
        batch = buffer.sample(setting.batch_size)
        buffer.update_priorities(batch, errors)
        return batch

    return Source(call, _named)


def _errors(setting: Setting) -> torch.Tensor:
    """Return what a learner on the device gives back, (batch_size,) float32."""
    return torch.linspace(0.1, 2, setting.batch_size, device=setting.device)


# Draws by priority, each followed by an update of the priorities that were drawn.
PRIORITIZED: dict[str, Callable[[Setting], Source]] = {
    "torchrl-device": _torchrl_prioritized,
    "sample": partial(_prioritized, "host"),
    "storage": partial(_prioritized, "cuda"),
}
SOURCES: dict[str, Callable[[Setting], Source]] = {
    "naive": _naive,
    "sb3": _sb3,
    "torchrl": _torchrl,
    "torchrl-device": _torchrl_device,
    "columns": _columns,
    "sample": _sample,
    "out": _out,
    "loader": _loader,
    "storage": _storage,
}
RIVALS = ("naive", "sb3", "torchrl", "torchrl-device", "columns")
LABELS = {
    "naive": "NumPy ring, `.to()`",
    "sb3": "SB3",
    "torchrl": f"TorchRL, pinned, prefetch {DEPTH}",
    "torchrl-device": "TorchRL, storage on the device",
    "columns": "columns on the device, `column[rows]`",
    "sample": "`sample`",
    "out": "`sample(out=)`",
    "loader": f"`loader`, depth {DEPTH}",
    "storage": '`storage="cuda"`',
}


def check(source: Source, setting: Setting, finish: Callable[[], object]) -> None:
    """See that minibatches hold stored transitions, whole, and not always the same.

    Raises:
        AssertionError: A row is none that was stored.
    """
    seen = set()
    for _ in range(4):
        batch = source.fields(source.call())
        finish()
        columns = {name: batch[name].cpu().numpy() for name in FIELD_NAMES}
        tickets = decode(columns)
        seen.add(tickets.tobytes())
        for name, expected in contents(setting.workload, tickets).items():
            found = columns[name].reshape(expected.shape).astype(expected.dtype)
            assert np.array_equal(found, expected), f"{name} is none that was stored"
            assert len(found) == setting.batch_size
    assert len(seen) > 1, "always the same minibatch"

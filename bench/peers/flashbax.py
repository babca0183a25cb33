# SPDX-License-Identifier: MIT
"""Flashbax's item buffer (JAX), on the CPU: compiled functions over a state that each insert takes and gives."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from absence import require
from timing import Call
from workloads import FIELD_NAMES, Columns, Transition, Workload, chunks, contents

from peers.peer import Peer


class Flashbax(Peer):
    """flashbax.make_item_buffer, add and sample compiled, the state's memory given to add, so that it writes in place.

    A minibatch is of JAX's arrays, waited for; the key of the next one is made by the same compiled function.
    """

    name = "flashbax"
    label = "Flashbax"
    environment = "flashbax"

    def _build(self, workload: Workload, capacity: int) -> None:  # noqa: ARG002
        # Before JAX is imported: one thread, as the others have.
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
        os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")
        self.jax = require("jax")
        self.jax.config.update("jax_cpu_enable_async_dispatch", False)
        self.make_item_buffer = require("flashbax").make_item_buffer
        self.state: Any = None
        first = contents(workload, np.arange(1))
        first["terminated"] = first["terminated"].astype(bool)
        buffer = self._buffer(1, add_batches=False)
        self.state = buffer.init({name: column[0] for name, column in first.items()})
        self.key = self.jax.random.key(0)

    def _buffer(self, batch_size: int, *, add_batches: bool) -> Any:
        return self.make_item_buffer(self.capacity, min_length=1, sample_batch_size=batch_size, add_batches=add_batches)

    def _compiled_add(self, *, are_batches: bool) -> Any:
        return self.jax.jit(self._buffer(1, add_batches=are_batches).add, donate_argnums=0)

    def _adding(self, prepared: Sequence[Mapping[str, Any]], *, are_batches: bool) -> Call:
        add = self._compiled_add(are_batches=are_batches)
        block_until_ready = self.jax.block_until_ready

        def run() -> None:
            for each in prepared:
                self.state = add(self.state, each)
            block_until_ready(self.state)

        return run

    def fill(self) -> None:
        add = self._compiled_add(are_batches=True)
        for _, columns in chunks(self.workload, self.capacity):
            self.state = add(self.state, {**columns, "terminated": columns["terminated"].astype(bool)})

    def adder(self, rows: Sequence[Transition]) -> Call:
        prepared: list[dict[str, Any]] = [dict(zip(FIELD_NAMES, row, strict=True)) for row in rows]
        return self._adding([{**each, "reward": np.float32(each["reward"])} for each in prepared], are_batches=False)

    def extender(self, blocks: Sequence[Columns]) -> Call:
        return self._adding(blocks, are_batches=True)

    def sampler(self, batch_size: int) -> Call:
        sample, random = self._buffer(batch_size, add_batches=False).sample, self.jax.random

        def drawn(state: Any, key: Any) -> Any:
            key, mine = random.split(key)
            return sample(state, mine).experience, key

        compiled, block_until_ready = self.jax.jit(drawn), self.jax.block_until_ready

        def run() -> Any:
            batch, self.key = compiled(self.state, self.key)
            return block_until_ready(batch)

        return run

    def fields(self, batch: Any) -> Mapping[str, torch.Tensor]:
        return {name: torch.from_numpy(np.array(batch[name])) for name in FIELD_NAMES}

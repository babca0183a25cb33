# SPDX-License-Identifier: MIT
"""A machine of Hypothesis's with a fake device and two streams, which run when it says so."""

from __future__ import annotations

import pytest
from fake_cuda import FakeCuda, Stream
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule


class TwoStreams(RuleBasedStateMachine):
    """Whoever inherits it queues reads, which must all have found their rows in the end.

    Attributes:
        reads: What `queue_check` returned.
    """

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.cuda = FakeCuda()
        self.cuda.install(self.patch)
        self.streams = [self.cuda.current, Stream(self.cuda)]
        self.cuda.streams.append(self.streams[1])
        self.reads: list[list[bool]] = []

    @rule(which=st.integers(0, 1))
    def switch_stream(self, which: int) -> None:
        self.cuda.current = self.streams[which]

    @rule(which=st.integers(0, 1), count=st.integers(1, 6))
    def run(self, which: int, count: int) -> None:
        for _ in range(count):
            self.streams[which].run()

    def teardown(self) -> None:
        self.cuda.run_all()
        assert all(read == [True] for read in self.reads)
        self.patch.undo()

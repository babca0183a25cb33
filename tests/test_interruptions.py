# SPDX-License-Identifier: MIT
"""Exceptions of signal handlers, calls from handlers and finalizers, forks: at every moment of a loader's calls."""

from __future__ import annotations

import functools
import gc
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from fake_cuda import FakeCuda
from interruptions import is_within
from shares import by_turns
from support import FIELDS, NativeBuffer, arrays, assert_same, fill
from test_fork import in_child

import fastreplay as fr

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PACKAGE = str(Path(fr.__file__).parent)
STRESS_S = os.environ.get("FASTREPLAY_INTERRUPTIONS_S", "4")
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


class Interrupt(Exception):  # noqa: N818 - it is no error
    """What a signal handler raises."""


def interrupt() -> None:
    raise Interrupt


class Moments:
    """Does something at one moment of a call: a call, line or return of our Python, in the loader an opcode."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.num_passed = 0

    @property
    def came(self) -> bool:
        """Whether the call had so many moments."""
        return self.num_passed > self.at

    def _trace(self, frame: Any, _event: str, _argument: object) -> Any:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        frame.f_trace_opcodes = frame.f_code.co_filename.endswith(("loader.py", "replay_buffer.py"))
        self.num_passed += 1
        if self.num_passed == self.at + 1:
            self._act()
        return self._trace

    def during(self, call: Callable[[], Any], act: Callable[[], object]) -> Any:
        """Call, and act at that moment of it."""
        self._act = act
        # In a generator, which has a place of its own for the exception that is being handled: CPython (3.11) leaves
        # it there when a trace function raises within an except clause, and with it all that its frames refer to.
        outcome = next(self._during(call))
        if isinstance(outcome, StopIteration):
            raise outcome
        return outcome

    def _during(self, call: Callable[[], Any]) -> Iterator[Any]:
        before = sys.gettrace()
        sys.settrace(self._trace)
        try:
            yield call()
        except StopIteration as end:  # which must not leave a generator
            yield end
        finally:
            sys.settrace(before)


def every_moment() -> Iterator[Moments]:
    """Yield one moment after the other, up to the first that the call in its turn does not have."""
    for at in count():
        yield (moments := Moments(at))
        if not moments.came:
            return


@pytest.fixture(autouse=True)
def _finalizers_may_be_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python tells of what they raise, and goes on."""
    tell = sys.unraisablehook
    monkeypatch.setattr(sys, "unraisablehook", lambda told: None if told.exc_type is Interrupt else tell(told))


@pytest.fixture(params=["numpy", "torch", "pipeline", "resident"])
def make(request: pytest.FixtureRequest) -> Iterator[Callable[[], Any]]:
    """Give a filled buffer whose minibatches come in one of the ways that there are, its generator set back."""
    kind = request.param
    patch = pytest.MonkeyPatch()
    options: dict[str, Any] = {"output": "numpy"} if kind == "numpy" else {}
    cuda = FakeCuda()
    if kind in ("pipeline", "resident"):
        cuda.install(patch)
        options = {"device": "cuda:0", "storage": "cuda" if kind == "resident" else "host"}

    made = fill(NativeBuffer(100, FIELDS, seed=5, **options), 150)
    made.cuda = cuda

    def make() -> Any:
        cuda.run_all()
        made.rng_state = {**made.rng_state, "calls": 0}
        return made

    yield make
    gc.collect(1)
    cuda.run_all()
    patch.undo()


@functools.cache
def drawn(count: int, batch_size: int = 8) -> list[Any]:
    """Give what a loop of `sample` draws."""
    twin = fill(NativeBuffer(100, FIELDS, seed=5, output="numpy"), 150)
    return [arrays(twin.sample(batch_size)) for _ in range(count)]


def assert_drawn(buffer: Any, batches: list[Any], expected: list[Any]) -> None:
    buffer.cuda.run_all()
    assert len(batches) == len(expected)
    for batch, each in zip(batches, expected, strict=True):
        assert_same(batch, each)


def rows_in_order(buffer: Any, batches: list[Any]) -> list[bytes]:
    buffer.cuda.run_all()
    return sorted(arrays(batch)["ticket"].tobytes() for batch in batches)


@pytest.mark.share(2)
@pytest.mark.parametrize("depth", [1, 3])
def test_an_exception_at_any_moment_of_next_loses_nothing(make: Callable[[], Any], depth: int) -> None:
    """Whatever it interrupts, the next `next` gives the minibatch that this one would have given."""
    for moments in every_moment():
        buffer = make()
        loader = buffer.loader(8, depth=depth, steps=6)
        batches = [next(loader)]
        try:
            batches.append(moments.during(lambda loader=loader: next(loader), interrupt))  # type: ignore[misc]
        except Interrupt:
            assert loader.num_ahead == depth
        batches += list(loader)
        assert_drawn(buffer, batches, drawn(6))
    assert moments.at > 20


@pytest.mark.share(2)
def test_exceptions_at_every_moment_one_after_the_other(make: Callable[[], Any]) -> None:
    """Many more of them than the depth, on one loader; it ends when its steps are over, and not before."""
    buffer = make()
    loader = buffer.loader(8, depth=2, steps=16)
    batches: list[Any] = []
    num_interrupted, at = 0, 0
    while len(batches) < 16:
        moments = Moments(at)
        try:
            batches.append(moments.during(lambda: next(loader), interrupt))
            at = 0
        except Interrupt:
            num_interrupted += 1
            at += 1
    assert num_interrupted > 160
    assert list(loader) == []
    assert_drawn(buffer, batches, drawn(16))


def test_an_exception_at_any_moment_of_the_last_next(make: Callable[[], Any]) -> None:
    for moments in every_moment():
        buffer = make()
        loader = buffer.loader(8, steps=2)
        batches = [next(loader), next(loader)]
        with pytest.raises((Interrupt, StopIteration)):
            moments.during(lambda loader=loader: next(loader), interrupt)  # type: ignore[misc]
        assert list(loader) == []
        assert_drawn(buffer, batches, drawn(2))


def test_an_exception_at_any_moment_of_close(make: Callable[[], Any]) -> None:
    """It is closed, or goes on where it was; another `close` ends it for good."""
    for moments in every_moment():
        buffer = make()
        loader = buffer.loader(8, steps=6)
        batches = [next(loader)]
        try:
            moments.during(loader.close, interrupt)
        except Interrupt:
            more = list(islice(loader, 1))
            batches += more
            if more:
                batches += list(loader)
                assert len(batches) == 6
        loader.close()
        assert list(loader) == []
        assert loader.num_ahead == 0
        assert "closed" in repr(loader)
        assert_drawn(buffer, batches, drawn(len(batches)))
        assert buffer.stats()["blocks_in_flight"] == 0
    assert moments.at > 5


# A file that is open at that moment is closed by the collector.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_exception_at_any_moment_of_construction(make: Callable[[], Any]) -> None:
    """No turn is given out before the last step, and then all are: of one loader, or of none."""
    outcomes = []
    for moments in every_moment():
        buffer = make()
        with suppress(Interrupt):
            moments.during(lambda buffer=buffer: buffer.loader(8, depth=3), interrupt)  # type: ignore[misc]
        gc.collect(1)
        buffer.cuda.run_all()
        assert buffer.stats()["blocks_in_flight"] == 0
        outcomes.append(buffer.rng_state["calls"])
    assert outcomes[-1] == 3
    if buffer._mirror is None:  # which queues one draw after the other
        assert set(outcomes) == {0, 3}
        assert outcomes.count(3) < 25 < outcomes.count(0)


@pytest.mark.share(2)
@pytest.mark.parametrize("depth", [1, 3])
def test_a_next_at_any_moment_of_next(make: Callable[[], Any], depth: int) -> None:
    """As from a signal handler or a finalizer: each gets a minibatch of its own, or the inner one is refused."""
    for moments in every_moment():
        buffer = make()
        loader = buffer.loader(8, depth=depth, steps=8)
        batches = [next(loader)]

        def inner(batches: list[Any] = batches, loader: Any = loader) -> None:
            try:
                batches.extend(islice(loader, 2))
            except RuntimeError as error:
                assert "not to be entered again" in str(error)  # noqa: PT017

        batches.append(moments.during(lambda loader=loader: next(loader), inner))  # type: ignore[misc]
        batches += list(loader)
        buffer.cuda.run_all()
        assert rows_in_order(buffer, batches) == sorted(each["ticket"].tobytes() for each in drawn(8))


def test_a_close_at_any_moment_of_next(make: Callable[[], Any]) -> None:
    for moments in every_moment():
        buffer = make()
        loader = buffer.loader(8, steps=8)
        batches = [next(loader)]
        batches += moments.during(lambda loader=loader: list(islice(loader, 1)), loader.close)  # type: ignore[misc]
        assert_drawn(buffer, batches, drawn(len(batches)))
        if moments.came:
            assert list(loader) == []


def test_a_sample_at_any_moment_of_next_takes_the_turn_after_those_ahead(make: Callable[[], Any]) -> None:
    for moments in every_moment():
        buffer = make()
        loader = buffer.loader(8, depth=2, steps=5)
        batches = [next(loader)]

        def inner(batches: list[Any] = batches, buffer: Any = buffer) -> None:
            try:
                batches.append(buffer.sample(8))
            except RuntimeError as error:
                assert "not to be entered again" in str(error)  # noqa: PT017

        batches.append(moments.during(lambda loader=loader: next(loader), inner))  # type: ignore[misc]
        batches += list(loader)
        assert rows_in_order(buffer, batches) == sorted(each["ticket"].tobytes() for each in drawn(len(batches)))


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no interval timers")
@pytest.mark.parametrize("output", ["numpy", "torch"])
@pytest.mark.parametrize("how", ["extend", "for"])
def test_signal_handlers_that_raise(output: str, how: str) -> None:
    """Neither way looks for signals between a minibatch's being handed out and its being in a variable or a list."""
    buffer = fill(NativeBuffer(100, FIELDS, seed=5, output=output), 150)
    loader = buffer.loader(8, depth=2, steps=2000)
    taken: list[Any] = []
    latest: Any = None
    num_interrupted = 0

    def extend() -> None:
        taken.extend(islice(loader, 50))

    def iterate() -> None:
        nonlocal latest
        for latest in loader:
            taken.append(latest)  # noqa: PERF402

    consume = {"extend": extend, "for": iterate}[how]

    def handler(_: int, frame: Any) -> None:
        if is_within(frame, consume.__code__):
            if latest is not None and not (taken and taken[-1] is latest):
                taken.append(latest)
            raise Interrupt

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 2e-4, 2e-4)
    try:
        while loader.num_ahead > 0:
            try:
                consume()
            except Interrupt:  # noqa: PERF203
                num_interrupted += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert num_interrupted > 10
    for batch, expected in zip(taken, drawn(2000), strict=True):
        assert_same(batch, expected)


@pytest.mark.parametrize("output", ["numpy", "torch"])
def test_threads_that_iterate_while_one_is_interrupted(output: str) -> None:
    buffer = fill(NativeBuffer(100, FIELDS, seed=5, output=output), 150)
    loader = buffer.loader(8, depth=3, steps=1200)
    taken: list[list[Any]] = [[], [], []]
    threads = [threading.Thread(target=each.extend, args=(loader,)) for each in taken]
    own: list[Any] = []
    for thread in threads:
        thread.start()
    at, ended = 0, False
    while not ended:
        try:
            own += Moments(at % 150).during(lambda: list(islice(loader, 1)), interrupt)
            ended = loader.num_ahead == 0
        except Interrupt:
            pass
        at += 1
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    batches = [*own, *(batch for each in taken for batch in each)]
    assert sorted(arrays(batch)["ticket"].tobytes() for batch in batches) == sorted(
        each["ticket"].tobytes() for each in drawn(1200)
    )


@needs_fork
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_at_any_moment_of_next(output: str) -> None:
    """From a handler, say. The child's loader is refused, a new one works; the parent's goes on."""
    at = 0
    while at < 200:
        buffer = fill(NativeBuffer(100, FIELDS, seed=5, output=output), 150)
        loader = buffer.loader(8, depth=2, steps=4)
        batches = [next(loader)]

        def child(buffer: Any = buffer, loader: Any = loader) -> int:
            with pytest.raises(RuntimeError, match="make another after the fork"):
                next(loader)
            loader.close()
            with buffer.loader(8, steps=3) as own:
                return len(list(own))

        def fork(child: Any = child) -> None:
            assert in_child(child) == 3

        moments = Moments(at)
        batches.append(moments.during(lambda loader=loader: next(loader), fork))  # type: ignore[misc]
        batches += list(loader)
        for batch, expected in zip(batches, drawn(4), strict=True):
            assert_same(batch, expected)
        if not moments.came:
            break
        at += 23  # each fork takes its time


@pytest.mark.parametrize("output", ["numpy", "torch"])
def test_finalizers_that_the_collector_runs_inside_calls(output: str) -> None:
    """Each takes from the loader, samples, inserts, and closes a loader of its own."""
    buffer = fill(NativeBuffer(100, FIELDS, seed=5, output=output), 150)
    loader = buffer.loader(8, depth=2, steps=100_000)
    row = {name: value[0] for name, value in arrays(buffer[:1]).items() if name != "ticket"}
    done: list[int] = []

    class Garbage:
        def __init__(self) -> None:
            self.me = self
            self.loader = buffer.loader(4)

        def __del__(self) -> None:
            done.append(len(next(loader)) + len(buffer.sample(3)))
            buffer.add(**row)
            buffer.stats()
            self.loader.close()

    thresholds = gc.get_threshold()
    errors: list[Any] = []
    before, sys.unraisablehook = sys.unraisablehook, errors.append
    try:
        for i in range(300):
            Garbage()
            gc.set_threshold(1 + i % 7)
            for _ in range(3):
                assert len(next(loader)) == 8
                assert len(buffer.sample(5)) == 5
                buffer.add(**row)
                buffer.extend(**{name: value[None].tolist() for name, value in row.items()})
            gc.set_threshold(*thresholds)
        gc.collect(1)  # without the GIL it heeds no such thresholds
    finally:
        gc.set_threshold(*thresholds)
        sys.unraisablehook = before
        loader.close()
    assert not errors
    assert len(done) == 300


@by_turns(1, 2)
def test_everything_at_once() -> None:
    """Forks, finalizers, handlers that call and raise, threads and loaders, for FASTREPLAY_INTERRUPTIONS_S seconds."""
    if not hasattr(os, "fork") or not hasattr(signal, "setitimer"):
        pytest.skip("this system has no fork, or no interval timers")
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "interruptions.py", STRESS_S],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "done", done.stdout + done.stderr

# SPDX-License-Identifier: MIT
"""Loaders: what they yield and when it is drawn, who may hold it, how their threads end."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from fake_cuda import FakeCuda
from hypothesis import given, settings
from hypothesis import strategies as st
from support import FIELDS, NativeBuffer, arrays, assert_same, fill, handling, transitions, unchanged

import fastreplay as fr

if TYPE_CHECKING:
    from collections.abc import Iterator

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


def buffer_of(output: str = "numpy", seed: int = 0, count: int = 150) -> Any:
    return fill(NativeBuffer(100, FIELDS, seed=seed, output=output), count)


def num_threads() -> int:
    """Count this process's native threads."""
    return sum(1 for _ in Path("/proc/self/task").iterdir())


def has_threads(most: int) -> bool:
    """Tell whether the process has no more: soon, as the system lists one a little longer than it can be joined."""
    deadline = time.monotonic() + 30
    while num_threads() > most and time.monotonic() < deadline:
        time.sleep(0.001)
    return num_threads() <= most


@pytest.fixture(scope="module")
def _helpers_are_there() -> None:
    """Begin with the threads that copy large minibatches, which are the process's, and stay."""
    buffer = NativeBuffer(1, {"image": ((1 << 20,), "uint8")}, output="numpy")
    buffer.extend(np.zeros((1, 1 << 20), "uint8"))
    buffer.sample(4)


@pytest.fixture(autouse=True)
def _every_thread_ends(_helpers_are_there: None) -> Iterator[None]:
    before = num_threads()
    yield
    gc.collect()
    assert has_threads(before)


# What it yields.


@pytest.mark.parametrize("depth", [1, 2, 5])
@pytest.mark.parametrize("batch_size", [1, 16, 300])
def test_it_yields_what_sample_gives(output: str, batch_size: int, depth: int) -> None:
    buffer, twin = buffer_of(output, 7), buffer_of(output, 7)
    with buffer.loader(batch_size, depth=depth, steps=50) as loader:
        for batch in loader:
            assert isinstance(batch, fr.Minibatch)
            assert_same(batch, twin.sample(batch_size))
    assert twin.rng_state["calls"] == 50
    assert buffer.rng_state == twin.rng_state


@pytest.mark.parametrize("depth", [1, 2, 3, 7])
def test_exactly_depth_are_drawn_ahead(depth: int) -> None:
    buffer = buffer_of()
    loader = buffer.loader(16, depth=depth)
    for taken in range(20):
        assert buffer.rng_state["calls"] == taken + depth
        deadline = time.monotonic() + 30
        while buffer.stats()["sampled"] < 16 * (taken + depth) and time.monotonic() < deadline:
            time.sleep(0.0002)
        time.sleep(0.001)
        assert buffer.stats()["sampled"] == 16 * (taken + depth)  # gathered, and none more
        assert loader.num_ahead == buffer.stats()["blocks_in_flight"] == depth
        next(loader)
    loader.close()
    assert buffer.stats()["blocks_in_flight"] == 0


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 10])
@pytest.mark.parametrize("depth", [1, 3])
def test_steps_bound_it(steps: int, depth: int) -> None:
    buffer = buffer_of()
    loader = buffer.loader(16, depth=depth, steps=steps)
    assert buffer.rng_state["calls"] == min(depth, steps)
    assert sum(1 for _ in loader) == steps
    assert buffer.rng_state["calls"] == steps
    assert list(loader) == []
    assert "closed" in repr(loader)


def test_minibatches_are_the_consumers_to_keep(output: str) -> None:
    buffer, twin = buffer_of(output, 3), buffer_of("numpy", 3)
    with buffer.loader(16, depth=3, steps=200) as loader:
        held = [(batch, arrays(twin.sample(16))) for batch in loader]
    others = [buffer.sample(16) for _ in range(100)]
    for batch, expected in held:
        assert_same(batch, expected)
    assert len({batch.numpy().reward.ctypes.data for batch in [*others, *(b for b, _ in held)]}) == 300


def test_memory_is_recycled(output: str) -> None:
    buffer = buffer_of(output)
    with buffer.loader(16, depth=2, steps=300) as loader:
        found = {batch.numpy().reward.ctypes.data for batch in loader}
    assert len(found) <= 2 + 4


@settings(max_examples=60)
@given(st.lists(st.sampled_from(["first", "second", "sample", "close first"]), max_size=30))
def test_two_loaders_and_samples_of_one_thread_repeat_themselves(calls: list[str]) -> None:
    """Turns are given out in the order of this thread's calls, whatever the loaders' threads do."""

    def run(pause: bool) -> list[dict[str, Any]]:
        buffer = buffer_of("numpy", 5)
        loaders = {"first": buffer.loader(8, depth=2), "second": buffer.loader(8, depth=1)}
        seen = []
        for call in calls:
            if pause and call != "sample":
                time.sleep(0.0003)
            if call == "close first":
                loaders["first"].close()
            elif call == "sample":
                seen.append(arrays(buffer.sample(8)))
            else:
                seen += [arrays(batch) for batch in [next(loaders[call], None)] if batch is not None]
        for loader in loaders.values():
            loader.close()
        return [*seen, {"calls": np.array(buffer.rng_state["calls"])}]

    for once, again in zip(run(False), run(True), strict=True):
        assert_same(once, again)


def test_faces_have_draws_of_their_own() -> None:
    """Each thread its own loader on its own face: reproducible whatever the others do."""

    def run() -> list[list[Any]]:
        faces = buffer_of("numpy", 5).spawn(3)
        seen: list[list[Any]] = [[], [], []]

        def draw(which: int) -> None:
            with faces[which].loader(16, steps=40) as loader:
                seen[which] += [batch.ticket.tolist() for batch in loader]

        threads = [threading.Thread(target=draw, args=(which,)) for which in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return seen

    assert run() == run()


def test_threads_share_a_loader() -> None:
    buffer, twin = buffer_of("numpy", 5), buffer_of("numpy", 5)
    loader = buffer.loader(16, depth=3, steps=400)
    seen: list[list[int]] = []
    threads = [
        threading.Thread(target=lambda: seen.extend(batch.ticket.tolist() for batch in loader)) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(seen) == sorted(twin.sample(16).ticket.tolist() for _ in range(400))


# What may go on meanwhile.


def test_an_empty_buffer_says_so_and_can_be_filled() -> None:
    buffer, twin = NativeBuffer(100, FIELDS, seed=1, output="numpy"), NativeBuffer(100, FIELDS, seed=1, output="numpy")
    loader = buffer.loader(16, depth=3, steps=10)
    for _ in range(5):
        with unchanged_generator(buffer), pytest.raises(ValueError, match="sample: the buffer is empty"):
            next(loader)
    fill(buffer, 50), fill(twin, 50)
    for _ in range(4):
        assert_same(next(loader), twin.sample(16))
    buffer.clear()
    seen = 0
    with suppress(ValueError):
        for _ in loader:  # what was gathered before
            seen += 1
    assert seen <= 3
    fill(buffer, 50)
    assert sum(1 for _ in loader) == 10 - 4 - seen


class unchanged_generator:  # noqa: N801  reads as `unchanged` of support.py
    def __init__(self, buffer: Any) -> None:
        self.buffer = buffer

    def __enter__(self) -> None:
        self.before = self.buffer.rng_state

    def __exit__(self, *_: object) -> None:
        assert self.buffer.rng_state == self.before


def test_a_buffer_filled_after_the_loader_was_made_is_not_empty() -> None:
    buffer = NativeBuffer(100, FIELDS, seed=1, output="numpy")
    for _ in range(20):
        buffer.clear()
        with buffer.loader(4, depth=3) as loader:
            time.sleep(0.001)
            fill(buffer, 1)
            next(loader)


def test_inserts_and_clears_meanwhile() -> None:
    buffer = buffer_of()
    stop = threading.Event()

    def insert() -> None:
        while not stop.is_set():
            buffer.extend(**transitions(buffer.stats()["inserted"], 9))

    def clear() -> None:
        while not stop.is_set():
            time.sleep(0.001)
            buffer.clear()

    threads = [threading.Thread(target=work) for work in (insert, clear)]
    for thread in threads:
        thread.start()
    try:
        num_batches = 0
        with buffer.loader(32) as loader:
            while num_batches < 3000:
                try:
                    batch = next(loader)
                except ValueError:
                    continue
                num_batches += 1
                assert (batch.reward == 2 * batch.ticket.astype(np.float32)).all()
                assert (batch.action[:, 1] == -batch.ticket).all()
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_setting_the_generator_leaves_the_loader_alone() -> None:
    buffer, twin = buffer_of("numpy", 5), buffer_of("numpy", 5)
    with buffer.loader(16, steps=10) as loader:
        buffer.rng_state = {"key": [1, 2], "calls": 3}
        for batch in loader:
            assert_same(batch, twin.sample(16))
    assert buffer.rng_state == {"key": [1, 2], "calls": 3}


def test_waits_are_counted() -> None:
    buffer = NativeBuffer(200, {"image": ((400, 400), "uint8")}, seed=0, output="numpy")
    buffer.extend(np.zeros((200, 400, 400), "uint8"))
    assert (buffer.stats()["waits"], buffer.stats()["wait_s"]) == (0, 0.0)
    start, num_taken = time.perf_counter(), 0
    while not buffer.stats()["waits"]:  # a consumer that does nothing comes, sooner or later, before the thread is done
        with buffer.loader(100, steps=20) as loader:
            num_taken += sum(1 for _ in loader)
            live = buffer.stats()
    stats = buffer.stats()
    assert 1 <= stats["waits"] <= num_taken
    assert 0 < stats["wait_s"] <= time.perf_counter() - start
    assert (live["waits"], live["wait_s"]) == (stats["waits"], stats["wait_s"])
    assert buffer.spawn(1)[0].stats()["waits"] == 0


# Arguments.


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"batch_size": 0}, ValueError, "batch_size: expected at least 1, got 0"),
        ({"batch_size": 1.5}, TypeError, "batch_size.*float"),
        ({"depth": 0}, ValueError, "depth: expected at least 1, got 0"),
        ({"depth": True}, TypeError, "depth.*True"),
        ({"depth": None}, TypeError, "depth.*None"),
        ({"steps": -1}, ValueError, "steps: expected a non-negative integer or None, got -1"),
        ({"steps": 2.0}, TypeError, "steps.*float"),
    ],
)
def test_refused_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    buffer = buffer_of()
    with unchanged(buffer), pytest.raises(error, match=message):
        buffer.loader(**{"batch_size": 4, **arguments})


def test_what_it_tells() -> None:
    loader = buffer_of().loader(16, depth=3)
    assert (loader.batch_size, loader.depth, loader.num_ahead) == (16, 3, 3)
    assert repr(loader) == "Loader(batch_size=16, depth=3: 3 ahead)"
    loader.close()
    assert repr(loader) == "Loader(batch_size=16, depth=3: closed)"


# Ends.


def test_closing() -> None:
    buffer = buffer_of()
    before = num_threads()
    loader = buffer.loader(16)
    assert num_threads() == before + 1
    next(loader)
    for _ in range(3):
        loader.close()
        assert has_threads(before)
        assert list(loader) == []
    with buffer.loader(16) as loader:
        assert num_threads() == before + 1
    assert has_threads(before)


def test_breaking_off_and_garbage() -> None:
    buffer = buffer_of()
    before = num_threads()
    for _ in buffer.loader(16):
        break
    assert has_threads(before)  # the last reference is gone
    loader = buffer.loader(16)
    cycle: list[Any] = [loader]
    cycle.append(cycle)
    gone = weakref.ref(loader)
    del loader, cycle
    gc.collect()
    assert gone() is None
    assert has_threads(before)


def test_an_exception_of_the_consumer_ends_the_thread() -> None:
    buffer = buffer_of()
    before = num_threads()
    with suppress(ZeroDivisionError), buffer.loader(16) as loader:
        next(loader)
        raise ZeroDivisionError
    assert has_threads(before)


def test_the_buffer_may_go_first() -> None:
    buffer, twin = buffer_of("numpy", 2), buffer_of("numpy", 2)
    loader = buffer.loader(16)
    del buffer
    gc.collect()
    for _ in range(20):
        assert_same(next(loader), twin.sample(16))


def test_a_thread_that_closes_under_a_consumer() -> None:
    buffer = buffer_of()
    for pause in np.linspace(0, 2e-3, 100):
        loader = buffer.loader(16)
        seen: list[int] = []

        def consume(loader: Any = loader, seen: list[Any] = seen) -> None:
            seen.extend(len(batch) for batch in loader)

        thread = threading.Thread(target=consume)
        thread.start()
        time.sleep(pause)
        loader.close()
        thread.join(10)
        assert not thread.is_alive()
        assert set(seen) <= {16}
    assert buffer.stats()["blocks_in_flight"] == 0


def test_ctrl_c_is_heard_while_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread is stuck for as long as we like; it needs the GIL, which so is not held by who waits."""
    cuda = FakeCuda()
    cuda.install(monkeypatch)
    buffer, twin = fill(NativeBuffer(100, FIELDS, seed=3, device="cuda:0"), 150), buffer_of("numpy", 3)
    cuda.may_send.clear()
    loader = buffer.loader(16)
    assert cuda.is_sending.wait(10)
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    with handling(signal.SIGINT, signal.default_int_handler):
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            next(loader)
        timer.join()
    cuda.may_send.set()
    batch = next(loader)  # nothing was lost
    loader.close()
    cuda.run_all()
    assert_same(batch, twin.sample(16))


def run_script(code: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
    head = """
        import os, sys, threading, time
        import numpy as np, fastreplay as fr
        buffer = fr.ReplayBuffer(1000, {"x": (100,)}, seed=0, output="numpy")
        buffer.extend(np.zeros((1000, 100), np.float32))
    """
    return subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", textwrap.dedent(head) + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        cwd=Path(__file__).parent,
        check=False,
    )


@pytest.mark.share(3)
@pytest.mark.parametrize(
    "code",
    [
        "loader = buffer.loader(512, depth=8)",
        "loader = buffer.loader(512); next(loader)",
        "cycle = [buffer.loader(512)]; cycle.append(cycle)",
        "import builtins; builtins.kept = buffer.loader(512)",
        "sys.modules['kept'] = buffer.loader(512)",
        "for batch in buffer.loader(512): break",
        "loader = buffer.loader(512); sys.exit(0)",
        "threading.Thread(target=lambda: [1 for _ in buffer.loader(64)], daemon=True).start(); time.sleep(0.1)",
        """
        loader = buffer.loader(64)
        for _ in range(3):
            threading.Thread(target=lambda: [1 for _ in loader], daemon=True).start()
        time.sleep(0.1)
        """,
    ],
)
def test_the_interpreters_exit(code: str) -> None:
    for _ in range(2):
        done = run_script(code)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@needs_fork
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_gets_an_error_and_makes_its_own() -> None:
    done = run_script(
        """
        loader = buffer.loader(512, depth=3)
        for busy in (False, True):
            for batch, _ in zip(loader, range(5)):
                pass
            if not busy:
                time.sleep(0.05)
            pid = os.fork()
            if pid == 0:
                try:
                    next(loader)
                except RuntimeError as error:
                    print(error, flush=True)
                loader.close()
                print(buffer.stats()["waits"] >= 0, flush=True)
                del loader
                with buffer.loader(512, steps=20) as own:
                    print(sum(1 for _ in own), flush=True)
                sys.exit(0)
            _, status = os.waitpid(pid, 0)
            assert status == 0, status
            next(loader)
        print("parent", flush=True)
        """
    )
    error = "loader: its thread is in the process that made it; make another after the fork"
    assert done.stdout.splitlines() == [*[error, "True", "20"] * 2, "parent"]
    assert (done.returncode, done.stderr) == (0, "")


@needs_fork
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_forks_at_any_moment() -> None:
    """Also while the thread holds its lock: the child ends by itself."""
    done = run_script(
        """
        loader = buffer.loader(16, depth=2)
        for _ in range(60):
            next(loader)
            pid = os.fork()
            if pid == 0:
                try:
                    next(loader)
                except RuntimeError:
                    sys.exit(7)
            _, status = os.waitpid(pid, 0)
            assert os.waitstatus_to_exitcode(status) == 7
        """,
        timeout_s=120,
    )
    assert (done.returncode, done.stderr) == (0, "")

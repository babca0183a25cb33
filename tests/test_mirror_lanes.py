# SPDX-License-Identifier: MIT
"""Lanes with storage="cuda": what surrounds rows, on a fake device, and on a real one where there is one.

Beside each buffer stands one on the CPU, which draws the same rows and makes the same of them, bit for bit. What the
kernels do, tests/cpp/test_following.cpp runs on the CPU.
"""

from __future__ import annotations

import ctypes
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_cuda import FakeCuda, cuda_device, queue_check, the_host_never_waits
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule
from support import IS_LONG_FORM, NativeBuffer
from two_streams import TwoStreams

import fastreplay as fr
from fastreplay.gpu import following, ring

FIELDS: dict[str, Any] = {
    "image": ((40, 60), "uint8"),
    "joints": ((3,), "float64"),
    "reward": (),
    "cost": ((2,), "float64"),
    "decay": (),
    "next_image": ((40, 60), "uint8"),
    "terminated": ((), "bool"),
    "truncated": ((), "bool"),
}
SMALL: dict[str, Any] = {"n": ((), "int64"), "reward": (), "next_n": ((), "int64"), "terminated": ((), "bool")}
EXACT = fr.Priorities(alpha=1.0, eps=0.0)

PADDED: list[Any] = [
    fr.NStep(1, 0.9),
    fr.NStep(3, 0.9, reward=("reward", "cost"), discount="decay"),
    fr.NStep(12, 0.99, reward="cost"),
    fr.Sequence(4),
    fr.Sequence(3, burn_in=4, stride=2, pad="zero", first_only="joints"),
    fr.Window({"image": range(-3, 2), "joints": [1], "cost": range(2, 9, 3), "reward": [-6, -4]}, pad="zero"),
    fr.Window({"image": [-2], "terminated": [1]}),
    fr.Sequence(3, burn_in=1, first_only="joints", pad="zero", time_major=True),
]
REDRAWN: list[Any] = [
    fr.NStep(2, 0.9, incomplete="redraw"),
    fr.Sequence(2, burn_in=2, incomplete="redraw"),
    fr.Window({"reward": range(-2, 2)}, incomplete="redraw", pad="zero"),
]


def rows(count: int, seed: int) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    made: dict[str, Any] = {"reward": random.normal(size=count).astype(np.float32), "cost": random.random((count, 2))}
    for name in ("image", "next_image"):
        made[name] = random.integers(0, 256, (count, 40, 60), np.uint8)
    made["joints"] = random.normal(size=(count, 3))
    made["decay"] = random.choice(np.array([0.5, 1.0], np.float32), count)
    made["terminated"], made["truncated"] = random.random((2, count)) < 0.08
    return made


def small_rows(first: int, terminated: Any) -> dict[str, Any]:
    n = np.arange(first, first + len(terminated))
    return {"n": n, "reward": n.astype(np.float32) / 7, "next_n": n + 1, "terminated": np.asarray(terminated, bool)}


def pair(capacity: int, *, lanes: int = 2, seed: int = 0, fields: Any = FIELDS, **options: Any) -> tuple[Any, Any]:
    """Make a buffer on the device, and one on the CPU."""
    there = NativeBuffer(capacity, fields, seed=seed, lanes=lanes, device="cuda:0", storage="cuda", **options)
    return there, NativeBuffer(capacity, fields, seed=seed, lanes=lanes, output="numpy", **options)


def content(batch: Any) -> dict[str, Any]:
    """Return all of a minibatch by name; dicts of fields leaf by leaf."""
    names = (*batch._block.layout.form.schema, *batch._beside)
    values = (*batch._values, *batch._beside.values())
    found = {**dict(zip(names, values, strict=True)), "ticket": batch.ticket}
    return {name: (value.cpu().numpy() if hasattr(value, "cpu") else value).copy() for name, value in found.items()}


def assert_draw(batch: Any, expected: dict[str, Any]) -> None:
    found = content(batch)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if name == "weight":
            np.testing.assert_allclose(found[name], value, rtol=2e-6)
        else:
            assert (found[name].dtype, found[name].shape) == (value.dtype, value.shape), name
            assert found[name].tobytes() == value.tobytes(), name


def draw_both(cuda: Any, there: Any, twin: Any, batch_size: int = 16, times: int = 1, **options: Any) -> None:
    for _ in range(times):
        batch, expected = there.sample(batch_size, **options), content(twin.sample(batch_size, **options))
        cuda.run_all()
        assert_draw(batch, expected)


def fill_small(*buffers: Any, count: int = 40, every: int = 7) -> None:
    for each in buffers:
        for i in range(0, count, 2):
            each.extend(**small_rows(i, [(i + lane) % every == 0 for lane in (0, 1)]))


class TestOnAnyDevice:
    """The same on the fake device and on a real one."""

    @pytest.mark.parametrize("priorities", [None, EXACT], ids=["uniform", "by priority"])
    @pytest.mark.parametrize("capacity", [20, 47])
    def test_it_makes_what_the_cpu_makes(self, any_cuda: Any, capacity: int, priorities: Any) -> None:
        """Laps, ends, cuts, lanes that come by turns, what is not there yet, and what is gone."""
        there, twin = pair(capacity, lanes=3, priorities=priorities, seed=capacity)
        random = np.random.default_rng(capacity)
        for step in range(12):
            order = random.integers(0, 3, random.integers(1, 30))
            given = {} if priorities is None else {"priority": random.exponential(size=len(order))}
            for each in (there, twin):
                each.extend(**rows(len(order), step), lanes=order, **given)
                if step % 3 == 1:
                    each.cut(int(order[-1]))
            for follow in (PADDED[step % len(PADDED)], REDRAWN[step % len(REDRAWN)]):
                draw_both(any_cuda, there, twin, follow=follow)
        assert there.rng_state == twin.rng_state
        stats = twin.stats()
        assert stats["redraws"] > 0
        assert {name: there.stats()[name] for name in ("sampled", "redraws", "incomplete")} == {
            name: stats[name] for name in ("sampled", "redraws", "incomplete")
        }
        assert getattr(any_cuda, "num_host_waits", 0) == 0

    @pytest.mark.parametrize("mix", [0.0, 0.4])
    @pytest.mark.parametrize("normalize", ["batch", "buffer"])
    def test_weights_are_of_what_was_drawn_in_the_end(self, any_cuda: Any, normalize: Any, mix: float) -> None:
        """Of rows drawn again, too; a few of the complete ones weigh nothing."""
        rule = fr.Priorities(alpha=1.0, eps=0.0, normalize=normalize, uniform_mix=mix)
        there, twin = pair(60, fields=SMALL, priorities=rule)
        for each in (there, twin):
            for i in range(0, 60, 2):
                each.extend(**small_rows(i, [i % 14 == 0, i % 10 == 0]), priority=[i % 6, 1])
        for n in (2, 4):
            draw_both(any_cuda, there, twin, 40, times=3, follow=fr.NStep(n, 0.9, incomplete="redraw"))

    @pytest.mark.parametrize("priorities", [None, EXACT], ids=["without priorities", "with priorities"])
    def test_draws_over_trajectories(self, any_cuda: Any, priorities: Any) -> None:
        """Laps, ends, cuts; what is gone in the middle; with all that surrounds rows, drawn again and counted, too."""
        there, twin = pair(37, lanes=3, fields=SMALL, priorities=priorities)
        draw = fr.Uniform(over="trajectories")
        follows: list[Any] = [None, fr.NStep(3, 0.9), fr.Sequence(2, burn_in=1, incomplete="redraw")]
        samplers = [tuple(each.sampler(draw=draw, follow=f, seed=3) for each in (there, twin)) for f in follows]
        random = np.random.default_rng(0)
        for step in range(14):
            order = random.integers(0, 3, random.integers(1, 30))
            given = small_rows(100 * step, random.random(len(order)) < 0.1)
            for each in (there, twin):
                if step == 9:
                    each.clear()
                each.extend(**given, lanes=order)
                if step % 3 == 1:
                    each.cut(int(order[-1]))
            for sampler, other in samplers:
                draw_both(any_cuda, sampler, other)
        for sampler, other in samplers:
            assert sampler.rng_state == other.rng_state
            assert sampler.stats()["redraws"] == other.stats()["redraws"]
            with sampler.loader(8, steps=3) as loader:
                batches = list(loader)
            any_cuda.run_all()
            for batch in batches:
                assert_draw(batch, content(other.sample(8)))
        assert samplers[2][0].stats()["redraws"] > 0

    def test_one_long_trajectory_is_drawn_from(self, any_cuda: Any) -> None:
        """Whose beginning as many looks do not always find as there are transitions, twice."""
        there, twin = pair(60, lanes=1, fields=SMALL)
        for each in (there, twin):
            each.extend(**small_rows(0, [False] * 60))
        draw = fr.Uniform(over="trajectories")
        sampler, other = (each.sampler(draw=draw, seed=1) for each in (there, twin))
        draw_both(any_cuda, sampler, other, 60)
        out = sampler.sample(8)
        other.sample(8)
        with any_cuda.capture() as graph:
            sampler.sample(8, out=out)
        for _ in range(3):
            any_cuda.replay(graph)
            any_cuda.run_all()
            assert_draw(out, content(other.sample(8)))

    def test_what_is_cut_later_is_complete(self, any_cuda: Any) -> None:
        """Also where the next trajectory has begun before anybody draws."""
        follow = fr.NStep(3, 0.9, incomplete="redraw")
        there, twin = pair(50, fields=SMALL)
        for each in (there, twin):
            each.extend(**small_rows(0, [False, False]))
            with pytest.raises(ValueError, match="no window of 3 steps is complete"):
                each.sample(4, follow=follow)
            each.cut(0)
        twin.rng_state = there.rng_state
        draw_both(any_cuda, there, twin, follow=follow, times=3)
        for each in (there, twin):
            each.cut(1)
            each.extend(**small_rows(2, [False, False]))
        draw_both(any_cuda, there, twin, follow=follow, times=5)

    def test_a_graph_draws_anew_from_what_was_flushed(self, any_cuda: Any) -> None:
        for priorities in (None, EXACT):
            there, twin = pair(40, fields=SMALL, priorities=priorities)
            fill_small(there, twin)
            follows: list[Any] = [fr.NStep(3, 0.9), fr.Sequence(3, burn_in=2, incomplete="redraw")]
            outs = [there.sample(8, follow=follow) for follow in follows]
            for follow in follows:
                twin.sample(8, follow=follow)
            with any_cuda.capture() as graph:
                for follow, out in zip(follows, outs, strict=True):
                    assert there.sample(8, out=out, follow=follow) is out
            for i in range(3):
                any_cuda.replay(graph)
                expected = [content(twin.sample(8, follow=follow)) for follow in follows]
                any_cuda.run_all()
                for out, each in zip(outs, expected, strict=True):
                    assert_draw(out, each)
                for buffer in (there, twin):
                    buffer.extend(**small_rows(40 + 2 * i, [i == 1, False]))
                there.flush()
            assert there.rng_state == twin.rng_state

    def test_a_graph_gives_what_is_there_where_nothing_is_complete(self, any_cuda: Any) -> None:
        """It ends, gives no steps but those of the row's trajectory, and it is counted."""
        follow = fr.Sequence(4, incomplete="redraw")
        there, _ = pair(40, fields=SMALL)
        there.extend(**small_rows(0, [False, True]))
        out = there.sample(8, follow=follow)
        assert there.stats()["incomplete"] == 0
        there.clear()
        there.extend(**small_rows(2, [False, False]))
        there.flush()
        with any_cuda.capture() as graph:
            there.sample(8, out=out, follow=follow)
        for i in range(2):
            any_cuda.replay(graph)
            any_cuda.run_all()
            found = content(out)
            assert set(found["ticket"]) <= {2, 3}
            assert (found["n"] == found["ticket"][:, None]).all()
            np.testing.assert_array_equal(found["mask"], [[True, False, False, False]] * 8)
            assert there.stats()["incomplete"] == 8 * (i + 1)
        with pytest.raises(ValueError, match="no window of 4 steps is complete among what can be drawn; of 2 tr"):
            there.sample(8, follow=follow)
        with pytest.raises(ValueError, match="no window of 4 steps is complete"):
            there.sample(8, out=out, follow=follow)

    def test_errors_of_sequences_are_reduced_over_there(self, any_cuda: Any) -> None:
        there, twin = pair(40, fields=SMALL, priorities=EXACT)
        fill_small(there, twin)
        for time_major in (True, False):
            follow = fr.Sequence(3, burn_in=2, time_major=time_major)
            batch, other = there.sample(8, follow=follow), twin.sample(8, follow=follow)
            any_cuda.run_all()
            errors = np.random.default_rng(0).integers(-8, 9, other.mask.shape).astype(np.float32)
            there.update_priorities(batch, any_cuda.tensor(errors), eta=0.5)
            twin.update_priorities(other, errors, eta=0.5)
        found, expected = there.sample(30), twin.sample(30)
        any_cuda.run_all()
        np.testing.assert_allclose(found.probability.cpu(), expected.probability, rtol=1e-6)
        with pytest.raises(ValueError, match=r"priorities: expected \(8,\) or \(8, 5\), got \(8, 4\)"):
            there.update_priorities(batch, any_cuda.tensor(errors[:, :4]))
        with pytest.raises(ValueError, match="eta: expected"):
            there.update_priorities(batch, any_cuda.tensor(errors), eta=2)

    def test_samplers_loaders_faces_and_pickles(self, any_cuda: Any) -> None:
        there, twin = pair(40, fields=SMALL)
        fill_small(there, twin, count=60)
        follow = fr.Sequence(3, burn_in=2, incomplete="redraw")
        with there.loader(8, depth=2, steps=5, follow=follow) as loader:
            batches = list(loader)
        any_cuda.run_all()
        for batch in batches:
            assert_draw(batch, content(twin.sample(8, follow=follow)))
        draw_both(any_cuda, there.sampler(follow=follow, seed=4), twin.sampler(follow=follow, seed=4))
        draw_both(any_cuda, there.spawn(1)[0], twin.spawn(1)[0], follow=follow)
        copy, twin_copy = (pickle.loads(pickle.dumps(each)) for each in (there, twin))
        for each in (copy, twin_copy):
            each.extend(**small_rows(60, [False, False]))
        draw_both(any_cuda, copy, twin_copy, follow=follow, times=3)
        draw_both(any_cuda, there, twin)  # transitions by themselves


def test_rules_take_each_others_minibatches(cuda: FakeCuda) -> None:
    """Whose parts are the same, whatever the rule before."""
    there, twin = pair(40, fields=SMALL)
    fill_small(there, twin)
    out = there.sample(8, follow=fr.NStep(3, 0.9))
    twin.sample(8, follow=fr.NStep(3, 0.9))
    for gamma in (0.5, 0.9):
        there.sample(8, out=out, follow=fr.NStep(4, gamma))
        queue_check(cuda.current, out, content(twin.sample(8, follow=fr.NStep(4, gamma))))
    cuda.run_all()
    with pytest.raises(ValueError, match="out: expected a minibatch"):
        there.sample(8, out=out)


def test_rows_that_are_left_out(cuda: FakeCuda) -> None:
    there, twin = pair(40, fields=SMALL, lanes=2)
    for step in range(12):
        for each in (there, twin):
            each.extend(**small_rows(2 * step, [step % 5 == 4, False]), mask=[step % 3 != 1, step % 4 != 2])
        for follow in (fr.NStep(3, 0.9), fr.Sequence(2, burn_in=1, incomplete="redraw")):
            if step > 3:
                draw_both(cuda, there, twin, follow=follow)


def test_only_links_go_over_beside_the_records(cuda: FakeCuda) -> None:
    there, _ = pair(40, fields=SMALL)
    fill_small(there)
    there.sample(4)
    cuda.run_all()
    before = cuda.num_copied_bytes
    there.extend(**small_rows(40, [False, False]))
    there.sample(4, follow=fr.NStep(2, 0.9))
    assert cuda.num_copied_bytes - before == 2 * (there._ring.records.record_bytes + following.LINK_BYTES)


def test_whether_anything_is_complete_is_looked_for_once(cuda: FakeCuda) -> None:
    there, _ = pair(40, fields=SMALL)
    fill_small(there)
    follow = fr.NStep(3, 0.9, incomplete="redraw")
    there.sample(4, follow=follow)
    source = there._followers.of(follow, there._new_delivery)._from
    known = source.oldest_known
    assert known >= 0
    source.newest_complete = None  # asking again would fail
    there.sample(4, follow=follow)
    cuda.run_all()
    assert source.oldest_known == known


def test_draws_of_the_newest_and_in_epochs_stay_refused(cuda: FakeCuda) -> None:
    del cuda
    there, _ = pair(8, fields=SMALL)
    for draw, said in (
        (fr.Uniform(newest=1), "nothing of the newest with storage='cuda'"),
        (fr.Uniform(newest_of=3), "nothing of the newest with storage='cuda'"),
        (fr.Epochs(), r"Uniform\(\) with storage='cuda'"),
    ):
        with pytest.raises(ValueError, match=f"^draw: expected {said}"):
            there.sampler(draw=draw)


def test_no_lanes_without_the_cuda_part(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    del cuda
    monkeypatch.setattr(following, "cuda_following", lambda _: (None, "no compiler"))
    with pytest.raises(RuntimeError, match="lanes: on cuda:0 they need the CUDA part of fastreplay: no compiler"):
        pair(10)


def test_a_failed_launch_says_so_and_what_comes_next_goes_on(cuda: FakeCuda) -> None:
    there, twin = pair(40, fields=SMALL)
    fill_small(there, twin)
    cuda.launch_error = 700
    for call in (lambda: there.sample(4, follow=fr.NStep(2, 0.9)), there.flush):
        with pytest.raises(RuntimeError, match="storage: the launch on cuda:0 failed: fake error 700"):
            call()
    cuda.launch_error = 0
    draw_both(cuda, there, twin, follow=fr.NStep(3, 0.9))


@pytest.mark.parametrize(("name", "struct"), [("linking", following._Linking), ("following", following._Following)])
def test_the_struct_is_that_of_the_header(name: str, struct: Any) -> None:
    header = re.sub(r"/\*.*?\*/", "", HEADER, flags=re.DOTALL)
    start = header.index(f"struct fastreplay_cuda_{name} {{")
    fields = re.findall(r"^\s*(.+?[ *])(\w+);", header[start : header.index("};", start)], re.MULTILINE)
    kinds: dict[str, Any] = {"uint64_t ": ctypes.c_uint64, "double ": ctypes.c_double}
    assert [(name, kinds.get(kind, ctypes.c_void_p)) for kind, name in fields] == list(struct._fields_)


HEADER = (Path(__file__).parents[1] / "csrc/cuda/following.h").read_text()


def test_makings_are_those_of_the_header() -> None:
    start = HEADER.index("enum fastreplay_cuda_making {")
    names = re.findall(r"^  FASTREPLAY_CUDA_(\w+)", HEADER[start : HEADER.index("};", start)], re.MULTILINE)
    assert [getattr(following, f"_{name}") for name in names] == list(range(12))
    assert HEADER.count("uint32_t before;") == HEADER.count("uint32_t after; ") == 1
    assert following.LINK_BYTES == 2 * 4
    counted = (Path(__file__).parents[1] / "csrc/cuda/sampling.h").read_text()
    generator = counted[counted.index("struct fastreplay_cuda_generator {") :]
    assert (generator[: generator.index("};")].count("uint64_t") + 1) * 8 == ring._GENERATOR_BYTES


class Interleavings(TwoStreams):
    """Inserts, cuts, draws, on two streams that run when the machine says. Every read must find its rows."""

    def __init__(self) -> None:
        super().__init__()
        self.num_inserted = 0

    @initialize(seed=st.integers(0, 3), capacity=st.sampled_from([3, 7, 20]), lanes=st.sampled_from([1, 3]))
    def begin(self, seed: int, capacity: int, lanes: int) -> None:
        self.there, self.twin = pair(capacity, seed=seed, lanes=lanes, fields=SMALL)
        self.lanes = lanes

    @rule(order=st.lists(st.integers(0, 2), min_size=1, max_size=25), ends=st.integers(1, 9))
    def insert(self, order: list[int], ends: int) -> None:
        chosen = [lane % self.lanes for lane in order]
        for each in (self.there, self.twin):
            each.extend(**small_rows(self.num_inserted, [i % ends == 0 for i in range(len(order))]), lanes=chosen)
        self.num_inserted += len(order)

    @rule(lane=st.integers(0, 2))
    def cut(self, lane: int) -> None:
        self.there.cut(lane % self.lanes), self.twin.cut(lane % self.lanes)

    @rule(lane=st.integers(0, 2))
    def leave_out(self, lane: int) -> None:
        for each in (self.there, self.twin):
            each.extend(**small_rows(0, [False]), lanes=[lane % self.lanes], mask=[False])

    @rule()
    def clear(self) -> None:
        self.there.clear(), self.twin.clear()

    @rule()
    def flush(self) -> None:
        self.there.flush()

    @precondition(lambda self: len(self.twin) > 0)
    @rule(
        follow=st.sampled_from(
            [
                fr.NStep(3, 0.5),
                fr.NStep(2, 0.5, incomplete="redraw"),
                fr.Sequence(3, burn_in=2, pad="zero"),
                fr.Sequence(2, burn_in=1, incomplete="redraw"),
            ]
        )
    )
    def sample(self, follow: Any) -> None:
        try:
            other = self.twin.sample(5, follow=follow)
        except ValueError as error:
            with pytest.raises(ValueError, match=re.escape(str(error))):
                self.there.sample(5, follow=follow)
            self.twin.rng_state = self.there.rng_state
            return
        self.reads.append(queue_check(self.cuda.current, self.there.sample(5, follow=follow), content(other)))


TestInterleavings = Interleavings.TestCase
TestInterleavings.settings = settings(max_examples=100 if IS_LONG_FORM else 30, stateful_step_count=40)


class TestOnADevice:
    pytestmark = cuda_device

    def test_the_host_never_waits(self) -> None:
        there, _ = pair(200, fields=SMALL, priorities=EXACT)
        fill_small(there, count=200)
        follows = fr.NStep(3, 0.9), fr.Sequence(5, burn_in=5, incomplete="redraw")
        for follow in follows:
            there.update_priorities(there.sample(64, follow=follow), torch.rand(64, device="cuda:0"))
        torch.cuda.synchronize()
        with the_host_never_waits():
            for follow in follows * 5:
                batch = there.sample(64, follow=follow)
                errors = batch.reward if follow is follows[1] else batch.reward.abs()
                there.update_priorities(batch, errors)

    def test_long_sequences_of_many_rows(self) -> None:
        there, twin = pair(3000, fields=SMALL, lanes=4)
        for each in (there, twin):
            for i in range(0, 5000, 4):
                each.extend(**small_rows(i, np.arange(i, i + 4) % 601 == 0))
        for follow in (fr.Sequence(80, burn_in=40), fr.NStep(50, 0.99), fr.Sequence(60, incomplete="redraw")):
            for batch_size in (1, 600, 2000):
                draw_both(RealNow(), there, twin, batch_size, follow=follow)


class RealNow:
    def run_all(self) -> None:
        torch.cuda.synchronize()

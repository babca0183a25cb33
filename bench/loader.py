# SPDX-License-Identifier: MIT
"""What a loader wins on the CPU: a loop that samples and learns, beside one whose minibatches are drawn ahead.

The learner's step is native work that leaves the minibatch's memory alone and takes as long as `sample` does, so
that drawing ahead can win at most half of the loop.

python bench/loader.py                 all of it, into bench/results/ (about a minute)
python bench/loader.py --quick         small and short: does it run at all? Printed only, unless --out
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from datetime import date
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from machine import ROOT, as_file_name, cpu_name, describe_machine
from output import bullets, number, ratio, table, write
from timing import keep_heap, no_garbage_collection
from workloads import WORKLOADS, Workload, chunks, decode

import fastreplay as fr

if TYPE_CHECKING:
    from collections.abc import Callable

_SIZES = (("cheetah", 256), ("cheetah", 4096), ("atari", 32))
_DISTRIBUTIONS = ("fastreplay", "numpy", "torch")
_DEPTH = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="small and short; no files, unless --out")
    parser.add_argument("--out", type=Path, help="where the files go (bench/results)")
    options = parser.parse_args()
    if options.out is None and not options.quick:
        options.out = ROOT / "bench" / "results"
    torch.set_num_threads(1)
    keep_heap()
    shrink, rounds, round_s = (100, 5, 0.02) if options.quick else (1, 61, 0.1)
    header = {
        "date": date.today().isoformat(),
        "command": shlex.join(["python", *sys.argv]),
        **describe_machine(_DISTRIBUTIONS),
        "method": f"{rounds} rounds of {round_s} s by turns; medians; torch tensors; a loader of depth {_DEPTH}",
    }
    found = [
        _measure(WORKLOADS[name], batch_size, WORKLOADS[name].capacity // shrink, rounds, round_s)
        for name, batch_size in _SIZES
    ]
    markdown = f"# Loader on the CPU, measured\n\n{bullets(header)}\n\n{_table(found)}\n"
    sys.stdout.write(markdown)
    if options.out is not None:
        write(
            options.out,
            f"{header['date']}-{as_file_name(cpu_name())}-loader",
            markdown,
            {"header": header, "us": found},
        )


def _measure(workload: Workload, batch_size: int, capacity: int, rounds: int, round_s: float) -> dict[str, Any]:
    """Return µs a turn of each loop, one number a round."""
    buffer: Any = fr.ReplayBuffer(capacity, {n: (s.shape, s.dtype) for n, s in workload.fields.items()}, seed=0)
    for _, columns in chunks(workload, capacity):
        buffer.extend(**columns)
    _check(buffer, batch_size)
    sample_s = _median_s(lambda: buffer.sample(batch_size), round_s)
    learn = _work_of(sample_s, round_s)
    loops = max(10, int(round_s / (2 * sample_s)))
    taken: dict[str, list[float]] = {"sample": [], "loader": [], "learner": [], "out": []}
    out = buffer.sample(batch_size)

    def sampling() -> None:
        for _ in range(loops):
            batch = buffer.sample(batch_size)  # noqa: F841  held as a training loop holds its minibatch
            learn()

    def filling() -> None:
        for _ in range(loops):
            buffer.sample(batch_size, out=out)
            learn()

    def loading() -> None:
        for batch in loader:  # noqa: B007  as above
            learn()

    def learning() -> None:
        for _ in range(loops):
            learn()

    ways: dict[str, Callable[[], None]] = {"sample": sampling, "loader": loading, "learner": learning, "out": filling}
    with no_garbage_collection():
        for _ in range(rounds):
            for name, run in ways.items():
                loader = buffer.loader(batch_size, depth=_DEPTH, steps=loops) if name == "loader" else ()
                start = time.perf_counter()
                run()
                taken[name].append((time.perf_counter() - start) / loops * 1e6)
    stats = buffer.stats()
    return {"work": f"{workload.name} {batch_size}", "us": taken, "waits": stats["waits"], "turns": loops * rounds}


def _check(buffer: Any, batch_size: int) -> None:
    """See that the loader yields whole transitions, those that `sample` gives."""
    twin = buffer.spawn(1)[0]
    twin.rng_state = buffer.rng_state
    with buffer.loader(batch_size, depth=_DEPTH, steps=20) as loader:
        for batch in loader:
            expected = twin.sample(batch_size)
            assert torch.equal(batch.ticket, expected.ticket)
            assert all(map(torch.equal, batch, expected))
            columns = {name: value.numpy() for name, value in batch.items()}
            assert np.array_equal(decode(columns), batch.ticket.numpy() % (1 << 20))


def _median_s(call: Callable[[], Any], round_s: float) -> float:
    """Return the seconds that a call takes."""
    readings = []
    end = time.perf_counter() + 2 * round_s
    while time.perf_counter() < end:
        start = time.perf_counter()
        result = call()  # noqa: F841  held until the next is there
        readings.append(time.perf_counter() - start)
    return median(readings)


def _work_of(seconds: float, round_s: float) -> Callable[[], object]:
    """Return one native call of about that length, which leaves the GIL and the minibatch alone."""
    numbers = np.full(1 << 16, 0.5)

    def work(length: int) -> Callable[[], object]:
        part = numbers[:length]
        return lambda: np.tanh(part, out=part)

    length = 16
    while length < len(numbers) and _median_s(work(length), round_s / 10) < seconds:
        length += max(16, length // 16)
    return work(length)


def _table(found: list[dict[str, Any]]) -> str:
    rows = []
    for each in found:
        us = {name: median(readings) for name, readings in each["us"].items()}
        over = median(a / b for a, b in zip(each["us"]["sample"], each["us"]["loader"], strict=True))
        rows.append(
            [
                each["work"],
                *(number(us[name]) for name in ("learner", "sample", "out", "loader")),
                ratio(over),
                f"{each['waits'] / each['turns']:.0%}",
                "met" if over > 1 else "not met",
            ]
        )
    columns = ["µs a turn", "learner alone", "`sample` + learner", "`out=` + learner", "`loader` + learner"]
    return table([*columns, "`sample` over `loader`", "turns that waited", "target: > 1"], rows)


if __name__ == "__main__":
    main()

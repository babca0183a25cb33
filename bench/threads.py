# SPDX-License-Identifier: MIT
# ruff: noqa: RUF001  the signs of the printed table
"""What threads do to inserting and sampling; writes a table.

python bench/threads.py                 all of it, into bench/results/ (about 2 minutes)
python bench/threads.py --quick         small and short: does it run at all? Printed only, unless --out
"""

from __future__ import annotations

import argparse
import gc
import shlex
import sys
import threading
import time
from contextlib import AbstractContextManager, nullcontext
from datetime import date
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from absence import AbsentError, excused
from machine import ROOT, Disturbance, as_file_name, cpu_name, describe_machine
from output import NONE, bullets, number, ratio, si, table, write
from peers import PEERS, Call, Peer, require
from workloads import WORKLOADS
from works import add_rows

if TYPE_CHECKING:
    from collections.abc import Callable

_PEERS = ("fastreplay", "sb3", "cpprb", "torchrl", "numpy")
_HAVE_LOCKS = ("fastreplay", "torchrl")  # or need none; the others get one
_BATCH_SIZE = 256
_SIZES, _QUICK_SIZES = (16, 165, 256, 1024), (165,)  # bytes of a row
_DISTRIBUTIONS = ("fastreplay", "numpy", "torch", "stable-baselines3", "cpprb", "torchrl")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="small and short; no files, unless --out")
    parser.add_argument("--out", type=Path, help="where the files go (bench/results)")
    options = parser.parse_args()
    if options.out is None and not options.quick:
        options.out = ROOT / "bench" / "results"
    torch.set_num_threads(1)
    capacity, rounds, round_s = (10_000, 3, 0.02) if options.quick else (1_000_000, 15, 0.5)
    header = {
        "date": date.today().isoformat(),
        "command": shlex.join(["python", *sys.argv]),
        **describe_machine(_DISTRIBUTIONS),
        "method": f"medians; native parts: 101 rounds by turns; Python parts: {rounds} rounds of {round_s} s by turns",
    }
    disturbance = Disturbance()
    native = _native(capacity, _QUICK_SIZES if options.quick else _SIZES)
    python = _python(capacity, rounds, round_s)
    latency = _latency(capacity, 20 * round_s)
    header["disturbance"] = str(disturbance)
    sections = {
        "# Threads, measured": bullets(header),
        "## Without Python": _native_table(native),
        "## One thread inserts, one samples": _python_table(python),
        "## How long `add` takes": _latency_table(latency),
    }
    markdown = "\n\n".join(f"{title}\n\n{text}" for title, text in sections.items())
    sys.stdout.write(markdown + "\n")
    if options.out is not None:
        stem = f"{header['date']}-{as_file_name(cpu_name())}-threads"
        write(
            options.out,
            stem,
            markdown + "\n",
            {"header": header, "native": native, "python": python, "latency": latency},
        )


def _native(capacity: int, sizes: tuple[int, ...]) -> dict[str, Any]:
    """Run bench/native/protocol_timer.cpp on rows of so many bytes; 165 are cheetah's."""
    try:
        timer: Any = require("_protocol_timer")
    except AbsentError:
        return {"absent": "the native timer is not built (make .venv/.bench)"}
    single = [size for size in sizes if size != 256]
    return {
        "insert_ns": {size: timer.insert_ns(size, capacity) for size in single},
        "sample_ns": {size: timer.sample_ns(size, capacity, _BATCH_SIZE) for size in single},
        "sample_rates": {165: timer.sample_rates(165, capacity, _BATCH_SIZE)},
        "insert_rates": {rows: {size: timer.insert_rates(size, capacity, rows) for size in sizes} for rows in (1, 64)},
        "count_rates": {size: timer.count_rates(size, capacity) for size in sizes if size >= 256},
    }


def _native_table(found: dict[str, Any]) -> str:
    if "absent" in found:
        return f"{NONE}: {found['absent']}."
    rows = []
    for size, (ours, bare) in found["insert_ns"].items():
        verdict = _verdict(ours - bare <= 12)
        rows.append(
            [
                f"insert one row of {size} B",
                f"{ours:.1f} ns",
                f"{bare:.1f} ns bare",
                f"{ours - bare:+.1f} ns",
                "≤ 12 ns",
                verdict,
            ]
        )
    for size, (ours, bare) in found["sample_ns"].items():
        verdict = _verdict(ours - bare <= 2)
        rows.append(
            [
                f"sampled row of {size} B",
                f"{ours:.1f} ns",
                f"{bare:.1f} ns bare",
                f"{ours - bare:+.1f} ns",
                "≤ 2 ns",
                verdict,
            ]
        )
    for size, (alone, beside) in found["sample_rates"].items():
        share = beside / alone
        rows.append(
            [
                f"sample({_BATCH_SIZE}) of {size} B beside a writer",
                f"{si(beside)}/s",
                f"{si(alone)}/s alone",
                f"{share:.0%}",
                "≥ 85 %",
                _verdict(share >= 0.85),
            ]
        )
    for num_rows, rates in found["insert_rates"].items():
        for size, (one, two) in rates.items():
            aim = ("≥ 1.5×", _verdict(two / one >= 1.5)) if size >= 256 else (NONE, "")
            work = f"two writers, {num_rows} rows of {size} B an insert"
            rows.append([work, f"{si(two)}rows/s", f"{si(one)}rows/s by one", ratio(two / one), *aim])
    for size, (one, two) in found["count_rates"].items():
        work = f"two threads, nothing but an atomic count and a copy of {size} B"
        rows.append([work, f"{si(two)}rows/s", f"{si(one)}rows/s by one", ratio(two / one), NONE, ""])
    return table(["work", "ours", "against", "measured", "target", ""], rows)


def _verdict(is_met: bool) -> str:
    return "met" if is_met else "not met"


def _python(capacity: int, rounds: int, round_s: float) -> dict[str, Any]:
    """Rows a second of one adding and one sampling thread, cheetah, by contestant: inserted, sampled."""
    workload = WORKLOADS["cheetah"]
    rates: dict[str, list[tuple[float, float]]] = {}
    absent: dict[str, str] = {}
    contestants: dict[str, tuple[Peer, AbstractContextManager[Any]]] = {}
    for name in _PEERS:
        with excused(name, absent):
            peer = PEERS[name](workload, capacity)
            peer.fill()
            contestants[name] = (peer, nullcontext() if name in _HAVE_LOCKS else threading.Lock())
            rates[name] = []
    rows = add_rows(workload)
    for _ in range(rounds):
        for name, (peer, lock) in contestants.items():
            if name in absent:
                continue
            with excused(name, absent):
                add = _locked([peer.adder([row]) for row in rows], lock)
                sample = _locked([peer.sampler(_BATCH_SIZE)], lock)
                added, sampled = _beside(add, sample, round_s)
                rates[name].append((added / round_s, sampled * _BATCH_SIZE / round_s))
    contestants.clear()
    gc.collect()
    return {"rows_per_s": {name: taken for name, taken in rates.items() if name not in absent}, "absent": absent}


def _locked(calls: list[Call], lock: AbstractContextManager[Any]) -> Callable[[], None]:
    turn = 0

    def run() -> None:
        nonlocal turn
        turn = (turn + 1) % len(calls)
        with lock:
            calls[turn]()

    return run


def _beside(first: Callable[[], None], second: Callable[[], None], seconds: float) -> tuple[int, int]:
    """Return how often each was called by a thread of its own."""
    counts, stop = [0, 0], threading.Event()
    errors: list[BaseException] = []

    def repeat(which: int, call: Callable[[], None]) -> None:
        count = 0
        try:
            while True:
                call()
                count += 1
                if stop.is_set():
                    break
        except BaseException as error:  # noqa: BLE001  raised below, in the main thread
            errors.append(error)
        counts[which] = count

    # Daemons: one that hangs is left behind.
    threads = [threading.Thread(target=repeat, args=args, daemon=True) for args in ((0, first), (1, second))]
    for thread in threads:
        thread.start()
    time.sleep(seconds)
    stop.set()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return counts[0], counts[1]


def _python_table(found: dict[str, Any]) -> str:
    totals = {name: median(a + b for a, b in rates) for name, rates in found["rows_per_s"].items()}
    best = max((name for name in totals if name in ("sb3", "cpprb", "torchrl")), key=totals.__getitem__, default=None)
    rows = []
    for name, rates in found["rows_per_s"].items():
        added, sampled = (median(column) for column in zip(*rates, strict=True))
        over = ratio(totals["fastreplay"] / totals[name])
        rows.append(
            [PEERS[name].label, f"{si(added)}rows/s", f"{si(sampled)}rows/s", f"{si(totals[name])}rows/s", over]
        )
    text = table(["buffer", "inserted", "sampled", "together", "ours over it"], rows)
    if best is not None:
        over_best = totals["fastreplay"] / totals[best]
        aim = "Target: at least 8× the best of SB3, cpprb and TorchRL under their locks"
        text += f"\n\n{aim}; measured {over_best:.2f}×: {_verdict(over_best >= 8)}."
    if found["absent"]:
        reasons = "\n".join(f"- {PEERS[name].label}: {reason}" for name, reason in found["absent"].items())
        text += f"\n\n{NONE}: not measured.\n\n{reasons}"
    return text


def _latency(capacity: int, seconds: float) -> dict[str, dict[str, float]]:
    """Quantiles of single calls of `add` in µs: alone, and while a thread takes 4096-row minibatches."""
    workload = WORKLOADS["cheetah"]
    peer = PEERS["fastreplay"](workload, capacity)
    peer.fill()
    adders = [peer.adder([row]) for row in add_rows(workload)]
    sample, stop = peer.sampler(4096), threading.Event()

    def measure() -> dict[str, float]:
        taken = []
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            for add in adders:
                start = time.perf_counter_ns()
                add()
                taken.append(time.perf_counter_ns() - start)
        quantiles = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999, "p99.99": 0.9999, "most": 1.0}
        return {name: float(np.quantile(taken, q)) * 1e-3 for name, q in quantiles.items()}

    def sample_on() -> None:
        while not stop.is_set():
            sample()

    alone = measure()
    thread = threading.Thread(target=sample_on)
    thread.start()
    beside = measure()
    stop.set()
    thread.join()
    return {"alone": alone, "beside sample(4096)": beside}


def _latency_table(found: dict[str, dict[str, float]]) -> str:
    rows = [[name, *(f"{number(us)} µs" for us in quantiles.values())] for name, quantiles in found.items()]
    text = table(["`add`, cheetah", *next(iter(found.values()))], rows)
    worst = found["beside sample(4096)"]["p99.9"]
    aim = "Target: p99.9 of at most 20 µs beside `sample(4096)`"
    return f"{text}\n\n{aim}; measured {worst:.1f} µs: {_verdict(worst <= 20)}."


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: MIT
"""Measure every work with every peer by turns in one process, and write the table.

python bench/table.py                    all of it, into bench/results/
python bench/table.py --only cheetah     works whose name contains "cheetah", printed only
python bench/table.py --quick            small rings and few rounds: does it run at all?
"""

from __future__ import annotations

import argparse
import gc
import json
import re
import shlex
import sys
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import torch
from checks import check_contents, check_insert, check_sample
from floor import cold_copy, gather_us
from peers import PEERS, AbsentError, Call, Fastreplay, Peer
from report import COPY, FLOOR, KERNEL, Result, cpu_name, describe_machine, to_json, to_markdown
from timing import Round, keep_heap, take_turns, timed_round
from tqdm import tqdm
from works import ADD_ROWS, EXTEND_BLOCKS, WORKS, Work, add_rows, extend_blocks

if TYPE_CHECKING:
    from collections.abc import Sequence

_QUICK_SHRINK = 50


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parse(arguments)
    works = [work for work in WORKS if not options.only or any(s in work.key for s in options.only)]
    if not works:
        sys.exit(f"no work matches; there are {', '.join(work.key for work in WORKS)}")
    torch.set_num_threads(1)
    heap = "heap kept" if keep_heap() else "heap as it is"
    header = {
        "date": date.today().isoformat(),
        "command": shlex.join(["python", *sys.argv]),
        **describe_machine(),
        "method": f"{options.rounds} rounds of {options.round_ms:g} ms a peer, taken by turns; {heap}; "
        "one thread; results checked before and after",
    }
    with tqdm(total=len(works) * options.rounds, unit="round", smoothing=0) as bar:
        results = [_measure(work, options, bar) for work in works]
    markdown = to_markdown(results, header)
    sys.stdout.write(markdown)
    if options.out is not None:
        stem = f"{header['date']}-{re.sub(r'[^a-z0-9]+', '-', cpu_name().lower()).strip('-')}"
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / f"{stem}.md").write_text(markdown)
        content = json.dumps(to_json(results, header), indent=1, ensure_ascii=False)
        (options.out / f"{stem}.json").write_text(content + "\n")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="small rings, few rounds; no files")
    parser.add_argument("--only", action="append", default=[], help="part of a work's name; no files")
    parser.add_argument("--rounds", type=int, help="rounds a peer (201; 11 with --quick)")
    parser.add_argument("--round-ms", type=float, default=5.0, help="length of a round")
    parser.add_argument("--out", type=Path, help="where the files go (bench/results)")
    options = parser.parse_args(arguments)
    if options.rounds is None:
        options.rounds = 11 if options.quick else 201
    if options.out is None and not options.quick and not options.only:
        options.out = Path(__file__).resolve().parent / "results"
    return options


def _measure(work: Work, options: argparse.Namespace, bar: tqdm[NoReturn]) -> Result:
    capacity = work.workload.capacity // (_QUICK_SHRINK if options.quick else 1)
    result = Result(work, capacity)
    peers: dict[str, Peer] = {}
    for name, peer_type in PEERS.items():
        if work.kind in peer_type.kinds:
            bar.set_description(f"{work.key}: filling {name}")
            try:
                peers[name] = _filled(peer_type, work, capacity)
            except AbsentError as reason:
                result.absent[name] = str(reason)
    bar.set_description(work.key)
    round_s = options.round_ms * 1e-3
    rounds: dict[str, Round] = {}
    for name, peer in peers.items():
        call, calls_each = _call(peer, work)
        rounds[name] = timed_round(call, round_s=round_s, calls_each=calls_each)
    if work.kind == "sample":
        rounds.update(_ceilings(peers, work, round_s))
    result.seconds = take_turns(rounds, options.rounds, bar.update)
    for peer in peers.values():
        check_contents(peer, work.workload, max(work.num_rows, 32), range(capacity))
    rounds.clear()
    peers.clear()
    gc.collect()  # gigabytes, before the next work's rings are made
    return result


def _filled(peer_type: type[Peer], work: Work, capacity: int) -> Peer:
    num_envs = work.num_rows if work.kind == "extend" else 1
    if work.kind != "sample":
        check_insert(peer_type, work.workload, num_envs=num_envs)
    peer = peer_type(work.workload, capacity, num_envs=num_envs)
    peer.fill()
    if work.kind == "sample":
        check_sample(peer, work.workload, work.num_rows, range(capacity))
    return peer


def _call(peer: Peer, work: Work) -> tuple[Call, int]:
    """Return what is timed, and how many of the peer's calls it makes."""
    if work.kind == "add":
        return peer.adder(add_rows(work.workload)), ADD_ROWS
    if work.kind == "extend":
        return peer.extender(extend_blocks(work.workload, work.num_rows)), EXTEND_BLOCKS
    return peer.sampler(work.num_rows), 1


def _ceilings(peers: dict[str, Peer], work: Work, round_s: float) -> dict[str, Round]:
    rounds = {COPY: timed_round(cold_copy(work.call_bytes), round_s=round_s)}
    ours = peers.get("fastreplay")
    if isinstance(ours, Fastreplay) and gather_us(ours.buffer, work.num_rows, "gather") is not None:
        rounds[FLOOR] = lambda: (gather_us(ours.buffer, work.num_rows, "plain_gather") or 0.0) * 1e-6
        rounds[KERNEL] = lambda: (gather_us(ours.buffer, work.num_rows, "gather") or 0.0) * 1e-6
    return rounds


if __name__ == "__main__":
    main()

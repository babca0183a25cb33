# SPDX-License-Identifier: MIT
"""Measure every work with every peer by turns in one process, and write the tables.

python bench/table.py                    all of it, into bench/results/
python bench/table.py --only cheetah     works whose name contains "cheetah", printed only
python bench/table.py --only target      target updates; add --out bench/results to write them
python bench/table.py --quick            small rings and few rounds: does it run at all? Printed only, unless --out
"""

from __future__ import annotations

import argparse
import gc
import shlex
import sys
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import report_target
import torch
from absence import excused
from checks import check_contents, check_insert, check_sample
from floor import cold_copy, gather_us
from machine import ROOT, as_file_name, cpu_name, describe_machine
from output import write
from peers import PEERS, Call, Fastreplay, Peer
from report import COPY, DISTRIBUTIONS, FLOOR, KERNEL, Result, to_json, to_markdown
from table_target import UPDATE_WORKS, measure
from timing import Round, keep_heap, take_turns, timed_round
from torch import nn
from tqdm import tqdm
from works import ADD_ROWS, EXTEND_BLOCKS, WORKS, Work, add_rows, extend_blocks

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from report_target import UpdateWork

_QUICK_SHRINK = 50
_QUICK_SHARE = 8  # of the transitions or blocks of a timed call, one in so many
_QUICK_WIDTH = 256  # of the layers of a net that is larger than what RL trains


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parse(arguments)
    works = [work for work in WORKS if _is_chosen(work.key, options.only)]
    update_works = [work for work in UPDATE_WORKS if _is_chosen(work.key, options.only)]
    if not works and not update_works:
        sys.exit(f"no work matches; there are {', '.join(_keys())}")
    if options.quick:
        update_works = [work if work.net.is_rl_sized else _shrunk(work) for work in update_works]
    torch.set_num_threads(1)
    heap = "heap kept" if keep_heap() else "heap as it is"
    method = (
        f"{options.rounds} rounds of {options.round_ms:g} ms a peer, taken by turns; {heap}; "
        "{threads}; results checked before and after"
    )
    stem = f"{date.today().isoformat()}-{as_file_name(cpu_name())}"
    with tqdm(total=(len(works) + len(update_works)) * options.rounds, unit="round", smoothing=0) as bar:
        if works:
            header = _header(DISTRIBUTIONS, method.format(threads="one thread"))
            results = [_measure(work, options, bar) for work in works]
            _publish(options.out, stem, to_markdown(results, header), to_json(results, header))
        if update_works:
            header = _header(report_target.DISTRIBUTIONS, method.format(threads="one thread, where not said otherwise"))
            round_s = options.round_ms * 1e-3
            updates = [measure(work, num_rounds=options.rounds, round_s=round_s, bar=bar) for work in update_works]
            markdown = report_target.to_markdown(updates, header)
            _publish(options.out, f"{stem}-target", markdown, report_target.to_json(updates, header))


def _keys() -> list[str]:
    return [work.key for work in WORKS] + [work.key for work in UPDATE_WORKS]


def _is_chosen(key: str, parts: Sequence[str]) -> bool:
    return not parts or any(part in key for part in parts)


def _shrunk(work: UpdateWork) -> UpdateWork:
    """Return the same work on as many tensors, of far fewer numbers."""
    with torch.device("meta"):
        layers = sum(isinstance(module, nn.Linear) for module in work.net.make().modules())

    def make() -> nn.Module:
        return nn.Sequential(*(nn.Linear(_QUICK_WIDTH, _QUICK_WIDTH) for _ in range(layers)))

    return replace(work, net=replace(work.net, make=make))


def _header(distributions: Sequence[str], method: str) -> dict[str, str]:
    return {
        "date": date.today().isoformat(),
        "command": shlex.join(["python", *sys.argv]),
        **describe_machine(distributions),
        "method": method,
    }


def _publish(folder: Path | None, stem: str, markdown: str, content: Mapping[str, Any]) -> None:
    sys.stdout.write(markdown)
    if folder is not None:
        write(folder, stem, markdown, content)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="small rings, few rounds; no files, unless --out")
    parser.add_argument("--only", action="append", default=[], help="part of a work's name; no files, unless --out")
    parser.add_argument("--rounds", type=int, help="rounds a peer (201; 2 with --quick)")
    parser.add_argument("--round-ms", type=float, help="length of a round (5; 0.05 with --quick)")
    parser.add_argument("--out", type=Path, help="where the files go (bench/results)")
    options = parser.parse_args(arguments)
    if options.rounds is None:
        options.rounds = 2 if options.quick else 201
    if options.round_ms is None:
        options.round_ms = 0.05 if options.quick else 5.0
    if options.out is None and not options.quick and not options.only:
        options.out = ROOT / "bench" / "results"
    return options


def _measure(work: Work, options: argparse.Namespace, bar: tqdm[NoReturn]) -> Result:
    capacity = work.workload.capacity // (_QUICK_SHRINK if options.quick else 1)
    result = Result(work, capacity)
    peers: dict[str, Peer] = {}
    for name, peer_type in PEERS.items():
        if work.kind in peer_type.kinds:
            bar.set_description(f"{work.key}: filling {name}")
            with excused(name, result.absent):
                peers[name] = _filled(peer_type, work, capacity)
    bar.set_description(work.key)
    round_s = options.round_ms * 1e-3
    rounds: dict[str, Round] = {}
    for name, peer in peers.items():
        with excused(name, result.absent):
            call, calls_each = _call(peer, work, every=_QUICK_SHARE if options.quick else 1)
            rounds[name] = timed_round(call, round_s=round_s, calls_each=calls_each)
    if work.kind == "sample":
        rounds.update(_ceilings(peers, work, round_s))
    seconds = take_turns(rounds, options.rounds, bar.update, result.absent)
    for name, peer in peers.items():
        if name in seconds:
            with excused(name, result.absent):
                check_contents(peer, work.workload, max(work.num_rows, 32), range(capacity))
    result.seconds = {name: taken for name, taken in seconds.items() if name not in result.absent}
    rounds.clear()
    peers.clear()
    gc.collect()  # gigabytes, before the next work's rings are made
    if options.quick:
        gc.freeze()  # the peers' modules, which each later collection would go through: more than what is measured
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


def _call(peer: Peer, work: Work, *, every: int = 1) -> tuple[Call, int]:
    """Return what is timed, and how many of the peer's calls it makes."""
    if work.kind == "add":
        return peer.adder(add_rows(work.workload)[::every]), ADD_ROWS // every
    if work.kind == "extend":
        return peer.extender(extend_blocks(work.workload, work.num_rows)[::every]), EXTEND_BLOCKS // every
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

# SPDX-License-Identifier: MIT
"""Measure soft updates on the CUDA device, with the torch and the fastreplay that this interpreter has.

bench/gpu_soft_update.py prepares both and runs this. Exit status 2: something that is needed is missing.
"""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
from datetime import date
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from gpu_clock import CUDA, Device, device_round, host_round
from gpu_report import COPY, GpuResult, to_json, to_markdown
from machine import ROOT, as_file_name, describe_machine, read
from nets import LARGEST, NETS, Net, flattened
from output import write
from timing import take_turns
from updates import TAU, UPDATERS, Updater, check, detached

import fastreplay as fr

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from peers import Call
    from timing import Round
    from torch import Tensor, nn

_GRAPH_STEPS = 16  # updates in one captured graph, so that its own launch is shared by as many
_CAPTURED = ("foreach", "fastreplay")


def _mixed_foreach(target: nn.Module, online: nn.Module) -> Call:
    """Take the online values up to the target's dtype, which `torch._foreach_lerp_` insists on."""
    targets, onlines = detached(target), detached(online)
    taken_up = [torch.empty_like(tensor) for tensor in targets]

    def run() -> None:
        torch._foreach_copy_(taken_up, onlines)
        torch._foreach_lerp_(targets, taken_up, TAU)

    return run


_UPDATERS: dict[str, tuple[Updater, ...]] = {
    "float32": tuple(UPDATERS[name] for name in ("lerp", "flat", "foreach", "fastreplay")),
    "bfloat16": (Updater("foreach", "", _mixed_foreach), UPDATERS["fastreplay"]),
}


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    if reason := missing():
        sys.stderr.write(f"gpu_measure: {reason}\n")
        return 2
    rounds, round_s = (5, 1e-3) if options.quick else (options.rounds, options.round_ms * 1e-3)
    header = {
        "date": date.today().isoformat(),
        "command": shlex.join(["python", *sys.argv]),
        **describe_card(),
        **describe_machine(("fastreplay", "torch", "numpy")),
        "fastreplay from": str(Path(fr.__file__).parent),
        "method": f"medians of {rounds} rounds of {round_s * 1e3:g} ms an updater, taken by turns, between CUDA "
        f"events; captured: {_GRAPH_STEPS} updates a graph; results checked before and after",
    }
    if options.commit:
        header["commit"] = options.commit
    results = []
    for net in (*NETS, LARGEST):
        for dtype in _UPDATERS:
            sys.stderr.write(f"Measuring {net.title}, online {dtype}\n")
            results.append(measure(net, dtype, CUDA, num_rounds=rounds, round_s=round_s))
    markdown = to_markdown(results, header)
    sys.stdout.write(markdown)
    if not options.quick:
        stem = f"{header['date']}-{as_file_name(torch.cuda.get_device_name())}-soft-update"
        write(options.out, stem, markdown, to_json(results, header))
        sys.stderr.write(f"Wrote {options.out / stem}.md and .json\n")
    return 0


def measure(net: Net, online_dtype: str, device: Device, *, num_rounds: int, round_s: float) -> GpuResult:
    """Check every updater, time them by turns, and check them again.

    All move one pair of networks; the flat one has a pair of its own, of one tensor each.
    """
    target, online = net.pair(device.name)
    online.to(getattr(torch, online_dtype))
    num_elements = sum(parameter.numel() for parameter in target.parameters())
    result = GpuResult(net, online_dtype, len(list(target.parameters())), num_elements)
    rounds: dict[str, Round] = {}
    host_rounds: dict[str, Round] = {}
    checks: dict[str, Callable[[], bool]] = {}
    for updater in _UPDATERS[online_dtype]:
        pair = (flattened(target), flattened(online)) if updater.is_flat else (target, online)
        call = updater.prepare(*pair)
        checks[updater.name] = partial(check, updater, call, *pair)
        rounds[updater.name] = device_round(device, call, round_s=round_s)
        host_rounds[updater.name] = host_round(device, call, num_launches=1 if updater.is_flat else result.num_tensors)
        if updater.name in _CAPTURED:
            name, replay = f"{updater.name}-graph", device.capture(call, _GRAPH_STEPS)
            checks[name] = partial(check, updater, device.capture(call, 1), *pair)
            rounds[name] = device_round(device, replay, round_s=round_s, calls_each=_GRAPH_STEPS)
    if net is LARGEST and online_dtype == "float32":
        rounds[COPY] = device_round(device, _copy(result.num_bytes, device), round_s=round_s)
    before = {name: is_equal() for name, is_equal in checks.items()}
    absent: dict[str, str] = {}
    result.seconds = take_turns(rounds, num_rounds, lambda: None, absent)
    result.host_seconds = take_turns(host_rounds, num_rounds, lambda: None, absent)
    for name, reason in absent.items():
        sys.stderr.write(f"{name}: not measured, {reason}\n")
    result.is_equal = {name: is_equal() and before[name] for name, is_equal in checks.items()}
    return result


def _copy(num_bytes: int, device: Device) -> Call:
    """Return a copy that reads and writes `num_bytes` together."""
    source = torch.ones(num_bytes // 2, dtype=torch.uint8, device=device.name)
    to = torch.empty_like(source)

    def run() -> Tensor:
        return to.copy_(source)

    return run


def missing() -> str:
    """Say what is needed and missing, "" where nothing is."""
    if not torch.cuda.is_available():
        return f"needs a torch that sees an NVIDIA GPU; torch {torch.__version__} sees none"
    path = fr.backend_info()["target_update_cuda"]
    if path != "CUDA kernel":
        return f"needs fastreplay with its CUDA part (FASTREPLAY_CUDA=ON); this one has {path}"
    return ""


def describe_card() -> dict[str, str]:
    card = torch.cuda.get_device_properties(0)
    return {
        "GPU": f"{card.name}, {card.multi_processor_count} SMs, {card.total_memory / 2**30:.0f} GiB, "
        f"compute capability {card.major}.{card.minor}",
        "driver": _driver_version(),
        "CUDA": f"{torch.version.cuda} (torch); {fr.backend_info()['cuda_status']} (fastreplay)",
    }


def _driver_version() -> str:
    command = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0")
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        found = re.search(r"\d+\.\d+(\.\d+)?", read("/proc/driver/nvidia/version"))
        return found.group() if found else "unknown"


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="few and short rounds; no files")
    parser.add_argument("--rounds", type=int, default=101, help="rounds an updater (101)")
    parser.add_argument("--round-ms", type=float, default=5.0, help="length of a round (5)")
    parser.add_argument("--commit", help="named in the result where git cannot tell")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results", help="where the files go")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: MIT
"""The machine that results were taken on, as a reader needs it to judge or repeat them. Measures nothing."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

_L3 = "/sys/devices/system/cpu/cpu0/cache/index3/size"
_HUGE_PAGES = "/sys/kernel/mm/transparent_hugepage/enabled"


def describe_machine(distributions: Iterable[str]) -> dict[str, str]:
    """Return the machine, the versions of `distributions` and the commit, in the order of printing."""
    cores = len(os.sched_getaffinity(0))
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "CPU": f"{cpu_name()}, {cores} cores, L3 {read(_L3) or 'unknown'}",
        "memory": f"{memory_bytes / 2**30:.0f} GiB, huge pages {read(_HUGE_PAGES) or 'unknown'}",
        "system": f"{platform.system()} {platform.release()}, load {os.getloadavg()[0]:.2f}",
        "Python": platform.python_version(),
        **{name: _version(name) for name in distributions},
        "commit": _commit(),
    }


class Disturbance:
    """How many cores other processes, and the host, kept busy while this measured. Figures want it near zero."""

    def __init__(self) -> None:
        self._start = time.monotonic(), _busy_s()

    def __str__(self) -> str:
        elapsed, busy = (now - start for now, start in zip((time.monotonic(), _busy_s()), self._start, strict=True))
        return f"{max(0.0, busy / elapsed):.2f} of {os.cpu_count()} cores busy with something else meanwhile"


def _busy_s() -> float:
    """Return the seconds that all cores were busy since they were started, less those of this process."""
    fields = [float(field) for field in read("/proc/stat").split("\n", 1)[0].split()[1:9]] or [0.0] * 8
    user, nice, system, _, _, irq, softirq, steal = fields
    own = os.times()
    everybody = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    return everybody - own.user - own.system - own.children_user - own.children_system


def cpu_name() -> str:
    for line in read("/proc/cpuinfo").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def as_file_name(text: str) -> str:
    """Return `text` in lower case, with a hyphen for everything but letters and digits."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def read(path: str) -> str:
    """Return a file's text without the white space around it, "" where it cannot be read."""
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    def git(*arguments: str) -> str:
        command = ("git", "-C", str(ROOT), *arguments)
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        head = git("rev-parse", "--short=12", "HEAD")
        changed = git("status", "--porcelain", "--", ".", ":(exclude)bench/results")  # what is measured writes there
        return f"{head}, with changes" if changed else head
    except (OSError, subprocess.CalledProcessError):
        return "none"

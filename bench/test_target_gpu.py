# SPDX-License-Identifier: MIT
# ruff: noqa: RUF001  the signs of the printed table
"""What of bench/gpu_soft_update.py works without a GPU: what it asks for, its tables, its measuring with a stand-in."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from pathlib import Path
from time import perf_counter
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import gpu_measure
import pytest
import torch
from gpu_clock import Device
from gpu_prepare import Interpreter, MissingError, find_nvcc, require_device
from gpu_report import GpuResult, to_json, to_markdown
from nets import LARGEST, NETS

if TYPE_CHECKING:
    from collections.abc import Callable

    from peers import Call

SCRIPT = Path(__file__).parent / "gpu_soft_update.py"


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a CUDA device")
@pytest.mark.parametrize("script", ["gpu_soft_update.py", "gpu_measure.py"])
def test_without_a_device_one_line_says_so(script: str) -> None:
    done = subprocess.run((sys.executable, SCRIPT.with_name(script)), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert not done.stdout
    (line,) = done.stderr.splitlines()
    assert "needs" in line
    assert "NVIDIA GPU" in line


def driver(*, status: int = 0, devices: int = 1) -> Callable[[str], Any]:
    def count(to: Any) -> int:
        ctypes.cast(to, ctypes.POINTER(ctypes.c_int))[0] = devices
        return 0

    return lambda _: SimpleNamespace(cuInit=lambda _: status, cuDeviceGetCount=count)


def test_the_driver_is_asked() -> None:
    require_device(driver())
    with pytest.raises(MissingError, match="the driver answers error 100"):
        require_device(driver(status=100))
    with pytest.raises(MissingError, match="the driver answers that there is no device"):
        require_device(driver(devices=0))


def test_the_compiler_is_found(tmp_path: Path) -> None:
    assert find_nvcc({"CUDACXX": "/somewhere/nvcc", "PATH": ""}) == "/somewhere/nvcc"
    nvcc = tmp_path / "nvcc"
    nvcc.touch(0o755)
    assert find_nvcc({"PATH": str(tmp_path)}) == str(nvcc)


def test_an_interpreter_is_asked_where_the_modules_are(tmp_path: Path) -> None:
    (tmp_path / "only_there.py").touch()
    assert Interpreter(sys.executable, (str(tmp_path),)).succeeds("import only_there")
    assert not Interpreter(sys.executable).succeeds("import only_there")


def timed(call: Call, loops: int) -> float:
    start = perf_counter()
    for _ in range(loops):
        call()
    return perf_counter() - start


def repeated(call: Call, times: int) -> Call:
    def run() -> None:
        for _ in range(times):
            call()

    return run


CPU = Device("cpu", timed, timed, repeated)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_all_is_measured_on_a_stand_in(dtype: str) -> None:
    result = gpu_measure.measure(NETS[0], dtype, CPU, num_rounds=3, round_s=1e-4)
    graphs = {"foreach-graph", "fastreplay-graph"}
    eager = {"foreach", "fastreplay"} | ({"lerp", "flat"} if dtype == "float32" else set())
    assert result.seconds.keys() == result.is_equal.keys() == eager | graphs
    assert result.host_seconds.keys() == eager
    assert all(result.is_equal.values())
    assert result.num_bytes == 4481 * (12 if dtype == "float32" else 10)
    to_markdown([result], {})


def test_a_copy_moves_as_many_bytes() -> None:
    copied = gpu_measure._copy(1200, CPU)()
    assert copied.nbytes == 600  # read, and written
    assert bool((copied == 1).all())


def test_the_tables_hold_what_was_measured() -> None:
    small = GpuResult(
        NETS[0],
        "float32",
        6,
        4481,
        {"foreach": [6e-6], "foreach-graph": [2e-6], "fastreplay": [3e-6], "fastreplay-graph": [1.6e-6]},
        {"foreach": [5e-6], "fastreplay": [2e-6]},
        {"foreach": True, "fastreplay": False},
    )
    large = GpuResult(LARGEST, "float32", 12, 10**8, {"fastreplay": [4e-4], "copy": [3.6e-4]})
    mixed = GpuResult(LARGEST, "bfloat16", 12, 10**8, {"foreach": [9e-4], "fastreplay": [4e-4]})
    text = to_markdown([small, large, mixed], {"GPU": "none"})
    assert "| 2×64 | `fr.SoftUpdate` | `_foreach_lerp_` | at least 1.5× | 2.00× | met |" in text
    assert "captured | at least 1.5× | 1.25× | not met |" in text
    assert "copy of as many bytes | at least 0.85× | 0.90× | met |" in text
    assert "| MLP of 100 M | – | – | 3,000 | – | 3,333 | 90.0% |" in text
    assert "| MLP of 100 M, bfloat16 | 1,111 | – | 2,500 | – | – | – |" in text
    assert "| 2×64 | equal | close |" in text
    content = json.loads(json.dumps(to_json([small, large, mixed], {})))
    assert [target["met"] for net in content["nets"] for target in net["targets"]] == [True, False, True]

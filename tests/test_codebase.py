# SPDX-License-Identifier: MIT
"""Rules of the code base that no compiler checks: layers, memory orderings, headers, versions."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fastreplay as fr

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fastreplay"
NATIVE = sorted(path for path in (ROOT / "csrc").rglob("*") if path.suffix in {".hpp", ".cpp", ".h", ".cu"})
PYTHON = sorted(
    path for folder in ("fastreplay", "examples", "bench", "tests") for path in (ROOT / folder).rglob("*.py")
)
CYTHON = sorted([*PACKAGE.rglob("*.pyx"), *PACKAGE.rglob("*.pxd")])

# What each layer of C++ may include, beside the standard library.
ROOMS = r"(batch|ring|storage)/\w+\.hpp"
ALLOWED_INCLUDES = {
    "core": rf"{ROOMS}|(block_pool|index_set|inline|lerp|minibatch|prefetch|random|step_ring|target)\.hpp",
    "cuda": r"(device|sampling|target|transfer)\.h|cuda_runtime(_api)?\.h"
    r"|(current_device|inline|lerp|random|sampling_kernel|target|target_kernel)\.hpp",
    "bindings": rf"{ROOMS}|(block_pool|index_set|minibatch|prefetch|random|step_ring|target)\.hpp"
    r"|(bindings|capsule|dlpack|fastpath|fields|pristine|records|steps|target_table|torch_abi)\.hpp|pybind11/\w+\.h",
}
# What each room of the core may know of the others.
KNOWN_ROOMS = {"storage": {"storage"}, "ring": {"ring", "storage"}, "batch": {"batch", "ring", "storage"}}

# What each room of the package may import from, at any place in its files. All may use the native core.
PACKAGE_ROOMS: dict[str, set[str]] = {
    "support": set(),
    "schema": {"support"},
    "batch": {"support", "schema"},
    "gpu": {"support", "schema", "batch"},
    "buffer": {"support", "schema", "batch", "gpu"},
    "target": {"support", "gpu"},
    "adapters": {"support", "schema", "batch", "gpu", "buffer", "target"},
}
# Rooms that `import fastreplay` must not open: they import torch.
OPENED_LATE = {"target", "adapters"}
TORCH_SIDE = {
    "support/torch_abi.py",
    "batch/tensor_offsets.py",
    "gpu/device.py",
    "gpu/memory.py",
    "gpu/ring.py",
    "gpu/transfer.py",
}


def includes(path: Path) -> list[str]:
    return re.findall(r'^#include [<"](.+)[">]', path.read_text(), re.MULTILINE)


def imports(path: Path) -> set[str]:
    """Modules that a Python file imports when it is imported itself (not inside functions or for types)."""
    found: set[str] = set()
    pending: list[ast.AST] = [ast.parse(path.read_text())]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            pending += node.orelse
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            pending += ast.iter_child_nodes(node)
    return found


def test_the_walks_find_files() -> None:
    assert {path.name for path in NATIVE} >= {"ring.hpp", "ring.cpp", "module.cpp", "device.cu"}
    assert {path.name for path in PYTHON} >= {
        "replay_buffer.py",
        "n_step.py",
        "ddpg.py",
        "learner.py",
        "buffers.py",
        "test_codebase.py",
    }
    assert {path.name for path in CYTHON} >= {"insert.pyx", "step_writer.pyx", "watched.pyx", "tensors.pyx"}


@pytest.mark.parametrize("path", NATIVE, ids=lambda path: path.name)
def test_native_layers(path: Path) -> None:
    layer = path.relative_to(ROOT / "csrc").parts[0]
    standard = re.compile(r"[a-z_]+|std(int|def)\.h|(malloc|pthread)\.h|sys/mman\.h")  # <vector>, and those of C
    for include in includes(path):
        assert standard.fullmatch(include) or re.fullmatch(ALLOWED_INCLUDES[layer], include), (path, include)
        room, _, _ = include.partition("/")
        assert room not in KNOWN_ROOMS or room in KNOWN_ROOMS.get(path.parent.name, KNOWN_ROOMS), (path, include)
    if layer == "core":
        assert not re.search(r"\b(Python\.h|py::|PyObject|torch::|cuda[A-Z])", path.read_text())


def test_python_layers() -> None:
    for path in [*PACKAGE.rglob("*.py"), *CYTHON]:
        *rooms, _ = path.relative_to(PACKAGE).parts
        if not rooms:
            continue
        used = set(re.findall(r"^ *(?:from|import) fastreplay\.([a-z]\w*)", path.read_text(), re.MULTILINE))
        assert used <= PACKAGE_ROOMS[rooms[0]] | {rooms[0]}, (
            f"{path} imports from {used - PACKAGE_ROOMS[rooms[0]] - {rooms[0]}}"
        )


def test_what_is_imported_at_once() -> None:
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(PACKAGE).as_posix()
        for module in imports(path):
            top = module.split(".")[0]
            assert top not in {"examples", "bench", "tests"}, (path, module)
            assert top != "stable_baselines3" or name.startswith("adapters/sb3/"), (path, module)
            assert top != "gymnasium" or name == "schema/spaces.py" or name.startswith("adapters/"), (path, module)
            is_late = name.split("/")[0] in OPENED_LATE or name in TORCH_SIDE
            assert top != "torch" or is_late, f"{path} imports {module} at import time"
    for path in (ROOT / "examples").rglob("*.py"):
        private = [module for module in imports(path) if module.startswith("fastreplay._")]
        assert not private, f"{path} uses {private}: examples use the public face"


def test_the_insert_path_sees_no_atomic_and_the_core_no_cython() -> None:
    for path in CYTHON:
        assert "atomic" not in re.sub(r'""".*?"""', "", path.read_text(), flags=re.DOTALL)


# Every atomic operation by name, with its whole argument list.
ATOMIC_CALL = re.compile(r"(?:\.|->)(?:load|store|exchange|compare_exchange_\w+|fetch_\w+)\(|atomic_thread_fence\(")


@pytest.mark.parametrize("path", [p for p in NATIVE if "core" in p.parts], ids=lambda path: path.name)
def test_every_atomic_names_its_order_and_says_why(path: Path) -> None:
    text = path.read_text()
    lines = text.splitlines()
    for call in ATOMIC_CALL.finditer(text):
        depth, end = 1, call.end()
        while depth:
            depth += {"(": 1, ")": -1}.get(text[end], 0)
            end += 1
        line = text.count("\n", 0, call.start())
        where = f"{path.name}:{line + 1}"
        assert "memory_order_" in text[call.start() : end], f"{where}: an atomic call without an explicit order"
        above = "\n".join(lines[max(0, line - 6) : line])
        assert re.search(r"//.*\b(relaxed|acquire|release|acq_rel)\b", above), f"{where}: no comment says why"


def test_atomic_calls_are_recognised() -> None:
    assert len(ATOMIC_CALL.findall((ROOT / "csrc/core/ring/ring.cpp").read_text())) > 15


@pytest.mark.parametrize("path", [*NATIVE, *PYTHON, *CYTHON], ids=lambda path: path.name)
def test_file_headers(path: Path) -> None:
    first, second, *_ = path.read_text().splitlines()
    comment = "#" if path.suffix in {".py", ".pyx", ".pxd"} else "/*" if path.suffix == ".h" else "//"
    assert first.startswith(f"{comment} SPDX-License-Identifier: MIT")
    assert second  # its purpose follows at once


def test_nothing_is_left_to_do() -> None:
    for path in [*NATIVE, *PYTHON, *CYTHON]:
        if path != Path(__file__):
            assert not re.search(r"\b(TODO|FIXME|XXX|HACK)\b", path.read_text()), path


def test_one_version() -> None:
    assert f'\nversion = "{fr.__version__}"\n' in (ROOT / "pyproject.toml").read_text()
    assert f"## {fr.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_import_needs_no_torch() -> None:
    code = "import sys, fastreplay; print([m for m in ('torch', 'gymnasium', 'scipy') if m in sys.modules])"
    assert run_python(code).strip() == "[]"


def test_numpy_output_needs_no_torch() -> None:
    code = (
        "import sys, pickle, fastreplay as fr\n"
        "b = fr.ReplayBuffer(9, {'x': (3,)}, seed=0, output='numpy')\n"
        "b.extend(x=[[1, 2, 3]] * 4); b.add(x=[1, 2, 3])\n"
        "b.sample(2); b[0]; b[1:3]; b.gather([0]); pickle.loads(pickle.dumps(b)); repr(b); b.stats()\n"
        "print('torch' in sys.modules)"
    )
    assert run_python(code).strip() == "False"


def test_import_reads_few_modules() -> None:
    """Import time is noisy; the number of modules above NumPy's own is not (measured: 12 ms)."""
    code = "import sys, numpy; n = len(sys.modules); import fastreplay; print(len(sys.modules) - n)"
    assert int(run_python(code)) < 60

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
ROOMS = r"(batch|lanes|priority|ring|steps|storage|target)/\w+\.hpp"
ALLOWED_INCLUDES = {
    "core": rf"{ROOMS}|(halves|inline)\.hpp",
    "cuda": rf"{ROOMS}|(device|following|masses|sampling|stream|target|transfer)\.h|cuda(_runtime(_api)?)?\.h|dlfcn\.h"
    r"|(block_steps|current_device|followed_draw|followed_gather|followed_walk|gathered_piece|inline|launch|linked_slots"
    r"|linking_kernel|mass_tree|masses_kernel|memory_access|sampling_kernel|shifted_piece|target_kernel|target_launch"
    r"|trajectory_rows|weighed_draw)\.hpp",
    "bindings": rf"{ROOMS}|(bounds|capsule|dlpack|follow|gil|instances|module|pristine|rows|shares|target_table)\.hpp"
    r"|(torch_abi|waits)\.hpp|Python\.h|pybind11/\w+\.h",
}
# What each room of the core may know of the others.
KNOWN_ROOMS = {
    "storage": {"storage"},
    "ring": {"ring", "storage"},
    "priority": {"priority", "ring", "storage"},
    "batch": {"batch", "priority", "ring", "storage"},
    "steps": {"steps", "batch", "storage"},
    "target": {"target"},
}

# What each room of the package may import from, at any place in its files. All may use the native core.
PACKAGE_ROOMS: dict[str, set[str]] = {
    "support": set(),
    "schema": {"support"},
    "batch": {"support", "schema"},
    "gpu": {"support", "schema", "batch"},
    "checkpoint": {"support", "schema"},
    "datasets": {"support", "schema"},
    "buffer": {"support", "schema", "batch", "gpu", "checkpoint", "datasets"},
    "target": {"support", "gpu"},
    "adapters": {"support", "schema", "batch", "gpu", "checkpoint", "buffer", "target"},
}
# Rooms that `import fastreplay` must not open: they import torch.
OPENED_LATE = {"target", "adapters"}
TORCH_SIDE = {
    "support/torch_abi.py",
    "batch/tensor_offsets.py",
    "gpu/device.py",
    "gpu/memory.py",
    "gpu/mirror_masses.py",
    "gpu/ring.py",
    "gpu/streams.py",
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
    found = {path.name for path in CYTHON}
    assert found >= {"insert.pyx", "native_minibatch.pyx", "native_step_table.pyx", "tensors.pyx", "watched.pyx"}


@pytest.mark.parametrize("path", NATIVE, ids=lambda path: path.name)
def test_native_layers(path: Path) -> None:
    layer = path.relative_to(ROOT / "csrc").parts[0]
    # <vector>, those of C, SSE2's, which every x86-64 has, and those of polynomials and halves, which are asked for.
    systems = r"(fcntl|malloc|pthread|unistd)\.h|sys/(mman|resource|stat|syscall)\.h"
    standard = re.compile(rf"[a-z_]+|std(int|def)\.h|{systems}|[eiw]mmintrin\.h")
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
            assert top not in {"h5py", "minari", "pyarrow"}, f"{path} imports {module} at import time"
    for path in (ROOT / "examples").rglob("*.py"):
        private = [module for module in imports(path) if module.startswith("fastreplay._")]
        assert not private, f"{path} uses {private}: examples use the public face"


def test_the_insert_path_sees_no_atomic_and_the_core_no_cython() -> None:
    for path in CYTHON:
        assert "atomic" not in re.sub(r'""".*?"""', "", path.read_text(), flags=re.DOTALL)


# Every atomic operation by name, with its whole argument list.
ATOMIC_CALL = re.compile(
    r"(?:\.|->|Atomics::)(?:load|store|exchange|compare_exchange_\w+|fetch_\w+|fence)\(|atomic_thread_fence\("
)


# In the policy the order is that of the protocol, which calls it.
@pytest.mark.parametrize(
    "path", [p for p in NATIVE if "core" in p.parts and p.name != "atomics.hpp"], ids=lambda path: path.name
)
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
        assert re.search(r"//.*\b(relaxed|acquire|release|acq_rel|seq_cst)\b", above), f"{where}: no comment says why"


def test_atomic_calls_are_recognised() -> None:
    assert len(ATOMIC_CALL.findall((ROOT / "csrc/core/ring/protocol.hpp").read_text())) > 25


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
    assert int(run_python(code)) < 79


MOST_LINES, MOST_LINES_OF_A_FUNCTION = 400, 40
SIZED = [
    *(path for path in NATIVE),
    *CYTHON,
    *(path for path in PYTHON if path.is_relative_to(PACKAGE) or "tests" not in path.parts),
]


def functions_of(path: Path) -> dict[str, int]:
    """Give the lines of each function's body, without its docstring."""
    text = path.read_text()
    if path.suffix == ".py":
        found = [
            node for node in ast.walk(ast.parse(text)) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        ]
        bodies = {node.name: node.body[1:] if ast.get_docstring(node) else node.body for node in found}
        return {name: (body[-1].end_lineno or 0) - body[0].lineno + 1 for name, body in bodies.items() if body}
    text = re.sub(r"^#[^\n]*\n", "", re.sub(r'""".*?"""', "", text, flags=re.DOTALL), flags=re.MULTILINE)
    lines = re.sub(r"^( *c?p?def [^:\n]*,)\n +", r"\1 ", text, flags=re.MULTILINE).splitlines()
    is_native = path.suffix not in {".pyx", ".pxd"}
    # What is formatted begins a body at the end of a line, and ends it at the depth of the line where it began.
    if is_native:
        other = "namespace|class|struct|enum|extern|union|if|for|while|switch|try"
        opens = rf"^( {{0,2}})(?=[^\s#}}/])(?!{other}).*(\)|const|noexcept|override)[^;]*\{{$"
    else:
        opens = r"^( *)(?:def|cdef|cpdef) (?!class ).*\)[^()]*:$"
    sizes = {}
    for i, line in enumerate(lines):
        start = re.match(opens, line)
        if start is None:
            continue
        depth = len(start[1])
        rest = lines[i + 1 :]
        ends = [k for k, below in enumerate(rest) if below.strip() and len(below) - len(below.lstrip()) <= depth]
        sizes[line.strip()] = ends[0] if ends else len(rest)
    return sizes


@pytest.mark.parametrize("path", SIZED, ids=lambda path: path.name)
def test_files_and_functions_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MOST_LINES
    for name, num_lines in functions_of(path).items():
        assert num_lines <= MOST_LINES_OF_A_FUNCTION, f"{name}: {num_lines} lines"


def test_the_walk_over_functions_finds_them() -> None:
    assert functions_of(PACKAGE / "batch" / "ring_sampler.py")["_drawn"] > 5
    assert sum(num_lines > 3 for num_lines in functions_of(ROOT / "csrc/core/storage/region.cpp").values()) >= 2
    assert sum(num_lines > 3 for num_lines in functions_of(PACKAGE / "buffer/insert.pyx").values()) >= 5


def classes_of_the_package() -> list[tuple[Path, ast.ClassDef]]:
    package = sorted(PACKAGE.rglob("*.py"))
    return [
        (path, node) for path in package for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)
    ]


def members_of(node: ast.ClassDef) -> set[str]:
    found: set[str] = set()
    for item in ast.walk(node):
        if isinstance(item, ast.FunctionDef):
            found.add(item.name)
        elif isinstance(item, ast.Name) and isinstance(item.ctx, ast.Store):
            found.add(item.id)
        elif isinstance(item, ast.Attribute) and isinstance(item.ctx, ast.Store):
            found.add(item.attr)
    return found


def test_an_interface_has_two_implementers_or_more() -> None:
    classes = [node for _, node in classes_of_the_package()]
    for interface in classes:
        bases = {ast.unparse(base).split("[")[0] for base in interface.bases}
        if not bases & {"Protocol", "ABC"}:
            continue
        promised = {name for name in members_of(interface) if not name.startswith("_")}
        derived = [
            node
            for node in classes
            if node is not interface
            and (promised <= members_of(node) or interface.name in {ast.unparse(base) for base in node.bases})
        ]
        assert not promised or len(derived) >= 2, interface.name


def test_a_word_has_one_meaning() -> None:
    """No class's name is another's too, but for those that other libraries gave; and no word stands for a second."""
    names = [node.name for path, node in classes_of_the_package() if "adapters" not in path.parts]
    assert sorted(names) == sorted(set(names))
    words = (ROOT / "ARCHITECTURE.md").read_text().split("## Words")[1].split("\n## ")[0]
    rejected = {
        word.strip()
        for row in re.findall(r"^\|[^|]*\|[^|]*\|([^|]*)\|$", words, re.MULTILINE)
        for word in row.split(",")
    }
    rejected -= {"", "not", "---"}
    assert len(rejected) > 10
    for path in [*NATIVE, *CYTHON, *(path for path in PYTHON if path.is_relative_to(PACKAGE))]:
        if "adapters" in path.parts or path.name == "minari.py":  # which speak as those that they stand in for, or call
            continue
        code = re.sub(r'""".*?"""|#[^\n]*|//[^\n]*|"[^"\n]*"', "", path.read_text(), flags=re.DOTALL)
        split = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", code).lower()
        found = rejected & set(re.findall(r"[a-z]+", split.replace("_", " ")))
        assert not found, f"{path}: {found}"

# SPDX-License-Identifier: MIT
"""The sdist builds, the wheel holds what it should and nothing else, and no nvcc can stop a build.

In environments of their own: tests/install/check.py (make install-check).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
from shares import by_turns

import fastreplay as fr
from fastreplay import _core
from fastreplay.gpu import library

ROOT = Path(__file__).parents[1]
MODULE_SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")


def run(*command: str | Path, cwd: Path = ROOT, **environment: str) -> str:
    done = subprocess.run(
        list(map(str, command)), check=False, capture_output=True, text=True, cwd=cwd, env={**os.environ, **environment}
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Build the sdist, and the wheel of this tree, of which everything is compiled already.

    From the sdist, in environments of their own: tests/install/check.py.
    """
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--sdist", "--wheel", "--outdir", out, ROOT)
    (sdist,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    return sdist, wheel


def test_sdist_contents(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[0]) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert names >= {
        "pyproject.toml", "CMakeLists.txt", "LICENSE", "README.md", "csrc/core/ring/ring.cpp",
        "csrc/bindings/module.cpp", "csrc/cuda/CMakeLists.txt", "fastreplay/buffer/insert.pyx", "fastreplay/py.typed",
    }  # fmt: skip
    strangers = {name.split("/")[0] for name in names} - {
        "pyproject.toml", "CMakeLists.txt", "LICENSE", "README.md", "CHANGELOG.md", "ARCHITECTURE.md",
        "CONTRIBUTING.md", "PKG-INFO", "csrc", "fastreplay", "tests", "bench",
    }  # fmt: skip
    assert not strangers


MODULES = (
    *("_core", "adapters/native_step_table", "adapters/sb3/polyak_native"),
    *("batch/native_minibatch", "batch/tensors", "buffer/insert", "target/watched"),
)


def test_wheel_contents(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[1]) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    sources = (ROOT / "fastreplay").rglob("*.py*")
    expected = {path.relative_to(ROOT).as_posix() for path in sources if path.suffix in {".py", ".pyi"}}
    expected |= {f"fastreplay/{module}{MODULE_SUFFIX}" for module in MODULES}
    assert names - CUDA_PART == expected | {"fastreplay/py.typed"}
    assert len(names & CUDA_PART) == 1


# It, or why there is none.
CUDA_PART = {"fastreplay/libfastreplay_cuda.so", "fastreplay/libfastreplay_cuda.txt"}


def test_wheel_works_by_itself(built: tuple[Path, Path], tmp_path: Path) -> None:
    """In a new environment that has NumPy alone."""
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "env")
    python = tmp_path / "env" / "bin" / "python"
    constraints = ("--constraint", ROOT / "constraints.txt")
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", *constraints, built[1])
    code = (
        "import fastreplay as fr\n"
        "b = fr.ReplayBuffer(8, {'x': (2,)}, seed=0, output='numpy')\n"
        "b.extend(x=[[1, 2], [3, 4]])\n"
        "print(sorted(map(tuple, b[:].x.tolist())), b.sample(3).x.shape, fr.backend_info()['cuda_compiled'])"
    )
    said = run(python, "-c", code, cwd=tmp_path).strip()
    assert said == f"[(1.0, 2.0), (3.0, 4.0)] (3, 2) {fr.backend_info()['cuda_compiled']}"


@by_turns(1, 2)
def test_a_gpu_machine_could_try_it(built: tuple[Path, Path], tmp_path: Path) -> None:
    """Without a network, without gymnasium: the wheel is installed and imported, and finds its tests (make gpu)."""
    rehearse = (ROOT / "tests" / "cuda" / "rehearse.py", tmp_path / "pack", "--wheel", built[1])
    # The Python beneath this environment, where no editable install comes before the wheel.
    there = ("--python", sys._base_executable, "--libraries", sysconfig.get_path("purelib"))  # type: ignore[attr-defined]
    said = run(sys.executable, *rehearse, *there)
    assert "| collect | ok |" in said, said


def nvcc(compile_command: str, release: str = "13.0", architectures: str = "compute_75 compute_90") -> str:
    """Return a script that stands in for nvcc: right in all but one thing."""
    return (
        "#!/bin/sh\n"
        'case "$*" in\n'
        f'*--version*) echo "Cuda compilation tools, release {release}, V{release}.88" ;;\n'
        f'*--list-gpu-arch*) printf "%s\\n" {architectures} ;;\n'
        f"*) {compile_command} ;;\n"
        "esac\n"
    )


HOST_COMPILER_IS_TOO_NEW = (
    'echo "In file included from cuda_runtime.h:82,"; '
    'echo "host_config.h:137:2: error: #error -- unsupported GNU version! gcc versions later than 15" >&2; exit 1'
)
BROKEN_NVCCS = {
    "exits": ("#!/bin/sh\nexit 1\n", "failed (1): "),
    "says why": ("#!/bin/sh\necho 'ld.so: libfoo.so.1: not found'; echo so; exit 127\n", "libfoo.so.1: not found"),
    "prints garbage": ("#!/bin/sh\nprintf '\\001\\377;[;\\\\]$\\n'\n", "--version names no release of CUDA"),
    "is no program": ("garbage\n", "failed ("),
    "is old": (nvcc(":", release="10.2"), "CUDA 10.2, which has no C++20: expected 12.0 or later"),
    "is too new": (nvcc(":", architectures="compute_200"), "lists none of the architectures"),
    "compiles nothing": (nvcc("echo 'a.cu(3): error: no such type'; exit 2"), "(2): a.cu(3): error: no such type"),
    "refuses gcc": (nvcc(HOST_COMPILER_IS_TOO_NEW), "unsupported GNU version! gcc versions later than 15"),
    "does not link": (nvcc("echo 'ld: no -lcudart'; echo 'collect2: error: ld returned 1'; exit 1"), "ld returned 1"),
    "is killed": (nvcc("kill -9 $$"), "failed ("),
    "makes nothing": (nvcc(":"), "reports success, but made no library"),
}  # fmt: skip


def compile_cuda(folder: Path, compiler: str, wanted: str, architectures: str = "") -> subprocess.CompletedProcess[str]:
    """Run what the build runs for its CUDA part, with one file to compile."""
    cmake = shutil.which("cmake", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    settings = {
        "WANTED": wanted,
        "WANTED_ARCHITECTURES": architectures,
        "NVCC": compiler,
        "HOST_COMPILER": "",
        "INCLUDE": str(folder),
        "LIBRARY": str(folder / "libfastreplay_cuda.so"),
        "REASON": str(folder / "libfastreplay_cuda.txt"),
    }
    script = [str(ROOT / "csrc" / "cuda" / "compile.cmake"), str(folder / "a.cu")]
    command = [str(cmake), *(f"-D{name}={value}" for name, value in settings.items()), "-P", *script]
    return subprocess.run(command, check=False, capture_output=True, text=True, errors="replace")


@pytest.mark.parametrize("fault", BROKEN_NVCCS)
def test_a_broken_nvcc_is_a_reason_not_an_end(fault: str, tmp_path: Path) -> None:
    script, reason = BROKEN_NVCCS[fault]
    compiler = tmp_path / "nvcc"
    compiler.write_text(script)
    compiler.chmod(0o755)
    (tmp_path / "libfastreplay_cuda.so").write_text("of an earlier build")

    done = compile_cuda(tmp_path, str(compiler), "AUTO")
    assert done.returncode == 0, done.stderr
    written = (tmp_path / "libfastreplay_cuda.txt").read_text(encoding="ascii")
    assert reason in written
    assert written.count("\n") == 1
    assert f"fastreplay: built without CUDA: {written.strip()}" in done.stdout
    assert not (tmp_path / "libfastreplay_cuda.so").exists()
    assert library._load_cuda(tmp_path) == (None, f"built without CUDA: {written.strip()}")

    done = compile_cuda(tmp_path, str(compiler), "ON")
    assert done.returncode != 0
    assert "FASTREPLAY_CUDA=ON, but" in done.stderr
    assert " ".join(reason.split()) in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    ("compiler", "wanted", "reason"),
    [
        ("", "AUTO", "no nvcc was found (CUDACXX, CUDA_HOME, CUDA_PATH, PATH)"),
        ("/nowhere/nvcc", "AUTO", "/nowhere/nvcc failed (no such file or directory):"),
        ("/nowhere/nvcc", "OFF", "FASTREPLAY_CUDA=OFF"),
    ],
)
def test_no_nvcc_is_a_reason(compiler: str, wanted: str, reason: str, tmp_path: Path) -> None:
    assert compile_cuda(tmp_path, compiler, wanted).returncode == 0
    assert (tmp_path / "libfastreplay_cuda.txt").read_text().strip().lower() == reason.lower()
    if wanted == "AUTO":
        assert compile_cuda(tmp_path, compiler, "ON").returncode != 0


ASKED = {
    "": "75,sm_75 80,sm_80 90,sm_90 100,sm_100 120,sm_120 100,compute_100",
    "90-real": "90,sm_90",
    "75-real;90": "75,sm_75 90,sm_90 90,compute_90",
    "80-virtual;200": "80,compute_80",
    "90a-real": "90a,sm_90a",
}


@pytest.mark.parametrize("asked", ASKED)
def test_a_good_nvcc_makes_the_library(asked: str, tmp_path: Path) -> None:
    """With the architectures that it knows, as CMake names them, and the files in the order given."""
    compiler = tmp_path / "nvcc"
    known = " ".join(f"compute_{generation}" for generation in (75, 80, 86, 90, 100, 110, 120))
    compiler.write_text(
        nvcc(f'echo "$@" > {tmp_path}/arguments; touch {tmp_path}/libfastreplay_cuda.so', "13.0", known)
    )
    compiler.chmod(0o755)
    done = compile_cuda(tmp_path, str(compiler), "ON", asked)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "libfastreplay_cuda.txt").exists()
    arguments = (tmp_path / "arguments").read_text().split()
    expected = [f"arch=compute_{pair.replace(',', ',code=')}" for pair in ASKED[asked].split()]
    assert [word for word in arguments if word.startswith("arch=")] == expected
    assert [word for word in arguments if word.endswith(".cu")] == [str(tmp_path / "a.cu")]


def test_an_older_nvcc_makes_ptx_of_the_newest_that_it_knows(tmp_path: Path) -> None:
    compiler = tmp_path / "nvcc"
    compiler.write_text(nvcc(f'echo "$@" > {tmp_path}/arguments; touch {tmp_path}/libfastreplay_cuda.so'))
    compiler.chmod(0o755)
    assert compile_cuda(tmp_path, str(compiler), "ON").returncode == 0
    assert (tmp_path / "arguments").read_text().count("arch=") == 3
    assert "-gencode arch=compute_90,code=compute_90" in (tmp_path / "arguments").read_text()


@pytest.mark.parametrize("given", ["FASTREPLAY_CUDA_ARCHITECTURES", "CMAKE_CUDA_ARCHITECTURES", "CUDAARCHS"])
def test_architectures_are_asked_for_as_anywhere(given: str, tmp_path: Path) -> None:
    """The build's own name for them counts before CMake's, and that before the environment's."""
    names = ["FASTREPLAY_CUDA_ARCHITECTURES", "CMAKE_CUDA_ARCHITECTURES", "CUDAARCHS"]
    weaker = names[names.index(given) :]
    (tmp_path / "CMakeLists.txt").write_text(
        f"cmake_minimum_required(VERSION 3.18)\nproject(cuda_only NONE)\n"
        f"set(FASTREPLAY_CUDA AUTO)\nadd_subdirectory({ROOT / 'csrc' / 'cuda'} cuda)\n"
    )
    compiler = tmp_path / "nvcc"
    compiler.write_text(nvcc(f'echo "$@" > {tmp_path}/arguments; exit 1'))
    compiler.chmod(0o755)
    settings = [f"-D{name}={75 if name == given else 90}-real" for name in weaker if name != "CUDAARCHS"]
    value = "75-real" if given == "CUDAARCHS" else "90-real"
    cmake = str(shutil.which("cmake", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}"))
    run(cmake, "-S", tmp_path, "-B", tmp_path / "build", *settings, CUDACXX=str(compiler), CUDAARCHS=value)
    run(cmake, "--build", tmp_path / "build", CUDACXX=str(compiler), CUDAARCHS=value)
    assert "arch=compute_75,code=sm_75 " in (tmp_path / "arguments").read_text()
    assert "compute_90" not in (tmp_path / "arguments").read_text()


@pytest.mark.parametrize("content", [b"", b"no library", None])
def test_a_library_that_cannot_be_loaded_says_so(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "libfastreplay_cuda.so").write_bytes(content)
    loaded, reason = library._load_cuda(tmp_path)
    assert loaded is None
    assert reason.startswith("the CUDA part cannot be loaded: ")


def test_a_library_of_something_else_is_none(tmp_path: Path) -> None:
    shutil.copy(_core.__file__, tmp_path / "libfastreplay_cuda.so")
    loaded, reason = library._load_cuda(tmp_path)
    assert loaded is None
    assert "fastreplay_cuda_error_string" in reason

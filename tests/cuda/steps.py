# SPDX-License-Identifier: MIT
"""What is tried on a GPU, in order. Commands only: what runs them is in step.py."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from card import Card
from pack import ROOT, Pack
from step import Step

# The driver looks at each call's error itself; some are meant, and some are of a run-time newer than its driver.
_SANITIZERS = {"memcheck": ("--padding", "256", "--report-api-errors", "no"), "initcheck": (), "synccheck": ()}
_QUESTIONS = {"gpu_soft_update": 35.0, "gpu_pipeline": 45.0}
_PYTEST = ("-m", "cuda", "-p", "no:cacheprovider", "-o", "faulthandler_timeout=15")
_TOOLS = (
    "nvidia-smi -L",
    "nvidia-smi --query-gpu=driver_version,memory.total,clocks.max.sm,clocks.max.mem --format=csv",
    "nvcc --version | tail -n 2",
    "compute-sanitizer --version | tail -n 1",
    "cmake --version | head -n 1",
    "nproc; uname -sr",
)
_VERSIONS = (
    "import sys, numpy, torch; "
    "print('Python', sys.version.split()[0], 'torch', torch.__version__, 'NumPy', numpy.__version__)"
)
# The library must be the built one.
_BACKEND = (
    "import sys, pathlib, torch, fastreplay as fr; "
    "print(fr.__file__); [print(*item, sep=': ') for item in fr.backend_info().items()]; "
    "sys.exit(pathlib.Path(sys.argv[1]) not in pathlib.Path(fr.__file__).parents)"
)


@dataclass(frozen=True)
class Plan:
    """A run: where things lie, and what for.

    Attributes:
        python: The interpreter that has torch.
        wheels: The folder of the pack.
        work: What is installed and built here.
        out: Where everything that is said goes.
        card: The card.
        commit: What reports name.
    """

    python: str
    wheels: Path
    work: Path
    out: Path
    card: Card
    commit: str

    @property
    def site(self) -> Path:
        return self.work / "site"

    @property
    def driver(self) -> Path:
        return self.work / "driver"

    @property
    def environment(self) -> Mapping[str, str]:
        return {"PYTHONPATH": str(self.site), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONUNBUFFERED": "1"}

    def steps(self, pack: Pack | None, *, build: bool) -> list[Step]:
        """Return all steps; fastreplay is built here if `build`, else taken from the pack."""
        installed = [] if pack is None else [*pack.others, *(() if build else (pack.wheel,))]
        ready = [
            self._machine(),
            *([self.install(installed)] if installed else []),
            *([self._build()] if build else []),
            self.import_built(says="^target_update_cuda: CUDA kernel$"),
        ]
        found = [*ready, *self.compile_driver(), *self._native(), *self._tests(), *self.benchmarks()]
        return [replace(step, environment={**self.environment, **step.environment}) for step in found]

    def _python_step(
        self, name: str, limit_s: float, *arguments: str, says: str = "", log: str = "machine.txt"
    ) -> Step:
        # With -P the sources' folder is not looked into before the site; a script looks into its own instead.
        safe = [] if arguments[0].endswith(".py") else ["-P"]
        return Step(name, [self.python, *safe, *arguments], limit_s, log, says=says)

    def _machine(self) -> Step:
        script = "; ".join(f"{{ {tool}; }} 2>&1" for tool in _TOOLS)
        command = ["bash", "-c", f'{script}; "$0" -P -c "$1"', self.python, _VERSIONS]
        return Step("machine", command, 30, "machine.txt", says="^Python .* torch .* NumPy .*")

    def install(self, wheels: Sequence[str]) -> Step:
        paths = [str(self.wheels / name) for name in wheels]
        pip = ("-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-compile", "--no-cache-dir")
        return self._python_step("site", 40, *pip, "--target", str(self.site), *paths)

    def _build(self) -> Step:
        pip = ("-m", "pip", "install", "--no-index", "--no-deps", "--no-build-isolation", "--no-cache-dir")
        where = ("--target", str(self.site), f"-Cbuild-dir={self.work / 'build'}", str(ROOT))
        step = self._python_step("build", 170, *pip, *where, says="^Successfully installed.*")
        wanted = {"FASTREPLAY_CUDA": "ON", "FASTREPLAY_CUDA_ARCHITECTURES": f"{self.card.architecture}-real"}
        return replace(step, environment=wanted)

    def import_built(self, says: str) -> Step:
        return self._python_step("import", 40, "-c", _BACKEND, str(self.site), says=says)

    def compile_driver(self) -> list[Step]:
        """Return the steps that need no card: what the compiler made of the kernels, and the driver of the library."""
        package = self.site / "fastreplay"
        kernels = (str(ROOT / "bench" / "kernels.py"), str(package / "libfastreplay_cuda.so"))
        core = ROOT / "csrc" / "core"
        includes = [f"-I{folder}" for folder in (core, ROOT / "csrc" / "cuda")]
        sources = [
            ROOT / "tests" / "cuda" / "driver.cpp",
            core / "target/chunks.cpp",
            core / "storage/record_layout.cpp",
        ]
        link = ["-L", str(package), "-lfastreplay_cuda", "-Xlinker", f"-rpath={package}", "-o", str(self.driver)]
        compiled = ["nvcc", "-std=c++20", "-O1", *includes, *map(str, sources), *link]
        return [
            replace(
                self._python_step("kernels", 5, *kernels, log="checks.txt", says=r"sm_\d+"),
                needs="cuobjdump",
            ),
            Step("compile the driver", compiled, 25, "checks.txt"),
        ]

    def _native(self) -> list[Step]:
        """Return the steps without torch: the driver, by itself and under each sanitizer."""
        driver = Step("driver", [str(self.driver)], 15, "checks.txt", says=r"^\d+ checks passed, 0 failed")
        sanitizer = ("compute-sanitizer", "--error-exitcode", "9", "--tool")
        return [
            driver,
            *(
                Step(
                    tool, [*sanitizer, tool, *options, str(self.driver), "brief"], 18, "checks.txt",
                    says="^=+ ERROR SUMMARY: 0 errors", needs="compute-sanitizer",
                )
                for tool, options in _SANITIZERS.items()
            ),
        ]  # fmt: skip

    def collect(self) -> Step:
        """Return the step that looks, without a card, for what all tests would try on one."""
        pytest = ("-m", "pytest", "--collect-only", "-q", *_PYTEST, str(ROOT / "tests"))
        return self._python_step(
            "collect",
            60,
            *pytest,
            says=r"^[1-9]\d*/\d+ tests collected.*",
            log="checks.txt",
        )

    def _tests(self) -> list[Step]:
        """Return a step for each test file that has something to try on a card."""
        files = files_of_cuda_tests()
        pytest = ("-m", "pytest", *_PYTEST)
        return [
            self._python_step(
                path.stem, 66 / len(files), *pytest, str(path), says=r"\b[1-9]\d* passed.*", log="checks.txt"
            )
            for path in files
        ]

    def benchmarks(self) -> list[Step]:
        script = str(ROOT / "bench" / "run.py")
        options = ("--quick", "--out", str(self.out), "--commit", self.commit)
        return [
            self._python_step(name, limit_s, script, name, *options, log="benchmarks.txt")
            for name, limit_s in _QUESTIONS.items()
        ]


def files_of_cuda_tests(folder: Path = ROOT / "tests") -> list[Path]:
    """Return those that are not passed over under -m cuda (tests/conftest.py)."""
    return [path for path in sorted(folder.glob("test_*.py")) if re.search(r"\bcuda_device\b", path.read_text())]

# The same few commands for everyone: people, CI, every machine. Each sets up what it needs.
PYTHON ?= python3
VENV := .venv
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check
JOBS ?= 2
SHARE ?= 1

# What is compiled; the Python files are used where they lie.
NATIVE := $(shell find csrc fastreplay bench/native -name '*.[ch]pp' -o -name '*.pyx' -o -name '*.pxd' -o -name '*.cu' -o -name '*.h' \
            -o -name 'CMakeLists.txt' -o -name '*.cmake') CMakeLists.txt pyproject.toml

# The same for an interpreter without GIL. PYTHON_GIL is not set: an import that turns the GIL on is to be seen.
FT := build/freethreaded
PYTHON_FT ?= $(FT)/python/bin/python3.13t
FT_PIP := $(FT)/venv/bin/python -m pip --disable-pip-version-check
FT_PYTEST := env -u PYTHON_GIL PYTHONPATH=tests/freethreaded $(FT)/venv/bin/python -m pytest -p stand_ins

# Where there is no GPU, that the CUDA part compiles is enough, and one generation tells.
export FASTREPLAY_CUDA_ARCHITECTURES ?= $(if $(shell command -v nvidia-smi),,90)

# make gpu: what was packed, where it goes that is said, and the Python that packs (of the GPU machine's version).
WHEELS ?= .gpu
OUT ?= build/gpu/out
PACK_PYTHON ?= $(firstword $(wildcard $(HOME)/.pyenv/versions/3.12*/bin/python) python3.12)
REHEARSAL := build/gpu-rehearsal

ALGO ?= ddpg
SEED ?= 0
# ENV counts on the command line only: some shells keep one of their own in the environment.
TRAIN_ARGS = --seed $(SEED) $(if $(filter command,$(origin ENV)),--env $(ENV)) $(if $(STEPS),--steps $(STEPS)) $(ARGS)

.DEFAULT_GOAL := help
.PHONY: help train learn test gpu gpu-pack gpu-rehearsal ready cpptest counts pytest benchtest mutants why lint format typecheck asan tsan freethreaded stress fuzz bench install-check package clean
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

train: $(VENV)/.built ## Train ALGO=dqn|ddpg|td3|sac|recurrent_dqn (SEED=0 ENV=... STEPS=... ARGS="...") and show what it learned
	$(VENV)/bin/python examples/$(ALGO).py $(strip $(TRAIN_ARGS))

learn: $(VENV)/.built $(if $(findstring cheetah,$(TASKS)),$(VENV)/.mujoco) ## Train all loops on three or ten seeds (about two hours; writes docs/learning; TASKS="td3 sac-cheetah")
	$(VENV)/bin/python examples/learning.py $(TASKS)

why: $(VENV)/.built ## Measure why minibatches and slow targets help (about 10 minutes; writes docs/why)
	$(VENV)/bin/python examples/why.py $(FIGURES)

test: export FASTREPLAY_TURN ?= $(shell git rev-list --count HEAD 2>/dev/null)
test: $(VENV)/.build ## Run every test, the linters and the type checkers (about 12 minutes on two cores)
	$(MAKE) --jobs=2 --output-sync=target ready cpptest tsan mutants SHARE=12  # what waits for the network beside what compiles
	$(MAKE) --jobs=2 benchtest typecheck lint pytest

# One after another: they install into one environment.
ready:
	$(MAKE) $(VENV)/.built
	$(MAKE) $(VENV)/.test
	$(MAKE) $(VENV)/.lint

cpptest: $(VENV)/.build
	$(call cmake_tests,build/cpp,,)

counts: $(VENV)/.build ## Count the instructions of the hot paths, beside those that are kept (ACCEPT="NAME ..." or all keeps them)
	$(call cmake_build,build/cpp,,--target hot_paths)
	$(PYTHON) tests/counts/compare.py build/cpp/tests/counts/hot_paths $(if $(ACCEPT),--accept $(ACCEPT))

pytest: $(VENV)/.built $(VENV)/.test
	$(PYTEST)

benchtest: $(VENV)/.built $(VENV)/.test
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest bench/test_*.py

mutants: $(VENV)/.build ## Break each rule of the insert protocol in turn; the tests must notice (SHARE=8: every eighth)
	$(VENV)/bin/python tests/mutants/run.py --share $(SHARE)

lint: $(VENV)/.lint ## Check style: ruff, clang-format
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	git ls-files '*.cpp' '*.hpp' '*.h' '*.cu' | xargs $(VENV)/bin/clang-format --dry-run --Werror

format: $(VENV)/.lint
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .
	git ls-files '*.cpp' '*.hpp' '*.h' '*.cu' | xargs $(VENV)/bin/clang-format -i

typecheck: $(VENV)/.lint $(VENV)/.built $(VENV)/.test ## Check types: mypy strict, stubs against the modules
	$(VENV)/bin/mypy
	$(VENV)/bin/mypy bench
	$(VENV)/bin/stubtest fastreplay._core fastreplay.buffer.insert fastreplay.adapters.native_step_table fastreplay.adapters.sb3.polyak_native fastreplay.target.watched fastreplay.batch.native_minibatch fastreplay.batch.tensors --allowlist tests/stubtest-allowlist.txt \
	  --mypy-config-file tests/stubtest.ini

asan: $(VENV)/.built $(VENV)/.test ## Run the C++ and Python tests under AddressSanitizer and UBSan
	$(call cmake_tests,build/asan/cpp,address$(comma)undefined,FASTREPLAY_STRESS_ROWS=2000000)
	FASTREPLAY_SANITIZE=address,undefined FASTREPLAY_CUDA=OFF $(PIP) install --quiet --no-build-isolation --no-deps \
	  --upgrade --target build/asan/site -Cbuild-dir=build/asan/python -Ccmake.define.CMAKE_INTERPROCEDURAL_OPTIMIZATION=OFF .
	bash tests/run_asan.sh $(VENV) build/asan/site

tsan: $(VENV)/.build ## Run the C++ tests under ThreadSanitizer
	$(call cmake_tests,build/tsan,thread,FASTREPLAY_STRESS_ROWS=1000000 FASTREPLAY_HISTORY_EVENTS=200000 FASTREPLAY_LANE_WINDOWS=12000 FASTREPLAY_FRAME_ROWS=1000)

freethreaded: $(FT)/.built ## Test NumPy output without the GIL, on a CPython built once (or PYTHON_FT=/path/to/python3.13t)
	$(FT_PYTEST) tests
	$(FT_PYTEST) tests --parallel-threads=4 -o thread_unsafe_fixtures=buffer  # which tests of indexing write into

stress: $(VENV)/.built $(VENV)/.test ## Run the concurrency tests in their long form (10^9 rows, 155 M states; about half an hour, 12 GB)
	$(call cmake_tests,build/cpp,,)
	FASTREPLAY_STRESS_ROWS=1000000000 build/cpp/tests/cpp/test_stress
	FASTREPLAY_STRESS_ROWS=200000000 build/cpp/tests/cpp/test_stress_yields
	FASTREPLAY_HISTORY_EVENTS=20000000 build/cpp/tests/cpp/test_history
	FASTREPLAY_LANE_WINDOWS=100000000 build/cpp/tests/cpp/test_lanes
	FASTREPLAY_FRAME_ROWS=100000000 build/cpp/tests/cpp/test_frames
	FASTREPLAY_PRIORITY_DRAWS=100000000 FASTREPLAY_PRIORITY_INSERTS=20000000 build/cpp/tests/cpp/test_priorities
	build/cpp/tests/model/test_model --large
	FASTREPLAY_THREADS_S=60 $(VENV)/bin/python -m pytest tests/test_threads.py tests/test_fork.py
	FASTREPLAY_LONG=1 FASTREPLAY_INTERRUPTIONS_S=300 $(VENV)/bin/python -m pytest tests/test_interruptions.py
	FASTREPLAY_LONG=1 $(PYTEST) tests/test_sb3_training.py tests/test_dedupe_training.py tests/test_pinned.py tests/test_mirror.py tests/test_stateful.py tests/test_priorities_stateful.py tests/test_refusals.py
	FASTREPLAY_LONG=1 FASTREPLAY_SAVES=1000 FASTREPLAY_HOSTILE=20000 $(PYTEST) tests/test_checkpoint*.py tests/test_ring_file.py
	FASTREPLAY_HOSTILE=2000 $(PYTEST) tests/test_dataset_files.py
	FASTREPLAY_OWNERSHIP_EXAMPLES=1000 $(VENV)/bin/python -m pytest tests/test_ownership_stateful.py

fuzz: $(VENV)/.built $(VENV)/.test ## Read changed checkpoints for SECONDS=60 (by libFuzzer, where it is), and count them in tests/fuzz_executions.json
	-$(PIP) install --quiet --only-binary :all: --constraint constraints.txt --group fuzz
	$(VENV)/bin/python tests/fuzz_checkpoints.py

bench: $(VENV)/.bench ## Measure beside the peers (about 17 minutes, 10 GB; writes bench/results; WORK="buffers target" COMPARE=before.json ARGS=--quick)
	-$(MAKE) $(APART)
	$(VENV)/bin/python bench/run.py $(WORK) $(if $(COMPARE),--compare "$(COMPARE)") $(ARGS)

install-check: $(VENV)/.test ## Install from tree and sdist, on machines with less and with broken tools (about 20 minutes)
	$(VENV)/bin/python tests/install/check.py $(CASES)

gpu: ## On a machine with a GPU: build, check and measure (5 minutes, no network; PYTHON=... OUT=... BUILD=1)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "make gpu: needs Python 3.10 or later, with torch; $(PYTHON) is %d.%d" % sys.version_info[:2])'
	@$(PYTHON) tests/cuda/try_gpu.py --wheels "$(WHEELS)" --out "$(OUT)" $(if $(BUILD),--build)

gpu-pack: ## Where there is a network: put into .gpu what such a machine lacks, this commit's wheel among it
	@python3 tests/cuda/pack.py "$(WHEELS)" "$(PACK_PYTHON)"

gpu-rehearsal: gpu-pack $(REHEARSAL)/.there ## Try of make gpu what needs no card, in the software of such a machine
	PATH="$$PATH:$$(echo $(abspath $(REHEARSAL))/lib/python3*/site-packages/triton/backends/nvidia/bin):/usr/local/cuda/bin" \
	  python3 tests/cuda/rehearse.py "$(WHEELS)" --python $(abspath $(REHEARSAL)/bin/python) --native

package: $(VENV)/.test ## Build the sdist, and the wheel from it
	$(VENV)/bin/python -m build

clean: ## Remove everything that was built or installed here
	rm -rf $(VENV) build dist runs .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -prune -exec rm -rf {} +

comma := ,
# torch's own threads would wait for each other's cores; tests that need several say so.
PYTEST = OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest --numprocesses $(JOBS) --dist worksteal
# $(1) build folder, $(2) sanitizers, $(3) environment of the tests
define cmake_tests
	$(call cmake_build,$(1),$(2))
	$(3) $(VENV)/bin/ctest --test-dir $(1) --output-on-failure --parallel $(JOBS)
endef

# The same without the tests' run; $(3) what is built, if not all.
define cmake_build
	$(VENV)/bin/cmake -S . -B $(1) -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(VENV)/bin/ninja) -DCMAKE_BUILD_TYPE=Release \
	  -DCMAKE_UNITY_BUILD=ON -DFASTREPLAY_TESTS=ON -DFASTREPLAY_SANITIZE=$(2) -Wno-dev >/dev/null
	$(VENV)/bin/cmake --build $(1) --parallel $(JOBS) $(3)
endef

# One stamp a dependency group (pyproject.toml), so that training does not wait for what testing needs.
$(VENV)/.pip:
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --upgrade "pip>=25.1"
	@touch $@

$(VENV)/.build $(VENV)/.examples $(VENV)/.mujoco $(VENV)/.test $(VENV)/.lint: $(VENV)/.%: $(VENV)/.pip pyproject.toml constraints.txt
	@echo "Installing the $* tools into $(VENV) (once; torch is the large one)"
	$(PIP) install --quiet --constraint constraints.txt --group $*
	@touch $@

$(VENV)/.built: $(VENV)/.build $(VENV)/.examples $(NATIVE)
	@echo "Building fastreplay"
	$(PIP) install --quiet --no-build-isolation --no-deps --editable .
	@touch $@

# Peers in an environment of their own; what it lacks is $(VENV)'s. make bench does without what cannot be had.
APART := build/bench/flashbax/.there
$(APART): build/bench/%/.there: pyproject.toml constraints.txt | $(VENV)/.bench
	@echo "Installing $* into $(@D) (once; half a gigabyte)"
	$(VENV)/bin/python -m venv $(@D)
	$(VENV)/bin/python -c "import sysconfig; print('import site; site.addsitedir(\"%s\")' % sysconfig.get_path('purelib'))" \
	  > $$($(@D)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/rest.pth
	$(PIP) --python $(@D)/bin/python install --quiet --constraint constraints.txt --group $*
	@touch $@

# What a GPU machine has: torch and NumPy of its own, a compiler of CUDA beside, and no peer.
$(REHEARSAL)/.there:
	$(PACK_PYTHON) -m venv $(REHEARSAL)
	$(REHEARSAL)/bin/python -m pip install --quiet torch==2.11.0 numpy==2.5.2 pytest hypothesis
	@touch $@

$(FT)/python/bin/python3.13t:
	@echo "Building a Python without GIL (once, about six minutes; log in $(FT)/build.log)"
	JOBS=$(JOBS) nice bash tests/freethreaded/interpreter.sh $(FT)

$(FT)/venv/bin/python: | $(PYTHON_FT)
	$(PYTHON_FT) -m venv $(FT)/venv
	$(FT_PIP) install --quiet --upgrade "pip>=25.1"

$(FT)/.tools: $(FT)/venv/bin/python pyproject.toml constraints.txt
	$(FT_PIP) install --quiet --constraint constraints.txt --group freethreaded
	@touch $@

$(FT)/.built: $(FT)/.tools $(NATIVE)
	FASTREPLAY_CUDA=OFF $(FT_PIP) install --quiet --no-build-isolation --no-deps --editable .
	@touch $@

$(VENV)/.bench: $(VENV)/.built
	$(PIP) install --quiet --constraint constraints.txt --group bench
	FASTREPLAY_BENCH=ON $(PIP) install --quiet --no-build-isolation --no-deps --editable .
	@touch $@

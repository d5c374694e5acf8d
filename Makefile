# Two commands for a fresh clone: make demo, make test. Both install what they need into .venv.
PYTHON ?= python3
VENV := .venv
THREADS := 1
RUN := $(VENV)/bin/python

.PHONY: demo test test-studies test-distributed test-device test-compiled test-integrations study study-fast lint docs bench lowest newest thorough machines fuzz crash mutants alone clean

# Each method at the best of three learning rates, chosen on held-out pictures of the style it is fine-tuned on.
demo: $(VENV)/.demo
	$(RUN) -m experiments.classification --lrs 2e-4 6e-4 2e-3 --seeds 0 1 --epochs 5 --weight-decay 0

# Two processes of one thread each (THREADS=2: of two): most tests are too small for two threads to share. What loads
# MiniLM is left to test-integrations, but for README's example where its weights are installed. Files begin in their
# order, not by the number of their tests: some have few, and slow ones. COVERAGE=1 counts lines, for half the time again.
test: $(VENV)/.demo $(VENV)/.test
	OMP_NUM_THREADS=$(THREADS) $(RUN) -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --ignore tests/compiled \
		--ignore tests/experiments --ignore tests/device --ignore tests/distributed \
		--ignore tests/integrations/test_large.py --ignore tests/integrations/test_language.py \
		$(if $(COVERAGE),--cov --cov-report=term --cov-fail-under=95) -q

# Of the studies: they train small networks.
test-studies: $(VENV)/.demo $(VENV)/.test
	OMP_NUM_THREADS=$(THREADS) $(RUN) -m pytest --numprocesses 2 --dist loadfile -q tests/experiments

# In up to four processes, which wait for each other: beside other tests each waits for a core too.
test-distributed: $(VENV)/.demo $(VENV)/.test
	OMP_NUM_THREADS=$(THREADS) $(RUN) -m pytest -q tests/distributed

# On a simulated accelerator, a C++ backend of torch that is built once: whoever imports it has one device more, so these
# tests have a process of their own.
test-device: $(VENV)/.demo $(VENV)/.test
	OMP_NUM_THREADS=$(THREADS) $(RUN) -m pytest -q tests/device

# Compilers take minutes, and have to be there: a C++ compiler for inductor.
test-compiled: $(VENV)/.demo $(VENV)/.test
	OMP_NUM_THREADS=$(THREADS) $(RUN) -m pytest --numprocesses 2 -q tests/compiled

# Those of timm run in make test too. README's first example is of transformers, with MiniLM's weights.
test-integrations: $(VENV)/.demo $(VENV)/.test $(VENV)/.integrations
	OMP_NUM_THREADS=$(THREADS) HF_HUB_OFFLINE=1 $(RUN) -m pytest --numprocesses 2 --dist loadfile -q tests/integrations \
		hyperopt_ftp/integrations 'tests/test_docs.py::test_code_blocks_run_and_print_what_the_page_shows[README.md-0]'

study-fast: $(VENV)/.language $(VENV)/.cells
	$(RUN) -m experiments.studies --fast

# Files of two sources are no packages, and are downloaded: see experiments/studies/jobs.py.
study: $(VENV)/.language $(VENV)/.cells
	$(RUN) -m experiments.studies --publish docs/studies

# Environments of their own: the lowest releases that pyproject.toml admits, and the newest that there are. On Linux both
# take PyTorch's builds for CUDA from PyPI (gigabytes), or what UV_TORCH_BACKEND says.
lowest: RESOLUTION = lowest-direct
newest: RESOLUTION = highest
lowest newest: $(VENV)/.dev
	$(RUN) -m uv venv --quiet --clear --python $(PYTHON) $(VENV)-$@
	$(RUN) -m uv pip install --quiet --python $(VENV)-$@/bin/python --resolution $(RESOLUTION) --editable ".[test]"
	OMP_NUM_THREADS=1 $(VENV)-$@/bin/python -m pytest --numprocesses 2 --dist loadfile -q

thorough: $(VENV)/.demo $(VENV)/.test
	HYPOTHESIS_PROFILE=thorough $(RUN) -m pytest -q

# make test as other machines would run it: older instructions for torch's loops, oneDNN and MKL, one thread and two,
# other work beside. Seven runs. A CPU's instructions decide in which order sums are made: a test that fails under one of
# these has a bound that holds by luck. Processes that share cores do not spin while they wait.
OLDEST := ATEN_CPU_CAPABILITY=default DNNL_MAX_CPU_ISA=SSE41 MKL_CBWR=COMPATIBLE
AVX2 := ATEN_CPU_CAPABILITY=avx2 DNNL_MAX_CPU_ISA=AVX2 MKL_CBWR=AVX2
machines: $(VENV)/.demo $(VENV)/.test
	$(MAKE) --keep-going $(foreach n,1 2,machine-oldest-$n machine-avx2-$n machine-own-$n) machine-busy-1

machine-oldest-%:
	env $(OLDEST) OMP_WAIT_POLICY=PASSIVE $(MAKE) test THREADS=$*
machine-avx2-%:
	env $(AVX2) OMP_WAIT_POLICY=PASSIVE $(MAKE) test THREADS=$*
machine-own-%:
	env OMP_WAIT_POLICY=PASSIVE $(MAKE) test THREADS=$*
machine-busy-%:
	for n in 1 2; do timeout --foreground 1h $(RUN) -c "while True: pass" & busy="$$busy $$!"; done; \
		trap 'kill $$busy' EXIT; env OMP_WAIT_POLICY=PASSIVE $(MAKE) test THREADS=$*

fuzz: $(VENV)/.demo $(VENV)/.test
	HYPOTHESIS_PROFILE=thorough $(RUN) -m pytest -q -s tests/torch_optim/test_machine.py tests/hyper/loops/test_bilevel_machine.py

crash: $(VENV)/.demo $(VENV)/.test
	KILLS=50 $(RUN) -m pytest -q tests/crash

# Small faults in a copy of the package: does a test fail for each? The same sample each time.
mutants: $(VENV)/.demo $(VENV)/.test $(VENV)/.mutants
	$(RUN) -m tests.mutants

lint: $(VENV)/.demo $(VENV)/.bench $(VENV)/.test $(VENV)/.docs $(VENV)/.integrations $(VENV)/.dev
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m pyright
	$(RUN) -m check_jsonschema --builtin-schema vendor.citation-file-format CITATION.cff

# Into site/; then every page is opened in Chromium, which has to be installed.
docs: $(VENV)/.docs
	$(RUN) -m website site
	$(RUN) -m pytest -q -rs tests/test_site.py

# Each quick target in a fresh clone of its own: it must not need what another one has installed. A clone goes after its
# target, since an environment has gigabytes.
ALONE := demo test test-studies test-distributed test-compiled test-integrations study-fast lint docs fuzz crash
alone:
	mkdir $(VENV)-alone
	$(MAKE) --keep-going $(ALONE:%=alone-%)

alone-%:
	git clone --quiet . $(VENV)-alone/$*
	env -u MAKEFLAGS -u MFLAGS -u MAKELEVEL -u VIRTUAL_ENV make -C $(VENV)-alone/$* $* > $(VENV)-alone/$*.log 2>&1; \
		status=$$?; rm -rf $(VENV)-alone/$*; exit $$status

bench: $(VENV)/.demo $(VENV)/.bench
	$(RUN) -m benchmarks.bench_step
	$(RUN) -m benchmarks.bench_family
	$(RUN) -m benchmarks.bench_training
	$(RUN) -m benchmarks.bench_family --eight-bits
	$(RUN) -m benchmarks.bench_hypergradient
	$(RUN) -m benchmarks.bench_meta
	$(RUN) -m benchmarks.bench_small
	$(RUN) -m benchmarks.bench_estimate
	$(RUN) -m benchmarks.bench_update
	$(RUN) -m benchmarks.bench_triton
	$(RUN) -m benchmarks.large --steps 12 --size 32 --length 64
	$(RUN) -m benchmarks.large --steps 256 --size 4 --length 16 --strategies "plain loop" "Unroll(sqrt)"

$(VENV)/bin/python:
	$(PYTHON) -c "import sys; sys.exit(0 if sys.version_info >= (3, 10) else 'hyperopt_ftp needs Python 3.10 or newer')"
	$(PYTHON) -m venv $(VENV)

# One stamp for each extra, renewed when the requirements change. A plain install (README's) keeps compiled steps in its
# folder; pip leaves them there when it makes the install editable, and a folder without the package would hide it.
$(VENV)/.%: pyproject.toml | $(VENV)/bin/python
	$(RUN) -m pip install --quiet --disable-pip-version-check --editable ".[$*]"
	rm -rf $(VENV)/lib/python*/site-packages/hyperopt_ftp
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-* site .pytest_cache .ruff_cache .hypothesis .coverage

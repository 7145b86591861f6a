# make demo: from nothing to a trained model. `make` alone lists the targets; scripts/ holds what they do.

VENV ?= .venv
OLDEST_VENV ?= .venv-oldest
PEERS_VENV ?= .venv-peers
COMPILERS_VENV ?= .venv-compilers
DEMO ?= demo
WORKERS ?= 2
ARGS ?=

python := $(VENV)/bin/python
# A file's tests run on one worker, so that its fixtures are made once. tests/conftest.py puts the slowest files first.
parallel := -n $(WORKERS) --dist loadfile --no-loadscope-reorder --durations=10
parallel_cases := -n $(WORKERS)
compile = $(1)/bin/python -m pytest $(parallel_cases) -m compilers tests/jax_kernels/test_absent_hardware.py
compiled_programs := tests/jax_kernels/compiled_programs.py
# Their tests run a sample of their cases until a source of theirs changes; tests/verified.py has the sources.
sampled := $(addprefix tests/,jax_kernels models nn generation)
# Those of IS_LONG and `sample` (tests/effort.py).
fewer_when_quick := $(sampled) tests/health/test_health_mutations.py tests/data/test_text_batches.py $(addprefix tests/training/test_,step.py training.py)
not_slow := -m "not slow and not long and not compilers"
# tests/seconds.json has the tests that take seconds.
quick := -m "not seconds and not slow and not long and not compilers"
# What depends on the versions of Python and JAX: kernels, models, training, checkpoints and one end-to-end path.
version_dependent := $(addprefix tests/,jax_kernels nn models training checkpoint e2e/test_main_job.py::test_language_model)

export VENV DEMO

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo setup setup-test test test-slow test-seconds test-every test-long test-oldest test-compilers test-compilers-sample test-compilers-sample-oldest test-peers bench docs lint format lock wheelhouse wheel clean

help:  ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-21s %s\n", $$1, $$2 }' Makefile

demo: setup  ## train a language model: init, train, resume, evaluate, generate
	@sh scripts/demo.sh

setup:  ## install aifx into .venv
	@sh scripts/setup.sh run

setup-test:
	@sh scripts/setup.sh test

test: setup-test  ## run all tests that are quick (ARGS="-k name" goes to pytest)
	$(python) -m pytest $(parallel) $(quick) $(ARGS)

test-slow: setup-test  ## run the other tests: whole trainings, kills, a Slurm cluster
	$(python) -m pytest $(parallel) -m "seconds or slow" $(ARGS)

test-seconds: setup-test  ## measure which tests take seconds, and leave these to test-slow
	SECONDS_OF_TESTS=1 $(python) -m pytest $(parallel) $(not_slow) $(ARGS)

test-long: setup-test  ## run hours of kills and random calls; resumes, and writes docs/reliability.md
	LONG=1 $(python) -m pytest -n $(WORKERS) -m long $(ARGS)
	LONG=1 $(python) -m pytest $(parallel) $(not_slow) $(fewer_when_quick) $(ARGS)
	$(python) scripts/reliability.py build/test-long.jsonl

test-oldest:  ## run the tests that depend on versions, with Python 3.11 and its JAX
	@VENV=$(OLDEST_VENV) VERSIONS=3.11 sh scripts/setup.sh test
	$(OLDEST_VENV)/bin/python -m pytest $(parallel) $(not_slow) $(version_dependent) $(ARGS)

test-every: setup-test  ## run every case of sampled tests, on the newest and the oldest Python, and record it
	EVERY=1 $(python) -m pytest $(parallel) $(not_slow) $(sampled)
	$(python) tests/verified.py
	@VENV=$(OLDEST_VENV) VERSIONS=3.11 sh scripts/setup.sh test
	EVERY=1 $(OLDEST_VENV)/bin/python -m pytest $(parallel) $(not_slow) $(sampled)
	$(OLDEST_VENV)/bin/python tests/verified.py

test-compilers:  ## compile every kernel for absent GPUs and TPUs, with the newest and the oldest JAX, and record it
	@VENV=$(COMPILERS_VENV) sh scripts/setup_compilers.sh
	$(call compile,$(COMPILERS_VENV)) -o junit_family=xunit1 --junitxml $(COMPILERS_VENV)/compiled.xml $(ARGS)
	$(COMPILERS_VENV)/bin/python -m pytest -m compilers tests/planning
	PYTHONPATH=tests $(COMPILERS_VENV)/bin/python $(compiled_programs) record $(COMPILERS_VENV)/compiled.xml
	@VENV=$(COMPILERS_VENV)-oldest VERSIONS=3.11 sh scripts/setup_compilers.sh
	FEWER=1 $(call compile,$(COMPILERS_VENV)-oldest) -o junit_family=xunit1 --junitxml $(COMPILERS_VENV)-oldest/compiled.xml $(ARGS)
	FEWER=1 PYTHONPATH=tests $(COMPILERS_VENV)-oldest/bin/python $(compiled_programs) record $(COMPILERS_VENV)-oldest/compiled.xml

test-compilers-sample:  ## the same for changed kernels, and for an eighth of the others
	@VENV=$(COMPILERS_VENV) sh scripts/setup_compilers.sh
	SAMPLE=1 $(call compile,$(COMPILERS_VENV)) $(ARGS)
	$(COMPILERS_VENV)/bin/python -m pytest -m compilers tests/planning
	@[ -z "$$(FEWER=1 PYTHONPATH=tests $(COMPILERS_VENV)/bin/python $(compiled_programs) due 3.11)" ] || \
		$(MAKE) --no-print-directory test-compilers-sample-oldest

test-compilers-sample-oldest:
	@VENV=$(COMPILERS_VENV)-oldest VERSIONS=3.11 sh scripts/setup_compilers.sh
	SAMPLE=1 FEWER=1 $(call compile,$(COMPILERS_VENV)-oldest) $(ARGS)

test-peers: setup-test  ## compare models in and out with transformers and PEFT, which it installs (ARGS="--seed 7 --count 9")
	@VENV=$(PEERS_VENV) sh scripts/setup_peers.sh
	rm -rf build/peers
	$(PEERS_VENV)/bin/python tests/hub/peer_models.py make build/peers/imported $(ARGS)
	$(PEERS_VENV)/bin/python tests/hub/peer_pictures.py make build/peers/pictures $(ARGS)
	$(python) -m pytest -q tests/hub/compare_with_peers.py tests/serving/compare_with_lm_eval.py
	$(PEERS_VENV)/bin/python tests/hub/peer_models.py check build/peers/exported
	$(PEERS_VENV)/bin/python tests/hub/peer_models.py check-adapters build/peers/adapters
	$(python) tests/data/peer_chats.py tokenizer build/peers/chat-tokenizer.json
	$(PEERS_VENV)/bin/python tests/data/peer_chats.py check build/peers/chat-tokenizer.json

bench: setup  ## compare aifx with its peers, in docs/performance.md (ARGS="--only training --torch-python PATH")
	@$(python) benchmarks/all.py $(ARGS)

# Not with --quiet, which also hides the warnings that strict counts.
docs:  ## build the documentation as a site in build/site that needs no network
	@sh scripts/setup.sh docs
	@NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build
	@echo "open build/site/index.html"

lint: setup-test  ## run ruff, mypy and the import contracts
	@VENV=$(VENV) sh scripts/lint.sh

format: setup-test  ## apply ruff's fixes and format
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format

lock:  ## write requirements.lock from pyproject.toml (ARGS=--upgrade for the newest versions)
	@$$(sh scripts/find_python.sh 3.13 3.12 3.11) scripts/lock.py $(ARGS)

wheelhouse: setup  ## download the lock's wheels to WHEELHOUSE (wheelhouse/), for set-ups without a network
	@sh scripts/wheelhouse.sh

wheel: setup-test  ## build the wheel in dist/ and check that it works alone
	@sh scripts/check_wheel.sh

clean:  ## remove environments, builds and the demo
	rm -rf $(VENV) $(OLDEST_VENV) $(COMPILERS_VENV) $(COMPILERS_VENV)-oldest $(PEERS_VENV) $(DEMO) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

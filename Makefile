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
export PARALLEL := -n $(WORKERS) --dist loadfile --no-loadscope-reorder --durations=10
pytest := $(python) -m pytest $(PARALLEL)

export VENV OLDEST_VENV COMPILERS_VENV DEMO
# Tests start hundreds of processes, and each would compile aifx again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo setup setup-test test pytest test-all test-peers bench docs lint format lock wheelhouse wheel clean

help:  ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

demo: setup  ## train a language model: init, train, resume, evaluate, generate
	@sh scripts/demo.sh

setup:  ## install aifx into .venv
	@sh scripts/setup.sh run

setup-test:
	@sh scripts/setup.sh test

test: setup-test  ## run the quick tests (ARGS="-k name" goes to pytest)
	@rm -f build/test.jsonl
	$(pytest) -m "not (representative or slow or quarantined)" --journal=build/test.jsonl $(ARGS)

pytest:  ## run the tests that ARGS selects in VENV (ARGS="-m slow --sixteenth=3")
	$(pytest) $(ARGS)

test-all: setup-test  ## run all tests, on the newest and the oldest Python: hours; resumes, and writes docs/reliability.md
	@sh scripts/test_all.sh $(ARGS)

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

#!/bin/sh
# Every test on the newest and the oldest Python, and every kernel compiled for absent GPUs and TPUs with both. Takes
# hours. Tests that passed on this commit are left out, so that an interrupted run can be resumed; with uncommitted
# changes it starts over. LONG=1 adds the counts that take many hours, such as a thousand kills. At the end it writes
# docs/reliability.md and tests/jax_kernels/compiled_programs.json, for you to commit.
#
# VENV, OLDEST_VENV, COMPILERS_VENV  environments; those that are missing are made
# PARALLEL                           how pytest divides the tests among workers
set -eu

cd "$(dirname "$0")/.."
journal=build/test-all.jsonl
status=0

# Arguments: an environment, and what else pytest takes.
run() {
    python=$1/bin/python
    shift
    code=0
    # shellcheck disable=SC2086 # PARALLEL is several words
    "$python" -m pytest $PARALLEL --journal=$journal --resume "$@" || code=$?
    [ "$code" = 0 ] || [ "$code" = 5 ] || status=1 # 5: all of them passed before
}

run "$VENV" "$@"
VENV=$OLDEST_VENV VERSIONS=3.11 sh scripts/setup.sh test
run "$OLDEST_VENV" "$@"
VENV=$COMPILERS_VENV sh scripts/setup_compilers.sh
run "$COMPILERS_VENV" -m compilers "$@"
VENV=$COMPILERS_VENV-oldest VERSIONS=3.11 sh scripts/setup_compilers.sh
run "$COMPILERS_VENV-oldest" -m compilers "$@"

PYTHONPATH=tests "$VENV/bin/python" tests/jax_kernels/compiled_programs.py record "$journal"
"$VENV/bin/python" scripts/reliability.py "$journal"
exit "$status"

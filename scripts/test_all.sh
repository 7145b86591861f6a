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

VENV=$OLDEST_VENV VERSIONS=3.11 PYTHON='' sh scripts/setup.sh test
VENV=$COMPILERS_VENV sh scripts/setup_compilers.sh
VENV=$COMPILERS_VENV-oldest VERSIONS=3.11 PYTHON='' sh scripts/setup_compilers.sh
for venv in "$COMPILERS_VENV" "$COMPILERS_VENV-oldest"; do "$venv/bin/python" -c 'import libtpu'; done

run "$VENV" "$@"
run "$OLDEST_VENV" "$@"
run "$COMPILERS_VENV" -m compilers "$@"
run "$COMPILERS_VENV-oldest" -m compilers "$@"

# Written files make the tree differ from the commit, so that nothing could be resumed: not before all tests passed.
export PYTHONPATH=tests
if [ "$status" = 0 ] && [ $# = 0 ]; then
    "$VENV/bin/python" tests/jax_kernels/compiled_programs.py record "$journal"
    "$VENV/bin/python" scripts/reliability.py write "$journal"
else
    "$VENV/bin/python" scripts/reliability.py print "$journal"
fi
exit "$status"

#!/bin/sh
# A check for CI: the health of the machine, a short training, and a gate on its metrics.
# Exit codes: 0 passed, 1 a bad verdict, 2 not checked. Each step prints one JSON document on stdout.
#
#   ci/gate.sh                                          # less than a minute on two cores
#   GATE_STEPS=300 GATE="bits_per_byte <= 2.3" ci/gate.sh
set -eu
cd "$(dirname "$0")/.."

steps=${GATE_STEPS:-80}
gate=${GATE:-bits_per_byte <= 2.6}
run=gate-$(date -u +%Y%m%d-%H%M%S)-$$

# Exit code 2 is no failure here: only root can check everything, such as the kernel log.
verdict=0
aifx doctor --json || verdict=$?
test "$verdict" -ne 1 || exit 1

# Keep a run that did not pass.
trap 'test ! -d "runs/$run" || echo "the run is kept: aifx runs show $run" >&2' EXIT

# git ignores datasets/, so a checkout has to make the data set again.
if grep -q '^dataset = "corpus"' aifx.toml && test ! -d datasets/corpus; then sh data/prepare.sh >&2; fi

aifx train --run "$run" --set train.num_steps="$steps" --set checkpoint.every=0 --json
aifx eval --run "$run" --set 'eval.gates=[]' --gate "$gate" --json

rm -r "runs/$run"

#!/bin/sh
# Make the data set `corpus` of the text, and name it in aifx.toml. What is done already takes a second or two.
set -eu
cd "$(dirname "$0")/.."

set -x
aifx data add corpus data/moby_dick.txt --license CC0-1.0 --split-at '^(CHAPTER|Epilogue)'
aifx data dedupe corpus                 # drop chapters that are copies
aifx data split corpus                  # hold out whole chapters, near-duplicates together
aifx data decontaminate corpus --drop   # drop training chapters that share 13 words in a row with a held-out one
set +x

sed 's/^# dataset =/dataset =/' aifx.toml >aifx.toml.new   # without -i, which BSD's sed has otherwise
mv aifx.toml.new aifx.toml

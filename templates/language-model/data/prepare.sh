#!/bin/sh
# Make the data set `corpus` of the text, and name it in aifx.toml. If it is made already, this takes a second or two.
set -eu
cd "$(dirname "$0")/.."

set -x
aifx data make corpus                   # the steps of recipe.toml that are missing
set +x

sed 's/^# dataset =/dataset =/' aifx.toml >aifx.toml.new   # without -i, which BSD's sed has otherwise
mv aifx.toml.new aifx.toml

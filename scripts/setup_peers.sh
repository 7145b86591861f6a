#!/bin/sh
# Make the environment of the peers that imported and exported models are compared with: tests/hub/peers.txt. aifx is
# not in it. Does nothing if it is up to date.
#
# VENV      the environment's folder
# VERSIONS  the Pythons to choose from, best first (default: "3.13 3.12 3.11")
set -eu

cd "$(dirname "$0")/.."
requirements=tests/hub/peers.txt
stamp=$VENV/.aifx-peers # written last: an environment without it is made again

[ -f "$stamp" ] && [ "$(cat "$stamp")" = "$(cksum $requirements)" ] && exit 0

# shellcheck disable=SC2086 # the versions are several words
interpreter=$(sh scripts/find_python.sh ${VERSIONS:-3.13 3.12 3.11})
rm -rf "$VENV"
echo "Installing $requirements into $VENV: a few gigabytes if the index has no torch for the CPU" >&2
if command -v uv >/dev/null; then
    uv venv --quiet --no-python-downloads --python "$interpreter" "$VENV"
    uv pip install --quiet --python "$VENV/bin/python" --require-hashes -r $requirements
else
    "$interpreter" -m venv "$VENV"
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --no-input --only-binary :all: --require-hashes -r $requirements
fi
cksum $requirements >"$stamp"

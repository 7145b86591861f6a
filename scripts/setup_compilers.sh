#!/bin/sh
# The environment in which kernels are compiled for GPUs and TPUs that this machine does not have: that of the tests, and
# the compilers of requirements-compilers.lock. It is a place of its own, since JAX takes a plugin that is installed as
# hardware that is there.
#
# VENV, VERSIONS, WHEELHOUSE  as for scripts/setup.sh
set -eu

cd "$(dirname "$0")/.."
lock=requirements-compilers.lock
python=$VENV/bin/python
stamp=$VENV/.aifx-compilers

sh scripts/setup.sh test
[ -f "$stamp" ] && [ "$(cat "$stamp")" = "$(cksum $lock)" ] && exit 0

echo "Installing compilers from $lock" >&2
if command -v uv >/dev/null; then
    uv pip install --quiet --python "$python" ${WHEELHOUSE:+--no-index --find-links "$WHEELHOUSE"} \
        --no-deps --require-hashes -r $lock
else
    "$python" -m pip install --quiet --disable-pip-version-check --no-input --only-binary :all: \
        ${WHEELHOUSE:+--no-index --find-links "$WHEELHOUSE"} --no-deps --require-hashes -r $lock
fi
cksum $lock >"$stamp"

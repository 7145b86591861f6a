#!/bin/sh
# Download the lock's wheels for this Python and this kind of machine, to set up another one from them:
#
#     WHEELHOUSE=wheelhouse make demo
set -eu

cd "$(dirname "$0")/.."
WHEELHOUSE=${WHEELHOUSE:-wheelhouse}
"${VENV:-.venv}/bin/python" -m pip download --quiet --disable-pip-version-check --only-binary :all: \
    --no-deps --require-hashes -r requirements.lock --dest "$WHEELHOUSE"
echo "$(find "$WHEELHOUSE" -name '*.whl' | wc -l) wheels in $WHEELHOUSE; install them with: WHEELHOUSE=$WHEELHOUSE make demo"

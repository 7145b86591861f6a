#!/bin/sh
# Fetch the wheels of the lock for this Python and this kind of machine, so that another one can be set up from them:
#
#     WHEELHOUSE=wheelhouse make demo
set -eu

cd "$(dirname "$0")/.."
WHEELHOUSE=${WHEELHOUSE:-wheelhouse}
"${VENV:-.venv}/bin/python" -m pip download --quiet --disable-pip-version-check --only-binary :all: \
    --require-hashes -r requirements.lock --dest "$WHEELHOUSE"
echo "$(find "$WHEELHOUSE" -name '*.whl' | wc -l) wheels in $WHEELHOUSE; set up from them with: WHEELHOUSE=$WHEELHOUSE make demo"

#!/bin/sh
# ruff, mypy and a syntax check of the shell scripts.
#
# commands/ and templates/ stand at the top of the repository and install under aifx; mypy goes by folders, so it is
# shown a tree of links in which they stand where they install.
set -eu

cd "$(dirname "$0")/.."
here=$(pwd)
bin=$(cd "${VENV:-.venv}/bin" && pwd)

"$bin/ruff" check
"$bin/ruff" format --check

tree=build/lint
rm -rf "$tree"
mkdir -p "$tree/aifx"
for part in aifx/*; do ln -s "$here/$part" "$tree/$part"; done
ln -s "$here/commands" "$here/templates" "$tree/aifx/"
ln -s "$here/jax_kernels" "$tree/"
(cd "$tree" && "$bin/mypy" --config-file "$here/pyproject.toml" --cache-dir "$here/.mypy_cache" --python-executable "$bin/python" -p aifx -p jax_kernels)

for script in scripts/*.sh; do sh -n "$script"; done
bash -n .ci/run

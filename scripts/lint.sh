#!/bin/sh
# ruff, mypy, the import contracts, the counts of scripts/house.py and a syntax check of the shell scripts.
#
# commands/ and templates/ are at the top of the repository and install under aifx. mypy and import-linter need them
# where they install, so they read a tree of links.
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
(cd "$tree" && "$bin/lint-imports" "$here/pyproject.toml" --no-cache --no-logo)
"$bin/python" scripts/house.py

# pytest takes two files of one name for one, if it collects both.
same=$(find tests -name 'test_*.py' -exec basename {} \; | sort | uniq -d)
[ -z "$same" ] || { echo "several files in tests/ are called $same" >&2; exit 1; }

for script in scripts/*.sh; do sh -n "$script"; done
bash -n .ci/run

#!/bin/sh
# Build the source distribution and from it the wheel, install the wheel in a clean environment far from this
# repository, and do the main job there, shortened.
set -eu

cd "$(dirname "$0")/.."
here=$(pwd)
VENV=${VENV:-.venv}
uv=$(command -v uv || true)

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

rm -rf dist build/lib build/bdist.*
"$VENV/bin/python" -m build --no-isolation --outdir dist . >"$scratch/build.log" 2>&1 || {
    cat "$scratch/build.log" >&2
    exit 2
}
wheel=$(ls "$here"/dist/*.whl)
echo "built $(basename "$wheel"), $(wc -c <"$wheel") bytes"

# The locked versions, hashes checked; then the wheel alone: pip would fetch a requirement that the lock lacks without a
# hash, so it fetches nothing, and `pip check` fails instead.
sed '/^# ---- test tools/,$d' requirements.lock >"$scratch/requirements.txt"
interpreter=$("$VENV/bin/python" -c 'import sys; print(sys._base_executable)')
cd "$scratch"
if [ -n "$uv" ]; then
    uv venv --quiet --no-python-downloads --python "$interpreter" venv
    install() { uv pip install --quiet --python venv/bin/python ${WHEELHOUSE:+--no-index --find-links "$WHEELHOUSE"} "$@"; }
else
    "$interpreter" -m venv venv
    install() { venv/bin/python -m pip install --quiet --disable-pip-version-check --no-input --only-binary :all: ${WHEELHOUSE:+--no-index --find-links "$WHEELHOUSE"} "$@"; }
fi
install --no-deps --require-hashes -r requirements.txt
install --no-deps "$wheel"
venv/bin/python -m pip check

# A settled environment of its own: neither this repository nor the person's own settings reach in.
PATH=$scratch/venv/bin:/usr/local/bin:/usr/bin:/bin
HOME=$scratch/home
mkdir -p "$HOME"
export PATH HOME
unset PYTHONPATH VIRTUAL_ENV XDG_CACHE_HOME XDG_CONFIG_HOME 2>/dev/null || true

step() {
    echo "\$ $*"
    "$@"
}
step aifx --version
where=$(venv/bin/python -I -c 'import aifx; print(aifx.__file__)')
case $where in
"$scratch"/*) ;;
*) echo "error: the wheel's environment imports aifx from $where" >&2 && exit 1 ;;
esac

# Rules, catalogues and pages are data of the package. Whether this machine is healthy is no matter here (0, 1 or 2).
step aifx doctor rules nvidia.rows.pending
status=0
step aifx doctor --html report.html || status=$?
test "$status" -le 2
test -s report.html
step aifx bench hardware --quick --html bench.html
test -s bench.html

# Gates ask the doctor first, and whether this machine is healthy does not matter here.
mkdir -p "$HOME/.config/aifx"
printf '[[skip]]\nid = "*"\nreason = "the wheel is checked, not the machine"\n' >"$HOME/.config/aifx/health.toml"

# Each template is whole. One of them trains: tests/templates runs the gates of all.
for template in custom-task fine-tune language-model series tabular vision-inspection; do
    step aifx init "$template" --template "$template" --yes
    test -f "$template/.gitignore" || { echo "error: $template has no .gitignore: the wheel lost its dotfiles" >&2 && exit 1; }
done
step tabular/ci/gate.sh >gate.log 2>&1 || { cat gate.log >&2 && exit 1; }
echo "the wheel works alone"

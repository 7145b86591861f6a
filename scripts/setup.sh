#!/bin/sh
# Make the environment that the Makefile's targets run in. Does nothing if it is up to date.
#
#     scripts/setup.sh run     aifx and the packages that it needs
#     scripts/setup.sh test    also the test tools
#     scripts/setup.sh docs    also the tools that build the documentation
#
# VENV        the environment's folder (default: .venv)
# VERSIONS    the Pythons to choose from, best first (default: "3.13 3.12 3.11")
# PYTHON      the one Python to use
# WHEELHOUSE  a folder of wheels to install from without a network; with UV_OFFLINE=1, uv installs from its cache
#
# The stamp is written last and records the inputs of the environment. An environment without a stamp, or with another
# one, is made again, so a set-up that failed or was killed never counts as complete.
set -eu

level=${1:-run}
VENV=${VENV:-.venv}
VERSIONS=${VERSIONS:-3.13 3.12 3.11}
here=$(cd "$(dirname "$0")/.." && pwd)
cd "$here"

marker=$VENV/.aifx-environment # this script made the folder and may replace it
stamp=$VENV/.aifx-stamp        # the environment is complete
lock=requirements.lock
python=$VENV/bin/python

fail() {
    for line in "$@"; do echo "$line"; done >&2
    exit 2
}

# Each level includes those before it.
case $level in
run) sufficient="run test docs" ;;
test) sufficient="test docs" ;;
docs) sufficient="docs" ;;
*) fail "error: unknown level '$level'" "hint: scripts/setup.sh run, scripts/setup.sh test or scripts/setup.sh docs" ;;
esac

# The inputs of an environment. The folder is one because the project is installed in place, by its path.
made_from() {
    echo "folder $here"
    echo "versions ${PYTHON:-$VERSIONS}"
    cksum pyproject.toml $lock scripts/setup.sh
}

works() { "$python" -c 'import aifx' >/dev/null 2>&1; }

# One set-up of an environment at a time. A lock is void if its owner is gone.
hold_lock() {
    mkdir -p "$(dirname "$VENV")"
    while ! mkdir "$VENV.lock" 2>/dev/null; do
        owner=$(cat "$VENV.lock/pid" 2>/dev/null || true)
        if [ -n "$owner" ] && kill -0 "$owner" 2>/dev/null; then
            [ -n "${waited:-}" ] || echo "Waiting for the set-up of $VENV by process $owner" >&2
            waited=yes
            sleep 1
        else
            sleep 1 # the owner may not have written its id yet
            [ "$owner" != "$(cat "$VENV.lock/pid" 2>/dev/null || true)" ] || rm -rf "$VENV.lock"
        fi
    done
    echo $$ >"$VENV.lock/pid"
    trap 'rm -rf "$VENV.lock"' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
}

is_current() {
    current=no
    if [ -f "$stamp" ] && [ "$(sed 1d "$stamp")" = "$(made_from)" ] && works; then
        current=$(head -n 1 "$stamp")
    fi
    case " $sufficient " in *" $current "*) true ;; *) false ;; esac
}

is_current && exit 0
hold_lock
is_current && exit 0

rm -f "$stamp"
uv=$(command -v uv || true)

if [ "$current" = no ]; then
    if [ -e "$VENV" ] && [ ! -f "$marker" ]; then
        fail "error: $VENV exists and was not made by this script" \
            "hint: move it away, or use another folder: make setup VENV=.venv-aifx"
    fi
    # shellcheck disable=SC2086 # the versions are several words
    interpreter=$(sh scripts/find_python.sh $VERSIONS)
    # A process of a killed set-up may still write for a moment.
    rm -rf "$VENV" 2>/dev/null || { sleep 5 && rm -rf "$VENV"; }
    mkdir -p "$VENV"
    : >"$marker"
    echo "Making $VENV with $("$interpreter" -V)" >&2
    if [ -n "$uv" ]; then
        uv venv --quiet --allow-existing --no-python-downloads --python "$interpreter" "$VENV"
    else
        "$interpreter" -m venv "$VENV"
    fi
fi

wanted=$VENV/requirements.txt
case $level in
run) sed '/^# ---- test tools/,$d' $lock >"$wanted" ;;
test) sed '/^# ---- docs tools/,$d' $lock >"$wanted" ;;
docs) cp $lock "$wanted" ;;
esac

install() {
    if [ -n "$uv" ]; then
        uv pip install --quiet --python "$python" ${WHEELHOUSE:+--no-index --find-links "$WHEELHOUSE"} "$@"
    else
        "$python" -m pip install --quiet --disable-pip-version-check --no-input --only-binary :all: \
            ${WHEELHOUSE:+--no-index --find-links "$WHEELHOUSE"} "$@"
    fi
}

# A line that tells a person at a terminal how far it is, until $ticker is killed. Packages are in place after downloads.
show_progress() {
    begun=$(date +%s)
    while sleep 1; do
        printf '\r  %s s, %s in place ' $(($(date +%s) - begun)) \
            "$(find "$VENV"/lib/python*/site-packages -maxdepth 1 -name '*.dist-info' 2>/dev/null | wc -l)"
    done
}

echo "Installing $(grep -c '^[a-zA-Z0-9]' "$wanted") packages from $lock${WHEELHOUSE:+ out of $WHEELHOUSE}" >&2
ticker=''
if [ -t 2 ]; then
    show_progress >&2 &
    ticker=$!
    trap 'kill $ticker 2>/dev/null || true; rm -rf "$VENV.lock"' EXIT
fi
# The lock is complete. Without --no-deps, pip before 23.3 wants the newest release of what is asked for with extras,
# as justext does with lxml[html_clean], and not the one that is pinned.
install ${uv:+--compile-bytecode} --require-hashes --no-deps -r "$wanted" ||
    fail "error: the packages could not be installed" \
        "the reason is above; the next set-up starts again in $VENV" \
        "hint: without a network, use uv with its cache (UV_OFFLINE=1) or a folder of wheels (WHEELHOUSE=DIR)"
# setuptools warns about installations in place, which this is on purpose.
(export PYTHONWARNINGS=ignore && install --no-deps --no-build-isolation --editable .) ||
    fail "error: aifx itself could not be installed into $VENV" "the reason is above"
if [ -n "$ticker" ]; then
    kill "$ticker" 2>/dev/null || true
    wait "$ticker" || true
    echo >&2
fi
works || fail "error: aifx was installed into $VENV but cannot be imported" "hint: $python -c 'import aifx'"

{
    echo "$level"
    made_from
} >"$stamp.new"
mv "$stamp.new" "$stamp"

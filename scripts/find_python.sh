#!/bin/sh
# Print the path of the newest Python, among the versions given (newest first), that can carry an environment.
#
#     scripts/find_python.sh 3.13 3.12 3.11
#
# A name on PATH proves nothing: a version manager's shim may stand for a Python that is not installed, and a
# distribution may ship Python without the modules that make environments. So each candidate is run before it is believed.
# PYTHON=/path/to/python in the environment is taken at its word, and only checked.
set -eu

use_uv=$(command -v uv || true)
turned_down=""

# Prints where the interpreter behind "$1" really is; fails with the reason on stdout.
examine() {
    found=$("$1" -I -c '
import sys, sysconfig
wanted, uses_uv = sys.argv[1].split(), sys.argv[2]
version = "%d.%d" % sys.version_info[:2]
if version not in wanted:
    sys.exit("is Python " + version)
if sys.implementation.name != "cpython" or sysconfig.get_config_var("Py_GIL_DISABLED"):
    sys.exit("is not the standard build of CPython")
if not uses_uv:
    try:
        import ensurepip, venv
        ensurepip.version()
    except Exception:
        sys.exit("cannot make environments (no venv or ensurepip)")
print(getattr(sys, "_base_executable", "") or sys.executable)
' "$2" "$use_uv" 2>&1) && return 0
    found=$(printf '%s\n' "$found" | tail -n 1)
    return 1
}

try() { # candidate, versions
    if examine "$1" "$2"; then
        printf '%s\n' "$found"
        exit 0
    fi
    turned_down="$turned_down
    $1: ${found:-does not run}"
}

# Every file of this name on PATH, not only the first: a broken shim often stands before the one that works.
on_path() {
    old_ifs=$IFS
    IFS=:
    for folder in $PATH; do
        [ -x "$folder/$1" ] && printf '%s\n' "$folder/$1"
    done
    IFS=$old_ifs
}

candidates() { # version
    on_path "python$1"
    if [ -n "$use_uv" ]; then
        uv python find --system --no-python-downloads "$1" 2>/dev/null || true
    fi
    for installed in "${PYENV_ROOT:-${HOME:-/nonexistent}/.pyenv}"/versions/"$1".*/bin/"python$1"; do
        [ -x "$installed" ] && printf '%s\n' "$installed"
    done
    on_path python3
}

if [ -n "${PYTHON:-}" ]; then
    try "$PYTHON" "$*"
else
    for version in "$@"; do
        # A here-document, since a pipe would make a subshell of the loop and its exit would be lost.
        while IFS= read -r candidate; do
            [ -z "$candidate" ] || try "$candidate" "$version"
        done <<CANDIDATES
$(candidates "$version" || true)
CANDIDATES
    done
fi

{
    echo "error: no Python that can be used was found (wanted: $*)"
    echo "looked at:"
    printf '%s\n' "${turned_down:-    nothing: no such command is on PATH}" | sed '/^$/d' | sort -u
    case $turned_down in
    *"cannot make environments"*) echo "hint: install the module that makes environments (Debian, Ubuntu: apt install python3-venv), or uv (pip install uv)" ;;
    *) echo "hint: install one of these versions (with uv: uv python install $1), or name yours: make setup PYTHON=/path/to/python" ;;
    esac
} >&2
exit 2

#!/bin/sh
# The main job from nothing: make a project, train its model, stop and resume it, hold it against its gate, let it write.
#
# DEMO  the project's folder (default: demo). One that is there already is gone on with: training resumes, and a
#       training that is complete is evaluated again. Remove the folder to start over.
set -eu

cd "$(dirname "$0")/.."
DEMO=${DEMO:-demo}
VENV=${VENV:-.venv}
PATH=$(cd "$VENV/bin" && pwd):$PATH
export PATH

mkdir -p build
train_pid=$(pwd)/build/demo-train.pid
rm -f "$train_pid"
trap 'rm -f "$train_pid"' EXIT
trap 'exit 130' INT

bold='' plain=''
if [ -t 1 ] && [ -z "${NO_COLOR:-}" ] && [ "${TERM:-dumb}" != dumb ]; then
    bold=$(printf '\033[1m') plain=$(printf '\033[0m')
fi
say() { printf '\n%s%s%s\n' "$bold" "$*" "$plain"; }

# Shows a command as one would type it, and runs it.
run() {
    shown='$'
    for word in "$@"; do
        case $word in
        *' '*) shown="$shown \"$word\"" ;;
        *) shown="$shown $word" ;;
        esac
    done
    say "$shown"
    "$@"
}

# Trains in the foreground, which keeps the terminal and its Ctrl-C, and has the process stopped on the way. The shell
# in between writes down its own id and then becomes `aifx train`.
train_and_stop() {
    say "\$ aifx train     (stopped on the way with SIGTERM, as a scheduler would do)"
    : >"$train_pid"
    stop_after_a_checkpoint &
    status=0
    sh -c 'echo $$ >"$0"; exec aifx train' "$train_pid" || status=$?
    rm -f "$train_pid" # which ends the watcher
    wait
    return "$status"
}

stop_after_a_checkpoint() {
    while [ -f "$train_pid" ]; do
        for checkpoint in runs/*/checkpoints/*; do
            case ${checkpoint##*/} in
            *[!0-9]*) ;; # none yet, or one that is still being written
            *)
                kill -TERM "$(cat "$train_pid")" 2>/dev/null && return 0
                ;;
            esac
        done
        sleep 1
    done
}

if [ -f "$DEMO/aifx.toml" ]; then
    say "Going on with the project in $DEMO; remove that folder to start over"
    cd "$DEMO"
else
    run aifx init "$DEMO" --template language-model --yes
    cd "$DEMO"
    status=0
    train_and_stop || status=$?
    case $status in
    0) ;;
    75) say "Exit code 75 says: run it again. The same command goes on where it was, bit for bit" ;;
    *) exit "$status" ;;
    esac
fi

run aifx train
run aifx eval
run aifx generate --prompt "The whale" --max-tokens 120 --seed 1

say "What was made"
cat <<MADE
  $DEMO/aifx.toml   what is trained, on which data, and the gate it has to pass
  $DEMO/runs/main   the run: its resolved configuration, metrics, checkpoints and evaluation
MADE
say "What to try next"
cat <<NEXT
  . $VENV/bin/activate; cd $DEMO
  aifx runs ls                                          what was trained here, and how it went
  aifx generate --prompt "Call me" --temperature 0.7    other words from the same model
  aifx train --run deeper --set model.num_layers=6      another model beside it
  aifx init ~/inspection --template vision-inspection   images instead of text
NEXT

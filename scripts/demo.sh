#!/bin/sh
# The main job from nothing: make a project, train its model, stop and resume it, hold it against its gate, let it write.
#
# DEMO  the project's folder (default: demo). One that is there already is gone on with: training resumes, and a
#       training that is complete is evaluated again. Remove the folder to start over.
set -eu

here=$(cd "$(dirname "$0")/.." && pwd)
DEMO=${DEMO:-demo}
VENV=${VENV:-.venv}
cd "$here"
PATH=$(cd "$VENV/bin" && pwd):$PATH
export PATH

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
if ! [ -t 1 ] || [ -n "${NO_COLOR:-}" ] || [ "${TERM:-dumb}" = dumb ]; then
    say() { printf '\n%s\n' "$*"; }
fi
run() {
    say "\$ $*"
    "$@"
}

# Trains in the foreground, and has the process stopped as a scheduler would once a checkpoint is on disk.
# The shell writes its own id and becomes `aifx train`, which keeps the terminal and its Ctrl-C.
train_and_stop() {
    say "\$ aifx train     (the demo stops it with SIGTERM on the way, as a scheduler would)"
    rm -f .train-pid
    watch_and_stop &
    watcher=$!
    status=0
    sh -c 'echo $$ >.train-pid; exec aifx train' || status=$?
    rm -f .train-pid # which ends the watcher
    wait "$watcher" || true
    return "$status"
}

watch_and_stop() {
    while ! [ -f .train-pid ]; do sleep 1; done
    while [ -f .train-pid ]; do
        for checkpoint in runs/*/checkpoints/[0-9]*; do
            case $checkpoint in
            *.*tmp* | *'*'*) continue ;;
            esac
            kill -TERM "$(cat .train-pid)" 2>/dev/null || true
            return 0
        done
        sleep 1
    done
}

if [ -f "$DEMO/aifx.toml" ]; then
    say "Going on with the project in $DEMO (remove that folder to start over)"
    cd "$DEMO"
else
    run aifx init "$DEMO" --template language-model --yes
    cd "$DEMO"
    status=0
    train_and_stop || status=$?
    case $status in
    0) ;;
    75) say "Stopped with exit code 75: run it again. The same command goes on where it was:" ;;
    *) exit "$status" ;;
    esac
fi

run aifx train
run aifx eval
run aifx generate --prompt "The whale" --max-tokens 120 --seed 1

say "What was made"
cat <<MADE
  $DEMO/aifx.toml    what is trained, on what, and the gate it has to pass
  $DEMO/runs/        the run: its resolved configuration, metrics, checkpoints and evaluation
MADE
say "What to try next"
cat <<NEXT
  . $VENV/bin/activate && cd $DEMO
  aifx runs ls
  aifx generate --prompt "Call me" --temperature 0.7
  aifx train --run wider --set model.width=192
  aifx init ../inspection --template vision-inspection
NEXT

#!/bin/sh
# The main job: make a project and its data set, train its model, stop and resume the training, evaluate it, and
# generate text.
#
# DEMO  the project's folder (default: demo). If it exists, training resumes, or a complete training is evaluated
#       again. Remove the folder to start over.
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

# Print a command and run it.
run() {
    shown='$'
    for word in "$@"; do
        case $word in
        *'|'*) shown="$shown '$word'" ;;
        *' '*) shown="$shown \"$word\"" ;;
        *) shown="$shown $word" ;;
        esac
    done
    say "$shown"
    "$@"
}

# Train in the foreground, which keeps the terminal and its Ctrl-C, and stop the process after a checkpoint. The shell
# between writes its own process id and then becomes `aifx train`.
train_and_stop() {
    say "\$ aifx train     (stopped with SIGTERM, as a scheduler would do)"
    : >"$train_pid"
    stop_after_a_checkpoint &
    status=0
    sh -c 'echo $$ >"$0"; exec aifx train' "$train_pid" || status=$?
    rm -f "$train_pid" # ends the watcher
    wait
    return "$status"
}

stop_after_a_checkpoint() {
    while [ -f "$train_pid" ]; do
        for checkpoint in runs/*/checkpoints/*; do
            case ${checkpoint##*/} in
            *[!0-9]*) ;; # none yet, or unfinished
            *)
                kill -TERM "$(cat "$train_pid")" 2>/dev/null && return 0
                ;;
            esac
        done
        sleep 1
    done
}

if [ -f "$DEMO/aifx.toml" ]; then
    say "Continuing with the project in $DEMO. Remove this folder to start over"
    cd "$DEMO"
else
    run aifx init "$DEMO" --template language-model --yes
    cd "$DEMO"
    run sh data/prepare.sh
    status=0
    train_and_stop || status=$?
    case $status in
    0) ;;
    75) say "Exit code 75 means: run it again. The same command resumes, bit for bit" ;;
    *) exit "$status" ;;
    esac
fi

run aifx train
run aifx eval
run aifx generate --prompt "The whale" --max-tokens 120 --seed 1

say "Results"
cat <<MADE
  $DEMO/aifx.toml   the configuration: model, data, training and gate
  $DEMO/datasets    the versions of the data set: aifx data ls, lineage, why
  $DEMO/runs/main   the run: its configuration, metrics, checkpoints and evaluation
MADE
say "Next steps"
cat <<NEXT
  . $VENV/bin/activate; cd $DEMO
  aifx runs ls                                          list the runs
  aifx generate --prompt "Call me" --temperature 0.7    generate other text
  aifx train --run deeper --set model.num_layers=6      train another model
  aifx init ~/inspection --template vision-inspection   start a project with pictures
NEXT

"""`aifx launch slurm|k8s --request` that is killed before and after each change of a file and each question.

    python killed_launch.py slurm|k8s FOLDER FIRST EVERY

After each kill, the same command comes again. There is one job, and its record is that of an undisturbed call. It is
also killed while sbatch or kubectl, which outlive it, have not handed the job over. The program prints the number of
kills.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import inprocess
from faulty_files import forked, kill_at_each_change

from aifx.cluster import hosts

WAITS = 'cd "${0%/bin/*}"; echo $$ >begun; while [ -e hang ]; do sleep 0.02; done'
SBATCH = f"""#!/bin/sh
{WAITS}
echo "$(($(wc -l <jobs) + 1)) $(sed -n 's/^#SBATCH --job-name=//p' "$2")" >>jobs
tail -n 1 jobs | cut -d ' ' -f 1
"""
SQUEUE = """#!/bin/sh
cd "${0%/bin/*}"
for word; do case $word in --name=*) grep " ${word#*=}\\$" jobs | cut -d ' ' -f 1; esac; done
"""
KUBECTL = f"""#!/bin/sh
case " $* " in
  *" current-context "*) echo prod ;;
  *" view "*) printf team ;;
  *" apply "*) {WAITS}
    for word; do case $word in --filename=*) file=${{word#*=}}; esac; done
    echo "$(sed -n 's/^  name: //p' "$file") $(sed -n 's/.*aifx-launch: //p' "$file")" >>jobs ;;
  *" get jobset "*) cd "${{0%/bin/*}}"
    for word; do case $word in --selector=*) grep " ${{word##*=}}\\$" jobs | cut -d ' ' -f 1; esac; done ;;
esac
exit 0
"""
KIND = sys.argv[1]
COMMAND = ["launch", KIND, *(["--apply"] if KIND == "k8s" else []), "--no-follow", "--request", "r1", "--", "train"]


def prepare(root: Path) -> None:
    (root / "bin").mkdir(parents=True)
    (root / "jobs").touch()
    (root / "aifx.toml").write_text('[launch]\nimage = "team/lm:1"\n[k8s]\nruns_claim = "runs"\n')
    for name, text in {"sbatch": SBATCH, "squeue": SQUEUE, "kubectl": KUBECTL}.items():
        (root / "bin" / name).write_text(text)
        (root / "bin" / name).chmod(0o755)


def write(root: Path) -> None:
    """Launch. A change before and after each question lets it be killed there."""

    def run(*args: Any, **options: Any) -> Any:
        (root / "asks").write_text("")
        ended = real(*args, **options)
        (root / "asked").write_text("")
        return ended

    real = hosts.run
    with mock.patch.object(hosts, "run", run):
        done = inprocess.run(COMMAND, root, {**os.environ, "PATH": f"{root / 'bin'}:{os.environ['PATH']}"})
    assert done.returncode == 0, done.stderr


def made(root: Path) -> tuple[list[str], list[dict[str, Any]]]:
    """The jobs, and the records without their times."""
    records = [json.loads(path.read_text()) for path in sorted((root / "runs" / ".launched").glob("*/record.json"))]
    return (root / "jobs").read_text().splitlines(), [{**record, "time": 0} for record in records]


def check(root: Path, calm: Path) -> None:
    write(root)
    jobs, records = made(root)
    assert (len(jobs), len(records)) == (1, 1), jobs
    assert (jobs, records) == made(calm), f"{jobs} {records}"


def kill_while_it_is_submitted(root: Path) -> None:
    """The scheduler's program goes on, and holds the lock of the launch until it has handed the job over."""
    prepare(root)
    (root / "hang").touch()
    pid = os.fork()
    if pid == 0:
        write(root)
        os._exit(1)
    while not (root / "begun").exists() or not (root / "begun").read_text():
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    (lock,) = (root / "runs" / ".launched").glob("*/lock")
    with lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pass
        else:
            raise AssertionError("another call could submit a second job")
    (root / "hang").unlink()
    assert forked(lambda: write(root)) == 0
    jobs, records = made(root)
    assert (len(jobs), len(records)) == (1, 1), jobs


def main() -> None:
    folder, first, every = Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    kills = kill_at_each_change(folder, prepare, write, check, first=first, every=every)
    kill_while_it_is_submitted(folder / "hanging")
    sys.stdout.write(str(kills + 1))


if __name__ == "__main__":
    main()

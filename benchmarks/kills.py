"""Time until a job has ended after one of its processes is killed, and until it repeats a step.

    python benchmarks/kills.py [--kills 20] [--processes 2] [--slurm] [--seed N] [--output FILE]

`aifx launch local --restarts` trains the language template with short sequences, as two, three and four processes in
turn. With --slurm, `aifx launch slurm` trains it on the two nodes of a Slurm that is started for it. Each kill draws
its victim, process 0 included, and its moment: while the processes start, while they compile or load the step, between
steps, or while a checkpoint is saved. SIGKILL goes to the victim alone.

Two times are measured from each kill: until the last process of the job has ended, and until the restarted job has
recorded a step. The first start and one restart are not counted: they fill the stores of compiled programs and tokens.
The seed is printed, and repeats the draws. With --output, each kill is a line of FILE, and the summary is of all lines.
The machine should do nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from side_by_side import AIFX

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from slurm_cluster import NODES, cluster

SIZES = (2, 3, 4)
MOMENTS = ("start", "compile", "steps", "save")
GOALS = {"all have ended": (1.0, 5.0), "first repeated step": (10.0, None)}
SLURM_GOALS = {"first repeated step": (15.0, None)}
WAIT_S, POLL_S = 120.0, 0.002
SETTINGS = {
    "train.num_steps": 1_000_000,
    "train.global_batch_size": 12,
    "train.validate_every": 0,
    "data.seq_len": 64,
    "data.eval_stride": 32,
    "checkpoint.every": 10,
    "checkpoint.best_by": "min loss",
    "log.every": 1,
}


@dataclass(frozen=True)
class Kill:
    """One kill, and the seconds after it."""

    processes: int
    victim: int
    moment: str
    ended_s: float
    repeated_s: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--processes", type=int, action="append", help="sizes of the jobs (2, 3 and 4)")
    parser.add_argument("--slurm", action="store_true", help="two processes, one on each node of a Slurm")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--output", type=Path)
    asked = parser.parse_args()
    sizes, found = (len(NODES),) if asked.slurm else asked.processes or SIZES, list[Kill]()
    print(f"seed {asked.seed}, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        project = scaffolded(Path(folder))
        configuration = stack.enter_context(started_slurm(Path(folder, "slurm"))) if asked.slurm else None
        for number, size in enumerate(sizes):
            dice = random.Random(f"{asked.seed} {size}")
            kills = asked.kills * (number + 1) // len(sizes) - asked.kills * number // len(sizes)
            with Job(project, size, Path(folder, "cache"), kills, configuration) as job:
                for _ in range(kills):
                    found.append(job.kill(dice.randrange(size), dice.choice(MOMENTS), dice.random()))
                    print(json.dumps(asdict(found[-1])), flush=True)
    if asked.output is not None:
        with asked.output.open("a") as file:
            file.writelines(json.dumps(asdict(kill)) + "\n" for kill in found)
        found = [Kill(**json.loads(line)) for line in asked.output.read_text().splitlines()]
    report(found, SLURM_GOALS if asked.slurm else GOALS)


@contextmanager
def started_slurm(folder: Path) -> Iterator[Path]:
    """A Slurm of two nodes on this machine. Yields its configuration."""
    folder.mkdir()
    with cluster(folder):
        yield folder / "slurm.conf"


def report(kills: list[Kill], goals: dict[str, tuple[float, float | None]]) -> None:
    times = {"all have ended": [k.ended_s for k in kills], "first repeated step": [k.repeated_s for k in kills]}
    print(f"{len(kills)} kills, load {os.getloadavg()[0]:.1f} at the end")
    for subject, seconds in times.items():
        median, worst = goals.get(subject, (None, None))
        limits = (f"median {median:g} s" if median else "none") + (f", worst {worst:g} s" if worst else "")
        print(f"{subject}: median {statistics.median(seconds):.2f} s, worst {max(seconds):.2f} s (goal: {limits})")


def scaffolded(folder: Path) -> Path:
    from aifx.scaffold.projects import scaffold

    scaffold(folder / "project", "language-model", data={}, ask=False)
    return folder / "project"


class Job:
    """`aifx launch` over a run of its own. Entered, it has been restarted once and trains.

    Args:
        slurm: the configuration of the Slurm whose job it is; None for one of this machine.
    """

    def __init__(self, project: Path, size: int, cache: Path, kills: int, slurm: Path | None) -> None:
        self.run, self.size, self.project = project / "runs" / f"size-{size}", size, project
        settings = [part for name, value in SETTINGS.items() for part in ("--set", f"{name}={value}")]
        launch = ("local", "-n", str(size), "--restarts", str(2 * kills + 2))
        self._environ = {**os.environ, "AIFX_CACHE_DIR": str(cache)}
        self._slurm = slurm
        if slurm is not None:
            launch = ("slurm", "-N", str(size))
            restarts = str(2 * kills + 2)
            self._environ |= {
                "SLURM_CONF": str(slurm),
                "AIFX_LAUNCH__DOCTOR": "false",
                "AIFX_LAUNCH__RESTARTS": restarts,
            }
        self._command = [*AIFX, "launch", *launch, "train", "--run", self.run.name, *settings]
        self._environ.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package has its bytecode
        self._log = project / f"{self.run.name}.log"

    def __enter__(self) -> Job:
        with self._log.open("w") as log:
            self._launcher = subprocess.Popen(
                self._command, cwd=self.project, env=self._environ, stdout=log, stderr=subprocess.STDOUT
            )
        self._pids: list[int] = []
        self._until(lambda: self._step(0.0) > 2 * SETTINGS["checkpoint.every"])
        self.kill(0, "steps", 0.0)
        return self

    def __exit__(self, *_: object) -> None:
        if self._slurm is not None:
            subprocess.run([*AIFX, "launch", "stop", "--now"], cwd=self.project, env=self._environ, check=True)
        else:
            self._launcher.send_signal(signal.SIGTERM)
        self._launcher.wait(WAIT_S)

    def kill(self, victim: int, moment: str, when: float) -> Kill:
        """Kill process `victim` at the share `when` of a moment, and wait until the job trains again."""
        if moment in ("start", "compile"):  # of a restart, which a kill that is not counted brings about
            self._strike(0)
            restarted, events = time.time(), self.run / "events.jsonl"
            self._until(lambda: len(self._processes()) == self.size)
            if moment == "start":
                time.sleep(3.0 * when)
            else:
                self._until(lambda: (e := last_line(events)).get("event") == "compile" and e["time"] > restarted)
        elif moment == "steps":
            time.sleep(0.1 + 2.0 * when)
        else:
            self._until(lambda: any(self.run.joinpath("checkpoints").glob("*.unfinished")))
        struck, wall = time.monotonic(), time.time()
        ended_s = self._strike(victim)
        self._until(lambda: self._step(wall) > 0)
        repeated_s = time.monotonic() - struck
        saved = self._saved()  # a job that three starts bring no further would not be started again
        self._until(lambda: self._saved() > saved)
        return Kill(self.size, victim, moment, round(ended_s, 3), round(repeated_s, 3))

    def _strike(self, victim: int) -> float:
        """SIGKILL to a process. Returns the seconds until all of the job have ended."""
        self._pids = self._processes()
        struck = time.monotonic()
        os.kill(self._pids[victim], signal.SIGKILL)
        self._until(lambda: not any(map(is_running, self._pids)))
        return time.monotonic() - struck

    def _processes(self) -> list[int]:
        """The processes of the job by their numbers, without those of the attempt before."""
        if self._slurm is not None:
            return [pid for pid in processes_of_slurm(self._slurm) if pid not in self._pids]
        children = Path(f"/proc/{self._launcher.pid}/task/{self._launcher.pid}/children").read_text().split()
        return [int(child) for child in children if int(child) not in self._pids]

    def _saved(self) -> int:
        """The step of the newest checkpoint; 0 if there is none."""
        return max((int(path.name) for path in self.run.glob("checkpoints/*") if path.name.isdecimal()), default=0)

    def _step(self, since: float) -> int:
        """The step of the last record, if it is not older than `since`; otherwise 0."""
        record = last_line(self.run / "metrics.jsonl")
        return int(record["step"]) if record.get("time", 0.0) > since else 0

    def _until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + WAIT_S
        while not condition():
            if self._launcher.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the job does not go on:\n{self._log.read_text()[-3000:]}")
            time.sleep(POLL_S)


def processes_of_slurm(configuration: Path) -> list[int]:
    """The processes that run in jobs of a Slurm under `aifx launch node`, by their numbers."""
    found: dict[int, int] = {}
    for pid in (int(folder.name) for folder in Path("/proc").iterdir() if folder.name.isdecimal()):
        with suppress(OSError):
            pairs = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            environ = dict(pair.split(b"=", 1) for pair in pairs if b"=" in pair)
            if environ.get(b"SLURM_CONF") == os.fsencode(configuration) and b"AIFX_PROCESS_ID" in environ:
                number = int(environ[b"AIFX_PROCESS_ID"])
                found[number] = min(found.get(number, pid), pid)  # not what it has started itself
    return [found[number] for number in sorted(found)]


def is_running(pid: int) -> bool:
    """Whether a process is neither gone nor waits for its parent to learn its end."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


def last_line(path: Path) -> dict[str, Any]:
    """The last whole line of a file of JSON Lines; empty if there is none."""
    with suppress(OSError, ValueError), path.open("rb") as file:
        file.seek(max(path.stat().st_size - (1 << 14), 0))
        *_, line, _ = file.read().split(b"\n")
        return dict(json.loads(line))
    return {}


if __name__ == "__main__":
    main()

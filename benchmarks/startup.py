"""From the command to the first step: `aifx train` on the language-model template, with cold and warm caches.

    python benchmarks/startup.py [--repeat 5] [--set section.key=value ...]

Measured from outside: from the moment the process is started to the moment the record of step 1 is in metrics.jsonl.
`first` has nothing at all (tokenizer and token store are made), `cold` has the data ready and no compiled program,
`warm` has both, `resumed` is warm and restores a checkpoint. Cold and warm starts alternate.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

AIFX = [sys.executable, "-c", "import sys; sys.argv[0] = 'aifx'; from aifx.commands.main import main; main()"]
GOALS_S = {"cold": 6.0, "warm": 3.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--set", action="append", default=[], dest="settings")
    arguments = parser.parse_args()
    settings = [part for s in arguments.settings for part in ("--set", s)]
    with tempfile.TemporaryDirectory() as folder:
        project, cache = Path(folder) / "project", Path(folder) / "cache"
        environ = {**os.environ, "AIFX_CACHE_DIR": str(cache)}
        made = [*AIFX, "init", str(project), "--template", "language-model", "--yes"]
        subprocess.run(made, check=True, env=environ, capture_output=True)
        times: dict[str, list[float]] = {"first": [], "cold": [], "warm": [], "resumed": []}
        times["first"].append(first_step_s(project, environ, "first", settings))
        for _ in range(arguments.repeat):
            shutil.rmtree(cache / "jax", ignore_errors=True)
            times["cold"].append(first_step_s(project, environ, "cold", settings))
            times["warm"].append(first_step_s(project, environ, "warm", settings))
            first_step_s(project, environ, "resumed", settings, leave_checkpoint=True)
            times["resumed"].append(first_step_s(project, environ, "resumed", settings, keep=True))
    for name, values in times.items():
        goal = f"   goal {GOALS_S[name]:.1f} s" if name in GOALS_S else ""
        spread = f"{min(values):.2f} to {max(values):.2f}" if len(values) > 1 else ""
        sys.stdout.write(f"{name:8} {statistics.median(values):5.2f} s   {spread}{goal}\n")


def first_step_s(
    project: Path,
    environ: dict[str, str],
    run: str,
    settings: list[str],
    *,
    leave_checkpoint: bool = False,
    keep: bool = False,
) -> float:
    """Seconds to the first new record of run `run`; the process is then interrupted, or killed without a checkpoint."""
    metrics = project / "runs" / run / "metrics.jsonl"
    if not keep:
        shutil.rmtree(metrics.parent, ignore_errors=True)
    before = metrics.stat().st_size if metrics.exists() else 0
    started = time.perf_counter()
    command = [*AIFX, "train", "--run", run, *settings]
    process = subprocess.Popen(command, cwd=project, env=environ, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    while not (metrics.exists() and metrics.stat().st_size > before):
        if process.poll() is not None:
            assert process.stderr is not None
            raise SystemExit(f"aifx train ended with {process.returncode}:\n{process.stderr.read().decode()}")
        time.sleep(0.002)
    seconds = time.perf_counter() - started
    process.send_signal(signal.SIGTERM if leave_checkpoint else signal.SIGKILL)
    process.communicate()
    return seconds


if __name__ == "__main__":
    main()

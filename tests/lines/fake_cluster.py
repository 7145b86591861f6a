"""Programs that stand for Slurm's, for kubectl and for `aifx launch`, and a line whose stations submit jobs to them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from ticking import Ticking

LAUNCH = r"""
while [ -e hang ]; do sleep 0.02; done
exec 9>>launching; flock 9
[ $2 = slurm ] && backend=slurm || { backend=kubernetes; shift 3; }
launch=request-$(printf '%s: %s' "$PWD" "$5" | sha256sum | cut -c1-24)
folder=runs/.launched/$launch
if [ ! -e $folder/record.json ]; then
    echo "$*" >> submitted
    number=$(wc -l < submitted)
    mkdir -p $folder
    echo "JobId=$number JobName=aifx-$launch JobState=PENDING Reason=Priority" > job-$number
    echo $folder > folder-$number
    job=$number; [ $backend = slurm ] || job=jobset-$number
    printf '{"id": "%s", "backend": "%s", "job": "%s", "place": "", "run": "", "arguments": [], "nodes": 1,
        "processes_per_node": 1, "time": 0}' $launch $backend $job > $folder/record.json
fi
[ ! -e kill ] || { rm kill; kill -9 0; }
"""
SCONTROL = '#!/bin/sh\ncat "$JOBS/job-$4" 2>/dev/null || { echo "Invalid job id specified" >&2; exit 1; }\n'
SQUEUE = "#!/bin/sh\n"
"""It knows no job. That of this machine may be one of a cluster that does not answer."""
SCANCEL = '#!/bin/sh\necho "$*" >> "$JOBS/cancelled"\n'


def on_slurm(name: str, command: str, more: str = "", on: str = "slurm") -> str:
    return f'[[station]]\nname = "{name}"\nrun = "{command}"\non = "{on}"\n{more}\n'


class Cluster(Ticking):
    """A line whose stations submit jobs 1, 2, ..., which end when a test says so."""

    @classmethod
    def began(cls, root: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
        monkeypatch.setenv("PATH", f"{root / 'bin'}:{os.environ['PATH']}")
        monkeypatch.setenv("JOBS", str(root))
        monkeypatch.setattr("aifx.lines.runner.AIFX", ("sh", "aifx"))
        (root / "runs" / "lm").mkdir(parents=True)
        (root / "aifx").write_text(LAUNCH)
        (root / "bin").mkdir()
        cluster = cls(root)
        cluster.program("scontrol", SCONTROL)
        cluster.program("scancel", SCANCEL)
        cluster.program("squeue", SQUEUE)
        return cluster

    def program(self, name: str, text: str) -> None:
        (self.root / "bin" / name).write_text(text)
        (self.root / "bin" / name).chmod(0o755)

    @property
    def submitted(self) -> list[list[str]]:
        path = self.root / "submitted"
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []

    def number(self, station: str) -> int:
        """The number of the last job of a station."""
        attempt = self.records("started", station)[-1].attempt
        return max(at for at, words in enumerate(self.submitted, 1) if any(word.startswith(attempt) for word in words))

    def show(self, number: int, state: str) -> None:
        path = self.root / f"job-{number}"
        path.write_text(f"{path.read_text().partition(' JobState')[0]} JobState={state}\n")

    def end(self, number: int, document: Any = None, code: int = 0) -> None:
        folder = self.root / (self.root / f"folder-{number}").read_text().strip()
        if document is not None:
            (folder / "answer").write_text(json.dumps(document, indent=2))
        (folder / "events.jsonl").write_text(f'{{"event": "end", "code": {code}}}\n')
        self.show(number, "FAILED" if code else "COMPLETED")


KUBECTL = r"""#!/bin/sh
here=${0%/bin/*}
case " $* " in
  *" apply "*) for word; do case $word in --filename=*) cp "${word#*=}" "$here/jobset.yaml"; esac; done ;;
  *" get jobset "*) name=$(echo "$* " | sed 's/.*get jobset \([^ ]*\) .*/\1/')
    cat "$here/$name.json" 2>/dev/null || echo '{"status": {}}' ;;
  *" logs "*) cat "$here/pod.log" ;;
esac
"""

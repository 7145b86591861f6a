"""`aifx launch slurm | ls | logs | stop` and `node`, with programs that stand for Slurm's.

tests/cluster/test_slurm_jobs.py runs them under a real Slurm.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import inprocess
import pytest
from stored_models import push_empty

from aifx.cluster.launched import requested_id
from aifx.core.errors import ConfigError
from aifx.core.files import exclusive
from aifx.core.project import Project
from aifx.core.requests import Request
from aifx.kinds import load_config

TOML = """\
[task]
kind = "tiny:TinyTask"
[train]
num_steps = 6
global_batch_size = 8
[launch]
nodes = 2
[slurm]
partition = "small"
"""
SBATCH = """#!/bin/sh
echo "sbatch $*" >> asked; pwd >> asked; env | grep ^SBATCH_ | sort > variables
echo "$ANSWER"; exit ${SBATCH_CODE:-0}
"""
SCONTROL = """#!/bin/sh
name=$(ls -t runs/.launched | head -1)
[ -e shown ] && echo "JobId=7 JobName=aifx-$name $(cat shown)" && exit 0
echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1
"""
SQUEUE = '#!/bin/sh\necho "squeue" >> questions; [ -e queue ] && cat queue; exit ${SQUEUE_CODE:-0}\n'
SCANCEL = '#!/bin/sh\necho "scancel $*" >> asked\n'

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "aifx.toml").write_text(TOML)
    shutil.copy(Path(__file__).parents[1] / "training" / "tiny.py", tmp_path)
    (tmp_path / "bin").mkdir()
    for name, text in {"sbatch": SBATCH, "scontrol": SCONTROL, "scancel": SCANCEL, "squeue": SQUEUE}.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    return tmp_path


@pytest.fixture
def launch(project: Path) -> Run:
    def run(*args: str, **environ: str) -> subprocess.CompletedProcess[str]:
        path = f"{project / 'bin'}:{os.environ['PATH']}"
        return inprocess.run(["launch", *args], project, {**os.environ, "PATH": path, "ANSWER": "7", **environ})

    return run


@pytest.fixture
def submitted(launch: Run, project: Path) -> Path:
    """The folder of a job that was submitted."""
    done = launch("slurm", "--no-follow", "-p", "large", "-o", "exclusive", "train", "--run", "wide")
    assert done.returncode == 0, done.stderr
    (folder,) = (project / "runs" / ".launched").iterdir()
    assert done.stderr == f"launch {folder.name}: job 7\n"
    return folder


def asked(project: Path) -> list[str]:
    return (project / "asked").read_text().splitlines()


def test_a_script_is_submitted_and_kept(submitted: Path, project: Path) -> None:
    assert asked(project) == [f"sbatch --parsable {submitted / 'script.sh'}", str(project)]
    lines = (submitted / "script.sh").read_text().splitlines()
    assert {"#SBATCH --nodes=2", "#SBATCH --partition=large", "#SBATCH --exclusive"} <= set(lines)
    record = json.loads((submitted / "record.json").read_text())
    assert record["id"] == submitted.name
    assert (record["job"], record["run"], record["nodes"]) == ("7", "wide", 2)


@pytest.mark.parametrize(("base", "hint"), [("fox@v2", "aifx registry show fox"), ("wide", "aifx import")])
def test_a_training_whose_base_is_missing_is_not_submitted(launch: Run, project: Path, base: str, hint: str) -> None:
    push_empty(Project(project), "fox")
    refused = launch("slurm", "--no-follow", "train", "--set", f"finetune.base={base}")
    assert refused.returncode == 2
    assert hint in refused.stderr
    assert not (project / "asked").exists()
    assert launch("slurm", "--no-follow", "train", "--set", "finetune.base=fox@v1").returncode == 0
    waits = ("-o", "dependency=afterok:6")
    waiting = launch("slurm", "--no-follow", *waits, "train", "--set", f"finetune.base={base}")
    assert (waiting.returncode, "after dependency=afterok:6" in waiting.stderr) == (0, True), waiting.stderr


def test_a_job_is_submitted_once_for_a_request(launch: Run, project: Path) -> None:
    """A kill leaves nothing, what was asked, or a job that Slurm or the job itself names."""

    def ask(run: str, **environ: str) -> subprocess.CompletedProcess[str]:
        return launch("slurm", "--no-follow", "--request", "r1", "train", "--run", run, **environ)

    refused = ask("small", SBATCH_CODE="1")
    assert refused.returncode == 2
    first = ask("wide")
    assert (first.returncode, first.stderr.endswith(": job 7\n")) == (0, True), first.stderr
    (folder,) = (project / "runs" / ".launched").iterdir()
    script = (folder / "script.sh").read_text()
    assert "#SBATCH --comment=aifx-request-r1\n" in script
    record = json.loads((folder / "record.json").read_text())
    number = len(asked(project))
    assert ask("other", ANSWER="8").stderr == first.stderr
    (folder / "record.json").unlink()
    silent = ask("other", SQUEUE_CODE="1")
    assert (silent.returncode, "does not say whether the job was submitted" in silent.stderr) == (2, True)
    (project / "queue").write_text("                 7\n")
    assert ask("other", ANSWER="8").stderr == first.stderr
    assert json.loads((folder / "record.json").read_text()) == record
    (folder / "record.json").unlink()
    (project / "queue").unlink()
    (folder / "job").write_text("7\n")
    assert ask("other", ANSWER="8").stderr == first.stderr
    assert len(asked(project)) == number
    assert (folder / "script.sh").read_text() == script
    for name in ("record.json", "job"):
        (folder / name).unlink()
    assert ask("other", ANSWER="8").stderr.endswith(": job 8\n")
    assert launch("slurm", "--no-follow", "--request", "r2", "train", ANSWER="9").stderr.endswith(": job 9\n")


def test_a_submission_that_outlived_its_aifx_and_hangs_is_waited_for_within_a_limit(
    launch: Run, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aifx.cluster.launched.SUBMIT_S", 0.1)
    folder = project / "runs" / ".launched" / requested_id(Project(project), Request("r1", "launch slurm"))
    folder.mkdir(parents=True)
    with exclusive(folder / "lock"):
        done = launch("slurm", "--no-follow", "--request", "r1", "train", "--json", AIFX_ERROR_FILE="error")
    error = json.loads((project / "error").read_text())["error"]
    assert (done.returncode, error["transient"]) == (2, True)
    assert f"fuser -v {folder / 'lock'}" in error["hint"]
    assert not (project / "asked").exists()
    assert launch("slurm", "--no-follow", "--request", "r1", "train").returncode == 0


def test_a_job_of_a_request_keeps_the_document_of_its_command(
    launch: Run, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the last start, and of the first machine."""
    assert launch("slurm", "--no-follow", "--request", "r1", "train", "--json").returncode == 0
    (folder,) = (project / "runs" / ".launched").iterdir()
    error = {"what": "no disk", "why": "", "hint": "", "exit_code": 2, "transient": True}
    text = json.dumps({"schema_version": 1, "error": error})
    monkeypatch.setattr("aifx.core.processes.PROGRAM", f"import sys; print({text!r}); sys.exit(2)")
    node = ("node", "--id", folder.name, "train", "--json")
    assert launch(*node).stdout == f"{text}\n" == (folder / "answer").read_text()
    monkeypatch.setattr("aifx.core.processes.PROGRAM", "import os; os._exit(75)")
    launch(*node)
    assert (folder / "answer").read_text() == ""
    (folder / "answer").unlink()
    launch(*node, AIFX_COORDINATOR="n1:20000", AIFX_NUM_PROCESSES="2", AIFX_PROCESS_ID="1")
    assert not (folder / "answer").exists()


def test_settings_go_over_variables_of_sbatch(launch: Run, project: Path) -> None:
    variables = {f"SBATCH_{name}": "x" for name in ("PARTITION", "NO_REQUEUE", "TIMELIMIT", "QOS", "OUTPUT")}
    assert launch("slurm", "--no-follow", "-t", "9:00:00", "train", **variables).returncode == 0
    assert (project / "variables").read_text() == "SBATCH_QOS=x\n"


def test_dry_run_submits_nothing(launch: Run, project: Path) -> None:
    done = launch("slurm", "--dry-run", "train")
    assert done.returncode == 0
    assert done.stdout.startswith("#!/bin/bash\n#SBATCH --job-name=aifx-main-")
    assert "#SBATCH --partition=small" in done.stdout
    assert not (project / "runs").exists()
    assert not (project / "asked").exists()


@pytest.mark.parametrize(
    ("args", "what"),
    [
        (["slurm", "train", "--rum", "x"], "'--rum'"),
        (["slurm", "train", "--set", "train.seed=x"], "train.seed"),
        (["slurm", "train", "--json"], "--json cannot be launched"),
        (["slurm", "eval", "--run", "x"], "no run 'x'"),
        (["slurm", "runs"], "'runs' cannot be launched"),
        (["slurm", "-p", "a b", "train"], "slurm.partition"),
        (["slurm", "-o", "uid=0", "train"], "slurm.options"),
        (["slurm", "-t", "2:00", "train"], "slurm.time_limit = '2:00'"),
        (["slurm", "train", "--set", "slurm.signal_ahead_s=20"], "checkpoint.stop_timeout_s = 30"),
        (["slurm", "--setup-script", "absent.sh", "train"], "slurm.setup_script = 'absent.sh'"),
        (["slurm", "train", "--run", "a\nb"], "cannot name a run"),
        (["logs"], "nothing was launched here"),
        (["stop", "x"], "no launch 'x'"),
        (["node", "--id", "../x", "train"], "'../x'"),
    ],
)
def test_what_is_refused_before_a_queue_waits_for_it(launch: Run, project: Path, args: list[str], what: str) -> None:
    done = launch(*args)
    assert done.returncode == 2
    assert what in done.stderr
    assert not (project / "asked").exists()


def test_a_run_that_needs_longer_to_save_than_slurm_gives_it(launch: Run, project: Path) -> None:
    """Which concerns only those who use Slurm."""
    (project / "aifx.toml").write_text("checkpoint.stop_timeout_s = 120\n")
    done = launch("slurm", "train")
    assert done.returncode == 2
    assert re.search(r"slurm\.signal_ahead_s = 120 .*checkpoint\.stop_timeout_s = 120", done.stderr)
    assert not (project / "asked").exists()
    load_config(Project(project))
    for change in ("slurm.partition=large", "slurm.signal_ahead_s=100"):
        with pytest.raises(ConfigError, match="leaves no time"):
            load_config(Project(project), [change])
    load_config(Project(project), ["slurm.signal_ahead_s=121"])


def test_slurm_refuses(launch: Run, project: Path) -> None:
    done = launch("slurm", "train", SBATCH_CODE="1")
    assert done.returncode == 2
    assert "Slurm did not" in done.stderr
    assert json.loads(launch("ls", "--json").stdout)["launches"] == []
    (project / "bin" / "sbatch").unlink()
    if shutil.which("sbatch") is None:
        assert "no sbatch" in launch("slurm", "train").stderr


@pytest.mark.parametrize(
    ("printed", "events", "state"),
    [
        ("JobState=PENDING Reason=Priority", "", "pending (Priority)"),
        ("JobState=RUNNING Reason=None NodeList=n[1-2]", "", "running on n[1-2]"),
        ("JobState=COMPLETED ExitCode=0:0", '{"event": "end", "code": 0}\n', "completed"),
        ("JobState=FAILED ExitCode=2:0", "", "failed (FAILED, exit 2)"),
        ("JobState=OUT_OF_MEMORY ExitCode=0:9", "", "failed (OUT_OF_MEMORY, exit 137)"),
        ("", '{"event": "start", "step": 0}\n{"event": "end", "code": 75}\n', "failed (exit 75)"),
        ("", '{"event": "signal", "signal": "INT"}\n{"event": "end", "code": 130}\n', "stopped (exit 130)"),
        ("JobState=CANCELLED ExitCode=0:15", '{"event": "end", "code": 75}\n', "stopped (exit 75)"),
        ("", "", "unknown (Slurm has forgotten it)"),
    ],
)
def test_states(launch: Run, submitted: Path, project: Path, printed: str, events: str, state: str) -> None:
    if printed:
        (project / "shown").write_text(printed)
    (submitted / "events.jsonl").write_text(events)
    done = launch("ls")
    assert done.returncode == 0
    assert submitted.name in done.stdout
    assert f"  {state}  " in done.stdout
    (found,) = json.loads(launch("ls", "--json").stdout)["launches"]
    assert found["starts"] == events.count("start")


def test_a_job_of_another_name_is_not_ours(launch: Run, submitted: Path, project: Path) -> None:
    """Numbers of jobs begin again on a new controller."""
    (project / "bin" / "scontrol").write_text("#!/bin/sh\necho 'JobId=7 JobName=other JobState=RUNNING'\n")
    assert "  unknown (" in launch("ls").stdout


def test_following_ends_with_the_job(launch: Run, submitted: Path, project: Path) -> None:
    (submitted / "output.log").write_text("one\ntwo\x1b[31m\n")
    (submitted / "events.jsonl").write_text('{"event": "end", "code": 2}\n')
    done = launch("logs", "wide", "--follow")
    assert done.stdout == "one\ntwo\\x1b[31m\n"
    assert done.stderr == "job 7: failed (exit 2)\n"
    assert done.returncode == 2
    assert launch("logs", "7").stdout == done.stdout


def test_stopping(launch: Run, submitted: Path, project: Path) -> None:
    (project / "shown").write_text("JobState=RUNNING")
    assert launch("stop").returncode == 0
    assert launch("stop", submitted.name, "--now").returncode == 0
    (project / "shown").write_text("JobState=PENDING")
    assert launch("stop", "wide").returncode == 0
    assert asked(project)[2:] == ["scancel --batch --signal=INT 7", "scancel 7", "scancel 7"]
    (project / "shown").write_text("JobState=COMPLETED ExitCode=0:0")
    done = launch("stop")
    assert done.returncode == 2
    assert "is over: completed" in done.stderr


def test_a_job_whose_record_is_damaged_is_not_hidden(launch: Run, submitted: Path, project: Path) -> None:
    (submitted / "record.json").write_text("{")
    (submitted.parent / "only-made").mkdir()
    done = launch("ls")
    assert done.returncode == 0
    assert f"{submitted}/record.json " in done.stderr
    assert "only-made" not in done.stderr


def test_a_record_cannot_name_an_option(launch: Run, submitted: Path, project: Path) -> None:
    record = json.loads((submitted / "record.json").read_text())
    (submitted / "record.json").write_text(json.dumps({**record, "job": "--user=root"}))
    done = launch("stop")
    assert done.returncode == 2
    assert "is damaged" in done.stderr
    assert len(asked(project)) == 2


def test_the_supervisor_of_a_node(launch: Run, submitted: Path, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    show = "print(os.environ['AIFX_PROCESS_ID'], os.environ['AIFX_NUM_PROCESSES'], file=sys.stderr)"
    program = f"import os, sys; {show}; sys.exit(75)"
    monkeypatch.setattr("aifx.core.processes.PROGRAM", program)
    second = {"AIFX_COORDINATOR": "n1:20000", "AIFX_NUM_PROCESSES": "2", "AIFX_PROCESS_ID": "1"}
    node = ("node", "--id", submitted.name, "-n", "2", "train", "--run", "wide")
    done = launch(*node, **second)
    assert done.returncode == 75
    assert sorted(done.stderr.splitlines()) == ["[2] 2 4", "[3] 3 4"]
    assert not (submitted / "events.jsonl").exists(), "the first node notes the starts"
    for _ in range(3):
        assert launch(*node).returncode == 75
    done = launch(*node)
    assert done.returncode == 2
    assert re.search("run wide .*3 times", done.stderr)
    assert [json.loads(line)["event"] for line in (submitted / "events.jsonl").open()] == ["start"] * 3


def test_a_signal_that_came_before_the_supervisor_is_acted_on(launch: Run, submitted: Path) -> None:
    node = ("node", "--id", submitted.name, "train", "--run", "wide")
    (submitted / "events.jsonl").write_text('{"event": "begin"}\n{"event": "signal", "signal": "TERM"}\n')
    assert launch(*node).returncode == 75
    (submitted / "events.jsonl").write_text('{"event": "begin"}\n{"event": "signal", "signal": "INT"}\n')
    assert launch(*node).returncode == 130

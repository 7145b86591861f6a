"""Jobs of stations whose scheduler, log, disk or machine has a fault."""

from __future__ import annotations

import errno
import os
import time
import tracemalloc
from pathlib import Path
from typing import Any, NoReturn

import pytest
from fake_cluster import SCANCEL, SCONTROL, Cluster, on_slurm
from faulty_files import kill_at_each_change

from aifx.cluster.slurm import Slurm
from aifx.core.errors import EnvironmentFault
from aifx.core.project import Project
from aifx.lines.jobs import Job, Questions, look_at
from aifx.lines.runner import TickRun
from aifx.verbs.line_decisions import line_logs
from aifx.verbs.line_ticks import line_status, line_watch

KUBECTL = """#!/bin/sh
case " $* " in
  *" get "*) echo '{"status": {"conditions": [{"type": "STATE", "status": "True"}]}}' ;;
  *" logs "*) LOGS ;;
esac
"""
ENDS_LATE = """case "$*" in *--tail=-1) ALL ;; *) yes step | head -n 10000 ;; esac"""


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    return Cluster.began(tmp_path, monkeypatch)


def submitted(cluster: Cluster, count: int = 1) -> list[Job]:
    """Jobs that run, as another process sees them that has just begun."""
    if not cluster.submitted:
        names = [f"s{number}" for number in range(count)]
        cluster.write("".join(on_slurm(name, f"eval --run lm --html {name}") for name in names))
        assert set(cluster.tick().values()) == {"running"}
        for number in range(1, count + 1):
            cluster.show(number, "RUNNING")
    return [Job(Project(cluster.root), "slurm", words[4]) for words in cluster.submitted]


@pytest.mark.parametrize(
    ("whole", "outputs"),
    [('printf \'{\\n  "run": "lm"\\n}\\n\'', {"run": "lm"}), ("echo '{'; head -c 34000000 /dev/zero", {})],
)
def test_the_end_of_a_jobset_with_a_long_log_is_known(cluster: Cluster, whole: str, outputs: Any) -> None:
    """The whole log is read if its document is long, and not if it would not fit into memory."""
    cluster.write(on_slurm("train", "train --run lm", on="k8s"))
    cluster.program("kubectl", KUBECTL.replace("STATE", "Completed").replace("LOGS", ENDS_LATE.replace("ALL", whole)))
    assert cluster.tick() == {"train": "done"}
    assert cluster.records("ended")[0].facts["outputs"] == outputs


@pytest.mark.parametrize("line", [b"step\n", b"step "])
def test_of_a_long_log_the_end_alone_is_read(cluster: Cluster, line: bytes) -> None:
    (job,) = submitted(cluster)
    log = cluster.root / (cluster.root / "folder-1").read_text().strip() / "output.log"
    with open(log, "wb") as file:
        file.seek(1 << 30)
        file.write(line * 300_000 + b"\nwithout an end")
    cluster.end(1, code=3)
    tracemalloc.start()
    try:
        job.look()
        shown = line_logs("s0", project=cluster.root).commands[-1].stdout
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert job.end is not None
    assert job.end.last_line == "without an end"
    assert shown.endswith("\nwithout an end")
    assert most < 8 << 20


@pytest.mark.parametrize(
    ("condition", "fault", "state"),
    [
        ("Completed", "Unable to connect to the server", "running"),
        ("Completed", "pods/log is forbidden", "failed"),
        ("Failed", "Unable to connect to the server", "running"),
        ("Failed", "pods/log is forbidden", "failed"),
    ],
)
def test_a_jobset_whose_log_cannot_be_read_is_not_done(
    cluster: Cluster, condition: str, fault: str, state: str
) -> None:
    cluster.write(on_slurm("train", "train --run lm", on="k8s"))
    cluster.program("kubectl", KUBECTL.replace("STATE", condition).replace("LOGS", f"echo '{fault}' >&2; exit 1"))
    assert cluster.tick() == {"train": state}
    for ended in cluster.records("ended"):
        assert (fault in ended.facts["error"]["why"]) == (condition == "Completed")


def test_a_job_has_failed_although_its_log_cannot_be_read(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    def failed(*_: object) -> NoReturn:
        raise EnvironmentFault("no answer")

    (job,) = submitted(cluster)
    monkeypatch.setattr("aifx.cluster.slurm.Slurm.last_lines", failed)
    cluster.end(1, code=1)
    job.look()
    assert job.end is not None
    assert (job.end.code, job.end.last_line) == (1, "")


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("aifx.lines.jobs.find_asked", OSError(errno.ESTALE, "Stale file handle")),
        ("aifx.lines.jobs.ThreadPoolExecutor.submit", RuntimeError("can't start new thread")),
    ],
)
def test_a_fault_of_this_machine_ends_no_job_and_no_status(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, name: str, fault: Exception
) -> None:
    def failed(*_: object) -> NoReturn:
        raise fault

    submitted(cluster)
    with monkeypatch.context() as patched:
        patched.setattr(name, failed)
        found = cluster.decisions()["s0"]
        (status,) = line_status(project=cluster.root).stations
    assert (found.state, status.state) == ("running", "running")
    assert str(fault) in found.why
    assert str(fault) in status.why


@pytest.mark.parametrize("name", ["has_news", "has_ended_job"])
def test_a_watch_goes_on_after_a_fault_of_a_file(cluster: Cluster, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    stop, calls = list[int](), list[str]()

    def failed(run: TickRun) -> Any:
        calls.append(name)
        if len(calls) == 2:
            stop.append(15)
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(TickRun, "run", lambda run: {})
    monkeypatch.setattr(TickRun, "has_news", lambda run: False)
    monkeypatch.setattr(TickRun, name, failed)
    cluster.write('[line]\nevery = "1s"\n' + on_slurm("a", "eval --run lm"))
    line_watch(stop=stop, project=cluster.root)
    assert len(calls) == 2


def test_a_job_of_an_unknown_state_is_not_ended_without_saving(cluster: Cluster) -> None:
    (job,) = submitted(cluster)
    cluster.program("scontrol", "#!/bin/sh\nexit 1\n")
    job.stop = "saves"
    job.look()
    assert not (cluster.root / "cancelled").exists()
    cluster.program("scontrol", SCONTROL)
    job.look()
    assert (cluster.root / "cancelled").read_text() == "--batch --signal=INT 1\n"


def test_a_job_gets_each_signal_once_from_all_ticks(cluster: Cluster) -> None:
    """Its script writes down the signal on another node, where it may come to the folder much later."""

    def stop(how: Any) -> None:
        (job,) = submitted(cluster)
        job.stop = how
        job.look()

    cluster.program("scancel", "#!/bin/sh\nexit 1\n")
    stop("saves")  # nothing was sent
    cluster.program("scancel", SCANCEL)
    for how in ("saves", "saves", "now", "now"):
        stop(how)
    assert (cluster.root / "cancelled").read_text().splitlines() == ["--batch --signal=INT 1", "1"]


@pytest.mark.parametrize("how", ["saves", "now"])
def test_a_stop_that_was_killed_happens_when_it_is_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: Any
) -> None:
    """A signal to save, which the job's script writes down, is sent once; a job is cancelled at least once."""
    scancel = (
        SCANCEL + """cd "$JOBS/$(cat "$JOBS/folder-1")"; echo '{"event": "signal", "signal": "INT"}' >>events.jsonl\n"""
    )

    def prepare(root: Path) -> None:
        root.mkdir()
        cluster = Cluster.began(root, monkeypatch)
        cluster.program("scancel", scancel)
        submitted(cluster)

    def cancel(*args: Any, **options: Any) -> None:
        (Path.cwd() / "runs" / "before").touch()
        real(*args, **options)
        (Path.cwd() / "runs" / "after").touch()

    def stop(root: Path) -> None:
        monkeypatch.chdir(root)
        monkeypatch.setenv("JOBS", str(root))
        monkeypatch.setenv("PATH", f"{root / 'bin'}:{os.environ['PATH']}")
        (launch,) = (root / "runs" / ".launched").iterdir()  # its name has the folder's path in it
        monkeypatch.setattr("aifx.cluster.launched.requested_id", lambda *_: launch.name)
        job = Job(Project(root), "slurm", "request")
        job.stop = how
        job.look()
        assert job.text == "slurm job 1: running"

    def check(root: Path, calm: Path) -> None:
        monkeypatch.setattr("aifx.lines.jobs.EVENT_S", 0.0)
        for _ in range(2):
            stop(root)
            told = (root / "cancelled").read_text().splitlines()
            assert told == ["--batch --signal=INT 1"] if how == "saves" else told in (["1"], ["1", "1"])

    real = Slurm.stop
    monkeypatch.setattr(Slurm, "stop", cancel)
    assert kill_at_each_change(tmp_path, prepare, stop, check, below="runs") == 5


def test_a_signal_that_may_have_been_sent_is_not_sent_again_before_its_event_can_be_seen(cluster: Cluster) -> None:
    (job,) = submitted(cluster)
    (cluster.root / "runs" / ".launched" / job.launch / "stopping-saves").write_bytes(b"sends")
    job.stop = "saves"
    job.look()
    assert not (cluster.root / "cancelled").exists()
    os.utime(cluster.root / "runs" / ".launched" / job.launch / "stopping-saves", (0, 0))
    job.look()
    assert (cluster.root / "cancelled").read_text() == "--batch --signal=INT 1\n"


def test_each_question_has_its_own_time_and_the_job_that_waited_longest_is_asked_first(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aifx.lines.jobs.AT_ONCE", 1)
    monkeypatch.setattr("aifx.lines.jobs.ANSWER_S", 1.0)
    hangs, answers = submitted(cluster, count=2)
    cluster.program("scontrol", SCONTROL.replace("cat", "[ $4 = 2 ] || exec sleep 60\ncat", 1))
    look_at([hangs, answers])
    assert "does not answer" in hangs.text
    assert "running" in answers.text
    cluster.program("scontrol", SCONTROL.replace("cat", 'echo $4 >>"$JOBS/asked"\ncat', 1))
    hangs.look()
    questions = Questions()
    questions.ask([hangs, answers], 0.0)
    while questions.ask([], 0.0):
        time.sleep(0.01)
    assert (cluster.root / "asked").read_text().split() == ["1", "2", "1"]


def test_questions_that_are_given_up_end_what_they_started(cluster: Cluster) -> None:
    """Python waits for their threads: Ctrl-C would take as long as a scheduler that hangs."""
    (job,) = submitted(cluster)
    cluster.program("scontrol", SCONTROL.replace("cat", 'echo $$ >"$JOBS/asked"\nexec sleep 1000\ncat', 1))
    questions = Questions()
    questions.ask([job], 0.0)
    while not (asked := cluster.root / "asked").exists() or not asked.read_text().endswith("\n"):
        time.sleep(0.01)
    questions.close()
    while questions.ask([], 0.0):
        time.sleep(0.01)
    assert "does not answer" in job.text
    with pytest.raises(ProcessLookupError):
        os.kill(int(asked.read_text()), 0)

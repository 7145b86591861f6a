"""Jobs of stations between ticks and in ticks of the past, and schedulers that do not answer."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_cluster import SCONTROL, Cluster, on_slurm
from ticking import station

from aifx.lines.runner import held
from aifx.verbs.line_ticks import line_backfill, line_status, line_watch

DAILY = '[line]\nevery = "1d"\n'
ENDS = """#!/bin/sh
cd "$JOBS"
echo "$4" >>asked
if [ "$(grep -c "^$4\\$" asked)" -ge ASKED ]; then
    echo '{"run": "lm"}' >"$(cat folder-$4)/answer"
    sed -i 's/JobState=.*/JobState=COMPLETED/' job-$4
fi
cat job-$4
"""


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    monkeypatch.setattr("aifx.lines.runner.POLL_S", 0.02)
    monkeypatch.setattr("aifx.lines.runner.WATCH_S", 0.02)
    monkeypatch.setattr("aifx.verbs.line_ticks.LOOK_S", 0.02)
    return Cluster.began(tmp_path, monkeypatch)


def until(holds: Callable[[], object], act: Callable[[], object] = lambda: None) -> None:
    limit = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < limit
        act()
        time.sleep(0.02)


def test_a_watch_takes_the_end_of_a_job_long_before_its_next_period(cluster: Cluster) -> None:
    cluster.program("scontrol", ENDS.replace("ASKED", "4"))
    cluster.write(DAILY + on_slurm("train", "train --run lm") + station("next", after=["train"]))
    stop = list[int]()
    give_up = threading.Timer(60, stop.append, [signal.SIGTERM])
    give_up.start()

    def heard(text: str) -> None:
        if text.startswith("next: done"):
            stop.append(signal.SIGTERM)

    line_watch(allow_shell=True, stop=stop, on_line=heard, project=cluster.root)
    give_up.cancel()
    assert cluster.count("next") == 1
    assert len(cluster.submitted) == 1
    assert len([one for one in cluster.records("tick") if "bindings" in one.facts]) == 2


def test_a_watch_stops_a_job_beyond_its_time_limit_once_and_between_ticks(cluster: Cluster) -> None:
    """A second signal would end the run before it has saved."""
    cluster.write(DAILY + on_slurm("train", "train --run lm", "time_limit = '1s'"))
    one = cluster.run()
    with held(one.line):
        one.run()
    cluster.show(1, "RUNNING")
    cancelled = cluster.root / "cancelled"
    until(cancelled.exists, one.has_ended_job)
    folder = cluster.root / (cluster.root / "folder-1").read_text().strip()
    (folder / "events.jsonl").write_text('{"event": "signal", "signal": "INT"}\n')  # as the job's script does
    for _ in range(20):
        assert not one.has_ended_job()
        time.sleep(0.02)
    assert cluster.tick() == {"train": "running"}
    assert cancelled.read_text().splitlines() == ["--batch --signal=INT 1"]
    cluster.end(1, {"status": "interrupted"}, code=130)
    until(one.has_ended_job)
    assert cluster.tick() == {"train": "failed"}
    assert "time_limit of 1 s" in cluster.records("ended")[0].facts["error"]["why"]


def test_a_jobset_beyond_its_time_limit_is_deleted(cluster: Cluster) -> None:
    kubectl = """#!/bin/sh
case " $* " in
  *" delete "*) echo "$*" >>"$JOBS/deleted" ;;
  *" get "*) [ -e "$JOBS/deleted" ] && [ ! -e "$JOBS/saves" ] || cat "$JOBS/status" ;;
esac
"""
    cluster.program("kubectl", kubectl)
    (cluster.root / "status").write_text('{"status": {"replicatedJobsStatus": [{"ready": 1}]}}')
    (cluster.root / "saves").touch()
    cluster.write(on_slurm("train", "train --run lm", "time_limit = '1s'", on="k8s"))
    until((cluster.root / "deleted").exists, cluster.tick)
    (cluster.root / "status").write_text('{"metadata": {"deletionTimestamp": "now"}, "status": {}}')
    assert cluster.tick() == {"train": "running"}
    (command,) = (cluster.root / "deleted").read_text().splitlines()
    assert command.split()[1:4] == ["delete", "jobset", "jobset-1"]
    (cluster.root / "saves").unlink()
    assert cluster.tick() == {"train": "failed"}
    assert "time_limit of 1 s" in cluster.records("ended")[0].facts["error"]["why"]


def test_a_backfill_waits_for_the_jobs_of_each_tick_and_for_those_that_run(cluster: Cluster) -> None:
    cluster.write(
        DAILY
        + on_slurm("train", "train --run lm --set x={date}")
        + station("next", "sh -c 'echo $0 {date} >>next.count' {stations.train.run}")
    )
    assert cluster.tick() == {"train": "running", "next": "pending"}
    today = cluster.submitted[0][-4].removeprefix("x=")
    cluster.program("scontrol", ENDS.replace("ASKED", "2"))
    found = line_backfill("2026-10-24", "2026-10-25", allow_shell=True, project=cluster.root)
    assert [{one.station: one.state for one in tick.stations} for tick in found.ticks] == 2 * [
        {"train": "done", "next": "done"}
    ]
    days = [today, "2026-10-24", "2026-10-25"]
    assert [words[-4] for words in cluster.submitted] == [f"x={day}" for day in days]
    assert (cluster.root / "next.count").read_text().splitlines() == [f"lm {day}" for day in days]


def test_a_scheduler_that_hangs_keeps_no_other_station_waiting(cluster: Cluster) -> None:
    """It answers, and takes the third job, when all others are done."""
    cluster.program("kubectl", "#!/bin/sh\ncat $JOBS/status")
    (cluster.root / "status").write_text('{"status": {}}')
    table = on_slurm("a", "eval --run lm") + on_slurm("b", "eval --run lm --html b")
    table += on_slurm("c", "eval --run lm --html c", on="k8s")
    cluster.write(table)
    assert set(cluster.tick().values()) == {"running"}
    for name in ("a", "b"):
        cluster.end(cluster.number(name), {})
    (cluster.root / "status").write_text('{"status": {"conditions": [{"type": "Completed", "status": "True"}]}}')
    waits = "cd $JOBS; echo x >>begun.count; while [ -e hang ]; do sleep 0.02; done; echo x >>told.count"
    cluster.program("scontrol", SCONTROL.replace("cat", f"{waits}\ncat", 1))
    (cluster.root / "hang").touch()
    local = station("d") + station("e", "sh -c 'echo x >>e.count; rm hang'", after=["d", "c"])
    cluster.write(table + local + on_slurm("f", "eval --run lm --html f"))
    assert cluster.tick() == {**dict.fromkeys("abcde", "done"), "f": "running"}
    assert len(cluster.submitted) == 4
    assert cluster.count("begun") == cluster.count("told") >= 2  # none was ended in vain


def test_a_scheduler_that_never_answers_ends_no_job_and_no_process_is_left(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aifx.lines.jobs.ANSWER_S", 0.5)
    names = [f"s{number}" for number in range(12)]
    cluster.write("".join(on_slurm(name, f"eval --run lm --html {name}") for name in names) + station("here"))
    cluster.program("scontrol", '#!/bin/sh\necho $$ >>"$JOBS/asked"\nexec sleep 1000\n')
    found = cluster.decisions()
    assert {one.state for name, one in found.items() if name in names} == {"running"}
    assert all("does not answer" in found[name].why for name in names)
    assert found["here"].state == "done"
    asked = (cluster.root / "asked").read_text().split()
    assert 0 < len(asked) <= len(names)
    assert not [pid for pid in asked if os.path.exists(f"/proc/{pid}")]
    states = [one for one in line_status(project=cluster.root).stations if one.station in names]
    assert all("does not answer" in one.why for one in states)
    assert len(cluster.records("ended")) == 1
    cluster.program("scontrol", SCONTROL)
    for number in range(1, 13):
        cluster.end(number, {})
    assert set(cluster.tick().values()) == {"done"}

"""Stations that a cluster runs, with programs that stand for Slurm's and for `aifx launch`.

tests/lines/test_line_on_slurm.py has a real Slurm.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import warm_aifx
import yaml
from fake_cluster import KUBECTL, Cluster, on_slurm
from ticking import station

from aifx.verbs.line_decisions import line_logs
from aifx.verbs.line_files import line_graph
from aifx.verbs.line_ticks import line_status


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    return Cluster.began(tmp_path, monkeypatch)


def test_a_tick_ends_while_a_job_runs_and_the_next_one_adopts_it(cluster: Cluster) -> None:
    after = station("next", "sh -c 'echo $0 >>next.count' {stations.train.run}")
    cluster.write(on_slurm("train", "train --run lm") + station("other") + after)
    assert cluster.tick() == {"train": "running", "other": "done", "next": "pending"}  # with one slot for all
    (attempt,) = {one.attempt for one in cluster.records("started", "train")}
    (words,) = cluster.submitted
    assert words[:6] == ["launch", "slurm", "--no-follow", "--request", f"{attempt}-1", "--"]
    assert words[6:] == ["train", "--run", "lm", "--json", "--request", attempt]
    cluster.show(1, "RUNNING NodeList=n7")
    found = cluster.decisions()["train"]
    assert (found.state, found.why) == ("running", "slurm job 1: running on n7")
    status, logs = line_status(project=cluster.root), line_logs("train", project=cluster.root)
    assert [(one.on, one.why) for one in status.stations][:1] == [("slurm", "slurm job 1: running on n7")]
    assert [one.on for one in line_graph(project=cluster.root).stations] == ["slurm", "local", "local"]
    assert logs.code is None
    (cluster.root / (cluster.root / "folder-1").read_text().strip() / "output.log").write_text("[0] step 3 of 6\n")
    assert line_logs("train", project=cluster.root).commands[-1].stdout == "[0] step 3 of 6"
    cluster.end(1, {"run": "lm", "state_digest": "d"})
    for _ in range(2):
        assert cluster.tick() == {"train": "done", "other": "done", "next": "done"}
    assert (cluster.root / "next.count").read_text() == "lm\n"
    assert line_logs("train", project=cluster.root).code == 0
    assert (len(cluster.submitted), cluster.count("other")) == (1, 1)


def test_an_end_counts_in_the_tick_in_which_it_comes_and_what_it_rests_on_stays_until_then(cluster: Cluster) -> None:
    """Each tick would read other data."""
    (cluster.root / "version").write_text('{"version": "v1"}')
    cluster.write(
        station("data", "sh -c 'echo x >>data.count; cat version' {tick}")
        + on_slurm("train", "train --run lm --set data.dataset={stations.data.version}")
        + on_slurm("judge", "eval --run {stations.train.run}")
        + station("push", "sh -c 'echo $0 >>push.count' {stations.train.run}", after=["judge"])
        + station("monitor", "sh -c 'echo $0 >>monitor.count' {tick}")
    )
    states = cluster.tick()
    assert states == {"data": "done", "train": "running", "judge": "pending", "push": "pending", "monitor": "done"}
    (cluster.root / "version").write_text('{"version": "v2"}')
    assert cluster.tick() == states
    cluster.end(1, {"run": "lm"})
    assert cluster.tick() == states | {"train": "done", "judge": "running"}
    assert cluster.tick() == states | {"train": "done", "judge": "running"}
    cluster.end(2, {"verdict": "bad"}, code=1)
    assert cluster.tick() == states | {"train": "done", "judge": "verdict", "push": "blocked"}
    assert (cluster.count("data"), cluster.count("monitor")) == (1, 5)
    (cluster.root / "runs" / "lm2").mkdir()
    assert cluster.tick()["train"] == "running"
    assert cluster.submitted[-1][-4] == "data.dataset=v2"
    assert len(cluster.submitted) == 3
    cluster.end(3, {"run": "lm2"})
    cluster.tick()
    cluster.end(4, {"verdict": "good"})
    assert cluster.tick()["push"] == "done"
    assert (cluster.root / "push.count").read_text() == "lm2\n"


def test_jobs_of_one_pass_wait_for_each_other(cluster: Cluster) -> None:
    cluster.write(
        on_slurm("a", "eval --run lm --html {tick}")
        + on_slurm("b", "eval --run lm --html {tick}")
        + station("both", "sh -c 'echo x >>both.count'", after=["a", "b"])
    )
    assert cluster.tick() == {"a": "running", "b": "running", "both": "pending"}
    cluster.end(cluster.number("b"), {})
    for _ in range(2):
        assert cluster.tick() == {"a": "running", "b": "done", "both": "pending"}
    cluster.end(cluster.number("a"), {})
    assert cluster.tick() == {"a": "done", "b": "done", "both": "done"}
    assert len(cluster.submitted) == 2
    assert cluster.tick() == {"a": "running", "b": "running", "both": "pending"}


@pytest.mark.parametrize(
    ("end", "why"),
    [
        (lambda c: (c.root / "job-1").unlink(), "Slurm has forgotten it"),
        (lambda c: c.show(1, "CANCELLED ExitCode=0:0"), "was stopped"),
        (lambda c: c.end(1, {"error": {"what": "no disk", "why": "full", "hint": "rm x"}}, code=2), "no disk: full"),
        (lambda c: c.end(1, code=1), "exit 1"),
    ],
)
def test_a_job_that_failed_says_why_and_another_try_has_another_job(cluster: Cluster, end: Any, why: str) -> None:
    cluster.write(on_slurm("train", "train --run lm"))
    cluster.tick()
    end(cluster)
    for _ in range(2):
        assert cluster.tick() == {"train": "failed"}
    (ended,) = cluster.records("ended")
    assert why in ended.facts["error"]["why"]
    assert ended.facts["error"]["hint"]
    cluster.run().journal.append("retry", "train", ended.key)
    assert cluster.tick() == {"train": "running"}
    first, second = cluster.submitted
    assert (first[4], second[4]) == (f"{ended.attempt}-1", f"{ended.attempt}-2")
    assert first[6:] == second[6:]


def test_a_passing_fault_of_a_job_is_tried_again(cluster: Cluster) -> None:
    cluster.write(on_slurm("train", "train --run lm", "retries = 1"))
    cluster.tick()
    cluster.end(1, {"error": {"what": "no route", "why": "to host", "transient": True}}, code=2)
    assert cluster.tick() == {"train": "running"}
    cluster.end(2, {"error": {"what": "no route", "why": "to host", "transient": True}}, code=2)
    assert cluster.tick() == {"train": "failed"}
    assert len(cluster.submitted) == 2


def test_a_submission_that_was_killed_finds_its_job(cluster: Cluster) -> None:
    (cluster.root / "kill").touch()
    cluster.write(on_slurm("train", "train --run lm"))
    assert cluster.tick() == {"train": "running"}
    assert len(cluster.records("repeated")) == 1
    assert len(cluster.submitted) == 1


def test_a_scheduler_that_does_not_answer_is_asked_again(cluster: Cluster) -> None:
    cluster.write(on_slurm("train", "train --run lm"))
    cluster.tick()
    (cluster.root / "bin" / "scontrol").write_text("#!/bin/sh\necho 'Unable to contact slurm' >&2; exit 1\n")
    found = cluster.decisions()["train"]
    assert (found.state, "Unable to contact slurm" in found.why) == ("running", True)


def test_a_job_beyond_its_time_limit_is_stopped(cluster: Cluster) -> None:
    cluster.write(on_slurm("train", "train --run lm", "time_limit = '1s'"))
    cluster.tick()
    cluster.show(1, "RUNNING")
    while not (cluster.root / "cancelled").exists():
        time.sleep(0.1)
        assert cluster.tick() == {"train": "running"}
    assert (cluster.root / "cancelled").read_text().splitlines()[0] == "--batch --signal=INT 1"
    cluster.end(1, {"status": "interrupted"}, code=130)
    assert cluster.tick() == {"train": "failed"}
    assert "time_limit of 1 s" in cluster.records("ended")[0].facts["error"]["why"]


def test_a_jobset_is_created_once_and_its_pod_has_the_answer(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line runs `aifx launch k8s`, and kubectl is a program that notes what it gets."""
    root = cluster.root
    (root / "aifx.toml").write_text('[launch]\nimage = "team/lm:1"\n[k8s]\nruns_claim = "runs"\n')
    cluster.program("kubectl", KUBECTL)
    cluster.write(
        """[[station]]\nname = "Train_1"\nrun = "train --run lm"\non = "k8s"\n"""
        """[[station]]\nname = "judge"\nrun = "eval --run {stations.Train_1.run}"\non = "k8s"\n"""
    )

    def end(condition: str) -> None:
        name = yaml.safe_load((root / "jobset.yaml").read_text())["metadata"]["name"]
        status = {"conditions": [{"type": condition, "status": "True"}]}
        (root / f"{name}.json").write_text(json.dumps({"status": status}) if condition else "")

    with warm_aifx.serving(root) as words:
        monkeypatch.setattr("aifx.lines.runner.AIFX", tuple(words))
        assert cluster.tick() == {"Train_1": "running", "judge": "pending"}, cluster.records("ended")
        jobset = yaml.safe_load((root / "jobset.yaml").read_text())
        attempt = cluster.records("started")[0].attempt
        assert jobset["metadata"]["labels"]["aifx-request"] == f"{attempt}-1"
        (pod,) = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"]
        assert pod["args"] == ["train", "--run", "lm", "--json", "--request", attempt]
        (root / "pod.log").write_text('[0] step 6 of 6\n{\n  "run": "on-a-volume"\n}\n')
        end("Completed")
        assert cluster.tick() == {"Train_1": "done", "judge": "running"}
        (root / "pod.log").write_text('{\n  "run": "on-a-volume",\n  "gates": []\n}\n')
        end("Failed")
        assert cluster.tick() == {"Train_1": "done", "judge": "verdict"}
        (root / "line.toml").write_text((root / "line.toml").read_text().replace("eval", "eval --step 1"))
        assert cluster.tick() == {"Train_1": "done", "judge": "running"}  # though the run is on a volume alone
        end("")
        assert cluster.tick() == {"Train_1": "done", "judge": "failed"}
    error = cluster.records("ended")[-1].facts["error"]
    assert ("its JobSet was deleted" in error["why"], "aifx line retry judge" in error["hint"]) == (True, True)

"""Tests of the calls that `aifx launch` makes of kubectl. A small program stands for it: no test has an API server."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import inprocess
import pytest
import yaml
from stored_models import push_empty

from aifx.cluster import kubernetes
from aifx.cluster.jobs import JobStatus, LaunchRecord
from aifx.cluster.kubernetes import BACKEND, status_of
from aifx.cluster.launched import read_records
from aifx.core.errors import AifxError, EnvironmentFault
from aifx.core.project import Project

Kubectl = Callable[..., list[list[str]]]


@pytest.fixture
def kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kubectl:
    """A program that notes its arguments and answers by the first word of its command. Returns the calls so far."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program, calls = folder / "kubectl", tmp_path / "calls"
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr(kubernetes, "POLL_S", 0.0)

    def answer(**answers: str) -> list[list[str]]:
        """Each answer is a line of shell, by the word of the command: `apply`, `config`, `get`, `logs`, `delete`."""
        cases = "\n".join(f"  *' {word} '*) {line} ;;" for word, line in answers.items())
        note = f"{{ printf '%s\\037' \"$@\"; echo; }} >> {shlex.quote(str(calls))}"
        program.write_text(f'#!/bin/sh\n{note}\ncase " $* " in\n{cases}\nesac\n')
        program.chmod(0o700)
        lines = calls.read_text().splitlines() if calls.exists() else []
        return [line.split("\x1f")[1:-1] for line in lines]  # the first is a limit of time

    answer()
    return answer


@pytest.fixture
def project(tmp_path: Path) -> Project:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "aifx.toml").write_text('[launch]\nimage = "team/project:1"\n[k8s]\nruns_claim = "runs"\n')
    return Project(folder)


def aifx(project: Project, *args: str) -> tuple[int, str, str]:
    done = inprocess.run(["launch", *args], project.root, os.environ)
    return done.returncode, done.stdout, done.stderr


def record(**changes: Any) -> LaunchRecord:
    values = {"id": "wide-1", "backend": "kubernetes", "job": "wide", "place": "arn:aws:eks/prod/team-a", "run": "wide"}
    return LaunchRecord(
        **{**values, "arguments": ("train",), "nodes": 2, "processes_per_node": 1, "time": 0.0, **changes}
    )


HERE = ["--context=arn:aws:eks/prod", "--namespace=team-a"]


def test_without_apply_the_manifest_is_all_there_is(project: Project, kubectl: Kubectl) -> None:
    code, out, err = aifx(project, "k8s", "-N", "2", "--queue", "research", "train", "--run", "wide")
    assert (code, err) == (0, "")
    jobset = yaml.safe_load(out)
    assert jobset["metadata"]["name"] == "wide"
    assert jobset["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "research"
    assert jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["completions"] == 2
    assert kubectl() == []
    assert read_records(project) == []


def test_settings_of_the_command_count(project: Project, kubectl: Kubectl) -> None:
    _, out, _ = aifx(project, "k8s", "train", "--set", "checkpoint.stop_timeout_s=100")
    pod = yaml.safe_load(out)["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] == 130
    assert pod["containers"][0]["args"][-1] == "checkpoint.stop_timeout_s=100"


def test_apply_hands_over_what_is_printed_and_keeps_a_record(project: Project, kubectl: Kubectl) -> None:
    _, manifest, _ = aifx(project, "k8s", "train", "--run", "wide")
    kubectl(
        apply='cp "${3#--filename=}" "$HOME/applied"',
        config="case $* in *context*) echo prod;; *) printf team-b;; esac",
    )
    home = project.root.parent
    done = inprocess.run(
        ["launch", "k8s", "--apply", "--no-follow", "train", "--run", "wide"],
        project.root,
        {**os.environ, "HOME": str(home)},
    )
    assert done.returncode == 0, done.stderr
    assert (home / "applied").read_text() == manifest
    (found,) = read_records(project)
    assert (found.job, found.place, found.run, found.nodes) == ("wide", "prod/team-b", "wide", 1)
    assert found.arguments == ("train", "--run", "wide")


def test_a_training_whose_base_is_missing_is_not_handed_over(project: Project, kubectl: Kubectl) -> None:
    push_empty(project, "fox")
    code, manifest, error = aifx(project, "k8s", "train", "--set", "finetune.base=fox@v2")
    assert (code, manifest, "aifx registry show fox" in error) == (2, "", True)
    code, manifest, error = aifx(project, "k8s", "train", "--set", "finetune.base=wide")
    assert (code, "it must be on the volume runs" in error, "kind: JobSet" in manifest) == (0, True, True)
    assert aifx(project, "k8s", "train", "--set", "finetune.base=fox@v1")[::2] == (0, "")


def test_a_jobset_is_created_once_for_a_request(project: Project, kubectl: Kubectl) -> None:
    def ask(run: str) -> tuple[int, str, str]:
        return aifx(project, "k8s", "--apply", "--no-follow", "--request", "r1", "train", "--run", run)

    def applied() -> int:
        return sum(call[0] == "apply" for call in kubectl(**answers))

    answers = {"config": "case $* in *context*) echo prod;; *) printf team-b;; esac", "get": "exit 0"}
    kubectl(**answers)
    first = ask("wide")
    assert first[0] == 0, first[2]
    (record,) = read_records(project)
    assert (record.job[:5], record.place, applied()) == ("wide-", "prod/team-b", 1)
    folder = project.runs_path / ".launched" / record.id
    labels = yaml.safe_load((folder / "jobset.yaml").read_text())["metadata"]["labels"]
    assert (labels["aifx-request"], labels["aifx-launch"]) == ("r1", record.id)
    assert ask("other") == first
    (folder / "record.json").unlink()
    answers["get"] = f"echo {record.job}"
    kubectl(**answers)
    assert ask("other") == first
    assert (read_records(project), applied()) == ([record], 1)
    (folder / "record.json").unlink()
    answers["get"] = 'echo "Unable to connect" >&2; exit 1'
    kubectl(**answers)
    code, _, err = ask("other")
    assert (code, "does not say whether" in err, applied()) == (2, True, 1)
    answers["get"] = "exit 0"
    kubectl(**answers)
    assert (ask("wide"), applied()) == (first, 2)


def test_a_dry_run_creates_nothing(project: Project, kubectl: Kubectl) -> None:
    code, out, _ = aifx(project, "k8s", "--apply", "--dry-run", "train", "--run", "wide")
    assert code == 0
    assert "JobSet wide" in out
    ((word, manifest, option),) = kubectl()
    assert (word, option) == ("apply", "--dry-run=server")
    assert not Path(manifest.removeprefix("--filename=")).exists()
    assert read_records(project) == []


def test_what_the_server_refuses_is_reported(project: Project, kubectl: Kubectl) -> None:
    kubectl(apply='echo "error: no kind JobSet" >&2; exit 1')
    code, out, err = aifx(project, "k8s", "--apply", "train")
    assert (code, out) == (2, "")
    assert "no kind JobSet" in err
    assert "hint: kubectl get crd" in err
    assert read_records(project) == []


def test_without_kubectl(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    code, _, err = aifx(project, "k8s", "--apply", "train")
    assert code == 2
    assert "no kubectl" in err


def test_a_run_is_followed_to_its_end(project: Project, kubectl: Kubectl) -> None:
    ended = json.dumps({"status": {"conditions": [{"type": "Completed", "status": "True"}]}})
    kubectl(get=f"echo {shlex.quote(ended)}", logs="echo 2026-11-28T00:00:00.000000001Z step 1", config="echo prod")
    code, out, err = aifx(project, "k8s", "--apply", "train", "--run", "wide")
    assert code == 0
    assert out == "step 1\n"
    assert "JobSet wide" in err
    code, out, _ = aifx(project, "ls", "--json")
    assert json.loads(out)["launches"][0]["status"]["state"] == "completed"
    code, _, err = aifx(project, "stop")
    assert code == 2
    assert "is over" in err


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ({}, JobStatus("pending", "not all pods run")),
        ({"conditions": [{"type": "Suspended", "status": "True"}]}, JobStatus("pending", "suspended")),
        (
            {
                "replicatedJobsStatus": [{"ready": 1}],
                "restarts": 2,
                "conditions": [{"type": "Suspended", "status": "False"}],
            },
            JobStatus("running", "2 restarts"),
        ),
        ({"replicatedJobsStatus": [{"ready": 0}], "restarts": 1}, JobStatus("pending", "not all pods run, 1 restart")),
        (
            {"conditions": [{"type": "Failed", "status": "True", "message": "job node-0 failed"}]},
            JobStatus("failed", "job node-0 failed"),
        ),
        ({"conditions": [{"type": "Completed", "status": "True"}]}, JobStatus("completed", exit_code=0)),
    ],
)
def test_the_state_of_a_jobset(status: dict[str, Any], expected: JobStatus) -> None:
    assert status_of({"status": status}) == expected


def test_a_jobset_that_is_deleted(kubectl: Kubectl, tmp_path: Path) -> None:
    assert status_of({"metadata": {"deletionTimestamp": "x"}}).state == "ending"
    assert BACKEND.status(record(), tmp_path) == JobStatus("stopped", "its JobSet was deleted", is_gone=True)
    assert kubectl() == [[*HERE, "get", "jobset", "wide", "--output=json", "--ignore-not-found"]]
    kubectl(get='echo "Unable to connect" >&2; exit 1')
    assert BACKEND.status(record(), tmp_path) == JobStatus("unknown", "Unable to connect")
    kubectl(get="echo nonsense")
    assert BACKEND.status(record(), tmp_path).state == "unknown"


def test_lines_come_once(kubectl: Kubectl, tmp_path: Path) -> None:
    kubectl(logs="echo 2026-11-28T00:00:00.000000001Z one; echo 2026-11-28T00:00:00.000000002Z two")
    lines = BACKEND.lines(record(), tmp_path)
    assert [next(lines), next(lines), next(lines)] == [b"one", b"two", None]
    kubectl(logs="echo 2026-11-28T00:00:00.000000002Z two; printf '2026-11-28T00:00:00.000000003Z  three\\n'")
    assert [next(lines), next(lines)] == [b" three", None]
    kubectl(logs='echo "container is waiting to start" >&2; exit 1')  # of the pod that replaces it
    assert next(lines) is None
    first, *_, last = kubectl()
    labels = "jobset-name=wide,jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0"
    assert first[:4] == [*HERE, "logs", f"--selector=jobset.sigs.k8s.io/{labels}"]
    assert "--since-time=2026-11-28T00:00:00.000000003Z" in last


def test_the_answer_is_the_last_document_of_a_pod(kubectl: Kubectl, tmp_path: Path) -> None:
    assert BACKEND.answer(record(), tmp_path) == b""
    kubectl(logs='printf \'[0] step 1\\n{\\n  "old": {\\n  }\\n}\\n[0] {\\n{\\n  "run": {\\n  }\\n}\\n\'')
    assert json.loads(BACKEND.answer(record(), tmp_path)) == {"run": {}}


def test_stop_lets_the_pods_save_unless_it_must_be_now(kubectl: Kubectl) -> None:
    BACKEND.stop(record(), JobStatus("running"), now=False)
    (only,) = kubectl()
    assert only == [*HERE, "delete", "jobset", "wide", "--wait=false", "--ignore-not-found"]
    BACKEND.stop(record(place=""), JobStatus("running"), now=True)
    *_, jobset, pods = kubectl()
    assert jobset[:3] == ["delete", "jobset", "wide"]
    assert pods[:2] == ["delete", "pods"]
    assert {"--selector=jobset.sigs.k8s.io/jobset-name=wide", "--grace-period=1"} <= set(pods)
    kubectl(delete='echo "error: forbidden" >&2; exit 1')
    with pytest.raises(EnvironmentFault, match="did not stop") as caught:
        BACKEND.stop(record(), JobStatus("running"), now=False)
    assert caught.value.why == "forbidden"


@pytest.mark.parametrize("changes", [{"job": "--all"}, {"job": "Wide"}, {"place": "x/--all"}, {"place": "a\nb/ns"}])
def test_a_record_of_strangers_names_nothing_else(kubectl: Kubectl, tmp_path: Path, changes: dict[str, str]) -> None:
    with pytest.raises(AifxError, match="is damaged"):
        BACKEND.stop(record(**changes), JobStatus("running"), now=False)
    assert kubectl() == []

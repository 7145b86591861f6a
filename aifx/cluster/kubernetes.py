"""Kubernetes: handing a JobSet to it by kubectl, and asking what became of it."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from aifx.cluster.hosts import ask_kubernetes
from aifx.cluster.jobs import POLL_S, JobStatus, LaunchRecord
from aifx.cluster.jobset import CONTAINER
from aifx.core.errors import AifxError, EnvironmentFault
from aifx.core.parsing import parse_json
from aifx.core.processes import Ended

FIRST_POD = "jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0"
"""Labels of the pod of process 0, which writes what a run reports."""


def check(text: str) -> None:
    """Let the API server check a manifest without creating anything. Raises EnvironmentFault if it refuses it."""
    with TemporaryDirectory() as folder:
        manifest = Path(folder) / "jobset.yaml"
        manifest.write_text(text, encoding="utf-8")
        _apply(manifest, "--dry-run=server")


def apply(manifest: Path) -> str:
    """Hand a manifest to the API server. Returns the place that kubectl's context means: `CONTEXT/NAMESPACE`, of which
    both may be empty.

    Raises EnvironmentFault if the server refuses it.
    """
    _apply(manifest)
    context = ask_kubernetes("config", "current-context")
    view = ask_kubernetes("config", "view", "--minify", "--output=jsonpath={..namespace}")
    return "/".join(ended.output.decode("utf-8", "replace").strip() for ended in (context, view))


def _apply(manifest: Path, *options: str) -> None:
    ended = ask_kubernetes("apply", f"--filename={manifest}", *options)
    if not ended.succeeded:
        hint = "kubectl get crd jobsets.jobset.x-k8s.io shows whether JobSet is installed"
        raise EnvironmentFault("Kubernetes did not take the JobSet", _why(ended), hint)


class Kubernetes:
    """The API server that kubectl reaches."""

    def status(self, record: LaunchRecord, folder: Path) -> JobStatus:
        ended = ask_kubernetes(*_place(record), "get", "jobset", _job(record), "--output=json", "--ignore-not-found")
        if not ended.succeeded:
            return JobStatus("unknown", _why(ended))
        if not ended.output.strip():
            return JobStatus("stopped", "its JobSet was deleted")
        try:
            document = parse_json(ended.output)
        except ValueError:
            document = None
        return status_of(document) if isinstance(document, Mapping) else JobStatus("unknown", "kubectl wrote no JSON")

    def stop(self, record: LaunchRecord, status: JobStatus, *, now: bool) -> None:
        job = _job(record)
        _need(record, "delete", "jobset", job, "--wait=false", "--ignore-not-found")
        if now:  # kubectl does not pass a grace period on to the pods of a JobSet
            selector = f"--selector=jobset.sigs.k8s.io/jobset-name={job}"
            _need(record, "delete", "pods", selector, "--grace-period=1", "--wait=false", "--ignore-not-found")

    def lines(self, record: LaunchRecord, folder: Path) -> Iterator[bytes | None]:
        """Those of the pod of process 0, and of the pods that replace it."""
        selector = f"--selector=jobset.sigs.k8s.io/jobset-name={_job(record)},{FIRST_POD}"
        options = ["logs", selector, f"--container={CONTAINER}", "--tail=-1", "--timestamps"]
        last = b""
        while True:
            since = [f"--since-time={last.decode('ascii', 'replace')}"] if last else []
            ended = ask_kubernetes(*_place(record), *options, *since)
            for line in ended.output.splitlines():
                stamp, _, text = line.partition(b" ")
                if stamp > last:  # all of the same length; the server rounds --since-time down
                    last = stamp
                    yield text
            yield None
            time.sleep(POLL_S)


BACKEND = Kubernetes()


def status_of(jobset: Mapping[str, Any]) -> JobStatus:
    """The status that a JobSet has, as `kubectl get jobset NAME -o json` writes it."""
    status = jobset.get("status") or {}
    reasons = {one["type"]: one.get("message", "") for one in status.get("conditions", ()) if one["status"] == "True"}
    restarts = status.get("restarts", 0)
    restarted = f"{restarts} restart{'s' if restarts > 1 else ''}" if restarts else ""
    if "Completed" in reasons:
        return JobStatus("completed", restarted, exit_code=0)
    if "Failed" in reasons:
        return JobStatus("failed", ", ".join(part for part in (reasons["Failed"], restarted) if part))
    if "deletionTimestamp" in jobset.get("metadata", {}):
        return JobStatus("ending", "its JobSet is being deleted")
    if "Suspended" in reasons:
        return JobStatus("pending", "suspended")
    jobs = status.get("replicatedJobsStatus", ())
    if any(job.get("ready", 0) + job.get("succeeded", 0) for job in jobs):
        return JobStatus("running", restarted)
    return JobStatus("pending", ", ".join(part for part in ("not all pods run", restarted) if part))


def _place(record: LaunchRecord) -> list[str]:
    """The options that name where a record's JobSet is. A record may have been written by anybody."""
    context, _, namespace = record.place.rpartition("/")
    if not re.fullmatch(r"([a-z0-9][a-z0-9-]{0,62})?", namespace) or re.search(r"[\x00-\x1f\x7f]", context):
        raise _damaged(record)
    return [*([f"--context={context}"] if context else []), *([f"--namespace={namespace}"] if namespace else [])]


def _job(record: LaunchRecord) -> str:
    if not re.fullmatch("[a-z]([a-z0-9-]{0,61}[a-z0-9])?", record.job):
        raise _damaged(record)
    return record.job


def _damaged(record: LaunchRecord) -> AifxError:
    return AifxError(f"the record of launch {record.id} is damaged", f"job {record.job!r} in {record.place!r}")


def _need(record: LaunchRecord, *arguments: str) -> None:
    ended = ask_kubernetes(*_place(record), *arguments)
    if not ended.succeeded:
        hint = "kubectl get jobsets --all-namespaces"
        raise EnvironmentFault(f"Kubernetes did not stop JobSet {record.job}", _why(ended), hint)


def _why(ended: Ended) -> str:
    return ended.last_line.removeprefix("error: ") or ended.how

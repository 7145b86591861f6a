"""Kubernetes: the JobSet of `aifx launch k8s`, handing it over by kubectl, and its state.

A JobSet has one pod for each node, in which `aifx launch node` supervises the processes. A pod that exits with 75 was
preempted or lost another pod, and has saved: its Job fails at once (podFailurePolicy), and the JobSet starts all pods
again without counting it as a restart. An exit code that another start would give again ends the JobSet. Everything
else is restarted `launch.restarts` times.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from aifx.cluster.hosts import ask_kubernetes, refusal
from aifx.cluster.jobs import POLL_S, JobStatus, LaunchRecord
from aifx.config import Config
from aifx.config.launch_section import KubernetesSection, LaunchSection
from aifx.core.errors import AifxError, ConfigError, EnvironmentFault, ExitCode, UsageError
from aifx.core.parsing import parse_json
from aifx.core.processes import Ended
from aifx.core.sanitize import escape_controls
from aifx.parallel.processes import OURS, PORT

LAUNCH = "aifx-launch"
"""The label with the id of a launch for a request."""
FIRST_POD = "jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0"
"""Labels of the pod of process 0, which writes what a run reports."""


def check(text: str) -> None:
    """Let the API server check a manifest without creating anything. Raises EnvironmentFault if it refuses it."""
    with TemporaryDirectory() as folder:
        manifest = Path(folder) / "jobset.yaml"
        manifest.write_text(text, encoding="utf-8")
        _apply(manifest, "--dry-run=server")


def apply(manifest: Path, holds: int | None = None) -> str:
    """Hand a manifest to the API server. Returns the place that kubectl's context means: `CONTEXT/NAMESPACE`, of which
    both may be empty. kubectl keeps the descriptor `holds` open, as sbatch does.

    Raises EnvironmentFault if the server refuses it.
    """
    _apply(manifest, holds=holds)
    return current_place()


def current_place() -> str:
    """The place that kubectl's context means, as `apply` returns it."""
    context = ask_kubernetes("config", "current-context")
    view = ask_kubernetes("config", "view", "--minify", "--output=jsonpath={..namespace}")
    return "/".join(ended.output.decode("utf-8", "replace").strip() for ended in (context, view))


def find_job(record: LaunchRecord, folder: Path) -> str | None:
    """The name of the JobSet that a launch for a request made; None if there is none. Raises EnvironmentFault."""
    how = [f"--selector={LAUNCH}={record.id}", "--output=jsonpath={.items[*].metadata.name}"]
    ended = ask_kubernetes(*_place(record), "get", "jobset", *how)
    if not ended.succeeded:
        what, hint = "Kubernetes does not say whether the JobSet was created", "kubectl get jobsets --all-namespaces"
        raise EnvironmentFault(what, _why(ended), hint, transient=True)
    return next(iter(ended.output.decode("utf-8", "replace").split()), None)


def with_request(jobset: Mapping[str, Any], launch: str, request: str) -> dict[str, Any]:
    """A JobSet with labels of the launch and the request that make it."""
    metadata = jobset["metadata"]
    labels = {**metadata["labels"], LAUNCH: launch, "aifx-request": request}
    return {**jobset, "metadata": {**metadata, "labels": labels}}


def _apply(manifest: Path, *options: str, holds: int | None = None) -> None:
    ended = ask_kubernetes("apply", f"--filename={manifest}", *options, holds=holds)
    if not ended.succeeded:
        hint = "kubectl get crd jobsets.jobset.x-k8s.io shows whether JobSet is installed"
        raise refusal("Kubernetes did not take the JobSet", ended, _why(ended), hint)


class Kubernetes:
    """The API server that kubectl reaches."""

    def status(self, record: LaunchRecord, folder: Path) -> JobStatus:
        ended = ask_kubernetes(
            *_place(record), "get", "jobset", _job_name(record), "--output=json", "--ignore-not-found"
        )
        if not ended.succeeded:
            return JobStatus("unknown", _why(ended))
        if not ended.output.strip():
            return JobStatus("stopped", "its JobSet was deleted", is_gone=True)
        try:
            document = parse_json(ended.output)
        except ValueError:
            document = None
        return status_of(document) if isinstance(document, Mapping) else JobStatus("unknown", "kubectl wrote no JSON")

    def stop(self, record: LaunchRecord, status: JobStatus, *, now: bool) -> None:
        job = _job_name(record)
        _need(record, "delete", "jobset", job, "--wait=false", "--ignore-not-found")
        if now:  # kubectl does not pass a grace period on to the pods of a JobSet
            selector = f"--selector=jobset.sigs.k8s.io/jobset-name={job}"
            _need(record, "delete", "pods", selector, "--grace-period=1", "--wait=false", "--ignore-not-found")

    def lines(self, record: LaunchRecord, folder: Path) -> Iterator[bytes | None]:
        """Lines of the pod of process 0, and of the pods that replace it."""
        selector = f"--selector=jobset.sigs.k8s.io/jobset-name={_job_name(record)},{FIRST_POD}"
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

    def last_lines(self, record: LaunchRecord, folder: Path, most: int) -> list[bytes]:
        return _end_of_log(record, most).output.splitlines()[-most:]

    def answer(self, record: LaunchRecord, folder: Path) -> bytes:
        # The document is the last thing that a pod writes, below the lines of its processes.
        log = _end_of_log(record, LAST_LINES).output
        if not (answer := _document_in(log)) and log.count(b"\n") >= LAST_LINES:
            with suppress(_TooLong):
                answer = _document_in(_end_of_log(record, -1).output)
        return answer


class _TooLong(EnvironmentFault):
    """A log does not fit into memory."""


def _end_of_log(record: LaunchRecord, lines: int) -> Ended:
    """The last lines of the log of process 0, or all of them if `lines` is -1. Raises EnvironmentFault."""
    selector = f"--selector=jobset.sigs.k8s.io/jobset-name={_job_name(record)},{FIRST_POD}"
    ended = ask_kubernetes(*_place(record), "logs", selector, f"--container={CONTAINER}", f"--tail={lines}")
    what, hint = f"Kubernetes does not give the log of JobSet {record.job}", f"aifx launch logs {record.id}"
    if ended.cut == "output":
        raise _TooLong(what, "its last lines are too long", hint)
    if not ended.succeeded:
        raise refusal(what, ended, _why(ended), hint)
    return ended


def _document_in(log: bytes) -> bytes:
    """The last document in a log; empty if there is none."""
    _, begin, rest = (b"\n" + log).rpartition(b"\n{\n")
    return begin + rest if begin else b""


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


def _job_name(record: LaunchRecord) -> str:
    if not re.fullmatch("[a-z]([a-z0-9-]{0,61}[a-z0-9])?", record.job):
        raise _damaged(record)
    return record.job


def _damaged(record: LaunchRecord) -> AifxError:
    return AifxError(f"the record of launch {record.id} is damaged", f"job {record.job!r} in {record.place!r}")


def _need(record: LaunchRecord, *arguments: str) -> None:
    ended = ask_kubernetes(*_place(record), *arguments)
    if not ended.succeeded:
        hint = "kubectl get jobsets --all-namespaces"
        raise refusal(f"Kubernetes did not stop JobSet {record.job}", ended, _why(ended), hint)


def _why(ended: Ended) -> str:
    return ended.last_line.removeprefix("error: ") or ended.how


API = "jobset.x-k8s.io/v1alpha2"
NODES = "node"
"""Name of the replicated Job, so that pod 3 of slice 0 is JOBSET-node-0-3."""

CONTAINER = "aifx"
CACHE = "/cache"
TPU_RESOURCE = "google.com/tpu"
STOP_MARGIN_S = 30
"""Time between the signal and the step's end, and between the saved checkpoint and the process's end."""

MAX_POD_NAME = 63
LAST_LINES = 10_000
"""Of a log, among which is what a run reports, unless its document is longer."""
POD_SUFFIX = len("-abcde")  # Kubernetes makes pods' names unique

FINAL_CODES = (int(ExitCode.VERDICT), int(ExitCode.UNABLE), int(ExitCode.BUG))
"""Another start would end the same way."""

RESERVED = (
    *OURS,
    "AIFX_CACHE_DIR",
    "AIFX_COORDINATOR_HOST",
    "AIFX_LAUNCH_ID",
    "JOBSET_NAME",
    "REPLICATED_JOB_NAME",
    "JOB_INDEX",
    "PROCESSES_IN_JOB",
)
DOCTOR = "aifx doctor; test $? -ne 1"
"""Exit code 2 is no reason to stop: without privileges, a pod cannot see everything."""


@dataclass(frozen=True)
class Names:
    """The parts of the names of a JobSet's objects, and the number of objects.

    Attributes:
        nodes: of each slice.
        slices: of TPUs; 1 for anything else.
    """

    jobset: str
    nodes: int
    slices: int


def render_jobset(config: Config, name: str, arguments: Sequence[str]) -> dict[str, Any]:
    """The manifest of a JobSet that runs `aifx arguments`. Raises UsageError, ConfigError.

    Args:
        name: of the JobSet.
    """
    launch, k8s = config.launch, config.k8s
    _check_settings(launch, k8s)
    names = _names(name, launch, k8s)
    metadata: dict[str, Any] = {"name": name, "labels": {"app.kubernetes.io/managed-by": "aifx"}}
    if k8s.namespace is not None:
        metadata["namespace"] = k8s.namespace
    if k8s.queue is not None:
        metadata["labels"]["kueue.x-k8s.io/queue-name"] = k8s.queue
    if k8s.tpu is not None:
        # Each Job, which is a slice, gets a node pool for itself.
        metadata["annotations"] = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
    pod = _pod(launch, k8s, config.checkpoint.stop_timeout_s, names, arguments)
    return {
        "apiVersion": API,
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {
            "coordinator": {"replicatedJob": NODES, "jobIndex": 0, "podIndex": 0},
            # Processes look each other up before any of them is ready.
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
            "failurePolicy": _failure_policy(launch.restarts),
            "replicatedJobs": [{"name": NODES, "replicas": names.slices, "template": {"spec": _job(names, pod)}}],
        },
    }


def _names(name: str, launch: LaunchSection, k8s: KubernetesSection) -> Names:
    nodes = launch.nodes if k8s.tpu is None else k8s.slice_chips // k8s.tpu_chips_per_node
    names = Names(name, nodes, k8s.tpu_slices)
    rest = len(f"-{NODES}-{names.slices - 1}-{names.nodes - 1}") + POD_SUFFIX
    longest = MAX_POD_NAME - rest
    if not re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", name) or len(name) > longest:
        why = f"it must be a label of RFC 1123 that begins with a letter, of at most {longest} characters"
        plain = re.sub(r"[^a-z0-9-]+", "-", name.lower()).strip("-")[:longest].strip("-")
        better = plain if re.match("[a-z]", plain) else f"run-{plain}"[:longest].strip("-")
        raise UsageError(f"a JobSet cannot be named {escape_controls(name)!r}", why, f"--name {better}")
    return names


def _failure_policy(restarts: int) -> dict[str, Any]:
    """Rules for failed Jobs, the first that matches. A message is compared as well, so that a Kubernetes that writes
    other ones restarts a limited number of times."""
    codes = "|".join(map(str, FINAL_CODES))
    return {
        "maxRestarts": restarts,
        "rules": [
            {
                "name": "final",
                "action": "FailJobSet",
                "onJobFailureReasons": ["PodFailurePolicy"],
                "onJobFailureMessagePatterns": [f"exit code ({codes}) "],
            },
            {
                "name": "preempted",
                "action": "RestartJobSetAndIgnoreMaxRestarts",
                "onJobFailureReasons": ["PodFailurePolicy"],
                "onJobFailureMessagePatterns": [f"exit code {int(ExitCode.PREEMPTED)} ", "DisruptionTarget"],
            },
        ],
    }


def _job(names: Names, pod: Mapping[str, Any]) -> dict[str, Any]:
    def on_exit(codes: Sequence[int]) -> dict[str, Any]:
        values = {"containerName": CONTAINER, "operator": "In", "values": list(codes)}
        return {"action": "FailJob", "onExitCodes": values}

    disrupted = {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    return {
        "completions": names.nodes,
        "parallelism": names.nodes,
        "completionMode": "Indexed",
        "backoffLimit": 0,  # a pod alone cannot be started again: the others wait for the one that was lost
        "podFailurePolicy": {"rules": [on_exit([int(ExitCode.PREEMPTED)]), on_exit(FINAL_CODES), disrupted]},
        "template": {"spec": pod},
    }


def _pod(
    launch: LaunchSection, k8s: KubernetesSection, stop_timeout_s: float, names: Names, arguments: Sequence[str]
) -> dict[str, Any]:
    own, shared, pod = _base(launch, k8s, stop_timeout_s)
    if launch.doctor:
        doctor = {"name": "doctor", "image": launch.image, "command": ["sh", "-c", DOCTOR], "env": own}
        pod["initContainers"] = [doctor | shared]
    # The launch is the JobSet itself, whose starts are counted: the last ones must have brought the run further.
    supervise = ["launch", "node", "--id", "$(AIFX_LAUNCH_ID)", "-n", str(launch.processes_per_node), "--"]
    train = {
        "name": CONTAINER,
        "image": launch.image,
        "command": ["aifx", *supervise],
        "args": [literal(word) for word in arguments],
        "env": [*own, *_job_variables(names)],
    }
    pod["containers"] = [train | shared]
    pod["volumes"] = list(_volumes(k8s))
    return pod


def pod_of(
    launch: LaunchSection,
    k8s: KubernetesSection,
    stop_timeout_s: float,
    arguments: Sequence[str],
    folders: Mapping[str, str],
) -> dict[str, Any]:
    """A pod that runs `aifx arguments` alone. Raises UsageError, ConfigError.

    Args:
        folders: of the project that the claim of runs keeps, with the name that each has there.
    """
    _check_settings(launch, k8s)
    own, shared, pod = _base(launch, k8s, stop_timeout_s)
    kept = [{"name": "runs", "mountPath": f"{k8s.project_dir}/{to}", "subPath": at} for to, at in folders.items()]
    container = {
        "name": CONTAINER,
        "image": launch.image,
        "command": ["aifx"],
        "args": [literal(word) for word in arguments],
        "env": own,
    }
    mounts = {"volumeMounts": [*shared["volumeMounts"], *kept]}
    return {**pod, "containers": [container | shared | mounts], "volumes": list(_volumes(k8s))}


def _check_settings(launch: LaunchSection, k8s: KubernetesSection) -> None:
    for key, value in {"launch.image": launch.image, "k8s.runs_claim": k8s.runs_claim}.items():
        if not value:
            raise UsageError(f"{key} is not set", "pods need it", f"--set {key}=NAME, or set it in aifx.toml")


def _base(
    launch: LaunchSection, k8s: KubernetesSection, stop_timeout_s: float
) -> tuple[list[dict[str, Any]], dict[str, Any], dict[str, Any]]:
    """The variables of each container, what else all containers of a pod have, and a pod without containers."""
    selector = dict(k8s.node_selector)
    if k8s.tpu is not None:
        selector["cloud.google.com/gke-tpu-accelerator"] = k8s.tpu
        selector["cloud.google.com/gke-tpu-topology"] = str(k8s.tpu_topology)
    own = list(_own_variables(launch, k8s))
    shared = {
        "workingDir": k8s.project_dir,
        "resources": _resources(launch, k8s),
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [
            {"name": "runs", "mountPath": f"{k8s.project_dir}/runs"},
            {"name": "cache", "mountPath": CACHE},
            {"name": "shm", "mountPath": "/dev/shm"},
        ],
    }
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": math.ceil(stop_timeout_s) + STOP_MARGIN_S,
        "enableServiceLinks": False,
        "securityContext": _security(k8s.user),
    }
    if k8s.service_account is None:
        pod["automountServiceAccountToken"] = False  # no process asks Kubernetes
    else:
        pod["serviceAccountName"] = k8s.service_account
    if selector:
        pod["nodeSelector"] = selector
    if k8s.tolerations:
        pod["tolerations"] = [_toleration(text) for text in k8s.tolerations]
    if k8s.image_pull_secrets:
        pod["imagePullSecrets"] = [{"name": secret} for secret in k8s.image_pull_secrets]
    return own, shared, pod


def _security(user: int) -> dict[str, Any]:
    profile = {"seccompProfile": {"type": "RuntimeDefault"}}
    if user == 0:
        return {"runAsUser": 0, **profile}
    return {
        "runAsNonRoot": True,
        "runAsUser": user,
        "runAsGroup": user,
        "fsGroup": user,
        "fsGroupChangePolicy": "OnRootMismatch",  # not a million files at each start
        **profile,
    }


def _resources(launch: LaunchSection, k8s: KubernetesSection) -> dict[str, Any]:
    """Devices cannot be shared: their requests are their limits. CPU has no limit, since throttling slows each step."""
    devices = dict(k8s.resources)
    if k8s.tpu is not None:
        devices[TPU_RESOURCE] = str(k8s.tpu_chips_per_node)
    elif launch.gpus_per_node:
        devices[k8s.gpu_resource] = str(launch.gpus_per_node)
    memory = {} if k8s.memory is None else {"memory": k8s.memory}
    cpu = {} if k8s.cpu is None else {"cpu": k8s.cpu}
    found = {"requests": {**cpu, **memory, **devices}, "limits": {**memory, **devices}}
    return {key: values for key, values in found.items() if values}


def _own_variables(launch: LaunchSection, k8s: KubernetesSection) -> Iterator[dict[str, Any]]:
    """The user's variables, and the folder of caches."""
    pairs = [variable.partition("=")[::2] for variable in launch.environment]
    given = [name for name, _ in pairs] + list(k8s.secrets)
    for name in given:
        if name in RESERVED or given.count(name) > 1:
            why = "aifx launch sets it itself" if name in RESERVED else "it is set twice"
            raise ConfigError(f"{name} in launch.environment or k8s.secrets", why, "aifx config show")
    yield from ({"name": name, "value": literal(value)} for name, value in pairs)
    for name, place in k8s.secrets.items():
        secret, _, key = place.partition("/")
        yield {"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}
    yield {"name": "AIFX_CACHE_DIR", "value": f"{CACHE}/aifx"}  # the volume itself may be writable by its group


def _job_variables(names: Names) -> Iterator[dict[str, Any]]:
    """The pod's place in its job (`aifx.parallel.processes`)."""
    yield _from_pod("AIFX_LAUNCH_ID", "jobset.sigs.k8s.io/jobset-uid")
    yield _from_pod("AIFX_COORDINATOR_HOST", "jobset.sigs.k8s.io/coordinator")
    yield {"name": "AIFX_COORDINATOR", "value": f"$(AIFX_COORDINATOR_HOST):{PORT}"}
    yield {"name": "AIFX_NUM_PROCESSES", "value": str(names.nodes * names.slices)}
    if names.slices == 1:
        yield _from_pod("AIFX_PROCESS_ID", "batch.kubernetes.io/job-completion-index")
        return
    # Kubernetes does not compute: the pod's number follows from its slice and its place there.
    yield _from_pod("JOBSET_NAME", "jobset.sigs.k8s.io/jobset-name")
    yield _from_pod("REPLICATED_JOB_NAME", "jobset.sigs.k8s.io/replicatedjob-name")
    yield _from_pod("JOB_INDEX", "jobset.sigs.k8s.io/job-index")
    yield {"name": "PROCESSES_IN_JOB", "value": str(names.nodes)}


def _from_pod(name: str, annotation: str) -> dict[str, Any]:
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": f"metadata.annotations['{annotation}']"}}}


def _volumes(k8s: KubernetesSection) -> Iterator[dict[str, Any]]:
    yield {"name": "runs", "persistentVolumeClaim": {"claimName": k8s.runs_claim}}
    if k8s.cache_claim is None:
        yield {"name": "cache", "emptyDir": {}}
    else:
        yield {"name": "cache", "persistentVolumeClaim": {"claimName": k8s.cache_claim}}
    limit = {} if k8s.shm is None else {"sizeLimit": k8s.shm}
    yield {"name": "shm", "emptyDir": {"medium": "Memory", **limit}}


def _toleration(text: str) -> Mapping[str, str]:
    """`team=a:NoSchedule`, as `kubectl taint` writes it."""
    taint, _, effect = text.partition(":")
    key, equals, value = taint.partition("=")
    found = {"key": key, "operator": "Equal", "value": value} if equals else {"key": key, "operator": "Exists"}
    return {**found, "effect": effect} if effect else found


def literal(text: str) -> str:
    """A word that Kubernetes does not expand: it would read `$(NAME)` as a variable, and `$$` as one `$`.

    Raises UsageError for a NUL, which no program can be given.
    """
    if "\0" in text:
        raise UsageError(f"{escape_controls(text)!r} holds a NUL", "no program can be given one")
    return text.replace("$", "$$")


_PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9_./-]*(:[A-Za-z0-9_./-]+)*")
_WORDS = frozenset(("y", "yes", "n", "no", "true", "false", "on", "off", "null"))
"""Words that a reader of YAML 1.1 or 1.2 takes for a boolean or nothing, in lower case."""


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]  # PyYAML has no types
    """Quotes each text that is not a plain word. PyYAML alone would write 1e3 and 08, which others read as numbers."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    is_plain = _PLAIN.fullmatch(text) and text.lower() not in _WORDS
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if is_plain else '"')


_Dumper.add_representer(str, _text)


def to_yaml(data: Any) -> str:
    """A document of dicts, lists, texts, numbers and booleans, in the order in which they are."""
    text: str = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=math.inf)
    return text

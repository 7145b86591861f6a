"""`[launch]`, `[slurm]` and `[k8s]`: the requests of `aifx launch` to a cluster. `[launch]` holds for any cluster.

Each value ends up in a script or a manifest. Words that Slurm reads must match a pattern, so that none of them can be
taken for more than a word. Texts of `[k8s]` have the patterns that Kubernetes itself would check. Everything is quoted
where it is written.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from aifx.config.sections import RESUME_SAFE, Conflict, NonNegativeInt, PositiveInt, Section, setting
from aifx.core.errors import did_you_mean

NAME = r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,99}"
NAMES = rf"{NAME}(,{NAME})*"
NODES = r"[A-Za-z0-9_.,\[\]-]{1,4000}"
SIZE = r"[0-9]{1,12}[KMGT]?"
NUMBER = r"[0-9]{1,9}"
TIME = r"[0-9]{1,9}(-[0-9][0-9]?(:[0-9][0-9]?){0,2}|(:[0-9][0-9]?){1,2})?"
WORDS = r"[A-Za-z0-9_.,:=/*&|()\[\]@%+-]{1,1000}"
"""Characters of Slurm's constraints, licences and dates: no space, quote, backslash, `#` or control character."""

MARGIN_S = 120
"""Least time of a job before the signal: Slurm is up to a minute early, and a job takes time to start."""

FLAG = ""
"""An option without a value."""

SLURM_OPTIONS = {
    "begin": WORDS,
    "constraint": WORDS,
    "contiguous": FLAG,
    "core-spec": NUMBER,
    "cpus-per-gpu": NUMBER,
    "cpus-per-task": NUMBER,
    "deadline": WORDS,
    "dependency": r"[A-Za-z0-9_:,?+-]{1,1000}",
    "exclude": NODES,
    "exclusive": r"(user|mcs|topo)?",
    "gres": WORDS,
    "gres-flags": NAMES,
    "hint": NAME,
    "licenses": WORDS,
    "mail-type": NAMES,
    "mail-user": r"[A-Za-z0-9_.+@-]{1,200}",
    "mcs-label": NAME,
    "mem": SIZE,
    "mem-per-cpu": SIZE,
    "mem-per-gpu": SIZE,
    "mincpus": NUMBER,
    "network": WORDS,
    "nice": rf"(-?{NUMBER})?",
    "nodelist": NODES,
    "prefer": WORDS,
    "priority": NUMBER,
    "reservation": NAMES,
    "spread-job": FLAG,
    "switches": rf"{NUMBER}(@{TIME})?",
    "thread-spec": NUMBER,
    "threads-per-core": NUMBER,
    "tmp": SIZE,
    "use-min-nodes": FLAG,
    "wckey": NAME,
}
"""Options of sbatch that `slurm.options` may set, each with the pattern of its value."""

OWN_KEYS = {
    "account": "slurm.account",
    "container-image": "launch.image",
    "container-mounts": "launch.mounts",
    "gpus-per-node": "launch.gpus_per_node",
    "nodes": "launch.nodes",
    "partition": "slurm.partition",
    "qos": "slurm.qos",
    "requeue": "slurm.requeue",
    "signal": "slurm.signal_ahead_s",
    "time": "slurm.time_limit",
}
"""Options of sbatch that a setting of their own stands for."""

SETTERS = r"(COORDINATOR|NUM_PROCESSES|PROCESS_ID|LAUNCHER)"
"""Names after `AIFX_` of the variables that `aifx launch` itself sets."""

ABSOLUTE = r"/[^,:\x00-\x1f\x7f]{0,1000}"


def _matching(pattern: str, expected: str) -> Callable[[str], str]:
    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(expected)
        return text

    return check


def _option(text: str) -> str:
    """Check an option of sbatch: `NAME` or `NAME=VALUE`."""
    name, equals, value = text.partition("=")
    if name in OWN_KEYS:
        raise ValueError(f"--{name} has a setting of its own: {OWN_KEYS[name]}")
    if (pattern := SLURM_OPTIONS.get(name)) is None:
        raise ValueError(f"it is not an option that may be set here; {did_you_mean(name, SLURM_OPTIONS)}")
    if bool(equals) != bool(value):
        raise ValueError(f"after {name}= comes a value")
    if not re.fullmatch(pattern, value):
        raise ValueError(f"--{name} takes no value" if pattern == FLAG else f"--{name} does not take {value!r}")
    return text


def _mount(text: str) -> str:
    if not re.fullmatch(rf"{ABSOLUTE}:{ABSOLUTE}(:ro|:rw)?", text):
        raise ValueError("it is written /FROM:/TO or /FROM:/TO:ro, without commas")
    return text


def _variable(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,199}=[^\x00-\x1f\x7f]{0,10000}", text):
        raise ValueError("it is written NAME=VALUE, on one line")
    if re.match(f"AIFX_{SETTERS}=", text):
        raise ValueError("aifx launch sets this variable itself")
    return text


Word = Annotated[str, AfterValidator(_matching(rf"({NAMES})?", "letters, digits, '.', '_', '+' and '-' only"))]
Time = Annotated[str, AfterValidator(_matching(rf"({TIME})?", 'minutes, HH:MM:SS, D-HH or D-HH:MM:SS: "2-12:00:00"'))]
Image = Annotated[
    str, AfterValidator(_matching(r"([A-Za-z0-9_./:@#+-]{1,500})?", "the name of an image, or a path without spaces"))
]
File = Annotated[str, AfterValidator(_matching(r"[^\x00-\x1f\x7f]{0,1000}", "a path on one line"))]


class LaunchSection(Section):
    """Defaults of `aifx launch slurm`: how many processes, and what they run in."""

    nodes: PositiveInt = setting(1, "Machines.", RESUME_SAFE)
    processes_per_node: PositiveInt = setting(1, "Processes on each of them, which share its GPUs.", RESUME_SAFE)
    gpus_per_node: NonNegativeInt = setting(0, "GPUs that are asked for on each machine; 0 asks for none.", RESUME_SAFE)
    image: Image = setting("", "Container image to run in; none if empty.", RESUME_SAFE)
    mounts: tuple[Annotated[str, AfterValidator(_mount)], ...] = setting(
        (), "Folders for the container besides the project's, each as /FROM:/TO.", RESUME_SAFE
    )
    environment: tuple[Annotated[str, AfterValidator(_variable)], ...] = setting(
        (), "Variables of the processes, each as NAME=VALUE. No secrets: files are copied.", RESUME_SAFE
    )
    doctor: bool = setting(True, "Check each machine with `aifx doctor` first.", RESUME_SAFE)
    restarts: NonNegativeInt = setting(
        3, "Starts after a loss on the machines that the job has, before it goes back to the queue.", RESUME_SAFE
    )


class SlurmSection(Section):
    """Defaults of `aifx launch slurm`: what Slurm is asked for."""

    account: Word = setting("", "Account that is charged; your default if empty.", RESUME_SAFE)
    partition: Word = setting("", "Partitions, the cluster's default if empty.", RESUME_SAFE)
    qos: Word = setting("", "Quality of service; your default if empty.", RESUME_SAFE)
    time_limit: Time = setting("", "Time limit, such as 2-12:00:00; the partition's if empty.", RESUME_SAFE)
    signal_ahead_s: Annotated[int, Field(ge=1, le=65535)] = setting(
        120, "Seconds before the limit at which the run saves and the job goes back to the queue.", RESUME_SAFE
    )
    requeue: bool = setting(True, "Go back to the queue when the limit is near or restarts did not help.", RESUME_SAFE)
    setup_script: File = setting(
        "", "File that the job's shell reads first, to load modules or an environment.", RESUME_SAFE
    )
    options: tuple[Annotated[str, AfterValidator(_option)], ...] = setting(
        (), 'More options of sbatch, each as NAME or NAME=VALUE, such as "constraint=a100".', RESUME_SAFE
    )

    def conflicts(self, config: Any) -> Iterator[Conflict]:
        # The defaults concern only jobs of Slurm, which `aifx launch slurm` checks.
        if any(config.origin(f"slurm.{key}").kind != "default" for key in type(self).model_fields):
            yield from self.job_conflicts(config)

    def job_conflicts(self, config: Any) -> Iterator[Conflict]:
        """The conflicts of a job with these settings."""
        if self.signal_ahead_s <= config.checkpoint.stop_timeout_s:
            yield Conflict(
                ("slurm.signal_ahead_s", "checkpoint.stop_timeout_s"),
                f"slurm.signal_ahead_s = {self.signal_ahead_s} leaves no time for "
                f"checkpoint.stop_timeout_s = {config.checkpoint.stop_timeout_s:g}",
                "the run saves between the signal and the end of the job",
            )
        limit_s = seconds_of(self.time_limit)
        if limit_s is not None and limit_s < self.signal_ahead_s + MARGIN_S:
            yield Conflict(
                ("slurm.time_limit", "slurm.signal_ahead_s"),
                f"slurm.time_limit = {self.time_limit!r} is too short for slurm.signal_ahead_s = {self.signal_ahead_s}",
                f"Slurm sends the signal up to a minute early, and a job of less than {MARGIN_S:g} s gets nowhere",
            )


def seconds_of(limit: str) -> int | None:
    """The seconds of a time limit of Slurm; None for none."""
    if not limit:
        return None
    days, dash, clock = limit.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    if dash:  # D-HH, D-HH:MM, D-HH:MM:SS
        hours, minutes, seconds = [*parts, 0, 0][:3]
        return ((int(days) * 24 + hours) * 60 + minutes) * 60 + seconds
    if len(parts) == 3:
        return (parts[0] * 60 + parts[1]) * 60 + parts[2]
    return parts[0] * 60 + (parts[1] if len(parts) == 2 else 0)


_LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_SUBDOMAIN = rf"{_LABEL}(\.{_LABEL})*"
_WORD = r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?"
_KEY = rf"({_SUBDOMAIN}/)?{_WORD}"


def _text(pattern: str, example: str, max_length: int = 253) -> Any:
    return Field(pattern=f"^({pattern})$", examples=[example], max_length=max_length)


DnsLabel = Annotated[str, _text(_LABEL, "team-a", 63)]
"""RFC 1123."""

ObjectName = Annotated[str, _text(_SUBDOMAIN, "aifx-runs")]
"""RFC 1123, for most objects of Kubernetes."""

Variable = Annotated[str, _text(r"[A-Za-z_][A-Za-z0-9_]*", "NCCL_DEBUG")]
LabelKey = Annotated[str, _text(_KEY, "example.com/pool", 317)]
LabelValue = Annotated[str, _text(rf"({_WORD})?", "a100", 63)]
Quantity = Annotated[str, _text(r"[0-9]{1,12}(\.[0-9]{1,3})?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?", "64Gi", 20)]
Toleration = Annotated[
    str, _text(rf"{_KEY}(=({_WORD})?)?(:(NoSchedule|PreferNoSchedule|NoExecute))?", "team=a:NoSchedule", 400)
]
SecretKey = Annotated[str, _text(rf"{_SUBDOMAIN}/[A-Za-z0-9._-]{{1,253}}", "wandb/api-key", 507)]
Folder = Annotated[str, _text(r"(/[A-Za-z0-9_][A-Za-z0-9._-]*)+", "/project", 500)]
Topology = Annotated[str, _text(r"[1-9][0-9]{0,2}x[1-9][0-9]{0,2}(x[1-9][0-9]{0,2})?", "4x4")]


class KubernetesSection(Section):
    """Settings of `aifx launch k8s`."""

    namespace: DnsLabel | None = setting(None, "Namespace; if not set, that of kubectl's context.", RESUME_SAFE)
    queue: DnsLabel | None = setting(None, "Local queue of Kueue.", RESUME_SAFE)
    runs_claim: ObjectName | None = setting(
        None, "PersistentVolumeClaim that all pods mount as the project's runs/. Required.", RESUME_SAFE
    )
    cache_claim: ObjectName | None = setting(
        None, "PersistentVolumeClaim of the caches. If not set, each pod starts with empty ones.", RESUME_SAFE
    )
    project_dir: Folder = setting("/project", "Folder of the project in the image.", RESUME_SAFE)
    user: NonNegativeInt = setting(
        10001, "Numeric user and group of the processes and of their volumes. 0 is root.", RESUME_SAFE
    )
    cpu: Quantity | None = setting(None, "CPU cores of each pod: request.", RESUME_SAFE)
    memory: Quantity | None = setting(None, "Memory of each pod: request and limit.", RESUME_SAFE)
    shm: Quantity | None = setting(
        None, "Largest size of /dev/shm, which counts as memory; if not set, the pod's memory.", RESUME_SAFE
    )
    gpu_resource: LabelKey = setting("nvidia.com/gpu", "Resource that counts GPUs.", RESUME_SAFE)
    resources: dict[LabelKey, Quantity] = setting(
        {}, "Further resources of each pod, such as the adapters of a network.", RESUME_SAFE
    )
    tpu: LabelValue | None = setting(
        None, 'Type of TPU, as the label cloud.google.com/gke-tpu-accelerator has it: "tpu-v6e-slice".', RESUME_SAFE
    )
    tpu_topology: Topology | None = setting(None, "Chips of a slice along each axis. Required with tpu.", RESUME_SAFE)
    tpu_chips_per_node: PositiveInt = setting(4, "TPU chips of each node.", RESUME_SAFE)
    tpu_slices: PositiveInt = setting(1, "TPU slices, each in a node pool of its own.", RESUME_SAFE)
    node_selector: dict[LabelKey, LabelValue] = setting({}, "Labels that nodes must have.", RESUME_SAFE)
    tolerations: tuple[Toleration, ...] = setting(
        (), "Taints that the pods tolerate, as KEY[=VALUE][:EFFECT].", RESUME_SAFE
    )
    secrets: dict[Variable, SecretKey] = setting(
        {}, "Environment variables from Secrets, each as SECRET/KEY.", RESUME_SAFE
    )
    image_pull_secrets: tuple[ObjectName, ...] = setting((), "Secrets that the image is pulled with.", RESUME_SAFE)
    service_account: ObjectName | None = setting(None, "Service account of the pods.", RESUME_SAFE)

    def conflicts(self, config: Any) -> Iterator[Conflict]:
        launch = config.launch
        if (self.tpu is None) != (self.tpu_topology is None):
            keys = ("k8s.tpu", "k8s.tpu_topology")
            there, missing = keys if self.tpu is not None else reversed(keys)
            yield Conflict(keys, f"{there} needs {missing}", "a slice is a type of TPU and a topology")
        if self.tpu is None:
            if self.tpu_slices > 1:
                problem = f"k8s.tpu_slices = {self.tpu_slices} needs k8s.tpu"
                yield Conflict(("k8s.tpu_slices", "k8s.tpu"), problem, "only TPUs have slices")
            return
        if launch.gpus_per_node:
            problem = f"launch.gpus_per_node = {launch.gpus_per_node}, and k8s.tpu = {self.tpu!r}"
            yield Conflict(("launch.gpus_per_node", "k8s.tpu"), problem, "a node has GPUs or TPUs")
        if launch.nodes > 1:
            problem = f"launch.nodes = {launch.nodes}, and k8s.tpu_topology = {self.tpu_topology!r}"
            reason = "the topology and k8s.tpu_chips_per_node say how many nodes a slice has"
            yield Conflict(("launch.nodes", "k8s.tpu_topology"), problem, reason)
        if self.slice_chips % self.tpu_chips_per_node:
            problem = f"k8s.tpu_topology = {self.tpu_topology!r} cannot be divided"
            reason = f"it has {self.slice_chips} chips, and each node has {self.tpu_chips_per_node}"
            yield Conflict(("k8s.tpu_topology", "k8s.tpu_chips_per_node"), problem, reason)

    @property
    def slice_chips(self) -> int:
        """Chips of a slice."""
        return math.prod(map(int, (self.tpu_topology or "1").split("x")))

"""`[k8s]`: what `aifx launch k8s` asks Kubernetes for, in addition to `[launch]`, which holds for any cluster.

Each text has the pattern that Kubernetes itself would check; in the manifest, all of them are quoted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import Field

from aifx.config.sections import RESUME_SAFE, Conflict, NonNegativeInt, PositiveInt, Section, setting

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

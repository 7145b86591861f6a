"""NVIDIA GPUs: the facts of NVML, of the PCI bus and of the machine."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from aifx.core.facts import Absent, Facts, Unknown, from_document
from aifx.health.host import Host
from aifx.health.probing import counted, first_missing, listed, probe, text_of
from aifx.machine.catalogue import Accelerator, find_accelerator

PCI = "/sys/bus/pci/devices"
NVIDIA = "0x10de"
CLASSES = {"gpus": ("0x0300", "0x0302"), "controllers": ("0x0302",), "switches": ("0x0680",)}
"""Classes of PCI devices: 0x0300 may drive a display, 0x0302 only computes, 0x0680 is an NVSwitch."""

FABRIC_MANAGER = "nvidia-fabricmanager"
NVML_LIMIT_S = 8.0
CONFINED = re.compile(r"docker|kubepods|containerd|libpod|lxc|/job_\d+")
"""Control groups that may hide GPUs and processes of the machine: containers and Slurm's jobs."""
PCIE_GT_S = {1: 2.5, 2: 5, 3: 8, 4: 16, 5: 32, 6: 64}


@probe("nvidia", "gpus", "gpu_count", limit_s=NVML_LIMIT_S + 6)
def collect(host: Host) -> dict[str, Any]:
    answer = from_document(host.ask("aifx.machine.nvml", name="nvml", limit_s=NVML_LIMIT_S))
    buses = _pci(host)
    state = answer.get("state") if isinstance(answer, Mapping) else None
    is_missing = isinstance(answer, Absent) or state in ("no_library", "not_loaded")
    if is_missing and not buses["gpus"]:
        absent = dict.fromkeys(("nvidia", "gpus"), Absent("there is no NVIDIA GPU"))
        return absent | {"gpu_count": {"nvml": 0, "pci": 0}}
    if not isinstance(answer, Mapping):
        why = answer if isinstance(answer, (Absent, Unknown)) else Unknown("the report of NVML is not a table")
        return {"nvidia": why, "gpus": why, "gpu_count": {"nvml": why, "pci": len(buses["gpus"])}}
    gpus = answer["gpus"]
    gpus = [_gpu(gpu, gpus) for gpu in gpus] if isinstance(gpus, list) else gpus
    count = answer["count"] if isinstance(state, Unknown) or state == "ok" else 0
    gpu_count = {"nvml": count, "pci": len(buses["gpus"])}
    return {"nvidia": _node(host, answer, gpus, buses), "gpus": gpus, "gpu_count": gpu_count}


def _pci(host: Host) -> dict[str, list[str]]:
    """Return addresses of NVIDIA's GPUs without those of virtual machines, of compute-only GPUs, and of switches."""
    found: dict[str, list[str]] = {group: [] for group in CLASSES}
    for name in listed(host, PCI):
        if host.read(f"{PCI}/{name}/vendor") != NVIDIA:
            continue
        driver = host.link(f"{PCI}/{name}/driver")
        if isinstance(driver, str) and driver.rsplit("/", 1)[-1] == "vfio-pci":
            continue
        kind = text_of(host, f"{PCI}/{name}/class")
        for group, classes in CLASSES.items():
            if kind.startswith(classes):
                found[group].append(name)
    return found


def _node(host: Host, answer: Mapping[str, Any], gpus: Any, buses: Mapping[str, list[str]]) -> Facts:
    tables = gpus if isinstance(gpus, list) else []
    visible = {gpu["pci_bus_id"] for gpu in tables if isinstance(gpu["pci_bus_id"], str)}
    # A lost GPU does not report its address, and has its own finding.
    hidden = [bus for bus in buses["gpus"] if bus not in visible] if len(visible) == len(tables) else []
    confined = _is_confined(host)
    needs_manager = bool(buses["switches"]) and not any(gpu["in_rack"] for gpu in tables) and not confined
    return {
        **{name: answer[name] for name in ("state", "driver", "nvml", "cuda", "count")},
        # A display card may serve only displays.
        "driver_wanted": bool(buses["controllers"]) or answer["state"] != "no_library",
        "is_confined": confined,
        "pci_count": len(buses["gpus"]),
        **counted(hidden=hidden, names=_distinct(tables, "name"), vbios=_distinct(tables, "vbios")),
        "switches": len(buses["switches"]),
        "needs_fabric_manager": needs_manager,
        "fabric_manager": _fabric_manager(host) if needs_manager else Absent("this system needs none"),
    }


def _distinct(gpus: list[Facts], name: str) -> list[str]:
    return sorted({gpu[name] for gpu in gpus if isinstance(gpu[name], str)})


def _is_confined(host: Host) -> bool:
    environ = host.environ()
    declared = any(name in environ for name in ("KUBERNETES_SERVICE_HOST", "container"))
    marked = any(host.exists(path) for path in ("/.dockerenv", "/run/.containerenv"))
    return declared or marked or CONFINED.search(text_of(host, "/proc/self/cgroup")) is not None


def _fabric_manager(host: Host) -> str | Absent | Unknown:
    """Return the state of its systemd service."""
    answer = host.run("systemctl", "show", "--property=ActiveState", f"{FABRIC_MANAGER}.service")
    state = re.search(r"ActiveState=(\w+)", answer) if isinstance(answer, str) else None
    silent = Unknown(f"systemctl does not report the state of {FABRIC_MANAGER}", f"systemctl status {FABRIC_MANAGER}")
    return state[1] if state else silent if isinstance(answer, str) else answer


def _gpu(gpu: Mapping[str, Any], all_gpus: list[Mapping[str, Any]]) -> Facts:
    """Return one GPU's facts with its name, and facts that follow from them."""
    bus, links, mig = gpu["pci_bus_id"], gpu["links"], gpu["mig"]["current"]
    chip = find_accelerator(gpu["name"]) if isinstance(gpu["name"], str) else None
    return {
        **gpu,
        "device": f"GPU{gpu['index']}" + (f" ({bus})" if isinstance(bus, str) else ""),
        "in_rack": chip is not None and chip.in_rack,
        "over_c2c": chip is not None and chip.over_c2c,
        "is_partitioned": False if isinstance(mig, Absent) else mig,
        "pcie": {**gpu["pcie"], "replays_allowed_per_min": _replays_allowed(gpu["pcie"])},
        "num_processes": len(gpu["processes"]) if isinstance(gpu["processes"], list) else gpu["processes"],
        "nvlink": _nvlink(gpu, all_gpus, chip),
        "fabric": _fabric(gpu["fabric"]),
        "links": [{**link, "device": f"link {link['link']}"} for link in links] if isinstance(links, list) else links,
    }


def _nvlink(gpu: Mapping[str, Any], all_gpus: list[Mapping[str, Any]], chip: Accelerator | None) -> Any:
    links = gpu["links"]
    module_links = chip.nvlinks if chip else None
    is_silent = isinstance(links, Absent) and gpu["state"] == "ok" and gpu["virtualization"] != "vgpu"
    if is_silent and module_links and len(all_gpus) > 1:
        links = []  # if every link is down, NVML reports none (gpud#1085)
    if not isinstance(links, list):
        return links if isinstance(links, (Absent, Unknown)) else Unknown("the links are not a list")
    active = _active(gpu)
    product = gpu["name"] if isinstance(gpu["name"], str) else "this GPU"
    unknown_speed = Absent(f"aifx does not know the speed of the NVLinks of {product}")
    failed = next((link["state"] for link in links if isinstance(link["state"], Unknown)), None)
    # A single module in a virtual machine with one GPU has no peer.
    whole = module_links if len(all_gpus) > 1 or active else None
    expected = whole or max(_active(other) for other in all_gpus if other["name"] == gpu["name"])
    return {
        "count": len(links),
        "expected": expected,
        "expected_mb_s": (chip and chip.nvlink_mb_s) or unknown_speed,
        "active": failed or active,
        "inactive": [link["link"] for link in links if not _is_up(link["state"])],
        "missing": failed or max(expected - active, 0),
    }


def _active(gpu: Mapping[str, Any]) -> int:
    return sum(_is_up(link["state"]) for link in gpu["links"]) if isinstance(gpu["links"], list) else 0


def _is_up(state: Any) -> bool:
    return isinstance(state, str) and state != "inactive"


def _fabric(fabric: Any) -> Any:
    """Add whether the GPU has a cluster and a clique: one that has joined a fabric across nodes has both."""
    if not isinstance(fabric, Mapping):
        return fabric
    cluster, clique = fabric["cluster"], fabric["clique"]
    has_identity = bool(cluster.strip("0-")) and clique != 0 if isinstance(cluster, str) else cluster
    return {**fabric, "has_identity": has_identity}


def _replays_allowed(pcie: Mapping[str, Any]) -> Any:
    """Return the replays per minute at the bit error rate of 10^-12 that PCI Express allows."""
    generation, width = pcie["max_generation"], pcie["max_width"]
    if missing := first_missing(generation, width):
        return missing
    if generation not in PCIE_GT_S:
        return Unknown(f"PCIe {generation} is unknown to this version of aifx")
    return math.ceil(PCIE_GT_S[generation] * 1e9 * 60 * 1e-12 * width)

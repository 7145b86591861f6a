"""The driver, the number of GPUs, their state and set-up."""

import json

from health_machines.gpus import FABRIC_MANAGER, NVML, pci_device
from health_trees import Case

SXM, PCIE, NVL, VM, RACK = (
    "8xH100 SXM",
    "2xA100 PCIe without bridges",
    "4xH100 NVL with bridges",
    "L4 VM",
    "GB200 without a fabric-manager daemon",
)
BUS = "0000:17:00.0"


def gpu(index, **values):
    """Values of one GPU, `a__b` for b in a, `links__3__c` for c of link 3."""

    def change(tree):
        document = json.loads(tree[NVML])
        for path, value in values.items():
            inner = document["gpus"][index]
            *way, last = path.split("__")
            for key in way:
                inner = inner[int(key) if key.isdigit() else key]
            assert last in inner, path
            inner[last] = value
        tree[NVML] = json.dumps(document)

    return change


def together(*changes):
    def change(tree):
        for one in changes:
            one(tree)

    return change


def rate(rule, machine, index, **values):
    """A case whose counters were zero ten minutes ago."""
    return Case(rule, machine, gpu(index, **values), before=gpu(index, **dict.fromkeys(values, 0)))


def without_driver(state):
    why = {"$absent": "the NVIDIA kernel module is not loaded"}
    document = {"state": state, **dict.fromkeys(("driver", "nvml", "cuda", "count", "gpus"), why)}
    return {NVML: json.dumps(document)}


def gone(tree):
    """GPU 7 is on the PCI bus, and NVML does not show it."""
    document = json.loads(tree[NVML])
    document["gpus"].pop()
    document["count"] = 7
    tree[NVML] = json.dumps(document)


def lost(tree):
    document = json.loads(tree[NVML])
    why = {"$absent": "the GPU is lost"}
    silent = {name: _silent(value, why) for name, value in document["gpus"][3].items()}
    document["gpus"][3] = silent | {"state": "lost", "index": 3}
    tree[NVML] = json.dumps(document)


def _silent(value, why):
    tables = isinstance(value, dict) and "$absent" not in value
    return {name: _silent(inner, why) for name, inner in value.items()} if tables else why


CASES = [
    Case("gpus.count.expected", SXM, {}, site={"expected": {"gpus": 9}}),
    Case("gpus.count.expected", "server", {}, site={"expected": {"gpus": 8}}),
    Case("nvidia.driver.library_mismatch", SXM, without_driver("library_mismatch")),
    Case("nvidia.driver.unusable", SXM, without_driver("not_loaded")),
    Case("nvidia.driver.unusable", "server", without_driver("no_library") | pci_device(BUS, "0x030200", "nouveau")),
    Case("nvidia.driver.absent", "server", without_driver("no_library") | pci_device(BUS, "0x030000", "nouveau")),
    Case("nvidia.driver.expected", VM, {}, site={"expected": {"nvidia_driver": "570.124.06"}}),
    Case("nvidia.gpus.missing", SXM, gone),
    Case("nvidia.gpu.lost", SXM, lost),
    Case("nvidia.gpu.reset_required", PCIE, gpu(1, state="reset_required")),
    Case("nvidia.recovery.reset", SXM, gpu(2, recovery_action="reset", ecc__uncorrected_volatile=1)),
    Case("nvidia.recovery.reboot", SXM, gpu(2, recovery_action="reboot")),
    Case("nvidia.recovery.reboot", SXM, gpu(2, recovery_action="system_reboot")),
    Case("nvidia.recovery.drain_p2p", SXM, gpu(2, recovery_action="drain_p2p")),
    Case("nvidia.recovery.drain_and_reset", SXM, gpu(2, recovery_action="drain_and_reset")),
    Case("nvidia.recovery.other", RACK, gpu(2, recovery_action="recover_imex_domain")),
    Case("nvidia.inforom.corrupt", PCIE, gpu(0, inforom_state="corrupt")),
    Case("nvidia.compute_mode.prohibited", VM, gpu(0, compute_mode="prohibited")),
    Case("nvidia.persistence.off", SXM, gpu(5, persistence=False)),
    Case(
        "nvidia.processes.leftover",
        SXM,
        gpu(5, processes=[{"pid": 4242, "name": "python", "memory_mib": 61_000}], memory__used_mib=61_400),
        site={"expected": {"gpu_processes": 0}},
    ),
    Case("nvidia.memory.leftover", SXM, gpu(5, memory__used_mib=412)),
    Case("nvidia.mig.pending", SXM, gpu(5, mig__pending=True)),
    Case("nvidia.vbios.mixed", SXM, gpu(5, vbios="96.00.89.00.01")),
    Case("nvidia.gpus.mixed", PCIE, gpu(1, name="NVIDIA A100-PCIE-40GB", vbios="92.00.25.00.08")),
    Case("nvidia.fabric.manager", SXM, {FABRIC_MANAGER: "ActiveState=failed\n"}),
]

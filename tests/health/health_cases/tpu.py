import json

from health_trees import Case

VM = "TPU v5e VM"
PCI = "sys/bus/pci/devices"
BOUNDS = json.dumps({"TPU_CHIPS_PER_HOST_BOUNDS": "2,4,1"})

CASES = [
    Case("tpu.chips.expected", VM, {f"{PCI}/0000:00:06.0": None, "dev/vfio/2": None}, site={"expected": {"tpus": 8}}),
    Case("tpu.chips.promised", VM, {f"{PCI}/0000:00:06.0": None, "aifx-captured/environ.json": BOUNDS}),
    Case("tpu.chips.odd", VM, {f"{PCI}/0000:00:06.0": None}),
    Case("tpu.device_files.missing", VM, {"dev/vfio": None}),
    Case("tpu.device_files.denied", VM, {"aifx-captured/tpu_denied.json": "8"}),
    Case("tpu.libtpu.missing", VM, {"aifx-captured/libtpu.json": '""'}),
    Case("tpu.lock.stale", VM, {"tmp/libtpu_lockfile": ""}),
    Case(
        "tpu.chips.held",
        VM,
        {"proc/4711/comm": "python3\n", "proc/4711/fd/7": "-> /dev/vfio/3", "tmp/libtpu_lockfile": ""},
    ),
    Case("tpu.huge_pages.off", VM, {"sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never\n"}),
]

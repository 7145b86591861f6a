"""Machines with NVIDIA GPUs."""

from __future__ import annotations

import json

from health_machines.jax_stack import jax_on_gpus
from health_machines.linux import server
from health_machines.nvml_documents import A100_PCIE, DRIVER, GB200, H100, H100_NVL, L4, Product, document

NVML = "aifx-captured/nvml.json"
FABRIC_MANAGER = "aifx-captured/systemctl_show_--propertyActiveState_nvidia-fabricmanager.service.txt"
H100_BUSES = [f"0000:{bus}:00.0" for bus in ("1b", "43", "52", "61", "9d", "c3", "d1", "df")]
SWITCH_BUSES = [f"0000:{bus}:00.0" for bus in ("07", "08", "09", "0a")]
GB200_BUSES = ["0008:01:00.0", "0009:01:00.0", "0018:01:00.0", "0019:01:00.0"]


def machine_of(product: Product, addresses: list[str]) -> dict[str, str]:
    tree = server() | jax_on_gpus(product.name, len(addresses), DRIVER)
    for address in addresses:
        tree |= pci_device(address, "0x030200", "nvidia")
    return tree | {NVML: json.dumps(document(product, addresses))}


def pci_device(address: str, kind: str, driver: str) -> dict[str, str]:
    folder = f"sys/bus/pci/devices/{address}"
    return {
        f"{folder}/vendor": "0x10de\n",
        f"{folder}/class": f"{kind}\n",
        f"{folder}/driver": f"-> ../../../bus/pci/drivers/{driver}",
    }


def h100_sxm() -> dict[str, str]:
    """An HGX H100: eight modules and four switches."""
    tree = machine_of(H100, H100_BUSES) | {FABRIC_MANAGER: "ActiveState=active\n"}
    for address in SWITCH_BUSES:
        tree |= pci_device(address, "0x068000", "nvidia-nvswitch")
    return tree


def a100_pcie() -> dict[str, str]:
    """Two cards, nothing on their NVLink fingers."""
    return machine_of(A100_PCIE, ["0000:17:00.0", "0000:ca:00.0"])


def h100_nvl() -> dict[str, str]:
    """Four cards, in pairs under three bridges, which use 12 of a card's 18 links."""
    return machine_of(H100_NVL, ["0000:41:00.0", "0000:61:00.0", "0000:81:00.0", "0000:a1:00.0"])


def l4_vm() -> dict[str, str]:
    """A virtual machine that one card was passed to."""
    tree = machine_of(L4, ["0000:00:03.0"])
    cpuinfo = tree["proc/cpuinfo"]
    bare = ("cpufreq/", "thermal_throttle/", "/edac/")
    return {path: text for path, text in tree.items() if not any(part in path for part in bare)} | {
        "proc/cpuinfo": cpuinfo.replace("flags\t\t: fpu", "flags\t\t: fpu hypervisor")
    }


def gb200_tray() -> dict[str, str]:
    """A compute tray of an NVL72: four GPUs, whose fabric the rack's switch trays keep."""
    return machine_of(GB200, GB200_BUSES)


MACHINES = {
    "8xH100 SXM": h100_sxm,
    "2xA100 PCIe without bridges": a100_pcie,
    "4xH100 NVL with bridges": h100_nvl,
    "L4 VM": l4_vm,
    "GB200 without a fabric-manager daemon": gb200_tray,
}

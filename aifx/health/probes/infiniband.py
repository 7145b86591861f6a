"""InfiniBand and RoCE ports, the way from them to GPU memory, and what on PCI stands in that way."""

from __future__ import annotations

import platform
import re
from typing import Any

from aifx.health.facts import Absent, Unknown
from aifx.health.host import Host
from aifx.health.probes import Probe
from aifx.health.probes.network import agreed

CARDS = "/sys/class/infiniband"
PCI = "/sys/bus/pci/devices"
COUNTERS = {
    "symbol_errors": "counters/symbol_error",
    "link_downed": "counters/link_downed",
    "link_recoveries": "counters/link_error_recovery",
    "receive_errors": "counters/port_rcv_errors",
    "buffer_overruns": "counters/excessive_buffer_overrun_errors",
    "integrity_errors": "counters/local_link_integrity_errors",
    "not_ready_retries": "hw_counters/rnr_nak_retry_err",
}
GPU_VENDORS = ("0x10de", "0x1002")
FABRIC_GBIT, FAST_GBIT = 100, 400
MANY = 3
"""So many alike that are up make one that never was a fault; one or two may be all that was wired."""

NO_CABLE = ("Disabled", "Polling")


def collect(host: Host) -> dict[str, Any]:
    return {"infiniband": _infiniband(host)}


def _infiniband(host: Host) -> Any:
    names = host.names(CARDS)
    cards = names if isinstance(names, list) else []
    # A virtual function is the machine's that it is given to; here its card is looked at.
    cards = [card for card in cards if not host.exists(f"{CARDS}/{card}/device/physfn")]
    ports = [port for card in cards for port in _ports(host, card)]
    if not ports:
        return names if isinstance(names, Unknown) else Absent("there is no InfiniBand or RoCE port here")
    for port in ports:
        alike = [other for other in ports if other["place"] == port["place"] and other is not port]
        up = [other for other in alike if other["state"] == "ACTIVE"]
        port["peers_up"] = len(up)
        port["peer_rate_gbit"] = agreed([other["rate_gbit"] for other in up])
        was_up = isinstance(port["link_downed"], int) and port["link_downed"] > 0
        has_cable = port["phys_state"] not in NO_CABLE or was_up
        port["is_expected_up"] = has_cable or len(up) >= max(MANY, len(alike) / 2)
    for port in ports:
        del port["place"]
    rates = [port["rate_gbit"] if port["state"] == "ACTIVE" else 0 for port in ports]
    fabric = [port for port, rate in zip(ports, rates, strict=True) if _is_of_fabric(port["layer"], rate)]
    return {
        "ports": ports,
        "port_count": len(ports),
        "active_ports": sum(port["state"] == "ACTIVE" for port in ports),
        "fabric_ports": len(fabric),
        "fast_ports": sum(isinstance(rate, float) and rate >= FAST_GBIT for rate in rates),
        "device_files_missing": _device_files_missing(host),
        "gpudirect": _gpudirect(host),
    }


def _is_of_fabric(layer: Any, rate: Any) -> bool:
    """Whether jobs may use it: drivers of plain network cards make RDMA ports too."""
    return isinstance(rate, float) and (layer == "InfiniBand" or rate >= FABRIC_GBIT)


def _ports(host: Host, card: str) -> list[dict[str, Any]]:
    names = host.names(f"{CARDS}/{card}/ports")
    return [_port(host, card, name) for name in names] if isinstance(names, list) else []


def _port(host: Host, card: str, name: str) -> dict[str, Any]:
    folder = f"{CARDS}/{card}/ports/{name}"
    rate = host.read(f"{folder}/rate")
    gbit = re.match(r"([\d.]+) Gb/sec", rate) if isinstance(rate, str) else None
    missing = Unknown(f"{folder}/rate is strange: {rate[:40]!r}") if isinstance(rate, str) else rate
    kind = next((k for f in ("board_id", "hca_type") if isinstance(k := host.read(f"{CARDS}/{card}/{f}"), str)), "")
    link = host.link(f"{CARDS}/{card}/device")
    function = link.rpartition(".")[2] if isinstance(link, str) else ""
    layer = host.read(f"{folder}/link_layer")
    return {
        "device": f"{card}/{name}",
        # The second port of a card may be one that nobody uses on any card.
        "place": (kind, str(layer), name, function),
        "layer": layer,
        "state": _word(host.read(f"{folder}/state")),
        "phys_state": _word(host.read(f"{folder}/phys_state")),
        "rate_gbit": float(gbit[1]) if gbit else missing,
        **{name: host.number(f"{folder}/{file}") for name, file in COUNTERS.items()},
    }


def _word(text: str | Absent | Unknown) -> str | Absent | Unknown:
    """ACTIVE of "4: ACTIVE"."""
    return text.partition(":")[2].strip() if isinstance(text, str) else text


def _device_files_missing(host: Host) -> Any:
    names = host.names("/sys/class/infiniband_verbs")
    verbs = [n for n in names if re.fullmatch(r"uverbs\d+", n)] if isinstance(names, list) else []
    if not verbs:
        return Absent("the kernel has made no verbs device") if isinstance(names, list) else names
    return sum(not host.exists(f"/dev/infiniband/{verb}") for verb in verbs)


def _gpudirect(host: Host) -> str | Absent | Unknown:
    """How a card reaches GPU memory: "peermem", "dmabuf" or "none"."""
    text = host.read("/proc/modules")
    modules = {line.split()[0] for line in text.splitlines() if line} if isinstance(text, str) else set()
    if "nvidia" not in modules:
        return Absent("no NVIDIA driver is loaded") if isinstance(text, str) else text
    if modules & {"nvidia_peermem", "nv_peer_mem"}:
        return "peermem"
    driver, release = host.read("/proc/driver/nvidia/version"), host.read("/proc/sys/kernel/osrelease")
    if not isinstance(driver, str):
        return driver
    version = re.match(r"(\d+)\.(\d+)", release) if isinstance(release, str) else None
    is_new = version is not None and (int(version[1]), int(version[2])) >= (5, 12)
    return "dmabuf" if is_new and "Open Kernel Module" in driver else "none"


def collect_acs(host: Host) -> dict[str, Any]:
    return {"pci_acs": _acs(host)}


def _acs(host: Host) -> Any:
    """Bridges that send what one device says to another up to the root instead."""
    info = host.read("/proc/cpuinfo")
    if not isinstance(info, str) or "vendor_id" not in info or (host.is_live and platform.machine() != "x86_64"):
        return Absent("access control services matter between PCI switches of x86 machines")
    if "hypervisor" in info:
        return Absent("a virtual machine needs access control services")
    devices = host.names(PCI)
    gpus = [d for d in devices if _is_gpu(host, d)] if isinstance(devices, list) else []
    if len(gpus) < 2:
        return Absent("there are not several GPUs on PCI")
    text = host.run("lspci", "-vvv", limit_s=2.5)
    if not isinstance(text, str):
        return text
    if "ACSCtl:" not in text and "access denied" in text:
        return Unknown("lspci may not read the capabilities of PCI bridges", "run aifx doctor as root")
    bridges = [
        part.split(None, 1)[0] for part in re.split(r"\n(?=\S)", text) if re.search(r"ACSCtl:\s*SrcValid\+", part)
    ]
    return {"bridges": len(bridges), "names": bridges[:4]}


def _is_gpu(host: Host, device: str) -> bool:
    kind = host.read(f"{PCI}/{device}/class")
    return host.read(f"{PCI}/{device}/vendor") in GPU_VENDORS and isinstance(kind, str) and kind.startswith("0x03")


PROBES = (Probe("infiniband", ("infiniband",), collect), Probe("pci_acs", ("pci_acs",), collect_acs))

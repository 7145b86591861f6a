"""InfiniBand and RoCE ports, and their path to GPU memory."""

from __future__ import annotations

import platform
import re
from typing import Any

from aifx.core.facts import Absent, Unknown
from aifx.health.host import Host
from aifx.health.kernel_log import Log
from aifx.health.probes import Probe
from aifx.health.probes.kernel_log import read_log
from aifx.health.probes.network import agreed
from aifx.machine.catalogue import find_accelerator, has_rails

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
WIDTHS = {
    "symbol_errors": 16,
    "link_downed": 8,
    "link_recoveries": 8,
    "receive_errors": 16,
    "buffer_overruns": 4,
    "integrity_errors": 4,
}
"""Bits of a counter, which stops at its maximum (InfiniBand Architecture Specification, PortCounters; Linux,
drivers/infiniband/core/sysfs.c)."""

GPU_VENDORS = ("0x10de", "0x1002")
FABRIC_GBIT, FAST_GBIT = 100, 400
MANY = 3
"""If this many similar ports are up, one that never came up is a fault. One or two may be all that is wired."""

SYSTEM_PORTS = 8
"""InfiniBand ports of a GPU system with rails, each of `FAST_GBIT` (leptonai/gpud)."""

SLOWER_CARDS = ("MT4113", "MT4115", "MT4117", "MT4119", "MT4121", "MT4123", "MT4125", "MT4127")
"""Connect-IB to ConnectX-6, which have no port of 400 Gb/s."""

NO_STATE = ("DOWN", "NOP")
NO_LINK = ("Disabled", "Polling")
"""Physical states of a port without a cable, or with a cable to nothing."""

MODULE_EVENT = re.compile(r"^mlx5_core (\S+): .{0,80}?Port module event(?:\[error\])?: module \d+, Cable (\w+)")


def collect(host: Host) -> dict[str, Any]:
    found = _infiniband(host)
    return {"infiniband": found, "expected": _expected(host, found) if isinstance(found, dict) else {}}


def _infiniband(host: Host) -> Any:
    names = host.names(CARDS)
    cards = names if isinstance(names, list) else []
    # A virtual function belongs to its guest; here only the card counts.
    cards = [card for card in cards if not host.exists(f"{CARDS}/{card}/device/physfn")]
    ports = [port for card in cards for port in _ports(host, card)]
    if not ports:
        return names if isinstance(names, Unknown) else Absent("there is no InfiniBand or RoCE port")
    cables = _cables(host) if any(_is_down(port) for port in ports) else {}
    groups = _groups(ports)
    for port in ports:
        alike = [other for other in groups[port["place"]] if other is not port]
        up = [other for other in alike if other["state"] == "ACTIVE"]
        port["peers_up"] = len(up)
        port["peer_rate_gbit"] = agreed([other["rate_gbit"] for other in up])
        port["is_odd"] = _is_down(port) and len(up) >= max(MANY, len(alike) / 2)
        reason = _reason_to_be_up(port, cables.get(port["address"]))
        if port["is_odd"] and not _serves_jobs(port, ports):
            reason = reason or f"{len(up)} ports of its kind are up"
        port["is_expected_up"], port["expected_up_because"] = bool(reason), reason or "nothing asks for it"
        port["is_rail"] = _is_rail(port, groups)
        # By the number for the node: of the product, of the site or of similar ports.
        port["is_counted"] = port["is_rail"] or (port["is_odd"] and _serves_jobs(port, ports))
    for port in ports:
        del port["place"]
    rates = [port["rate_gbit"] if port["state"] == "ACTIVE" else 0 for port in ports]
    fabric = [port for port, rate in zip(ports, rates, strict=True) if _is_of_fabric(port["layer"], rate)]
    return {
        "ports": ports,
        "port_count": len(ports),
        "layer": "InfiniBand" if _has_infiniband(ports) else "RoCE",
        "active_ports": sum(port["state"] == "ACTIVE" and _serves_jobs(port, ports) for port in ports),
        "fabric_ports": len(fabric),
        "fast_ports": sum(isinstance(rate, float) and rate >= FAST_GBIT for rate in rates),
        "device_files_missing": _device_files_missing(host),
        "gpudirect": _gpudirect(host),
    }


def _groups(ports: list[dict[str, Any]]) -> dict[tuple[str, ...], list[dict[str, Any]]]:
    """Return ports by their place in cards of one kind."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for port in ports:
        groups.setdefault(port["place"], []).append(port)
    return groups


def _has_infiniband(ports: list[dict[str, Any]]) -> bool:
    return any(port["layer"] == "InfiniBand" for port in ports)


def _serves_jobs(port: dict[str, Any], ports: list[dict[str, Any]]) -> bool:
    """Return whether jobs use the port's layer: InfiniBand if there is any, because RoCE also serves storage."""
    return port["layer"] == "InfiniBand" or not _has_infiniband(ports)


def _is_rail(port: dict[str, Any], groups: dict[tuple[str, ...], list[dict[str, Any]]]) -> bool:
    """Return whether jobs use the ports of this place: the largest group of similar ports of their layer."""
    ports = [one for group in groups.values() for one in group]
    sizes = [len(group) for group in groups.values() if _serves_jobs(group[0], ports)]
    return _serves_jobs(port, ports) and len(groups[port["place"]]) == max(sizes)


def _is_down(port: dict[str, Any]) -> bool:
    return port["state"] in NO_STATE


def _reason_to_be_up(port: dict[str, Any], has_cable: bool | None) -> str:
    """Return why this port alone should have a link; empty if there is no reason."""
    if isinstance(port["link_downed"], int) and port["link_downed"] > 0:
        return "it had a link before"
    if isinstance(port["phys_state"], str) and port["phys_state"] not in NO_LINK:
        return f"its physical state is {port['phys_state']}"
    if has_cable:
        return "its cable is plugged in"
    return ""


def _cables(host: Host) -> dict[str, bool]:
    """Return by PCI address whether a cable is plugged in, as the driver last logged. sysfs does not have this."""
    log = read_log(host)
    events = [MODULE_EVENT.match(line.text) for line in log.lines] if isinstance(log, Log) else []
    return {event[1]: event[2] != "unplugged" for event in events if event}


def _expected(host: Host, infiniband: dict[str, Any]) -> dict[str, Any]:
    """Return the ports of the GPU system, and their rate; otherwise the ports of which most of a kind are up."""
    rails = [port for port in infiniband["ports"] if port["is_rail"] and port["layer"] == "InfiniBand"]
    if len(rails) < MANY or not _is_gpu_system(host):
        odd = sum(port["is_odd"] and port["is_counted"] for port in infiniband["ports"])
        return {"infiniband_ports": infiniband["active_ports"] + odd} if odd else {}
    # Four GPUs of a tray have four ports, and so do eight GPUs in pairs.
    ports = SYSTEM_PORTS if len(rails) > SYSTEM_PORTS / 2 else len(rails)
    cards = {host.read(f"{CARDS}/{port['card']}/hca_type") for port in rails}
    is_slower = bool(cards.intersection(SLOWER_CARDS))
    return {"infiniband_ports": ports} | ({} if is_slower else {"infiniband_gbit": FAST_GBIT})


def _is_gpu_system(host: Host) -> bool:
    """Return whether the GPUs are modules of a system with one InfiniBand port per GPU or per pair."""
    devices = host.names(PCI)
    gpus = [d for d in devices if _is_gpu(host, d)] if isinstance(devices, list) else []
    if any(has_rails(str(host.read(f"{PCI}/{gpu}/device"))) for gpu in gpus):
        return True
    nvml = None if host.is_live else host.ask("aifx.machine.nvml", name="nvml", limit_s=0)
    listed = nvml.get("gpus") if isinstance(nvml, dict) else None
    names = [gpu.get("name") for gpu in listed if isinstance(gpu, dict)] if isinstance(listed, list) else []
    chips = [find_accelerator(name) for name in names if isinstance(name, str)]
    return any(chip is not None and chip.has_rails for chip in chips)


def _full_counters(counters: dict[str, Any]) -> list[str] | Absent:
    """Return counters at their maximum, with the value."""
    if not any(isinstance(counters[name], int) for name in WIDTHS):
        return Absent("the port has no counters")
    return [f"{name} {counters[name]}" for name, bits in WIDTHS.items() if counters[name] == (1 << bits) - 1]


def _is_of_fabric(layer: Any, rate: Any) -> bool:
    """Return whether jobs may use the port: drivers of plain network cards create RDMA ports too."""
    return isinstance(rate, float) and (layer == "InfiniBand" or rate >= FABRIC_GBIT)


def _ports(host: Host, card: str) -> list[dict[str, Any]]:
    names = host.names(f"{CARDS}/{card}/ports")
    return [_port(host, card, name) for name in names] if isinstance(names, list) else []


def _port(host: Host, card: str, name: str) -> dict[str, Any]:
    folder = f"{CARDS}/{card}/ports/{name}"
    state = _word(host.read(f"{folder}/state"))
    # For a port that is down, sysfs shows the slowest possible rate.
    rate = Absent("the port has no link") if state in NO_STATE else host.read(f"{folder}/rate")
    gbit = re.match(r"([\d.]+) Gb/sec", rate) if isinstance(rate, str) else None
    missing = Unknown(f"{folder}/rate has an unknown format: {rate[:40]!r}") if isinstance(rate, str) else rate
    kind = next((k for f in ("board_id", "hca_type") if isinstance(k := host.read(f"{CARDS}/{card}/{f}"), str)), "")
    link = host.link(f"{CARDS}/{card}/device")
    address = link.rpartition("/")[2] if isinstance(link, str) else ""
    function = address.rpartition(".")[2]
    layer = host.read(f"{folder}/link_layer")
    counters = {name: host.number(f"{folder}/{file}") for name, file in COUNTERS.items()}
    full = _full_counters(counters)
    return {
        "device": f"{card}/{name}",
        "card": card,
        "port": int(name) if name.isdigit() else name,
        "address": address,
        # The second port may be unused on every card.
        "place": (kind, str(layer), name, function),
        "layer": layer,
        "state": state,
        "phys_state": _word(host.read(f"{folder}/phys_state")),
        "rate_gbit": float(gbit[1]) if gbit else missing,
        **counters,
        "full_counters": full,
        "num_full_counters": len(full) if isinstance(full, list) else full,
    }


def _word(text: str | Absent | Unknown) -> str | Absent | Unknown:
    """Return ACTIVE for "4: ACTIVE"."""
    return text.partition(":")[2].strip() if isinstance(text, str) else text


def _device_files_missing(host: Host) -> Any:
    names = host.names("/sys/class/infiniband_verbs")
    verbs = [n for n in names if re.fullmatch(r"uverbs\d+", n)] if isinstance(names, list) else []
    if not verbs:
        return Absent("the kernel has created no verbs device") if isinstance(names, list) else names
    return sum(not host.exists(f"/dev/infiniband/{verb}") for verb in verbs)


def _gpudirect(host: Host) -> str | Absent | Unknown:
    """Return how a card reaches GPU memory: "peermem", "dmabuf" or "none"."""
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
    """Return bridges that redirect traffic between devices to the root."""
    info = host.read("/proc/cpuinfo")
    if not isinstance(info, str) or "vendor_id" not in info or (host.is_live and platform.machine() != "x86_64"):
        return Absent("access control services matter only between PCI switches of x86 machines")
    if "hypervisor" in info:
        return Absent("a virtual machine needs access control services")
    devices = host.names(PCI)
    gpus = [d for d in devices if _is_gpu(host, d)] if isinstance(devices, list) else []
    if len(gpus) < 2:
        return Absent("there are fewer than two GPUs on PCI")
    text = host.run("lspci", "-vvv", limit_s=2.5)
    if not isinstance(text, str):
        return text
    if "ACSCtl:" not in text and "access denied" in text:
        return Unknown("lspci cannot read the capabilities of PCI bridges", "run aifx doctor as root")
    bridges = [
        part.split(None, 1)[0] for part in re.split(r"\n(?=\S)", text) if re.search(r"ACSCtl:\s*SrcValid\+", part)
    ]
    return {"bridges": len(bridges), "names": bridges[:4], "first": bridges[0] if bridges else "none"}


def _is_gpu(host: Host, device: str) -> bool:
    kind = host.read(f"{PCI}/{device}/class")
    return host.read(f"{PCI}/{device}/vendor") in GPU_VENDORS and isinstance(kind, str) and kind.startswith("0x03")


PROBES = (
    Probe("infiniband", ("infiniband", "expected"), collect, limit_s=5.0),
    Probe("pci_acs", ("pci_acs",), collect_acs),
)

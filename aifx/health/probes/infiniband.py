"""InfiniBand and RoCE ports, and their path to GPU memory."""

from __future__ import annotations

import platform
import re
from collections import Counter
from typing import Any

from aifx.core.facts import Absent, Unknown
from aifx.health.host import Host
from aifx.health.kernel_log import Log
from aifx.health.probes.kernel_log import read_log
from aifx.health.probes.network import agreed
from aifx.health.probing import listed, probe, search_file, text_of
from aifx.machine.catalogue import find_accelerator, has_rails

CARDS = "/sys/class/infiniband"
PCI = "/sys/bus/pci/devices"
COUNTERS = {
    "symbol_errors": ("counters/symbol_error", 16),
    "link_downed": ("counters/link_downed", 8),
    "link_recoveries": ("counters/link_error_recovery", 8),
    "receive_errors": ("counters/port_rcv_errors", 16),
    "buffer_overruns": ("counters/excessive_buffer_overrun_errors", 4),
    "integrity_errors": ("counters/local_link_integrity_errors", 4),
    "not_ready_retries": ("hw_counters/rnr_nak_retry_err", None),
}
"""The file of a counter, and its bits if it stops at its maximum (InfiniBand Architecture Specification, PortCounters;
Linux, drivers/infiniband/core/sysfs.c)."""

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


@probe("infiniband", "expected", limit_s=5.0)
def collect(host: Host) -> dict[str, Any]:
    found = _infiniband(host)
    return {"infiniband": found, "expected": _expected(host, found) if isinstance(found, dict) else {}}


def _infiniband(host: Host) -> Any:
    # A virtual function belongs to its guest; here only the card counts.
    cards = [card for card in listed(host, CARDS) if not host.exists(f"{CARDS}/{card}/device/physfn")]
    ports = [_port(host, card, name) for card in cards for name in listed(host, f"{CARDS}/{card}/ports")]
    if not ports:
        names = host.names(CARDS)
        return names if isinstance(names, Unknown) else Absent("there is no InfiniBand or RoCE port")
    # Jobs use InfiniBand if there is any, because RoCE also serves storage.
    of_jobs = [port for port in ports if port["layer"] == "InfiniBand"] or ports
    cables = _cables(host) if any(_is_down(port) for port in ports) else {}
    rail_ports = max(Counter(port["place"] for port in of_jobs).values())
    for port in ports:
        alike = [other for other in ports if other["place"] == port["place"] and other is not port]
        up = [other for other in alike if other["state"] == "ACTIVE"]
        serves_jobs = port in of_jobs
        port["peers_up"] = len(up)
        port["peer_rate_gbit"] = agreed([other["rate_gbit"] for other in up])
        port["is_odd"] = _is_down(port) and len(up) >= max(MANY, len(alike) / 2)
        reason = _reason_to_be_up(port, cables.get(port["address"]))
        if port["is_odd"] and not serves_jobs:
            reason = reason or f"{len(up)} ports of its kind are up"
        port["is_expected_up"], port["expected_up_because"] = bool(reason), reason or "nothing asks for it"
        port["is_rail"] = serves_jobs and len(alike) + 1 == rail_ports
        # By the number for the node: of the product, of the site or of similar ports.
        port["is_counted"] = serves_jobs and (port["is_rail"] or port["is_odd"])
    for port in ports:
        del port["place"]
    active = [port for port in ports if port["state"] == "ACTIVE" and isinstance(port["rate_gbit"], float)]
    # Drivers of plain network cards create RDMA ports too.
    fabric = [port for port in active if port["layer"] == "InfiniBand" or port["rate_gbit"] >= FABRIC_GBIT]
    return {
        "ports": ports,
        "port_count": len(ports),
        "layer": "InfiniBand" if of_jobs[0]["layer"] == "InfiniBand" else "RoCE",
        "active_ports": sum(port["state"] == "ACTIVE" for port in of_jobs),
        "fabric_ports": len(fabric),
        "fast_ports": sum(port["rate_gbit"] >= FAST_GBIT for port in active),
        "device_files_missing": _device_files_missing(host),
        "gpudirect": _gpudirect(host),
    }


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
    if any(has_rails(text_of(host, f"{PCI}/{gpu}/device")) for gpu in _gpus(host)):
        return True
    nvml = None if host.is_live else host.ask("aifx.machine.nvml", name="nvml", limit_s=0)
    gpus = nvml.get("gpus") if isinstance(nvml, dict) else None
    names = [gpu.get("name") for gpu in gpus if isinstance(gpu, dict)] if isinstance(gpus, list) else []
    chips = [find_accelerator(name) for name in names if isinstance(name, str)]
    return any(chip is not None and chip.has_rails for chip in chips)


def _full_counters(counters: dict[str, Any]) -> list[str] | Absent:
    """Return counters at their maximum, with the value."""
    widths = {name: bits for name, (_, bits) in COUNTERS.items() if bits}
    if not any(isinstance(counters[name], int) for name in widths):
        return Absent("the port has no counters")
    return [f"{name} {counters[name]}" for name, bits in widths.items() if counters[name] == (1 << bits) - 1]


def _port(host: Host, card: str, name: str) -> dict[str, Any]:
    folder = f"{CARDS}/{card}/ports/{name}"
    state = _word(host.read(f"{folder}/state"))
    # For a port that is down, sysfs shows the slowest possible rate.
    no_link = Absent("the port has no link")
    rate = no_link if state in NO_STATE else search_file(host, f"{folder}/rate", r"^([\d.]+) Gb/sec")
    kind = text_of(host, f"{CARDS}/{card}/board_id") or text_of(host, f"{CARDS}/{card}/hca_type")
    link = host.link(f"{CARDS}/{card}/device")
    address = link.rpartition("/")[2] if isinstance(link, str) else ""
    layer = host.read(f"{folder}/link_layer")
    counters = {name: host.number(f"{folder}/{file}") for name, (file, _) in COUNTERS.items()}
    full = _full_counters(counters)
    return {
        "device": f"{card}/{name}",
        "card": card,
        "port": int(name) if name.isdigit() else name,
        "address": address,
        # The second port may be unused on every card.
        "place": (kind, str(layer), name, address.rpartition(".")[2]),
        "layer": layer,
        "state": state,
        "phys_state": _word(host.read(f"{folder}/phys_state")),
        "rate_gbit": float(rate[1]) if isinstance(rate, re.Match) else rate,
        **counters,
        "full_counters": full,
        "num_full_counters": len(full) if isinstance(full, list) else full,
    }


def _word(text: str | Absent | Unknown) -> str | Absent | Unknown:
    """Return ACTIVE for "4: ACTIVE"."""
    return text.partition(":")[2].strip() if isinstance(text, str) else text


def _device_files_missing(host: Host) -> Any:
    verbs = listed(host, "/sys/class/infiniband_verbs", r"uverbs\d+")
    if not verbs:
        names = host.names("/sys/class/infiniband_verbs")
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
    driver = host.read("/proc/driver/nvidia/version")
    if not isinstance(driver, str):
        return driver
    version = re.match(r"(\d+)\.(\d+)", text_of(host, "/proc/sys/kernel/osrelease"))
    is_new = version is not None and (int(version[1]), int(version[2])) >= (5, 12)
    return "dmabuf" if is_new and "Open Kernel Module" in driver else "none"


@probe("pci_acs")
def collect_acs(host: Host) -> Any:
    """Return bridges that redirect traffic between devices to the root."""
    info = host.read("/proc/cpuinfo")
    if not isinstance(info, str) or "vendor_id" not in info or (host.is_live and platform.machine() != "x86_64"):
        return Absent("access control services matter only between PCI switches of x86 machines")
    if "hypervisor" in info:
        return Absent("a virtual machine needs access control services")
    if len(_gpus(host)) < 2:
        return Absent("there are fewer than two GPUs on PCI")
    text = host.run("lspci", "-vvv", limit_s=2.5)
    if not isinstance(text, str):
        return text
    if "ACSCtl:" not in text and "access denied" in text:
        return Unknown("lspci cannot read the capabilities of PCI bridges", "run aifx doctor as root")
    devices = [part for part in re.split(r"\n(?=\S)", text) if re.search(r"ACSCtl:\s*SrcValid\+", part)]
    bridges = [device.split(None, 1)[0] for device in devices]
    return {"bridges": len(bridges), "names": bridges[:4], "first": bridges[0] if bridges else "none"}


def _gpus(host: Host) -> list[str]:
    """Return the PCI addresses of GPUs."""
    return [
        device
        for device in listed(host, PCI)
        if host.read(f"{PCI}/{device}/vendor") in GPU_VENDORS
        and text_of(host, f"{PCI}/{device}/class").startswith("0x03")
    ]

"""Output of `python -m aifx.machine.nvml` on a healthy machine, built from a product's figures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

DRIVER, CUDA = "580.95.05", "13.0"
ABSENT = {"$absent": "NVML does not report it"}
NO_UUID = "00000000-0000-0000-0000-000000000000"


@dataclass(frozen=True)
class Product:
    """Attributes:
    memory: total and reserved MiB.
    power: least, default and largest limit, and draw at rest, W.
    clocks: largest of SM and memory, MHz.
    pcie: largest generation and the one at rest.
    margins: T.Limit at which it shuts down and slows down, and the margin at rest, C; or none.
    thresholds: temperatures at which it shuts down, slows down, and the largest of memory and GPU, C; or none.
    links: how many, MB/s of each, and what is at the other end; or none.
    unlinked: the links that lead nowhere.
    fabric: as `aifx.machine.nvml.links.fabric` has it; or none.
    banks: that rows are remapped in.
    """

    name: str
    vbios: str
    inforom: str
    memory: tuple[int, int]
    power: tuple[float, float, float, float]
    clocks: tuple[int, int]
    pcie: tuple[int, int]
    margins: tuple[int, int, int] | None = None
    thresholds: tuple[int, int, int, int] | None = None
    memory_c: int | None = None
    links: tuple[int, int, str] | None = None
    unlinked: frozenset[int] = frozenset()
    has_link_rates: bool = False
    fabric: dict[str, Any] | None = None
    banks: int = 640
    virtualization: str = "none"
    has_mig: bool = True


H100 = Product(
    "NVIDIA H100 80GB HBM3", "96.00.99.00.01", "G520.0200.00.05", (81559, 551), (200, 700, 700, 71.4), (1980, 2619),
    (5, 5), margins=(-8, -2, 55), memory_c=41, links=(18, 26562, "switch"), banks=2560,
    fabric={"state": "completed", "status": 0, "clique": 0, "cluster": NO_UUID, "mask": {}},
)  # fmt: skip
A100_PCIE = Product(
    "NVIDIA A100 80GB PCIe", "92.00.A0.00.05", "1001.0230.00.03", (81920, 622), (150, 300, 300, 45.2), (1410, 1512),
    (4, 1), thresholds=(92, 89, 95, 85), memory_c=38, links=(12, 25000, "gpu"), unlinked=frozenset(range(12)),
)  # fmt: skip
H100_NVL = Product(
    "NVIDIA H100 NVL", "96.00.88.00.11", "1010.0210.00.03", (95830, 630), (200, 400, 400, 61.2), (1785, 2619), (5, 5),
    margins=(-8, -2, 50), memory_c=44, links=(18, 26562, "gpu"), unlinked=frozenset({4, 5, 10, 11, 16, 17}), banks=2560,
)  # fmt: skip
L4 = Product(
    "NVIDIA L4", "95.04.29.00.06", "G193.0200.00.01", (23034, 461), (40, 72, 72, 12.9), (2040, 6251), (4, 1),
    margins=(-5, -2, 42), banks=96, virtualization="passthrough", has_mig=False,
)  # fmt: skip
GB200 = Product(
    "NVIDIA GB200", "97.00.82.00.2A", "G548.0201.00.06", (189471, 2045), (200, 1200, 1200, 152.0), (2062, 3996), (5, 5),
    margins=(-8, -3, 60), memory_c=35, links=(18, 53125, "switch"), has_link_rates=True, banks=4096,
    fabric={"state": "completed", "status": 0, "clique": 32766, "cluster": "5f2a3c00-7c11-4e2b-9d0a-0b6f54e1a901",
            "mask": {"degraded_bandwidth": False, "route_recovery": False, "route_unhealthy": False,
                     "access_timeout_recovery": False, "configuration": "none"}},
)  # fmt: skip


def document(product: Product, addresses: list[str]) -> dict[str, Any]:
    gpus = [gpu(product, index, address) for index, address in enumerate(addresses)]
    head = {"state": "ok", "driver": DRIVER, "nvml": f"13.{DRIVER}", "cuda": CUDA, "count": len(gpus)}
    return {**head, "gpus": gpus}


def gpu(product: Product, index: int, address: str) -> dict[str, Any]:
    draws, (sm, memory_clock), (generation, at_rest) = product.power, product.clocks, product.pcie
    counts = {
        f"{part}{kind}_{since}": 0
        for part in ("", "dram_", "sram_")
        for kind in ("corrected", "uncorrected")
        for since in ("volatile", "aggregate")
    }
    return {
        "state": "ok",
        "index": index,
        "name": product.name,
        "uuid": f"GPU-7b0c2f1e-41d3-9a55-b2c7-{index:012x}",
        "pci_bus_id": address,
        "vbios": product.vbios,
        "inforom": product.inforom,
        "inforom_state": "valid",
        "virtualization": product.virtualization,
        "compute_mode": "default",
        "persistence": True,
        "recovery_action": "none",
        "ecc": {"is_enabled": True, "is_pending": True, **counts, "sram_threshold_exceeded": False},
        "rows": {"correctable": 0, "uncorrectable": 0, "pending": False, "failed": False, "banks": product.banks,
                 "spareless_banks": 0},
        "pages": {"corrected": ABSENT, "uncorrected": ABSENT, "total": ABSENT, "pending": ABSENT},
        "repair": {"channel_pending": False, "tpc_pending": False, "unrepairable_memory": False},
        "throttle": {"reasons": ["idle"], "software_thermal_ms": 0.0, "hardware_thermal_ms": 0.0, "power_brake_ms": 0.0,
                     "hardware_ms": 0.0, "thermal_ms": 0.0, "board_limit_ms": 0.0, "reliability_ms": 0.0},
        "temperature": _temperature(product),
        "power": {"draw_w": draws[3], "limit_w": float(draws[1]), "enforced_w": float(draws[1]),
                  "default_w": float(draws[1]), "min_w": float(draws[0]), "max_w": float(draws[2])},
        "clocks": {"sm_mhz": 345, "memory_mhz": memory_clock, "sm_max_mhz": sm, "memory_max_mhz": memory_clock,
                   "application_mhz": sm, "application_default_mhz": sm},
        "pcie": {"generation": at_rest, "max_generation": generation, "device_max_generation": generation, "width": 16,
                 "max_width": 16, "replays": 0},
        "memory": {"total_mib": product.memory[0], "used_mib": 1, "reserved_mib": product.memory[1]},
        "mig": {"current": False, "pending": False} if product.has_mig else {"current": ABSENT, "pending": ABSENT},
        "utilization": {"gpu_percent": 0, "memory_percent": 0},
        "processes": [],
        "links": ABSENT if product.links is None else [_link(product, number) for number in range(product.links[0])],
        "fabric": _fabric(product.fabric),
    }  # fmt: skip


def _temperature(product: Product) -> dict[str, Any]:
    shutdown, slowdown, margin = product.margins or (ABSENT, ABSENT, ABSENT)
    hot, slow, memory_max, gpu_max = product.thresholds or (ABSENT, ABSENT, ABSENT, ABSENT)
    return {
        "gpu_c": 33,
        "memory_c": product.memory_c or ABSENT,
        "margin_c": margin,
        "slowdown_c": slow,
        "shutdown_c": hot,
        "memory_max_c": memory_max,
        "gpu_max_c": gpu_max,
        "shutdown_margin_c": shutdown,
        "slowdown_margin_c": slowdown,
        "memory_max_margin_c": ABSENT,
        "gpu_max_margin_c": 0 if product.margins else ABSENT,
    }


COUNTERS = ("replays", "recoveries", "crc_flit_errors", "crc_data_errors", "crc_errors")
RATES = ("receive_errors", "integrity_errors", "recoveries_failed", "link_recoveries", "symbol_ber", "effective_ber")
"""Counters of NVLink 5, which has these and not the others."""


def _link(product: Product, number: int) -> dict[str, Any]:
    _, speed, remote = product.links or (0, 0, "")
    silent = dict.fromkeys((*COUNTERS, *RATES, "speed_mb_s", "version", "remote"), ABSENT)
    if number in product.unlinked:
        return {"link": number, "state": "inactive", **silent}
    if product.has_link_rates:
        counts: dict[str, Any] = {**dict.fromkeys(RATES, 0), "symbol_ber": 0.0, "effective_ber": 10.0**-254}
    else:
        counts = dict.fromkeys(COUNTERS, 0)
    told = {"speed_mb_s": speed, "version": 7 if product.has_link_rates else 6, "remote": remote}
    return {"link": number, "state": "active", **silent, **told, **counts}


def _fabric(told: dict[str, Any] | None) -> dict[str, Any]:
    if told is None:
        return ABSENT
    names = ("degraded_bandwidth", "route_recovery", "route_unhealthy", "access_timeout_recovery", "configuration")
    facts = {name: told[name] for name in ("state", "status", "clique", "cluster")}
    return {**facts, "summary": ABSENT, **{name: told["mask"].get(name, ABSENT) for name in names}}

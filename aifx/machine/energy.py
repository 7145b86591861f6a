"""Joules of the devices that compute, by the counters that they keep: NVML's of a GPU, RAPL's of a CPU.

RAPL is read from the kernel's powercap tree (Documentation/power/powercap/powercap.rst of Linux): the zones `package-N`
and, where there are, `dram` below them, which no package holds. `core` and `uncore` are parts of a package, `psys` and
`intel-rapl-mmio` count the same again.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

from aifx.core.facts import Absent, Unknown
from aifx.machine.catalogue import find_accelerator
from aifx.machine.nvml import Calls, also, open_driver

logger = logging.getLogger(__name__)

PowerBasis: TypeAlias = Literal["measured", "declared", "nameplate"]
"""The source of a power: counters, a setting, the chip's data sheet."""

EnergyBasis: TypeAlias = Literal[PowerBasis, "estimated"]
"""The same; estimated: some of the machines were measured, and the others count as if they used as much."""

POWERCAP = Path("/sys/class/powercap")

SHORTEST_S = 0.5
"""GPUs update their counter every 20 to 100 ms (PETSc's manual, PetscLogGpuEnergyMeter): shorter spans mean little."""


class Unreadable(Exception):
    """Energy cannot be read; the message says why in a line."""


@dataclass(frozen=True)
class Counter:
    """The energy that a device has used."""

    name: str
    read: Callable[[], float]  # joules since some moment; raises Unreadable
    range_j: float | None = None  # beyond it the counter begins at 0 again; None if it never does

    def used(self, before_j: float, after_j: float) -> float:
        """Joules between two readings, less than one range apart."""
        used = after_j - before_j
        return used + (self.range_j or 0.0) if used < 0 else used


@dataclass(frozen=True)
class Power:
    """Watts of the devices that compute, and how they are known."""

    watts: float
    basis: PowerBasis


def stated_power(devices: Sequence[Any], declared_w: float | None) -> Power | None:
    """The power of devices without counters: as declared, otherwise by the catalogue; None if that does not know it."""
    if declared_w is not None:
        return Power(declared_w, "declared")
    chip = find_accelerator(devices[0].device_kind)
    if chip is None or not chip.power_w:
        return None
    return Power(chip.power_w * len(devices) / chip.devices_per_chip, "nameplate")


class JobEnergy:
    """Joules of the devices of a job, from one reading to the next.

    One process reads the counters that it sees. If the job has other machines, theirs count as if they used as much.
    """

    def __init__(
        self,
        devices: Sequence[Any],
        *,
        num_hosts: int = 1,
        declared_w: float | None = None,
        powercap: Path = POWERCAP,
    ) -> None:
        """`devices`: all of the job; `declared_w`: their power, if it cannot be measured."""
        self._power: Power | None = None
        self._counters: Sequence[Counter] = ()
        ours = [device for device in devices if device.process_index == devices[0].process_index]
        self._scale = num_hosts if devices[0].platform == "cpu" else len(devices) / len(ours)
        try:
            self._counters = open_counters(ours, powercap)
        except Unreadable:
            self._power = stated_power(devices, declared_w)
        self._read_at, self._joules = time.perf_counter(), self._read()

    def take(self) -> dict[str, Any] | None:
        """`joules` and `seconds` since the last call, and their `basis`; None if nothing is known."""
        now = time.perf_counter()
        seconds, self._read_at = now - self._read_at, now
        if self._power is not None:
            return {"joules": self._power.watts * seconds, "seconds": seconds, "basis": self._power.basis}
        before, self._joules = self._joules, self._read()
        if not self._joules:
            return None
        pairs = zip(self._counters, before, self._joules, strict=True)
        joules = sum(counter.used(start, end) for counter, start, end in pairs) * self._scale
        return {"joules": joules, "seconds": seconds, "basis": "measured" if self._scale == 1 else "estimated"}

    def _read(self) -> list[float]:
        """The counters' readings; none any more after one that cannot be read."""
        try:
            return [counter.read() for counter in self._counters]
        except Unreadable as error:
            logger.warning(f"energy is no longer known: {error}")
            self._counters = ()
            return []


class Energy:
    """Joules and seconds of some spans of time, added up."""

    def __init__(self, counters: Sequence[Counter]) -> None:
        self.seconds = 0.0
        self.failed: str | None = None  # why the counters could no longer be read; `joules` is then None
        self._counters = counters
        self._joules = 0.0

    @contextmanager
    def span(self) -> Iterator[None]:
        """Count the energy and time of the block."""
        before = self._read()
        started = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - started
        after = self._read()
        if self.failed is None:
            readings = zip(self._counters, before, after, strict=True)
            self._joules += sum(counter.used(start, end) for counter, start, end in readings)

    @property
    def joules(self) -> float | None:
        """None if the counters failed, or if the spans were too short for them to move."""
        return self._joules if self.failed is None and self.seconds >= SHORTEST_S and self._joules > 0 else None

    def _read(self) -> list[float]:
        try:
            return [counter.read() for counter in self._counters] if self.failed is None else []
        except Unreadable as error:
            self.failed = str(error)
            return []


def open_energy(devices: Sequence[Any], powercap: Path = POWERCAP) -> Energy:
    """Energy of some spans of time, by `open_counters`. Raises Unreadable."""
    return Energy(open_counters(devices, powercap))


def open_counters(devices: Sequence[Any], powercap: Path = POWERCAP) -> Sequence[Counter]:
    """Return counters of the energy of JAX's devices: GPU boards, or the packages and memory of a CPU.

    They also count what other processes use. Raises Unreadable.
    """
    platform = devices[0].platform
    if platform in ("gpu", "cuda"):
        counters = gpu_counters([int(device.local_hardware_id or 0) for device in devices])
    elif platform == "cpu":
        counters = cpu_counters(powercap)
    else:
        raise Unreadable(f"no counter of energy is known for {devices[0].device_kind}")
    for counter in counters:
        counter.read()
    return counters


def cpu_counters(powercap: Path) -> list[Counter]:
    """The counters of all packages. Raises Unreadable."""
    names = {zone: _text(zone / "name") for zone in sorted(powercap.glob("intel-rapl:*"))}
    zones = {zone: name for zone, name in names.items() if name.startswith("package-") or name == "dram"}
    if not zones:
        raise Unreadable(f"this machine reports no energy: no RAPL zone in {powercap}, as on most virtual machines")
    return [Counter(name, partial(_joules, zone / "energy_uj"), _range_j(zone)) for zone, name in zones.items()]


def gpu_counters(ordinals: Sequence[int]) -> list[Counter]:
    """The counters of GPUs, by their number among those that CUDA shows this process. Raises Unreadable."""
    driver = open_driver()
    if driver["state"] != "ok":
        raise Unreadable(f"NVML reports no energy: {driver['count'].why}")
    return [Counter(f"GPU {ordinal}", _reader(ordinal)) for ordinal in ordinals]


def _reader(ordinal: int) -> Callable[[], float]:
    visible = [entry.strip() for entry in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if entry.strip()]
    chosen = visible[ordinal] if ordinal < len(visible) else str(ordinal)
    by, key = ("Index", int(chosen)) if chosen.isdigit() else ("UUID", chosen)
    handle = Calls()(f"DeviceGetHandleBy{by}", key)

    def read() -> float:  # NVML counts mJ since the driver was loaded
        used = also(handle, lambda gpu: Calls(gpu)("DeviceGetTotalEnergyConsumption"))
        if isinstance(used, (Absent, Unknown)):
            raise Unreadable(f"NVML reports no energy of GPU {ordinal}: {used.why}")
        return float(used) / 1e3

    return read


def _range_j(zone: Path) -> float | None:
    try:
        return _joules(zone / "max_energy_range_uj")
    except Unreadable:
        return None


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _joules(path: Path) -> float:
    try:
        return float(path.read_text()) / 1e6
    except PermissionError:  # of root alone since CVE-2020-8694
        raise Unreadable(f"this user may not read the energy counter: sudo chmod a+r {path}") from None
    except (OSError, ValueError) as error:
        raise Unreadable(f"{path} cannot be read: {error}") from None


logger = logging.getLogger(__name__)


class PowerMeter:
    """The power of the devices: by their counters, otherwise as declared, otherwise by the catalogue.

    Counters also hold what other processes use. Idle time, from `pause` to `resume`, does not count.
    """

    def __init__(self, devices: Sequence[Any], declared_w: float | None = None) -> None:
        self.devices = devices
        self._counters: Sequence[Counter] = ()
        self._power: Power | None = None
        try:
            self._counters = open_counters(devices)
        except Unreadable:
            self._power = stated_power(devices, declared_w)
        self._read_at, self._joules = time.monotonic(), self._read()
        self._worked_s = self._worked_j = 0.0  # since power was measured, up to `_read_at`
        self._is_paused = False

    @property
    def power(self) -> Power | None:
        """The power over the last half second of work or more; None if nothing is known."""
        if self._counters and self._worked_s + time.monotonic() - self._read_at >= SHORTEST_S:
            self._add()
            if self._counters:
                self._power = Power(self._worked_j / self._worked_s, "measured")
            self._worked_s = self._worked_j = 0.0
        return self._power

    def pause(self) -> None:
        """Stop counting: the devices have no work until `resume`."""
        if not self._is_paused:
            self._add()
        self._is_paused = True

    def resume(self) -> None:
        if self._is_paused:
            self._read_at, self._joules = time.monotonic(), self._read()
        self._is_paused = False

    def _add(self) -> None:
        """Count what was used since the last reading as work."""
        now, after = time.monotonic(), self._read()
        pairs = zip(self._counters, self._joules, after, strict=False)
        self._worked_j += sum(counter.used(start, end) for counter, start, end in pairs)
        self._worked_s += now - self._read_at
        self._read_at, self._joules = now, after

    def _read(self) -> list[float]:
        """Read the counters. If one cannot be read, none is read again, and power is not known."""
        try:
            return [counter.read() for counter in self._counters]
        except Unreadable as error:
            logger.warning(f"energy is no longer known: {error}")
            self._counters, self._power = (), None
            return []

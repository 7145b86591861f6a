"""The hardware that a run is planned for, by name: `this`, `h100x8`, `v5e-256`. Imports no JAX."""

from __future__ import annotations

import difflib
import math
import os
import re
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from aifx.core.errors import ConfigError, EnvironmentFault, UsageError
from aifx.core.results import Result
from aifx.machine.catalogue import ACCELERATORS, Accelerator, find_accelerator
from aifx.machine.nvml import open_gpus
from aifx.machine.present import tpu_generations

if TYPE_CHECKING:
    from aifx.parallel.layout import Layout

GPUS_PER_NODE = 8
GPUS_PER_RACK = 72
"""GPUs of a rack whose NVLink spans its nodes (GB200 NVL72)."""

GPU_NAMES = {chip.short_name: chip.name for chip in ACCELERATORS if chip.short_name}


@dataclass(frozen=True)
class TpuGeneration:
    """A generation of TPUs as Google Cloud names its slices (cloud.google.com/tpu/docs, "accelerator type").

    Attributes:
        chip: in the catalogue; None for a generation that aifx has no figures of.
        cores_per_chip: by which the number in a name is divided: 2 if it counts TensorCores.
        dimensions: of its network.
        max_chips: of the largest slice.
        chips_per_host: of a slice of several hosts.
    """

    chip: str | None
    cores_per_chip: int
    dimensions: int
    max_chips: int
    chips_per_host: int = 4


TPUS = {
    "v2": TpuGeneration(None, 2, 2, 256),
    "v3": TpuGeneration(None, 2, 2, 1024),
    "v4": TpuGeneration("TPU v4", 2, 3, 4096),
    "v5e": TpuGeneration("TPU v5e", 1, 2, 256),
    "v5litepod": TpuGeneration("TPU v5e", 1, 2, 256),
    "v5p": TpuGeneration("TPU v5p", 2, 3, 6144),
    "v6e": TpuGeneration("TPU v6e", 1, 2, 256),
    # GKE and Compute Engine name TPU7x by its topology. Here the number counts chips.
    "tpu7x": TpuGeneration("TPU v7x", 1, 3, 9216),
}


@dataclass(frozen=True)
class Hardware:
    """Devices of one kind.

    Attributes:
        name: as the user gave it.
        device_kind: as JAX names it.
        chip: in the catalogue; None for a processor.
        num_devices: JAX devices, of which a chip may be several.
        topology: of a TPU slice, as libtpu names it: "v5e:16x16".
        slices: of that topology.
        is_here: whether it is this machine.
        processes: that the devices need, one per host.
    """

    name: str
    platform: str
    device_kind: str
    chip: Accelerator | None
    num_devices: int
    topology: str = ""
    slices: int = 1
    is_here: bool = False
    processes: int = 1

    @property
    def per_node(self) -> int:
        """GPUs that share a switch."""
        return GPUS_PER_RACK if self.chip is not None and self.chip.in_rack else GPUS_PER_NODE

    @property
    def num_chips(self) -> int:
        return self.num_devices // (self.chip.devices_per_chip if self.chip else 1)

    @property
    def capacity_bytes(self) -> int | None:
        """Memory of one device, as the vendor prints it; None for a processor."""
        if self.chip is None:
            return None
        unit = 1 << 30 if self.platform == "tpu" else 10**9
        return int(self.chip.memory_gb * unit / self.chip.devices_per_chip)

    def document(self) -> dict[str, Any]:
        """As JSON, for another process; the chip by its name."""
        return {**asdict(replace(self, chip=None)), "chip": self.chip and self.chip.name}

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> Hardware:
        return cls(**{**document, "chip": _chip(document["chip"]) if document["chip"] else None})


def find_hardware(name: str, devices: int | str = "all") -> Hardware:
    """The hardware called `name`. Raises UsageError with the nearest right name.

    Args:
        devices: `train.devices`, which limits the devices of this machine.
    """
    text = name.strip().lower()
    if text == "this":
        return _this(devices)
    if found := re.fullmatch(r"(v\d+[a-z]*|tpu\d+x)-(\d+)(?:x(\d+))?", text):
        return _tpu(name, found[1], int(found[2]), int(found[3] or 1))
    if found := re.fullmatch(r"([a-z]+\d[\w-]*?)(?:x(\d+))?", text):
        return _gpu(name, found[1], int(found[2] or 1))
    raise _unknown(name)


@dataclass(frozen=True)
class HardwareName:
    """A name that `find_hardware` takes. `num_chips` is None for this machine, which is not looked at."""

    name: str
    chip: str
    num_chips: int | None


@dataclass(frozen=True)
class HardwareList(Result):
    """The document that `aifx plan --list --json` prints."""

    hardware: list[HardwareName]


def list_hardware() -> HardwareList:
    """Every GPU alone and in a node, and every TPU slice of a usual size. GPUs also come in other numbers."""
    found = [find_hardware(name) for name in hardware_names()[1:]]
    named = [HardwareName(one.name, one.chip.name, one.num_chips) for one in found if one.chip]
    return HardwareList([HardwareName("this", "what this machine has", None), *named])


def hardware_names() -> list[str]:
    """Names that aifx knows: every GPU alone and in a node, every TPU slice of a usual size."""
    tpus = [f"{name}-{n * g.cores_per_chip}" for name, g in TPUS.items() if g.chip for n in _slice_sizes(g)]
    gpus = [f"{name}{count}" for name in GPU_NAMES for count in ("", f"x{GPUS_PER_NODE}")]
    return ["this", *gpus, *tpus]


def _gpu(name: str, short: str, count: int) -> Hardware:
    if short not in GPU_NAMES or count < 1:
        raise _unknown(name)
    chip = _chip(GPU_NAMES[short])
    return Hardware(name, "gpu", _device_kind(chip), chip, count, processes=math.ceil(count / GPUS_PER_NODE))


def torus_of(hardware: Hardware) -> tuple[int, ...]:
    """Chips along each axis of a TPU slice."""
    return tuple(int(side) for side in hardware.topology.partition(":")[2].split("x") if side)


def _tpu(name: str, generation: str, number: int, slices: int) -> Hardware:
    found = TPUS.get(generation)
    if found is None or slices < 1:
        raise _unknown(name)
    if found.chip is None:
        known = [key for key, one in TPUS.items() if one.chip]
        raise UsageError(f"aifx has no figures of TPU {generation}", f"it knows {', '.join(known)}", "")
    shape = _slice_shape(found, number // found.cores_per_chip) if number % found.cores_per_chip == 0 else None
    if shape is None:
        sizes = [size * found.cores_per_chip for size in _slice_sizes(found)]
        nearest = min(sizes, key=lambda size: abs(math.log(size / max(number, 1))))
        counted = "TensorCores, two per chip" if found.cores_per_chip == 2 else "chips"
        why = f"there is no such slice (the number counts {counted}); did you mean '{generation}-{nearest}'?"
        raise UsageError(f"unknown hardware {name!r}", why, f"aifx plan --hardware {generation}-{nearest}")
    chip, chips = _chip(found.chip), math.prod(shape)
    prefix = {"v5litepod": "v5e"}.get(generation, generation)
    topology = f"{prefix}:{'x'.join(map(str, shape))}"
    hosts = 1 if chips <= (8 if found.dimensions == 2 else 4) else chips // found.chips_per_host
    devices = slices * chips * chip.devices_per_chip
    return Hardware(name, "tpu", _device_kind(chip), chip, devices, topology, slices, processes=slices * hosts)


def _slice_sizes(generation: TpuGeneration) -> list[int]:
    """Chips of the usual slices, smallest first."""
    sizes = [1, 4, *(1 << n for n in range(3, 14))]
    return [n for n in sizes if n <= generation.max_chips and _slice_shape(generation, n)]


def _slice_shape(generation: TpuGeneration, chips: int) -> tuple[int, ...] | None:
    """The most cubic shape of so many chips; None if there is no such slice."""
    if chips == 1:
        return (1,) * generation.dimensions
    if not 4 <= chips <= generation.max_chips:
        return None
    if generation.dimensions == 2:
        if chips & (chips - 1):
            return None
        side = 1 << (chips.bit_length() - 1) // 2
        return side, chips // side
    if chips < 64:
        return {4: (2, 2, 1), 8: (2, 2, 2), 16: (2, 2, 4), 32: (2, 4, 4)}.get(chips)
    cubes, rest = divmod(chips, 64)  # larger slices are made of cubes of 4 x 4 x 4 chips
    shapes = [
        (a, b, cubes // a // b)
        for a in range(1, cubes + 1)
        for b in range(a, cubes // a + 1)
        if cubes % (a * b) == 0 and b <= cubes // a // b
    ]
    if rest or not shapes:
        return None
    x, y, z = min(shapes, key=lambda shape: shape[2] - shape[0])
    return 4 * x, 4 * y, 4 * z


def _this(devices: int | str) -> Hardware:
    names = [name for ask in open_gpus().values() if isinstance(name := ask("DeviceGetName"), str)]
    if names:
        return hardware_of("gpu", names[0], _limited(len(names), devices))
    if tpus := tpu_generations():
        generation = TPUS.get(tpus[0].removeprefix("TPU ")) or TPUS.get(f"tpu{tpus[0]}")
        if generation is not None and generation.chip is not None:
            chip = _chip(generation.chip)
            return hardware_of("tpu", _device_kind(chip), _limited(len(tpus) * chip.devices_per_chip, devices))
    simulated = re.findall(r"--xla_force_host_platform_device_count=(\d+)", os.environ.get("XLA_FLAGS", ""))
    return hardware_of("cpu", "cpu", _limited(int(simulated[-1]) if simulated else 1, devices))


def hardware_of(platform: str, device_kind: str, num_devices: int, slices: int = 1) -> Hardware:
    """The hardware "this": devices that JAX names so, of this machine or of all machines of a job.

    Raises EnvironmentFault for an accelerator of which aifx has no figures.
    """
    if platform == "cpu":
        return Hardware("this", "cpu", "cpu", None, num_devices, is_here=True)
    chip = find_accelerator(device_kind)
    if chip is None:
        why = "aifx has no figures of it"
        raise EnvironmentFault(f"this machine has a {device_kind}", why, "aifx plan --hardware h100x1")
    if platform == "gpu":
        processes = math.ceil(num_devices / GPUS_PER_NODE)
        return Hardware("this", "gpu", device_kind, chip, num_devices, is_here=True, processes=processes)
    name, generation = next((name, found) for name, found in TPUS.items() if found.chip == chip.name)
    shape = _slice_shape(generation, num_devices // chip.devices_per_chip // slices)
    topology = f"{name}:{'x'.join(map(str, shape))}" if shape else ""
    return Hardware("this", "tpu", _device_kind(chip), chip, num_devices, topology, slices, is_here=True)


def hardware_of_layout(layout: Layout) -> Hardware:
    """The devices of a layout, on all machines of a job. Raises what `hardware_of` does."""
    slices = {getattr(device, "slice_index", 0) for device in layout.devices}
    return hardware_of(layout.platform, layout.device_kind, layout.num_devices, len(slices))


def _limited(count: int, devices: int | str) -> int:
    if isinstance(devices, int) and devices > count:
        why = f"this machine has {count}"
        raise ConfigError(f"train.devices = {devices}, and {why}", "a run takes devices of its machine", "")
    return devices if isinstance(devices, int) else count


def _chip(name: str) -> Accelerator:
    return next(one for one in ACCELERATORS if one.name == name)


def _device_kind(chip: Accelerator) -> str:
    """JAX's name of a chip: the first of the catalogue's patterns, without its wildcards."""
    kind = re.sub(r"\(\?!.*?\)|\.\*|\?", "", chip.kinds[0])
    assert find_accelerator(kind) is chip, kind
    return kind


def _unknown(name: str) -> UsageError:
    near = difflib.get_close_matches(name.lower(), hardware_names(), n=3, cutoff=0.55)
    why = f"did you mean {' or '.join(map(repr, near))}?" if near else "names are such as this, h100x8 or v5e-256"
    return UsageError(f"unknown hardware {name!r}", why, "aifx plan --list")

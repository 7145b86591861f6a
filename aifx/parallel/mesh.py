"""The mesh of devices: its axes, how many devices each has, and the sizes that they must divide."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, TypeAlias

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh

from aifx.config.sections import MeshSection
from aifx.core.errors import ConfigError
from aifx.parallel.joining import current_group

AXES: Final = ("data", "fsdp", "tensor", "context")

Rules: TypeAlias = Mapping[str, str | tuple[str, ...] | None]
"""Logical axis -> mesh axes; a logical axis that is absent is not divided."""

# Models name the logical axes of their arrays, and rules say which mesh axes divide them, as in GSPMD (Xu et al. 2021,
# arXiv:2105.04663) and MaxText. By the default rules, devices along
#   data     have all parameters and different rows; gradients are summed over them.
#   fsdp     have different rows and keep a part of each parameter and of the optimizer's state; a layer gathers its
#            weights when it runs, and their gradients are summed and scattered (ZeRO stage 3, arXiv:1910.02054).
#   tensor   have the same rows and a part of each layer's products: heads, columns of the MLP (Megatron-LM,
#            arXiv:1909.08053). Between the products each has a part of the tokens (arXiv:2205.05198).
#   context  have the same rows and a part of their tokens; attention sees the others' keys and values by gathering them
#            or in a ring (Ring Attention, arXiv:2310.01889).
PARAMETERS: Final[Rules] = {
    "vocab": ("fsdp", "tensor"),
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
}
"""The rules by which parameters and optimizer state are sharded."""

COMPUTATION: Final[Rules] = {
    "batch": ("data", "fsdp"),
    "seq": "context",
    "tokens": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "vocab": ("fsdp", "tensor"),
}
"""The rules by which a program shards what it computes. "batch" is rows, "seq" the steps of a row. "tokens" are those
of a device between the products: each device along `tensor` has a part of them."""


def axes_of(name: str | None, rules: Rules) -> tuple[str, ...]:
    """The mesh axes of a rule."""
    found = rules.get(name) if name else None
    return (found,) if isinstance(found, str) else found or ()


YIELDS: Final = {"embed": "vocab"}
"""A logical axis that is divided only if another one of the same array leaves the mesh axis free."""


@dataclass(frozen=True)
class Degrees:
    """The number of devices of a mesh along each axis."""

    data: int = 1
    fsdp: int = 1
    tensor: int = 1
    context: int = 1

    @classmethod
    def of(cls, section: MeshSection, num_devices: int) -> Degrees:
        """The sizes of `[mesh]` on so many devices. Raises ConfigError if they do not make up that number."""
        sizes = {axis: getattr(section, axis) for axis in AXES}
        open_axes = [axis for axis in AXES if sizes[axis] == -1]
        if len(open_axes) > 1 and "data" in open_axes:  # the default, which gives way
            open_axes.remove("data")
            sizes["data"] = 1
        given = math.prod(size for size in sizes.values() if size != -1)
        if len(open_axes) > 1:
            names = " and ".join(f"mesh.{axis}" for axis in open_axes)
            what = f"{names} are both -1"
            raise ConfigError(what, "-1 takes the devices that are left, once", f"--set mesh.{open_axes[0]}=1")
        if open_axes and num_devices % given == 0:
            sizes[open_axes[0]] = num_devices // given
        elif open_axes or given != num_devices:
            asked = ", ".join(f"mesh.{axis} = {size}" for axis, size in sizes.items() if size not in (1, -1))
            fitting = nearest(cls(**{axis: max(size, 1) for axis, size in sizes.items()}), num_devices, ())
            fewer = f", or {devices}" if given < num_devices and (devices := setting_of_devices(given)) else ""
            raise ConfigError(
                f"{asked or 'the mesh'}, and the run has {num_devices} device{'s' * (num_devices > 1)}",
                f"the sizes of a mesh make up the number of its devices: {given} is not {num_devices}",
                f"{settings_of(fitting)}{fewer}",
            )
        return cls(**sizes)

    @property
    def count(self) -> int:
        return math.prod(asdict(self).values())

    def over(self, axes: Iterable[str]) -> int:
        """Devices along these axes together."""
        return math.prod(getattr(self, axis) for axis in axes)

    def __str__(self) -> str:
        """ "data=2 x fsdp=4"; "one device"."""
        return " x ".join(f"{a}={n}" for a, n in asdict(self).items() if n > 1) or "one device"


@dataclass(frozen=True)
class Demand:
    """A size of a run that devices divide.

    Attributes:
        name: for the error: "model.num_heads".
        axes: the mesh axes over which it is divided.
        ring: the mesh axes of a ring, whose devices take an even number each.
        may_repeat: fewer than devices will do if their number is a multiple: several devices then have the same.
    """

    name: str
    size: int
    axes: tuple[str, ...]
    may_repeat: bool = False
    ring: tuple[str, ...] = ()

    def conflict(self, degrees: Degrees) -> str | None:
        """The reason why such a mesh cannot divide it; None if it can."""
        pairs = 2 if degrees.over(self.ring) > 1 else 1
        count = pairs * degrees.over(self.axes)
        if self.size % count == 0 or (self.may_repeat and count % self.size == 0):
            return None
        names = " x ".join(f"mesh.{axis}" for axis in self.axes if getattr(degrees, axis) > 1)
        return f"{self.name} = {self.size} is not divisible by {'2 x ' * (pairs - 1)}{names} = {count}"


def nearest(degrees: Degrees, num_devices: int, demands: Sequence[Demand]) -> Degrees | None:
    """The mesh of so many devices that meets the demands and differs least from `degrees`; None if there is none."""

    def distance(other: Degrees) -> float:
        return sum(abs(math.log2(getattr(other, axis) / getattr(degrees, axis))) for axis in AXES)

    fitting = (other for other in all_degrees(num_devices) if not any(d.conflict(other) for d in demands))
    return min(fitting, key=distance, default=None)


def all_degrees(num_devices: int) -> Iterator[Degrees]:
    """Each mesh of so many devices."""
    divisors = [n for n in range(1, num_devices + 1) if num_devices % n == 0]
    for sizes in itertools.product(divisors, repeat=len(AXES) - 1):
        rest, odd = divmod(num_devices, math.prod(sizes))
        if rest and not odd:
            yield Degrees(rest, *sizes)


def check_demands(degrees: Degrees, demands: Sequence[Demand]) -> None:
    """Raise ConfigError naming each size that the mesh cannot divide, and the nearest mesh that can."""
    conflicts = [why for demand in demands if (why := demand.conflict(degrees)) is not None]
    if not conflicts:
        return
    fitting = nearest(degrees, degrees.count, demands)
    hint = settings_of(fitting) if fitting is not None else setting_of_devices(1) or "start fewer processes"
    raise ConfigError(f"the mesh {degrees} does not divide this run", "; ".join(dict.fromkeys(conflicts)), hint)


def make_mesh(degrees: Degrees, devices: Sequence[jax.Device]) -> Mesh:
    """The mesh over these devices, in the order of their links; several slices of a TPU divide the rows.

    Raises ConfigError if the slices cannot.
    """
    shape = tuple(asdict(degrees).values())
    slices = {getattr(device, "slice_index", 0) for device in devices}
    if devices[0].platform != "tpu":
        return Mesh(np.array(devices).reshape(shape), AXES)
    if len(slices) > 1:
        if degrees.data % len(slices):
            why = (
                f"the devices are {len(slices)} slices, and slices divide rows: mesh.data is a multiple of their number"
            )
            raise ConfigError(
                f"mesh.data = {degrees.data} on {len(slices)} slices", why, f"--set mesh.data={len(slices)}"
            )
        within = (degrees.data // len(slices), *shape[1:])
        arranged = mesh_utils.create_hybrid_device_mesh(
            within, (len(slices), 1, 1, 1), devices, allow_split_physical_axes=True
        )
    else:
        arranged = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(arranged, AXES)


def make_abstract_mesh(degrees: Degrees, device: Any = None) -> AbstractMesh:
    """A mesh of devices that are not here; `device` is an AbstractDevice, or None."""
    sizes = tuple(asdict(degrees).values())
    return AbstractMesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES), abstract_device=device)


def degrees_of(mesh: Mesh | AbstractMesh) -> Degrees:
    return replace(Degrees(), **{axis: int(size) for axis, size in mesh.shape.items()})


def zigzag(length: int, count: int) -> np.ndarray[Any, Any]:
    """The steps of a sequence in the order in which `count` devices of a ring have them, int `[length]`.

    Of 2n equal pieces, device i has pieces i and 2n - 1 - i: in causal attention, each then has the same work.
    """
    pieces = np.arange(length).reshape(2 * count, -1)
    return np.concatenate([pieces[[i, 2 * count - 1 - i]].reshape(-1) for i in range(count)])


def parse_rules(base: Rules, changes: Sequence[str], key: str) -> Rules:
    """`base` with the changes of `[mesh]`: "vocab = tensor", "mlp = fsdp tensor", "embed =". Raises ConfigError."""
    rules = dict(base)
    for change in changes:
        name, equals, axes = (part.strip() for part in change.partition("="))
        unknown = [axis for axis in axes.split() if axis not in AXES]
        if not equals or name not in rules or unknown or len(set(axes.split())) < len(axes.split()):
            known = f"a logical axis ({', '.join(rules)}), =, and different mesh axes ({', '.join(AXES)}) or nothing"
            hint = f"--set 'mesh.{key}=[\"{next(iter(rules))} = fsdp\"]'"
            raise ConfigError(f"mesh.{key}: {change!r} is no rule", f"a rule is {known}", hint)
        rules[name] = tuple(axes.split())
    return rules


def setting_of_devices(count: int) -> str | None:
    """`train.devices` with which a job has so many devices; None if its processes cannot have the same number each."""
    each, rest = divmod(count, current_group().size)
    return f"--set train.devices={each}" if each and not rest else None


def settings_of(degrees: Degrees | None) -> str:
    return " ".join(f"--set mesh.{axis}={size}" for axis, size in asdict(degrees or Degrees()).items())

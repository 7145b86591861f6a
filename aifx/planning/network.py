"""The time of collectives between the devices of some hardware. Imports no JAX.

A slice of TPUs is a torus of links; the GPUs of a node share a switch. Several slices or nodes, called islands here,
are connected by the data center's network. A collective is a ring in each axis of the torus, all axes at once; between
islands, the members of an island share what has to leave it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from aifx.planning.hardware import Hardware, torus_of

ICI_SHARE = 0.9
"""Share of a TPU's links: 45 of a v4's 50 GB/s ("How to Scale Your Model", jax-ml/scaling-book, TPUs)."""

HOP_S = 1e-6
"""Latency from a TPU to its neighbour (the same source)."""

CALL_S = 10e-6
"""Latency of a collective among GPUs or over the network, however small: a guess."""

SWITCH_SHARE = 0.75
"""Share of a GPU's links in one direction, if the catalogue has no measured rate: of all-reduce it has some."""

NETWORK_SHARE = 0.9
"""Share of the data center's network: a guess."""

MEMORY_BYTES_S = 2e9
"""Rate between the simulated devices of a processor, which copy from thread to thread: a guess."""

NETWORK_BYTES_S = 50e9
"""Rate of a GPU to other nodes, if the catalogue has no figure: a port of 400 Gb/s each, as DGX H100 has."""


@dataclass(frozen=True)
class Collective:
    """A collective of a program, as one device takes part in it.

    Attributes:
        kind: "all-gather", "reduce-scatter", "all-reduce", "all-to-all" or "collective-permute".
        size: bytes of the whole array that is gathered, scattered or reduced; of one device's share otherwise.
        group: positions in the mesh of the devices that take part; all devices if empty.
        turns: how often a step runs it.
        in_loop: whether it is in a loop, whose other work can hide it.
    """

    kind: str
    size: float
    group: tuple[int, ...]
    turns: float = 1.0
    in_loop: bool = False


@dataclass(frozen=True)
class LinkUse:
    """The needs of the collectives of one kind among as many devices, in a step.

    Attributes:
        devices: of a group.
        calls: of a step.
        sent_bytes: that each device sends in a step.
        seconds: of a step.
        over: "ICI", "NVLink" or "network".
        in_loop: whether other work of a loop can hide it.
        turn_s: seconds of the longest one: the first or last of a loop, which nothing hides.
    """

    kind: str
    devices: int
    calls: float
    sent_bytes: float
    seconds: float
    over: str
    in_loop: bool
    turn_s: float


@dataclass(frozen=True)
class Network:
    """The links between devices, in bytes per second and direction of one device.

    Attributes:
        places: of each device in the mesh's order: its island and its coordinates in the torus.
        torus: shape of a slice; empty for a switch.
        rings: whether each axis of the torus is a ring.
        link: of one link of the torus; of all links to the switch.
        all_reduce: bus bandwidth of an all-reduce on the switch.
        outside: to other islands.
        name: of the links within an island.
    """

    places: tuple[tuple[int, ...], ...]
    torus: tuple[int, ...]
    rings: tuple[bool, ...]
    link: float
    all_reduce: float
    outside: float
    name: str
    _groups: dict[tuple[int, ...], _Group] = field(default_factory=dict, compare=False, repr=False)

    def seconds(self, one: Collective) -> tuple[float, str]:
        """The time of one call, and the links over which it takes longest."""
        group = self._groups.get(one.group)
        if group is None:
            group = self._groups[one.group] = self._group(one.group)
        inside = self._inside(one, group) if group.members > 1 else 0.0
        if group.islands == 1:
            return inside, self.name
        shared = one.size / group.members if one.kind in ("all-gather", "reduce-scatter", "all-reduce") else one.size
        outside = CALL_S + sent(one.kind, shared, group.islands) / self.outside
        return max((inside, self.name), (outside, "network"))

    def _group(self, indices: tuple[int, ...]) -> _Group:
        places = [self.places[index] for index in indices] or list(self.places)
        islands: dict[int, list[tuple[int, ...]]] = {}
        for island, *place in places:
            islands.setdefault(island, []).append(tuple(place))
        members = max(islands.values(), key=len)
        axes = (self._axis(dim, members) for dim in range(len(self.torus)))
        return _Group(len(islands), len(members), tuple(axis for axis in axes if axis.extent > 1))

    def _inside(self, one: Collective, group: _Group) -> float:
        if not self.torus:
            rate = self.all_reduce if one.kind == "all-reduce" else self.link
            return CALL_S + sent(one.kind, one.size, group.members) / rate
        axes = group.axes
        if not axes:  # the devices of one chip
            return sent(one.kind, one.size, group.members) / (2 * len(self.torus) * self.link)
        latency = sum(axis.hops for axis in axes) * HOP_S
        if one.kind == "all-to-all":
            return latency + max(one.size * axis.extent / (8 if axis.is_ring else 4) / axis.link for axis in axes)
        if one.kind == "collective-permute":
            return HOP_S + one.size / min(axis.link for axis in axes)
        return latency + sent(one.kind, one.size, group.members) / sum(axis.rate for axis in axes)

    def _axis(self, dim: int, members: Sequence[tuple[int, ...]]) -> _Axis:
        found = sorted({place[dim] for place in members})
        stride = (found[-1] - found[0]) / max(len(found) - 1, 1)
        is_ring = self.rings[dim] and len(found) * stride == self.torus[dim] and len(found) > 2
        return _Axis(len(found), is_ring, self.link / max(stride, 1))


@dataclass(frozen=True)
class _Axis:
    """Members of a group along an axis of the torus. `link` is their share of each link, which groups in between use,
    too."""

    extent: int
    is_ring: bool
    link: float

    @property
    def rate(self) -> float:
        return self.link * (2 if self.is_ring else 1)

    @property
    def hops(self) -> float:
        return self.extent / 2 if self.is_ring else self.extent - 1


@dataclass(frozen=True)
class _Group:
    """Where the devices of a collective are.

    Attributes:
        islands: that they are in.
        members: of the largest of these.
        axes: of the torus that the members span.
    """

    islands: int
    members: int
    axes: tuple[_Axis, ...]


def sent(kind: str, size: float, members: int) -> float:
    """Bytes that each of so many devices sends in a ring."""
    # In a ring of n devices, each sends a piece of 1/n of the array to the next one, n - 1 times: then all pieces are
    # gathered, or summed. An all-reduce is a reduce-scatter and an all-gather, and sends twice as much (Patarasuk and
    # Yuan 2009, doi:10.1016/j.jpdc.2008.09.002).
    if kind == "collective-permute":
        return size
    return (2 if kind == "all-reduce" else 1) * size * (members - 1) / members


def network_of(hardware: Hardware, places: Sequence[tuple[int, ...]] | None = None) -> Network:
    """The links of hardware.

    Args:
        places: of the devices in the mesh's order, if a compiler knows them; otherwise in row-major order.
    """
    chip = hardware.chip
    if chip is None:
        in_one = ((0,),) * hardware.num_devices
        return Network(in_one, (), (), MEMORY_BYTES_S, MEMORY_BYTES_S, MEMORY_BYTES_S, "memory")
    outside = chip.network_gb_s * 1e9 / chip.devices_per_chip if chip.network_gb_s else NETWORK_BYTES_S
    torus = torus_of(hardware) if hardware.platform == "tpu" else ()
    per_island = math.prod(torus) * chip.devices_per_chip if torus else hardware.per_node
    found = tuple(places) if places is not None else tuple(
        (index // per_island, *_coordinates(index % per_island // chip.devices_per_chip, torus))
        for index in range(hardware.num_devices)
    )  # fmt: skip
    each_way = (chip.link_gb_s or 32.0) / 2 * 1e9 / chip.devices_per_chip
    if torus:
        link = ICI_SHARE * each_way / (2 * len(torus))
        # v5e and v6e are rings along whole axes of their pod; v4, v5p and TPU7x close every axis of whole cubes.
        rings = tuple(side == 16 for side in torus) if len(torus) == 2 else (all(s % 4 == 0 for s in torus),) * 3
        return Network(found, torus, rings, link, link, NETWORK_SHARE * outside, "ICI")
    all_reduce = chip.usual_all_reduce_gb_s * 1e9 if chip.usual_all_reduce_gb_s else SWITCH_SHARE * each_way
    name = "NVLink" if chip.nvlink_mb_s else "PCIe"
    return Network(found, (), (), SWITCH_SHARE * each_way, all_reduce, NETWORK_SHARE * outside, name)


def link_uses(collectives: Sequence[Collective], network: Network) -> list[LinkUse]:
    """By kind and size of the group, the longest first."""
    found: dict[tuple[str, int, str, bool], LinkUse] = {}
    for one in collectives:
        members = len(one.group) or len(network.places)
        if members == 1:
            continue
        call_s, over = network.seconds(one)
        key = one.kind, members, over, one.in_loop
        before = found.get(key, LinkUse(one.kind, members, 0.0, 0.0, 0.0, over, one.in_loop, 0.0))
        found[key] = LinkUse(
            one.kind,
            members,
            before.calls + one.turns,
            before.sent_bytes + one.turns * sent(one.kind, one.size, members),
            before.seconds + one.turns * call_s,
            over,
            one.in_loop,
            max(before.turn_s, call_s),
        )
    return sorted(found.values(), key=lambda use: -use.seconds)


def _coordinates(index: int, shape: Sequence[int]) -> tuple[int, ...]:
    """In row-major order."""
    found = []
    for side in reversed(shape):
        index, place = divmod(index, side)
        found.append(place)
    return tuple(reversed(found))

"""Meshes of TPUs of several slices, from descriptions of devices that are not here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from aifx.core.errors import ConfigError
from aifx.parallel.mesh import AXES, Degrees, make_mesh


@dataclass(frozen=True)
class Chip:
    """A chip of a TPU v5e, as JAX describes it."""

    id: int
    slice_index: int
    coords: tuple[int, int, int]
    platform: str = "tpu"
    device_kind: str = "TPU v5 lite"
    core_on_chip: int = 0
    process_index: int = 0


def chips(slices: int, width: int = 4, height: int = 2) -> list[Any]:
    """The chips of so many slices of `width` x `height`, in an order that does not show their place."""
    found = [
        Chip(number * width * height + y * width + x, number, (x, y, 0))
        for number in range(slices)
        for y in range(height)
        for x in range(width)
    ]
    return [found[index] for index in np.random.default_rng(0).permutation(len(found))]


@pytest.mark.parametrize(
    ("slices", "degrees"),
    [
        (2, Degrees(data=2, fsdp=8)),
        (2, Degrees(data=4, fsdp=2, tensor=2)),
        (4, Degrees(data=4, fsdp=4, context=2)),
        (4, Degrees(data=32)),
    ],
)
def test_slices_divide_rows(slices: int, degrees: Degrees) -> None:
    """Devices along each other axis are of one slice, and slices follow each other along `data`."""
    mesh = make_mesh(degrees, chips(slices))
    assert dict(mesh.shape) == {axis: getattr(degrees, axis) for axis in AXES}
    assert sorted(chip.id for chip in mesh.devices.flat) == list(range(8 * slices))
    each = degrees.data // slices
    for row, group in enumerate(mesh.devices):
        assert {chip.slice_index for chip in group.flat} == {row // each}


def test_devices_of_one_slice_follow_its_links() -> None:
    """Neighbours along an axis of the mesh are neighbours in the slice."""
    mesh = make_mesh(Degrees(fsdp=4, tensor=4), chips(1, height=4))
    for one, other in ((mesh.devices[0, :-1], mesh.devices[0, 1:]), (mesh.devices[0, :, :-1], mesh.devices[0, :, 1:])):
        for a, b in zip(one.flat, other.flat, strict=True):
            assert sum(abs(x - y) for x, y in zip(a.coords, b.coords, strict=True)) == 1


def test_slices_that_do_not_divide_rows_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"mesh\.data = 3 .*2 slices") as refused:
        make_mesh(Degrees(data=3, fsdp=4), chips(2, width=3))
    assert refused.value.hint == "--set mesh.data=2"

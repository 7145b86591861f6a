"""The time of collectives on the links of a torus, a switch and a network."""

from __future__ import annotations

import math

import pytest

from aifx.planning.hardware import find_hardware
from aifx.planning.network import CALL_S, HOP_S, Collective, Network, link_uses, network_of

SIZE = 1 << 30


def network(name: str) -> Network:
    return network_of(find_hardware(name))


def seconds(name: str, kind: str, group: tuple[int, ...] = ()) -> float:
    return network(name).seconds(Collective(kind, SIZE, group))[0]


def test_links_follow_from_the_catalogue() -> None:
    """v5e: 4 links of 50 GB/s each way; v5p: 6 of 100. 45 and 90 are reached."""
    for name, link, shape in (("v5e-256", 45e9, (16, 16)), ("v5p-512", 90e9, (4, 8, 8)), ("v6e-256", 90e9, (16, 16))):
        found = network(name)
        assert found.link == pytest.approx(link)
        assert found.torus == shape
        assert all(found.rings)
    assert not any(network("v5e-16").rings)
    assert network("v5e-128").rings == (False, True)
    assert network("v5p-16").rings == (False, False, False)


def test_a_ring_over_the_whole_torus_uses_every_link() -> None:
    """Scaling book: an all-gather takes the array's bytes over the bandwidth of all axes, both ways."""
    gather = seconds("v5e-256", "all-gather")
    assert gather == pytest.approx(SIZE * 255 / 256 / (4 * 45e9) + 16 * HOP_S)
    assert seconds("v5e-256", "reduce-scatter") == gather
    assert seconds("v5e-256", "all-reduce") == pytest.approx(2 * gather - 16 * HOP_S)


def test_a_group_along_one_axis_has_that_axis_alone() -> None:
    row = tuple(range(16))
    column = tuple(range(0, 256, 16))
    along_one = SIZE * 15 / 16 / (2 * 45e9) + 8 * HOP_S
    assert seconds("v5e-256", "all-gather", row) == pytest.approx(along_one)
    assert seconds("v5e-256", "all-gather", column) == pytest.approx(along_one)


def test_a_part_of_an_axis_is_no_ring_and_strided_groups_share_links() -> None:
    part = seconds("v5e-256", "all-gather", (0, 1, 2, 3))
    assert part == pytest.approx(SIZE * 3 / 4 / 45e9 + 3 * HOP_S)
    strided = seconds("v5e-256", "all-gather", (0, 4, 8, 12))
    assert strided == pytest.approx(SIZE * 3 / 4 / (2 * 45e9 / 4) + 2 * HOP_S)


def test_an_all_to_all_on_a_ring_takes_a_quarter_of_an_all_gather_of_the_same_array() -> None:
    row = tuple(range(16))
    exchange = network("v5e-256").seconds(Collective("all-to-all", SIZE / 16, row))[0] - 8 * HOP_S
    assert exchange == pytest.approx(SIZE / (2 * 45e9) / 4, rel=0.01)


def test_slices_and_nodes_are_connected_by_the_network() -> None:
    """Bytes that enter an island are shared by its members; the slower of both links counts."""
    slices = network("v5e-256x4")
    alone = slices.seconds(Collective("all-reduce", SIZE, (0, 256, 512, 768)))
    assert alone == (pytest.approx(2 * SIZE * 3 / 4 / (0.9 * 3.125e9) + CALL_S), "network")
    assert slices.seconds(Collective("all-reduce", SIZE, ()))[1] == "ICI"
    across = network("h100x16").seconds(Collective("all-reduce", SIZE, (0, 8)))
    assert across == (pytest.approx(SIZE / (0.9 * 50e9) + CALL_S), "network")
    within = network("h100x16").seconds(Collective("all-reduce", SIZE, tuple(range(8))))
    assert within == (pytest.approx(2 * SIZE * 7 / 8 / 460e9 + CALL_S), "NVLink")
    assert network("gb200x64").seconds(Collective("all-gather", SIZE, ()))[1] == "NVLink"
    assert network("gb200x144").seconds(Collective("all-gather", SIZE, (71, 72)))[1] == "network"


def test_two_devices_of_a_chip_share_its_links() -> None:
    found = network("tpu7x-64")
    assert len(found.places) == 128
    assert found.places[0] == found.places[1]
    assert found.link == pytest.approx(0.9 * 1200e9 / 2 / 2 / 6)


def test_uses_are_added_up_by_kind_and_group() -> None:
    row = tuple(range(16))
    layers = [Collective("all-gather", SIZE, row, turns=32, in_loop=True)] * 2
    last = Collective("all-reduce", 4, ())
    alone = Collective("all-gather", SIZE, (3,))
    gathers, reduce = link_uses([*layers, last, alone], network("v5e-256"))
    assert (gathers.kind, gathers.devices, gathers.calls, gathers.in_loop) == ("all-gather", 16, 64, True)
    assert gathers.sent_bytes == 64 * SIZE * 15 / 16
    assert math.isclose(gathers.turn_s * 64, gathers.seconds)
    assert (reduce.devices, reduce.over, reduce.in_loop) == (256, "ICI", False)

"""Healthy machines that are not a GPU server: a node with InfiniBand."""

from __future__ import annotations

from health_machines.linux import server
from health_machines.network_files import infiniband_files, port


def infiniband_server() -> dict[str, str]:
    """Eight ports in use, and the second port of the first card, which has no cable."""
    tree = server() | infiniband_files()
    return tree | port(8, "10 Gb/sec (4X SDR)", state="1: DOWN", phys="3: Disabled", function=1)


MACHINES = {"server with InfiniBand": infiniband_server}

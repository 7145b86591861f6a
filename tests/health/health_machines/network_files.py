"""Network cards and InfiniBand ports as sysfs shows them."""

from __future__ import annotations

ROUTES = (
    "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"
    "eno1\t00000000\t0101A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n"
    "eno1\t0001A8C0\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0\n"
)
MODULES = "xfs 2379776 1 - Live 0x0000000000000000\next4 1126400 2 - Live 0x0000000000000000\n"


def card(
    name: str,
    speed: int = 25000,
    model: str = "0x15b3:0x1015",
    state: str = "up",
    flags: str = "0x1003",
    mtu: int = 1500,
) -> dict[str, str]:
    """A network card; `speed` in Mb/s."""
    folder = f"sys/class/net/{name}"
    vendor, device = model.split(":")
    return {
        f"{folder}/device/vendor": f"{vendor}\n",
        f"{folder}/device/device": f"{device}\n",
        f"{folder}/type": "1\n",
        f"{folder}/operstate": f"{state}\n",
        f"{folder}/flags": f"{flags}\n",
        f"{folder}/speed": f"{speed}\n",
        f"{folder}/duplex": "full\n" if speed > 0 else "unknown\n",
        f"{folder}/mtu": f"{mtu}\n",
        f"{folder}/carrier_changes": "2\n" if state == "up" else "1\n",
        f"{folder}/statistics/rx_errors": "0\n",
        f"{folder}/statistics/tx_errors": "0\n",
    }


def network_files() -> dict[str, str]:
    """One card in use, one that was never connected, a bridge."""
    return {
        **card("eno1"),
        **card("eno2", speed=-1, state="down"),
        "sys/class/net/lo/operstate": "unknown\n",
        "sys/class/net/docker0/operstate": "down\n",
        "proc/net/route": ROUTES,
        "proc/modules": MODULES,
        "aifx-captured/own_name.json": '{"resolves": true, "took_ms": 0.41}',
    }


def port(
    number: int,
    rate: str = "400 Gb/sec (4X NDR)",
    layer: str = "InfiniBand",
    state: str = "4: ACTIVE",
    phys: str = "5: LinkUp",
    function: int = 0,
) -> dict[str, str]:
    """A card `mlx5_<number>` with its one port."""
    folder = f"sys/class/infiniband/mlx5_{number}"
    files = {
        "link_layer": layer,
        "state": state,
        "phys_state": phys,
        "rate": rate,
        **dict.fromkeys((f"counters/{name}" for name in COUNTERS), "0"),
        "hw_counters/rnr_nak_retry_err": "0",
    }
    return {
        f"{folder}/board_id": "MT_0000000838\n",
        f"{folder}/hca_type": "MT4129\n",
        f"{folder}/fw_ver": "28.39.3560\n",
        f"{folder}/device": f"-> ../../../0000:{0x18 + 16 * number // 2:02x}:00.{function}",
        **{f"{folder}/ports/1/{name}": f"{text}\n" for name, text in files.items()},
        f"sys/class/infiniband_verbs/uverbs{number}/ibdev": f"mlx5_{number}\n",
        f"dev/infiniband/uverbs{number}": "",
    }


COUNTERS = (
    "symbol_error",
    "link_downed",
    "link_error_recovery",
    "port_rcv_errors",
    "excessive_buffer_overrun_errors",
    "local_link_integrity_errors",
)


def infiniband_files(ports: int = 8, rate: str = "400 Gb/sec (4X NDR)") -> dict[str, str]:
    """One card for each GPU; each one's second port is not used."""
    tree: dict[str, str] = {}
    for number in range(ports):
        tree |= port(number, rate)
    return tree

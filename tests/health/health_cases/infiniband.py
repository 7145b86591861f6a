from health_machines.host_files import own_limits
from health_machines.network_files import port
from health_trees import Case, Tree

PORT = "sys/class/infiniband/mlx5_5/ports/1"
NODE = "server with InfiniBand"
SYSTEM = "8xH100 SXM with InfiniBand"


def rises(rule: str, counter: str, now: int, then: int = 0) -> Case:
    return Case(rule, NODE, {f"{PORT}/{counter}": f"{now}\n"}, before={f"{PORT}/{counter}": f"{then}\n"})


def never_up(*numbers: int, state: str = "1: DOWN", phys: str = "2: Polling") -> dict[str, str]:
    """Ports that never had a link."""
    tree: dict[str, str] = {}
    for number in numbers:
        tree |= port(number, "10 Gb/sec (4X SDR)", state=state, phys=phys)
    return {path: text for path, text in tree.items() if "/ports/" in path}


def at_200(numbers: range) -> dict[str, str]:
    return {f"sys/class/infiniband/mlx5_{n}/ports/1/rate": "200 Gb/sec (2X NDR)\n" for n in numbers}


def without_one_beside_storage(tree: Tree) -> None:
    """Seven InfiniBand cards, and two RoCE cards that serve storage."""
    for path in list(tree):
        if "mlx5_5/" in path or "uverbs5" in path:
            del tree[path]
    for number in (8, 9):
        tree |= port(number, "100 Gb/sec (4X EDR)", layer="Ethernet")


def roce_without_one(tree: Tree) -> None:
    """Eight GPUs of a kind that says nothing of ports, and seven ports."""
    for path in list(tree):
        if path.endswith("/link_layer"):
            tree[path] = "Ethernet\n"
        if "mlx5_5/" in path or "uverbs5" in path:
            del tree[path]


CASES = [
    Case("limits.memlock.limited", NODE, {"proc/self/limits": own_limits(memlock="8388608")}),
    Case("infiniband.port.never_up", NODE, never_up(5)),
    Case("infiniband.port.never_up", NODE, never_up(5), site={"expected": {"infiniband_ports": 8}}),
    Case("infiniband.port.down", NODE, never_up(5) | {f"{PORT}/counters/link_downed": "1\n"}),
    Case("infiniband.port.not_configured", NODE, {f"{PORT}/state": "2: INIT\n"}),
    Case(
        "infiniband.ports.expected",
        NODE,
        {"sys/class/infiniband/mlx5_5": None},
        site={"expected": {"infiniband_ports": 8}},
    ),
    Case(
        "infiniband.ports.expected",
        SYSTEM,
        {"sys/class/infiniband/mlx5_5": None, "sys/class/infiniband_verbs/uverbs5": None},
    ),
    Case("infiniband.ports.expected", SYSTEM, without_one_beside_storage),
    Case("infiniband.ports.few", SYSTEM, roce_without_one),
    Case("infiniband.port.never_up", SYSTEM, never_up(*range(8))),
    Case("infiniband.port.never_up", NODE, never_up(*range(8)), site={"expected": {"infiniband_ports": 8}}),
    Case("infiniband.port.never_up", SYSTEM, never_up(4)),
    Case("infiniband.rate.expected", SYSTEM, at_200(range(8))),
    Case("infiniband.errors.counter_full", NODE, {f"{PORT}/counters/link_downed": "255\n"}),
    Case("infiniband.errors.counter_full", NODE, {f"{PORT}/counters/excessive_buffer_overrun_errors": "15\n"}),
    rises("infiniband.errors.counter_full", "counters/port_rcv_errors", 65535, 65535),
    rises("infiniband.errors.counter_filled", "counters/port_rcv_errors", 65535, 65000),
    Case("infiniband.rate.below_peers", NODE, {f"{PORT}/rate": "200 Gb/sec (2X NDR)\n"}),
    Case("infiniband.rate.expected", SYSTEM, {f"{PORT}/rate": "200 Gb/sec (2X NDR)\n"}),
    Case(
        "infiniband.rate.expected",
        NODE,
        {f"{PORT}/rate": "200 Gb/sec (2X NDR)\n"},
        site={"expected": {"infiniband_gbit": 400}},
    ),
    rises("infiniband.link.downed", "counters/link_downed", 3, 2),
    rises("infiniband.link.recoveries", "counters/link_error_recovery", 90),
    rises("infiniband.errors.symbols", "counters/symbol_error", 500, 100),
    rises("infiniband.errors.integrity", "counters/local_link_integrity_errors", 1),
    rises("infiniband.errors.overruns", "counters/excessive_buffer_overrun_errors", 4),
    rises("infiniband.errors.not_ready", "hw_counters/rnr_nak_retry_err", 1),
    rises("infiniband.errors.received", "counters/port_rcv_errors", 7000),
    Case("infiniband.devices.missing", NODE, {"dev/infiniband": None}),
]

from health_machines.host_files import meminfo, node_meminfo
from health_trees import Case

EDAC = "sys/devices/system/edac/mc"
GROUP = "sys/fs/cgroup/user.slice/user-1000.slice"
LIMITED = {
    f"{GROUP}/memory.max": f"{64 << 30}\n",
    f"{GROUP}/memory.current": f"{70 << 30}\n",
    f"{GROUP}/memory.stat": f"anon {60 << 30}\ninactive_file {8 << 30}\n",
}

CASES = [
    Case("memory.ecc.uncorrected", "server", {f"{EDAC}/mc2/ue_count": "1\n", f"{EDAC}/mc2/dimm1/dimm_ue_count": "1\n"}),
    Case(
        "memory.ecc.corrected",
        "server",
        {f"{EDAC}/mc1/ce_count": "4012\n", f"{EDAC}/mc1/dimm0/dimm_ce_count": "4012\n"},
        before={f"{EDAC}/mc1/ce_count": "4000\n"},
    ),
    Case("memory.ecc.storm", "server", {f"{EDAC}/mc0/ce_count": "90000\n"}, before={}),
    Case("memory.poisoned.pages", "server", {"proc/meminfo": meminfo(1007.5, 948, HardwareCorrupted=128)}),
    Case(
        "memory.size.expected",
        "server",
        {"proc/meminfo": meminfo(944, 900), "sys/devices/system/node/node1/meminfo": node_meminfo(1, 440)},
        site={"expected": {"memory_gib": 1024}},
    ),
    Case("memory.size.nodes_differ", "server", {"sys/devices/system/node/node1/meminfo": node_meminfo(1, 440)}),
    Case("memory.available.low", "server", {"proc/meminfo": meminfo(1007.5, 12, 8, SwapFree=0)}),
    Case(
        "memory.swap.active",
        "server",
        {"proc/vmstat": "pswpin 8000000\n", "proc/meminfo": meminfo(1007.5, 300, 8, SwapFree=0)},
        before={},
    ),
    Case("memory.swap.used", "server", {"proc/meminfo": meminfo(1007.5, 600, 8, SwapFree=1024)}),
    Case("memory.huge_pages.unused", "server", {"proc/meminfo": meminfo(1007.5, 430, huge_pages=262144)}),
    Case("memory.cgroup.tight", "server", LIMITED),
    Case("memory.cgroup.oom", "server", {f"{GROUP}/session-4.scope/memory.events": "oom 3\noom_kill 3\n"}),
]

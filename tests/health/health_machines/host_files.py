"""The files of a bare-metal server that tell of memory, limits, disks, networks and the clock."""

from __future__ import annotations

from health_machines.clock_files import clock_files
from health_machines.disk_files import disk_files
from health_machines.network_files import network_files

KIB_PER_GIB = 1 << 20


def host_files() -> dict[str, str]:
    """Two sockets with 512 GiB each, Ubuntu, control groups of version 2."""
    return memory_files() | limits_files() | network_files() | disk_files() | clock_files()


def meminfo(total_gib: float, available_gib: float, swap_gib: float = 0, huge_pages: int = 0, **others: int) -> str:
    """/proc/meminfo, its lines that are read."""
    lines = {
        "MemTotal": int(total_gib * KIB_PER_GIB),
        "MemFree": int(available_gib * KIB_PER_GIB * 0.9),
        "MemAvailable": int(available_gib * KIB_PER_GIB),
        "SwapTotal": int(swap_gib * KIB_PER_GIB),
        "SwapFree": int(swap_gib * KIB_PER_GIB),
        "HardwareCorrupted": 0,
        **others,
    }
    pages = {"HugePages_Total": huge_pages, "HugePages_Free": huge_pages, "HugePages_Rsvd": 0, "HugePages_Surp": 0}
    text = [f"{name + ':':<16}{number:>9} kB" for name, number in lines.items()]
    text += [f"{name + ':':<16}{number:>9}" for name, number in pages.items()]
    return "\n".join([*text, "Hugepagesize:       2048 kB"]) + "\n"


def node_meminfo(node: int, gib: float) -> str:
    return f"Node {node} MemTotal:       {int(gib * KIB_PER_GIB)} kB\nNode {node} MemFree:        {int(gib * 9e5)} kB\n"


def memory_files() -> dict[str, str]:
    nodes, edac = "sys/devices/system/node", "sys/devices/system/edac/mc"
    tree = {
        "proc/meminfo": meminfo(1007.5, 948.2, swap_gib=8),
        "proc/vmstat": "nr_free_pages 231842012\npswpin 0\npswpout 0\noom_kill 0\n",
        "proc/sys/vm/swappiness": "60\n",
        "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never\n",
        "proc/self/cgroup": "0::/user.slice/user-1000.slice/session-4.scope\n",
        f"{nodes}/node0/cpulist": "0-7\n",
        f"{nodes}/node1/cpulist": "8-15\n",
        f"{nodes}/node0/meminfo": node_meminfo(0, 503.6),
        f"{nodes}/node1/meminfo": node_meminfo(1, 503.9),
    }
    for controller in range(4):
        tree |= {
            f"{edac}/mc{controller}/mc_name": "Intel_10nm Socket#0 IMC#0\n",
            f"{edac}/mc{controller}/ce_count": "0\n",
            f"{edac}/mc{controller}/ue_count": "0\n",
            f"{edac}/mc{controller}/seconds_since_reset": "1209600\n",
        }
        for dimm in range(2):
            folder = f"{edac}/mc{controller}/dimm{dimm}"
            tree |= {
                f"{folder}/dimm_label": f"CPU_SrcID#0_MC#{controller}_Chan#{dimm}_DIMM#0\n",
                f"{folder}/dimm_ce_count": "0\n",
                f"{folder}/dimm_ue_count": "0\n",
            }
    return tree | cgroup2("user.slice/user-1000.slice/session-4.scope")


def cgroup2(path: str) -> dict[str, str]:
    """A control group of version 2 without limits, and those above it."""
    names = path.split("/")
    tree = {}
    for depth in range(1, len(names) + 1):
        folder = "/".join(["sys/fs/cgroup", *names[:depth]])
        tree |= {
            f"{folder}/memory.max": "max\n",
            f"{folder}/memory.current": "8589934592\n",
            f"{folder}/memory.stat": "anon 5368709120\nfile 3221225472\ninactive_file 1073741824\n",
            f"{folder}/memory.events": "low 0\nhigh 0\nmax 0\noom 0\noom_kill 0\noom_group_kill 0\n",
            f"{folder}/pids.max": "max\n",
            f"{folder}/pids.current": "61\n",
            f"{folder}/cpu.max": "max 100000\n",
            f"{folder}/cpu.stat": "usage_usec 26315\nnr_periods 0\nnr_throttled 0\nthrottled_usec 0\n",
        }
    return tree


def own_limits(open_files: int = 1048576, memlock: str = "unlimited") -> str:
    """/proc/self/limits, its lines that are read."""
    return (
        "Limit                     Soft Limit           Hard Limit           Units     \n"
        f"Max open files            1024                 {open_files:<20} files     \n"
        f"Max locked memory         {memlock:<20} {memlock:<20} bytes     \n"
    )


def stat(pid: int, name: str, state: str = "S", flags: int = 4194560) -> str:
    """/proc/PID/stat."""
    return f"{pid} ({name}) {state} 1 {pid} {pid} 0 -1 {flags} 1043 0 0 0 12 7 0 0 20 0 1 0 4291\n"


def limits_files() -> dict[str, str]:
    return {
        "proc/self/limits": own_limits(),
        "proc/self/status": "Name:\tpython3\nCapEff:\t0000000000000000\nCpus_allowed:\tffff\n",
        "proc/sys/kernel/pid_max": "4194304\n",
        "proc/sys/kernel/threads-max": "8251021\n",
        "proc/sys/fs/file-nr": "14016\t0\t9223372036854775807\n",
        "proc/1/stat": stat(1, "systemd"),
        "proc/2/stat": stat(2, "kthreadd", flags=2129984),
        "proc/811/stat": stat(811, "kworker/u64:2-events", "D", flags=69238880),
        "proc/77120/stat": stat(77120, "(sd-pam)"),
        "aifx-captured/shm_space.json": '{"size_gib": 503.8, "free_gib": 503.8, "used_percent": 0.0}',
    }

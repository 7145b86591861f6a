from health_machines.host_files import own_limits, stat
from health_trees import Case

GROUP = "sys/fs/cgroup/user.slice/user-1000.slice"

CASES = [
    Case("limits.open_files.low", "server", {"proc/self/limits": own_limits(open_files=1024)}),
    Case("limits.handles.exhausted", "server", {"proc/sys/fs/file-nr": "9900\t0\t10000\n"}),
    Case("limits.handles.high", "server", {"proc/sys/fs/file-nr": "8100\t0\t10000\n"}),
    Case("limits.tasks.exhausted", "server", {"proc/loadavg": "1.02 0.98 0.91 2/4190000 77123\n"}),
    Case("limits.tasks.high", "server", {"proc/sys/kernel/pid_max": "2500\n"}),
    Case("limits.tasks.cgroup", "server", {f"{GROUP}/pids.max": "100\n", f"{GROUP}/pids.current": "98\n"}),
    Case("limits.cpu.few", "server", {"proc/self/status": "Name:\tpython3\nCpus_allowed:\t0100\n"}),
    Case("limits.cpu.few", "server", {f"{GROUP}/cpu.max": "150000 100000\n"}),
    Case(
        "limits.cpu.throttled",
        "server",
        {f"{GROUP}/session-4.scope/cpu.stat": "usage_usec 9\nnr_periods 99000\nnr_throttled 5000\n"},
        before={f"{GROUP}/session-4.scope/cpu.stat": "usage_usec 9\nnr_periods 93000\nnr_throttled 100\n"},
    ),
    Case("limits.shm.small", "server", {"aifx-captured/shm_space.json": '{"size_gib": 0.062, "used_percent": 0.0}'}),
    Case("limits.shm.full", "server", {"aifx-captured/shm_space.json": '{"size_gib": 503, "used_percent": 97.2}'}),
    Case(
        "limits.processes.driver_stuck",
        "server",
        {
            "proc/4711/stat": stat(4711, "nvidia-smi", "D"),
            "proc/4712/stat": stat(4712, "python3", "D"),
            "proc/4713/stat": stat(4713, "python3", "D"),
            "proc/4714/stat": stat(4714, "a (b) c", "D"),
        },
    ),
    Case("limits.processes.stuck", "server", {f"proc/{n}/stat": stat(n, "ls", "D") for n in (4711, 4712, 4713)}),
    Case("limits.processes.zombies", "server", {f"proc/{n}/stat": stat(n, "sh", "Z") for n in range(5000, 5300)}),
]

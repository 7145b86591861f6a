"""Healthy machines: two nodes with InfiniBand, a TPU VM, a small VM, a container."""

from __future__ import annotations

import json

from health_machines.clock_files import CHRONY, timesyncd
from health_machines.disk_files import smart
from health_machines.gpus import h100_sxm
from health_machines.host_files import meminfo, node_meminfo, own_limits, stat
from health_machines.jax_stack import captured, jax_files, packages
from health_machines.linux import server
from health_machines.network_files import card, infiniband_files, port

PACKAGES = "aifx-captured/jax_packages.json"
METAL = (
    "sys/devices/system/edac/",
    "sys/devices/system/cpu/cpu",
    "sys/devices/system/node/",
    "sys/class/nvme/",
    "sys/class/net/",
    "sys/fs/ext4/",
    "sys/dev/block/",
    "aifx-captured/nvme_",
)
VIRTUAL_CPU = """\
processor\t: 0
vendor_id\t: AuthenticAMD
model name\t: AMD EPYC
flags\t\t: fpu sse4_2 avx2 avx512f hypervisor
"""
ONE_DISK = """\
22 27 0:21 / /proc rw,relatime - proc proc rw
25 24 0:23 / /dev/shm rw,relatime - tmpfs tmpfs rw,size=24684084k
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
"""
ROOT = '[{"device": "run /opt/run, cache /opt/.cache/aifx, temp /tmp, root /", \
"mount_point": "/", "size_gib": 251.9, "free_gib": 201.1, \
"used_percent": 16.3, "inodes_used_percent": 3.9, "is_writable": true, "unwritable": []}]'
SMART_OF_A_VIRTUAL_DISK = ("temperature", "avail_spare", "spare_thresh", "percent_used", "num_err_log_entries")
CONTROLLERS = ("cpuset", "cpu,cpuacct", "memory", "pids")


def infiniband_server() -> dict[str, str]:
    """Eight ports in use, and the second port of the first card, which has no cable."""
    tree = server() | infiniband_files()
    return tree | port(8, "10 Gb/sec (4X SDR)", state="1: DOWN", phys="3: Disabled", function=1)


def h100_infiniband() -> dict[str, str]:
    """A port of 400 Gb/s for each GPU, which reaches its memory."""
    tree = h100_sxm() | infiniband_files()
    peermem = "nvidia_peermem 16384 0 - Live 0x0000000000000000 (POE)\n"
    nvidia = "nvidia 9732096 38 nvidia_uvm,nvidia_peermem, Live 0x0000000000000000 (POE)\n"
    return tree | {"proc/modules": tree["proc/modules"] + nvidia + peermem}


def virtual(cpus: int, gib: float) -> dict[str, str]:
    """A VM: no sensor, no memory controller, no frequency to drive."""
    tree = {path: text for path, text in server().items() if not path.startswith(METAL)}
    return tree | {
        "proc/cpuinfo": VIRTUAL_CPU,
        "proc/meminfo": meminfo(gib, gib * 0.9),
        "proc/self/status": f"Name:\tpython3\nCpus_allowed:\t{(1 << cpus) - 1:x}\n",
        "proc/self/mountinfo": ONE_DISK,
        "sys/devices/system/cpu/online": f"0-{cpus - 1}\n",
        "sys/devices/system/cpu/present": f"0-{cpus - 1}\n",
        "sys/devices/system/node/node0/cpulist": f"0-{cpus - 1}\n",
        "sys/devices/system/node/node0/meminfo": node_meminfo(0, gib),
        "sys/dev/block/254:0": "-> ../../devices/pci0000:00/0000:00:02.0/virtio1/block/vda",
        "sys/fs/ext4/vda/errors_count": "0\n",
        "sys/devices/system/clocksource/clocksource0/current_clocksource": "kvm-clock\n",
        "aifx-captured/disk_places.json": ROOT,
        **card("eth0", speed=-1, model="0x1af4:0x0001", mtu=1460),
    }


def tpu_vm() -> dict[str, str]:
    """ct5lp-hightpu-8t: eight chips under VFIO, two NUMA nodes."""
    chip = {"kind": "TPU v5 lite", "platform": "tpu", "computes": True, "is_right": True, "error": ""}
    said = packages()
    said["packages"]["libtpu"] = "0.0.50"
    devices = [{"device": f"tpu:{number}", **chip} for number in range(8)]
    tree = virtual(224, 377.8) | captured(said, devices, {"absent": "NVML Shared Library Not Found"})
    half = tree["sys/devices/system/node/node0/meminfo"]
    del tree[CHRONY]
    for number in range(8):
        folder = f"sys/bus/pci/devices/0000:00:{4 + number:02x}.0"
        tree |= {
            f"{folder}/vendor": "0x1ae0\n",
            f"{folder}/device": "0x0063\n",
            f"{folder}/class": "0xff0000\n",
            f"dev/vfio/{number}": "",
        }
    return tree | {
        "sys/bus/pci/devices/0000:00:0c.0/vendor": "0x1ae0\n",
        "sys/bus/pci/devices/0000:00:0c.0/device": "0x0042\n",  # Google's network card
        "sys/devices/system/node/node1/cpulist": "112-223\n",
        "sys/devices/system/node/node1/meminfo": half,
        "sys/kernel/mm/transparent_hugepage/enabled": "[always] madvise never\n",
        "dev/vfio/vfio": "",
        "proc/4711/stat": stat(4711, "google_guest_ag"),
        "proc/4711/fd/7": "-> socket:[44121]",
        "aifx-captured/tpu_denied.json": "0",
        "aifx-captured/libtpu.json": '"0.0.50"',
        "sys/class/nvme/nvme0/model": "nvme_card-pd\n",
        "sys/class/nvme/nvme0/state": "live\n",
        "aifx-captured/nvme_smart-log_devnvme0_-o_json.txt": smart(**dict.fromkeys(SMART_OF_A_VIRTUAL_DISK, 0)),
        "aifx-captured/shm_space.json": '{"size_gib": 188.9, "used_percent": 0.0}',
        **timesyncd(),
    }


def server_with_tpu_compiler() -> dict[str, str]:
    """Without a TPU, and with a libtpu for `aifx plan` that is newer than JAX takes."""
    tree = server()
    said = json.loads(tree[PACKAGES])
    said["packages"]["libtpu"] = "0.0.52"
    return tree | {PACKAGES: json.dumps(said)}


def small_vm() -> dict[str, str]:
    """Two processors under Firecracker, control groups of version 1, no systemd and nothing that sets the clock."""
    tree = virtual(2, 23.5) | jax_files()
    gone = ("sys/fs/cgroup/", "etc/fstab", "proc/modules", CHRONY)
    tree = {path: text for path, text in tree.items() if not path.startswith(gone)}
    groups = [f"{number}:{name}:/" for number, name in enumerate(CONTROLLERS, 1)]
    return tree | {
        "proc/self/cgroup": "\n".join(groups).replace("memory:/", "memory:/guest/8c29604a") + "\n0::/\n",
        "proc/self/limits": own_limits(20000, "8388608"),
        "proc/sys/fs/file-nr": "949\t0\t2466170\n",
        "proc/sys/kernel/pid_max": "32768\n",
        "proc/loadavg": "3.20 2.91 2.47 4/159 29517\n",
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
        "sys/fs/cgroup/cpu,cpuacct/cpu.stat": "nr_periods 0\nnr_throttled 0\nthrottled_time 0\n",
        **memory_group("sys/fs/cgroup/memory"),
        **memory_group("sys/fs/cgroup/memory/guest/8c29604a"),
        "aifx-captured/shm_space.json": '{"size_gib": 23.5, "used_percent": 0.0}',
        "sys/devices/system/clocksource/clocksource0/current_clocksource": "tsc\n",
    }


def memory_group(folder: str, limit: int = 9223372036854771712) -> dict[str, str]:
    """A control group of version 1."""
    return {
        f"{folder}/memory.limit_in_bytes": f"{limit}\n",
        f"{folder}/memory.usage_in_bytes": "5140987904\n",
        f"{folder}/memory.stat": "cache 2000000\ninactive_file 1\ntotal_inactive_file 1015799808\n",
        f"{folder}/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 0\n",
    }


def container() -> dict[str, str]:
    """On a large server, with limits: it sees the server's processors and memory, its own processes and network."""
    tree = server() | jax_files()
    gone = ("aifx-captured/kmsg", "aifx-captured/chronyc", "aifx-captured/nvme_", "sys/class/net/", "sys/fs/cgroup/")
    gone += ("sys/class/nvme/", "proc/2/", "proc/811/", "proc/77120/", "etc/fstab")
    tree = {path: text for path, text in tree.items() if not path.startswith(gone)}
    group = "sys/fs/cgroup"
    return tree | {
        "proc/1/stat": stat(1, "tini"),
        "proc/self/cgroup": "0::/\n",
        "proc/self/mountinfo": "900 800 0:61 / / rw,relatime - overlay overlay rw,lowerdir=/var/lib/a:/var/lib/b\n"
        "911 900 259:2 /var/lib/kubelet/pods/7/etc-hosts /etc/hosts ro,relatime - ext4 /dev/nvme0n1p2 rw\n",
        f"{group}/memory.max": f"{256 << 30}\n",
        f"{group}/memory.current": f"{250 << 30}\n",
        f"{group}/memory.stat": f"anon {90 << 30}\ninactive_file {140 << 30}\n",
        f"{group}/memory.events": "low 0\nhigh 0\nmax 912\noom 0\noom_kill 0\n",
        f"{group}/pids.max": "32768\n",
        f"{group}/pids.current": "412\n",
        f"{group}/cpu.max": "800000 100000\n",
        f"{group}/cpu.stat": "usage_usec 2631\nnr_periods 99000\nnr_throttled 120\n",
        "sys/class/net/eth0/operstate": "up\n",
        "sys/class/net/eth0/mtu": "1450\n",
        "aifx-captured/shm_space.json": '{"size_gib": 64.0, "used_percent": 1.2}',
        "aifx-captured/disk_places.json": ROOT,
    }


MACHINES = {
    "server with InfiniBand": infiniband_server,
    "8xH100 SXM with InfiniBand": h100_infiniband,
    "TPU v5e VM": tpu_vm,
    "server with a compiler for TPUs": server_with_tpu_compiler,
    "small VM": small_vm,
    "container without /dev/kmsg": container,
}

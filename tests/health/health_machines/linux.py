"""A bare-metal server without accelerators, which the others stand on."""

from __future__ import annotations

from health_machines.boot_log import boot_log_files
from health_machines.host_files import host_files
from health_machines.jax_stack import jax_files
from health_machines.system_files import system_files

CPUINFO = """\
processor\t: 0
vendor_id\t: GenuineIntel
model name\t: Intel(R) Xeon(R) Platinum 8480C
microcode\t: 0x2b000620
flags\t\t: fpu avx512f amx_bf16
"""


def server(cpus: int = 16) -> dict[str, str]:
    """Two sockets, bare metal."""
    tree = {
        "proc/cpuinfo": CPUINFO,
        "proc/loadavg": "1.02 0.98 0.91 2/2113 77123\n",
        "proc/cmdline": "BOOT_IMAGE=/vmlinuz-6.8.0-45-generic root=UUID=4d1c ro iommu=pt\n",
        "proc/sys/kernel/osrelease": "6.8.0-45-generic\n",
        "proc/sys/kernel/tainted": "0\n",
        "proc/sys/kernel/hostname": "n1\n",
        "proc/sys/kernel/random/boot_id": "3f0c6a52-8f0e-4b3e-9a57-3f1d7c1f6f11\n",
        "sys/devices/system/cpu/online": f"0-{cpus - 1}\n",
        "sys/devices/system/cpu/present": f"0-{cpus - 1}\n",
    }
    for cpu in range(cpus):
        tree[f"sys/devices/system/cpu/cpufreq/policy{cpu}/scaling_governor"] = "performance\n"
        tree[f"sys/devices/system/cpu/cpu{cpu}/thermal_throttle/package_throttle_count"] = "0\n"
    return tree | boot_log_files() | host_files() | jax_files() | system_files()


def without_smt() -> dict[str, str]:
    """One thread of each core is off on purpose."""
    cpu = "sys/devices/system/cpu"
    return server() | {f"{cpu}/online": "0-7\n", f"{cpu}/smt/control": "off\n"}


MACHINES = {"server": server, "server without SMT": without_smt}

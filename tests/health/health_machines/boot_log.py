"""The kernel log of a healthy server ten days after it was started, as /dev/kmsg gives it."""

from __future__ import annotations

KMSG = "aifx-captured/kmsg.txt"
UPTIME_S = 900_000
BOOT = """\
0.000000 Linux version 6.8.0-45-generic (buildd@lcy02) (x86_64-linux-gnu-gcc-13 13.2.0) #45-Ubuntu SMP PREEMPT_DYNAMIC
0.000000 Command line: BOOT_IMAGE=/vmlinuz-6.8.0-45-generic root=UUID=4d1c ro iommu=pt
0.000000 BIOS-e820: [mem 0x0000000000000000-0x000000000009ffff] usable
0.000000 tsc: Detected 2000.000 MHz processor
0.012001 ACPI: HEST 0x000000007B6F5000 00027C (v01 INTEL  INTEL ID 00000001 INTL 00000001)
0.041112 rcu: Hierarchical RCU implementation.
0.041113 rcu: \tRCU event tracing is enabled.
0.094412 clocksource: tsc-early: mask: 0xffffffffffffffff max_cycles: 0x39a85c9bff6, max_idle_ns: 881590591483 ns
0.101245 mce: CPU0: Thermal monitoring enabled (TM1)
0.221245 MCE: In-kernel MCE decoding enabled.
0.331200 NMI watchdog: Enabled. Permanently consumes one hw-PMU counter.
0.402212 DMAR: IOMMU enabled
0.410002 HEST: Table parsing has been initialized.
1.020114 pci 0000:5e:00.0: 252.048 Gb/s available PCIe bandwidth (32.0 GT/s PCIe x8 link)
1.121100 pcieport 0000:64:01.0: AER: enabled with IRQ 131
1.341911 pci 0000:02:00.0: 3.938 Gb/s available PCIe bandwidth, limited by 8.0 GT/s PCIe x1 link at 0000:00:1c.0 \
(capable of 15.752 Gb/s with 8.0 GT/s PCIe x2 link)
1.501000 tsc: Refined TSC clocksource calibration: 1999.998 MHz
1.502000 clocksource: Switched to clocksource tsc
2.112001 EDAC MC0: Giving out device to module i10nm_edac controller Intel_10nm Socket#0 IMC#0: DEV 0000:7e:0c.0
2.413002 nvme nvme0: 16/0/0 default/read/poll queues
2.612341 EXT4-fs (nvme0n1p2): mounted filesystem 4d1c-22 ro with ordered data mode. Quota mode: none.
3.001233 EXT4-fs (nvme0n1p2): re-mounted 4d1c-22 r/w. Quota mode: none.
3.511021 systemd[1]: Started Journal Service.
4.712345 mlx5_core 0000:5e:00.0: firmware version: 28.39.3004
4.812345 mlx5_core 0000:5e:00.0: 504.112 Gb/s available PCIe bandwidth (32.0 GT/s PCIe x16 link)
5.612345 mlx5_core 0000:5e:00.0: Port module event: module 0, Cable plugged
6.012345 mlx5_core 0000:5e:00.0 ens1f0np0: Link up
6.212345 mlx5_core 0000:5e:00.1 ens1f1np1: Link down
7.912345 XFS (nvme1n1): Mounting V5 Filesystem 0d6b
8.012345 XFS (nvme1n1): Ending clean mount
61.120000 perf: interrupt took too long (2513 > 2500), lowering kernel.perf_event_max_sample_rate to 79500
812000.400000 python3[7121]: segfault at 10 ip 00005581d3a1c2b0 sp 00007ffd9e0 error 4 in python3.11[5581d3a00000+2ab0]
870001.100000 blk_update_request: I/O error, dev sr0, sector 0 op 0x0:(READ) flags 0x0 phys_seg 1 prio class 0
"""


def boot_log_files() -> dict[str, str]:
    lines = [line.split(" ", 1) for line in BOOT.splitlines()]
    records = [record(float(at), text, number) for number, (at, text) in enumerate(lines)]
    return {
        KMSG: "".join(records),
        "proc/uptime": f"{UPTIME_S}.00 14000000.00\n",
        "sys/bus/pci/devices/0000:02:00.0/class": "0x010802\n",
    }


def record(at: float, text: str, number: int = 5000) -> str:
    """A line as /dev/kmsg gives it, with what it says of the device in lines of its own."""
    return f"6,{number},{int(at * 1e6)},-;{text}\n SUBSYSTEM=pci\n"

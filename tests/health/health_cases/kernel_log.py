from health_machines.boot_log import KMSG, UPTIME_S, record
from health_trees import Case, Tree

from aifx.health.kernel_events import kinds

XID = "NVRM: Xid (PCI:0000:3b:00): "


def logged(*lines: str, ago: float = 3600.0, apart: float = 0.0):
    """The lines were logged that long before the reading, so long after each other."""

    def change(tree: Tree) -> None:
        times = [UPTIME_S - ago + apart * number for number in range(len(lines))]
        tree[KMSG] += "".join(record(at, line) for at, line in zip(times, lines, strict=True))

    return change


def example(kind: str) -> str:
    return next(k.line for k in kinds() if k.name == kind)


def event(rule: str, kind: str, times: int = 1) -> Case:
    return Case(rule, "server", logged(*[example(kind)] * times, apart=60))


GPU_BEHIND_X8 = (
    "pci 0000:3b:00.0: 126.024 Gb/s available PCIe bandwidth, limited by 16.0 GT/s PCIe x8 link at 0000:3a:00.0 "
    "(capable of 252.048 Gb/s with 16.0 GT/s PCIe x16 link)"
)


def narrow(tree: Tree) -> None:
    """A network card's link."""
    logged(example("pcie_narrow"))(tree)
    tree["sys/bus/pci/devices/0000:5e:00.0/class"] = "0x020000\n"


def xid(rule: str, *lines: str, apart: float = 600.0) -> Case:
    return Case(rule, "server", logged(*(XID + line for line in lines), ago=7200, apart=apart))


def sxid(rule: str, line: str, times: int = 1) -> Case:
    text = f"nvidia-nvswitch3: SXid (PCI:0000:c1:00.0): {line}"
    data = f"nvidia-nvswitch3: SXid (PCI:0000:c1:00.0): {line.split(',')[0]}, Data {{0x00000001, 0x00000000}}"
    return Case(rule, "server", logged(*[text, data] * times, ago=7200, apart=30))


def wrapped(tree: Tree) -> None:
    """The ring buffer has lost the start."""
    tree[KMSG] = record(UPTIME_S - 600, "eth0: a line of something that floods the log")


def crashed(reason: str, oops: str):
    """pstore's two records of one crash: the last part was logged first."""

    def change(tree: Tree) -> None:
        parts = (f"<0>[ 8000.200000] Kernel panic - not syncing: {reason}\n", f"<4>[ 8000.100000] {oops}\n")
        for number, lines in enumerate(parts, 1):
            tree[f"sys/fs/pstore/dmesg-efi-1795596400{number:02}001"] = f"Panic#1 Part{number}\n{lines}"

    return change


def endless(tree: Tree) -> None:
    """More than is read of a log."""
    tree[KMSG] += "".join(record(UPTIME_S - 80_000 + number, "x" * 4000) for number in range(8_500))


def in_strange_format(tree: Tree) -> None:
    tree[KMSG] += "".join(f"@400000006706{n:04x} kern.info a line of a logger that nobody knows\n" for n in range(12))


EVENTS = [
    Case("kernel_log.reach.short", "server", wrapped),
    Case("kernel_log.reach.unread", "server", endless),
    Case("kernel_log.format.untimed", "server", in_strange_format),
    Case("crash.kernel.hardware", "server", crashed("Fatal local machine check", "mce: [Hardware Error]: TSC 0")),
    Case("crash.kernel.panic", "server", crashed("Fatal exception", example("oopses"))),
    event("kernel_log.memory.machine_check", "machine_checks_uncorrected"),
    event("kernel_log.memory.machine_checks_corrected", "machine_checks_corrected", 12),
    event("kernel_log.memory.uncorrected", "memory_errors_uncorrected"),
    event("kernel_log.memory.corrected", "memory_errors_corrected", 12),
    event("kernel_log.memory.page_lost", "memory_failures"),
    event("kernel_log.memory.oom", "oom_kills"),
    event("kernel_log.memory.oom_in_limit", "oom_kills_cgroup"),
    # What stops a disk's file system is the disk.
    Case(
        "kernel_log.disk.io_error",
        "server",
        logged(
            "blk_update_request: I/O error, dev sda, sector 2048 op 0x1:(WRITE) flags 0x3800 phys_seg 1 prio class 0",
            "EXT4-fs error (device sda1): ext4_journal_check_start:83: comm python3: Detected aborted journal",
            "EXT4-fs (sda1): Remounting filesystem read-only",
        ),
    ),
    event("kernel_log.disk.beyond_end", "beyond_end"),
    event("kernel_log.disk.file_system_io", "file_system_io_errors"),
    event("kernel_log.disk.device_mapper", "device_mapper_errors"),
    event("kernel_log.disk.device_mapper_path", "device_mapper_paths"),
    event("kernel_log.disk.read_only", "remounts_read_only"),
    event("kernel_log.disk.file_system", "file_system_errors"),
    event("kernel_log.disk.nvme_lost", "nvme_lost"),
    event("kernel_log.disk.nvme_path", "nvme_paths_lost"),
    event("kernel_log.disk.nvme_timeout", "nvme_timeouts"),
    event("kernel_log.disk.raid", "raid_disks_failed"),
    event("kernel_log.disk.raid_failed", "raid_arrays_failed"),
    event("kernel_log.disk.nfs_locks", "nfs_locks_lost"),
    event("kernel_log.disk.lustre_evicted", "lustre_evictions"),
    event("kernel_log.disk.lustre_stalled", "lustre_stalls"),
    event("kernel_log.disk.nfs_stalled", "nfs_stalls"),
    event("kernel_log.kernel.oops", "oopses"),
    event("kernel_log.kernel.panic", "panics"),
    event("kernel_log.kernel.interface_leaked", "interfaces_leaked"),
    event("kernel_log.kernel.lockup", "lockups"),
    event("kernel_log.kernel.rcu_stall", "rcu_stalls"),
    event("kernel_log.kernel.hung_task", "hung_tasks"),
    event("kernel_log.kernel.clock", "clock_unstable"),
    event("kernel_log.kernel.heat", "cpu_heat"),
    event("kernel_log.kernel.files", "file_table_full"),
    event("kernel_log.kernel.forks", "forks_refused"),
    event("kernel_log.pcie.uncorrectable", "aer_uncorrectable"),
    event("kernel_log.pcie.contained", "ports_contained"),
    event("kernel_log.pcie.correctable_many", "aer_correctable_many"),
    event("kernel_log.pcie.slot", "slots_lost"),
    event("kernel_log.pcie.correctable", "aer_correctable", 120),
    Case("kernel_log.pcie.narrow", "server", narrow),
    Case("kernel_log.pcie.narrow", "server", logged(GPU_BEHIND_X8)),  # without its class file
    event("kernel_log.pcie.iommu", "iommu_faults"),
    event("kernel_log.network.flap", "links_down", 3),
    event("kernel_log.network.module", "nic_modules"),
    event("kernel_log.network.power", "nic_power"),
    event("kernel_log.network.firmware", "nic_health"),
    Case("kernel_log.network.firmware", "server", logged("mlx5_core: INFO: synd 0x8: unrecoverable hardware error.")),
    event("kernel_log.network.command", "nic_command_timeouts"),
    event("kernel_log.network.health", "nic_health_warnings"),
    event("kernel_log.network.transmit", "transmit_timeouts"),
    event("kernel_log.network.connections", "connection_table_full"),
    event("kernel_log.gpu.start", "gpu_starts_failed"),
    Case("kernel_log.gpu.start", "server", logged("NVRM: RmInitAdapter failed! (0x26:0xffff:1375)")),
    event("kernel_log.gpu.reset", "gpu_resets_needed"),
    event("kernel_log.gpu.locked", "gpus_locked"),
    event("kernel_log.gpu.crash_dump", "gpu_crash_dumps"),
    event("kernel_log.gpu.driver", "driver_mismatches"),
    event("kernel_log.gpu.peer_memory", "peer_memory_errors"),
    event("kernel_log.accelerator.failed", "accelerators_failed"),
    event("kernel_log.accelerator.memory", "accelerator_memory_errors"),
    event("kernel_log.accelerator.reset", "accelerators_reset"),
    event("kernel_log.accelerator.memory_corrected", "accelerator_memory_errors_corrected", 10),
    event("kernel_log.accelerator.memory_deferred", "accelerator_memory_errors_deferred"),
    event("kernel_log.gpu.library_crash", "gpu_library_crashes"),
]

UNIT = "13, pid=4411, name=python3, Graphics SM Warp Exception on (GPC 4, TPC {}, SM 0): Illegal Instruction Encoding"
FAULT = (
    "31, pid=4411, name=python3, Ch 00000008, intr 00000000. MMU Fault: ENGINE GRAPHICS GPC{} GPCCLIENT_T1_3 faulted @ "
    "0x7f3c_a0000000. Fault is of type FAULT_PDE ACCESS_TYPE_VIRT_READ"
)
NVLINK_PADDED = (
    "149, NETIR_LINK_EVT  Fatal   XC0 i0 Link 08 (0x025001c6 0x00000000 0x00000000 0x00000000 0x00000000 0x00000000)"
)
NVLINK = "149, NETIR_LINK_EVT {} XC0 i0 Link 08 ({} 0x00000000 0x00000000 0x00000000 0x00000000 0x00000000)"
RLW = "145, RLW_RXPIPE Nonfatal XC0 i0 Link 13 (0x0409a0c2 0x00000008 0x00000001 0x00000000 0x00100000 0x00000004)"

XIDS = [
    # A card that is gone takes its link and its programs with it.
    xid(
        "xid.gpu.lost",
        "74, pid='<unknown>', name=<unknown>, NVLink: fatal error detected on link 4(0x10000, 0x0, 0x0, 0x0)",
        "79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.",
        "45, pid=4411, name=python3, Ch 00000008",
        "154, GPU recovery action changed from 0x0 (None) to 0x2 (Node Reboot Required)",
        apart=1,
    ),
    Case(
        "xid.gpu.lost",
        "server",
        logged(
            "NVRM: The NVIDIA GPU 0000:18:00.0",
            "NVRM: (PCI ID: 10de:2330) installed in this system has",
            "NVRM: fallen off the bus and is not responding to commands.",
            ago=500_000,
        ),
    ),
    xid("xid.gpu.recovery", "154, GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset Required)"),
    xid("xid.gpu.fatal_repeated", *["95, pid=4411, name=python3, Uncontained: FBHUB. RST: Yes, D-RST: No"] * 5),
    xid("xid.gpu.reset", "95, pid=4411, name=python3, Uncontained: FBHUB. RST: Yes, D-RST: No"),
    xid("xid.gpu.reset", "64, pid='<unknown>', name=<unknown>, Row Remapper: Failed to remap row"),
    xid("xid.gpu.gsp", "119, pid=4411, name=nvidia-smi, Timeout after 6s of waiting for RPC response from GPU0 GSP!"),
    xid("xid.gpu.context_switch", "109, pid=4411, name=python3, Ch 00000008, errorString CTX SWITCH TIMEOUT"),
    xid("xid.gpu.cable", "54, pid='<unknown>', name=<unknown>, Auxiliary power is not connected"),
    xid("xid.gpu.support", "58, Edc 00000000 00000000"),
    xid("xid.gpu.virtual_machine", "151, pid=4411, name=python3, Key rotation error"),
    xid("xid.gpu.unresolved", "167, pid='<unknown>', name=<unknown>, PCIE_FATAL_TIMEOUT"),
    xid("xid.gpu.vgpu", "78, vGPU start error"),
    xid(
        "xid.memory.double_bit",
        "48, pid=4411, name=python3, DBE (double bit error) ECC Error",
        "63, pid='<unknown>', name=<unknown>, Row Remapper: New row marked for remapping",
        "94, pid=4411, name=python3, Contained: SM (0x1). RST: No, D-RST: No",
        apart=1,
    ),
    xid("xid.memory.contained", "94, pid=4411, name=python3, Contained: SM (0x1). RST: No, D-RST: No"),
    xid("xid.memory.remapped", "63, pid='<unknown>', name=<unknown>, Row Remapper: New row marked for remapping"),
    xid("xid.memory.corrected_rate", "92, pid='<unknown>', name=<unknown>, High single-bit ECC error rate"),
    xid(
        "xid.nvlink.error", "74, pid='<unknown>', name=<unknown>, NVLink: fatal error detected on link 4(0x10000, 0x0)"
    ),
    xid("xid.nvlink.fatal", NVLINK.format("Fatal", "0x025001c6"), RLW, "45, pid=1, name=python3, Ch 1", apart=1),
    xid("xid.nvlink.fatal", NVLINK_PADDED),
    xid("xid.nvlink.nonfatal", RLW),
    xid("xid.nvlink.nonfatal_repeated", *[RLW] * 10, apart=60),
    xid("xid.nvlink.nonfatal_repeated", *[RLW] * 600, apart=1),  # one storm
    xid("xid.unit.repeated", UNIT.format(2), UNIT.format(5), UNIT.format(2)),
    xid("xid.unit.repeated", FAULT.format(4), FAULT.format(4)),
    xid("xid.unit.repeated", *[FAULT.format(4)] * 90, apart=1),
    xid("xid.program.repeated", UNIT.format(2), UNIT.format(5)),
    xid("xid.program.fault", UNIT.format(2), UNIT.format(5), UNIT.format(2), apart=0.1),
    xid("xid.program.fault", "32, pid=4411, name=python3, Channel ID 00000008 intr0 00040000"),
    xid("xid.program.ended", "45, pid=4411, name=python3, Ch 00000008"),
    xid("xid.driver.note", "43, pid=4411, name=python3, Ch 00000008"),
    xid("xid.driver.unlisted", "731, pid=4411, name=python3, something new"),
]

SXIDS = [
    sxid("sxid.switch.always_fatal", "22003, Fatal, Link 12 Minion halt"),
    sxid("sxid.switch.fatal", "20034, Fatal, Link 26 LTSSM Fault Up"),
    sxid("sxid.switch.heat", "10004, Non-fatal, Host thermal event start"),
    sxid("sxid.link.repeated", "20001, Non-fatal, Link 32 TX replay error", 11),
    sxid("sxid.link.note", "12028, Non-fatal, Link 32 egress non-posted PRIV error (First)"),
]

CASES = [*EVENTS, *XIDS, *SXIDS]

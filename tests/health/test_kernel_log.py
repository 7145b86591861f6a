"""The kernel log as it is written by kernels, drivers and those who keep it, read into events."""

import json
import os
import random

import pytest
from health_cases.kernel_log import FAULT, RLW, UNIT, XID, example, logged
from health_machines.boot_log import KMSG, UPTIME_S, record
from health_machines.linux import server
from health_trees import cases, changed, report_of, snapshot_of

from aifx.core.facts import Absent, Unknown, to_document
from aifx.health import kernel_events, xids
from aifx.health.evaluate_rules import evaluate_rules
from aifx.health.host import Host
from aifx.health.kernel_log import Line, Log, parse
from aifx.health.probes import kernel_log
from aifx.health.rules import load_rules
from aifx.health.snapshot import Snapshot

LOST = "NVRM: Xid (PCI:0000:3b:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus."
NOW = 1_728_530_813.0  # 2024-10-10T03:26:53 UTC
RULES = load_rules()
OF_LOG = [rule for rule in RULES.values() if rule.family in ("xid", "sxid", "kernel_log")]


@pytest.mark.parametrize(
    ("line", "age"),
    [
        (f"4,1234,3540000000,-;{LOST}", 60.0),
        (f"4,1234,3540000000,c,caller=T12;{LOST}\n SUBSYSTEM=pci\n DEVICE=+pci:0000:3b:00.0", 60.0),
        (f"[ 3540.000000] {LOST}", 60.0),
        (f"<4>[ 3540.000000] {LOST}", 60.0),
        (f"[ 3540.000000][ T4411] {LOST}", 60.0),
        (f"kern  :warn  : [ 3540.000000] {LOST}", 60.0),
        (f"[Thu Oct 10 03:06:53 2024] {LOST}", 1200.0),
        (f"2024-10-10T03:06:53,500000+00:00 {LOST}", 1199.5),
        (f"2024-10-10T05:06:53+0200 n1 kernel: {LOST}", 1200.0),
        (f"2024-10-10T03:06:53.500000+00:00 n1 kernel: [ 3540.000000] {LOST}", 1199.5),
        (f"kern  :warn  : [Thu Oct 10 03:06:53 2024] {LOST}", 1200.0),
        (f"kern  :warn  : 2024-10-10T03:06:53,500000+00:00 {LOST}", 1199.5),
        (f"daemon:notice: [ 3540.000000 <    0.000012>] {LOST}", 60.0),
        (f"kern  :warn  : [ 3540.000000] [ T4411] {LOST}", 60.0),
        (f"Thu 2024-10-10 03:06:53 UTC n1 kernel: {LOST}", 1200.0),
        (f"Thu 2024-10-10 06:06:53 +03 n1 kernel: {LOST}", 1200.0),
        (f"[ 3540.000000] n1 kernel: {LOST}", 60.0),
        (f"1728529613.500000 n1 kernel: {LOST}", 1199.5),
        (json.dumps({"__REALTIME_TIMESTAMP": "1728529613000000", "MESSAGE": LOST}), 1200.0),
        (json.dumps({"__REALTIME_TIMESTAMP": "1728529613000000", "MESSAGE": list(LOST.encode())}), 1200.0),
    ],
)
def test_each_format_gives_the_event_and_its_age(line, age):
    log = parse(line, now=NOW, uptime=3600.0)
    (found,) = xids.facts(log.lines)["xids"]
    assert (found["code"], found["device"], found["text"]) == (79, "0000:3b:00.0", LOST)
    assert log.lines[0].age_s == pytest.approx(age)


def test_lines_without_a_year_are_dated_by_the_last_of_them():
    text = f"Dec 31 23:00:00 n1 kernel: [12.0] {LOST}\nDec 31 23:30:00 n1 sshd[1]: kernel: hello\n"
    log = parse(text + "Jan  1 01:00:00 n1 kernel: [99.0] eth0: Link is Up", now=NOW)
    assert log.lines[0] == Line(7200.0, LOST)
    assert xids.facts(log.lines)["xids"][0]["count"] == 1


@pytest.mark.parametrize(
    "begin",
    ["Oct 10 {}.123456", "Oct 10 {}", "Thu 2024-10-10 {} CEST"],
    ids=["short-precise", "short", "short-full in a zone without an offset"],
)
def test_journalctl_times_without_a_year_or_zone_count_from_the_last_line(begin):
    lines = [f"{begin.format('03:06:53')} n1 kernel: {LOST}", f"{begin.format('03:26:53')} n1 sshd[1]: hello"]
    log = parse("-- Logs begin at Thu 2024-10-10 --\n" + "\n".join(lines), now=NOW, uptime=9.0)
    assert log.lines == (Line(1200.0, LOST), Line(0.0, ""))
    assert log.untimed == 0


def test_dmesg_e_dates_the_first_line_of_a_minute_and_counts_from_it():
    lines = ["[Oct10 03:06] Linux version 6.8.0", f"[  +0.500000] {LOST}", "[Oct10 03:08] a", "[ +12.000000] last"]
    log = parse("\n".join(lines), now=NOW)
    assert [line.age_s for line in log.lines] == [132.0, 131.5, 12.0, 0.0]
    assert (log.lines[1].text, log.untimed) == (LOST, 0)


def test_short_monotonic_tells_the_kernel_from_other_programs():
    lines = ["[    1.000000] n1 kernel: Linux version 6.8.0", f"[   90.000000] n1 sh[12]: {LOST}"]
    log = parse("\n".join([*lines, f"[  100.000000] n1 kernel: {LOST}"]), uptime=100.0)
    assert [line.text for line in log.lines] == ["Linux version 6.8.0", "", LOST]


BEYOND = ["python3: attempt to access beyond end of device", "sda1: rw=0, sector=80, nr_sectors = 8 limit=72"]


@pytest.mark.parametrize(
    "text",
    [
        "3,1,100000000,-;{}\\x0a{}\n SUBSYSTEM=block",
        "[  100.000000] {}\n               {}",
        "kern  :info  : [  100.000000] {}\n                               {}",
        "Oct 10 03:06:53 n1 kernel: {}\n                           {}",
        '{{"__REALTIME_TIMESTAMP": "1728529613000000", "MESSAGE": "{}\\n{}"}}',
    ],
)
def test_a_record_of_several_lines_is_several_lines_at_once(text):
    log = parse(text.format(*BEYOND))
    assert log.lines == tuple(Line(0.0, line) for line in BEYOND)
    assert log.untimed == 0


def test_more_lines_of_another_program_are_left_too():
    assert parse(f"Oct 10 03:06:53 n1 sh[1]: hello\n    {LOST}").lines == (Line(0.0, ""),)


@pytest.mark.parametrize("block", [1, 100, 1 << 20])
def test_a_log_read_in_blocks_from_its_end_is_the_same(monkeypatch, block):
    boot = "Linux version 6.8.0-45"
    text = (
        f"[    1.000000] {boot}\n[    9.000000] old\n[    0.000000] {boot}\n[   50.000000] {BEYOND[0]}\n"
        f"             {BEYOND[1]}\nno time\n[  100.000000] last\n"
    )
    monkeypatch.setattr("aifx.health.kernel_log.BLOCK_CHARS", block)
    log = parse(text, uptime=100.0)
    texts = [(100.0, boot), (50.0, BEYOND[0]), (50.0, BEYOND[1]), (50.0, "no time"), (0.0, "last")]
    assert log == Log(tuple(Line(*line) for line in texts), True, 0, 1, "no time")


def test_where_time_runs_out_the_end_of_a_log_is_what_was_read(monkeypatch):
    monkeypatch.setattr("aifx.health.kernel_log.BLOCK_CHARS", 60)
    text = "".join(f"[{at:12.6f}] {LOST}\n" for at in range(100, 110))
    log = parse(text, uptime=110.0, give_up_at=0.0)
    assert [line.age_s for line in log.lines] == [1.0]
    assert log.unread_chars == len(text) * 9 // 10
    assert not log.is_whole


@pytest.mark.slow
def test_a_log_of_15_mb_is_evaluated(tmp_path):
    """A log of 16 MB, full of errors. Only reported lines have secrets removed, which takes long."""
    flood = "I/O error, dev nvme{}n1, sector {} op 0x0:(READ) flags 0x80700 phys_seg 1 prio class 2, and more\n"
    begin_us = int(UPTIME_S - 1000) * 1_000_000
    lines = "".join(f"6,{at},{begin_us + at * 1000},-;" + flood.format(at % 4, at) for at in range(140_000))
    assert len(lines) > 15_000_000
    tree = server()
    tree[KMSG] += lines + record(UPTIME_S - 60, XID + "79, GPU has fallen off the bus, token=hunter2hunter2")
    report = report_of(snapshot_of(tree, tmp_path))
    assert {"xid.gpu.lost", "kernel_log.disk.io_error"} <= {f.id for f in report.findings}
    assert "unknown" not in {f.severity for f in report.findings}
    assert "hunter2" not in str(report)


def test_where_time_runs_out_the_newest_events_are_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(kernel_log, "EVENTS_LIMIT_S", 0.0)
    tree = changed(server(), logged(*["a line"] * 2000, LOST, example("oom_kills")))
    facts = snapshot_of(tree, tmp_path).facts
    assert (facts["kernel_log"]["lines"], facts["xids"][0]["code"]) == (kernel_events.LINES_PER_CLOCK, 79)
    assert facts["kernel_events"]["oom_kills"][0]["count"] == 1
    assert facts["kernel_log"]["unread_bytes"] > 1000 * len("a line")


def test_lines_that_go_on_with_one_that_is_not_understood_are_not_understood_either():
    """As in the document that `dmesg --json` writes."""
    text = json.dumps({"dmesg": [{"pri": 4, "time": 3540.0, "msg": LOST}]}, indent=3)
    assert parse(text).untimed == len(text.splitlines())


@pytest.mark.parametrize("line", [f"Oct 10 03:06:53 kernel: {LOST}", f"2024-10-10T03:06:53Z [ 35.400000] {LOST}"])
def test_a_kernel_log_without_a_line_that_is_understood_is_unknown(line, tmp_path):
    tree = server() | {KMSG: f"{line}\n"}
    assert "no line of /aifx-captured/kmsg.txt" in str(snapshot_of(tree, tmp_path).facts["xids"])


def test_a_log_that_is_mostly_not_understood_is_unknown(tmp_path):
    """aifx still reports what it found there."""
    tree = changed(server(), logged(LOST))
    tree[KMSG] += "".join(f"@40000000670{n:05x} kern.info {LOST}\n" for n in range(100))
    report = report_of(snapshot_of(tree, tmp_path))
    found = {f.id: f for f in report.findings}
    assert found["xid.gpu.lost"].severity == "critical"
    assert found["kernel_log.format.untimed"].severity == "unknown"
    assert "@40000000670" in found["kernel_log.format.untimed"].evidence


@pytest.mark.parametrize("path", ["var/log/messages", "var/log/kern.log", "var/log/dmesg"])
def test_the_files_of_a_copied_tree_are_read(path, tmp_path):
    tree = server()
    del tree[KMSG]
    tree["var/log/messages"] = "Oct 10 03:06:53 n1 systemd[1]: Started Journal Service.\n"
    tree[path] = f"Oct 10 03:06:53 n1 systemd[1]: Started it.\nOct 10 03:06:54 n1 kernel: {example('oom_kills')}\n"
    assert snapshot_of(tree, tmp_path).facts["kernel_events"]["oom_kills"][0]["what"] == "python3"


def test_a_log_that_could_not_be_captured_hides_no_other(tmp_path):
    denied = "dmesg: read kernel buffer failed: Operation not permitted\n"
    tree = server() | {KMSG: denied, "var/log/messages": f"Oct 10 03:06:54 n1 kernel: {LOST}\n"}
    assert snapshot_of(tree, tmp_path).facts["xids"][0]["code"] == 79
    del tree["var/log/messages"]
    assert snapshot_of(tree, tmp_path).facts["kernel_log"]["untimed_line"] == denied.strip()


def test_what_another_program_wrote_is_no_word_of_the_kernel():
    log = parse(f"2024-10-10T03:06:53+0000 n1 sh[12]: {LOST}\n2024-10-10T03:06:53+0000 n1 kernel: fine", now=NOW)
    assert not xids.facts(log.lines)["xids"]


def test_only_this_boot_counts():
    boots = [f"2024-10-10T0{hour}:00:00+0000 n1 kernel: Linux version 6.8.0-45" for hour in (1, 2)]
    old, new = (f"2024-10-10T0{hour}:30:00+0000 n1 kernel: NVRM: Xid (PCI:0000:3b:00): {hour}, x" for hour in (1, 2))
    log = parse("\n".join([boots[0], old, boots[1], new]), now=NOW)
    assert log.is_whole
    assert [x["code"] for x in xids.facts(log.lines)["xids"]] == [2]
    assert not parse(new, now=NOW).is_whole


def test_a_line_without_a_time_has_that_of_the_line_before():
    log = parse(f"[ 100.0] NVRM: The NVIDIA GPU 0000:18:00.0\n{LOST}", uptime=400.0)
    assert [line.age_s for line in log.lines] == [300.0, 300.0]


@pytest.mark.parametrize("kind", kernel_events.kinds(), ids=lambda kind: f"{kind.name}: {kind.holds}")
def test_each_kind_of_event_is_recognized(kind):
    name, match = kernel_events.kind_of(kind.line)
    assert name == kind.name
    assert match.re is kind.pattern


@pytest.mark.parametrize(
    ("text", "kind", "device"),
    [
        ("Out of memory: Kill process 812 (java) score 900 or sacrifice child", "oom_kills", ""),
        ("I/O error, dev nvme1n1, sector 2048 op 0x0:(READ) flags 0x0 phys_seg 1 prio class 2", "io_errors", "nvme1n1"),
        ("print_req_error: critical target error, dev sdb, sector 8", "io_errors", "sdb"),
        ("nvme nvme0: I/O 12 QID 3 timeout, reset controller", "nvme_timeouts", "nvme0"),
        ("rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:", "rcu_stalls", ""),
        ("rcu: INFO: rcu_sched detected expedited stalls on CPUs/tasks: { 3-... }", "rcu_stalls", ""),
        ("BUG: unable to handle kernel NULL pointer dereference at 0000000000000008", "oopses", ""),
        ("Oops: 0000 [#1] SMP NOPTI", "oopses", ""),
        ("pcieport 0000:64:01.0: AER: PCIe Bus Error: severity=Corrected, type=Data Link Layer, (Transmitter ID)",
         "aer_correctable", "0000:64:01.0"),
        ("bnxt_en 0000:3d:00.0 eth0: NIC Link is Down", "links_down", "0000:3d:00.0"),
        ("mce: CPU3: Core temperature is above threshold, cpu clock is throttled (total events = 7)", "cpu_heat", ""),
        ("tsc: Marking TSC unstable due to check_tsc_sync_source failed", "clock_unstable", ""),
        ("INFO: task kworker/u256:3:1234 blocked for more than 245 seconds.", "hung_tasks", ""),
        ("divide error: 0000 [#1] SMP NOPTI", "oopses", ""),
        ("Oops: divide error: 0000 [#1] PREEMPT SMP NOPTI", "oopses", ""),
        ("Kernel panic - not syncing: Fatal machine check", "panics", ""),
        ("md/raid10:md127: not enough operational mirrors.", "raid_arrays_failed", "md127"),
        ("md/raid1:md0: sdb1: unrecoverable I/O read error for block 123", "raid_arrays_failed", "md0"),
        ("md/raid:md0: read error not correctable (sector 8 on sdc1).", "raid_arrays_failed", "md0"),
        ("sda1: rw=0, want=80, limit=72", "beyond_end", "sda1"),
        ("EXT4-fs (sda1): previous I/O error to superblock detected", "file_system_io_errors", "sda1"),
        ("EXT4-fs (sda1): I/O error while writing superblock", "file_system_io_errors", "sda1"),
        ("XFS (dm-0): log I/O error -5", "file_system_io_errors", "dm-0"),
        ("XFS (dm-0): writeback error on inode 133, offset 0, sector 80", "file_system_io_errors", "dm-0"),
        ("XFS (dm-0): Metadata I/O Error (0x1) detected at xfs_trans_read_buf_map+0x1 (fs/xfs/xfs_trans_buf.c:296).  "
         "Shutting down filesystem.", "remounts_read_only", "dm-0"),
        ("XFS (dm-0): Metadata CRC error detected at xfs_agi_read_verify+0xd0/0xf0 [xfs], xfs_agi block 0x2",
         "file_system_errors", "dm-0"),
        ("device-mapper: multipath: queue_if_no_path timeout on 253:0, failing queued IO", "device_mapper_errors", ""),
        ("device-mapper: thin: 253:2: switching pool to out-of-data-space (error IO) mode", "device_mapper_errors",
         "253:2"),
        ("device-mapper: thin: 253:2: metadata operation 'dm_pool_commit_metadata' failed: error = -5",
         "device_mapper_errors", "253:2"),
        ("device-mapper: raid1: All replicated volumes dead, failing I/O", "device_mapper_errors", ""),
        ("device-mapper: verity: 253:3: data block 17 is corrupted", "device_mapper_errors", "253:3"),
        ("mlx5_core 0000:61:00.0: wait_func_handle_exec_timeout:1104:(pid 7): cmd[22]: CREATE_DCT(0x710) No done "
         "completion", "nic_command_timeouts", "0000:61:00.0"),
        ("mlx5_core 0000:61:00.0: cb_timeout_handler:947:(pid 7): cmd[3]: ACCESS_REG(0x805) Async, timeout. Will "
         "cause a leak of a command resource", "nic_command_timeouts", "0000:61:00.0"),
        ("mlx5_core 0000:5e:00.0: synd 0x7: irisc not responding", "nic_health", "0000:5e:00.0"),
        ("mlx5_core: INFO: synd 0x8: unrecoverable hardware error.", "nic_health", ""),
        ("synd 0x8: unrecoverable hardware error", "nic_health", ""),
        ("NVRM: RmInitAdapter failed! (0x26:0xffff:1375)", "gpu_starts_failed", ""),
        ("mlx5_core 0000:03:00.0: 31.504 Gb/s available PCIe bandwidth, limited by 8 GT/s x4 link at 0000:00:1c.4 "
         "(capable of 63.008 Gb/s with 8 GT/s x8 link)", "pcie_narrow", "0000:03:00.0"),
        ("bnxt_en 0000:3d:00.0 eth0: Abandoning msg {0x14 0x1a} len: 0 due to firmware status: 0x8000", "nic_health",
         "0000:3d:00.0"),
        ("bnxt_en 0000:3d:00.0 enp61s0f0np0: NIC Link is Down", "links_down", "0000:3d:00.0"),
        ("NETDEV WATCHDOG: ens1f0 (bnxt_en): transmit queue 3 timed out 5120 ms", "transmit_timeouts", "ens1f0"),
        ("NVRM: Rate limiting GSP RPC error prints for GPU at PCI:0000:3b:00 (printing 1 of every 30).  The GPU likely "
         "needs to be reset.", "gpu_resets_needed", ""),
        ("NFS: nfs4_reclaim_open_state: Lock reclaim failed!", "nfs_locks_lost", ""),
        ("LustreError: 4711:0:(osc_cache.c:1021:osc_extent_wait()) LBUG", "oopses", ""),
        ("pcieport 0000:64:00.0: AER: Multiple Corrected error received: 0000:65:00.0", "aer_correctable_many",
         "0000:65:00.0"),
        ("pcieport 0000:64:00.0: AER: Multiple Uncorrected (Non-Fatal) error received: 0000:65:00.0",
         "aer_uncorrectable", "0000:65:00.0"),
        ("pcieport 0000:64:01.0: DPC: containment event, status:0x1f05, ERR_FATAL received from 0000:65:00.0",
         "ports_contained", "0000:64:01.0"),
        ("pcieport 0000:64:01.0: DPC: unmasked uncorrectable error detected", "ports_contained", "0000:64:01.0"),
        ("pcieport 0000:64:01.0: pciehp: Slot(12): Card not present", "slots_lost", "0000:64:01.0"),
        ("pciehp 0000:64:01.0:pcie004: Slot(12): Link Down", "slots_lost", "0000:64:01.0"),
        ("amdgpu 0000:c1:00.0: amdgpu: 2 uncorrectable hardware errors detected in umc block",
         "accelerator_memory_errors", "0000:c1:00.0"),
        ("amdgpu 0000:c1:00.0: amdgpu: GPU reset begin!. Source:  1", "accelerators_reset", "0000:c1:00.0"),
        ("habanalabs hl0: 0000:33:00.0 Failed to reset! Device is NOT usable", "accelerators_failed", "hl0"),
        ("device offline error, dev sda, sector 8 op 0x0:(READ) flags 0x0 phys_seg 1 prio class 2", "io_errors", "sda"),
        ("nvme nvme0: Device not ready; aborting initialisation, CSTS=0x0", "nvme_lost", "nvme0"),
        ("nvme nvme3: I/O tag 3 (3003) type 4 opcode 0x2 (I/O Cmd) QID 4 timeout", "nvme_timeouts", "nvme3"),
        ("md/raid0:md0: too few disks (3 of 4) - aborting!", "raid_arrays_failed", "md0"),
        ("JBD2: I/O error when updating journal superblock for dm-0-8.", "file_system_io_errors", "dm-0"),
        ("JBD2: previous I/O error detected for journal superblock update for sda1-8.", "file_system_io_errors",
         "sda1"),
        ("XFS (dm-0): Corruption of in-memory data (0x8) detected at xfs_defer_finish_noroll+0x3a3/0x600 [xfs] "
         "(fs/xfs/libxfs/xfs_defer.c:546).  Shutting down filesystem.", "remounts_read_only", "dm-0"),
        ("device-mapper: integrity: Error on writing journal: -5", "device_mapper_errors", ""),
        ("device-mapper: writecache: error writing metadata", "device_mapper_errors", ""),
        ("device-mapper: raid1: All sides of mirror have failed.", "device_mapper_errors", ""),
        ("INFO: task python3:4411 blocked in I/O wait for more than 122 seconds.", "hung_tasks", ""),
        ("mlx5_core 0000:61:00.0: cmd_work_handler:993:(pid 7): CREATE_MKEY(0x200) timed out while waiting for a slot.",
         "nic_command_timeouts", "0000:61:00.0"),
        ("mlx5_core 0000:61:00.0: wait_func:1189:(pid 7): CREATE_MKEY(0x200) canceled on out of queue timeout.",
         "nic_command_timeouts", "0000:61:00.0"),
        ("bnxt_en 0000:3d:00.0 eth0: Firmware reset aborted, PCI config space invalid", "nic_health", "0000:3d:00.0"),
        ("virtio_net virtio0 eth0: NETDEV WATCHDOG: CPU: 1: transmit queue 0 timed out 5120 ms", "transmit_timeouts",
         "virtio0"),
        ("pcieport 0000:64:01.0: pciehp: Slot(12): No device found", "slots_lost", "0000:64:01.0"),
        ("amdgpu 0000:c1:00.0: amdgpu: 2 uncorrectable hardware errors detected in CPC, instance: 0, memory block: "
         "CPC_DC_STATE_RAM_ME1", "accelerator_memory_errors", "0000:c1:00.0"),
        ("amdgpu 0000:c1:00.0: amdgpu: {3}socket: 0, die: 0, 4 deferred hardware errors detected in total in umc block",
         "accelerator_memory_errors_deferred", "0000:c1:00.0"),
        ("amdgpu 0000:c1:00.0: amdgpu: Fatal error during GPU init", "accelerators_failed", "0000:c1:00.0"),
        ("habanalabs hl0: EQ heartbeat event was not received!", "accelerators_failed", "hl0"),
        ("AMD-Vi: Event logged [IO_PAGE_FAULT domain=0x0012 address=0x2060000000 flags=0x0020]", "iommu_faults", ""),
        ("lockd: server 10.0.3.7 not responding, still trying", "nfs_stalls", "10.0.3.7"),
        ("unregister_netdevice: waiting for eth0 to become free. Usage count = -1", "interfaces_leaked", "eth0"),
        ("mce: [Hardware Error]: CPU 0: Machine Check: 0 Bank 9: cc00008000010090", "machine_checks_corrected", ""),
        ("mce: [Hardware Error]: CPU 0: Machine Check: 0 Bank 9: fe00000000800400", "machine_checks_uncorrected", ""),
    ],
)  # fmt: skip
def test_older_and_newer_kernels_are_understood(text, kind, device):
    name, match = kernel_events.kind_of(text)
    assert name == kind
    assert (match.groupdict().get("device") or "") == device
    rule = next(rule for rule in OF_LOG if rule.for_each == f"kernel_events.{kind}")
    assert device or "{device}" not in rule.summary + rule.action


@pytest.mark.parametrize(
    "text",
    [
        "traps: python3[77] general protection fault ip:7f3a0 sp:7ffd error:0 in libc.so.6[7f3a0+1000]",
        "EXT4-fs (sda1): mounted filesystem with ordered data mode. Opts: errors=remount-ro",
        "I/O error, dev fd0, sector 0 op 0x0:(READ)",
        "blk_update_request: I/O error, dev loop3, sector 0",
        "critical target error, dev sda, sector 2048 op 0x3:(DISCARD) flags 0x800 phys_seg 1 prio class 0",
        "mlx5_core 0000:5e:00.0 ens1f0np0: Link up",
        "amdgpu 0000:c1:00.0: amdgpu: {1}socket: 0, die: 0, 0 uncorrectable hardware errors detected in umc block",
        "amdgpu 0000:c1:00.0: amdgpu: RAS: optional ras ta ucode is not available",
        "device-mapper: ioctl: 4.48.0-ioctl (2023-03-01) initialised: dm-devel@redhat.com",
        "pcieport 0000:64:01.0: pciehp: Slot #12 AttnBtn- PwrCtrl- MRL- AttnInd+ PwrInd+ HotPlug+ Surprise+ Interlock-",
        "pcieport 0000:64:01.0: DPC: enabled with IRQ 131",
        "pcieport 0000:64:01.0: pciehp: Slot(12): Link Down/Up ignored (recovered by DPC)",
        "amdgpu 0000:c1:00.0: amdgpu: {3}socket: 0, die: 0, 0 deferred hardware errors detected in total in umc block",
        "md/raid1:md0: active with 2 out of 2 mirrors",
        "mlx5_core 0000:5e:00.0: mlx5_pcie_event:304:(pid 12): PCIe slot advertised sufficient power (75W).",
        "Lustre: Mounted scratch-client - version 2.15.5",
        "Lustre: scratch-OST0001-osc-ffff9c3b: Connection restored to 10.0.3.9@o2ib (at 10.0.3.9@o2ib)",
        "systemd-oomd[88]: Killed /system.slice/x due to memory pressure",
        "nvidia 0000:3b:00.0: enabling device (0140 -> 0142)",
        "NVRM: loading NVIDIA UNIX Open Kernel Module for x86_64  570.86.15",
        "python3[7121]: segfault at 10 ip 00005581 sp 00007ffd error 4 in python3.11[5581+2ab]",
    ],
)
def test_what_is_no_fault_of_the_machine_is_left(text):
    assert kernel_events.kind_of(text) == ("", None)
    assert not any(xids.facts([Line(60.0, text)]).values())


def test_secrets_and_whole_lines_stay_out(tmp_path):
    tree = changed(
        server(),
        logged(
            "NVRM: Xid (PCI:0000:3b:00): 43, pid=4, name=run --api_key=hunter2hunter2, Ch 8",
            "Out of memory: Killed process 5 (TOKEN=hunter2hunter2) total-vm:1kB",
            "program: password=hunter2hunter2 is nobody's business",
            "a line that is nobody's business either",
        ),
    )
    tree[KMSG] = tree[KMSG].replace("ro iommu=pt", "ro iommu=pt luks.password=hunter2hunter2")
    written = json.dumps(snapshot_of(tree, tmp_path).document())
    assert "Killed process 5" in written
    assert "hunter2" not in written
    assert "nobody's business" not in written


def damaged(text, chance):
    """A line with a few of its characters gone, doubled, moved or made nonsense."""
    for _ in range(chance.randint(1, 6)):
        at, length = chance.randrange(len(text) + 1), chance.randint(0, 12)
        piece = chance.choice(
            ["", text[at : at + length] * 2, "\x00", "9" * 400, "é\ud800", "(", "[", "{", '"', " ;,-"]
        )
        text = text[:at] + piece + text[at + length :]
    return text


@pytest.mark.parametrize("shard", [0, *(pytest.param(shard, marks=pytest.mark.slow) for shard in (1, 2, 3))])
def test_damaged_lines_are_survived(shard):
    """2,000 in all, each in one of the formats, both line and log damaged, and judged."""
    chance = random.Random(shard)
    texts = [kind.line for kind in kernel_events.kinds()]
    texts += [LOST, XID + RLW, XID + UNIT, XID + FAULT, "nvidia-nvswitch3: SXid (PCI:0000:c1:00.0): 20034, Fatal, x"]
    forms = [
        "6,1,123456789,-;{}", "[   12.345678] {}", "[Thu Oct 10 03:06:53 2024] {}", "Oct 10 03:06:53 n1 kernel: {}",
        "2024-10-10T03:06:53,123456+00:00 {}", "2024-10-10T03:06:53+0000 n1 kernel: {}",
        '{{"__REALTIME_TIMESTAMP": "1728529613000000", "MESSAGE": "{}"}}',
    ]  # fmt: skip
    for _ in range(500):
        text = damaged(chance.choice(forms).format(damaged(chance.choice(texts), chance)), chance)
        log = parse(text, now=NOW, uptime=chance.choice((None, 100.0)))
        assert all(0 <= line.age_s < 1e12 for line in log.lines)
        found = to_document(xids.facts(log.lines) | kernel_events.facts(log.lines)[0])
        assert len(json.dumps(found)) < 10_000
        evaluate_rules(OF_LOG, Snapshot("n1", NOW, {**found, "cpu": {"is_virtual": False}}))


def test_a_live_log_is_read_to_its_end_without_waiting(tmp_path, monkeypatch):
    pipe = tmp_path / "kmsg"
    os.mkfifo(pipe)
    monkeypatch.setattr(kernel_log, "KMSG", str(pipe))
    writer = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)
    os.write(writer, record(1.0, LOST).encode())
    found = kernel_log.collect(Host())
    os.close(writer)
    assert found["kernel_log"]["lines"] == 1
    assert found["xids"][0]["code"] == 79


def test_records_that_are_overwritten_meanwhile_are_passed_over(tmp_path, monkeypatch):
    pipe = tmp_path / "kmsg"
    pipe.write_text("")
    monkeypatch.setattr(kernel_log, "KMSG", str(pipe))
    answers = iter([BrokenPipeError, record(1.0, LOST).encode(), BlockingIOError])

    def read(file, size):
        answer = next(answers)
        if isinstance(answer, bytes):
            return answer
        raise answer

    monkeypatch.setattr(kernel_log.os, "read", read)
    assert kernel_log.collect(Host())["xids"][0]["code"] == 79


def _denied(*_):
    raise PermissionError(1, "Operation not permitted")


def test_without_permission_the_log_is_unknown_with_a_remedy(monkeypatch):
    monkeypatch.setattr(kernel_log, "_read_kmsg", _denied)
    monkeypatch.setattr(Host, "run", lambda self, *command, limit_s: "" if command[0] == "dmesg" else Absent("none"))
    found = kernel_log.collect(Host())
    assert set(found) == set(kernel_log.GIVES)
    for fact in found.values():
        assert isinstance(fact, Unknown)
        assert "Operation not permitted" in fact.why
        assert "dmesg_restrict" in fact.remedy


def test_the_journal_serves_where_kmsg_may_not_be_read(monkeypatch):
    entry = json.dumps({"__REALTIME_TIMESTAMP": "1728529613000000", "MESSAGE": LOST})
    monkeypatch.setattr(kernel_log, "_read_kmsg", _denied)
    monkeypatch.setattr(Host, "run", lambda self, *command, limit_s: entry if command[0] == "journalctl" else "")
    assert kernel_log.collect(Host())["xids"][0]["code"] == 79


def test_a_container_without_kmsg_is_skipped_with_how_to_grant_it(tmp_path):
    tree = server()
    del tree[KMSG]
    report = report_of(snapshot_of(tree, tmp_path))
    assert not [f for f in report.findings if f.id.startswith(("xid", "sxid", "kernel_log"))]
    skipped = {s.id: s.why for s in report.skipped}
    for family in ("xid.*", "sxid.*", "kernel_log.*"):
        assert "--device /dev/kmsg" in skipped[family]


def test_a_dmesg_file_is_read_where_nothing_was_captured(tmp_path):
    tree = server()
    del tree[KMSG]
    tree["var/log/dmesg"] = f"[    0.000000] Linux version 6.8.0-45\n[{UPTIME_S - 60}.000000] {example('oom_kills')}\n"
    snapshot = snapshot_of(tree, tmp_path)
    assert snapshot.facts["kernel_events"]["oom_kills"][0]["last_age_s"] == 60
    assert [f.id for f in report_of(snapshot).findings] == ["kernel_log.memory.oom"]


def test_each_list_of_events_has_a_rule_and_each_rule_a_list():
    listed = {rule.for_each for rule in RULES.values() if (rule.for_each or "").startswith("kernel_events.")}
    assert listed == {f"kernel_events.{kind.name}" for kind in kernel_events.kinds()}
    assert {case.rule for case in cases()} >= {rule for rule in RULES if rule.startswith("kernel_log.")}

"""The kernel log as it is written by kernels, drivers and those who keep it, read into events."""

import json
import os
import random

import pytest
from health_cases.kernel_log import FAULT, RLW, UNIT, XID, example, logged
from health_machines.boot_log import KMSG, UPTIME_S, record
from health_machines.linux import server
from health_trees import cases, changed, report_of, snapshot_of

from aifx.health import kernel_events, xids
from aifx.health.facts import Absent, Unknown, to_document
from aifx.health.host import Host
from aifx.health.judge import judge
from aifx.health.kernel_log import Line, parse
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
        ("mce: [Hardware Error]: CPU 0: Machine Check: 0 Bank 9: cc00008000010090", "machine_checks_corrected", ""),
        ("mce: [Hardware Error]: CPU 0: Machine Check: 0 Bank 9: fe00000000800400", "machine_checks_uncorrected", ""),
    ],
)  # fmt: skip
def test_older_and_newer_kernels_are_understood(text, kind, device):
    name, match = kernel_events.kind_of(text)
    assert name == kind
    assert (match.groupdict().get("device") or "") == device


@pytest.mark.parametrize(
    "text",
    [
        "traps: python3[77] general protection fault ip:7f3a0 sp:7ffd error:0 in libc.so.6[7f3a0+1000]",
        "EXT4-fs (sda1): mounted filesystem with ordered data mode. Opts: errors=remount-ro",
        "I/O error, dev fd0, sector 0 op 0x0:(READ)",
        "blk_update_request: I/O error, dev loop3, sector 0",
        "mlx5_core 0000:5e:00.0 ens1f0np0: Link up",
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


@pytest.mark.parametrize("shard", range(4))
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
        found = to_document(xids.facts(log.lines) | kernel_events.facts(log.lines))
        assert len(json.dumps(found)) < 10_000
        judge(OF_LOG, Snapshot("n1", NOW, {**found, "cpu": {"is_virtual": False}}))


def test_a_live_log_is_read_to_its_end_without_waiting(tmp_path, monkeypatch):
    pipe = tmp_path / "kmsg"
    os.mkfifo(pipe)
    monkeypatch.setattr(kernel_log, "KMSG", str(pipe))
    held = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)
    os.write(held, record(1.0, LOST).encode())
    found = kernel_log.collect(Host())
    os.close(held)
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


def test_one_that_may_not_read_is_told_how_to(monkeypatch):
    monkeypatch.setattr(kernel_log, "_read_kmsg", _denied)
    monkeypatch.setattr(Host, "run", lambda self, *command, limit_s: "" if command[0] == "dmesg" else Absent("none"))
    found = kernel_log.collect(Host())
    assert set(found) == set(kernel_log.GIVES)
    for fact in found.values():
        assert isinstance(fact, Unknown)
        assert "Operation not permitted" in fact.why
        assert "dmesg_restrict" in fact.mend


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

"""Memory, limits, disks, networks, clock and TPUs of the machine that the tests run on, and what no tree can show."""

import errno
import json
import shutil
import subprocess
import threading
import time

import pytest
from health_machines.boot_log import KMSG, record
from health_machines.gpus import H100_BUSES, NVML
from health_machines.host_files import own_limits
from health_machines.network_files import infiniband_files, port
from health_trees import machines, report_of, snapshot_of

from aifx.core.facts import Absent, Unknown
from aifx.health.check import collect
from aifx.health.evaluate_rules import evaluate_rules
from aifx.health.host import Host, within
from aifx.health.probes import all_probes, clock, disk, infiniband, limits, network
from aifx.health.rules import load_rules

FACTS = (
    "expected",
    "memory",
    "limits",
    "processes",
    "disk",
    "network_mounts",
    "nvme",
    "network",
    "infiniband",
    "pci_acs",
    "clock",
    "tpu",
)
SECRETS = {
    "HF_TOKEN": "hf_Kq3planted",
    "AWS_SECRET_ACCESS_KEY": "planted/Zx81",
    "DB_URL": "postgres://u:planted77@db/x",
    "XLA_FLAGS": "--xla_gpu_x=hf_planted0123456789abcdef --xla_dump_to=s3://u:planted@h/x --api-token planted8",
    "NCCL_DEBUG_FILE": "/x?access_key=planted9",
}
CANNOT_BE = {"limits.handles.exhausted", "limits.tasks.exhausted", "disk.read_only.remounted"}
"""Else these tests could not run; of anything else the machine may really be ill."""


class Answers(Host):
    """The live machine, with other outputs of commands."""

    def __init__(self, **answers):
        super().__init__()
        self.answers = answers

    def run(self, *command, limit_s=5.0):
        return self.answers.get(command[0], Absent(f"{command[0]} is not installed"))


@pytest.fixture(scope="module")
def rules():
    return [rule for rule in load_rules().values() if {p.split(".")[0] for p in rule.paths()} & {*FACTS}]


def test_the_machine_that_this_runs_on(rules, monkeypatch):
    """Every probe gives what it should, nothing that was planted is in it, and what is judged unhealthy is so."""
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    own = {name for rule in rules for name in (p.split(".")[0] for p in rule.paths())} & {*FACTS}
    wanted = [rule for rule in rules if {p.split(".")[0] for p in rule.paths()} <= {*FACTS, "cpu", "expected"}]
    snapshot = collect(Host(), wanted)
    assert own == {*FACTS}
    assert own <= set(snapshot.facts)
    text = json.dumps(snapshot.document())
    assert "probe failed" not in text
    assert "returned nothing" not in text
    assert "planted" not in text
    report = evaluate_rules(wanted, snapshot)
    assert not [f for f in report.findings if "the snapshot has no" in f.summary]
    critical = {f.id for f in report.findings if f.severity == "critical"}
    assert not critical & CANNOT_BE


def test_what_is_read_here_is_what_others_read():
    before = shutil.disk_usage("/")
    snapshot = collect(Host(), [rule for rule in load_rules().values() if rule.family in ("memory", "disk")])
    with open("/proc/meminfo") as file:
        kib = int(file.readline().split()[1])
    assert snapshot.facts["memory"]["total_gib"] == pytest.approx(kib / 2**20, abs=0.01)
    root = next(place for place in snapshot.facts["disk"]["places"] if "root /" in place["device"])
    free = [usage.free / 2**30 for usage in (before, shutil.disk_usage("/"))]
    assert root["size_gib"] == pytest.approx(before.total / 2**30, rel=1e-3)
    assert min(free) - 2 < root["free_gib"] < max(free) + 2  # other programs write, too
    assert snapshot.facts["disk"]["fsync_ms"] > 0
    assert 0 <= disk.space("/")["used_percent"] <= 100


def test_a_process_that_nobody_waited_for():
    with subprocess.Popen(["true"]) as process:
        stat = Host().path(f"/proc/{process.pid}/stat")
        ends = time.monotonic() + 120
        while ") Z" not in stat.read_text() and time.monotonic() < ends:
            time.sleep(0.01)
        found = limits.collect_processes(Host())
    assert found["zombies"] >= 1


def test_one_in_state_d_must_stay_there(monkeypatch):
    """A process that waits for a disk once is not stuck."""
    looks = iter(
        [
            {"7": ("python3", "D", False), "8": ("tar", "D", False)},
            {"7": ("python3", "S", False), "8": ("tar", "D", False)},
        ]
    )
    last = {"8": ("tar", "D", False)}
    monkeypatch.setattr(limits, "_stats", lambda host, pids=None: iter(next(looks, last).items()))
    monkeypatch.setattr(limits, "LOOK_EVERY_S", 0)
    assert limits.collect_processes(Host())["stuck_names"] == ["tar"]


def impatient_about(word):
    """`within`, with a limit only for what is named so."""
    return lambda _, function, what: within(0.2 if word in what else 600.0, function, what)


def test_a_mount_that_hangs_is_named_and_others_are_measured(monkeypatch):
    monkeypatch.setattr(disk, "within", impatient_about("/hangs"))
    goes_on = threading.Event()

    def look(point):
        if point == "/hangs":
            goes_on.wait()
        if point in ("/stale", "/denied"):
            raise OSError(errno.ESTALE if point == "/stale" else errno.EACCES, "Stale file handle")
        return {}

    points = [(point, "nfs4") for point in ("/fine", "/hangs", "/stale", "/denied")]
    fine, hangs, stale, denied = disk.network_mounts(points, look)
    goes_on.set()
    assert (fine["answers"], fine["error"]) == (True, "none")
    assert isinstance(hangs, Unknown)
    assert "nfs4 mount /hangs" in hangs.why
    assert "/hangs" in hangs.remedy
    assert (stale["answers"], stale["error"]) == (False, "Stale file handle")
    assert denied["answers"]


def test_a_place_that_hangs_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(disk, "within", impatient_about(str(tmp_path)))
    monkeypatch.setattr(disk, "cache_location", lambda: tmp_path / "cache")
    goes_on = threading.Event()
    space = disk.space
    monkeypatch.setattr(disk, "space", lambda path: goes_on.wait() if path == str(tmp_path) else space(path))
    found = disk.places()
    goes_on.set()
    unknown = [place for place in found if isinstance(place, Unknown)]
    assert len(unknown) == 1
    assert f"cache {tmp_path}/cache" in unknown[0].why


def test_a_folder_that_cannot_be_written_is_named(monkeypatch, tmp_path):
    """By root as well, for whom no mode forbids it."""
    cache = tmp_path / "cache"
    monkeypatch.setattr(disk, "cache_location", lambda: cache)
    monkeypatch.setattr(disk.os, "access", lambda path, mode: path != tmp_path)
    place = next(place for place in disk.places() if f"cache {cache}" in place["device"])
    assert (place["is_writable"], place["unwritable"]) == (False, [str(cache)])
    monkeypatch.setattr(disk.tempfile, "TemporaryFile", failing(errno.EROFS))
    assert isinstance(disk.fsync_ms(), Absent)
    monkeypatch.setattr(disk.tempfile, "TemporaryFile", failing(errno.EIO))
    assert isinstance(Host().measure("disk_fsync", disk.fsync_ms), Unknown)


def failing(number):
    def fails(**_):
        raise OSError(number, "planted")

    return fails


def test_the_own_name(monkeypatch):
    assert network.own_name()["took_ms"] >= 0
    monkeypatch.setattr(network.socket, "gethostname", lambda: "")
    monkeypatch.setattr(network, "NAME_LIMIT_S", 0.2)
    goes_on = threading.Event()
    monkeypatch.setattr(network.socket, "getaddrinfo", lambda *_: goes_on.wait())
    found = network.own_name()
    goes_on.set()
    assert not found["resolves"]


def test_a_clock_that_chrony_does_not_set():
    """chronyc is installed, and systemd-timesyncd runs."""
    not_running = Unknown("chronyc -c tracking failed (exit 1): 506 Cannot talk to daemon")
    seen = clock.collect(Answers(chronyc=not_running, timedatectl="NTPSynchronized=yes\n       Offset: -812us\n"))
    assert seen["is_synchronized"] is True
    assert seen["offset_ms"] == pytest.approx(0.812)
    assert seen["direction"] == "ahead"
    no_systemd = Unknown("timedatectl show failed (exit 1): System has not been booted with systemd")
    seen = clock.collect(Answers(chronyc=not_running, timedatectl=no_systemd))
    assert isinstance(seen["is_synchronized"], Absent)


def test_a_clock_that_could_not_be_read_is_unknown():
    hangs = Unknown("chronyc -c tracking gave no answer in 1.2 s")
    assert clock.collect(Answers(chronyc=hangs))["offset_ms"] == hangs
    for text in ("", "a,b", "506 strange\n"):
        assert isinstance(clock.collect(Answers(chronyc=text))["offset_ms"], Unknown)


@pytest.mark.parametrize(
    ("phys", "downed", "is_ill"), [("2: Polling", 0, False), ("2: Polling", 1, True), ("5: LinkUp", 0, True)]
)
def test_a_port_that_nobody_wired_is_no_fault(phys, downed, is_ill, tmp_path):
    """The other card of two, which is down."""
    tree = machines()["server"]() | port(0) | port(1, "10 Gb/sec (4X SDR)", state="1: DOWN", phys=phys)
    tree["sys/class/infiniband/mlx5_1/ports/1/counters/link_downed"] = f"{downed}\n"
    assert any(f.id == "infiniband.port.down" for f in report_of(snapshot_of(tree, tmp_path)).findings) == is_ill


SYSTEM = "8xH100 SXM with InfiniBand"


def found(tree, folder, site=None):
    return {finding.id for finding in report_of(snapshot_of(tree, folder), site).findings}


@pytest.mark.parametrize(("word", "is_ill"), [("plugged", True), ("unplugged", False)])
def test_a_port_that_is_down_with_a_cable_is_a_finding(word, is_ill, tmp_path):
    """The only port of its kind, of which the driver logged this last."""
    tree = machines()["server"]() | port(3, "10 Gb/sec (4X SDR)", state="1: DOWN", phys="2: Polling")
    address = tree["sys/class/infiniband/mlx5_3/device"].rpartition("/")[2]
    for each in ("unplugged", word):
        tree[KMSG] += record(40.0, f"mlx5_core {address}: Port module event: module 0, Cable {each}")
    assert ("infiniband.port.down" in found(tree, tmp_path)) == is_ill


@pytest.mark.parametrize("source", ["the PCI bus", "NVML"])
def test_ports_follow_from_the_gpus(source, tmp_path):
    """Eight of them never came up; without GPUs of such a system nobody knows whether they were to."""
    tree = machines()[SYSTEM]()
    for number in range(8):
        tree |= port(number, "10 Gb/sec (4X SDR)", state="1: DOWN", phys="2: Polling")
    if source == "the PCI bus":
        tree[NVML] = tree[NVML].replace("H100 80GB HBM3", "unknown")
        assert "infiniband.port.never_up" not in found(tree, tmp_path)
        for bus in H100_BUSES:
            tree[f"sys/bus/pci/devices/{bus}/device"] = "0x2330\n"
    assert {"infiniband.port.never_up", "infiniband.ports.expected"} <= found(tree, tmp_path)
    assert not found(tree, tmp_path, {"expected": {"infiniband_ports": 0}}) & {"infiniband.ports.expected"}


def test_a_port_that_is_down_has_no_rate(tmp_path):
    """sysfs has the slowest there is; otherwise a fleet's report would have it in addition to the port that is down."""
    tree = machines()["server"]() | port(0) | port(1, "10 Gb/sec (4X SDR)", state="1: DOWN", phys="2: Polling")
    up, down = snapshot_of(tree, tmp_path).facts["infiniband"]["ports"]
    assert up["rate_gbit"] == 400.0
    assert isinstance(down["rate_gbit"], Absent)


def test_the_site_knows_better_than_like_ports_how_many_are_wired(tmp_path):
    """Four of eight cards have a cable."""
    tree = machines()[SYSTEM]()
    for number in range(4):
        tree |= port(number, "10 Gb/sec (4X SDR)", state="1: DOWN", phys="2: Polling")
    assert "infiniband.port.never_up" in found(tree, tmp_path)
    assert not found(tree, tmp_path, {"expected": {"infiniband_ports": 4}})


def test_a_card_that_is_slower_than_the_system_is_no_fault(tmp_path):
    tree = machines()[SYSTEM]()
    for number in range(8):
        tree |= port(number, "200 Gb/sec (4X HDR)")
        tree[f"sys/class/infiniband/mlx5_{number}/hca_type"] = "MT4123\n"
    assert not found(tree, tmp_path)


def test_counters_that_stand_at_their_end_are_no_fault(tmp_path):
    """As on leptonai/gpud's healthy node (components/accelerator/nvidia/infiniband/class/testdata), now and later."""
    tree = machines()[SYSTEM]()
    for number in range(8):
        counters = f"sys/class/infiniband/mlx5_{number}/ports/1/counters"
        tree |= {f"{counters}/excessive_buffer_overrun_errors": "15\n", f"{counters}/port_rcv_errors": "14\n"}
    tree["sys/class/infiniband/mlx5_1/ports/1/counters/link_downed"] = "255\n"
    snapshot = snapshot_of(tree, tmp_path)
    later = snapshot_of(tree, tmp_path, snapshot.time + 600).since(snapshot)
    assert later.before is not None
    for one in (snapshot, later):
        report = report_of(one)
        assert {(f.id, f.severity) for f in report.findings} == {("infiniband.errors.counter_full", "info")}
        assert (len(report.findings), report.status) == (8, "healthy")


def test_a_port_that_counts_nothing_is_absent(tmp_path):
    tree = machines()["server with InfiniBand"]()
    tree |= {path: "N/A (no PMA)\n" for path in tree if "/counters/" in path}
    snapshot = snapshot_of(tree, tmp_path)
    assert not report_of(snapshot).findings
    assert isinstance(snapshot.facts["infiniband"]["ports"][0]["link_downed"], Absent)


EMPTY = (
    "sys/class/net/eno1/speed",
    "sys/class/net/eno1/duplex",
    "sys/class/net/eno1/mtu",
    "sys/devices/system/cpu/online",
    "proc/loadavg",
    "aifx-captured/nvme_smart-log_devnvme0_-o_json.txt",
)


@pytest.mark.parametrize("path", EMPTY)
def test_an_empty_file_of_a_copy_is_absent(path, tmp_path):
    """`cp` leaves one if the kernel gives an error for the file, as for the speed of a card without a link."""
    tree = machines()["server"]()
    assert path in tree
    snapshot = snapshot_of(tree | {path: ""}, tmp_path)
    assert not report_of(snapshot).findings
    assert "probe failed" not in json.dumps(snapshot.document())


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"etc/hostname": "# set by the installer\nn7\n"}, "n7"),
        ({"etc/hostname": "n7\n", "proc/sys/kernel/hostname": ""}, "n7"),
        ({}, "node-of-rack-4"),
    ],
)
def test_the_name_of_a_copied_machine(changes, name, tmp_path):
    tree = {path: text for path, text in machines()["server"]().items() if path != "proc/sys/kernel/hostname"}
    assert snapshot_of(tree | changes, tmp_path / "node-of-rack-4").host == name


def test_a_link_of_a_copy_leads_to_no_file_of_this_machine(tmp_path):
    (tmp_path / "here").write_text("this-machine\n")
    tree = machines()["server"]() | {"etc/hostname": f"-> {tmp_path}/here"}
    del tree["proc/sys/kernel/hostname"]
    assert snapshot_of(tree, tmp_path / "n9").host == "n9"
    assert not Host(tmp_path / "n9").exists("/etc/hostname")


@pytest.mark.parametrize(
    ("driver", "preference", "is_slow"),
    [
        ("intel_pstate", "balance_performance", False),
        ("amd-pstate-epp", "performance", False),
        ("intel_pstate", None, True),
        ("acpi-cpufreq", None, True),
    ],
)
def test_powersave_is_slow_if_the_kernel_drives(driver, preference, is_slow, tmp_path):
    tree = machines()["server"]()
    for path in [path for path in tree if path.endswith("/scaling_governor")]:
        tree[path] = "powersave\n"
        tree[path.replace("scaling_governor", "scaling_driver")] = f"{driver}\n"
        if preference:
            tree[path.replace("scaling_governor", "energy_performance_preference")] = f"{preference}\n"
    assert found(tree, tmp_path) == ({"cpu.governor.slow"} if is_slow else set())


@pytest.mark.parametrize(
    ("kind", "lanes", "is_ill"),
    [
        ("0x020700\n", 2, True),
        ("0x0c0330\n", 2, False),
        ("0x060400\n", 16, False),
        (None, 4, False),
        (None, 8, True),
        (None, 16, True),
    ],
)
def test_a_narrow_link_matters_to_cards(kind, lanes, is_ill, tmp_path):
    """By the class, otherwise by the lanes that the device can have."""
    tree = machines()["server"]()
    line = f"limited by 2.5 GT/s PCIe x1 link at 0000:00:1c.0 (capable of 15.752 Gb/s with 8.0 GT/s PCIe x{lanes} link)"
    tree[KMSG] += record(40.0, f"pci 0000:5e:00.0: 2.000 Gb/s available PCIe bandwidth, {line}")
    if kind:
        tree["sys/bus/pci/devices/0000:5e:00.0/class"] = kind
    assert ("kernel_log.pcie.narrow" in found(tree, tmp_path)) == is_ill


def test_two_groups_of_ports_are_not_compared(tmp_path):
    """Some cards of one kind may serve storage, at half the speed."""
    tree = machines()["server"]() | infiniband_files(6)
    tree |= port(6, "200 Gb/sec (4X HDR)") | port(7, "200 Gb/sec (4X HDR)")
    assert not report_of(snapshot_of(tree, tmp_path)).findings


def test_a_limit_that_does_not_hold_for_root(tmp_path):
    tree = machines()["server with InfiniBand"]() | {"proc/self/limits": own_limits(memlock="8388608")}
    assert [f.id for f in report_of(snapshot_of(tree, tmp_path)).findings] == ["limits.memlock.limited"]
    tree["proc/self/status"] = tree["proc/self/status"].replace("0000000000000000", "000001ffffffffff")
    assert not report_of(snapshot_of(tree, tmp_path)).findings


def test_what_only_root_may_read_is_unknown_with_a_remedy(tmp_path):
    denied = "15:01.0 PCI bridge: Intel\n\tCapabilities: <access denied>\n"
    tree = machines()["server"]()
    for bus in ("1b", "43"):
        tree[f"sys/bus/pci/devices/0000:{bus}:00.0/vendor"] = "0x1002\n"
        tree[f"sys/bus/pci/devices/0000:{bus}:00.0/class"] = "0x038000\n"
    snapshot_of(tree | {"aifx-captured/lspci_-vvv.txt": denied}, tmp_path)
    found = infiniband.collect_acs(Host(tmp_path))
    assert isinstance(found, Unknown)
    assert "root" in found.remedy


def test_a_drive_whose_account_is_not_given(tmp_path):
    tree = machines()["server"]()
    account = "aifx-captured/nvme_smart-log_devnvme0_-o_json.txt"
    for text, kind in ((None, Absent), ("{", Unknown), ("{}", Unknown), ("[]", Unknown)):
        now = {path: t for path, t in tree.items() if path != account} | ({account: text} if text is not None else {})
        snapshot_of(now, tmp_path)
        drive = disk.collect_nvme(Host(tmp_path))[0]
        assert isinstance(drive["media_errors"], kind), text
        assert drive["state"] == "live"


def test_a_drive_that_only_root_may_ask_is_one_unknown_thing():
    denied = Unknown("nvme smart-log /dev/nvme0 failed (exit 1): Permission denied")
    seen = disk._smart(Answers(nvme=denied), "nvme0")
    assert isinstance(seen["critical_warning"], Unknown)
    assert "root" in seen["critical_warning"].remedy
    assert isinstance(seen["media_errors"], Absent)


def test_each_probe_of_ours_gives_all_its_facts(tmp_path):
    snapshot_of(machines()["TPU v5e VM"](), tmp_path)
    for probe in all_probes():
        if set(probe.gives) <= {*FACTS}:
            assert set(probe.collect(Host(tmp_path))) == set(probe.gives)

"""The report as a person reads it: causes first, each fact once, within 80 columns."""

from __future__ import annotations

import re

import pytest
from health_cases.infiniband import never_up
from health_cases.kernel_log import logged
from health_machines.disk_files import places
from health_machines.network_files import card
from health_trees import changed, machines, snapshot_of
from rich.cells import cell_len

from aifx.commands.main import run
from aifx.health.evaluate_rules import evaluate_rules
from aifx.health.report import Report
from aifx.health.rules import Rule
from aifx.health.snapshot import Snapshot

SYSTEM = "8xH100 SXM with InfiniBand"


@pytest.fixture
def screen(tmp_path, capfd, monkeypatch):
    """Run `aifx doctor` on a machine's files, and return its output."""

    def show(tree: dict[str, str], *options: str, columns: int = 80) -> str:
        monkeypatch.setenv("COLUMNS", str(columns))
        snapshot_of(tree, tmp_path / "tree")
        run(["doctor", "--root", str(tmp_path / "tree"), *options])
        return capfd.readouterr().out

    return show


@pytest.fixture
def dark() -> dict[str, str]:
    """A GPU system on which no InfiniBand port ever came up, and a processor is off."""
    return machines()[SYSTEM]() | never_up(*range(8)) | {"sys/devices/system/cpu/online": "0-3,5-15\n"}


@pytest.mark.parametrize("columns", [60, pytest.param(80, marks=pytest.mark.slow), 200])
def test_a_report_is_at_most_80_columns_wide(screen, dark, columns):
    for options in ((), ("--list-skipped",)):
        lines = screen(dark, *options, columns=columns).splitlines()
        assert max(map(cell_len, lines)) <= min(columns, 80)
        assert all(line == line.rstrip() for line in lines)


def test_a_command_is_on_one_line(screen, dark):
    text = screen(dark)
    for command in ("`ibstat mlx5_0 1`", "`mlxlink -d mlx5_0`", "`chcpu -e 4`"):
        assert command in text


def test_a_cause_is_printed_once_with_its_consequences(screen, dark):
    text = " ".join(screen(dark).split())
    assert text.count("rule infiniband.port.never_up") == 1
    assert f"also {', '.join(f'mlx5_{number}/1' for number in range(1, 8))} rule" in text
    assert re.search(r"causes 0 .*8 expected.*infiniband\.ports\.expected", text)
    assert text.index("infiniband.port.never_up") < text.index("infiniband.ports.expected") < text.index("processors")


def test_a_different_text_of_another_device_is_printed(screen):
    tree = machines()["server with InfiniBand"]()
    for number, counter, value in FULL:
        tree[f"sys/class/infiniband/mlx5_{number}/ports/1/counters/{counter}"] = f"{value}\n"
    text = " ".join(screen(tree).split())
    assert re.search(r"link_downed 255 also mlx5_3/1; .*mlx5_4/1", text)


FULL = ((2, "link_downed", 255), (3, "link_downed", 255), (4, "excessive_buffer_overrun_errors", 15))


def test_a_partition_is_of_its_disk(screen):
    broken = logged(
        "blk_update_request: I/O error, dev sda, sector 2048 op 0x1:(WRITE) flags 0x3800 phys_seg 1 prio class 0",
        "EXT4-fs (sda1): Remounting filesystem read-only",
    )
    text = " ".join(screen(changed(machines()["server"](), broken)).split())
    assert "rule kernel_log.disk.io_error" in text
    assert re.search(r"causes .*sda1", text)


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_the_list_of_rules_is_at_most_80_columns_wide_and_whole(capfd, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    run(["doctor", "rules", "infiniband"])
    text = capfd.readouterr().out
    assert max(map(cell_len, text.splitlines())) <= min(columns, 80)
    assert "node.expected.infiniband_gbit" in text
    assert re.search(r"infiniband\.port\.never_up\s+critical\s.*DOWN,\s+NOP", text)


def test_a_difference_is_at_most_80_columns_wide_and_whole(screen, dark, tmp_path, capfd):
    snapshots = [str(tmp_path / name) for name in ("good.json", "bad.json")]
    for tree, snapshot in zip((machines()[SYSTEM](), dark), snapshots, strict=True):
        screen(tree, "--record", snapshot)
    run(["doctor", "diff", *snapshots])
    text = capfd.readouterr().out
    assert max(map(cell_len, text.splitlines())) <= 80
    changed_fact = "ports[mlx5_0/1].expected_up_because its physical state is LinkUp -> nothing asks for it"
    assert changed_fact in " ".join(text.split())


def test_a_lost_nvme_drive_comes_before_its_disks_partitions_and_arrays(screen):
    lost = logged(
        "I/O error, dev nvme1n1, sector 2048 op 0x1:(WRITE) flags 0x3800 phys_seg 1 prio class 0",
        "nvme nvme1: Disabling device after reset failure: -19",
        "EXT4-fs (nvme1n1p1): Remounting filesystem read-only",
        "md/raid1:md127: Disk failure on nvme1n1p2, disabling device.",
    )
    text = screen(changed(machines()["server"](), lost))
    assert text.count("critical  ") == 1
    text = " ".join(text.split())
    assert re.search(r"causes nvme1n1 .*1\.0 h .*1 line", text)
    places = [text.index(part) for part in ("rule kernel_log.disk.nvme_lost", "nvme1n1p1 stopped", "nvme1n1p2 dropped")]
    assert places == sorted(places)


def test_firmware_that_does_not_answer_comes_before_the_port_that_is_down(screen):
    tree = machines()[SYSTEM]() | never_up(4)
    address = tree["sys/class/infiniband/mlx5_4/device"].rpartition("/")[2]
    silent = f"mlx5_core {address}: wait_func:1186:(pid 4411): CREATE_CQ(0x400) timeout. Will cause a leak"
    text = screen(changed(tree, logged(silent)))
    assert text.count("critical  ") == 1
    assert text.index("kernel_log.network.command") < text.index("infiniband.port.never_up")


def test_a_command_names_what_it_is_for(screen):
    fallen = logged("md/raid1:md127: Disk failure on sdb1, disabling device.")
    full = {"aifx-captured/disk_places.json": places(used_percent=96.4, mount_point="/mnt/data")}
    text = " ".join(screen(changed(machines()["server"]() | full, fallen)).split())
    assert "`mdadm /dev/md127 --add /dev/sdb1`" in text
    assert "`du -xh --max-depth 2 /mnt/data | sort -h | tail`" in text


def test_a_port_its_interface_and_its_log_are_one_fact(screen):
    """All three know the card by another name."""
    tree = machines()[SYSTEM]() | never_up(4)
    address = tree["sys/class/infiniband/mlx5_4/device"].rpartition("/")[2]
    pci = f"sys/bus/pci/devices/{address}"
    files = {path.replace("sys/class/net/ibs4/device", pci): text for path, text in card("ibs4", state="down").items()}
    tree |= files | {"sys/class/net/ibs4/device": f"-> ../../../bus/pci/devices/{address}"}
    tree["sys/class/net/ibs4/carrier_changes"] = "4\n"
    lines = [f"mlx5_core {address} ibs4: Link down"] * 3
    text = screen(changed(tree, logged(*lines, apart=60.0)), "--skip", "infiniband.ports")
    assert [line.split()[0] for line in text.splitlines() if line.startswith(("critical", "warning"))] == ["critical"]
    text = " ".join(text.split())
    assert text.index("rule infiniband.port.never_up") < text.index("(network.interface.down)")
    assert "(kernel_log.network.flap)" in text


def test_what_passed_is_a_line_per_family_and_what_was_skipped_one(screen, dark):
    lines = screen(dark).splitlines()
    families = [line.split()[1] for line in lines if line.startswith("passed")]
    assert len(families) == len(set(families)) > 5
    assert "stress" not in families
    without = screen(machines()["server"]())
    assert not [line for line in without.splitlines() if line.startswith(("passed    infiniband", "passed    nvidia"))]
    (skipped,) = (line for line in lines if line.startswith("skipped"))
    assert "--list-skipped" in skipped
    listed = " ".join(screen(dark, "--list-skipped").split())
    assert "tpu.*: " in listed
    assert "--list-skipped" not in listed


def finding_rule(name: str, severity: str, *explains: str, each: str = "") -> Rule:
    return Rule(
        id=name, signal="bad", for_each=each or None, fails_if={"equals": True}, severity=severity,
        summary=f"{name} is bad", action="fix", source="here", explains=explains,
    )  # fmt: skip


def report_of_rules(*rules: Rule) -> Report:
    return evaluate_rules(rules, Snapshot("n1", 0.0, {"bad": True}))


def test_consequences_come_right_behind_their_cause():
    """Also those of consequences; what is worse than its cause stands alone, and circles have a first."""
    report = report_of_rules(
        finding_rule("a.lone.one", "critical"),
        finding_rule("c.of.d", "critical"),
        finding_rule("d.of.b", "critical", "c"),
        finding_rule("b.cause.two", "critical", "d", "e", "f"),
        finding_rule("f.mild.one", "warning", "a"),
        finding_rule("g.twin.one", "info", "h"),
        finding_rule("h.twin.two", "info", "g"),
    )
    assert [(f.id, f.explained_by) for f in report.findings] == [
        ("a.lone.one", ""),
        ("b.cause.two", ""),
        ("d.of.b", "b.cause.two"),
        ("c.of.d", "d.of.b"),
        ("f.mild.one", "b.cause.two"),
        ("g.twin.one", ""),
        ("h.twin.two", "g.twin.one"),
    ]

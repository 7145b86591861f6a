"""Crashes of the kernel as pstore and systemd-pstore keep them."""

import os
import time

import pytest
from health_machines.linux import server
from health_trees import report_of, snapshot_of

from aifx.health.host import Host
from aifx.health.probes import crashes

OOPS = "<1>[  900.000000] BUG: kernel NULL pointer dereference, address: 0000000000000010\n"
PANIC = "<0>[  900.200000] Kernel panic - not syncing: Fatal exception in interrupt\n"
NO_REASON = "the record does not say why"


def found(tmp_path, files):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return crashes.collect(Host(tmp_path))


@pytest.mark.parametrize(
    ("files", "reasons"),
    [
        ({"sys/fs/pstore/dmesg-ramoops-0": f"Panic#1 Part1\n{PANIC}", "sys/fs/pstore/console-ramoops-0": OOPS},
         ["Fatal exception in interrupt"]),
        # Parts of one crash, of whole lines, the last first.
        ({"sys/fs/pstore/dmesg-erst-7456789012345000001": f"Panic#1 Part1\n{PANIC}",
          "sys/fs/pstore/dmesg-erst-7456789012345000002": f"Panic#1 Part2\n{OOPS}"},
         ["Fatal exception in interrupt"]),
        ({"sys/fs/pstore/dmesg-efi-173000000001001": f"Oops#1 Part1\n{OOPS}",
          "sys/fs/pstore/dmesg-efi-174000000001001": f"Panic#1 Part1\n{PANIC}"},
         ["kernel NULL pointer dereference", "Fatal exception in interrupt"]),
        ({"sys/fs/pstore/dmesg-nvme-1.enc.z": "x"}, ["its record cannot be read here"]),
        ({"sys/fs/pstore/dmesg-efi-173000000001001": "Panic#1 Part1\n<6>[  900.000000] x\n"}, [NO_REASON]),
        # systemd-pstore: a folder for each crash, with the parts and what they are together; newer ones go deeper.
        ({"var/lib/systemd/pstore/173000000/dmesg.txt": f"dmesg-efi-173000000001001:\nPanic#1 Part1\n{OOPS}{PANIC}",
          "var/lib/systemd/pstore/173000000/dmesg-efi-173000000001001": f"Panic#1 Part1\n{OOPS}{PANIC}",
          "var/lib/systemd/pstore/1740000000/001/dmesg.txt": f"Oops#1 Part1\n{OOPS}"},
         ["Fatal exception in interrupt", "kernel NULL pointer dereference"]),
    ],
)  # fmt: skip
def test_each_crash_is_reported_once_with_its_reason(tmp_path, files, reasons):
    assert [crash["reason"] for crash in found(tmp_path, files)] == reasons


@pytest.mark.parametrize(
    ("reason", "cause"),
    [
        ("Fatal machine check on current CPU", "hardware"),
        ("Timeout: Not all CPUs entered broadcast exception handler", "hardware"),
        ("Fatal hardware error!", "hardware"),
        ("NMI IOCK error: Not continuing", "hardware"),
        ("Asynchronous SError Interrupt", "hardware"),
        ("Fatal exception in interrupt", "kernel"),
        ("hung_task: blocked tasks", "kernel"),
    ],
)
def test_crashes_by_hardware_are_distinguished(tmp_path, reason, cause):
    text = f"Panic#1 Part1\n<0>[  900.200000] Kernel panic - not syncing: {reason}\n"
    (crash,) = found(tmp_path, {"sys/fs/pstore/dmesg-efi-173000000001001": text})
    assert crash["cause"] == cause


@pytest.mark.parametrize(("days", "ids"), [(6, ["crash.kernel.panic"]), (8, [])])
def test_a_crash_counts_for_a_week(tmp_path, days, ids):
    path = "sys/fs/pstore/dmesg-efi-173000000001001"
    written = time.time() - days * 86_400

    def modified(self, path):
        return written

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Host, "modified", modified)
        report = report_of(snapshot_of({**server(), path: f"Panic#1 Part1\n{PANIC}"}, tmp_path))
    assert [f.id for f in report.findings] == ids


def test_the_age_is_that_of_the_record(tmp_path):
    path = "sys/fs/pstore/dmesg-efi-173000000001001"
    found(tmp_path, {path: PANIC})
    os.utime(tmp_path / path, (0, time.time() - 7200))
    (crash,) = found(tmp_path, {})
    assert crash["age_s"] == pytest.approx(7200, abs=60)


def test_without_permission_the_crashes_are_absent_with_a_remedy(tmp_path, monkeypatch):
    assert "as root" in crashes.collect(Host(tmp_path)).why
    found(tmp_path, {"sys/fs/pstore/x": ""})
    assert crashes.collect(Host(tmp_path)) == []

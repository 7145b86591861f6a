"""Joules: RAPL's zones in a tree of files, NVML's counter in a library built from the health tests' fake."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from aifx.machine import energy
from aifx.machine.energy import Counter, Energy, JobEnergy, Unreadable, open_energy

FAKE = Path(__file__).parents[1] / "health" / "fake_nvml.c"
COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
RANGE_UJ = 262_143_328_850
CPU = [SimpleNamespace(platform="cpu", device_kind="cpu")]


def zone(powercap: Path, number: str, name: str, energy_uj: int) -> Path:
    folder = powercap / f"intel-rapl:{number}"
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{name}\n")
    (folder / "energy_uj").write_text(f"{energy_uj}\n")
    (folder / "max_energy_range_uj").write_text(f"{RANGE_UJ}\n")
    return folder / "energy_uj"


@pytest.fixture
def powercap(tmp_path):
    """Two packages, one with memory of its own beside its cores, and the whole machine counted once more."""
    zone(tmp_path, "0", "package-0", 5_000_000)
    zone(tmp_path, "0:0", "core", 4_000_000)
    zone(tmp_path, "0:1", "dram", 1_000_000)
    zone(tmp_path, "1", "package-1", RANGE_UJ - 2_000_000)
    zone(tmp_path, "2", "psys", 9_000_000)
    return tmp_path


def test_packages_and_memory_are_added_up_and_nothing_twice(powercap, monkeypatch):
    monkeypatch.setattr(energy, "SHORTEST_S", 0.0)
    measured = open_energy(CPU, powercap)
    with measured.span():
        for number, stands in (("0", 8_000_000), ("0:0", 7_000_000), ("0:1", 1_500_000), ("2", 99_000_000)):
            (powercap / f"intel-rapl:{number}" / "energy_uj").write_text(str(stands))
        (powercap / "intel-rapl:1" / "energy_uj").write_text("1000000")  # began again at 0
    assert measured.joules == pytest.approx(3.0 + 0.5 + 3.0)
    with measured.span():
        (powercap / "intel-rapl:0" / "energy_uj").write_text("10000000")
    assert measured.joules == pytest.approx(8.5)


def test_what_is_too_short_for_the_counters_is_not_told(powercap):
    measured = open_energy(CPU, powercap)
    with measured.span():
        (powercap / "intel-rapl:0" / "energy_uj").write_text("8000000")
    assert measured.joules is None
    assert measured.failed is None


def test_a_machine_without_counters_says_so(tmp_path):
    with pytest.raises(Unreadable, match="no RAPL zone"):
        open_energy(CPU, tmp_path)
    with pytest.raises(Unreadable, match="TPU v5e"):
        open_energy([SimpleNamespace(platform="tpu", device_kind="TPU v5e")])


def test_counters_of_root_alone_are_said_with_what_helps(powercap, monkeypatch):
    def refuse(path: Path) -> str:
        raise PermissionError(13, "Permission denied")

    (powercap / "intel-rapl:0" / "energy_uj").unlink()
    with pytest.raises(Unreadable, match="cannot be read"):
        open_energy(CPU, powercap)
    texts = {path: path.read_text() for path in powercap.rglob("name")}
    monkeypatch.setattr(Path, "read_text", lambda path: texts.get(path) or refuse(path))
    with pytest.raises(Unreadable, match=r"chmod a.r .*intel-rapl:0/energy_uj"):
        open_energy(CPU, powercap)


def test_counters_that_fail_midway_leave_no_number():
    told = iter([1.0, 2.0])

    def read() -> float:
        if (value := next(told, None)) is None:
            raise Unreadable("the GPU is lost")
        return value

    measured = Energy([Counter("GPU 0", read)])
    for _ in range(3):
        with measured.span():
            pass
    assert (measured.joules, measured.failed) == (None, "the GPU is lost")


@pytest.mark.skipif(COMPILER is None or sys.platform != "linux", reason="no C compiler on Linux for the fake NVML")
def test_the_gpus_that_cuda_shows_are_read(tmp_path):
    library = tmp_path / "libnvidia-ml.so.1"
    subprocess.run([str(COMPILER), "-O1", "-shared", "-fPIC", "-o", library, FAKE], check=True)
    (tmp_path / "scenario.txt").write_text(
        "nvmlDeviceGetCount_v2 = 4\n"
        "2:nvmlDeviceGetTotalEnergyConsumption = 7500\n"
        "3:nvmlDeviceGetTotalEnergyConsumption = 9000\n"
    )
    program = """
import json, sys
from aifx.machine.energy import Unreadable, gpu_counters
try:
    print(json.dumps([[counter.name, counter.read()] for counter in gpu_counters(json.loads(sys.argv[1]))]))
except Unreadable as error:
    print(json.dumps(str(error)))
"""

    def ask(visible: str, ordinals: list[int]):
        environ = {"FAKE_NVML_SCENARIO": str(tmp_path / "scenario.txt"), "LD_LIBRARY_PATH": str(tmp_path)}
        environ = {**os.environ, **environ, "CUDA_VISIBLE_DEVICES": visible}
        command = [sys.executable, "-c", program, json.dumps(ordinals)]
        return json.loads(subprocess.run(command, env=environ, capture_output=True, check=True).stdout)

    assert ask("3,2", [0, 1]) == [["GPU 0", 9.0], ["GPU 1", 7.5]]
    assert "does not report it" in ask("", [1])


def devices(kind: str, platform: str, processes: list[int]) -> list[SimpleNamespace]:
    return [SimpleNamespace(platform=platform, device_kind=kind, process_index=index) for index in processes]


def test_a_job_reads_its_counters_from_one_line_to_the_next(powercap):
    job = JobEnergy(devices("cpu", "cpu", [0]), powercap=powercap)
    (powercap / "intel-rapl:0" / "energy_uj").write_text("8000000")
    first = job.take()
    assert (first["joules"], first["basis"]) == (pytest.approx(3.0), "measured")
    assert first["seconds"] > 0
    assert job.take()["joules"] == 0.0


def test_hosts_that_nobody_reads_count_as_the_one_that_is_read(powercap):
    job = JobEnergy(devices("cpu", "cpu", [0, 1, 2, 3]), num_hosts=2, powercap=powercap)
    (powercap / "intel-rapl:0" / "energy_uj").write_text("8000000")
    taken = job.take()
    assert (taken["joules"], taken["basis"]) == (pytest.approx(6.0), "estimated")


def test_a_counter_that_fails_leaves_no_number(powercap, caplog):
    job = JobEnergy(devices("cpu", "cpu", [0]), powercap=powercap)
    (powercap / "intel-rapl:0" / "energy_uj").write_text("broken")
    assert job.take() is None
    assert job.take() is None
    assert caplog.text.count("no longer known") == 1


@pytest.mark.parametrize(
    ("kind", "declared_w", "watts", "basis"),
    [
        ("NVIDIA H100 80GB HBM3", None, 1400.0, "nameplate"),
        ("NVIDIA H100 80GB HBM3", 1000.0, 1000.0, "declared"),
        ("cpu", 90.0, 90.0, "declared"),
    ],
)
def test_without_counters_power_is_as_stated(tmp_path, monkeypatch, kind, declared_w, watts, basis):
    def unreadable(*_: object) -> None:
        raise Unreadable("no driver")

    monkeypatch.setattr(energy, "open_counters", unreadable)
    job = JobEnergy(devices(kind, "gpu", [0, 0]), declared_w=declared_w)
    taken = job.take()
    assert (taken["joules"], taken["basis"]) == (pytest.approx(watts * taken["seconds"]), basis)


def test_without_counters_and_catalogue_energy_is_unknown(tmp_path):
    assert JobEnergy(devices("cpu", "cpu", [0]), powercap=tmp_path).take() is None

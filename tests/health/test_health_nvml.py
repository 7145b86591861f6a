"""The real nvidia-ml-py in the real process, over a library built from fake_nvml.c."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pynvml
import pytest
from health_machines.gpus import A100_PCIE, GB200, GB200_BUSES, H100, H100_BUSES, H100_NVL, L4
from health_machines.nvml_documents import document
from nvml_scenarios import scenario

from aifx.core import processes
from aifx.core.facts import Absent, Unknown, from_document
from aifx.health.host import Host
from aifx.health.probes import nvidia

SOURCE = Path(__file__).with_name("fake_nvml.c")
COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
pytestmark = pytest.mark.skipif(
    COMPILER is None or sys.platform != "linux",
    reason="no C compiler on Linux for the fake libnvidia-ml.so.1",
)


def build(folder: Path, *options: str) -> Path:
    library = folder / "libnvidia-ml.so.1"
    command = [COMPILER, "-O1", "-shared", "-fPIC", *options, "-o", library, SOURCE]
    subprocess.run(command, check=True)
    return folder


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Path:
    return build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def read(library, tmp_path, monkeypatch):
    """Run the reader on a scenario, and return its facts."""

    def read(text: str, *arguments: str, folder: Path = library, limit_s: float = 600.0, module="aifx.machine.nvml"):
        file = tmp_path / "scenario.txt"
        file.write_text(text)
        monkeypatch.setenv("FAKE_NVML_SCENARIO", str(file))
        monkeypatch.setenv("LD_LIBRARY_PATH", str(folder))
        return from_document(Host().ask(module, *arguments, name="nvml", limit_s=limit_s))

    return read


def alike(value):
    """A document in which one word stands for every reason why something is absent."""
    if isinstance(value, Absent):
        return "absent"
    if isinstance(value, dict):
        return {name: alike(inner) for name, inner in value.items()}
    return [alike(inner) for inner in value] if isinstance(value, list) else value


MACHINES = {
    "H100": (H100, H100_BUSES),
    "A100 PCIe": (A100_PCIE, ["0000:17:00.0", "0000:ca:00.0"]),
    "H100 NVL": (H100_NVL, ["0000:41:00.0", "0000:61:00.0"]),
    "L4": (L4, ["0000:00:03.0"]),
    "GB200": (GB200, GB200_BUSES),
}


@pytest.mark.parametrize("name", MACHINES)
def test_a_machine_is_read_as_the_healthy_ones_have_it(name, read):
    """So that what rules are tested with is what the reader gives."""
    wanted = document(*MACHINES[name])
    assert alike(read(scenario(wanted))) == alike(from_document(wanted))


def eight(*changes: str) -> str:
    """Eight H100, and what is otherwise."""
    return "\n".join([*changes, scenario(document(H100, H100_BUSES))])


@pytest.mark.parametrize(
    "line",
    ["3:nvmlDeviceGetHandleByIndex_v2 = !15", "3:* = !15"],
    ids=["cannot be opened", "answers nothing"],
)
def test_a_lost_gpu_keeps_no_other_from_being_read(line, read):
    gpus = read(eight(line))["gpus"]
    healthy = alike(from_document(document(H100, H100_BUSES)))["gpus"]
    assert gpus[3]["state"] == "lost"
    assert isinstance(gpus[3]["temperature"]["gpu_c"], Absent)
    assert [alike(gpu) for gpu in gpus if gpu["index"] != 3] == [gpu for gpu in healthy if gpu["index"] != 3]


@pytest.mark.parametrize(
    ("number", "word"), [(0, "none"), (1, "reset"), (2, "reboot"), (3, "drain_p2p"), (4, "drain_and_reset"), (99, "99")]
)
def test_recovery_actions(number, word, read):
    assert read(eight(f"5:nvmlDeviceGetFieldValues/230 = {number}"))["gpus"][5]["recovery_action"] == word


def test_a_function_that_the_library_lacks_is_absent(read, tmp_path):
    """As with an older driver."""
    older = build(tmp_path, "-DnvmlDeviceGetSramEccErrorStatus=gone", "-DnvmlDeviceGetMarginTemperature=gone_too")
    gpu = read(eight(), folder=older)["gpus"][0]
    for value in (gpu["ecc"]["sram_threshold_exceeded"], gpu["temperature"]["margin_c"]):
        assert isinstance(value, Absent)
        assert "no such function" in value.why
    assert gpu["temperature"]["gpu_c"] == 33


def test_what_an_older_nvidia_ml_py_lacks_is_absent_and_says_how(read, tmp_path, monkeypatch):
    """Version 12.560 lacks constants, and a function takes other arguments."""
    gone = (
        "nvmlDeviceGetMarginTemperature", "nvmlDeviceGetRepairStatus", "nvmlDeviceGetUnrepairableMemoryFlag_v1",
        "c_nvmlGpuFabricInfo_v2_t", "c_nvmlGpuFabricInfo_v3_t",
    )  # fmt: skip
    older = [f"exec(open({pynvml.__file__!r}).read())", f"del {', '.join(gone)}"]
    (tmp_path / "pynvml.py").write_text("\n".join([*older, "nvmlDeviceGetPowerUsage = lambda: 1"]))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    gpu = read(eight())["gpus"][0]
    for value in (gpu["temperature"]["margin_c"], *gpu["repair"].values(), gpu["fabric"]):
        assert isinstance(value, Absent)
        assert "pip install -U nvidia-ml-py" in value.why
    assert isinstance(gpu["power"]["draw_w"], Unknown)
    assert gpu["temperature"]["gpu_c"] == 33


def test_what_may_not_be_read_is_unknown_and_says_how(read):
    gpu = read(eight("0:nvmlDeviceGetRemappedRows = !4", "0:nvmlDeviceValidateInforom = !4"))["gpus"][0]
    for value in (*(gpu["rows"][name] for name in ("pending", "failed")), gpu["inforom_state"]):
        assert isinstance(value, Unknown)
        assert value.remedy.endswith(" root")


def test_a_gpu_that_may_not_be_opened_is_one_unknown(read):
    gpus = read(eight("2:nvmlDeviceGetHandleByIndex_v2 = !4"))["gpus"]
    assert isinstance(gpus[2]["state"], Unknown)
    assert isinstance(gpus[2]["ecc"]["uncorrected_volatile"], Absent)
    assert gpus[1]["state"] == gpus[3]["state"] == "ok"


def test_errors_are_unknown(read):
    gpu = read(eight("0:nvmlDeviceGetPowerUsage = !999", "0:nvmlDeviceGetFieldValues/82 = !10"))["gpus"][0]
    for value in (gpu["power"]["draw_w"], gpu["temperature"]["memory_c"]):
        assert isinstance(value, Unknown)
        assert "NVRM" in value.remedy


def test_a_corrupt_inforom(read):
    assert read(eight("1:nvmlDeviceValidateInforom = !14"))["gpus"][1]["inforom_state"] == "corrupt"


PATIENT = """
import threading
from types import SimpleNamespace
from aifx.machine.nvml import __main__ as nvml

class Thread(threading.Thread):
    def __init__(self, args, **options):
        super().__init__(args=args, **options)
        self.hangs = args[0] == 6

    def join(self, timeout):
        super().join(timeout if self.hangs else 600)

nvml.threading = SimpleNamespace(Thread=Thread)
nvml.main()
"""
"""The reader, which gives up GPU 6 alone, however busy the machine is."""


def test_a_gpu_that_hangs_is_given_up_and_the_others_are_read(read, tmp_path, monkeypatch):
    (tmp_path / "patient_reader.py").write_text(PATIENT)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    gpus = read(eight("6:nvmlDeviceGetTemperature/0 = hang"), "0.5", module="patient_reader")["gpus"]
    assert isinstance(gpus[6]["state"], Unknown)
    assert "0.5 s" in gpus[6]["state"].why
    assert isinstance(gpus[6]["ecc"]["uncorrected_volatile"], Absent)
    assert [gpu["state"] for gpu in gpus if gpu["index"] != 6] == ["ok"] * 7


def test_a_driver_that_hangs_is_given_up(read):
    answer = read(eight("nvmlSystemGetDriverVersion = hang"), limit_s=1)
    assert isinstance(answer, Unknown)
    assert answer.why.startswith("nvml ")
    assert "1 s" in answer.why


def test_an_answer_counts_if_the_process_cannot_end(tmp_path, monkeypatch):
    """As where one thread hangs in the kernel module."""
    has_answered = tmp_path / "has_answered"
    lines = ("print('{\"answer\": 1}', flush=True)", f"open({str(has_answered)!r}, 'w')", "time.sleep(600)")
    (tmp_path / "stuck_reader.py").write_text("\n".join(("import time", *lines)))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + 3600 * has_answered.exists())
    monkeypatch.setattr(processes, "time", clock)
    assert Host().ask("stuck_reader", name="stuck", limit_s=600) == {"answer": 1}


@pytest.mark.parametrize(("code", "state"), [(9, "not_loaded"), (12, "no_library"), (18, "library_mismatch")])
def test_a_driver_that_does_not_run(code, state, read):
    answer = read(f"nvmlInitWithFlags = !{code}\n")
    assert answer["state"] == state
    assert isinstance(answer["gpus"], Absent)


def test_a_driver_in_trouble_is_unknown(read):
    answer = read("nvmlInitWithFlags = !999\n")
    assert isinstance(answer["state"], Unknown)
    assert isinstance(answer["gpus"], Unknown)


def test_values_that_are_packed(read):
    """Bit error rates, signed fields given as unsigned, the fabric's mask, clock reasons, processes."""
    gpu = read(
        eight(
            f"0:nvmlDeviceGetFieldValues/220/3 = {7 << 8 | 13}",
            f"0:nvmlDeviceGetFieldValues/194 = {(1 << 32) - 2}",
            f"0:nvmlDeviceGetGpuFabricInfoV = 3 0 9 {1 | 2 << 2 | 1 << 4 | 4 << 8:#x} 171",
            f"0:nvmlDeviceGetCurrentClocksEventReasons = {1 << 2 | 1 << 6 | 1 << 11:#x}",
            "0:nvmlDeviceGetComputeRunningProcesses_v3 = 4242 1024 17 3",
            "nvmlSystemGetProcessName/4242 = /opt/venv/bin/python --token=abc",
        )
    )["gpus"][0]
    assert gpu["links"][3]["effective_ber"] == pytest.approx(7e-13)
    assert gpu["temperature"]["slowdown_margin_c"] == -2
    assert gpu["fabric"]["degraded_bandwidth"] is True
    assert gpu["fabric"]["route_recovery"] is False
    assert gpu["fabric"]["route_unhealthy"] is True
    assert gpu["fabric"]["configuration"] == "no_partition"
    assert gpu["fabric"]["cluster"].startswith("ab000000-")
    assert gpu["throttle"]["reasons"] == ["software_power_cap", "hardware_thermal", "11"]
    assert [p["pid"] for p in gpu["processes"]] == [17, 4242]
    assert gpu["processes"][1] == {"pid": 4242, "name": "python", "memory_mib": 1024}


def test_fields_that_cannot_be_asked_for_together_are_asked_for_one_by_one(read):
    answer = read(eight("nvmlDeviceGetFieldValues/several = !2"))
    assert alike(answer) == alike(from_document(document(H100, H100_BUSES)))


def test_errors_of_links_by_either_way(read):
    """A counter that the GPU lacks is no error of the others, and fields stand in for what it does not count."""
    gpu = read(
        eight(
            "0:nvmlDeviceGetNvLinkErrorCounter/2/2 = 40",
            "0:nvmlDeviceGetNvLinkErrorCounter/2/3 = !3",
            "0:nvmlDeviceGetNvLinkErrorCounter/3/0 = !3",
            "0:nvmlDeviceGetNvLinkErrorCounter/3/2 = !3",
            "0:nvmlDeviceGetNvLinkErrorCounter/3/3 = !3",
            "0:nvmlDeviceGetFieldValues/161/3 = 7",
            "0:nvmlDeviceGetFieldValues/163/3 = 9",
        )
    )["gpus"][0]
    assert gpu["links"][2]["crc_errors"] == 40
    assert [gpu["links"][3][name] for name in ("replays", "recoveries", "crc_errors")] == [7, 0, 9]
    assert isinstance(gpu["links"][3]["crc_data_errors"], Absent)


def test_the_probe_reads_the_library(read, monkeypatch):
    """The probe turns NVML's ABI into facts that rules read."""
    assert isinstance(read(eight()), dict)  # it sets the environment
    monkeypatch.setattr(Host, "environ", lambda self: dict(os.environ))
    facts = nvidia.collect(Host())
    assert facts["gpu_count"]["nvml"] == 8
    assert facts["gpus"][7]["device"] == f"GPU7 ({H100_BUSES[7]})"
    assert facts["gpus"][7]["nvlink"]["active"] == 18


@pytest.mark.parametrize("state", ["no_library", "not_loaded"])
def test_without_gpus_nothing_is_missed(state, tmp_path):
    """As on a login node, which may have the library of the others."""
    captured = tmp_path / "aifx-captured" / "nvml.json"
    captured.parent.mkdir()
    captured.write_text(f'{{"state": "{state}", "gpus": {{"$absent": "there is no library"}}}}')
    facts = nvidia.collect(Host(tmp_path))
    assert isinstance(facts["nvidia"], Absent)
    assert isinstance(facts["gpus"], Absent)
    assert facts["gpu_count"] == {"nvml": 0, "pci": 0}


def test_a_tree_without_the_answer_of_nvml_is_not_called_ill(tmp_path):
    device = tmp_path / "sys/bus/pci/devices/0000:17:00.0"
    device.mkdir(parents=True)
    (device / "vendor").write_text("0x10de\n")
    (device / "class").write_text("0x030200\n")
    facts = nvidia.collect(Host(tmp_path))
    assert isinstance(facts["nvidia"], Absent)
    assert "not captured" in facts["nvidia"].why
    assert isinstance(facts["gpu_count"]["nvml"], Absent)
    assert facts["gpu_count"]["pci"] == 1

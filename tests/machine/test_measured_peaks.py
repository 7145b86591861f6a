"""Measured peaks of a machine are kept, only rise, and stand beside the catalogue's peaks."""

import json
import re
import subprocess
import sys
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from published_schemas import check_document

from aifx.benchmarking import kernels
from aifx.machine import measured_peaks
from aifx.machine.catalogue import Peak, utilization
from aifx.machine.measured_peaks import find_ceilings, keep_ceilings, measured_peak
from aifx.training.meter import Meter
from aifx.training.records import RunInfo
from jax_kernels.implementations import Device
from jax_kernels.op import Work

H100 = ("NVIDIA H100 80GB HBM3", "gpu")


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch):
    """A name for this machine that can be changed; what is kept lies in a folder of the test."""
    monkeypatch.setenv("AIFX_STATE_DIR", str(tmp_path))

    def named(host):
        monkeypatch.setattr(measured_peaks.socket, "gethostname", lambda: host)
        measured_peaks._empty.cache_clear()

    named("node-7")
    yield named
    measured_peaks._empty.cache_clear()


def test_a_ceiling_rises_and_never_falls():
    path = keep_ceilings(*H100, {"matmul.bfloat16": 7e14, "memory": 3e12})
    keep_ceilings(*H100, {"matmul.bfloat16": 6e14, "memory": 3.1e12, "all_reduce.8": 4e11})
    found = find_ceilings(*H100)
    assert {name: found.rate(name) for name in found.rates} == {
        "matmul.bfloat16": 7e14,
        "memory": 3.1e12,
        "all_reduce.8": 4e11,
    }
    document = json.loads(path.read_text())
    check_document("files/measured-peaks", document)
    assert document["host"] == "node-7"
    assert document["hardware"]["device_kind"] == H100[0]
    assert document["rates"]["memory"]["versions"].keys() == {"jax", "jaxlib"}


def test_machines_that_share_a_home_and_kinds_of_devices_have_their_own(machine):
    keep_ceilings(*H100, {"memory": 3e12})
    assert find_ceilings("cpu", "cpu").rates == {}
    machine("node-8")
    assert find_ceilings(*H100).rates == {}
    machine("node-7")
    assert find_ceilings(*H100).rate("memory") == 3e12


@pytest.mark.parametrize("text", ["", "{", '{"schema_version": 2, "host": "node-7", "hardware": {}}', "\x00" * 40])
def test_a_file_that_cannot_be_read_is_no_ceiling(text):
    path = keep_ceilings(*H100, {"memory": 3e12})
    path.write_text(text)
    assert find_ceilings(*H100).rates == {}
    keep_ceilings(*H100, {"memory": 2e12})
    assert find_ceilings(*H100).rate("memory") == 2e12


def test_the_measured_peak_is_of_all_devices_and_a_cpu_is_one():
    assert measured_peak(*H100, 8, "bfloat16") is None
    keep_ceilings(*H100, {"matmul.bfloat16": 7e14})
    keep_ceilings("cpu", "cpu", {"matmul.float32": 2e11})
    eight = measured_peak(*H100, 8, "bfloat16")
    assert eight.flops == 8 * 7e14
    assert eight.formula.startswith("8 x 700 TFLOP/s bfloat16, measured")
    assert measured_peak("cpu", "cpu", 4, "float32").flops == 2e11
    assert measured_peak(*H100, 8, "float32") is None


def test_ceilings_are_read_without_jax():
    read = "aifx.machine.measured_peaks.measured_peak('cpu', 'cpu', 1, 'float32')"
    code = f"import sys, aifx.machine.measured_peaks; {read}; sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(("peak", "ceiling"), [(4e12, 2e12), (4e12, None), (None, 2e12), (None, None)])
def test_a_record_tells_both_shares(peak, ceiling):
    of = [None if flops is None else Peak(flops, "so many") for flops in (peak, ceiling)]
    info = SimpleNamespace(flops_per_step=10**9, peak=of[0], ceiling=of[1], unit="tokens")
    meter = Meter(info, 0, None)
    meter.dispatched(1, jnp.ones(3), np.array([64, 0, 0]), {}, 0.0)
    ((record, _),) = meter.drain(0)
    rate = 10**9 / record.step_time_s
    assert record.mfu == (peak and pytest.approx(rate / peak))
    assert record.ceiling_fraction == (ceiling and pytest.approx(rate / ceiling))
    assert record.document()["ceiling_fraction"] == record.ceiling_fraction


def test_what_a_run_begins_with_says_what_the_shares_are_of():
    info = RunInfo(None, None, 0, 0, 1, "tokens", 1, 10**9, Peak(4e12, "data sheet"), "1 x X", "float32")
    assert info.mfu_formula.endswith("4e+12 FLOP/s; peak: data sheet")
    other = RunInfo(*[getattr(info, name) for name in info.__dataclass_fields__][:-1], Peak(2e12, "measured here"))
    assert re.fullmatch(f"{re.escape(info.mfu_formula)}\n.*2e\\+12 FLOP/s, measured here", other.mfu_formula)


def test_shares_are_told_in_short():
    assert utilization(0.31, 0.524) == "MFU 31.0% (52.4%)"
    assert utilization(0.31, None) == "MFU 31.0%"
    assert utilization(None, 0.5) == "MFU (50.0%)"
    assert utilization(None, None) == ""


def test_a_kernel_of_a_device_without_a_data_sheet_is_bounded_by_the_measured_memory(monkeypatch):
    monkeypatch.setattr(kernels, "peak_of", lambda *device: None)
    work, device = Work(flops=10, num_bytes=10**9), Device(platform="gpu", kind="Quantum 9000")
    assert kernels.least_seconds(work, "float32", device) is None
    keep_ceilings("Quantum 9000", "gpu", {"memory": 2e12})
    assert kernels.least_seconds(work, "float32", device) == 10**9 / 2e12

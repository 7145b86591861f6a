"""The catalogue: found by the names that JAX and NVML use, and consistent with itself."""

from __future__ import annotations

import os

import pytest

from aifx.machine import catalogue
from aifx.machine.catalogue import ACCELERATORS, cpu_peak, find_accelerator, peak_of

NAMES = {
    "NVIDIA H100 80GB HBM3": "NVIDIA H100 SXM",
    "NVIDIA H100 PCIe": "NVIDIA H100 PCIe",
    "NVIDIA H100 NVL": "NVIDIA H100 NVL",
    "NVIDIA H200": "NVIDIA H200 SXM",
    "NVIDIA H200 NVL": "NVIDIA H200 NVL",
    "NVIDIA GH200 480GB": "NVIDIA GH200 96GB",
    "NVIDIA GH200 144G HBM3e": "NVIDIA GH200 144GB",
    "NVIDIA H20": "NVIDIA H20",
    "NVIDIA A100-SXM4-40GB": "NVIDIA A100 SXM 40GB",
    "NVIDIA A100-SXM4-80GB": "NVIDIA A100 SXM 80GB",
    "NVIDIA A100 80GB PCIe": "NVIDIA A100 PCIe 80GB",
    "NVIDIA L4": "NVIDIA L4",
    "NVIDIA L40S": "NVIDIA L40S",
    "NVIDIA A10G": "NVIDIA A10G",
    "NVIDIA A10": "NVIDIA A10",
    "NVIDIA B200": "NVIDIA B200",
    "NVIDIA B300 SXM6 AC": "NVIDIA B300",
    "NVIDIA GB200": "NVIDIA GB200",
    "NVIDIA GB300": "NVIDIA GB300",
    "Tesla T4": "NVIDIA T4",
    "NVIDIA GeForce RTX 4090": "NVIDIA GeForce RTX 4090",
    "TPU v4": "TPU v4",
    "TPU v5 lite": "TPU v5e",
    "TPU v5p": "TPU v5p",
    "TPU v6 lite": "TPU v6e",
    "TPU7x": "TPU v7x",
}


@pytest.mark.parametrize(("kind", "name"), NAMES.items())
def test_found_by_its_name(kind: str, name: str) -> None:
    found = find_accelerator(kind)
    assert found is not None
    assert found.name == name


def test_each_name_belongs_to_one_entry() -> None:
    import re

    for kind in NAMES:
        assert sum(any(re.fullmatch(k, kind) for k in a.kinds) for a in ACCELERATORS) == 1, kind


def test_what_is_not_there_is_none() -> None:
    assert find_accelerator("NVIDIA GeForce RTX 4090 Laptop GPU") is None
    assert find_accelerator("NVIDIA A100") is None
    assert peak_of("Quantum 9000", "gpu", 8, "bfloat16") is None


@pytest.mark.parametrize("accelerator", ACCELERATORS, ids=lambda a: a.name)
def test_consistent(accelerator) -> None:
    assert accelerator.source
    peaks = accelerator.peak_tflops
    sixteen_bit = peaks["bfloat16" if "bfloat16" in peaks else "float16"]
    assert sixteen_bit > 0
    assert peaks.get("float8_e4m3fn", sixteen_bit) >= sixteen_bit
    assert 10 < accelerator.memory_gb < 400
    assert 200 < accelerator.memory_gb_s < 20_000


def test_peaks_count_devices_and_chips() -> None:
    eight = peak_of("NVIDIA H100 80GB HBM3", "gpu", 8, "bfloat16")
    assert eight is not None
    assert eight.flops == pytest.approx(8 * 989.4e12)
    assert "data sheet" in eight.formula
    half = peak_of("TPU7x", "tpu", 1, "bfloat16")
    assert half is not None
    assert half.flops == pytest.approx(2307e12 / 2), "JAX shows a chip as two devices"
    tf32 = peak_of("NVIDIA A100-SXM4-80GB", "gpu", 1, "float32")
    assert tf32 is not None
    assert tf32.flops == pytest.approx(156e12), "what float32 products run at"
    turing = peak_of("Tesla T4", "gpu", 1, "float32")
    assert turing is not None
    assert turing.flops == pytest.approx(8.1e12), "no TF32 before Ampere"
    assert peak_of("Tesla T4", "gpu", 1, "bfloat16") is None


def test_the_cpu_is_estimated_and_says_how() -> None:
    peak = cpu_peak()
    assert f"{len(os.sched_getaffinity(0))} cores" in peak.formula
    assert 1e9 < peak.flops < 1e15


@pytest.mark.parametrize(
    ("flags", "units"),
    [
        ("fpu avx2 avx512f avx512_bf16 amx_bf16", "AMX"),
        ("fpu avx2 avx512f avx512_bf16", "AVX-512 with bfloat16"),
        ("fpu avx2 avx512f", "AVX-512"),
        ("fpu avx2", "AVX2"),
        ("asimd bf16", "128-bit with bfloat16"),
    ],
)
def test_matrix_units_by_the_processors_flags(flags: str, units: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "_cpuinfo", lambda: {"vendor_id": "GenuineIntel", "flags": flags})
    assert catalogue.matrix_units() == units

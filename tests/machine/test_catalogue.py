"""The catalogue: found by the names that JAX and NVML use, and consistent with itself."""

from __future__ import annotations

import ast
import os
import re
from pathlib import Path

import pytest

import aifx
from aifx.machine import catalogue, cpu
from aifx.machine.catalogue import ACCELERATORS, find_accelerator, has_rails, peak_of

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


def test_one_row_holds_what_doctor_compares_a_chip_with() -> None:
    h100, rack, card = (find_accelerator(f"NVIDIA {name}") for name in ("H100 80GB HBM3", "GB200", "H100 NVL"))
    assert h100
    assert rack
    assert card
    assert (h100.nvlinks, h100.nvlink_mb_s, h100.has_rails, h100.in_rack) == (18, 26_562, True, False)
    assert (rack.nvlink_mb_s, rack.in_rack, rack.over_c2c) == (53_125, True, True)
    assert (card.nvlinks, card.has_rails) == (None, False)
    assert has_rails("0x2330")
    assert not has_rails("0x2331")


@pytest.mark.slow
def test_only_the_catalogue_matches_names_of_gpus() -> None:
    names = re.compile(r"\b(A100|H[12]00|H800|G?B[23]00)\b")
    root = Path(aifx.__file__).parent
    files = [path for path in root.rglob("*.py") if path != Path(catalogue.__file__)]
    for path in files:
        tree = ast.parse(path.read_text())
        docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        strings = [n for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
        found = [node.value for node in strings if id(node) not in docstrings and names.search(node.value)]
        assert not found, f"{path}: {found}"


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
    peak = peak_of("cpu", "cpu", 1, "float32")
    assert peak is not None
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
    monkeypatch.setattr(cpu, "_cpuinfo", lambda: {"vendor_id": "GenuineIntel", "flags": flags})
    assert cpu.matrix_units() == units

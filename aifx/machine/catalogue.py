"""The catalogue of accelerators: what the silicon can do at best, each number with its source.

Peaks are dense (no structured sparsity), at boost clocks, with float32 accumulation. Bandwidths are in 10^9 bytes a
second, of links in both directions together, as the vendors print them. What a vendor does not print is None.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True)
class Accelerator:
    """One kind of chip.

    Attributes:
        kinds: regular expressions of what JAX and NVML call it (`jax.Device.device_kind`), matched whole.
        peak_tflops: dense peak by dtype name, 10^12 operations a second.
        memory_gb: capacity as the vendor prints it: 10^9 bytes for GPUs, 2^30 for TPUs.
        memory_gb_s: bandwidth of that memory.
        link_gb_s: bandwidth to its neighbours, both directions (NVLink, ICI; PCIe where there is nothing else).
        power_w: board power.
        devices_per_chip: JAX devices that one chip shows up as.
        source: where the numbers stand.
    """

    name: str
    kinds: tuple[str, ...]
    peak_tflops: Mapping[str, float]
    memory_gb: float
    memory_gb_s: float
    link_gb_s: float | None
    power_w: float | None
    source: str
    devices_per_chip: int = 1

    def peak_flops(self, dtype: str) -> float | None:
        """Peak operations a second of one JAX device in `dtype`; None where the catalogue has none."""
        tflops = self.peak_tflops.get(dtype)
        return None if tflops is None else tflops * 1e12 / self.devices_per_chip


# float32 matrix products of JAX run as bfloat16 passes on TPUs and in TF32 on NVIDIA GPUs unless
# jax_default_matmul_precision asks for more; "float32" below is the vector (non-tensor) peak of GPUs.
# In the sources, TensorRT-LLM is NVIDIA's tensorrt_llm/auto_parallel/cluster_info.py, which names the data sheet of a
# row and counts one direction of a link; MLPerf are the system descriptions of submissions to MLPerf Inference; two
# names with a slash between them are a repository on GitHub.
ACCELERATORS: tuple[Accelerator, ...] = (
    Accelerator(
        "NVIDIA B200", (r"NVIDIA B200.*",),
        {"float4_e2m1fn": 9000, "float8_e4m3fn": 4500, "int8": 4500, "bfloat16": 2250, "float16": 2250,
         "tfloat32": 1100, "float32": 75},
        180, 7700, 1800, 1000,
        "Blackwell data sheet (3384703), HGX B200, in atineoSE/coding-model-seeks-gpu; dense is half of what it prints",
    ),
    Accelerator(
        "NVIDIA GB200", (r"NVIDIA GB200.*",),
        {"float4_e2m1fn": 10000, "float8_e4m3fn": 5000, "int8": 5000, "bfloat16": 2500, "float16": 2500,
         "tfloat32": 1250, "float32": 80},
        186, 8000, 1800, 1200, "NVIDIA GB200 NVL72 data sheet, a GPU of 72",
    ),
    Accelerator(
        "NVIDIA B300", (r"NVIDIA B300.*",),
        {"float8_e4m3fn": 4500, "bfloat16": 2250, "float16": 2250, "tfloat32": 1100},
        288, 8000, 1800, 1100,
        "pytorch/torchtitan and stas00/ml-engineering; memory and power: datacrunch-research/blogs; TF32: as B200; "
        "FP4 left out, they do not agree on it",
    ),
    Accelerator(
        "NVIDIA GB300", (r"NVIDIA GB300.*",),
        {"float4_e2m1fn": 15000, "float8_e4m3fn": 5000, "bfloat16": 2500, "float16": 2500,
         "tfloat32": 1250, "float32": 80},
        288, 8000, 1800, 1400,
        "stas00/ml-engineering after NVIDIA's GB300 NVL72 page; memory and power: MLPerf v5.1 (NVIDIA)",
    ),
    Accelerator(
        "NVIDIA H200 SXM", (r"NVIDIA H200(?! NVL).*",),
        {"float8_e4m3fn": 1979, "int8": 1979, "bfloat16": 989.5, "float16": 989.5, "tfloat32": 494.5, "float32": 67},
        141, 4800, 900, 700,
        "H200 data sheet (3002446) in TensorRT-LLM, whose peaks are sparse: halved; TF32: stas00/ml-engineering; "
        "power: MLPerf v5.1",
    ),
    Accelerator(
        "NVIDIA H200 NVL", (r"NVIDIA H200 NVL.*",),
        {"float8_e4m3fn": 1670.5, "int8": 1670.5, "bfloat16": 835.5, "float16": 835.5, "tfloat32": 417.5,
         "float32": 60},
        141, 4800, 900, 600,
        "H200 data sheet (3002446) in TensorRT-LLM, whose peaks are sparse: halved; TF32 and power: gmasse/gpu-specs",
    ),
    Accelerator(
        "NVIDIA GH200 144GB", (r"NVIDIA GH200 144G.*",),
        {"float8_e4m3fn": 1979, "int8": 1979, "bfloat16": 990, "float16": 990, "tfloat32": 494, "float32": 67},
        144, 4900, 900, 1000,
        "GH200 data sheet (3773000) in atineoSE/coding-model-seeks-gpu; power: of CPU, GPU and memory at most; "
        "link: stas00/ml-engineering",
    ),
    Accelerator(
        "NVIDIA GH200 96GB", (r"NVIDIA GH200 (?!144G).*",),
        {"float8_e4m3fn": 1979, "int8": 1979, "bfloat16": 990, "float16": 990, "tfloat32": 494, "float32": 67},
        96, 4000, 900, 1000,
        "GH200 data sheet (3773000) in atineoSE/coding-model-seeks-gpu; power: of CPU, GPU and memory at most; "
        "link: stas00/ml-engineering",
    ),
    Accelerator(
        "NVIDIA H100 SXM", (r"NVIDIA H100 80GB HBM3.*", r"NVIDIA H100 SXM.*"),
        {"float8_e4m3fn": 1979, "int8": 1979, "bfloat16": 989.4, "float16": 989.4, "tfloat32": 494.7, "float32": 66.9},
        80, 3350, 900, 700,
        "glennklockwood.com/garden/processors/h100; memory and link: H100 data sheet in TensorRT-LLM; "
        "power: stas00/ml-engineering",
    ),
    Accelerator(
        "NVIDIA H100 NVL", (r"NVIDIA H100 NVL.*",),
        {"float8_e4m3fn": 1670.5, "int8": 1670.5, "bfloat16": 835.5, "float16": 835.5, "tfloat32": 417.5,
         "float32": 60},
        94, 3900, 600, 400,
        "BF16: pytorch/torchtitan after nvidia.com/en-us/data-center/h100; other peaks: as H200 NVL, whose BF16 is the "
        "same; memory and power: stas00/ml-engineering; link: MLPerf v4.1 (Lenovo)",
    ),
    Accelerator(
        "NVIDIA H100 PCIe", (r"NVIDIA H100 PCIe.*",),
        {"float8_e4m3fn": 1513, "int8": 1513, "bfloat16": 756, "float16": 756, "tfloat32": 378, "float32": 51.2},
        80, 2000, 600, 350,
        "H100 data sheet in TensorRT-LLM; FP32: gmasse/gpu-specs; power: NVIDIA product brief PB-11133; "
        "link, a bridge to one other: MLPerf v4.1 (Quanta)",
    ),
    Accelerator(
        "NVIDIA H20", (r"NVIDIA H20",),
        {"float8_e4m3fn": 296, "int8": 296, "bfloat16": 148, "float16": 148, "tfloat32": 74, "float32": 44},
        96, 4000, 900, 400,
        "no page of NVIDIA's: pytorch/torchtitan (BF16), lamonoai/gpumap (8 bits, FP32, power) and TensorRT-LLM (TF32, "
        "memory, link; 147 and 293 for 16 and 8 bits)",
    ),
    Accelerator(
        "NVIDIA A100 SXM 80GB", (r"NVIDIA A100-SXM4-80GB.*", r"NVIDIA A100-SXM-80GB.*", r"A100-SXM4-80GB"),
        {"int8": 624, "bfloat16": 312, "float16": 312, "tfloat32": 156, "float32": 19.5},
        80, 2039, 600, 400, "A100 data sheet (1758950) in TensorRT-LLM; FP32 and power: gmasse/gpu-specs",
    ),
    Accelerator(
        "NVIDIA A100 SXM 40GB", (r"NVIDIA A100-SXM4-40GB.*", r"A100-SXM4-40GB"),
        {"int8": 624, "bfloat16": 312, "float16": 312, "tfloat32": 156, "float32": 19.5},
        40, 1555, 600, 400, "A100 data sheet (1758950) in TensorRT-LLM; FP32 and power: gmasse/gpu-specs",
    ),
    Accelerator(
        "NVIDIA A100 PCIe 80GB", (r"NVIDIA A100 80GB PCIe.*",),
        {"int8": 624, "bfloat16": 312, "float16": 312, "tfloat32": 156, "float32": 19.5},
        80, 1935, 600, 300,
        "A100 data sheet (1758950) in TensorRT-LLM; FP32 and power: gmasse/gpu-specs; "
        "link: a bridge to one other, as the sheet prints it",
    ),
    Accelerator(
        "NVIDIA A100 PCIe 40GB", (r"NVIDIA A100-PCIE-40GB.*",),
        {"int8": 624, "bfloat16": 312, "float16": 312, "tfloat32": 156, "float32": 19.5},
        40, 1555, 600, 250,
        "A100 data sheet (1758950) in TensorRT-LLM; FP32 and power: gmasse/gpu-specs; link: as the 80 GB card",
    ),
    Accelerator(
        "NVIDIA L40S", (r"NVIDIA L40S.*",),
        {"float8_e4m3fn": 733, "int8": 733, "bfloat16": 362, "float16": 362, "tfloat32": 183, "float32": 91.6},
        48, 864, 64, 350,
        "L40S data sheet (28413) in TensorRT-LLM; FP32: gmasse/gpu-specs; power: MLPerf v5.1; link: PCIe 4.0 x16",
    ),
    Accelerator(
        "NVIDIA L4", (r"NVIDIA L4",),
        {"float8_e4m3fn": 242.5, "int8": 242.5, "bfloat16": 121, "float16": 121, "tfloat32": 60, "float32": 30.3},
        24, 300, 64, 72,
        "gmasse/gpu-specs, half of its sparse peaks; L4 data sheet (2595652) in TensorRT-LLM: within 1; "
        "link: PCIe 4.0 x16",
    ),
    Accelerator(
        "NVIDIA A10G", (r"NVIDIA A10G.*",),
        {"int8": 140, "bfloat16": 70, "float16": 70, "tfloat32": 35},
        24, 600, 64, 300,
        "TensorRT-LLM; power: as nvidia-smi has it on AWS G5 (gist shashankprasanna/10ebe6dc); link: PCIe 4.0 x16",
    ),
    Accelerator(
        "NVIDIA A10", (r"NVIDIA A10(?!G|0).*",),
        {"int8": 250, "bfloat16": 125, "float16": 125, "tfloat32": 62.5, "float32": 31.2},
        24, 600, 64, 150, "A10 data sheet in TensorRT-LLM; FP32 and power: gmasse/gpu-specs; link: PCIe 4.0 x16",
    ),
    Accelerator(
        "NVIDIA T4", (r"Tesla T4",),
        {"int8": 130, "float16": 65, "float32": 8.1},
        16, 300, 32, 70,
        "T4 data sheet (951643) in mosaicml/composer; memory and power: gmasse/gpu-specs; link: PCIe 3.0 x16",
    ),
    Accelerator(
        "NVIDIA GeForce RTX 4090", (r"NVIDIA GeForce RTX 4090(?! Laptop).*",),
        {"float8_e4m3fn": 330.3, "int8": 660.6, "bfloat16": 165.2, "float16": 165.2, "tfloat32": 82.6, "float32": 82.6},
        24, 1008, 64, 450,
        "gmasse/gpu-specs; FP16 and FP8, there with float16 accumulation: "
        "waredb.com/processor/nvidia-geforce-rtx-4090; link: PCIe 4.0 x16",
    ),
    Accelerator(
        "TPU v4", (r"TPU v4",),
        {"int8": 275, "bfloat16": 275},
        32, 1200, 600, 170,
        "cloud.google.com/tpu/docs/v4 (power: mean); link: 6 of 50 GB/s each way, arXiv:2304.01433, table 4",
    ),
    Accelerator(
        "TPU v5e", (r"TPU v5 lite", r"TPU v5e", r"TPU v5litepod"),
        {"int8": 393, "bfloat16": 197},
        16, 819, 400, None, "cloud.google.com/tpu/docs/v5e",
    ),
    Accelerator(
        "TPU v5p", (r"TPU v5", r"TPU v5p"),
        {"int8": 918, "bfloat16": 459},
        95, 2765, 1200, None, "cloud.google.com/tpu/docs/v5p",
    ),
    Accelerator(
        "TPU v6e", (r"TPU v6 lite", r"TPU v6e"),
        {"int8": 1836, "float8_e4m3fn": 918, "bfloat16": 918},
        32, 1638, 800, None, "cloud.google.com/tpu/docs/v6e and /tpu7x",
    ),
    Accelerator(
        "TPU v7x", (r"TPU7x", r"TPU v7x?"),
        {"float8_e4m3fn": 4614, "bfloat16": 2307},
        192, 7380, 1200, None, "cloud.google.com/tpu/docs/tpu7x: two JAX devices a chip", devices_per_chip=2,
    ),
)  # fmt: skip


def find_accelerator(device_kind: str) -> Accelerator | None:
    """The catalogue's entry for a `jax.Device.device_kind` or an NVML product name; None where it has none."""
    for accelerator in ACCELERATORS:
        if any(re.fullmatch(kind, device_kind) for kind in accelerator.kinds):
            return accelerator
    return None


@dataclass(frozen=True)
class Peak:
    """What `num_devices` devices could do at best, and how that number was formed."""

    flops: float  # operations a second, all devices together
    formula: str  # for people: where it comes from


def peak_of(device_kind: str, platform: str, num_devices: int, dtype: str) -> Peak | None:
    """The peak that MFU is measured against; None for a device that the catalogue does not have."""
    if platform == "cpu":
        return cpu_peak()
    accelerator = find_accelerator(device_kind)
    if accelerator is None:
        return None
    unit = dtype
    if dtype == "float32":  # what JAX's float32 products use by default; GPUs before Ampere have no TF32
        default = "bfloat16" if platform == "tpu" else "tfloat32"
        unit = default if default in accelerator.peak_tflops else dtype
    flops = accelerator.peak_flops(unit)
    if flops is None:
        return None
    return Peak(flops * num_devices, f"{num_devices} x {flops / 1e12:g} TFLOP/s {unit} ({accelerator.source})")


def utilization(mfu: float | None, ceiling_fraction: float | None) -> str:
    """ "MFU 31.0% (52.4%)": of the peak and, in brackets, of the measured ceiling; empty without either."""
    told = "" if mfu is None else f"MFU {mfu:.1%}"
    return told + ("" if ceiling_fraction is None else f"{' ' if told else 'MFU '}({ceiling_fraction:.1%})")


def cpu_peak() -> Peak:
    """An estimate for float32: usable cores x clock x (2 FMA units x vector lanes x 2 operations).

    The vector width comes from the CPU's flags, the clock from what the system tells; no vendor prints this number.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    lanes, isa = _vector_lanes()
    clock_ghz = _clock_ghz()
    flops = cores * clock_ghz * 1e9 * 2 * lanes * 2
    return Peak(
        flops, f"estimate: {cores} cores x {clock_ghz:.1f} GHz x 2 FMA units x {lanes} float32 lanes ({isa}) x 2"
    )


def _vector_lanes() -> tuple[int, str]:
    """float32 lanes of one FMA unit, and the instruction set's name."""
    info, words = _cpuinfo(), cpu_flags()
    # AMD family 25 (Zen 4) executes a 512-bit FMA in two passes of 256 bits (AMD Zen 4 optimization guide, 2.9).
    if "avx512f" in words and not (info.get("vendor_id") == "AuthenticAMD" and info.get("cpu family") == "25"):
        return 16, "AVX-512"
    if "avx2" in words or "avx512f" in words:
        return 8, "AVX2"
    return 4, "128-bit"


def cpu_flags() -> frozenset[str]:
    """The processor's features, by Linux's names: "avx512_bf16", "amx_bf16"; on ARM "bf16"."""
    info = _cpuinfo()
    return frozenset(info.get("flags", info.get("Features", "")).split())


def cpu_vendor() -> str:
    """The processor's maker, "Intel" or "AMD"; of others the architecture, "aarch64"."""
    vendors = {"GenuineIntel": "Intel", "AuthenticAMD": "AMD"}
    return vendors.get(_cpuinfo().get("vendor_id", ""), platform.machine())


def matrix_units() -> str:
    """What multiplies matrices in this processor: "AMX", "AVX-512 with bfloat16", "AVX2", ..."""
    flags = cpu_flags()
    if "amx_bf16" in flags:
        return "AMX"
    widest = next((name for flag, name in (("avx512f", "AVX-512"), ("avx2", "AVX2")) if flag in flags), "128-bit")
    return widest + (" with bfloat16" if flags & {"avx512_bf16", "bf16"} else "")


def _clock_ghz() -> float:
    try:
        frequency = psutil.cpu_freq()
    except (OSError, NotImplementedError):
        frequency = None
    mhz = (frequency.max or frequency.current) if frequency else 0.0
    return mhz / 1e3 if mhz > 0 else 2.5  # a server's usual base clock where nothing tells


def _cpuinfo(path: Path = Path("/proc/cpuinfo")) -> dict[str, str]:
    """The first processor's entry."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace").split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}

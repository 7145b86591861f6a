"""The catalogue of accelerators: what the silicon can do at best, each number with its source.

Peaks are dense (no structured sparsity), at boost clocks, with float32 accumulation. Bandwidths are in 10^9 bytes a
second, of links in both directions together, as the vendors print them. What a vendor does not print is None.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from aifx.machine.cpu import estimate_peak


@dataclass(frozen=True)
class Cuda:
    """CUDA's device properties of an NVIDIA GPU, which XLA needs if it is absent (NVIDIA's data sheets)."""

    major: int  # of the compute capability
    cores: int
    fpus: int
    clock_ghz: float
    shared_block: int  # bytes of shared memory that a block may take
    shared_core: int  # bytes of shared memory that a multiprocessor has
    l2: int  # bytes of the cache
    memory_bytes: int


def _hopper(cores: int, memory_bytes: int) -> Cuda:
    return Cuda(9, cores, 128, 1.98, 232448, 233472, 52428800, memory_bytes)


def _ampere(memory_bytes: int) -> Cuda:
    return Cuda(8, 108, 64, 1.41, 166912, 167936, 41943040, memory_bytes)


@dataclass(frozen=True)
class Accelerator:
    """One kind of chip."""

    name: str
    kinds: tuple[str, ...]  # regular expressions of what JAX (`jax.Device.device_kind`) and NVML call it, matched whole
    short_name: str  # of a GPU, as `aifx plan --hardware` takes it
    peak_tflops: Mapping[str, float]  # dense peak by dtype name, 10^12 operations a second
    memory_gb: float  # capacity as the vendor prints it: 10^9 bytes for GPUs, 2^30 for TPUs
    memory_gb_s: float  # bandwidth of that memory
    link_gb_s: float | None  # to its neighbours, both directions (NVLink, ICI; PCIe where there is nothing else)
    power_w: float | None  # board power
    source: str  # where the numbers are from
    devices_per_chip: int = 1  # JAX devices that one chip shows up as
    # NVLinks of a module, all of which lead somewhere. None for a card, which has as many as someone put bridges on it,
    # and for a module for some countries, which has fewer than the chip.
    nvlinks: int | None = None
    nvlink_mb_s: int | None = None  # one NVLink in one direction, as NVML reports it
    in_rack: bool = False  # its NVLink fabric spans nodes; the rack's own manager keeps it, not a service on the node
    over_c2c: bool = False  # it reaches its processor over NVLink-C2C; its PCIe link carries no data of jobs
    has_rails: bool = False  # its systems are built with an InfiniBand port for each GPU, or for each pair
    pci_ids: tuple[str, ...] = ()  # of TPUs, and of NVIDIA's modules with rails: cards come in servers of every kind
    generation: str = ""  # of a TPU, as Google writes it
    die: str = ""  # of a GPU whose published rates of training aifx plan is fitted to, as NVIDIA calls it
    cuda: Cuda | None = None  # of a GPU that aifx can compile for while it is absent
    # Products of bfloat16 at the best shape, measured. Cards that their power cap holds down are far from their peak
    # and healthy, so the peak alone judges none.
    usual_tflops: float | None = None
    usual_copy_gb_s: float | None = None  # host to device from page-locked memory, measured
    usual_all_reduce_gb_s: float | None = None  # of 8 GPUs over NVLink, 16 GiB, measured (bus bandwidth)
    network_gb_s: float | None = None  # of a chip to other nodes or slices, in one direction


DTYPES = ("float4_e2m1fn", "float8_e4m3fn", "int8", "bfloat16", "float16", "tfloat32", "float32")


def _peaks(*tflops: float | None) -> dict[str, float]:
    """Peaks of a GPU by dtype name, given for each of DTYPES; None if it lacks the dtype, or no source has its peak."""
    return {dtype: peak for dtype, peak in zip(DTYPES, tflops, strict=True) if peak is not None}


H100_PEAKS = _peaks(None, 1979, 1979, 989.4, 989.4, 494.7, 66.9)
H100_PCIE_PEAKS = _peaks(None, 1513, 1513, 756, 756, 378, 51.2)
H100_NVL_PEAKS = _peaks(None, 1670.5, 1670.5, 835.5, 835.5, 417.5, 60)
GH200_PEAKS = _peaks(None, 1979, 1979, 990, 990, 494, 67)
A100_PEAKS = _peaks(None, None, 624, 312, 312, 156, 19.5)

H200_SHEET = "H200 data sheet (3002446) in TensorRT-LLM, whose peaks are sparse: halved; "
GH200_SOURCE = (
    "GH200 data sheet (3773000) in atineoSE/coding-model-seeks-gpu; power: of CPU, GPU and memory at most; "
    "link: stas00/ml-engineering"
)
A100_SOURCE = "A100 data sheet (1758950) in TensorRT-LLM; FP32 and power: gmasse/gpu-specs"

# float32 matrix products of JAX run as bfloat16 passes on TPUs and in TF32 on NVIDIA GPUs unless
# jax_default_matmul_precision asks for more; "float32" below is the vector (non-tensor) peak of GPUs.
# In the sources, TensorRT-LLM is NVIDIA's tensorrt_llm/auto_parallel/cluster_info.py, which names the data sheet of a
# row and counts one direction of a link; MLPerf are the system descriptions of submissions to MLPerf Inference; two
# names with a slash between them are a repository on GitHub. NVLinks: NVIDIA Health Validation (H100 26,562 MB/s, GB200
# 53,125 MB/s) and NVIDIA's A100 architecture paper (25 GB/s). Usual rates: stas00/ml-engineering, maximum achievable
# matmul FLOPS; Azure/azurehpc-health-checks for copies (nvbandwidth) and all-reduce. Rails: leptonai/gpud. Network: of
# TPUs Google's pages (v5e 6.4 Tb/s and v6e 25.6 Tb/s per pod of 256 chips, v5p 50 Gb/s per chip), of A100 the port of
# 200 Gb/s that each has in NVIDIA's Selene (arXiv:2104.04473, section 5).
ACCELERATORS: tuple[Accelerator, ...] = (
    # name, kinds, short name; peaks; memory in GB and in GB/s, link in GB/s, power in W, source
    Accelerator("NVIDIA B200", (r"NVIDIA B200.*",), "b200",
        _peaks(9000, 4500, 4500, 2250, 2250, 1100, 75), 180, 7700, 1800, 1000,
        "Blackwell data sheet (3384703), HGX B200, in atineoSE/coding-model-seeks-gpu; dense is half of what it prints",
        nvlinks=18, nvlink_mb_s=53_125, has_rails=True, pci_ids=("0x2901",), usual_tflops=1745.0),
    Accelerator("NVIDIA GB200", (r"NVIDIA GB200.*",), "gb200",
        _peaks(10000, 5000, 5000, 2500, 2500, 1250, 80), 186, 8000, 1800, 1200,
        "NVIDIA GB200 NVL72 data sheet, a GPU of 72",
        nvlinks=18, nvlink_mb_s=53_125, has_rails=True, pci_ids=("0x2941",), in_rack=True, over_c2c=True),
    Accelerator("NVIDIA B300", (r"NVIDIA B300.*",), "b300",
        _peaks(None, 4500, None, 2250, 2250, 1100, None), 288, 8000, 1800, 1100,
        "pytorch/torchtitan and stas00/ml-engineering; memory and power: datacrunch-research/blogs; TF32: as B200; "
        "FP4 left out, they do not agree on it", nvlinks=18, nvlink_mb_s=53_125),
    Accelerator("NVIDIA GB300", (r"NVIDIA GB300.*",), "gb300",
        _peaks(15000, 5000, None, 2500, 2500, 1250, 80), 288, 8000, 1800, 1400,
        "stas00/ml-engineering after NVIDIA's GB300 NVL72 page; memory and power: MLPerf v5.1 (NVIDIA)",
        nvlinks=18, nvlink_mb_s=53_125, in_rack=True, over_c2c=True),
    Accelerator("NVIDIA H200 SXM", (r"NVIDIA H200(?! NVL).*",), "h200",
        _peaks(None, 1979, 1979, 989.5, 989.5, 494.5, 67), 141, 4800, 900, 700,
        H200_SHEET + "TF32: stas00/ml-engineering; power: MLPerf v5.1", nvlinks=18, nvlink_mb_s=26_562, has_rails=True,
        pci_ids=("0x2335",), usual_all_reduce_gb_s=431.0, cuda=_hopper(132, 150_000_000_000), die="GH100"),
    Accelerator("NVIDIA H200 NVL", (r"NVIDIA H200 NVL.*",), "h200-nvl", H100_NVL_PEAKS, 141, 4800, 900, 600,
        H200_SHEET + "TF32 and power: gmasse/gpu-specs", nvlink_mb_s=26_562, cuda=_hopper(132, 150_000_000_000),
        die="GH100"),
    Accelerator("NVIDIA GH200 144GB", (r"NVIDIA GH200 144G.*",), "gh200-144g", GH200_PEAKS, 144, 4900, 900, 1000,
        GH200_SOURCE, nvlink_mb_s=26_562, over_c2c=True, usual_tflops=828.6, die="GH100"),
    Accelerator("NVIDIA GH200 96GB", (r"NVIDIA GH200 (?!144G).*",), "gh200", GH200_PEAKS, 96, 4000, 900, 1000,
        GH200_SOURCE, nvlink_mb_s=26_562, over_c2c=True, die="GH100"),
    Accelerator("NVIDIA H100 SXM", (r"NVIDIA H100 80GB HBM3.*", r"NVIDIA H100 SXM.*"), "h100",
        H100_PEAKS, 80, 3350, 900, 700,
        "glennklockwood.com/garden/processors/h100; memory and link: H100 data sheet in TensorRT-LLM; "
        "power: stas00/ml-engineering", nvlinks=18, nvlink_mb_s=26_562, has_rails=True,
        pci_ids=("0x2330", "0x2336", "0x2337", "0x2339"), cuda=_hopper(132, 84_929_347_584),
        usual_tflops=794.5, usual_copy_gb_s=48.0, usual_all_reduce_gb_s=460.0, die="GH100"),
    Accelerator("NVIDIA H100 NVL", (r"NVIDIA H100 NVL.*",), "h100-nvl", H100_NVL_PEAKS, 94, 3900, 600, 400,
        "BF16: pytorch/torchtitan after nvidia.com/en-us/data-center/h100; other peaks: as H200 NVL, whose BF16 is the "
        "same; memory and power: stas00/ml-engineering; link: MLPerf v4.1 (Lenovo)",
        nvlink_mb_s=26_562, cuda=_hopper(132, 100_000_000_000), die="GH100"),
    Accelerator("NVIDIA H100 PCIe", (r"NVIDIA H100 PCIe.*", r"NVIDIA H100 80GB HBM2e.*"), "h100-pcie",
        H100_PCIE_PEAKS, 80, 2000, 600, 350,
        "H100 data sheet in TensorRT-LLM; FP32: gmasse/gpu-specs; power: NVIDIA product brief PB-11133; "
        "link, a bridge to one other: MLPerf v4.1 (Quanta)", nvlink_mb_s=26_562, cuda=_hopper(114, 84_929_347_584),
        die="GH100"),
    Accelerator("NVIDIA H800 SXM", (r"NVIDIA H800(?! PCIe).*",), "h800", H100_PEAKS, 80, 3350, 400, 700,
        "as H100 SXM, whose chip it has; link: aiwiki.ai/wiki/nvidia_h800", nvlink_mb_s=26_562, die="GH100"),
    Accelerator("NVIDIA H800 PCIe", (r"NVIDIA H800 PCIe.*",), "h800-pcie", H100_PCIE_PEAKS, 80, 2000, 400, 350,
        "as H100 PCIe, whose chip it has; link: aiwiki.ai/wiki/nvidia_h800", nvlink_mb_s=26_562, die="GH100"),
    Accelerator("NVIDIA H20", (r"NVIDIA H20",), "h20",
        _peaks(None, 296, 296, 148, 148, 74, 44), 96, 4000, 900, 400,
        "no page of NVIDIA's: pytorch/torchtitan (BF16), lamonoai/gpumap (8 bits, FP32, power) and TensorRT-LLM (TF32, "
        "memory, link; 147 and 293 for 16 and 8 bits)", nvlinks=18, nvlink_mb_s=26_562),
    Accelerator("NVIDIA A100 SXM 80GB",
        (r"NVIDIA A100-SXM4-80GB.*", r"NVIDIA A100-SXM-80GB.*", r"A100-SXM4-80GB"), "a100",
        A100_PEAKS, 80, 2039, 600, 400, A100_SOURCE, nvlinks=12, nvlink_mb_s=25_000, cuda=_ampere(84_929_347_584),
        usual_tflops=271.2, usual_copy_gb_s=21.0, usual_all_reduce_gb_s=228.0, network_gb_s=25.0, die="GA100"),
    Accelerator("NVIDIA A100 SXM 40GB", (r"NVIDIA A100-SXM4-40GB.*", r"A100-SXM4-40GB"), "a100-40g",
        A100_PEAKS, 40, 1555, 600, 400, A100_SOURCE, nvlinks=12, nvlink_mb_s=25_000, cuda=_ampere(42_298_834_944),
        usual_tflops=271.2, usual_copy_gb_s=21.0, network_gb_s=25.0, die="GA100"),
    Accelerator("NVIDIA A100 PCIe 80GB", (r"NVIDIA A100 80GB PCIe.*",), "a100-pcie", A100_PEAKS, 80, 1935, 600, 300,
        A100_SOURCE + "; link: a bridge to one other, as the sheet prints it",
        nvlink_mb_s=25_000, usual_tflops=252.9, cuda=_ampere(84_929_347_584), die="GA100"),
    Accelerator("NVIDIA A100 PCIe 40GB", (r"NVIDIA A100-PCIE-40GB.*",), "a100-pcie-40g", A100_PEAKS, 40, 1555, 600, 250,
        A100_SOURCE + "; link: as the 80 GB card", nvlink_mb_s=25_000, cuda=_ampere(42_298_834_944), die="GA100"),
    Accelerator("NVIDIA L40S", (r"NVIDIA L40S.*",), "l40s",
        _peaks(None, 733, 733, 362, 362, 183, 91.6), 48, 864, 64, 350,
        "L40S data sheet (28413) in TensorRT-LLM; FP32: gmasse/gpu-specs; power: MLPerf v5.1; link: PCIe 4.0 x16"),
    Accelerator("NVIDIA L4", (r"NVIDIA L4",), "l4", _peaks(None, 242.5, 242.5, 121, 121, 60, 30.3), 24, 300, 64, 72,
        "gmasse/gpu-specs, half of its sparse peaks; L4 data sheet (2595652) in TensorRT-LLM: within 1; "
        "link: PCIe 4.0 x16"),
    Accelerator("NVIDIA A10G", (r"NVIDIA A10G.*",), "a10g", _peaks(None, None, 140, 70, 70, 35, None), 24, 600, 64, 300,
        "TensorRT-LLM; power: as nvidia-smi has it on AWS G5 (gist shashankprasanna/10ebe6dc); link: PCIe 4.0 x16"),
    Accelerator("NVIDIA A10", (r"NVIDIA A10(?!G|0).*",), "a10",
        _peaks(None, None, 250, 125, 125, 62.5, 31.2), 24, 600, 64, 150,
        "A10 data sheet in TensorRT-LLM; FP32 and power: gmasse/gpu-specs; link: PCIe 4.0 x16"),
    Accelerator("NVIDIA T4", (r"Tesla T4",), "t4", _peaks(None, None, 130, None, 65, None, 8.1), 16, 300, 32, 70,
        "T4 data sheet (951643) in mosaicml/composer; memory and power: gmasse/gpu-specs; link: PCIe 3.0 x16"),
    Accelerator("NVIDIA GeForce RTX 4090", (r"NVIDIA GeForce RTX 4090(?! Laptop).*",), "rtx4090",
        _peaks(None, 330.3, 660.6, 165.2, 165.2, 82.6, 82.6), 24, 1008, 64, 450,
        "gmasse/gpu-specs; FP16 and FP8, there with float16 accumulation: "
        "waredb.com/processor/nvidia-geforce-rtx-4090; link: PCIe 4.0 x16"),
    Accelerator("TPU v4", (r"TPU v4",), "", {"int8": 275, "bfloat16": 275}, 32, 1200, 600, 170,
        "cloud.google.com/tpu/docs/v4 (power: mean); link: 6 of 50 GB/s each way, arXiv:2304.01433, table 4",
        pci_ids=("0x005e",), generation="v4"),
    Accelerator("TPU v5e", (r"TPU v5 lite", r"TPU v5e", r"TPU v5litepod"), "", {"int8": 393, "bfloat16": 197},
        16, 819, 400, None, "cloud.google.com/tpu/docs/v5e", pci_ids=("0x0063",), generation="v5e", network_gb_s=3.125),
    Accelerator("TPU v5p", (r"TPU v5", r"TPU v5p"), "", {"int8": 918, "bfloat16": 459}, 95, 2765, 1200, None,
        "cloud.google.com/tpu/docs/v5p", pci_ids=("0x0062",), generation="v5p", network_gb_s=6.25),
    Accelerator("TPU v6e", (r"TPU v6 lite", r"TPU v6e"), "", {"int8": 1836, "float8_e4m3fn": 918, "bfloat16": 918},
        32, 1638, 800, None, "cloud.google.com/tpu/docs/v6e and /tpu7x", pci_ids=("0x006f",), generation="v6e",
        network_gb_s=12.5),
    Accelerator("TPU v7x", (r"TPU7x", r"TPU v7x?"), "", {"float8_e4m3fn": 4614, "bfloat16": 2307},
        192, 7380, 1200, None, "cloud.google.com/tpu/docs/tpu7x: two JAX devices a chip", devices_per_chip=2,
        pci_ids=("0x0076",), generation="7x"),
)  # fmt: skip

TPU_GENERATIONS = {pci_id: chip.generation for chip in ACCELERATORS if chip.generation for pci_id in chip.pci_ids}
TPU_GENERATIONS |= {"0x0027": "v3", "0x007c": "8t", "0x0083": "8i"}  # aifx has no figures of these; v2 has the ID of v3
"""Google's chips by PCI device ID (jax/_src/hardware_utils.py)."""


def find_accelerator(device_kind: str) -> Accelerator | None:
    """The row for a `jax.Device.device_kind` or an NVML product name; None if there is none."""
    return next((chip for chip in ACCELERATORS if any(re.fullmatch(k, device_kind) for k in chip.kinds)), None)


def has_rails(pci_id: str) -> bool:
    """Whether an NVIDIA GPU with this PCI device ID ("0x2330") is a module of a system with rails."""
    return any(pci_id in chip.pci_ids for chip in ACCELERATORS if chip.has_rails)


@dataclass(frozen=True)
class Peak:
    """The most that `num_devices` devices could do, and how that number was formed."""

    flops: float  # operations a second, all devices together
    formula: str  # for people: where it comes from


def peak_of(device_kind: str, platform: str, num_devices: int, dtype: str) -> Peak | None:
    """The peak that MFU is measured against; None for a device that the catalogue does not have."""
    if platform == "cpu":
        return Peak(*estimate_peak())
    accelerator = find_accelerator(device_kind)
    if accelerator is None:
        return None
    unit = dtype
    if dtype == "float32":  # what JAX's float32 products use by default; GPUs before Ampere have no TF32
        default = "bfloat16" if platform == "tpu" else "tfloat32"
        unit = default if default in accelerator.peak_tflops else dtype
    if unit not in accelerator.peak_tflops:
        return None
    flops = accelerator.peak_tflops[unit] * 1e12 / accelerator.devices_per_chip
    return Peak(flops * num_devices, f"{num_devices} x {flops / 1e12:g} TFLOP/s {unit} ({accelerator.source})")


def utilization(mfu: float | None, ceiling_fraction: float | None) -> str:
    """ "MFU 31.0% (52.4%)": of the peak and, in brackets, of the measured ceiling; empty without either."""
    of_peak = "" if mfu is None else f"MFU {mfu:.1%}"
    return of_peak + ("" if ceiling_fraction is None else f"{' ' if of_peak else 'MFU '}({ceiling_fraction:.1%})")

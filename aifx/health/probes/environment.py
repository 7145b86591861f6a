"""Environment variables that change what a job does, and are easily forgotten. No other variables are read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from aifx.core.facts import Absent
from aifx.health.host import CAPTURED, Host
from aifx.health.probing import listed, probe

ON = "(?i:1|true|yes|on|y|t)"
UNWANTED = {
    "nccl_off": {
        "NCCL_P2P_DISABLE": "1",
        "NCCL_SHM_DISABLE": "1",
        "NCCL_IB_DISABLE": "1",
        "NCCL_NVLS_ENABLE": "0",
        "NCCL_NET_GDR_LEVEL": "0|LOC",
        "NCCL_P2P_LEVEL": "0|LOC",
        "NCCL_SOCKET_IFNAME": r"=?(lo|docker\d+|virbr\d+)",
    },
    "nccl_verbose": {"NCCL_DEBUG": "(?i:trace)"},
    "profilers": {
        "CUDA_INJECTION32_PATH": ".+",
        "CUDA_INJECTION64_PATH": ".+",
        "NVTX_INJECTION64_PATH": ".+",
        "CUDA_PROFILE": ".+",
        "COMPUTE_PROFILE": ".+",
        "OPENCL_PROFILE": ".+",
        "NSIGHT_CUDA_DEBUGGER": ".+",
        "CUDA_ENABLE_COREDUMP_ON_EXCEPTION": ".+",
        "CUDA_COREDUMP_FILE": ".+",
        "CUDA_DEVICE_WAITS_ON_EXCEPTION": ".+",
        "CUDA_AUTO_BOOST": ".+",
    },
    "blocking": {"CUDA_LAUNCH_BLOCKING": "1", "CUDA_CACHE_DISABLE": "1"},
    "jax_debugging": {
        "JAX_DISABLE_JIT": ON,
        "JAX_DEBUG_NANS": ON,
        "JAX_DEBUG_INFS": ON,
        "JAX_ENABLE_CHECKS": ON,
        "JAX_CHECK_TRACER_LEAKS": ON,
        "JAX_DISABLE_MOST_OPTIMIZATIONS": ON,
    },
    "precision": {"JAX_ENABLE_X64": ON, "JAX_DEFAULT_MATMUL_PRECISION": "(?i:high|highest|float32|bfloat16_3x)"},
    "cache_off": {"JAX_ENABLE_COMPILATION_CACHE": "(?i:0|false|no|off|n|f)"},
    "allocators": {"XLA_PYTHON_CLIENT_ALLOCATOR": "(?i:platform)"},
}
"""Variables by fact, each with a pattern of the values that are unwanted."""

SLOW_FLAGS = re.compile(
    r"--xla_(dump_to|dump_hlo_\w+|disable_hlo_passes|disable_all_hlo_passes|backend_optimization_level=[01]|"
    r"gpu_autotune_level=0|force_host_platform_device_count|gpu_disable_async_collectives)\b[^\s]*"
)
INEXACT_FLAGS = re.compile(
    r"--xla_(cpu_enable_fast_math|gpu_enable_fast_min_max|cpu_enable_fast_min_max|gpu_ftz)(=(true|1|True))?(?=\s|$)"
)
ALLOCATING = re.compile(r"lib(tcmalloc|jemalloc|mimalloc|hugetlbfs)")
"""Allocators, which are preloaded for good reasons."""

CUDA_LIBRARY = r"lib(cudnn|nccl|cublas|cudart|cusparse|cusolver|cufft)\w*\.so.*"


@probe("environment")
def collect(host: Host) -> dict[str, Any] | Absent:
    if not host.is_live and not host.exists(f"/{CAPTURED}/environ.json"):
        return Absent("the environment was not captured")
    environ = host.environ()
    flags = environ.get("XLA_FLAGS", "")
    # Folders with CUDA libraries, which are loaded instead of those of jax.
    folders = dict.fromkeys(environ.get("LD_LIBRARY_PATH", "").split(":"))
    found = {
        **{fact: _set(environ, unwanted) for fact, unwanted in UNWANTED.items()},
        "slow_flags": [match[0] for match in SLOW_FLAGS.finditer(flags)],
        "inexact_flags": [match[0] for match in INEXACT_FLAGS.finditer(flags)],
        "preload": [p for p in re.split(r"[:\s]+", environ.get("LD_PRELOAD", "")) if p and not ALLOCATING.search(p)],
        "cuda_folders": [f for f in folders if f.startswith("/") and listed(host, f, CUDA_LIBRARY)],
    }
    platforms = environ.get("JAX_PLATFORMS", environ.get("JAX_PLATFORM_NAME", ""))
    counts = {name: len(items) for name, items in found.items()}
    return {**found, "counts": counts, "is_cpu_only": platforms.strip().lower() == "cpu"}


def _set(environ: Mapping[str, str], unwanted: Mapping[str, str]) -> list[str]:
    """Return "NAME=value" of each variable with an unwanted value."""
    found = ((name, environ.get(name, "")) for name in unwanted)
    return [f"{name}={value}" for name, value in found if value and re.fullmatch(unwanted[name], value)]

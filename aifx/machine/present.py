"""The accelerators of this machine, and those that JAX would look for in vain. Imports no JAX.

A compiler for absent devices (libtpu, jax-cuda12-plugin) looks to JAX like a device: it tries to open one, which takes
seconds and prints errors. `platforms_here` names the platforms that are worth trying.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path

PCI = Path("/sys/bus/pci/devices")
GOOGLE = "0x1ae0"
NVIDIA = ("/dev/nvidia0", "/dev/nvidiactl", "/dev/dxg")
"""Files that JAX takes as the sign of an NVIDIA GPU (jax/_src/hardware_utils.py)."""

CUDA_PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin")


def tpu_generations(pci: Path = PCI) -> list[str]:
    """The generation of each TPU chip on the PCI bus: ["v5e", "v5e"]."""
    from aifx.machine.catalogue import TPU_GENERATIONS  # here, since every command asks for compilers

    found = []
    for device in sorted(pci.glob("*")) if pci.is_dir() else ():
        try:
            vendor, kind = ((device / name).read_text().strip() for name in ("vendor", "device"))
        except OSError:
            continue
        if vendor == GOOGLE and kind in TPU_GENERATIONS:
            found.append(TPU_GENERATIONS[kind])
    return found


def has_nvidia_gpu() -> bool:
    return any(os.path.exists(path) for path in NVIDIA)


def nvidia_gpus() -> int:
    """The number of this machine's NVIDIA GPUs."""
    return len(list(Path("/dev").glob("nvidia[0-9]*")))


def can_compile_for_tpus() -> bool:
    return importlib.util.find_spec("libtpu") is not None


def can_compile_for_gpus() -> bool:
    return any(importlib.util.find_spec(name) for name in CUDA_PLUGINS)


def platforms_here(environ: Mapping[str, str]) -> str | None:
    """The value of JAX_PLATFORMS with which installed compilers change nothing. None if JAX needs no help, if the user
    has decided, or if it can't be told."""
    if environ.get("JAX_PLATFORMS") or environ.get("JAX_PLATFORM_NAME"):
        return None
    tpu_compiler, gpu_compiler = can_compile_for_tpus(), can_compile_for_gpus()
    if not tpu_compiler and not gpu_compiler:
        return None
    has_tpu, has_gpu = bool(tpu_generations()), has_nvidia_gpu()
    if not ((tpu_compiler and not has_tpu) or (gpu_compiler and not has_gpu)) or _other_plugins():
        return None
    if has_gpu and gpu_compiler and not _has_cudnn():
        return None  # JAX itself says what is missing
    platforms = (("tpu", has_tpu and tpu_compiler), ("cuda", has_gpu and gpu_compiler), ("cpu", True))
    return ",".join(name for name, is_here in platforms if is_here)


def _other_plugins() -> bool:
    """Whether JAX has plugins of other makers, whose devices aifx can't tell."""
    found = importlib.util.find_spec("jax_plugins")
    folders = map(Path, found.submodule_search_locations or ()) if found is not None else ()
    names = {path.name for folder in folders if folder.is_dir() for path in folder.iterdir()}
    return any(not name.startswith(("xla_cuda", "_", ".")) for name in names)


def _has_cudnn() -> bool:
    import ctypes.util  # here, since every command asks for compilers

    is_package = importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.cudnn")
    return is_package is not None or ctypes.util.find_library("cudnn") is not None

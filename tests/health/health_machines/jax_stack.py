"""JAX, its packages and the environment of a healthy machine, as the probes capture them."""

from __future__ import annotations

import json
from typing import Any

VERSION = "0.12.0.1"
CUDA_WHEELS = {"nvidia-cublas": "13.1.0.3", "nvidia-cuda-runtime": "13.0.96", "nvidia-nccl-cu13": "2.28.3"}


def jax_files() -> dict[str, str]:
    """On a machine without accelerators."""
    device = {"device": "cpu:0", "kind": "cpu", "platform": "cpu", "computes": True, "is_right": True, "error": ""}
    return captured(packages(), [device], {"absent": "NVML Shared Library Not Found"})


def jax_on_gpus(
    kind: str = "NVIDIA H100 80GB HBM3", count: int = 8, driver: str = "580.95.05", memory_bytes: int | None = None
) -> dict[str, str]:
    """With the packages of jax[cuda13]."""
    gpu = {
        "kind": kind,
        "platform": "gpu",
        "memory_bytes": memory_bytes,
        "computes": True,
        "is_right": True,
        "error": "",
    }
    devices = [{"device": f"gpu:{i}", **gpu} for i in range(count)]
    nvml = {"driver": driver, "cuda": "13.0", "gpus": count, "mig": False}
    return captured(packages("cuda13"), devices, nvml)


def packages(flavour: str = "") -> dict[str, Any]:
    said: dict[str, Any] = {
        "python": "3.12.11",
        "packages": {"aifx-toolkit": "0.1.0", "jax": VERSION, "jaxlib": VERSION, "ml-dtypes": "0.6.0", "numpy": "2.5.5",
                     "scipy": "1.18.1"},
        "requires": {
            "aifx-toolkit": ["jax<0.13,>=0.10.2", 'jax[cuda13]; extra == "cuda13"'],
            "jax": [
                f"jaxlib<={VERSION},>=0.11.2",
                "ml_dtypes>=0.5.0",
                "numpy>=2.2",
                'jaxlib==0.11.2; extra == "minimum-jaxlib"',
                f'jax-cuda12-plugin[with-cuda]<={VERSION},>={VERSION}; extra == "cuda12"',
                f'jax-cuda13-plugin[with-cuda]<={VERSION},>={VERSION}; extra == "cuda13"',
                'libtpu==0.0.50.*; extra == "tpu"',
            ],
            "jaxlib": ["scipy>=1.14", "numpy>=2.0"],
        },
        "requires_python": "<3.14,>=3.11",
        "installer": "pip",
        "overlaps": [],
    }  # fmt: skip
    if flavour:
        said["packages"] |= {f"jax-{flavour}-plugin": VERSION, f"jax-{flavour}-pjrt": VERSION, **CUDA_WHEELS}
        said["requires"][f"jax-{flavour}-plugin"] = [
            f"jax-{flavour}-pjrt=={VERSION}",
            'nvidia-nccl-cu13>=2.18.1; extra == "with-cuda"',
            'nvidia-cublas<14,>=13.0; extra == "with-cuda"',
        ]
    return said


def captured(said: dict[str, Any], devices: list[dict[str, Any]], nvml: dict[str, Any]) -> dict[str, str]:
    platform = devices[0]["platform"]
    jax = {"error": "", "is_held": False, "platform": platform, "start_s": 0.9, "devices": devices}
    documents = {
        "jax_packages": {**said, "nvml": nvml},
        "jax": jax,
        "jax_cache": {"folder": "/home/user/.cache/aifx/jax", "is_writable": True, "why": ""},
        "environ": {"PATH": "/usr/bin:/bin", "HOME": "/home/user", "NCCL_DEBUG": "WARN"},
    }
    return {f"aifx-captured/{name}.json": json.dumps(document) for name, document in documents.items()}

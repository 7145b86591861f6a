"""Print the state of JAX as JSON: `python -m aifx.health.jax_probe packages | devices`.

This is its own process, because JAX may hang, crash or abort. `packages` reads metadata and NVML, and never imports
JAX. `devices` imports it, starts its backend and runs one operation on each device.
"""

from __future__ import annotations

import os
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from typing import Any

from packaging.utils import canonicalize_name

from aifx.core.facts import Absent, Unknown, to_document
from aifx.core.lifecycle import exit_now
from aifx.core.processes import connect
from aifx.core.version import DISTRIBUTION
from aifx.health.host import within
from aifx.machine.nvml import open_driver, open_gpus

PACKAGES = re.compile(
    rf"{DISTRIBUTION}|jax|jaxlib|jax-(cuda\d+|rocm\d+)-(plugin|pjrt)|libtpu|nvidia-[\w-]+|numpy|scipy|ml-dtypes"
)
ASKS = re.compile(rf"{DISTRIBUTION}|jax|jaxlib|jax-.*")
HELD = re.compile(
    r"already in use|resource busy|busy or unavailable|libtpu_lockfile|out[_ ]of[_ ]memory|RESOURCE_EXHAUSTED",
    re.IGNORECASE,
)
"""Messages for a device, or its memory, that another process uses: not a fault of the device."""

BESIDE_A_JOB = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "JAX_ENABLE_COMPILATION_CACHE": "false"}
"""Variables that keep JAX from reserving the devices' memory and from writing files."""

NVML_LIMIT_S = 3.0
SIZE = 128


def packages() -> dict[str, Any]:
    """Return names, versions and requirements of the installed packages, and NVML's report of the driver."""
    # Of two with one name, the first on the path is imported.
    named = {str(canonicalize_name(d.metadata["Name"] or "")): d for d in reversed(list(metadata.distributions()))}
    found = {name: d for name, d in named.items() if PACKAGES.fullmatch(name)}
    jax = found.get("jax")
    return {
        "python": ".".join(map(str, sys.version_info[:3])),
        "packages": {name: d.version for name, d in sorted(found.items())},
        "requires": {n: d.requires or [] for n, d in sorted(found.items()) if ASKS.fullmatch(n)},
        "requires_python": found[DISTRIBUTION].metadata["Requires-Python"] if DISTRIBUTION in found else None,
        "installer": ((jax.read_text("INSTALLER") if jax else None) or "").strip(),
        "overlaps": _overlaps({n: d for n, d in found.items() if n.startswith("nvidia-")}),
        "nvml": _nvml(),
    }


def devices() -> dict[str, Any]:
    """Return the devices of JAX, and whether each computes. `error` says why there are none."""
    os.environ |= BESIDE_A_JOB
    started = time.monotonic()
    try:
        import jax

        local = jax.local_devices()
    except Exception as error:
        why = f"{type(error).__name__}: {error}".strip()
        return {"error": why[:400], "is_held": HELD.search(why) is not None, "devices": []}
    start_s = round(time.monotonic() - started, 3)
    with ThreadPoolExecutor(len(local)) as pool:
        tried = list(pool.map(_try, local))
    return {"error": "", "is_held": False, "platform": local[0].platform, "start_s": start_s, "devices": tried}


def _try(device: Any) -> dict[str, Any]:
    facts = {
        "device": f"{device.platform}:{device.id}",
        "kind": device.device_kind,
        "platform": device.platform,
        "memory_bytes": _memory_bytes(device),
    }
    try:
        return {**facts, "computes": True, "is_right": _is_right(device), "error": ""}
    except Exception as error:
        why = f"{type(error).__name__}: {error}"[:400]
        failed = to_document(Absent(f"another process uses it: {why}")) if HELD.search(why) else False
        return {**facts, "computes": failed, "is_right": failed, "error": why}


def _is_right(device: Any) -> bool:
    """Return whether a matrix product of small whole numbers, exact in any type and order, equals that of NumPy."""
    import jax
    import numpy as np

    a, b = (np.random.default_rng(seed).integers(-8, 9, (SIZE, SIZE)).astype(np.float32) for seed in (1, 2))
    product = jax.jit(lambda a, b: a @ b + a)(*jax.device_put((a, b), device))
    return bool(np.array_equal(np.asarray(product), a @ b + a))


def _memory_bytes(device: Any) -> int | None:
    """Return how much of a device's memory JAX may use; None if the device does not report it."""
    try:
        return (device.memory_stats() or {}).get("bytes_limit")
    except Exception:
        return None


def _overlaps(wheels: dict[str, metadata.Distribution]) -> list[str]:
    """Return wheels that contain the same libraries, as "a and b": the last one installed has overwritten the other."""
    owners: dict[str, list[str]] = {}
    for name, wheel in sorted(wheels.items()):
        for file in wheel.files or ():
            if ".so" in file.name:
                owners.setdefault(str(file), []).append(name)
    return sorted({" and ".join(names) for names in owners.values() if len(names) > 1})


def _nvml() -> dict[str, Any]:
    """Return the driver, its CUDA version, and the GPUs; `absent` says why there is no NVML."""

    def ask() -> dict[str, Any]:
        driver = open_driver()
        for value in driver.values():
            if isinstance(value, (Absent, Unknown)):
                return {"absent": value.why}
        return {
            "driver": driver["driver"],
            "cuda": driver["cuda"],
            "gpus": driver["count"],
            # A GPU without MIG, or a lost one, does not answer with modes.
            "mig": any(gpu("DeviceGetMigMode", then=lambda m: bool(m[0])) is True for gpu in open_gpus().values()),
        }

    try:
        return within(NVML_LIMIT_S, ask, "NVML")
    except TimeoutError as error:
        return {"absent": str(error)}


if __name__ == "__main__":
    emit = connect()
    emit({"packages": packages, "devices": devices}[sys.argv[1]]())
    exit_now(0)  # a hanging driver would also block a thread or the library's exit

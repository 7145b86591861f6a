"""The implementations that an op has: one function written several ways, each for some devices and some calls."""

from __future__ import annotations

import contextlib
import contextvars
import importlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import jax

from jax_kernels.versions import limit_of

Platform: TypeAlias = Literal["cpu", "gpu", "tpu"]

Config: TypeAlias = tuple[tuple[str, int], ...]
"""Block sizes and the like that a kernel runs with, as (name, value) pairs: hashable, and JSON as a dictionary."""


@dataclass(frozen=True)
class Device:
    """A device that implementations are chosen for.

    Attributes:
        compute_capability: of an NVIDIA GPU, (9, 0) for an H100.
        is_partitioned: the compiler divides the call among several such devices.
        checks_vma: the call is inside a `jax.shard_map(check_vma=True)` and its operands vary over a mesh axis.
    """

    platform: Platform
    kind: str = ""
    compute_capability: tuple[int, int] | None = None
    is_partitioned: bool = False
    checks_vma: bool = False


@dataclass(frozen=True)
class Implementation:
    """One way to compute an op.

    Attributes:
        name: "reference", "xla", "pallas_triton", ...
        run: (call, config, *operands) -> results; differentiable.
        unsupported_reason: why it cannot take this call on this device, in a few words; None where it can.
        configs: what it may run with for a call that it does not refuse; the first where nothing was measured.
        is_kernel: a kernel of ours, or another's in a use that was never tried. On a device where it was never tried it
            may be wrong, crash or hang, so that it is taken only if it was measured or verified there, or asked for.
    """

    name: str
    run: Callable[..., Any]
    unsupported_reason: Callable[[Any, Device], str | None] = lambda call, device: None
    configs: Callable[[Any, Device], Sequence[Config]] = lambda call, device: ((),)
    is_kernel: bool = False


def kernel_implementation(name: str, op: str, module: str) -> Implementation:
    """The implementation that `module` holds as a function named as the op, `unsupported_reason` and `configs`.

    The module is imported when it is asked for: Pallas and its backends take their time, and most programs need one of
    them at most.

    The compiler cannot divide a Pallas kernel: on TPUs it says so and stops, on GPUs each device would do all of it.
    """

    def part(attribute: str) -> Callable[..., Any]:
        return lambda *arguments: getattr(importlib.import_module(module), attribute)(*arguments)

    def unsupported_reason(call: Any, device: Device) -> str | None:
        if device.is_partitioned:
            return "the compiler cannot divide it among devices"
        if device.checks_vma:
            return "the shard_map around it needs check_vma=False"
        if (limit := limit_of(op, name, interpreting=is_interpreting())) is not None:
            return limit
        reason: str | None = part("unsupported_reason")(call, device)
        return reason

    return Implementation(name, part(op), unsupported_reason, part("configs"), is_kernel=True)


_interpreted: contextvars.ContextVar[Device | None] = contextvars.ContextVar("jax_kernels_interpreted", default=None)


@contextlib.contextmanager
def interpreting(device: Device) -> Iterator[None]:
    """Pallas kernels that are traced inside run in their interpreters, as if for `device`: right, and slow."""
    token = _interpreted.set(device)
    try:
        yield
    finally:
        _interpreted.reset(token)


def is_interpreting() -> bool:
    return _interpreted.get() is not None


def current_device() -> Device:
    """The device that is traced for now: `interpreting`'s, otherwise an abstract mesh's, otherwise JAX's first."""
    if (device := _interpreted.get()) is not None:
        return device
    first = jax.devices()[0]
    abstract = jax.sharding.get_abstract_mesh().abstract_device
    # A mesh of real devices has an abstract device too.
    if abstract is None or abstract.device_kind == first.device_kind:
        return present_device(first)
    return make_device(abstract.platform, abstract.device_kind)


def present_device(device: Any) -> Device:
    """The description of one of `jax.devices()`, which knows its compute capability ("9.0"; "gfx942" on AMD)."""
    found = re.fullmatch(r"(\d+)\.(\d+)", str(getattr(device, "compute_capability", "")))
    capability = (int(found[1]), int(found[2])) if found else None
    return Device(_platform(device.platform), device.device_kind, capability)


# Compute capabilities of GPUs that cannot be asked (developer.nvidia.com/cuda-gpus), by words of the device's kind.
_CAPABILITIES = {
    (12, 1): r"GB10",
    (12, 0): r"GeForce RTX 50\d0|RTX PRO \d+",
    (10, 3): r"GB300|B300",
    (10, 0): r"GB200|B200",
    (9, 0): r"GH200|H200|H100|H800|H20",
    (8, 9): r"L40S?|L20|L4|L2|GeForce RTX 40\d0|RTX \d+( SFF)? Ada",
    (8, 6): r"A40|A10G?|A16|A2|GeForce RTX 30\d0|RTX A\d+",
    (8, 0): r"A100|A800|A30",
    (7, 5): r"T4|GeForce RTX 20\d0|Quadro RTX \d+",
    (7, 0): r"V100",
}


def make_device(platform: str, kind: str) -> Device:
    """An absent device of JAX's platform ("cuda" is "gpu") and device kind ("NVIDIA H100 80GB HBM3", "TPU v5 lite")."""
    known = _platform(platform)
    capability = next((c for c, names in _CAPABILITIES.items() if re.search(rf"\b({names})\b", kind)), None)
    return Device(known, kind, capability if known == "gpu" else None)


def _platform(name: str) -> Any:
    return {"cuda": "gpu", "rocm": "gpu"}.get(name, name)

"""The forms that an op has: one function written several ways, each for some devices and some calls."""

from __future__ import annotations

import contextlib
import contextvars
import importlib
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
    """What a form is chosen for.

    Attributes:
        compute_capability: of an NVIDIA GPU, (9, 0) for an H100.
        is_partitioned: the compiler divides the call among several such devices.
    """

    platform: Platform
    kind: str = ""
    compute_capability: tuple[int, int] | None = None
    is_partitioned: bool = False


@dataclass(frozen=True)
class Form:
    """One way to compute an op.

    Attributes:
        name: "reference", "xla", "pallas_triton", ...
        run: (call, config, *operands) -> results; differentiable.
        refuses: why it cannot take this call on this device, in a few words; None where it can.
        configs: what it may run with for a call that it does not refuse; the first where nothing was measured.
    """

    name: str
    run: Callable[..., Any]
    refuses: Callable[[Any, Device], str | None] = lambda call, device: None
    configs: Callable[[Any, Device], Sequence[Config]] = lambda call, device: ((),)


def kernel_form(name: str, op: str, module: str) -> Form:
    """The form that `module` holds as a function named as the op, `refuses` and `configs`. The module is imported when
    it is asked for: Pallas and its backends take their time, and most programs need none or one of them.

    The compiler cannot divide a Pallas kernel: on TPUs it says so and stops, on GPUs each device would do all of it.
    """

    def part(attribute: str) -> Callable[..., Any]:
        return lambda *arguments: getattr(importlib.import_module(module), attribute)(*arguments)

    def refuses(call: Any, device: Device) -> str | None:
        if device.is_partitioned:
            return "the compiler cannot divide it among devices"
        if (limit := limit_of(op, name, interpreting=is_interpreting())) is not None:
            return limit
        reason: str | None = part("refuses")(call, device)
        return reason

    return Form(name, part(op), refuses, part("configs"))


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
    """What is traced for now: `interpreting`'s device, else the abstract one of `jax.sharding.use_abstract_mesh`, else
    the first of JAX's."""
    if (device := _interpreted.get()) is not None:
        return device
    abstract = jax.sharding.get_abstract_mesh().abstract_device
    if abstract is not None:
        return make_device(abstract.platform, abstract.device_kind)
    first = jax.devices()[0]
    return make_device(first.platform, first.device_kind)


# CUDA's compute capabilities (developer.nvidia.com/cuda-gpus) by a word of the device's kind, the first that is in it.
_CAPABILITIES = {
    "GB300": (10, 3),
    "B300": (10, 3),
    "GB200": (10, 0),
    "B200": (10, 0),
    "H100": (9, 0),
    "H200": (9, 0),
    "H20": (9, 0),
    "L40": (8, 9),
    "L4": (8, 9),
    "RTX 40": (8, 9),
    "A100": (8, 0),
    "A30": (8, 0),
    "A10": (8, 6),
    "A40": (8, 6),
    "RTX 30": (8, 6),
    "T4": (7, 5),
    "V100": (7, 0),
}


def make_device(platform: str, kind: str) -> Device:
    """The device of JAX's platform ("cuda" is "gpu") and device kind ("NVIDIA H100 80GB HBM3", "TPU v5 lite")."""
    known: Any = {"cuda": "gpu", "rocm": "gpu"}.get(platform, platform)
    capability = next((c for name, c in _CAPABILITIES.items() if name in kind), None)
    return Device(known, kind, capability if known == "gpu" else None)

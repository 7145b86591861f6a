"""Which implementation of an op runs: asked for, kept by a run, measured on such a device, or the best guess."""

from __future__ import annotations

import contextlib
import contextvars
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax

from jax_kernels.builtin_configs import builtin_choice
from jax_kernels.implementations import Device, current_device
from jax_kernels.op import Choice, Op, call_key
from jax_kernels.tuning import measured_here

AUTO = "auto"


logger = logging.getLogger(__name__)


@dataclass
class Choices:
    """The implementations of a program's calls: those in `made` as they are there, others chosen when met, and kept.

    Attributes:
        made: by `call_key`.
        asked: the implementation that a call without an `implementation` of its own gets, by op.
        measured: looks up what was measured for (op, call, device); by default what `aifx kernels tune` measured.
        seen_calls: the calls that were met, by `call_key`.
    """

    made: dict[str, Choice] = field(default_factory=dict)
    asked: Mapping[str, str] = field(default_factory=dict)
    measured: Callable[[Op, Any, Device], Choice | None] = measured_here
    seen_calls: dict[str, tuple[Op, Any]] = field(default_factory=dict)

    def choose(self, op: Op, call: Any, device: Device) -> Choice:
        key = call_key(op.name, call)
        self.seen_calls[key] = (op, call)
        before = self.made.get(key)
        refusal = None if before is None else op.unsupported_reason(before, call, device)
        if before is None or refusal is not None:
            self.made[key] = self._make(op, call, device)
        if before is not None and refusal is not None:
            now = self.made[key].implementation
            logger.warning(
                f"{op.name}: {before.implementation}, chosen before, cannot take this call ({refusal}); "
                f"it runs as {now}"
            )
        return self.made[key]

    def _make(self, op: Op, call: Any, device: Device) -> Choice:
        asked = self.asked.get(op.name, AUTO)
        if asked != AUTO:
            return choose_asked(op, call, device, asked)
        for find in (self.measured, builtin_choice):
            found = find(op, call, device)
            if found is not None and op.unsupported_reason(found, call, device) is None:
                return found
        return choose_unmeasured(op, call, device)


_choices: contextvars.ContextVar[Choices | None] = contextvars.ContextVar("jax_kernels_choices", default=None)


@contextlib.contextmanager
def using(choices: Choices) -> Iterator[Choices]:
    """Calls with `implementation="auto"` that are traced inside run as `choices` say.

    A program that was traced before keeps what it was traced with: `jax.jit` does not trace it again.
    """
    token = _choices.set(choices)
    try:
        yield choices
    finally:
        _choices.reset(token)


def run(op: Op, call: Any, implementation: str, *operands: Any) -> Any:
    """The results of a call, by the implementation chosen for it.

    Inside a `jax.shard_map`, the operands are a device's part: aifx's programs are those of one device of a mesh.

    Raises ValueError for an implementation that the op does not have.
    """
    axes = varying_axes(operands)
    operands = tuple(varying(operands, axes))
    choice = choose(op, call, implementation, checks_vma=bool(axes))
    return op.implementations[choice.implementation].run(call, choice.config, *operands)


def choose(op: Op, call: Any, implementation: str, *, checks_vma: bool = False) -> Choice:
    """The choice for a call.

    Args:
        checks_vma: see `Device`.

    Raises ValueError for an implementation that the op does not have.
    """
    check_name(op, implementation)
    choices = _choices.get() or Choices()
    device = replace(current_device(), is_partitioned=bool(free_axes()), checks_vma=checks_vma)
    if implementation != AUTO:
        return choose_asked(op, call, device, implementation)
    return choices.choose(op, call, device)


def check_name(op: Op, implementation: str) -> None:
    if implementation != AUTO and implementation not in op.implementations:
        names = ", ".join([AUTO, *op.implementations])
        raise ValueError(f"implementation: expected one of {names}, got {implementation!r}")


def choose_asked(op: Op, call: Any, device: Device, name: str) -> Choice:
    """The implementation that was asked for, or, with a warning in the log, another if it does not support the call."""
    refusal = op.implementations[name].unsupported_reason(call, device)
    if refusal is None:
        return op.choice(name, op.implementations[name].configs(call, device)[0], "asked for")
    instead = choose_unmeasured(op, call, device)
    logger.warning(f"{op.name}: {name} cannot take this call ({refusal}); it runs as {instead.implementation}")
    return replace(instead, reason=f"{name} was asked for and cannot: {refusal}")


def choose_unmeasured(op: Op, call: Any, device: Device) -> Choice:
    """The first implementation in the device's order of preference that takes the call and is no kernel of ours.

    Kernels of ours that were verified or measured are found before.
    """
    refusals: list[str] = []
    for name in op.preference[device.platform]:
        implementation = op.implementations[name]
        refusal = implementation.unsupported_reason(call, device)
        if refusal is None and implementation.is_kernel:
            refusal = "it was not verified on this kind of device"
        if refusal is None:
            because = "; ".join(refusals) or f"first choice on a {device.platform}"
            return op.choice(name, implementation.configs(call, device)[0], because)
        refusals.append(f"not {name}: {refusal}")
    raise AssertionError(f"{op.name}: no implementation takes {call}: {refusals}")


def free_axes() -> list[str]:
    """Mesh axes with several devices that a `jax.shard_map` around leaves to the compiler; none if there is no map."""
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.manual_axes:
        return []
    return [name for name in mesh.axis_names if name not in mesh.manual_axes and mesh.shape[name] > 1]


def varying_axes(operands: Sequence[Any]) -> frozenset[str]:
    """Mesh axes over which an operand varies, inside a `jax.shard_map(check_vma=True)`; elsewhere none."""
    none: frozenset[str] = frozenset()
    return none.union(*(jax.typeof(x).manual_axis_type.varying for x in jax.tree.leaves(operands)))


def varying(operands: Sequence[Any], axes: frozenset[str]) -> list[Any]:
    """The operands, all of them typed as varying over the axes. The gradient of one that did not vary is summed."""

    def cast(x: Any) -> Any:
        missing = tuple(sorted(axes - jax.typeof(x).manual_axis_type.varying))
        return jax.lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(cast, list(operands))  # type: ignore[no-any-return]

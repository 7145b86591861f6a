"""Ops: their implementations, the work of a call, and the implementation chosen for one."""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import jax

from jax_kernels.implementations import Config, Device, Implementation, Platform


@dataclass(frozen=True)
class Work:
    """The least work of a call of an op, forward and backward.

    Attributes:
        flops: of its matrix products.
        num_bytes: operands and results, each moved once.
    """

    flops: int
    num_bytes: int


@dataclass(frozen=True)
class TrainingProgram:
    """Forward and backward of an op, as training runs them: (primals, constants, cotangents) -> (results, gradients).

    Attributes:
        forward: (*primals, *constants) -> results, differentiated by the primals.
    """

    forward: Callable[..., Any]

    def __call__(self, primals: tuple[Any, ...], constants: tuple[Any, ...], cotangents: Any) -> tuple[Any, Any]:
        results, pull = self.vjp(primals, constants)
        return results, pull(cotangents)

    def vjp(self, primals: tuple[Any, ...], constants: tuple[Any, ...]) -> tuple[Any, Callable[[Any], Any]]:
        """The results and the backward pass, a pytree of what it keeps of the forward pass."""
        results, pull = jax.vjp(lambda *primals: self.forward(*primals, *constants), *primals)
        return results, pull


@dataclass(frozen=True)
class Op:
    """An op and its implementations.

    Attributes:
        package: its folder as Python names it; its cases are in `<package>.cases`.
        call: the type that describes a call of it, a dataclass with a `dtype` among its fields. Its `batch_fields` are
            the names of those that grow with the batch.
        implementations: by name; "reference" and "xla" take every call.
        preference: the implementations to try in this order where nothing was measured.
        workload: (call, run, config) -> a program that does with an implementation what training or generation does,
            and a function that makes arrays for it. The program is a TrainingProgram, or the forward pass alone if
            nothing differentiates the op.
        work: what that asks of the device.
    """

    name: str
    package: str
    call: type[Any]
    implementations: Mapping[str, Implementation]
    preference: Mapping[Platform, Sequence[str]]
    workload: Callable[[Any, Callable[..., Any], Config], tuple[Callable[..., Any], Callable[[], tuple[Any, ...]]]]
    work: Callable[[Any], Work]

    def __reduce__(self) -> tuple[Callable[..., Op], tuple[str, str]]:
        """Ops hold functions; another process imports the op of this name."""
        return find_op, (self.package, self.name)

    def choice(self, implementation: str, config: Config, reason: str) -> Choice:
        """A choice of an implementation as its source is now."""
        return Choice(implementation, config, reason, self.source_digest(implementation))

    def source_digest(self, implementation: str) -> str:
        """Digest of the code that an implementation is made of: `cudnn_masked` is in the file of `cudnn`."""
        others = {name for name in self.implementations if not implementation.startswith(name)} - {"reference", "xla"}
        return _source_digest(self.package, frozenset(others))

    def unsupported_reason(self, choice: Choice, call: Any, device: Device) -> str | None:
        """The reason that a call cannot run as was chosen or measured before; None if it can."""
        implementation = self.implementations.get(choice.implementation)
        if implementation is None:
            return "there is no such implementation"
        if (reason := implementation.unsupported_reason(call, device)) is not None:
            return reason
        if choice.source != self.source_digest(choice.implementation) and choice.config not in implementation.configs(
            call, device
        ):
            return f"it has changed, and {', '.join(f'{n}={v}' for n, v in choice.config)} is no longer offered"
        return None


@dataclass(frozen=True)
class Choice:
    """An implementation, what it runs with, and why it was taken.

    Attributes:
        source: digest of the implementation's code when it was chosen or measured; empty if that is not known.
    """

    implementation: str
    config: Config = ()
    reason: str = ""
    source: str = field(default="", compare=False)

    def document(self) -> dict[str, Any]:
        return {
            "implementation": self.implementation,
            "config": dict(self.config),
            "reason": self.reason,
            "source": self.source,
        }

    @staticmethod
    def from_document(document: Mapping[str, Any]) -> Choice:
        config = tuple((str(name), int(value)) for name, value in document["config"].items())
        return Choice(str(document["implementation"]), config, str(document["reason"]), str(document.get("source", "")))


def find_op(package: str, name: str) -> Op:
    """The op that a module defines under a name."""
    return next(x for x in vars(importlib.import_module(package)).values() if isinstance(x, Op) and x.name == name)


def call_key(op: str, call: Any) -> str:
    """A call in one line of JSON, the same in every process."""
    return json.dumps({"op": op, **asdict(call)}, sort_keys=True)


@functools.cache
def _source_digest(package: str, others: frozenset[str]) -> str:
    """Digest of an op's package without its cases and the kernels `others`, and of what all kernels share."""
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent
    left_out = {*others, "cases"}
    own = [p for p in folder.rglob("*.py") if p.relative_to(folder).parts[0].removesuffix(".py") not in left_out]
    digest = hashlib.sha256()
    for path in (*sorted(own), Path(__file__).with_name("masked_io.py")):
        digest.update(f"{path.relative_to(path.parents[1])}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]

"""What an op is: its forms, what a call of it asks of a device, and which form was chosen for one."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from jax_kernels.dividing import Rows
from jax_kernels.forms import Config, Form, Platform


@dataclass(frozen=True)
class Work:
    """What a call of an op asks of a device, forward and backward, at the least.

    Attributes:
        flops: of its matrix products.
        num_bytes: operands and results, each moved once.
    """

    flops: int
    num_bytes: int


@dataclass(frozen=True)
class Op:
    """An op and its forms.

    Attributes:
        package: its folder as Python names it; its cases are in `<package>.cases`.
        call: the type that describes a call of it, a dataclass with a `dtype` among its fields.
        forms: by name; "reference" and "xla" take every call.
        preference: the forms to try in this order where nothing was measured.
        workload: (call, run, config) -> a program that does with a form what training or generation does, and a
            function that makes arrays for it.
        work: what that asks of the device.
        rows: (call, count) -> how a call is shared out among `count` devices; None where it cannot be.
    """

    name: str
    package: str
    call: type[Any]
    forms: Mapping[str, Form]
    preference: Mapping[Platform, Sequence[str]]
    workload: Callable[[Any, Callable[..., Any], Config], tuple[Callable[..., Any], Callable[[], tuple[Any, ...]]]]
    work: Callable[[Any], Work]
    rows: Callable[[Any, int], Rows | None]


@dataclass(frozen=True)
class Choice:
    """A form, what it runs with, and why it was taken."""

    form: str
    config: Config = ()
    reason: str = ""

    def document(self) -> dict[str, Any]:
        return {"form": self.form, "config": dict(self.config), "reason": self.reason}

    @staticmethod
    def from_document(document: Mapping[str, Any]) -> Choice:
        config = tuple((str(name), int(value)) for name, value in document["config"].items())
        return Choice(str(document["form"]), config, str(document["reason"]))


def call_key(op: str, call: Any) -> str:
    """A call in one line of JSON, the same in every process."""
    return json.dumps({"op": op, **asdict(call)}, sort_keys=True)

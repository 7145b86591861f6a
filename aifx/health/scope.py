"""Look up facts by dotted path, for the rules: of the node or of one device, now and at the earlier reading."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from aifx.core.facts import Absent, Unknown

RATE = "_per_min"
"""`errors_per_min` is the rate of the counter `errors` between the earlier reading and this one."""


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


@dataclass(frozen=True)
class Scope:
    """The node or one item of a list of devices, on which a rule is evaluated.

    Attributes:
        now: its facts.
        before: its facts at the earlier reading; None without one.
        minutes: the time between the two readings.
        parents: the scopes that contain it, the node first.
        device: its name; empty for the node.
    """

    now: Any
    before: Any = None
    minutes: float = 0.0
    parents: tuple[Scope, ...] = field(default=(), repr=False)
    device: str = ""

    def look_up(self, path: str) -> Any:
        """Return the value at a dotted path, or `Absent` or `Unknown`.

        `node.` starts at the node, and `^.` at the parent. A name that ends in `_per_min` and is not a fact is the rate
        of the counter before that ending.
        """
        if path.startswith("node."):
            return (self.parents or (self,))[0].look_up(path.removeprefix("node."))
        if path.startswith("^."):
            return self.parents[-1].look_up(path.removeprefix("^."))
        value = _walk(self.now, path)
        if isinstance(value, Unknown) and path.endswith(RATE):
            return self._rate(path.removesuffix(RATE))
        return value

    def items(self, path: str) -> Iterator[Scope | Absent | Unknown]:
        """Yield the items of the list at `path`, through lists on the way (`gpus.links`)."""
        head, _, rest = path.partition(".")
        value, before = _walk(self.now, head), _walk(self.before, head)
        parents = self.parents or (self,)
        if isinstance(value, Mapping) and rest:
            before = before if isinstance(before, Mapping) else None
            # A plain table on the way is not a device, so the parents stay.
            yield from Scope(value, before, self.minutes, parents, self.device).items(rest)
        elif isinstance(value, (Absent, Unknown)):
            yield value
        elif not isinstance(value, list):
            yield Unknown(f"{path} is not a list but {formatted(value)}")
        else:
            for index, item in enumerate(value):
                if isinstance(item, (Absent, Unknown)):
                    yield item
                elif not isinstance(item, Mapping):
                    yield Unknown(f"{head}[{index}] is not a table but {formatted(item)}")
                else:
                    name = str(item.get("device", index))
                    scope = Scope(item, _same(before, name), self.minutes, parents, f"{self.device} {name}".strip())
                    yield from replace(scope, parents=(*parents, scope)).items(rest) if rest else [scope]

    def _rate(self, path: str) -> Any:
        now = _walk(self.now, path)
        if isinstance(now, (Absent, Unknown)):
            return now
        if not is_number(now) or not 0 <= now < math.inf:
            return Unknown(f"{path} is not a counter but {formatted(now)}")
        if self.before is None or self.minutes <= 0:
            return Absent("a rate needs an earlier reading: run the check again later, or with --sample 10")
        before = _walk(self.before, path)
        if not is_number(before):
            return Absent(f"the earlier reading has no {path}")
        if now < before:
            return Absent(f"{path} was reset since the earlier reading")
        return (now - before) / self.minutes


def formatted(value: Any) -> str:
    """Return a value for a message, shortened."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _walk(value: Any, path: str) -> Any:
    gone = ""
    for key in path.split("."):
        if isinstance(value, (Absent, Unknown)):
            return value
        gone = f"{gone}.{key}" if gone else key
        if not isinstance(value, Mapping):
            return Unknown(f"{gone} cannot be read: {formatted(value)} is not a table")
        if key not in value:
            return Unknown(f"the snapshot has no {gone}")
        value = value[key]
    return Unknown(f"{gone} is null") if value is None else value


def _same(items: Any, device: str) -> Any:
    """Return the item of that name in a list of the earlier reading."""
    if not isinstance(items, list):
        return None
    named = ((str(item.get("device", index)), item) for index, item in enumerate(items) if isinstance(item, Mapping))
    return next((item for name, item in named if name == device), None)

"""Checks that a mesh can divide a model and its data, before anything is traced."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import jax

from aifx.core.errors import ConfigError
from aifx.parallel.layout import Layout
from aifx.parallel.mesh import (
    AXES,
    YIELDS,
    Degrees,
    Demand,
    axes_of,
    check_demands,
    setting_of_devices,
    settings_of,
)
from aifx.specs import ArraySpec, Specs, is_spec

INNER = ("heads", "kv_heads", "mlp")
"""Logical axes of a layer's products, whose tokens are divided among the devices that divide them."""

WITHOUT_RULES = "--set mesh.parameters=[] --set mesh.computation=[]"

REPEATED = ("kv_heads",)
"""Logical axes of which several devices may have the same part, if there are fewer parts than devices."""


def check_model(layout: Layout, specs: Specs, fields: Mapping[str, Any], sharded: Iterable[str], name: str) -> None:
    """Raise ConfigError unless the mesh divides what the model computes.

    Args:
        specs: of the model.
        fields: of its data, as `DataSpec.fields`.
        sharded: the logical axes that the model can divide.
        name: of the model, for the error.
    """
    if layout.num_devices == 1:
        return
    check_rules(layout, specs, sharded)
    can = {axis for logical in ("batch", *sharded) for axis in layout.axes(logical)}
    if unable := [axis for axis in AXES if layout.mesh.shape.get(axis, 1) > 1 and axis not in can]:
        raise ConfigError(
            f"mesh.{unable[0]} = {layout.mesh.shape[unable[0]]}, and {name} cannot be divided along it",
            f"its computation is divided over {', '.join(sorted({'data', 'fsdp', *can}))}",
            settings_of(Degrees(fsdp=layout.num_devices)),
        )
    needed = partial(axes_of, rules=layout.computation)
    ring = needed("seq") if layout.is_ring else ()
    demands = [
        Demand(f"{logical} of the data", size, (*needed(logical), *needed("tokens")), ring=ring)
        for field_spec in fields.values()
        for size, logical in zip(field_spec.shape, field_spec.axes, strict=False)
        if logical in sharded
    ]
    for spec in jax.tree.leaves(specs, is_leaf=is_spec):
        demands += [
            Demand(f"{logical} of the model", size, needed(logical), logical in REPEATED)
            for size, logical in zip(spec.shape, spec.axes, strict=True)
            if logical in sharded and logical != "vocab" and needed(logical)
        ]
    check_demands(layout.degrees, list(dict.fromkeys(demands)))


def check_batch(layout: Layout, global_batch_size: int, gradient_accumulation: int) -> None:
    """Raise ConfigError unless each device gets the same number of rows of each micro-batch."""
    rows, sharers = global_batch_size // gradient_accumulation, layout.count("batch")
    if rows % sharers == 0:
        return
    step = sharers * gradient_accumulation
    batch = max(round(global_batch_size / step), 1) * step
    micro = f" in {gradient_accumulation} micro-batches" if gradient_accumulation > 1 else ""
    other = ""
    for fewer in range(1, sharers + 1):
        devices = setting_of_devices(fewer * layout.num_devices // sharers)
        if rows % fewer == 0 and devices is not None:
            fsdp = math.gcd(layout.degrees.fsdp, fewer)
            sizes = f" --set mesh.data={fewer // fsdp} --set mesh.fsdp={fsdp}" if layout.degrees.fsdp > 1 else ""
            other = f", or {devices}{sizes}"
    raise ConfigError(
        f"train.global_batch_size = {global_batch_size}{micro} cannot be divided among {sharers} devices",
        f"each device takes the same number of rows: {rows} / {sharers} is not whole",
        f"--set train.global_batch_size={batch}{other}",
    )


def check_rules(layout: Layout, specs: Specs, sharded: Iterable[str]) -> None:
    """Raise ConfigError for rules by which devices would compute with other parts than they have."""
    rows = layout.axes("batch")
    if whole := [axis for axis in ("data", "fsdp") if layout.mesh.shape.get(axis, 1) > 1 and axis not in rows]:
        why = f"devices along mesh.{whole[0]} take rows of their own: the rule of 'batch' names data and fsdp"
        raise ConfigError(f"the rules do not divide rows over mesh.{whole[0]}", why, WITHOUT_RULES)
    inner = [name for name in INNER if name in sharded]
    for name in [*inner, *(name for name in sharded if name == "vocab")]:
        computed, stored = layout.axes(name), layout.axes(name, layout.parameters)
        if missing := [axis for axis in computed if axis not in stored]:
            what = f"the rules divide {name!r} over mesh.{missing[0]} in the computation, and not among the parameters"
            why = f"each device along mesh.{missing[0]} computes with the part of the weights that it keeps"
            raise ConfigError(what, why, WITHOUT_RULES)
    differing = {name: layout.axes(name) for name in (*inner, "tokens") if inner}
    if len(set(differing.values())) > 1:
        what = "the rules divide a layer over different mesh axes"
        over = "; ".join(f"{name}: {', '.join(axes) or 'none'}" for name, axes in differing.items())
        raise ConfigError(what, f"{', '.join(differing)} are divided together: {over}", WITHOUT_RULES)
    parts = {name: layout.axes(name) for name in ("batch", "seq", "tokens")}
    for axis in AXES:
        if len(sharing := [name for name, axes in parts.items() if axis in axes]) > 1:
            what = f"the rules divide both {sharing[0]!r} and {sharing[1]!r} over mesh.{axis} in the computation"
            raise ConfigError(what, "devices along a mesh axis divide one of them", WITHOUT_RULES)
    for spec in jax.tree.leaves(specs, is_leaf=is_spec):
        _check_collision(layout, spec)


def _check_collision(layout: Layout, spec: ArraySpec) -> None:
    """Raise ConfigError if the rules divide two dimensions of an array over one mesh axis."""
    taken: dict[str, str] = {}
    for name in spec.axes:
        for axis in layout.axes(name, layout.parameters):
            assert name is not None
            other = taken.setdefault(axis, name)
            if other != name and YIELDS.get(name) != other and YIELDS.get(other) != name:
                raise ConfigError(
                    f"the rules divide both {other!r} and {name!r} of one array over mesh.{axis}",
                    f"an array {list(spec.axes)} of the model has both, and a mesh axis divides one dimension",
                    f"--set 'mesh.parameters=[\"{name} =\"]'",
                )

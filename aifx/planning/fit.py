"""Settings with which a run fits its devices: mesh, batch, accumulation and recomputation, the quickest first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from aifx.config import Config
from aifx.config.sections import MeshSection, ModelSection
from aifx.core.errors import ConfigError
from aifx.models.sections import LayeredSection
from aifx.parallel.mesh import Degrees, all_degrees
from aifx.planning.counting import Counted, gathered_bytes, held_by_one, num_output_shards, weight_collectives
from aifx.planning.figures import rates_of
from aifx.planning.hardware import GPU_NAMES, Hardware, find_hardware
from aifx.planning.network import link_uses, network_of
from aifx.planning.plan import capacity_of
from aifx.planning.step_time import step_time
from aifx.planning.work import Work, apply_settings
from aifx.programs.build import Programs

MOST_WITHIN = 16
"""Devices that divide a row, at most: what they send each other is waited for in each layer."""

TRACED = 8
"""Meshes whose collectives are counted from the traced step, at most."""


@dataclass(frozen=True)
class Candidate:
    """Settings and what they need.

    Attributes:
        needed_bytes: on each device.
        row_s: seconds of a step for each row of its batch.
    """

    settings: dict[str, Any]
    counted: Counted
    needed_bytes: int
    row_s: float

    @property
    def rows(self) -> int:
        return int(self.settings["train.global_batch_size"])


def candidates(config: Config, work: Work, cores: int) -> tuple[list[Candidate], Candidate]:
    """Settings that fit by count, the quickest first, and those that need the least memory.

    Each mesh that divides the model is counted from its arrays: memory is linear in the rows of a micro-batch, so that
    two counts tell it for all. Of the quickest meshes, the step is traced.
    """
    estimate, shares = _Estimate(work.hardware, cores), list(_shares(config, work))
    pool = [found for remat in _remats(config.model) for found in _counted(config, work, shares, remat, estimate)]
    kept = [found for found in pool if found.rows == config.train.global_batch_size]
    pool = kept or pool  # the batch stays, unless no mesh divides it
    if not pool:
        raise ConfigError(
            f"no mesh of {work.hardware.num_devices} devices divides this model and its batch",
            f"at most {MOST_WITHIN} devices share a row",
            f"aifx plan --hardware {work.hardware.name} --set train.global_batch_size={work.hardware.num_devices}",
        )
    capacity = capacity_of(work.hardware).value
    fitting = sorted((one for one in pool if one.needed_bytes <= capacity), key=lambda one: one.row_s)
    if work.hardware.num_devices > 1:
        traced = [
            estimate(one.settings, work.trace(apply_settings(config, one.settings), one.counted))
            for one in [*_quickest_meshes(fitting), *sorted(fitting, key=_need)[:1]]
        ]
        fitting = sorted((one for one in traced if one.needed_bytes <= capacity), key=lambda one: one.row_s)
    return fitting, min(pool, key=_need)


def _need(one: Candidate) -> int:
    return one.needed_bytes


class _Estimate:
    """Makes candidates for some hardware."""

    def __init__(self, hardware: Hardware, cores: int) -> None:
        self._hardware, self._cores = hardware, cores
        self._network = network_of(hardware)

    def __call__(self, settings: dict[str, Any], counted: Counted) -> Candidate:
        rates = rates_of(self._hardware, list(counted.product_flops), self._cores)
        uses = link_uses(counted.collectives, self._network)
        time = step_time(vars(counted), None, uses, rates, is_cpu=self._hardware.platform == "cpu")
        needed = needed_bytes(counted, self._hardware)
        return Candidate(settings, counted, needed, time.step / settings["train.global_batch_size"])


def needed_bytes(counted: Counted, hardware: Hardware) -> int:
    """Bytes that one device needs, by count."""
    state = counted.parameters + counted.frozen + counted.optimizer + counted.batch
    copy = counted.state if hardware.platform == "cpu" else 0
    used = counted.gradients + counted.activations + counted.copies + counted.gathered + 2 * counted.logits
    return state + copy + used


def smallest_machine(needed: int) -> str | None:
    """The GPU or TPU of the catalogue with the least memory of one device that is enough; None if none is."""
    chips = [find_hardware(name) for name in (*GPU_NAMES, "v4-8", "v5e-1", "v5p-8", "v6e-1", "tpu7x-4")]
    enough = [one for one in chips if capacity_of(one).value >= needed]
    return min(enough, key=lambda one: capacity_of(one).value).name if enough else None


def _remats(model: ModelSection) -> Iterator[dict[str, Any]]:
    if not isinstance(model, LayeredSection):
        yield {}
        return
    for remat in ("none", "dots", "full"):
        yield {"model.remat": remat}


@dataclass(frozen=True)
class _Share:
    """A mesh that divides the model, and what one device holds with so many rows of a batch."""

    programs: Programs
    held: dict[str, Any]
    rows: int
    settings: dict[str, Any]

    @property
    def degrees(self) -> Degrees:
        return self.programs.layout.degrees


def _shares(config: Config, work: Work) -> Iterator[_Share]:
    for degrees in _meshes(work.hardware):
        sharers = degrees.data * degrees.fsdp
        rows = max(round(config.train.global_batch_size / sharers), 1)
        settings = {**_mesh_settings(config.mesh, degrees), "train.global_batch_size": rows * sharers}
        try:
            programs = work.programs(apply_settings(config, {**settings, "train.gradient_accumulation": 1}))
        except ConfigError:
            continue
        yield _Share(programs, held_by_one(programs), rows, settings)


def _counted(
    config: Config, work: Work, shares: list[_Share], remat: dict[str, Any], estimate: _Estimate
) -> Iterator[Candidate]:
    """Each accumulation that divides the batch, with one way to rematerialize."""

    def alone(rows: int) -> Counted:
        batch = {"train.global_batch_size": rows, "train.gradient_accumulation": 1}
        return work.count(apply_settings(config, {**remat, **batch}), alone=True)

    one, two = alone(1), alone(2)
    for share in shares:
        rows, shared = share.rows, share.degrees.tensor * share.degrees.context
        parts = num_output_shards(share.programs, one.head[0])
        for micro in (size for size in range(rows, 0, -1) if rows % size == 0):
            settings = {**share.settings, "train.gradient_accumulation": rows // micro, **remat}
            counted = replace(
                one,
                mesh=asdict(share.degrees),
                product_flops={
                    dtype: _line(flops, two.product_flops[dtype], rows) // shared
                    for dtype, flops in one.product_flops.items()
                },
                attention_flops=_line(one.attention_flops, two.attention_flops, rows) // shared,
                transcendentals=_line(one.transcendentals, two.transcendentals, rows) // shared,
                micro_batches=rows // micro,
                activations=_line(one.activations, two.activations, micro) // shared,
                touched=_line(one.touched, two.touched, micro) // shared,
                copies=one.copies * share.held["gradients"] // max(one.gradients, 1),
                logits=_line(one.logits, two.logits, micro) // max(shared, parts),
                gathered=gathered_bytes(share.programs),
                collectives=weight_collectives(share.programs, rows // micro),
                **share.held,
            )
            yield estimate(settings, counted)


def _meshes(hardware: Hardware) -> Iterator[Degrees]:
    for degrees in all_degrees(hardware.num_devices):
        near = hardware.platform != "gpu" or degrees.tensor <= hardware.per_node
        if degrees.tensor * degrees.context <= MOST_WITHIN and near and degrees.data % hardware.slices == 0:
            yield degrees


def _mesh_settings(mesh: MeshSection, degrees: Degrees) -> dict[str, int]:
    """The values that `[mesh]` needs for these degrees: sizes above 1, and those that it sets to something else."""
    default = type(mesh)()
    return {
        f"mesh.{axis}": size
        for axis, size in asdict(degrees).items()
        if size > 1 or getattr(mesh, axis) not in (1, getattr(default, axis))
    }


def _quickest_meshes(fitting: list[Candidate]) -> list[Candidate]:
    """The quickest settings for each number of devices that share a row, the fewest first: what these send each other
    is not in the candidates' time yet."""
    found: dict[tuple[int, int], list[Candidate]] = {}
    for one in fitting:
        within = one.settings.get("mesh.tensor", 1), one.settings.get("mesh.context", 1)
        found.setdefault(within, []).append(one)
    order = sorted(found, key=lambda within: within[0] * within[1])
    first = found[order[0]][1:4] if order else []
    return [*(found[within][0] for within in order), *first][:TRACED]


def _line(one: int, two: int, rows: int) -> int:
    return one + (rows - 1) * (two - one)

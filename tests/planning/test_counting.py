"""The counts of a plan, against what XLA compiles."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import jax
import pytest

from aifx.config import Config
from aifx.core.project import Project
from aifx.kinds import load_config
from aifx.machine.device_memory import extra_bytes
from aifx.parallel.layout import local_layout
from aifx.planning.counting import Counted, count, described_layout
from aifx.planning.fit import candidates, needed_bytes, smallest_machine
from aifx.planning.hardware import find_hardware
from aifx.planning.network import LinkUse
from aifx.planning.plan import Plan, make_plan
from aifx.planning.step_time import Assumptions, overlapped
from aifx.planning.work import Work, apply_settings
from aifx.planning.worker import counted_event
from aifx.programs.build import build
from aifx.specs import is_spec
from aifx.tasks.registry import describe_or_open_task, describe_task


def counted(project: Project, config: Config, hardware: str = "this") -> Counted:
    one = find_hardware(hardware)
    asked = {"attention": "xla"} if one.platform == "gpu" else {}
    layout = described_layout(config.mesh, one.num_devices, one.platform, one.device_kind)
    return count(config, describe_task(config, project), layout, asked)


@pytest.mark.slow
def test_counted_sizes_are_those_of_the_compiled_step(project: Project) -> None:
    config = load_config(project)
    found = counted(project, config)
    compiled = build(config, describe_task(config, project), local_layout(1)).train_step.lower().compile()
    stats: Any = compiled.memory_analysis()
    given = found.parameters + found.optimizer + found.batch
    assert given == pytest.approx(stats.argument_size_in_bytes, rel=0.001)
    extra = found.gradients + found.activations + found.copies + 2 * found.logits
    assert extra == pytest.approx(extra_bytes(compiled), rel=0.5)


@pytest.mark.slow
def test_counted_flops_are_the_models_own_and_those_of_recomputation(project: Project) -> None:
    """The model's formula counts no recomputation and no causal mask; the traced step has both."""
    config = load_config(project)
    found = counted(project, config)
    assert sum(found.product_flops.values()) == pytest.approx(found.model_flops, rel=0.1)
    remat = counted(project, apply_settings(config, {"model.remat": "full"}))
    assert sum(remat.product_flops.values()) > 1.15 * sum(found.product_flops.values())
    assert remat.activations < found.activations / 2


def test_a_model_with_frozen_arrays_is_counted(tmp_path: Path) -> None:
    (tmp_path / "aifx.toml").write_text('[task]\nkind = "tiny:TinyTask"\n')
    shutil.copy(Path(__file__).parents[1] / "training" / "tiny.py", tmp_path)
    project = Project(tmp_path)
    config = load_config(project)
    task = describe_or_open_task(config, project, tmp_path / "assets")
    found = count(config, task, described_layout(config.mesh, 1, "cpu", "cpu"), {})
    assert found.parameters == 4 * (2 * (8 * 8 + 8) + 8)
    assert found.frozen == 4 * 8
    assert found.activations > 0


@pytest.mark.slow
def test_devices_share_the_batch_and_each_holds_the_state(project: Project) -> None:
    config = load_config(project)
    one, eight = counted(project, config, "h100"), counted(project, config, "h100x8")
    assert (eight.parameters, eight.optimizer) == (one.parameters, one.optimizer)
    assert eight.units_per_step == one.units_per_step == 8 * 32
    assert eight.activations < one.activations / 4
    assert one.dtype == "bfloat16"


@pytest.mark.slow
def test_fsdp_divides_the_state_and_gathers_layers_in_the_loop(project: Project) -> None:
    config = apply_settings(load_config(project), {"model.scan_layers": True})
    one, data = (counted(project, config, name) for name in ("h100", "h100x8"))
    fsdp = counted(project, apply_settings(config, {"mesh.fsdp": 8}), "h100x8")
    assert fsdp.mesh == {"data": 1, "fsdp": 8, "tensor": 1, "context": 1}
    for name in ("parameters", "optimizer", "gradients"):
        assert getattr(one, name) / 8 <= getattr(fsdp, name) < 1.05 * getattr(one, name) / 8 + 100
    assert (fsdp.checkpoint, fsdp.activations) == (one.state, data.activations)
    assert sum(fsdp.product_flops.values()) == pytest.approx(sum(data.product_flops.values()), rel=0.01)
    layer = 2 * 10240  # of bfloat16 weights that a layer gathers: its norms have no axis that fsdp divides
    gathers = [one for one in fsdp.collectives if one.kind == "all-gather" and one.in_loop]
    assert sum(one.size for one in gathers) == pytest.approx(2 * layer, rel=0.02)  # on the way forward and back
    assert {(one.turns, one.group) for one in gathers} == {(2, tuple(range(8)))}
    scatters = [one for one in fsdp.collectives if one.kind == "reduce-scatter" and one.in_loop]
    assert sum(one.size for one in scatters) == pytest.approx(2 * layer, rel=0.02)  # added up in float32
    assert sum(one.size for one in data.collectives if one.kind == "all-reduce") >= one.gradients


@pytest.mark.representative("a plan")
def test_narrow_types_take_half_the_memory(project: Project) -> None:
    settings = ["train.parameter_dtype=bfloat16", "optimizer.moment_dtype=bfloat16"]
    whole, narrow = (counted(project, load_config(project, given)) for given in ([], settings))
    assert 2 * narrow.parameters == whole.parameters == narrow.gradients == whole.gradients
    assert narrow.optimizer == pytest.approx(0.75 * whole.optimizer, rel=0.01)  # the second moment stays float32
    assert narrow.checkpoint == narrow.parameters + narrow.optimizer


def test_adapters_are_what_a_plan_trains(project: Project) -> None:
    config = load_config(project, ["finetune.base=base", "finetune.adapter=lora", "lora.rank=2"])
    task = describe_task(config, project)
    found = Work(task, find_hardware("this"), {"attention": "xla"}).count(config)
    specs = jax.tree.leaves(task.model.specs(), is_leaf=is_spec)
    adapters = sum(spec.size for spec in specs if spec.kind == "weight")
    assert found.gradients == 4 * adapters
    assert found.optimizer == pytest.approx(2 * found.gradients, rel=0.01)
    assert found.frozen == 4 * (sum(spec.size for spec in specs) - adapters)


@pytest.mark.slow
def test_micro_batches_divide_the_activations(project: Project) -> None:
    config = load_config(project)
    whole = counted(project, config)
    quarter = counted(project, apply_settings(config, {"train.gradient_accumulation": 4}))
    assert quarter.activations < whole.activations / 3
    assert quarter.product_flops == whole.product_flops


@pytest.mark.slow
def test_the_quickest_settings_that_fit_come_first(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aifx.planning.fit.TRACED", 2)
    config, hardware = load_config(project), find_hardware("h100x2")
    work = Work(describe_task(config, project), hardware, {"attention": "xla"})
    fitting, least = candidates(config, work, 1)
    expected = {"train.global_batch_size": 8, "train.gradient_accumulation": 1, "model.remat": "none"}
    assert expected.items() <= fitting[0].settings.items()
    assert math.prod(size for key, size in fitting[0].settings.items() if key.startswith("mesh.")) == 2
    # The line through two counts gives what a third counts.
    whole = work.count(apply_settings(config, fitting[0].settings))
    assert fitting[0].needed_bytes == pytest.approx(needed_bytes(whole, hardware), rel=0.1)
    assert least.settings["model.remat"] == "full"
    assert "mesh.data" not in least.settings
    counted = needed_bytes(work.count(apply_settings(config, least.settings)), hardware)
    assert least.needed_bytes == pytest.approx(counted, rel=0.3)  # logits in blocks of a divided vocabulary


@pytest.mark.parametrize(("needed_gb", "name"), [(1, "v5e-1"), (65, "gh200"), (90, "v5p-8"), (10_000, None)])
def test_the_smallest_machine(needed_gb: int, name: str | None) -> None:
    found = smallest_machine(needed_gb * 10**9)
    if name is None or found is None:
        assert found is name
        return
    from aifx.planning.plan import capacity_of

    assert capacity_of(find_hardware(found)).value >= needed_gb * 10**9
    assert capacity_of(find_hardware(found)).value <= capacity_of(find_hardware(name)).value


def planned(project: Project, hardware: str, given: Assumptions, **settings: Any) -> Plan:
    config = apply_settings(load_config(project), settings)
    found = find_hardware(hardware)
    event = counted_event(found, counted(project, config, hardware), {})
    return make_plan(found, config, event, None, "", project.runs_path, given)


def test_time_energy_and_cost_follow_from_each_other(project: Project) -> None:
    plan = planned(project, "h100x8", Assumptions(price=2.5))
    time = plan.time
    computing = time.products_s.value + time.elementwise_s.value
    parts = max(computing, time.links_s.value) + time.exposed_s.value + time.update_s.value
    assert time.step_s.value == pytest.approx(parts)
    assert time.exposed_s.value > 0
    assert time.hours.value == pytest.approx(12 * time.step_s.value / 3600)
    assert time.units_per_s.value == pytest.approx(8 * 32 / time.step_s.value)
    assert time.units_per_s_per_device.value == pytest.approx(32 / time.step_s.value)
    assert time.cost is not None
    assert time.cost.value == pytest.approx(8 * 2.5 * time.hours.value)
    assert time.energy_kwh is not None
    assert time.energy_kwh.value == pytest.approx(8 * 0.7 * time.hours.value)
    assert time.mfu is not None
    assert 0 < time.mfu.value < 1


@pytest.mark.slow
def test_what_is_unknown_is_left_out(project: Project) -> None:
    """Google prints no power of a v5e; nobody named a price."""
    plan = planned(project, "v5e-1", Assumptions())
    assert (plan.time.cost, plan.time.energy_kwh) == (None, None)
    assert planned(project, "v5e-1", Assumptions(power_w=200)).time.energy_kwh is not None


@pytest.mark.slow
def test_hosts_and_the_layout_are_named(project: Project) -> None:
    plan = planned(project, "v5e-8", Assumptions())
    assert plan.layout.startswith("data=8:")
    many = planned(project, "v5e-16", Assumptions(), **{"train.global_batch_size": 16})
    assert any("needs 4 processes" in note for note in many.notes)


@pytest.mark.slow
def test_memory_adds_up(project: Project) -> None:
    memory = planned(project, "h100", Assumptions()).memory
    parts = [memory.parameters, memory.optimizer, memory.gradients, memory.activations, memory.logits,
             memory.temporaries, memory.batch]  # fmt: skip
    assert memory.total.value == pytest.approx(sum(part.value for part in parts))
    assert memory.headroom.value == memory.capacity.value - memory.total.value
    assert memory.capacity.value == 60e9  # three quarters, which JAX takes


def test_links_in_loops_are_hidden_but_for_the_first_and_the_last() -> None:
    def use(kind: str, seconds: float, turns: int) -> LinkUse:
        return LinkUse(kind, 8, turns, 1e9, seconds, "ICI", turns > 1, seconds / turns)

    gathers, scatters, last = use("all-gather", 3.0, 30), use("reduce-scatter", 2.0, 10), use("all-reduce", 0.5, 1)
    hidden, exposed = overlapped([gathers, scatters, last])
    assert hidden == pytest.approx(3.0 + 2.0 - 0.1 - 0.2)
    assert exposed == pytest.approx(0.5 + 0.1 + 0.2)
    assert overlapped([]) == (0.0, 0.0)

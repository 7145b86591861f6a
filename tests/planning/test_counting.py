"""What a plan counts, against what XLA compiles."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from aifx.config import Config, load_config
from aifx.core.project import Project
from aifx.machine.device_memory import extra_bytes
from aifx.parallel.layout import local_layout
from aifx.planning.counting import Counted, count
from aifx.planning.fit import apply_settings, candidates, needed_bytes, smallest_machine
from aifx.planning.hardware import find_hardware
from aifx.planning.plan import Assumptions, Plan, make_plan
from aifx.programs.build import build
from aifx.tasks.registry import describe_task


def counted(project: Project, config: Config, hardware: str = "this") -> Counted:
    one = find_hardware(hardware)
    asked = {"attention": "xla"} if one.platform == "gpu" else {}
    return count(config, describe_task(config, project), one.platform, one.device_kind, one.num_devices, asked)


def test_counted_sizes_are_those_of_the_compiled_step(project: Project) -> None:
    config = load_config(project)
    found = counted(project, config)
    compiled = build(config, describe_task(config, project), local_layout(1)).train_step.lower().compile()
    stats: Any = compiled.memory_analysis()
    given = found.parameters + found.optimizer + found.batch
    assert given == pytest.approx(stats.argument_size_in_bytes, rel=0.001)
    extra = found.gradients + found.activations + found.copies + 2 * found.logits
    assert extra == pytest.approx(extra_bytes(compiled), rel=0.5)


def test_counted_flops_are_the_models_own_and_those_of_recomputation(project: Project) -> None:
    """The model's formula counts no recomputation and no causal mask; the traced step has both."""
    config = load_config(project)
    found = counted(project, config)
    assert sum(found.product_flops.values()) == pytest.approx(found.model_flops, rel=0.1)
    remat = counted(project, apply_settings(config, {"model.remat": "full"}))
    assert sum(remat.product_flops.values()) > 1.15 * sum(found.product_flops.values())
    assert remat.activations < found.activations / 2


def test_devices_share_the_batch_and_each_holds_the_state(project: Project) -> None:
    config = load_config(project)
    one, eight = counted(project, config, "h100"), counted(project, config, "h100x8")
    assert (eight.parameters, eight.optimizer) == (one.parameters, one.optimizer)
    assert eight.units_per_step == one.units_per_step == 8 * 32
    assert eight.activations < one.activations / 4
    assert one.dtype == "bfloat16"


def test_micro_batches_divide_the_activations(project: Project) -> None:
    config = load_config(project)
    whole = counted(project, config)
    quarter = counted(project, apply_settings(config, {"train.gradient_accumulation": 4}))
    assert quarter.activations < whole.activations / 3
    assert quarter.product_flops == whole.product_flops


def test_the_quickest_settings_that_fit_come_first(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    config, hardware = load_config(project), find_hardware("h100x4")
    task = describe_task(config, project)

    def count_them(config: Config) -> Counted:
        return count(config, task, "gpu", hardware.device_kind, 4, {"attention": "xla"})

    fitting, least = candidates(config, hardware, 1, count_them)
    assert fitting[0].settings == {
        "train.global_batch_size": 8, "train.gradient_accumulation": 1, "model.remat": "none",
    }  # fmt: skip
    # The line through two counts gives what a third counts.
    whole = count_them(apply_settings(config, fitting[0].settings))
    assert fitting[0].needed_bytes == pytest.approx(needed_bytes(whole, hardware), rel=0.05)
    share = (least.needed_bytes + 1) / hardware.chip.memory_gb / 1e9  # type: ignore[union-attr]
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", str(share))
    assert least.settings in [one.settings for one in candidates(config, hardware, 1, count_them)[0]]
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", str(share / 2))
    assert candidates(config, hardware, 1, count_them)[0] == []


def test_a_batch_that_devices_cannot_share_is_rounded(project: Project) -> None:
    config, hardware = load_config(project), find_hardware("h100x3")
    task = describe_task(config, project)
    fitting, _ = candidates(
        config, hardware, 1, lambda config: count(config, task, "gpu", hardware.device_kind, 3, {"attention": "xla"})
    )
    assert fitting[0].settings["train.global_batch_size"] == 9


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
    event = {"asked": {}, **asdict(counted(project, config, hardware))}
    return make_plan(find_hardware(hardware), config, event, None, "", project.runs_path, given)


def test_time_energy_and_cost_follow_from_each_other(project: Project) -> None:
    plan = planned(project, "h100x8", Assumptions(price=2.5))
    time = plan.time
    parts = time.products_s.value + time.elementwise_s.value + time.collectives_s.value
    assert time.step_s.value == pytest.approx(parts)
    assert time.collectives_s.value > 0
    assert time.hours.value == pytest.approx(12 * time.step_s.value / 3600)
    assert time.units_per_s.value == pytest.approx(8 * 32 / time.step_s.value)
    assert time.cost is not None
    assert time.cost.value == pytest.approx(8 * 2.5 * time.hours.value)
    assert time.energy_kwh is not None
    assert time.energy_kwh.value == pytest.approx(8 * 0.7 * time.hours.value)
    assert time.mfu is not None
    assert 0 < time.mfu.value < 1


def test_what_is_unknown_is_left_out(project: Project) -> None:
    """Google prints no power of a v5e; nobody named a price."""
    plan = planned(project, "v5e-1", Assumptions())
    assert (plan.time.cost, plan.time.energy_kwh) == (None, None)
    assert planned(project, "v5e-1", Assumptions(power_w=200)).time.energy_kwh is not None


def test_hosts_and_the_layout_are_named(project: Project) -> None:
    plan = planned(project, "v5e-8", Assumptions())
    assert "data-parallel" in plan.layout
    many = planned(project, "v5e-16", Assumptions(), **{"train.global_batch_size": 16})
    assert any("needs 4 processes" in note for note in many.notes)


def test_memory_adds_up(project: Project) -> None:
    memory = planned(project, "h100", Assumptions()).memory
    parts = [memory.parameters, memory.optimizer, memory.gradients, memory.activations, memory.logits,
             memory.temporaries, memory.batch]  # fmt: skip
    assert memory.total.value == pytest.approx(sum(part.value for part in parts))
    assert memory.headroom.value == memory.capacity.value - memory.total.value
    assert memory.capacity.value == 60e9  # three quarters, which JAX takes

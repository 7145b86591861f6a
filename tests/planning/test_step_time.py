"""The time of a step, from its counts; for no preset is it shorter than the hardware allows."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import inprocess
import pytest

from aifx.commands.console.output import Output
from aifx.commands.plan.command import between, count, print_plan, print_table, seconds
from aifx.core.project import Project
from aifx.kinds import load_config
from aifx.models.decoder.section import PRESETS as DECODERS
from aifx.models.decoder.section import window_of
from aifx.models.resnet.section import PRESETS as RESNETS
from aifx.models.vit.section import PRESETS as VITS
from aifx.planning.figures import Figure, rates_of
from aifx.planning.hardware import Hardware, find_hardware, hardware_names
from aifx.planning.plan import Plan, make_plan
from aifx.planning.planner import PlanList, keep_plan
from aifx.planning.step_time import SPREAD, Assumptions, mfu_of, step_time
from aifx.planning.work import Work
from aifx.planning.worker import counted_event
from aifx.runs.page import run_page
from aifx.runs.reading import read_predictions
from aifx.tasks.registry import describe_task

LONG = 131_072


def count_preset(root: Path, preset: str, seq_len: int, hardware: Hardware, **model: Any) -> tuple[Any, dict[str, Any]]:
    """The task of a preset, and the event of its count: a row for each device."""
    decoder = preset in DECODERS
    vocab = DECODERS[preset].get("vocab_size", 32000) if decoder else 0
    data = (
        f"vocab_size = {vocab}\nseq_len = {seq_len}"
        if decoder
        else 'image_size = [224, 224]\nchannels = 3\nclasses = ["whole", "broken"]'
    )
    values = {"preset": preset, "scan_layers": True, **model} if decoder else {"preset": preset, **model}
    family = "" if decoder else f'family = "{"vit" if preset in VITS else "resnet"}"\n'
    lines = "\n".join(
        f"{key} = {str(value).lower() if isinstance(value, bool) else repr(value)}" for key, value in values.items()
    )
    (root / "aifx.toml").write_text(
        f'[task]\nkind = "{"language" if decoder else "vision"}"\n[data]\n{data}\n[model]\n{family}{lines}\n'
        f"[train]\nglobal_batch_size = {hardware.num_devices}\n"
    )
    project = Project(root)
    config = load_config(project)
    task = describe_task(config, project)
    work = Work(task, hardware)
    return task, counted_event(hardware, work.count(config), work.asked)


def least(task: Any, rows: int) -> int:
    """Operations that a model needs: its formula also counts pairs that the mask hides, and gradients of images."""
    model, section = task.model, task.model.section
    whole: int = model.flops(rows)
    if hasattr(model, "num_patches"):
        patch = section.patch_size**2 * model.image_shape[2]
        return whole - 2 * rows * model.num_patches * patch * section.embed_dim
    if not hasattr(model, "seq_len"):
        return whole
    windows = (min(window_of(section, layer) or LONG, model.seq_len) for layer in range(section.num_layers))
    hidden = sum(window * (window - 1) // 2 for window in windows)  # of the pairs that the formula counts
    return whole - 12 * rows * hidden * section.num_heads * model.head_dim


def mfu(hardware: Hardware, event: dict[str, Any]) -> float:
    rates = rates_of(hardware, list(event["product_flops"]), 1)
    time = step_time(event, None, [], rates, is_cpu=hardware.platform == "cpu")
    found = mfu_of(hardware, event, time.step)
    assert found is not None
    return found[0]


def test_a_long_sequence_is_not_faster_than_the_hardware(tmp_path: Path) -> None:
    """Its attention, in kernels whose loops the mask bounds, is most of the step."""
    hardware = find_hardware("h100")
    task, event = count_preset(tmp_path, "llama3.2-1b", LONG, hardware, max_seq_len=LONG)
    assert sum(event["product_flops"].values()) >= least(task, 1) > 0.5 * event["model_flops"]
    assert 0.3 < mfu(hardware, event) <= 1


def sizes(preset: str) -> list[int]:
    if preset not in DECODERS:
        return [0]
    return [1024] if preset.startswith("gpt2") else [8192, LONG]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "seq_len"), [(preset, size) for preset in (*DECODERS, *VITS, *RESNETS) for size in sizes(preset)]
)
def test_no_preset_exceeds_the_peak_of_any_hardware(preset: str, seq_len: int, tmp_path: Path) -> None:
    """And takes the operations that its mask leaves at least. One device of each kind of chip: several also wait for
    their links."""
    names = [*hardware_names()[1:], "this"]
    ones = {(one.platform, chip_of(one)): replace(one, num_devices=1) for one in map(find_hardware, names)}
    counts: dict[str, dict[str, Any]] = {}
    for platform, like in (("gpu", "h100"), ("tpu", "v5e-1"), ("cpu", "this")):
        extra = {"max_seq_len": seq_len} if preset in DECODERS and not preset.startswith("gpt2") else {}
        task, counts[platform] = count_preset(tmp_path, preset, seq_len, find_hardware(like), **extra)
        assert sum(counts[platform]["product_flops"].values()) >= least(task, 1), platform
        assert counts[platform]["uncounted"] == {}
    assert len(ones) > 25
    for (platform, chip), hardware in ones.items():
        event = counts[platform]
        if hardware.chip is not None and "bfloat16" not in hardware.chip.peak_tflops:  # T4
            event = {**event, "dtype": "float16", "product_flops": {"float16": sum(event["product_flops"].values())}}
        assert mfu(hardware, event) <= 1, chip


def chip_of(hardware: Hardware) -> str:
    return hardware.chip.name if hardware.chip else "processor"


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The event of a small model's count for an H100."""
    model = {"num_layers": 2, "embed_dim": 64, "num_heads": 2, "mlp_dim": 128}
    return count_preset(tmp_path_factory.mktemp("counted"), "tiny", 64, find_hardware("h100"), **model)[1]


@pytest.fixture
def planned(project: Project, counted: dict[str, Any]) -> Any:
    """Makes plans from that count, with some values changed."""
    config = load_config(project)

    def make(name: str = "h100", **changes: Any) -> Plan:
        given = Assumptions(price=2.0)
        return make_plan(find_hardware(name), config, {**counted, **changes}, None, "", project.runs_path, given)

    return make


def test_what_follows_from_the_step_time_has_an_interval(planned: Any) -> None:
    time = planned().time
    slow, fast = SPREAD
    for figure in (time.mfu, time.units_per_s, time.units_per_s_per_device):
        assert (figure.low, figure.high) == pytest.approx((slow * figure.value, fast * figure.value))
    for figure in (time.step_s, time.hours, time.energy_kwh, time.cost):
        assert (figure.low, figure.high) == pytest.approx((figure.value / fast, figure.value / slow))
    assert (time.products_s.low, time.update_s.high) == (None, None)
    assert between(Figure(2.0, "estimated", "", 1.6, 2.4), seconds) == "1.6 to 2.4 s"
    assert between(Figure(1.0, "estimated", "", 0.85, 1.25), seconds) == "850 ms to 1.25 s"
    assert between(Figure(12_345.6, "estimated", "", 9_753.02, 14_567.8), count) == "9,750 to 14,600"
    assert between(Figure(2.0, "estimated", ""), seconds) == "2 s"


def test_a_time_that_no_device_reaches_is_unknown(planned: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """As if operations of a loop were missing, which turns as often as the device says."""
    plan = planned(model_flops=10**18, uncounted={"while": 2})
    assert plan.time is None
    assert any("MFU" in note and f"{plan.flops_per_step.value:.4g}" in note for note in plan.notes)
    assert any("2 while" in note for note in plan.notes)
    print_plan(Output(), plan)
    printed = capsys.readouterr()
    assert "unknown" in printed.out
    assert "MFU" in printed.err
    print_table(Output(), [plan, planned()])
    header, unknown, known = capsys.readouterr().out.splitlines()
    assert "unknown" in unknown
    assert "tokens/s" in known
    assert header.split()[0] == "hardware"


def test_a_run_shows_the_intervals_of_its_plan(planned: Any, project: Project) -> None:
    run, plan = project.run("main"), planned()
    run.path.mkdir(parents=True)
    keep_plan(run, PlanList([plan]))
    found, time = {one.quantity: one for one in read_predictions(run, [])}, plan.time
    for quantity, figure in (("step_time_s", time.step_s), ("mfu", time.mfu), ("memory_bytes", plan.memory.total)):
        one = found[quantity]
        assert (one.predicted, one.low, one.high) == (figure.value, figure.low, figure.high)
    run.config.touch()
    printed = inprocess.run(["runs", "show", "main"], project.root, dict(os.environ)).stdout
    interval = f"{time.step_s.low:.3g} s to {time.step_s.high:.3g} s"
    assert interval in printed
    assert interval in run_page(run, project)


def test_a_processor_above_the_estimate_of_its_peak_has_no_mfu(planned: Any) -> None:
    plan = planned("this", model_flops=10**18)
    assert plan.time.mfu is None
    assert plan.time.step_s.value > 0
    assert any("MFU" in note for note in plan.notes)


def test_hardware_that_nobody_published_a_rate_of_is_named(planned: Any) -> None:
    for name, is_named in (("l40s", True), ("h100", False)):
        assert any("NVIDIA L40S" in note for note in planned(name).notes) == is_named


def test_a_compiled_step_of_an_accelerator_takes_as_long_as_its_bytes_at_least(counted: dict[str, Any]) -> None:
    rates = rates_of(find_hardware("h100"), list(counted["product_flops"]), 1)

    def step(other: float) -> float:
        traffic = {"unknown_loops": 0, "product_bytes": 0.0, "other_bytes": other}
        return step_time(counted, traffic, [], rates, is_cpu=False).step

    assert step(0.0) == step_time(counted, None, [], rates, is_cpu=False).step
    assert step(3.35e12) == pytest.approx(1.0, rel=0.01)  # a second of an H100's memory

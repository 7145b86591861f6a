"""The suite "train" over a project that trains in a moment."""

from __future__ import annotations

import itertools
import re
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from aifx.benchmarking.results import Measured
from aifx.benchmarking.suites import SUITES, Bench
from aifx.benchmarking.train import measure
from aifx.benchmarking.train.growth import grow
from aifx.benchmarking.train.rounds import FILL, Looping, Series
from aifx.benchmarking.train.subject import Parts, Subject, uncached
from aifx.core.errors import ConfigError, EnvironmentFault
from aifx.machine.device_memory import peak_bytes, room

TASK = Path(__file__).parents[1] / "training" / "tiny.py"
SETTINGS = ("task.kind=tiny:TinyTask", "train.num_steps=12", "train.global_batch_size=8", "model.num_layers=1")
BASE = Measured(name="train.step", samples_s=[1e-3])


@pytest.fixture
def bench(tmp_path):
    """A bench of the tiny project, with settings."""
    (tmp_path / "aifx.toml").write_text("")
    shutil.copy(TASK, tmp_path)

    def of(*settings: str, quick: bool = True, slice_s: float = 0.02) -> Bench:
        suite = replace(SUITES["train"], slice_s=slice_s, quick_s=slice_s)
        return Bench(suite, quick, {"set": [*SETTINGS, *settings]}, folder=tmp_path)

    return of


def is_no_growth(measured: Measured) -> bool:
    return measured.name != "train.growth"


@pytest.fixture
def subject(bench, tmp_path):
    def of(*settings: str) -> Subject:
        made = bench(*settings)
        found = Subject(made, made.config, tmp_path / "run")
        found.begin()
        return found

    return of


@pytest.mark.slow
def test_the_step_is_measured_part_by_part(bench, caplog):
    whole = bench(quick=False)
    found = {measured.key: measured for measured in measure(whole)}
    names = {measured.name.removeprefix("train.") for measured in found.values()}
    assert names == {"trace", "compile", "step", "dispatch", "forward", "forward_backward", "backward", "optimizer",
                     "loop", "data_wait", "overhead", "growth"}  # fmt: skip
    step = found["train.step"]
    middle = float(np.median(step.samples_s))
    assert step.unit == "rows"
    assert step.figures["units_per_s"] == pytest.approx(8 / middle)
    assert step.flops == step.figures["model_flops"] == 6 * 8 * 8**2
    assert step.figures["mfu"] == pytest.approx(step.bound_s / middle)
    assert step.figures["peak_memory_bytes"] > 2 * 8 * 8 * 4  # the matrix and its moment, at the least
    assert len(found["train.dispatch"].samples_s) == len(step.samples_s)
    assert len(found["train.backward"].samples_s) == len(found["train.forward_backward"].samples_s)
    assert len(found["train.compile"].samples_s) == len(found["train.trace"].samples_s) == 1
    assert found["train.overhead"].figures["thread_cpu_s"] > 0
    assert found["train.loop"].figures["overhead_share"] is not None
    assert len(found["train.data_wait"].samples_s) == len(found["train.loop"].samples_s)
    # No counter here, or one that was read: never nothing.
    assert (step.figures["units_per_joule"] is None) == any("rows a joule" in note for note in caplog.messages)

    grown = [m for m in found.values() if m.name == "train.growth"]
    assert {(m.params["axis"], m.params["value"]): m.flops for m in grown} == {
        ("batch", 4): step.flops / 2, ("batch", 8): step.flops, ("batch", 16): 2 * step.flops,
        ("depth", 1): step.flops, ("depth", 2): 2 * step.flops,
    }  # fmt: skip
    assert [m.params["value"] for m in grown if m.same_as == "train.step"] == [8, 1]
    assert any("train.growth seq" in note and "data.seq_len" in note for note in caplog.messages)
    assert any("train.growth depth" in note and "model.num_layers = 1" in note for note in caplog.messages)


def test_quick_grows_the_batch_alone(bench, monkeypatch, caplog):
    quick = bench()
    monkeypatch.setattr("aifx.benchmarking.train.growth.room", lambda devices: 10)
    found = list(grow(quick, BASE, quick.folder))
    assert [m.params for m in found] == [{"axis": "batch", "value": 8}]
    assert any("train.global_batch_size=4 is left out" in note and "10 are free" in note for note in caplog.messages)


def test_a_point_that_the_configuration_refuses_is_noted(bench, caplog):
    uneven = bench("train.gradient_accumulation=8")
    found = list(grow(uneven, BASE, uneven.folder))
    assert [m.params["value"] for m in found] == [8]
    assert any("train.global_batch_size=4 is left out" in note for note in caplog.messages)


def test_a_bench_that_cannot_begin_says_why(bench):
    with pytest.raises(ConfigError, match=r"train.devices = 4096"):
        list(measure(bench("train.devices=4096")))


@pytest.mark.slow
def test_a_step_that_memory_does_not_hold_is_told_with_what_helps(bench, monkeypatch, caplog):
    def begin(self):
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 12 bytes.\nmore")

    monkeypatch.setattr(Subject, "begin", begin)
    full = bench("model.num_layers=3")
    with pytest.raises(EnvironmentFault, match="memory") as told:
        list(measure(full))
    assert re.match(r"RESOURCE_EXHAUSTED: .* 12 bytes\.$", told.value.why)
    assert len(list(grow(full, BASE, full.folder))) == 1
    assert any(re.search("train.growth: train.global_batch_size=4.*memory", note) for note in caplog.messages)


@pytest.mark.slow
def test_what_was_seen_before_the_device_was_lost_is_told(bench, monkeypatch):
    block, warm, calls = Looping.block, Series.warm, []

    def lose(self, steps):
        calls.append(steps)
        if len(calls) == 2:
            raise RuntimeError("device lost")
        return block(self, steps)

    def warm_up(self, limit_s):
        warm(self, limit_s)
        self.alone_s = 1e-3  # so that there are several rounds

    monkeypatch.setattr(Looping, "block", lose)
    monkeypatch.setattr(Series, "warm", warm_up)
    seen = []
    with pytest.raises(RuntimeError, match="device lost"):
        seen.extend(measured.name for measured in measure(bench()))
    # list.extend keeps what came before the exception.
    assert {"train.step", "train.forward", "train.backward", "train.optimizer", "train.loop"} <= {*seen}
    assert "train.growth" not in seen


@pytest.mark.slow
def test_a_loss_that_is_not_finite_and_a_full_memory_cost_no_more_than_they_must(bench, monkeypatch, caplog):
    monkeypatch.setattr("aifx.benchmarking.train.rounds.room", lambda devices: 1)
    tight = bench("data.poison_steps=[4]", "guards.non_finite=stop")
    names = {measured.name.removeprefix("train.") for measured in itertools.takewhile(is_no_growth, measure(tight))}
    names -= {"loop", "data_wait"}  # a round on other batches, from a new state, has them
    assert names == {"trace", "compile", "step", "dispatch", "overhead"}
    assert any("is not finite" in note for note in caplog.messages)
    assert any("forward, backward and optimizer" in note for note in caplog.messages)


@pytest.mark.slow
def test_the_parts_are_those_of_the_step(subject):
    one = subject("train.gradient_accumulation=2")
    step = one.programs.step

    def parted(state, frozen, batch):
        loss, gradients = step.loss_and_gradients(state, frozen, batch)
        norm, rate = optax.tree.norm(gradients), step.config.optimizer.learning_rate * step.share(state)
        state = step.update(state, gradients, norm)
        return state, jnp.stack([loss, norm, rate]), step.loss(state, frozen, batch)

    later, numbers, after = jax.jit(parted)(one.state, one.frozen, one.batches[0])
    parts = Parts(one)
    assert float(parts.forward()) == pytest.approx(float(numbers[0]), rel=1e-5)  # of the first batch
    parts.forward_backward()
    assert np.isfinite(parts.optimizer())
    assert int(one.state.step) == 1
    one.begin()
    np.testing.assert_allclose(one.step(), numbers, rtol=1e-5)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), one.state, later)
    assert 0 < float(after) != float(numbers[0])


@pytest.mark.slow
def test_the_loop_that_is_measured_is_that_of_a_run(subject):
    one = subject()
    looping = Looping(one)
    records = looping.block(6)
    assert [record.step for record in records] == [4, 5, 6, 7, 8, 9]
    lines = one.run.metrics.read_text().splitlines()
    assert len(lines) == 12
    assert not one.run.checkpoints.exists()
    wall_s, cpu_s = looping.alone_s(20)
    assert wall_s > 0
    assert cpu_s > 0


def test_a_series_is_one_call_ahead():
    made: list[jax.Array] = []

    def advance() -> jax.Array:
        made.append(jnp.zeros(()))
        return made[-1]

    series = Series(advance)
    series.warm(0.01)
    before = len(made)
    calls = series.block(0.0, least=4, most=4)
    assert len(made) - before == calls == FILL + 4 * series.calls
    assert len(series.seconds) == len(series.dispatch_s) == 4
    assert series.medians == [pytest.approx(np.median(series.seconds))]


def test_compiled_programs_are_neither_taken_from_the_cache_nor_kept(tmp_path):
    before = jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    try:
        with uncached():
            jax.jit(lambda x: x * 3.25).lower(1.0).compile()
        assert not list(tmp_path.iterdir())
        jax.jit(lambda x: x * 4.25).lower(1.0).compile()
        assert list(tmp_path.iterdir())
    finally:
        jax.config.update("jax_compilation_cache_dir", before[0])
        jax.config.update("jax_persistent_cache_min_compile_time_secs", before[1])
        with uncached():
            pass


def test_room_is_what_the_control_group_leaves(tmp_path):
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("400\n")
    assert room(jax.local_devices()[:1], tmp_path) == 600
    (tmp_path / "memory.max").write_text("max\n")
    assert room(jax.local_devices()[:1], tmp_path) > 600


@pytest.mark.parametrize("told", [None, {}, {"bytes_limit": -1, "bytes_in_use": 5, "peak_bytes_in_use": -1}, OSError()])
def test_memory_that_is_not_counted_is_not_told(told):
    def stats():
        if isinstance(told, Exception):
            raise told
        return told

    devices = [SimpleNamespace(platform="gpu", memory_stats=stats)]
    assert room(devices) is None
    assert peak_bytes(devices) is None
    counted = {"bytes_limit": 100, "bytes_in_use": 30, "peak_bytes_in_use": 60}
    devices.append(SimpleNamespace(platform="gpu", memory_stats=lambda: counted))
    assert (room(devices), peak_bytes(devices)) == (70, 60)

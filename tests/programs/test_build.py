"""Programs from a configuration and a layout alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from aifx.core.errors import ConfigError
from aifx.core.project import Project
from aifx.kinds import load_config
from aifx.parallel.layout import Layout, abstract_layout, local_layout
from aifx.programs.build import Programs, build, tree_bytes
from aifx.programs.serving import one_row
from aifx.tasks import describe_task
from jax_kernels.dispatch import Choices, using

SMALL = [
    "model.num_layers=1",
    "model.embed_dim=16",
    "data.seq_len=32",
    "data.vocab_size=300",
    "train.global_batch_size=8",
]


def programs_of(folder: Path, layout: Layout, *settings: str) -> Programs:
    """The programs of a folder that holds a configuration and nothing else."""
    (folder / "aifx.toml").touch()
    project = Project(folder)
    config = load_config(project, [*SMALL, *settings], {})
    return build(config, describe_task(config, project), layout)


@pytest.mark.slow
@pytest.mark.parametrize("num_devices", [1, 8])
def test_neither_data_nor_devices_are_needed(tmp_path: Path, num_devices: int) -> None:
    programs = programs_of(tmp_path, abstract_layout(num_devices, "tpu", "TPU v5 lite"))
    state, numbers = programs.train_step.trace()
    assert numbers.shape == (3,)
    assert jax.tree.map(lambda x: x.shape, state) == jax.tree.map(lambda x: x.shape, programs.abstract[0])
    assert programs.dtype_name == "bfloat16"
    assert set(programs.eval_step.trace()) == {"loss"}
    writing = one_row(programs.decoding, programs.decoding.params, 32)
    assert writing.prefill(16).trace()[1].drawn.token.shape == writing.decode(1).trace()[1].token.shape == (1,)
    assert list(tmp_path.iterdir()) == [tmp_path / "aifx.toml"]


@pytest.mark.slow
def test_a_program_is_traced_once(tmp_path: Path) -> None:
    """Tracing takes longer than compiling a small model: `aifx eval` asks for the results' names before it computes."""
    programs = programs_of(tmp_path, local_layout(1))
    function, traces = programs.eval_step.function, []

    def counted(*arguments: Any) -> Any:
        traces.append(arguments)
        return function(*arguments)

    program = replace(programs.eval_step, function=counted)
    names = set(program.trace())
    state, frozen = programs.init()
    _, _, batch = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), program.arguments)
    assert set(program(state.params, frozen, programs.place(batch))) == names
    assert program.jaxpr() is not None
    assert len(traces) == 1


def test_dropout_takes_an_attention_without_kernels_in_training_alone(tmp_path: Path) -> None:
    """And the average has the shapes of the parameters."""
    settings = ("model.dropout=0.1", "optimizer.ema_decay=0.99")
    programs = programs_of(tmp_path, abstract_layout(1, "cpu", "cpu"), *settings)
    called = {}
    for program in (programs.train_step, programs.eval_step):
        choices = Choices()
        with using(choices):
            results = program.trace()
        called[program.name] = {op.name for op, _ in choices.seen_calls.values()}
        if program.name == "train_step":
            assert jax.tree.map(lambda x: x.shape, results[0].ema) == jax.tree.map(lambda x: x.shape, results[0].params)
    assert called["eval_step"] - called["train_step"] == {"attention"}


@pytest.mark.slow
def test_the_bytes_of_the_state_are_those_of_its_arrays(tmp_path: Path) -> None:
    programs = programs_of(tmp_path, local_layout(1))
    size = programs.state_bytes()
    state, frozen = programs.init()
    assert size["parameters"] == size["gradients"] == tree_bytes(state.params) == 4 * programs.num_parameters
    assert size["optimizer"] == tree_bytes(state.opt_state)
    assert size["frozen"] == tree_bytes(frozen) == 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_moments_take_half_the_memory_if_asked(tmp_path: Path, kind: str) -> None:
    asked = "optimizer.moment_dtype=bfloat16"
    whole, half = (programs_of(tmp_path, local_layout(1), f"optimizer.kind={kind}", *more) for more in ((), (asked,)))
    of_whole, of_half = (jax.tree.leaves(programs.abstract[0].opt_state) for programs in (whole, half))
    changed = [(x.dtype.name, y.dtype.name) for x, y in zip(of_whole, of_half, strict=True) if x.dtype != y.dtype]
    assert set(changed) == {("float32", "bfloat16")}
    state, frozen = half.init()
    batch = {name: jax.numpy.ones(x.shape, x.dtype) for name, x in half.batch(8).items()}
    state, numbers = half.train_step(state, frozen, batch)
    assert jax.tree.map(lambda x: x.dtype, state) == jax.tree.map(lambda x: x.dtype, half.abstract[0])
    assert numbers[0] > 0


@pytest.mark.slow
def test_every_program_of_the_step_is_named_in_its_executable(tmp_path: Path) -> None:
    programs = programs_of(tmp_path, local_layout(1))
    for program in (programs.train_step, programs.eval_step, *programs.parts.values()):
        assert f"module @jit_{program.name} " in program.lower().as_text()


def test_a_model_of_images_does_not_write(tmp_path: Path) -> None:
    settings = ["task.kind=vision", "data.channels=1", "data.image_size=[28,28]", 'data.classes=["a", "b"]']
    (tmp_path / "aifx.toml").touch()
    project = Project(tmp_path)
    config = load_config(project, settings, {})
    programs = build(config, describe_task(config, project), local_layout(1))
    assert not programs.can_decode


def test_a_mesh_of_another_size_is_refused(tmp_path: Path) -> None:
    (tmp_path / "aifx.toml").write_text("[mesh]\ndata = 3\n[train]\ndevices = 2\n")
    with pytest.raises(ConfigError, match=r"mesh\.data = 3.*train\.devices = 2"):
        load_config(Project(tmp_path), [], {})
    config = load_config(Project(tmp_path), ["train.devices=all"], {})
    with pytest.raises(ConfigError, match=r"mesh\.data = 3"):
        local_layout("all", config.mesh)

"""Which arrays a head reads, and a step that trains it alone."""

from __future__ import annotations

from pathlib import Path

import jax
import pytest
from test_build import programs_of

from aifx.core.errors import ConfigError
from aifx.models.base import Head
from aifx.parallel.context import ForwardContext
from aifx.parallel.layout import local_layout
from aifx.programs.build import tree_bytes
from aifx.programs.state import freeze_backbone, head_names

FROZEN = ["finetune.freeze=backbone", "finetune.base=base"]


@pytest.mark.parametrize(
    ("settings", "names"),
    [(["model.tie_embeddings=true"], {"embedding/token"}), (["model.tie_embeddings=false"], {"output"})],
)
def test_the_head_is_what_the_last_projection_reads(tmp_path: Path, settings: list[str], names: set[str]) -> None:
    programs = programs_of(tmp_path, local_layout(1), *settings)
    assert head_names(programs.model, ForwardContext(programs.layout)) == names


def test_only_the_head_has_gradients_and_optimizer_state(tmp_path: Path) -> None:
    whole = programs_of(tmp_path, local_layout(1), "model.tie_embeddings=false")
    programs = programs_of(tmp_path, local_layout(1), "model.tie_embeddings=false", *FROZEN)
    size = programs.state_bytes()
    head = tree_bytes(programs.abstract[0].params["output"])
    assert size["gradients"] == head
    assert head * 2 <= size["optimizer"] < head * 2 + 64
    assert size["parameters"] == whole.state_bytes()["parameters"]
    assert programs.num_parameters == whole.num_parameters
    state, frozen = programs.abstract
    batch = programs.batch(8)
    flops = [p.parts["forward_backward"].lower().cost_analysis()["flops"] for p in (whole, programs)]  # type: ignore[index]
    assert flops[1] < 0.7 * flops[0]
    gradients = jax.eval_shape(programs.step.loss_and_gradients, state, frozen, batch)[1]
    assert [leaf.shape for leaf in jax.tree.leaves(gradients)] == [(16, 300)]


def test_a_head_without_weights_cannot_be_trained_alone(tmp_path: Path) -> None:
    programs = programs_of(tmp_path, local_layout(1))

    class Fixed:
        def specs(self):
            return programs.model.specs()

        def head(self, params, ctx):
            return Head(jax.numpy.eye(16))

    with pytest.raises(ConfigError, match="leaves nothing to train"):
        freeze_backbone(Fixed(), programs.specs, ForwardContext(programs.layout))

"""Imported models compute what transformers computes: stored logits of tiny models, with their origin beside them."""

from __future__ import annotations

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import peer_models
import pytest
from written import write_tokens

from aifx.core.errors import ConfigError
from aifx.hub.architectures import architectures, expressed_by
from aifx.hub.importing import import_model
from aifx.loading.restore import restore_run
from aifx.models.hub import HubConfig
from aifx.parallel.context import ForwardContext

BOUND = 5e-4
CLEAR = 1e-3  # by how much the likeliest token must lead for the texts to be the same


def restored(folder, project):
    made = import_model(str(folder), project)
    return restore_run(project.run(made.run), project)


def logits_of(trained, tokens):
    """`[rows, seq, vocab]`."""
    model, ctx = trained.task.model, ForwardContext(trained.layout)

    @jax.jit
    def forward(params, tokens):
        return model.head(params, ctx)(model.hidden(params, {"inputs": tokens}, ctx))

    return np.asarray(forward(trained.params, jnp.asarray(tokens, jnp.int32))).reshape(*tokens.shape, -1)


# Of an architecture, others differ in one setting, such as tied embeddings.
VARIANTS = ("mistral-tied", "qwen3-tied", "gpt2-wide-untied", "llama-linear-biased", "qwen2-windows")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.representative("a model in and out")) if name in VARIANTS else name
        for name in peer_models.FIXED
    ],
)
def test_logits_and_greedy_text_are_those_of_transformers(name, hub_models, empty_project, stored_logits):
    greedy, gaps = stored_logits[f"{name}/greedy"].astype(int), stored_logits[f"{name}/gaps"]
    read = np.concatenate([peer_models.inputs(), greedy[:, :-1]], axis=1)
    got = logits_of(restored(hub_models(name), empty_project), read)
    np.testing.assert_allclose(got[:, peer_models.KEPT], stored_logits[name], atol=BOUND)
    chosen = got[:, peer_models.SEQ - 1 :].argmax(-1)
    # After a token that was nearly another, the texts may differ.
    is_clear = np.logical_and.accumulate(gaps > CLEAR, axis=1)
    assert is_clear.any()
    np.testing.assert_array_equal(chosen[is_clear], greedy[is_clear])


def capped(hub_models, name):
    """The `config.json` of a case, with a cap on attention's scores that changes all logits."""
    config = json.loads((hub_models(name) / "config.json").read_text())
    return {**config, "attn_logit_softcapping": 0.01}


def test_gemma_3_has_no_use_for_the_soft_cap_of_attention(hub_models):
    """As transformers' class, whose attention never reads the number. That of Gemma 2 does."""
    read = {}
    for name in ("gemma2", "gemma3"):
        family, architecture = architectures()[f"{name.capitalize()}ForCausalLM"]
        read[name] = architecture.read(HubConfig(capped(hub_models, name), "config.json", ""))
    assert read["gemma2"]["attention_softcap"] == 0.01
    assert "attention_softcap" not in read["gemma3"]
    section = family.section(**read["gemma3"])
    assert expressed_by(family, section, None) is architecture
    with pytest.raises(ConfigError, match=r"Gemma3ForCausalLM .* model\.attention_softcap"):
        expressed_by(family, section.model_copy(update={"attention_softcap": 0.01}), None)


@pytest.mark.slow
def test_logits_of_a_gemma_3_with_that_cap_are_those_without(hub_models, tmp_path, empty_project, stored_logits):
    folder = shutil.copytree(hub_models("gemma3"), tmp_path / "capped")
    (folder / "config.json").write_text(json.dumps(capped(hub_models, "gemma3")))
    got = logits_of(restored(folder, empty_project), peer_models.inputs())
    np.testing.assert_allclose(got[:, peer_models.KEPT], stored_logits["gemma3"], atol=BOUND)


@pytest.mark.slow
def test_greedy_text_from_the_cache(hub_models, empty_project, stored_logits):
    """Past its window, with rotary positions that are scaled for some layers: the cache reads as far back."""
    trained = restored(hub_models("qwen2-windows"), empty_project)
    programs, *arrays = trained.programs("none")
    decoding = programs.as_decoding(*arrays)
    prompt = peer_models.inputs()[0].tolist()
    written = list(write_tokens(*decoding, prompt, max_tokens=peer_models.NEW, temperature=0.0))
    assert stored_logits["qwen2-windows/gaps"][0].min() > CLEAR
    assert written == stored_logits["qwen2-windows/greedy"][0].tolist()

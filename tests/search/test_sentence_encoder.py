"""Sentence encoders of the BERT family: vectors against a forward pass in NumPy, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from inprocess import run
from tiny_encoder import vector_of, write_encoder

from aifx.core.errors import AifxError
from aifx.search.model_embedders import SentenceEmbedder

TEXTS = ["the whale", "The WHALES sea", "a", "the sea a e i o u the whale zzq", "sea " * 40, None, " ", "x y z"]


@pytest.fixture(scope="module", params=["pooling_mode_mean_tokens", "pooling_mode_cls_token"])
def encoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    return write_encoder(tmp_path_factory.mktemp("encoder") / "model", request.param), request.param


def test_vectors_are_those_of_numpy(encoder: tuple[Path, str]) -> None:
    """Whatever stands beside a text in a batch, and however much padding that is."""
    folder, pooling = encoder
    found = SentenceEmbedder(str(folder)).embed(pa.array(TEXTS))
    for text, vector in zip(TEXTS, found, strict=True):
        wanted = vector_of(folder, text, pooling) if text and text.strip() else np.zeros(24)
        np.testing.assert_allclose(vector, wanted, atol=2e-6)


@pytest.mark.slow
def test_index_and_search(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "model")
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS[:4]))

    def aifx(*args: str) -> Any:
        return run(["data", *args, "--root", "datasets"], tmp_path, {})

    assert aifx("add", "corpus", "texts.jsonl", "--license", "MIT").returncode == 0
    done = aifx("index", "corpus", "--embedder", "./model", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["index"]["embedder"]["dims"] == 24
    done = aifx("search", "corpus", "the whale", "--json")
    hits = json.loads(done.stdout)["queries"][0]["hits"]
    wanted = [float(vector_of(folder, "the whale", "") @ vector_of(folder, text or "", "")) for text in TEXTS[:4]]
    assert [hit["text"] for hit in hits] == [TEXTS[index] for index in np.argsort(wanted)[::-1]]
    np.testing.assert_allclose([hit["score"] for hit in hits], sorted(wanted, reverse=True), atol=1e-5)

    folder.rename(tmp_path / "moved")
    refused = aifx("search", "corpus", "the whale")
    assert refused.returncode == 2
    assert "no folder" in refused.stderr
    assert aifx("search", "corpus", "the whale", "--embedder", "./moved", "--json").stdout == done.stdout
    write_encoder(folder, seed=1)
    refused = aifx("search", "corpus", "the whale")
    assert refused.returncode == 2
    assert "another embedder" in refused.stderr


CHANGES = {
    "activation": ("config.json", {"hidden_act": "gelu_new"}, "hidden_act = 'gelu_new'"),
    "relative positions": ("config.json", {"position_embedding_type": "relative_key"}, "position_embedding_type"),
    "heads": ("config.json", {"num_attention_heads": 5}, "num_attention_heads = 5"),
    "unknown key": ("config.json", {"rope_theta": 3}, "rope_theta = 3"),
    "other width": ("config.json", {"intermediate_size": 64}, "is \\[56, 24\\]"),
    "more layers": ("config.json", {"num_hidden_layers": 4}, "no tensor encoder.layer.3"),
    "decoder": ("config.json", {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}, "no sentence encoder"),
    "other pooling": ("1_Pooling/config.json", {"pooling_mode_max_tokens": True}, "pooling_mode_max_tokens"),
    "long": ("sentence_bert_config.json", {"max_seq_length": 49}, "the model has 48 positions"),
    "tokens": ("tokenizer_config.json", {"cls_token": "<s>"}, "no token '<s>'"),
    "prompt": ("config_sentence_transformers.json", {"default_prompt_name": "query"}, "default_prompt_name"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_aifx_does_not_compute_is_refused(tmp_path: Path, change: str) -> None:
    name, values, what = CHANGES[change]
    path = write_encoder(tmp_path / "model") / name
    document = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**document, **values}))
    with pytest.raises(AifxError, match=what):
        SentenceEmbedder(str(tmp_path / "model"))


def test_a_module_that_aifx_lacks_is_refused(tmp_path: Path) -> None:
    path = write_encoder(tmp_path / "model") / "modules.json"
    path.write_text(path.read_text().replace("models.Normalize", "models.Dense"))
    with pytest.raises(AifxError, match="module Dense"):
        SentenceEmbedder(str(tmp_path / "model"))


def test_an_encoder_is_no_run(tmp_path: Path) -> None:
    write_encoder(tmp_path / "model")
    (tmp_path / "aifx.toml").touch()
    done = run(["import", "model"], tmp_path, {})
    assert done.returncode == 2
    assert "aifx data index NAME --embedder model" in done.stderr
    (tmp_path / "aifx.toml").write_text('[model]\nfamily = "bert"\n')
    assert run(["config", "check"], tmp_path, {}).returncode == 2

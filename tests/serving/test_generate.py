"""Generation against the plain loop that runs the whole model for each token."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from forward import outputs_of
from written import byte_tokenizer, write_tokens

from aifx.core.errors import CheckpointError
from aifx.models.decoder.model import Decoder
from aifx.models.decoder.section import DecoderSection
from aifx.parallel.layout import local_layout
from aifx.programs.decoding import DecodingPrograms
from aifx.serving.generate import one_row_engine, write
from aifx.serving.requests import GenerationRequest
from aifx.serving.worker import CompilationCounter
from aifx.specs import init_params

VOCAB = 50
GPT2 = {"norm": "layer_norm", "positions": "learned", "activation": "gelu_tanh", "bias": True}
LLAMA = {"num_kv_heads": 2, "tie_embeddings": False}


@functools.cache
def decoder(**values):
    """The programs of a model and its params, one of each kind: what is compiled serves every test of it."""
    section = DecoderSection(**{"num_layers": 2, "embed_dim": 32, "num_heads": 4, **values})
    model = Decoder(section, vocab_size=VOCAB, seq_len=32)
    params = jax.jit(lambda: init_params(model.specs(), jax.random.key(0)))()
    programs = DecodingPrograms(model, model.specs(), local_layout(1), jnp.float32)
    return programs, jax.tree.map(lambda x: 8 * x if x.ndim > 1 else x, params)  # far from uniform


@functools.cache
def whole(model):
    return jax.jit(outputs_of(model))


def read_whole(model, params, prompt, max_tokens):
    """Greedy, the whole context read for every token; the context slides as `GenerationRequest.forgets` says."""
    tokens, start, written = list(prompt), 0, []
    forward = whole(model)
    if len(tokens) + max_tokens > model.max_seq_len:
        start = max(0, len(tokens) - (model.max_seq_len - min(max_tokens, model.max_seq_len // 2)))
    for i in range(max_tokens):
        if len(tokens) - start > model.max_seq_len:
            start = len(tokens) - (model.max_seq_len - min(max_tokens - i, model.max_seq_len // 2))
        context = np.zeros((1, model.max_seq_len), np.int32)
        context[0, : len(tokens) - start] = tokens[start:]
        logits = forward(params, jnp.asarray(context))[0, len(tokens) - start - 1]
        tokens.append(int(np.argmax(logits)))
        written.append(tokens[-1])
    return written


@pytest.mark.representative("cached generation")
@pytest.mark.covering(1)
@pytest.mark.parametrize("family", [GPT2, LLAMA, {**LLAMA, "scan_layers": True}], ids=["gpt2", "llama", "scanned"])
@pytest.mark.parametrize(("prompt_len", "max_tokens"), [(1, 8), (17, 12), (5, 80), (50, 3), (31, 40)])
def test_cached_generation_is_the_whole_models(family, prompt_len, max_tokens):
    programs, params = decoder(**family)
    prompt = np.random.default_rng(prompt_len).integers(0, VOCAB, prompt_len).tolist()
    assert list(write_tokens(programs, params, prompt, max_tokens=max_tokens, temperature=0.0)) == read_whole(
        programs.model, params, prompt, max_tokens
    )


@pytest.mark.slow
def test_the_seed_decides():
    programs, params = decoder()
    one, again, other = (list(write_tokens(programs, params, [1, 2], max_tokens=30, seed=s)) for s in (3, 3, 4))
    assert one == again
    assert one != other
    assert all(0 <= t < VOCAB for t in one)


@pytest.mark.slow
def test_ends_at_an_end_of_text():
    programs, params = decoder()
    free = list(write_tokens(programs, params, [1], max_tokens=30, temperature=0.0))
    eos = free[-1]
    found = list(write_tokens(programs, params, [1], max_tokens=30, temperature=0.0, end_ids={eos}))
    assert found == free[: free.index(eos) + 1]


@pytest.mark.slow
def test_streams():
    programs, params = decoder()
    stream = write_tokens(programs, params, [1], max_tokens=10**9)
    assert len([next(stream) for _ in range(3)]) == 3


@pytest.mark.slow
def test_an_answer_that_is_not_read_to_its_end_leaves_the_next_one_alone():
    programs, params = decoder()
    engine = one_row_engine(programs, params, byte_tokenizer(), 1, 30)
    request = GenerationRequest([1], 30, ignore_end=True)
    whole = [token for delta in engine.write(request) for token in delta.token_ids]
    unread = engine.write(request)
    next(unread)
    unread.close()
    assert [token for delta in engine.write(request) for token in delta.token_ids] == whole
    stats = engine.stats()
    assert stats.pages_used == stats.running == 0
    assert stats.generation_tokens < 30 + 10 + 30, "the rest of it was written"


@pytest.mark.slow
def test_scores_that_are_no_numbers_end_the_text_with_an_error():
    programs, params = decoder()
    broken = jax.tree.map(lambda x: x * np.nan, params)
    engine = one_row_engine(programs, broken, byte_tokenizer(), 1, 3)
    with pytest.raises(CheckpointError, match="not numbers"):
        list(write(engine, GenerationRequest([1], 3)))


def test_a_prompt_that_loses_its_beginning_is_reported(caplog):
    programs, params = decoder()

    def ask(length, max_tokens):
        engine = one_row_engine(programs, params, byte_tokenizer(), length, max_tokens)
        write(engine, GenerationRequest([1] * length, max_tokens, forgets=True))

    ask(20, 12)
    assert not caplog.records
    ask(31, 40)
    assert "31 tokens" in caplog.text
    assert "context is 32" in caplog.text
    assert "last 16" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"prompt_ids": []}, "prompt_ids"),
        ({"prompt_ids": [VOCAB]}, "prompt_ids"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
    ],
)
def test_bad_values_are_named(arguments, named):
    programs, params = decoder()
    with pytest.raises(ValueError, match=named):
        write_tokens(programs, params, arguments.pop("prompt_ids", [1]), max_tokens=1, **arguments)


@pytest.mark.slow
def test_prepared_params_write_the_same():
    """Fused projections change the order of no sum."""
    programs, params = decoder(**LLAMA)
    prepared = programs.prepare(params)
    assert jax.tree.structure(prepared) != jax.tree.structure(params)
    written = [list(write_tokens(programs, p, [1, 2, 3], max_tokens=20, temperature=0.0)) for p in (params, prepared)]
    assert written[0] == written[1]


@pytest.mark.slow
def test_other_sampling_values_compile_nothing():
    programs, params = decoder()
    list(write_tokens(programs, params, [1], max_tokens=4))
    counter = CompilationCounter()
    counter.start()
    list(write_tokens(programs, params, [1], max_tokens=4, temperature=0.3, top_k=7, top_p=0.9, seed=5))
    assert counter.count == 0

"""A step of generation on the CPU, each row one more token, against three peers: the shape of SmolLM2-135M.

    python benchmarks/generation.py --peers-python PATH [--rounds 5] [--rows 1,8,16] [--sampling greedy|default|top-k]

30 layers, 9 heads over 3 of 64, width 576, MLP 1,536, vocabulary 49,152, tied; random weights; each row holds 100 to
140 tokens. Ours is the program that `aifx generate` runs, the draw of a token included: in float32, in bfloat16 and
with `generate.quantize=int8`. The peers give scores alone, on as many threads as there are cores: llama.cpp in F32, F16
and Q8_0; ONNX Runtime GenAI and transformers (eager, static shapes of the cache) in float32. Their Python
(--peers-python, or $PEERS_PYTHON) has llama-cpp-python and gguf, onnxruntime-genai, onnx and onnx-ir, torch and
transformers; llama-cpp-python is to be compiled on this machine, so that it uses what the processor has.
"""

from __future__ import annotations

import ctypes
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import side_by_side
from side_by_side import Side, Told, Work

LAYERS, WIDTH, HEADS, KV_HEADS, HEAD_DIM, MLP, VOCAB, THETA = 30, 576, 9, 3, 64, 1536, 49152, 100_000.0
HELD, STEPS, WARM_UP, CAPACITY = 100, 40, 3, 512
SAMPLING: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "default": {"temperature": 0.8, "top_p": 0.95},
    "top-k": {"temperature": 0.8, "top_k": 50},
}
PEERS = {"float32": "F32", "bfloat16": "F16", "int8": "Q8_0"}
"""The types that llama.cpp computes in, by those of aifx."""

GOALS = {("float32", 1): 0.6, ("float32", 16): 1.4, ("int8", 1): 0.9, ("int8", 8): 2.0, ("int8", 16): 3.0}
"""Against llama.cpp, by what aifx computes in and rows."""


def timed(step: Callable[[], Any]) -> list[float]:
    for _ in range(WARM_UP):
        step()
    seconds = []
    for _ in range(STEPS):
        started = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - started)
    return seconds


def aifx_side(rows: list[int], sampling: str) -> Told:
    """The program of `ServingPrograms.decode`, without rules."""
    import jax
    import jax.numpy as jnp

    from aifx.models.decoder.model import Decoder
    from aifx.models.decoder.section import DecoderSection
    from aifx.nn.precision import cast_floating
    from aifx.nn.quantized import quantize_matrices
    from aifx.parallel.layout import local_layout
    from aifx.programs.decoding import DecodingPrograms
    from aifx.programs.sampling import Sampling
    from aifx.programs.serving import ServingPrograms
    from aifx.specs import init_params

    section = DecoderSection(
        num_layers=LAYERS, embed_dim=WIDTH, num_heads=HEADS, num_kv_heads=KV_HEADS, mlp_dim=MLP, rope_theta=THETA
    )
    model = Decoder(section, vocab_size=VOCAB, seq_len=2048)
    specs = model.specs()
    drawn = jax.jit(lambda: init_params(specs, jax.random.key(0)))()
    found: dict[str, list[float]] = {}
    for kind in PEERS:
        dtype = jnp.bfloat16 if kind == "bfloat16" else jnp.float32
        programs = DecodingPrograms(model, specs, local_layout(1), dtype)
        params = quantize_matrices(cast_floating(drawn, dtype), specs, "int8" if kind == "int8" else "none")
        params = programs.prepare(params)
        for count in rows:
            pages = CAPACITY // model.page_size
            writing = ServingPrograms(programs, params, count * pages, CAPACITY, has_rules=False)
            pool, decode = writing.init_pool(), writing.decode(count).compiled
            table = np.arange(count * pages, dtype=np.int32).reshape(count, pages)
            draws = writing.draws(count)._replace(sampling=Sampling.of(**SAMPLING[sampling], rows=count))
            tokens, lengths = jnp.zeros(count, jnp.int32), np.full(count, HELD, np.int32)

            def step() -> None:
                nonlocal pool, tokens, lengths
                pool, drawn = decode(params, pool, tokens, lengths, table, draws)  # noqa: B023
                tokens, lengths = drawn.token.block_until_ready(), lengths + 1

            found[f"{kind} {count}"] = timed(step)
    return {"seconds": found, "versions": {"jax": jax.__version__}}


def llama_side(rows: list[int]) -> Told:
    """`llama_decode` of one token of each row."""
    import llama_cpp

    silent = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind, name in PEERS.items():
            path = Path(folder) / f"{name}.gguf"
            write_gguf(path, name)
            model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
            for count in rows:
                found[f"{kind} {count}"] = llama_steps(llama_cpp, model, count)
            llama_cpp.llama_model_free(model)
            path.unlink()
    return {"seconds": found, "versions": {"llama-cpp-python": llama_cpp.__version__}}


def llama_steps(llama_cpp: Any, model: Any, rows: int) -> list[float]:
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx, settings.n_batch, settings.n_seq_max = CAPACITY * rows, 2048, rows
    settings.n_threads = settings.n_threads_batch = len(os.sched_getaffinity(0))
    context = llama_cpp.llama_init_from_model(model, settings)
    batch = llama_cpp.llama_batch_init(2048, 0, rows)

    def decode(tokens: list[tuple[int, int]], is_scored: bool) -> None:
        batch.n_tokens = len(tokens)
        for i, (position, row) in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = 7, position, 1, row
            batch.logits[i] = is_scored
        if llama_cpp.llama_decode(context, batch):
            raise RuntimeError("llama_decode failed")

    for row in range(rows):
        decode([(position, row) for position in range(HELD)], False)
    held = HELD

    def step() -> None:
        nonlocal held
        decode([(held, row) for row in range(rows)], True)
        _ = llama_cpp.llama_get_logits(context)[0]
        held += 1

    seconds = timed(step)
    llama_cpp.llama_batch_free(batch)
    llama_cpp.llama_free(context)
    return seconds


def write_hf(folder: Path) -> Any:
    """A llama of this shape with random weights, for what reads Hugging Face's folders; returns the model."""
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        intermediate_size=MLP,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=2048,
        rope_theta=THETA,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
    )
    model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(folder)
    return model


def transformers_side(rows: list[int]) -> Told:
    """A forward pass of one token of each row, with its cache of keys and values."""
    import torch
    import transformers

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        model = write_hf(Path(folder)).eval()
        for count in rows:
            cache = transformers.DynamicCache(config=model.config)
            model(torch.full((count, HELD), 7), past_key_values=cache, use_cache=True)
            token = torch.full((count, 1), 7)

            def step() -> None:
                model(token, past_key_values=cache, use_cache=True)  # noqa: B023

            found[f"float32 {count}"] = timed(step)
    return {"seconds": found, "versions": {"torch": torch.__version__, "transformers": transformers.__version__}}


def onnx_side(rows: list[int]) -> Told:
    """A token of each row by ONNX Runtime GenAI's generator, greedy."""
    import onnxruntime_genai
    import tokenizers

    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        source, built = Path(folder) / "source", Path(folder) / "built"
        write_hf(source)
        words = tokenizers.models.WordLevel({f"t{i}": i for i in range(VOCAB)}, unk_token="t0")
        tokenizers.Tokenizer(words).save(str(source / "tokenizer.json"))
        names = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "t0", "eos_token": "t1"}
        (source / "tokenizer_config.json").write_text(json.dumps(names))
        build = ["-m", "onnxruntime_genai.models.builder", "-p", "fp32", "-e", "cpu"]
        paths = ["-m", str(source), "-o", str(built), "-c", str(Path(folder) / "cache")]
        subprocess.run([sys.executable, *build, *paths], check=True, capture_output=True, cwd=folder)
        model = onnxruntime_genai.Model(str(built))
        for count in rows:
            settings = onnxruntime_genai.GeneratorParams(model)
            most = HELD + WARM_UP + STEPS + 1
            settings.set_search_options(max_length=most, min_length=most, do_sample=False, batch_size=count)
            generator = onnxruntime_genai.Generator(model, settings)
            generator.append_tokens(np.full((count, HELD), 7, np.int32))
            found[f"float32 {count}"] = timed(generator.generate_next_token)
    return {"seconds": found, "versions": {"onnxruntime-genai": onnxruntime_genai.__version__}}


def write_gguf(path: Path, kind: str) -> None:
    """A llama of this shape with random weights, for llama.cpp."""
    import gguf

    writer, rng = gguf.GGUFWriter(str(path), "llama"), np.random.default_rng(0)
    writer.add_context_length(2048)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(MLP)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(THETA)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_vocab_size(VOCAB)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"t{i}".encode() for i in range(VOCAB)])
    writer.add_token_scores([0.0] * VOCAB)
    writer.add_token_types([1] * VOCAB)

    def matrix(name: str, outputs: int, inputs: int) -> None:
        weight = (0.02 * rng.normal(size=(outputs, inputs))).astype(np.float32)
        if kind == "Q8_0":
            quantized = gguf.quants.quantize(weight, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(name, quantized, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(name, weight.astype(np.float16) if kind == "F16" else weight)

    ones = np.ones(WIDTH, np.float32)
    matrix("token_embd.weight", VOCAB, WIDTH)
    writer.add_tensor("output_norm.weight", ones)
    for i in range(LAYERS):
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{i}.{norm}.weight", ones)
        for part, outputs, inputs in (
            ("attn_q", HEADS * HEAD_DIM, WIDTH),
            ("attn_k", KV_HEADS * HEAD_DIM, WIDTH),
            ("attn_v", KV_HEADS * HEAD_DIM, WIDTH),
            ("attn_output", WIDTH, HEADS * HEAD_DIM),
            ("ffn_gate", MLP, WIDTH),
            ("ffn_up", MLP, WIDTH),
            ("ffn_down", WIDTH, MLP),
        ):
            matrix(f"blk.{i}.{part}.weight", outputs, inputs)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    parser = side_by_side.arguments_of(__doc__, rounds=5, quick_rounds=1)
    parser.add_argument("--peers-python", default=os.environ.get("PEERS_PYTHON", sys.executable))
    parser.add_argument("--rows", default="1,8,16")
    parser.add_argument("--sampling", choices=SAMPLING, default="greedy")
    arguments = parser.parse_args()
    rows = [int(count) for count in arguments.rows.split(",")]
    peers = {"llama.cpp": llama_side, "ONNX Runtime": onnx_side, "transformers": transformers_side}
    if arguments.side:
        sys.path.remove(str(Path(__file__).parent))  # transformers would take kernels.py for a package that it knows
        sides = {name: partial(side, rows) for name, side in peers.items()}
        sides["aifx"] = partial(aifx_side, rows, arguments.sampling)
        packages = "llama_cpp", "gguf", "onnxruntime_genai", "onnx", "onnx_ir", "tokenizers", "torch", "transformers"
        side_by_side.tell(sides[arguments.side], peers=packages)
        return
    options = "--rows", arguments.rows, "--sampling", arguments.sampling
    theirs = [arguments.peers_python, __file__, *options, "--side"]
    environment = side_by_side.training_environment()
    runs = side_by_side.alternate(
        [
            Side("aifx", side_by_side.process(side_by_side.own(__file__, "aifx", *options), environment)),
            *(Side(name, side_by_side.process([*theirs, name])) for name in peers),
        ],
        side_by_side.rounds_of(arguments),
    )
    found = []
    for kind, name in PEERS.items():
        for count in rows:
            what = f"SmolLM2-135M, {count} row{'s' * (count > 1)}, {kind}"
            work = Work(f"{kind} {count}", what, None, count, "tokens")
            for peer in runs.peers:
                if work.thing in runs.told[peer][0]["seconds"]:
                    against = f"{peer}, {name}" if peer == "llama.cpp" else peer
                    goal = GOALS.get((kind, count)) if peer == "llama.cpp" else None
                    found.append(side_by_side.versus(runs, replace(work, goal=goal), peer, against=against))
            if not runs.peers:
                seconds = [s for told in runs.seconds("aifx", work.thing) for s in told]
                side_by_side.say(f"{what}: {work.speed(statistics.median(seconds))}")
    side_by_side.report(side_by_side.document("generation", found, arguments, runs), arguments)


if __name__ == "__main__":
    main()

"""Models that `aifx import` refuses, with the place, and without writing anything."""

from __future__ import annotations

import json
import shutil
import struct

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from aifx.core.errors import AifxError, ExitCode
from aifx.hub.importing import import_model
from aifx.hub.weights import DIGESTS, tensor_digest

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def configured(**values):
    def change(folder):
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return change


def rope(**values):
    def change(folder):
        path = folder / "config.json"
        config = json.loads(path.read_text())
        config["rope_parameters"] |= values
        path.write_text(json.dumps(config))

    return change


def tensors(change, metadata=None):
    def changed(folder):
        found = load_file(folder / WEIGHTS)
        change(found)
        save_file(found, folder / WEIGHTS, metadata)

    return changed


def packed(found):
    """As AutoAWQ and AutoGPTQ first wrote a layer, with their settings in a file of another name."""
    del found["model.layers.0.self_attn.q_proj.weight"]
    found["model.layers.0.self_attn.q_proj.qweight"] = np.zeros((2, 2), np.int32)


def raw(change):
    def changed(folder):
        data = bytearray((folder / WEIGHTS).read_bytes())
        (folder / WEIGHTS).write_bytes(change(data))

    return changed


def sharded(place=None, lost=None, extra=None, swap=False, cut=0):
    """Two shards and their index, one of whose entries is wrong."""

    def change(folder):
        found = load_file(folder / WEIGHTS)
        (folder / WEIGHTS).unlink()
        names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
        keys = sorted(found)
        parts = [keys[:10], keys[10:]]
        index = {key: name for name, part in zip(names, parts, strict=True) for key in part}
        for name, part in zip(names, parts, strict=True):
            save_file({key: found[key] for key in part}, folder / name)
        if place:
            index[keys[0]] = place
        if lost:
            (folder / names[1]).unlink()
        if extra:
            index[extra] = names[0]
        if swap:
            index[keys[0]] = names[1]
        if cut:
            data = (folder / names[1]).read_bytes()
            (folder / names[1]).write_bytes(data[:-cut])
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": index}))

    return change


def pickled(folder):
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")


def unmapped(folder):
    (folder / WEIGHTS).unlink()
    (folder / INDEX).write_text("{}")


def not_finite(value):
    def change(found):
        found["model.norm.weight"][3] = value

    return change


def digested_then_flipped(folder):
    found = load_file(folder / WEIGHTS)
    digests = {key: tensor_digest(value) for key, value in found.items()}
    save_file(found, folder / WEIGHTS, {DIGESTS: json.dumps(digests)})
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[-3] ^= 1
    (folder / WEIGHTS).write_bytes(data)


def outside(data):
    """A tensor whose offsets leave the file."""
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    last = max((key for key in header if key != "__metadata__"), key=lambda key: header[key]["data_offsets"][1])
    header[last]["data_offsets"][1] += 4096
    header[last]["shape"][0] += 4096 // (4 * int(np.prod(header[last]["shape"][1:])))
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + size :]


def templated(template):
    def change(folder):
        (folder / "chat_template.jinja").write_text(template)

    return change


REFUSED = {
    "template that reaches for Python": (templated("{{ ''.__class__.__mro__ }}"), "Python's internals"),
    "template in the settings": (
        lambda folder: (folder / "tokenizer_config.json").write_text('{"chat_template": "{{ x[\'__init__\'] }}"}'),
        "Python's internals",
    ),
    "no template": (templated("{% if %}"), r"chat_template\.jinja:1: not a chat template"),
    "unknown architecture": (configured(architectures=["MambaForCausalLM"]), r"architectures = \['MambaForCausalLM'\]"),
    "another head": (configured(architectures=["LlamaForSequenceClassification"]), "LlamaForSequenceClassification"),
    "no architecture": (configured(architectures=None, model_type="mamba"), "model_type = 'mamba'"),
    "another type": (configured(model_type="mistral"), "model_type = 'mistral'"),
    "activation": (configured(hidden_act="relu"), "hidden_act = 'relu'"),
    "bias of the MLP": (configured(mlp_bias=True), "mlp_bias = True"),
    "unknown key": (configured(residual_multiplier=0.5), "residual_multiplier = 0.5"),
    "quantized": (configured(quantization_config={"quant_method": "awq", "bits": 4}), "quant_method = 'awq'"),
    "quantized without a word": (tensors(packed), "tensor model.layers.0.*.qweight"),
    "no size": (configured(hidden_size=None), "hidden_size = None"),
    "size of another type": (configured(num_hidden_layers="2"), "num_hidden_layers = '2'"),
    "truth for a number": (configured(num_hidden_layers=True), "num_hidden_layers = True"),
    "heads that do not divide": (configured(num_key_value_heads=3), "model.num_kv_heads = 3"),
    "architectures of no text": (configured(architectures=[["x"]]), "architectures = "),
    "too many layers": (configured(num_hidden_layers=2**31 - 1), "num_hidden_layers = 2147483647"),
    "layers that the file lacks": (configured(num_hidden_layers=9000), "no tensor model.layers.2.input_layernorm"),
    "a size below zero": (configured(intermediate_size=-4), "model.mlp_dim = -4"),
    "no number": (configured(rms_norm_eps=float("nan")), "rms_norm_eps = nan"),
    "rotary type": (rope(rope_type="longrope"), "rope_type = 'longrope'"),
    "unknown key of rotary": (rope(short_factor=[1.0]), "short_factor"),
    "larger vocabulary of the tokenizer": (configured(vocab_size=60), "vocab_size = 60"),
    "missing tensor": (tensors(lambda t: t.pop("model.norm.weight")), "no tensor model.norm.weight"),
    "unused tensor": (tensors(lambda t: t.update(odd=np.zeros(2, np.float32))), "tensor odd"),
    "bias that the config lacks": (
        tensors(lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": np.zeros(16, np.float32)})),
        "q_proj.bias",
    ),
    "tensor of another shape": (
        tensors(lambda t: t.update({"model.norm.weight": np.zeros(17, np.float32)})),
        r"model.norm.weight is \[17\]",
    ),
    "tensor of another type": (
        tensors(lambda t: t.update({"model.norm.weight": np.zeros(16, np.int8)})),
        "of type I8",
    ),
    "NaN": (tensors(not_finite(np.nan)), "model.norm.weight holds NaN"),
    "infinity": (tensors(not_finite(-np.inf)), "model.norm.weight holds NaN or infinity"),
    "pickle": (pickled, "has no model.safetensors"),
    "header of 10 GB": (raw(lambda data: struct.pack("<Q", 10 << 30) + data[8:]), "is damaged, or no safetensors"),
    "no header": (raw(lambda data: b""), "is damaged, or no safetensors"),
    "truncated": (raw(lambda data: data[:-1]), "is damaged, or no safetensors"),
    "too long": (raw(lambda data: data + b"x"), "is damaged, or no safetensors"),
    "tensor outside of its file": (raw(outside), "is damaged, or no safetensors"),
    "flipped byte with digests": (digested_then_flipped, "is damaged, or no safetensors"),
    "index that leaves the folder": (sharded(place="../llama/model.safetensors"), INDEX),
    "index of no file": (sharded(place=7), INDEX),
    "index of a missing file": (sharded(place="other.safetensors"), "other.safetensors is missing"),
    "missing shard": (sharded(lost=True), "model-00002-of-00002.safetensors is missing"),
    "truncated shard": (sharded(cut=5), "model-00002-of-00002.safetensors is damaged"),
    "index of a tensor that no shard has": (sharded(extra="model.more"), "no tensor model.more"),
    "index of another shard": (sharded(swap=True), "model-00002-of-00002.safetensors: no tensor lm_head.weight"),
    "index without a map": (unmapped, "weight_map"),
    "no JSON": (lambda folder: (folder / "config.json").write_text("{"), "config.json is not JSON"),
    "a list": (lambda folder: (folder / "config.json").write_text("[]"), "config.json cannot be used"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "has no tokenizer.json"),
    "odd tokenizer": (lambda folder: (folder / "tokenizer.json").write_text("{}"), "tokenizer.json"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_by_name_and_nothing_is_written(case, hub_model, empty_project):
    change, place = REFUSED[case]
    change(hub_model)
    with pytest.raises(AifxError, match=place) as caught:
        import_model(str(hub_model), empty_project)
    assert caught.value.exit_code == ExitCode.UNABLE
    assert caught.value.why
    assert caught.value.hint
    assert [path.name for path in empty_project.root.iterdir()] == ["aifx.toml"]


def test_an_unknown_architecture_is_not_taken_for_another(hub_model, empty_project):
    configured(architectures=["LLaMAForCausalLM"])(hub_model)
    with pytest.raises(AifxError) as caught:
        import_model(str(hub_model), empty_project)
    assert "LlamaForCausalLM" in caught.value.why
    assert "did you mean" not in caught.value.why


@pytest.mark.parametrize("name", ["x.gguf", "X.GGUF", "", "with-config"])
def test_gguf_is_answered_with_what_to_do(name, tmp_path, empty_project, hub_model):
    folder = hub_model if name == "with-config" else tmp_path / "made"
    folder.mkdir(exist_ok=True)
    (folder / WEIGHTS).unlink(missing_ok=True)
    file, is_named = (name, True) if name.lower() == "x.gguf" else ("x.gguf", False)
    (folder / file).write_bytes(b"GGUF")
    with pytest.raises(AifxError) as caught:
        import_model(str(folder / file if is_named else folder), empty_project)
    assert caught.value.exit_code == ExitCode.UNABLE
    assert file in caught.value.what
    assert f"gguf_file='{file}'" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("gemma2", {"query_pre_attn_scalar": 0}),
        ("gemma3", {"sliding_window_pattern": 0, "layer_types": None}),
        ("gemma3", {"layer_types": [["sliding_attention"]] * 3}),
        ("smollm3", {"no_rope_layer_interval": 0, "no_rope_layers": None}),
        ("smollm3", {"no_rope_layers": [{}, 1, 1, 1]}),
        ("llama-yarn", {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1.0}}),
    ],
)
def test_numbers_that_no_model_has(name, values, hub_models, tmp_path, empty_project):
    folder = shutil.copytree(hub_models(name), tmp_path / "odd")
    configured(**values)(folder)
    with pytest.raises(AifxError) as caught:
        import_model(str(folder), empty_project)
    assert caught.value.exit_code == ExitCode.UNABLE
    assert [path.name for path in empty_project.root.iterdir()] == ["aifx.toml"]


def test_a_tied_head_that_is_not_the_embedding_is_refused(hub_models, tmp_path, empty_project):
    folder = shutil.copytree(hub_models("qwen2"), tmp_path / "qwen2")
    found = load_file(folder / WEIGHTS)
    head = found["model.embed_tokens.weight"].copy()
    save_file({**found, "lm_head.weight": head}, folder / WEIGHTS)
    import_model(str(folder), empty_project, "same")
    head[0, 0] += 1
    save_file({**found, "lm_head.weight": head}, folder / WEIGHTS)
    with pytest.raises(AifxError, match=r"lm_head\.weight is not model\.embed_tokens\.weight"):
        import_model(str(folder), empty_project, "other")
    assert [run.name for run in empty_project.runs()] == ["same"]


def test_a_key_that_is_ignored_on_request(hub_model, empty_project):
    configured(maker="me")(hub_model)
    with pytest.raises(AifxError) as caught:
        import_model(str(hub_model), empty_project)
    assert "--ignore maker" in caught.value.hint
    import_model(str(hub_model), empty_project, ignored=["maker"])

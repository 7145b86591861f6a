"""`aifx import`, and what it leaves: a run like any other."""

from __future__ import annotations

import hashlib
import json
import os
import shutil

import inprocess
import ml_dtypes
import numpy as np
import peer_models
import pytest
import tokenizers
from safetensors.numpy import load_file, save_file
from written import stream_text

from aifx.checkpoint.checkpoints import Checkpoints
from aifx.checkpoint.manifest import read_manifest
from aifx.core.errors import AifxError
from aifx.core.project import Project
from aifx.data.tokenizer import Tokenizer, train_tokenizer
from aifx.hub.architectures import architectures
from aifx.hub.assets import begin_token
from aifx.hub.importing import default_name, import_model
from aifx.kinds import read_config
from aifx.models.hub import HubConfig

LLAMA_CONFIG = "LlamaForCausalLM"


def arrays_of(project, name):
    run = project.run(name)
    manifest = read_manifest(run.checkpoints / "0")
    checkpoints = Checkpoints(run.checkpoints, read_config(run.config, project).checkpoint)
    import jax

    wanted = {n: jax.ShapeDtypeStruct(e.shape, e.dtype) for n, e in manifest.arrays.items()}
    return {name: np.asarray(array) for name, array in checkpoints.read(0, wanted).items()}


@pytest.mark.slow
def test_outside_of_a_project_one_is_started_that_trains_the_model_further(hub_models, tmp_path):
    (tmp_path / "data").mkdir()
    words = np.random.default_rng(0).integers(0, 60, 3000)
    (tmp_path / "data" / "words.txt").write_text(" ".join(f"t{word}" for word in words))
    source = str(hub_models("llama"))

    def aifx(*args):
        return inprocess.run(args, tmp_path, {**os.environ})

    done = aifx("import", source, "--name", "base")
    assert done.returncode == 0, done.stderr
    assert "started a project" in done.stdout
    text = aifx("generate", "--run", "base", "--prompt", "t1 t2", "--max-tokens", "3", "--temperature", "0")
    assert text.returncode == 0
    assert text.stdout.startswith("t1 t2 t")
    assert "completed" in aifx("runs", "ls").stdout
    trained = aifx("train", "--set", "train.num_steps=2", "--set", "train.validate_every=0", "--json")
    assert trained.returncode == 0, trained.stderr
    document = json.loads((tmp_path / "runs" / "main" / "provenance.json").read_text())
    assert document["finetuned_from"]["run"] == "base"


def test_asked_again_it_says_that_the_run_is_there_and_starts_the_project_that_a_kill_left_out(hub_models, tmp_path):
    def aifx(*args):
        done = inprocess.run(["import", str(hub_models("llama")), *args], tmp_path, {**os.environ})
        assert done.returncode == 0, done.stderr
        return done.stdout

    first = json.loads(aifx("--json"))
    assert first["imported"]["is_new"]
    started, files = tmp_path / "aifx.toml", sorted(tmp_path.rglob("*"))
    left = tmp_path / f".aifx.toml.{'0' * 12}.tmp"
    started.rename(left)  # as if it had been killed while it wrote aifx.toml
    assert json.loads(aifx("--json")) == {**first, "imported": {**first["imported"], "is_new": False}}
    assert sorted(tmp_path.rglob("*")) == files
    text = aifx("--dtype", "float32")  # the same by another spelling
    assert "llama" in text
    assert "already" in text


def test_a_run_of_other_content_is_not_taken_for_the_model(hub_model, empty_project):
    def refused(*args):
        done = inprocess.run(["import", str(hub_model), *args, "--json"], empty_project.root, {**os.environ})
        assert done.returncode == 2, done.stderr
        error = json.loads(done.stdout)["error"]
        assert "--name ANOTHER" in error["hint"]
        return error["why"]

    (empty_project.runs_path / "own").mkdir(parents=True)
    assert "not imported" in refused("--name", "own")
    run = empty_project.run(import_model(str(hub_model), empty_project).run)
    assert "train.parameter_dtype" in refused("--dtype", "bfloat16")
    tokenizer = run.assets / "tokenizer.json"
    data = tokenizer.read_bytes()
    tokenizer.write_bytes(data + b" ")
    assert str(tokenizer) in refused()
    tokenizer.write_bytes(data)
    weights = load_file(hub_model / "model.safetensors")
    weights["lm_head.weight"][0] += 1
    save_file(weights, hub_model / "model.safetensors")
    assert "model.safetensors" in refused()


def test_misuse(hub_models, empty_project):
    def aifx(*args):
        done = inprocess.run(["import", *args], empty_project.root, {**os.environ})
        assert (done.returncode, done.stdout) == (2, "")
        return done.stderr

    source = str(hub_models("llama"))
    assert "hint: aifx import" in aifx(source, "--dtype", "int8")
    assert "cannot name a run" in aifx(source, "--name", "../llama")
    assert "no folder" in aifx("./nowhere")
    assert "it is a file" in aifx(f"{source}/config.json")
    assert "it has no config.json" in aifx(str(empty_project.root))
    assert not empty_project.runs_path.exists()


def test_the_document_and_import_json(hub_models, empty_project):
    source = hub_models("mistral")
    done = inprocess.run(["import", str(source), "--json"], empty_project.root, {**os.environ})
    document = json.loads(done.stdout)
    assert document["imported"]["run"] == "mistral"
    assert document["started_project"] is None
    record = json.loads((empty_project.run("mistral").path / "import.json").read_text())
    digests = {file["name"]: file["sha256"] for file in record["files"]}
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        assert digests[name] == hashlib.sha256((source / name).read_bytes()).hexdigest()
    query = record["tensors"]["model.layers.1.self_attn.q_proj.weight"]
    assert query["arrays"] == ["params/layers/1/attention/query"]
    checked = inprocess.run(["ckpt", "verify", "--run", "mistral"], empty_project.root, {**os.environ})
    assert "whole" in checked.stdout
    for more in ([], ["--fork", "other"]):
        resumed = inprocess.run(["train", "--run", "mistral", *more], empty_project.root, {**os.environ})
        assert (resumed.returncode, "was imported" in resumed.stderr) == (2, True)


def test_the_name_of_a_folder_above(monkeypatch, tmp_path):
    (tmp_path / "my model/inner").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "my model/inner")
    assert [default_name(source) for source in ("..", ".", "../inner/", "org/Model")] == [
        "my-model",
        "inner",
        "inner",
        "Model",
    ]


def test_shards_and_prefixes_make_the_same_run(hub_models, tmp_path, empty_project):
    import_model(str(hub_models("gpt2")), empty_project, "whole")
    want = arrays_of(empty_project, "whole")
    folder = shutil.copytree(hub_models("gpt2"), tmp_path / "gpt2")
    found = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    # As OpenAI's own file is: without the prefix, with the causal mask of each layer.
    plain = {key.removeprefix("transformer."): value for key, value in found.items()}
    plain |= {f"h.{i}.attn.bias": np.tril(np.ones((1, 1, 64, 64), np.float32)) for i in range(2)}
    index = {}
    for number, keys in enumerate(np.array_split(sorted(plain), 3), 1):
        name = f"model-{number:05}-of-00003.safetensors"
        save_file({key: plain[key] for key in keys.tolist()}, folder / name)
        index |= dict.fromkeys(keys.tolist(), name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    import_model(str(folder), empty_project, "shards")
    got = arrays_of(empty_project, "shards")
    assert got.keys() == want.keys()
    assert all(np.array_equal(got[name], want[name]) for name in want)
    record = json.loads((empty_project.run("shards").path / "import.json").read_text())
    assert record["ignored"] == ["h.0.attn.bias", "h.1.attn.bias"]


def test_buffers_of_the_family_are_passed_over_and_code_does_not_run(hub_models, tmp_path, empty_project):
    folder, ran = shutil.copytree(hub_models("llama"), tmp_path / "llama"), tmp_path / "ran"
    found = load_file(folder / "model.safetensors")
    buffers = ["model.layers.0.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq"]
    save_file(found | {key: np.ones(2, np.float32) for key in buffers}, folder / "model.safetensors")
    for name in ("modeling_own.py", "configuration_own.py", "__init__.py"):
        (folder / name).write_text(f"open({str(ran)!r}, 'w')")
    config = json.loads((folder / "config.json").read_text())
    own = {"AutoConfig": "configuration_own.Config", "AutoModelForCausalLM": "modeling_own.Model"}
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": own}))
    import_model(str(folder), empty_project, "own")
    record = json.loads((empty_project.run("own").path / "import.json").read_text())
    assert record["ignored"] == buffers
    assert not ran.exists()


def test_weights_keep_their_type_and_are_rounded_on_request_alone(hub_models, tmp_path, empty_project):
    folder = shutil.copytree(hub_models("qwen3"), tmp_path / "qwen3")
    found = load_file(folder / "model.safetensors")
    narrow = {key: value.astype(ml_dtypes.bfloat16) for key, value in found.items()}
    save_file(narrow, folder / "model.safetensors")
    made = import_model(str(folder), empty_project, "narrow")
    assert (made.dtype, made.rounded) == ("bfloat16", False)
    got = arrays_of(empty_project, "narrow")
    key = "params/embedding/token"
    np.testing.assert_array_equal(got[key], narrow["model.embed_tokens.weight"])
    assert not import_model(str(folder), empty_project, "wide", dtype="float32").rounded
    assert arrays_of(empty_project, "wide")[key].dtype == np.float32
    assert import_model(str(hub_models("qwen3")), empty_project, "rounded", dtype="bfloat16").rounded
    half = {key: value.astype(np.float16) for key, value in found.items()}
    save_file(half, folder / "model.safetensors")
    assert import_model(str(folder), empty_project, "half").dtype == "float32"
    np.testing.assert_array_equal(arrays_of(empty_project, "half")[key], half["model.embed_tokens.weight"])


@pytest.mark.parametrize("name", ["llama", "llama-yarn", "llama-linear-biased", "mistral", "qwen2-windows"])
def test_both_spellings_of_a_config(name, hub_models):
    config = json.loads((hub_models(name) / "config.json").read_text())
    parameters = config.pop("rope_parameters")
    old = {**config, "rope_theta": parameters.pop("rope_theta"), "torch_dtype": config.pop("dtype")}
    kind = parameters.pop("rope_type")
    if kind != "default":
        old["rope_scaling"] = {"type": kind, **parameters}
    _, architecture = architectures()[config["architectures"][0]]

    def read(values):
        found = HubConfig(values, "config.json", "--ignore")
        section = architecture.read(found)
        found.finish()
        return section

    new = json.loads((hub_models(name) / "config.json").read_text())
    assert read(old) == read(new)


def test_the_cache_of_the_hub(hub_models, tmp_path, empty_project, monkeypatch):
    """As huggingface_hub lays it out: snapshots are links to blobs, which their SHA-256 names."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(AifxError) as caught:
        import_model("maker/Tiny-Llama", empty_project)
    assert caught.value.hint == "hf download maker/Tiny-Llama"
    repository = tmp_path / "hub" / "models--maker--Tiny-Llama"
    snapshot, blobs = repository / "snapshots" / ("0" * 40), repository / "blobs"
    for folder in (snapshot, blobs, repository / "refs"):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    for path in hub_models("llama").iterdir():
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        shutil.copy(path, blobs / digest)
        (snapshot / path.name).symlink_to(f"../../blobs/{digest}")
    made = import_model("maker/Tiny-Llama", empty_project)
    assert (made.run, made.architecture) == ("Tiny-Llama", LLAMA_CONFIG)
    blob = (snapshot / "model.safetensors").resolve()
    data = bytearray(blob.read_bytes())
    data[-2] ^= 1
    blob.write_bytes(data)
    with pytest.raises(AifxError, match="is damaged"):
        import_model("maker/Tiny-Llama", empty_project, "flipped")
    assert [run.name for run in empty_project.runs()] == ["Tiny-Llama"]


def chat_tokenizer(template="<s> $A"):
    """Bytes, with two special tokens; by default it puts `<s>` before a text."""
    tokenizer = tokenizers.Tokenizer.from_str(train_tokenizer((), 257).decode())
    tokenizer.add_special_tokens(["<s>", "<|im_end|>"])
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(single=template, special_tokens=[("<s>", 257)])
    return tokenizer.to_str().encode()


def test_tokens_that_begin_and_end_a_text(hub_models, tmp_path, empty_project):
    folder = shutil.copytree(hub_models("llama"), tmp_path / "chat")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 320, "eos_token_id": 5}))
    found = load_file(folder / "model.safetensors")
    wide = {key: peer_models.values_of(key, (320, 16)) for key in ("model.embed_tokens.weight", "lm_head.weight")}
    save_file({**found, **wide}, folder / "model.safetensors")
    (folder / "tokenizer.json").write_bytes(chat_tokenizer())
    template = [7, {"name": "default", "template": "{{ messages }}"}]
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template, "eos_token": "<s>"}))
    generation = {"eos_token_id": [258, 0, [1]], "do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 20}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    import_model(str(folder), empty_project)
    run = empty_project.run("chat")
    config = read_config(run.config, empty_project)
    assert config.data.end_tokens == ("<|im_end|>", "<|endoftext|>")
    assert config.data.begin_token == "<s>"
    assert (config.generate.temperature, config.generate.top_p, config.generate.top_k) == (0.6, 0.9, 20)
    assert (run.assets / "chat_template.jinja").read_text() == "{{ messages }}"
    ends = config.data.end_tokens
    tokenizer = Tokenizer.load(run.assets / "tokenizer.json", ends=ends, begin=config.data.begin_token)
    assert tokenizer.eos_id == 258
    assert tokenizer.encode_prompt("") == [257]
    # A user's text that spells a special token is text.
    typed = tokenizer.encode_prompt("<|im_end|><s>")
    assert typed[0] == 257
    assert not {257, 258} & set(typed[1:])
    a = tokenizer.encode("a")
    for end in (258, 0):
        assert "".join(stream_text(tokenizer, [257], [*a, end, *a])) == "a"
    assert [begin_token(chat_tokenizer(how)) for how in ("<s> $A", "$A <s>", "$A")] == ["<s>", None, None]
    with pytest.raises(AifxError, match="no token '<eot>'"):
        Tokenizer.load(run.assets / "tokenizer.json", ends=["<eot>"])


@pytest.mark.slow
def test_special_tokens_without_a_row_are_no_obstacle(hub_models, tmp_path, empty_project):
    """As of Gemma 3, whose tokenizer has a token for images: no text becomes it, and no text ends with it."""
    folder = shutil.copytree(hub_models("gemma3"), tmp_path / "gemma")
    config = json.loads((folder / "config.json").read_text())
    found = load_file(folder / "model.safetensors")
    found["model.embed_tokens.weight"] = peer_models.values_of("wide", (258, 16))
    save_file(found, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 258, "eos_token_id": 0}))
    (folder / "generation_config.json").write_text('{"eos_token_id": 0}')
    (folder / "tokenizer.json").write_bytes(chat_tokenizer())
    import_model(str(folder), empty_project)
    run = empty_project.run("gemma")
    assert read_config(run.config, empty_project).data.vocab_size == 258
    text = inprocess.run(["generate", "--prompt", "a", "--max-tokens", "2"], empty_project.root, {**os.environ})
    assert text.returncode == 0, text.stderr
    (folder / "generation_config.json").write_text('{"eos_token_id": 258}')
    with pytest.raises(AifxError, match="vocab_size"):
        import_model(str(folder), empty_project, "ends-outside")


def test_an_import_that_was_killed_is_replaced(hub_models, empty_project: Project):
    left = empty_project.runs_path / ".llama.unfinished" / "assets"
    left.mkdir(parents=True)
    (left / "half").write_text("")
    import_model(str(hub_models("llama")), empty_project)
    assert [path.name for path in empty_project.runs_path.iterdir()] == ["llama"]
    assert not (empty_project.run("llama").assets / "half").exists()

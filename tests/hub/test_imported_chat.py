"""An imported model with a chat template chats, is fine-tuned on conversations, and is exported with its template."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import peer_models
import pytest
import tokenizers
from safetensors.numpy import load_file, save_file

import aifx
from aifx.config.toml import to_toml
from aifx.core.errors import ConfigError
from aifx.core.project import Project
from aifx.data.tokenizer import train_tokenizer
from aifx.hub.exporting import export_model
from aifx.hub.importing import import_model
from aifx.hub.starting import changed_values
from aifx.kinds import load_config, read_config
from aifx.loading.restore import restore_run
from aifx.runs.provenance import read_provenance
from aifx.serving.generate import Chat, write_text
from aifx.training.run import train

SPECIAL = ("<|endoftext|>", "<s>", "<|im_start|>", "<|im_end|>")
TEMPLATE = """\
{{ bos_token }}{% for m in messages %}
{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' + '\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""


@pytest.fixture
def imported(hub_models, tmp_path: Path, empty_project: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project whose run "chat" is a Llama with a tokenizer of bytes and a template."""
    monkeypatch.setenv("AIFX_CACHE_DIR", str(tmp_path / "cache"))
    folder = shutil.copytree(hub_models("llama"), tmp_path / "chat")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 260, "eos_token_id": 0, "pad_token_id": 5}))
    found = load_file(folder / "model.safetensors")
    wide = {key: peer_models.values_of(key, (260, 16)) for key in ("model.embed_tokens.weight", "lm_head.weight")}
    save_file({**found, **wide}, folder / "model.safetensors")
    (folder / "tokenizer.json").write_bytes(train_tokenizer((), 260, SPECIAL))
    settings = {"chat_template": TEMPLATE, "bos_token": {"content": "<s>"}, "eos_token": "<|im_end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 0], "top_k": 9}))
    import_model(str(folder), empty_project)
    return empty_project


@pytest.mark.representative("a model in and out")
def test_from_import_to_export(imported: Project, tmp_path: Path) -> None:
    base = restore_run(imported.run("chat"), imported)
    settings = base.config.generate.model_copy(update={"prompt": "Hi", "max_tokens": 1})
    assert isinstance("".join(write_text(base, settings, chat=Chat("Be kind."))), str)

    (imported.root / "data").mkdir()
    rows = [{"prompt": f"{n}?", "completion": f"{n}!"} for n in range(30)]
    (imported.root / "data/a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = to_toml({"model": changed_values(base.config.model)}, None)
    (imported.root / "aifx.toml").write_text(
        f'[task]\nkind = "chat"\n[finetune]\nbase = "chat"\n{model}\n'
        '[data]\ntokenizer = "runs/chat/assets/tokenizer.json"\nseq_len = 64\n'
        "[train]\nnum_steps = 1\nglobal_batch_size = 4\nvalidate_every = 0\n"
    )
    assert train(imported, load_config(imported, [], {}), "tuned").status == "completed"
    tuned = restore_run(imported.run("tuned"), imported)
    form = tuned.task.format
    assert sorted(form.tokenizer.end_ids) == [0, 3]
    assert form.tokenizer.eos_id == 3
    prompt = form.renderer.prompt([{"role": "user", "content": "<s>"}])
    whole = tokenizers.Tokenizer.from_str(form.tokenizer.data.decode()).decode(prompt, skip_special_tokens=False)
    assert whole == "<s><|im_start|>user\n<s><|im_end|>\n<|im_start|>assistant\n"
    assert prompt.count(1) == 1
    export_model(tmp_path / "exported", imported.run("tuned"), imported)
    files = [path for path in (tmp_path / "exported").iterdir() if path.suffix != ".safetensors"]
    written = {path.name: path.read_text() for path in files}
    assert written["chat_template.jinja"] == TEMPLATE
    assert json.loads(written["generation_config.json"]) == {"eos_token_id": [3, 0], "top_k": 9}
    assert json.loads(written["config.json"])["eos_token_id"] == [0, 3]


@pytest.mark.slow
def test_a_version_is_exported_as_its_run(imported: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(imported.root)
    aifx.registry_push("chat", "judge")
    for model, folder in (("runs/chat", "ours"), ("judge@v1", "theirs")):
        aifx.export_model(model, folder)
    assert json.loads((imported.root / "theirs/config.json").read_text())["pad_token_id"] == 5
    ours, theirs = (
        {path.name: path.read_bytes() for path in (imported.root / folder).iterdir()} for folder in ("ours", "theirs")
    )
    assert ours.keys() == theirs.keys()
    differing = {name for name, content in ours.items() if theirs[name] != content}
    assert differing <= {"README.md", "manifest.json", ".aifx.json"}, differing
    assert "| imported from | a folder, chat |" in theirs["README.md"].decode()


@pytest.mark.slow
def test_adapters_that_were_trained_on_a_version(imported: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(imported.root)
    digest = aifx.registry_push("chat", "whole").digest
    tokenizer = shutil.copy(imported.run("chat").assets / "tokenizer.json", imported.root)
    (imported.root / "data").mkdir()
    rows = [{"prompt": f"{n}?", "completion": f"{n}!"} for n in range(30)]
    (imported.root / "data/a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = to_toml({"model": changed_values(read_config(imported.run("chat").config, imported).model)}, None)
    (imported.root / "aifx.toml").write_text(
        f'[task]\nkind = "chat"\n[finetune]\nbase = "whole@v1"\nadapter = "lora"\n[lora]\nrank = 2\n{model}\n'
        f'[data]\ntokenizer = "{tokenizer}"\nseq_len = 64\n'
        "[train]\nnum_steps = 1\nglobal_batch_size = 4\nvalidate_every = 0\n"
    )
    assert aifx.train(run="tuned").status == "completed"
    assert read_provenance(imported.run("tuned"))["finetuned_from"]["run"] == f"whole@{digest}"
    aifx.registry_push("tuned", "tuned")
    for folder in imported.run("chat").path, imported.root / "registry/models/whole":
        shutil.rmtree(folder)
    for model, folder in (("runs/tuned", "ours"), ("tuned@v1", "theirs")):
        aifx.export_model(model, folder, format="peft")
        assert json.loads(Path(folder, "adapter_config.json").read_text())["base_model_name_or_path"] == "./chat"
    ours, theirs = (load_file(f"{folder}/adapter_model.safetensors") for folder in ("ours", "theirs"))
    assert ours.keys() == theirs.keys()
    assert all((ours[key] == theirs[key]).all() for key in ours)


def test_another_tokenizer_than_that_of_the_base(imported: Project) -> None:
    (imported.root / "data").mkdir()
    (imported.root / "data/a.jsonl").write_text('{"prompt": "x", "completion": "y"}\n' * 9)
    model = to_toml({"model": changed_values(read_config(imported.run("chat").config, imported).model)}, None)
    (imported.root / "aifx.toml").write_text(
        '[task]\nkind = "chat"\n[finetune]\nbase = "chat"\n[data]\ntokenizer = "byte"\nvalidation_fraction = 0\n'
        f"test_fraction = 0\nseq_len = 64\n[train]\nvalidate_every = 0\n{model}"
    )
    with pytest.raises(ConfigError, match="tokenizer"):
        train(imported, load_config(imported, [], {}), "tuned")

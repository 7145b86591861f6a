"""lm-eval asks a served model what `aifx eval --benchmark` asks it: `make test-peers` runs this.

Its scores need prompts with their log-probabilities, token ids and answers of the server's own tokenizer.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from random import Random

import inprocess
import pytest

from aifx.core.project import Project

LM_EVAL = Path(__file__).parents[2] / os.environ.get("PEERS_VENV", ".venv-peers") / "bin/python"

TASKS = {
    "choices": """
task: choices
dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
target_delimiter: ""
metric_list: [{metric: acc}]
""",
    "written": """
task: written
dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{target}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 16}
metric_list: [{metric: exact_match}]
""",
}


@pytest.fixture
def questions(trained: Project, tmp_path: Path) -> dict[str, Path]:
    rng = Random(0)
    choices = []
    for number in range(60):
        right = f"{number} whales, said"
        wrong = [f"{number} whelas, siad", f"{number} wheals, aids"]  # as short as what it was trained on
        texts = rng.sample([right, *wrong], 3)
        choices.append({"question": "Ishmael.\n", "choices": texts, "answer": texts.index(right)})
    written = [{"question": f"{n} whales, said ", "target": "Ishmael."} for n in range(20)]
    found = {}
    for name, rows in (("choices", choices), ("written", written)):
        found[name] = tmp_path / f"{name}.jsonl"
        found[name].write_text("".join(json.dumps(row) + "\n" for row in rows))
    return found


def test_lm_eval_finds_what_the_benchmark_finds(trained: Project, questions: dict[str, Path], tmp_path: Path) -> None:
    environ = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    (tmp_path / "tasks").mkdir()
    for name, text in TASKS.items():
        (tmp_path / f"tasks/{name}.yaml").write_text(text % questions[name])
    serve = [sys.executable, "-m", "aifx.commands.main", "serve", "--port", "0", "--json", "--step", "3"]
    with (tmp_path / "serve.txt").open("w") as stderr:
        server = subprocess.Popen(serve, cwd=trained.root, stdout=subprocess.PIPE, stderr=stderr, text=True)
    try:
        assert server.stdout is not None
        url = json.loads(server.stdout.readline())["url"]
        options = f"model=main,base_url={url}/v1/completions,num_concurrent=4,tokenizer_backend=remote"
        command = [LM_EVAL, "-m", "lm_eval", "--model", "local-completions", "--model_args", options]
        command += ["--include_path", "tasks", "--tasks", "choices,written", "--output_path", "found"]
        done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
    finally:
        server.terminate()
        assert server.wait(30) == 0
    results = json.loads(next((tmp_path / "found").rglob("*.json")).read_text())["results"]
    for name, theirs, ours in (("choices", "acc,none", "acc"), ("written", "exact_match,none", "exact_match")):
        measured = inprocess.run(
            ["eval", "--run", "main", "--step", "3", "--benchmark", str(questions[name]), "--json"],
            trained.root,
            dict(os.environ),
        )
        assert measured.returncode == 0, measured.stderr
        report = json.loads(measured.stdout)["datasets"][0]
        assert results[name][theirs] == pytest.approx(report["metrics"][ours])

"""`aifx serve` from a run to an answer, and what it refuses before it loads one."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import openai
import pytest
from published_schemas import check_answer
from trained_project import aifx, document

KEY = "AIFX_SERVE__API_KEY"
TIMEOUT_S = 120


def refused(project: Path, *args: str) -> str:
    done = aifx(project, "serve", *args)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert "hint: " in done.stderr
    return done.stderr


@pytest.mark.representative("a served run")
def test_what_is_refused_before_a_model_is_loaded(
    project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told = refused(project, "--host", "0.0.0.0")
    assert f"export {KEY}=" in told
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        told = refused(project, "--port", str(taken.getsockname()[1]))
    assert "cannot listen at 127.0.0.1:" in told
    assert "Address already in use" in told
    assert "serve.slots = [0]" in refused(project, "--slots", "0")
    assert "aifx serve --slots 8,16" in refused(project, "--slots", "8,x")
    assert "serve.quantize" in refused(project, "--quantize", "int3")
    assert "serve.api_key is a secret" in refused(project, "--set", "serve.api_key=x")
    assert "serve.access_log" in refused(project, "--set", f"serve.access_log={tmp_path}")
    told = refused(project, "--set", f"serve.access_log={tmp_path}/missing/access.jsonl")
    assert f"{tmp_path}/missing" in told
    assert "--port" in refused(project, "--port", "70000")
    assert "serve.port = 70000" in refused(project, "--set", "serve.port=70000")
    assert "serve.host" in refused(project, "--host", "")
    monkeypatch.setenv(KEY, "se-cret")
    assert "serve.host" in refused(project, "--host", ""), "with a key too, an empty address is not all addresses"
    for wrong in ("two words", ""):
        monkeypatch.setenv(KEY, wrong)
        told = refused(project)
        assert f"{KEY} holds no key" in told
        assert "two words" not in told
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "llguidance" else found(name))
    assert "pip install 'llguidance" in refused(project)


@pytest.mark.representative("a served run")
def test_a_run_is_served(project: Path) -> None:
    environ = {**os.environ, "AIFX_CACHE_DIR": str(project.parent / "cache"), KEY: "se-cret"}
    command = [sys.executable, "-m", "aifx.commands.main", "serve", "--port", "0", "--slots", "2", "--json"]
    with subprocess.Popen(
        command, cwd=project, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        check_answer(["serve", "--json"], line)
        listening = json.loads(line)
        assert (listening["model"], listening["slots"], listening["max_model_len"]) == ("main", [2], 32)
        url = listening["url"]
        assert httpx.get(f"{url}/ready", timeout=TIMEOUT_S, trust_env=False).status_code == 200
        http = openai.DefaultHttpxClient(timeout=TIMEOUT_S, trust_env=False)
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="se-cret", max_retries=0, http_client=http)
        whole = client.completions.create(model="main", prompt="It was", max_tokens=9, temperature=0, logprobs=2)
        chunks = client.completions.create(model="main", prompt="It was", max_tokens=9, temperature=0, stream=True)
        assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
        assert whole.system_fingerprint == listening["system_fingerprint"]
        with pytest.raises(openai.BadRequestError, match="no chat template"):
            client.chat.completions.create(model="main", messages=[{"role": "user", "content": "Hi"}])
        assert len(client.embeddings.create(model="main", input="It was").data[0].embedding) == 16
        headers = {"Authorization": "Bearer se-cret"}
        metrics = httpx.get(f"{url}/metrics", headers=headers, timeout=TIMEOUT_S, trust_env=False).text
        assert 'aifx:compilations_total{engine="0",model_name="main"} 0.0' in metrics
        process.send_signal(signal.SIGTERM)
        rest, told = process.communicate(timeout=TIMEOUT_S)
    assert (process.returncode, rest) == (0, ""), told
    assert "se-cret" not in told
    text = document(
        aifx(project, "generate", "--prompt", "It was", "--temperature", "0", "--max-tokens", "9", "--json")
    )
    assert text["text"] == whole.choices[0].text


@pytest.mark.slow
def test_a_run_is_served_and_measured(project: Path) -> None:
    options = ["--prompt-tokens", "4..12", "--output-tokens", "8", "--shared-prefix", "4", "--set", "serve.slots=[2]"]
    found = document(
        aifx(project, "bench", "serve", "--run", "main", "--concurrency", "2", "--quick", "--json", *options)
    )
    results = {result["name"].partition(".")[2]: result for result in found["results"]}
    assert set(results) == {"start", "ttft", "tpot", "itl", "latency", "throughput"}
    assert len(results["ttft"]["samples_s"][0]) == 16
    whole = results["throughput"]["figures"]
    assert (whole["requests"], whole["failed_requests"]) == (16, 0)
    assert any("token ids" in note and "(usage)" in note for note in found["notes"])
    assert not [note for note in found["notes"] if "ended before" in note]

"""Secrets on command lines, in variables and in what programs print: no record, lock or report keeps one."""

from __future__ import annotations

import itertools
import json
import random
import string
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from aifx.commands.console.failures import as_error
from aifx.core.facts import to_document
from aifx.core.project import RunDirectory
from aifx.core.redaction import is_secret_variable, redact, redact_arguments, redact_values
from aifx.health.fleet.record import Recorder
from aifx.health.fleet.report import Node
from aifx.health.host import Host
from aifx.runs.lock import hold_run
from aifx.runs.provenance import flags, provenance

SECRETS = [
    "nvapi-plantedplantedplanted12",
    "AIza" + "planted" * 5,
    "hf_plantedplantedplanted",
    "AccountKey=plantedAAAA==;EndpointSuffix=core.example.net",
    "MYSQL_PWD=planted",
    "passphrase=planted",
    "Password: planted",
    "Authorization: Basic cGxhbnRlZDpwdw==",
    "curl -H 'Authorization: Bearer planted'",
    "Basic cGxhbnRlZDpwdw==",
    "https://planted@example.org/x.git",
    "https://planted:x-oauth-basic@example.org/x.git",
    "postgres://u:p@planted/w0rd@db/x",
    "redis://:plan/ted@h:1/0",
    'password="a planted b"',
    "password='a planted b'",
    '{"token": "planted", "x": 1}',
    r'"{\"api_key\": \"planted\"}"',
    "--api-token planted",
    "--set=tracker.api_key=planted",
    "hfToken: planted",
    "PGPASSWORD=planted psql",
    "/x?access_key=planted&a=b",
    "https://h/x?se=1&sig=planted%3D&sp=r",
    "-----BEGIN RSA PRIVATE KEY-----\nplanted\n-----END RSA PRIVATE KEY-----",
]
HARMLESS = [
    "data.tokenizer=bpe --max-tokens 40 num_tokens: 12",
    "basic understanding of tokens/s: 100",
    "http://n1:9470/v1 http://[::1]:80/x@y file:///a@b",
    "MemTotal:       123 kB",
    "signal=9 pattern: x author: me patience=3",
]


@pytest.mark.parametrize("text", SECRETS)
def test_a_secret_is_removed(text: str) -> None:
    for redacted in (
        redact(text),
        redact_arguments(["aifx", "train", "--set", text])[-1],
        redact_values([{"a": text}]),
    ):
        found = json.dumps(redacted)
        assert "[removed]" in found
        assert "plan" not in found
        assert "ted" not in found
        assert "cGxhb" not in found


def _text(random_: random.Random, letters: str, length: int) -> str:
    return "".join(random_.choices(letters, k=length))


def test_both_halves_of_a_login_are_removed() -> None:
    """The scheme may be any, and one of them may have the shape of a token."""
    made = random.Random(0)
    letters = string.ascii_letters + string.digits
    keys = ["AKIA", "hf_", "sk-", "ghp_", "AIza", "eyJ", ""]
    lines = ["{}", "cannot open '{}'", '{{"url": "{}"}}', "copy {},{} now", "--set data.url={}", "simplecache::{}"]
    for scheme, key, line in itertools.product(("s3", "s3a", "gs", "https", "redis"), keys, lines):
        alphabet = string.ascii_uppercase + string.digits if key == "AKIA" else letters
        first = key + _text(made, alphabet, 16 if key == "AKIA" else 24)
        second = _text(made, letters, 12) + "/+" + _text(made, letters, 12)
        for login, halves in ((f"{first}:{second}", (first, second)), (f"{second[:12]}:{first}", (second[:12], first))):
            for host in ("", "host/a.jsonl", "host:9000/a b"):
                text = line.replace("{}", f"{scheme}://{login}@{host}")
                redacted = redact(text)
                assert not any(part in redacted for half in halves for part in half.split("/+")), redacted
                assert f"{scheme}://[removed]@{host}" in redacted
                assert redact(redacted) == redacted


def test_words_after_credentials_stay_and_secrets_do_not() -> None:
    made = random.Random(0)
    words = ["Unable", "not", "None", "please", "(none)", "token", "re-login", "can't", "AWS", "ungültig", "missing."]
    names = ["Credentials", "credentials", "Invalid credentials", "NoCredentialsError", "a.auth.CredentialError"]
    for name, word, gap in itertools.product(names, words, (": ", " ", ":\n  ")):
        text = f"{name}{gap}{word} to be found"
        assert redact(text) == text
    for name, length in itertools.product((*names, "aws_credentials", "credential"), range(6, 40, 3)):
        secret = _text(made, string.ascii_letters, length) + made.choice(string.digits)
        for text in (f"{name}: {secret}", f"{name}={secret}", f'"{name}": "planted"', f"{name}: Bearer planted"):
            assert "[removed]" in (redacted := redact(text))
            assert secret not in redacted
            assert "planted" not in redacted


@pytest.mark.parametrize("text", HARMLESS)
def test_other_text_stays(text: str) -> None:
    assert redact(text) == text


def test_json_with_a_secret_stays_json() -> None:
    assert json.loads(redact('{"token": "a \\"planted\\" b", "x": 1}')) == {"token": "[removed]", "x": 1}


def test_arguments() -> None:
    given = ["aifx", "train", "--set", "tracker.password=a b", "--token", "abc", "--max-tokens", "5", "--api-key"]
    told = ["aifx", "train", "--set", "tracker.password=[removed]", "--token", "[removed]", "--max-tokens", "5"]
    assert redact_arguments(given) == [*told, "--api-key"]


@pytest.mark.parametrize(
    "text", ["a." * 99_999, "://a:" * 40_000, "-----BEGIN PRIVATE KEY-----" * 9_000, "Basic " * 30_000]
)
def test_hostile_text_is_redacted_in_linear_time(text: str) -> None:
    redact(text)  # quadratic, this would take minutes


def test_a_hint_that_names_a_variable_stays() -> None:
    assert redact("export WANDB_API_KEY=...  where") == "export WANDB_API_KEY=...  where"


def test_names_of_variables() -> None:
    secret = [
        "HF_TOKEN",
        "MYSQL_PWD",
        "WANDB_API_KEY",
        "AWS_SECRET_ACCESS_KEY",
        "SSH_AUTH_SOCK",
        "KEY",
        "SLURM_JWT",
        "GPG_PASSPHRASE",
    ]
    assert all(map(is_secret_variable, secret))
    assert not any(map(is_secret_variable, ["PWD", "OLDPWD", "XLA_FLAGS", "KEYBOARD", "JAX_PLATFORMS"]))


def test_what_a_run_keeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sys, "argv", ["aifx", "train", "--set", "tracker.uri=http://u:pla/nted@h", "--token", "planted"]
    )
    run = RunDirectory(tmp_path / "run")
    with hold_run(run):
        held = run.lock.read_text()
    kept = json.dumps(provenance(tmp_path, data_digest="", devices=())["command"])
    kept += json.dumps(flags({"XLA_FLAGS": "--xla_dump_to=s3://u:planted@h/x", "JAX_KEY": "planted"}))
    assert "aifx train" in held
    assert "XLA_FLAGS" in kept
    assert "nted" not in held + kept


def test_what_a_crash_report_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIFX_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["aifx", "train", "--password", "planted"])
    assert as_error(RuntimeError("cannot log in: password=planted")).exit_code == 70
    (report,) = (tmp_path / "reports").iterdir()
    assert "RuntimeError" in report.read_text()
    assert "planted" not in report.read_text()


def _fail_on(value: str) -> None:
    try:
        int(value)
    except ValueError as error:
        raise LookupError(f"row of\n{value}: {value}") from error


def test_a_crash_of_data_commands_quotes_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither its arguments nor the messages of its errors, which are those of another process here."""
    secret = "jane@example.org"
    monkeypatch.setenv("AIFX_CACHE_DIR", str(tmp_path))
    condition = f"--where=mail = '{secret}'"
    monkeypatch.setattr(
        sys, "argv", ["aifx", "--debug", "data", "erase", "pets", condition, "--where", secret, f"-- {secret}", "-y"]
    )
    with pytest.raises(LookupError) as raised, ProcessPoolExecutor(1, get_context("spawn")) as pool:
        pool.submit(_fail_on, secret).result()
    error = as_error(raised.value)
    (report,) = (tmp_path / "reports").iterdir()
    text = report.read_text()
    assert secret not in text + error.what + error.why
    assert "aifx data erase --debug --where --where -y" in text
    assert "in _fail_on" in text
    assert text.count("LookupError") + text.count("ValueError") >= 3
    assert "LookupError" in error.what


def test_what_doctor_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("MYSQL_PWD", "planted"), ("NCCL_X", "AccountKey=planted=="), ("URL", "x://u:p@planted/y@h")):
        monkeypatch.setenv(name, value)
    assert "planted" not in json.dumps(to_document(dict(Host().environ())))
    recorder = Recorder(tmp_path / "fleet.jsonl", ["n1"])
    recorder.take(Node("n1", why="ssh: password=planted"), None)
    recorder.close()
    assert "planted" not in (tmp_path / "fleet.jsonl").read_text()

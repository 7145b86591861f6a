"""`aifx generate` over a run that was really trained."""

from __future__ import annotations

from pathlib import Path

import pytest
from trained_project import aifx, document

from aifx.commands.generate import command
from aifx.core.errors import UsageError
from aifx.verbs.generation import generate

SHORT = ("--max-tokens", "12")


@pytest.mark.slow
def test_the_same_seed_writes_the_same_text(project: Path) -> None:
    said = aifx(project, "generate", "--prompt", "The whale", *SHORT, "--seed", "3")
    assert said.returncode == 0, said.stderr
    told = document(aifx(project, "generate", "--prompt", "The whale", *SHORT, "--seed", "3", "--json"))
    assert said.stdout == f"The whale{told['text']}\n"
    assert {"run", "step", "prompt", "text", "seed"} <= set(told)
    assert (told["run"], told["step"], told["prompt"], told["max_tokens"]) == ("main", 12, "The whale", 12)
    other = document(aifx(project, "generate", "--prompt", "The whale", *SHORT, "--seed", "4", "--json"))
    assert other["text"] != told["text"]


@pytest.mark.slow
def test_quantized_matrices_write_too(project: Path) -> None:
    told = document(aifx(project, "generate", *SHORT, "--set", "generate.quantize=int8", "--json"))
    assert told["quantize"] == "int8"
    assert told["text"]


@pytest.mark.slow
def test_zero_temperature_needs_no_seed(project: Path) -> None:
    texts = {
        document(aifx(project, "generate", *SHORT, "--temperature", "0", "--seed", seed, "--json"))["text"]
        for seed in ("0", "1")
    }
    assert len(texts) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("typed", "prompt"), [("sea\n", "sea"), ("", ""), ("two\nlines\n\n", "two\nlines\n"), ("Æ🐋", "Æ🐋")]
)
def test_a_prompt_on_stdin(project: Path, typed: str, prompt: str) -> None:
    done = aifx(project, "generate", "--prompt", "-", "--max-tokens", "2", "--json", stdin=typed)
    assert document(done)["prompt"] == prompt


@pytest.mark.parametrize(
    ("args", "word"),
    [
        (["--top-p", "2"], "expected a number, above 0 and 1 or less"),
        (["--top-k", str(2**31)], "expected a whole number, 0 or more, 2147483647 or less"),
        (["--system", "Be brief."], "requires --chat"),
        (["--step", "newest"], "is not a step"),
    ],
)
def test_a_wrong_option_is_told_before_stdin_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], word: str
) -> None:
    """At a terminal, stdin is what somebody still has to type."""
    (run := tmp_path / "project/runs/main").mkdir(parents=True)
    (tmp_path / "project/aifx.toml").touch()
    (run / "config.toml").touch()
    monkeypatch.setattr(command, "_read_stdin", lambda: pytest.fail("stdin is read"))
    failed = aifx(tmp_path / "project", "generate", "--prompt", "-", *args)
    assert (failed.returncode, failed.stdout) == (2, "")
    assert word in failed.stderr


@pytest.mark.parametrize(
    ("arguments", "what", "why"),
    [
        ({"temperature": 101}, "--temperature 101 cannot be used", "expected a number, 0 or more and 100 or less"),
        ({"top_k": -1}, "--top-k -1 cannot be used", "expected a whole number, 0 or more"),
        ({"top_k": 2**31}, "--top-k 2147483648 cannot be used", "2147483647 or less"),
        ({"max_tokens": 0}, "--max-tokens 0 cannot be used", "expected a whole number, 1 or more"),
    ],
)
def test_an_argument_out_of_its_range_names_the_option(arguments: dict[str, float], what: str, why: str) -> None:
    with pytest.raises(UsageError) as error:
        generate("no-run", "Call me", **arguments)  # type: ignore[arg-type]
    assert error.value.what == what
    assert why in error.value.why
    assert error.value.hint.startswith("aifx generate --")


@pytest.mark.slow
def test_settings_come_from_the_run_and_from_the_call(project: Path) -> None:
    told = document(
        aifx(project, "generate", "--set", "generate.max_tokens=3", "--set", "generate.prompt='Sea'", "--json")
    )
    assert (told["prompt"], told["max_tokens"], told["temperature"]) == ("Sea", 3, 0.8)


@pytest.mark.representative("an evaluation")
@pytest.mark.parametrize(
    ("args", "word"),
    [
        (["--top-p", "0"], "above 0"),
        (["--temperature", "-1"], "temperature"),
        (["--max-tokens", "0"], "max-tokens"),
        (["--step", "7"], "12"),
        (["--run", "mian"], "main"),
    ],
)
def test_mistakes(project: Path, args: list[str], word: str) -> None:
    failed = aifx(project, "generate", *args)
    assert failed.returncode == 2
    assert failed.stdout == ""
    assert word in failed.stderr
    assert "Traceback" not in failed.stderr


@pytest.mark.slow
def test_a_run_stands_alone(project: Path) -> None:
    """The text that it learnt from may be gone."""
    before = aifx(project, "generate", *SHORT).stdout
    (project / "data/whale.txt").unlink()
    after = aifx(project, "generate", *SHORT)
    assert after.returncode == 0, after.stderr
    assert after.stdout == before

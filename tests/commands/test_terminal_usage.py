"""A command line with a mistake in it: three lines, or one document."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from program import assert_three_lines, run

USAGE: dict[str, tuple[list[str], list[str]]] = {
    "misspelt command": (["trian"], ["'trian'", "'train'", "aifx --help"]),
    "misspelt command below": (["config", "chek"], ["aifx config", "'chek'", "'check'"]),
    "another program's command": (["runs", "delete", "main"], ["'delete'", "did you mean 'rm'?"]),
    "misspelt option": (["config", "show", "--orign"], ["aifx config show", "'--orign'", "'--origin'"]),
    "misspelt option of all": (["--vershun"], ["'--vershun'", "'--version'"]),
    "option with no name near": (["config", "show", "--zzz"], ["'--zzz'", "--origin"]),
    "short option": (["config", "show", "-q"], ["'-q'"]),
    "beginning of an option": (["generate", "--temp", "0"], ["'--temp'", "did you mean '--temperature'?"]),
    "setting as an option": (
        ["train", "--num-steps", "9"],
        ["'--num-steps'", "aifx train --set train.num_steps=VALUE"],
    ),
    "other tool's setting": (["train", "--lr", "1"], ["'--lr'", "aifx train --set optimizer.learning_rate=VALUE"]),
    "setting of the training": (["eval", "--steps", "9"], ["'--steps'", "did you mean '--step'?"]),
    "setting of evaluation": (["predict", "--batch-size", "9", "f"], ["'--batch-size'", "--set eval.batch_size=VALUE"]),
    "argument too many": (["config", "check", "extra"], ["aifx config check", "extra", "usage: aifx"]),
    "run as an argument": (["eval", "main"], ["too many arguments (main)", "hint: aifx eval --run main"]),
    "prompt as an argument": (["generate", "a whale"], ["(a whale)", "aifx generate --prompt 'a whale'"]),
    "argument that is missing": (["predict"], ["aifx predict", "usage: aifx predict [OPTIONS] INPUT..."]),
    "option without its value": (["config", "show", "--set"], ["--set"]),
    "misspelt section": (["config", "keys", "trian"], ["[trian]", "'train'"]),
    "outside of a project": (["config", "show"], ["aifx.toml", "aifx init"]),
}


@pytest.mark.parametrize("case", USAGE)
def test_usage_errors_are_three_lines(tmp_path: Path, case: str) -> None:
    args, words = USAGE[case]
    done = run(tmp_path, *args)
    assert done.returncode == 2
    assert done.stdout == ""
    assert_three_lines(done.stderr)
    for word in words:
        assert word in done.stderr


@pytest.mark.parametrize("case", USAGE)
def test_usage_errors_are_one_document_with_json(tmp_path: Path, case: str) -> None:
    args, words = USAGE[case]
    done = run(tmp_path, *args[:2], "--json", *args[2:])
    assert done.returncode == 2
    assert done.stderr == ""
    document = json.loads(done.stdout)
    assert document["schema_version"] == 1
    assert set(document) == {"schema_version", "error"}
    assert set(document["error"]) == {"what", "why", "hint", "exit_code", "transient"}
    assert document["error"]["exit_code"] == 2
    assert words[0] in done.stdout.replace('\\"', '"')


def test_json_in_front_of_the_command_is_told_where_it_belongs(tmp_path: Path) -> None:
    done = run(tmp_path, "--json", "config", "show")
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["hint"] == "aifx config --json"


def test_json_behind_two_dashes_is_no_option(tmp_path: Path) -> None:
    done = run(tmp_path, "config", "check", "--", "--json")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")


def test_control_characters_do_not_reach_the_terminal(tmp_path: Path) -> None:
    done = run(tmp_path, "config", "\x1b[31mred\x07\r")
    assert done.returncode == 2
    assert all(character.isprintable() or character == "\n" for character in done.stderr)


def test_arguments_that_are_no_text(tmp_path: Path) -> None:
    done = run(tmp_path, "config", "keys", os.fsdecode(b"\xff\xfe"))
    assert done.returncode == 2
    assert_three_lines(done.stderr)

"""Documents nested so deeply that code which walks them would break: one run, site or capture spoils nothing else."""

from __future__ import annotations

import json
import os
from pathlib import Path

import inprocess
import pytest

from aifx.core.errors import AifxError, ConfigError
from aifx.core.parsing import MAX_DEPTH, parse_json, parse_toml
from aifx.health.rules import read_site
from aifx.health.snapshot import read

DEPTHS = [MAX_DEPTH + 1, 900, 200_000]


def deep_json(depth: int) -> str:
    return '{"a":' * depth + "1" + "}" * depth


def deep_toml(depth: int) -> str:
    return f"[train]\nnum_steps = 3\n[x]\na = {'[' * depth}{']' * depth}\n"


@pytest.mark.parametrize("depth", DEPTHS)
def test_deep_json_is_an_error_of_the_document(depth: int) -> None:
    for text in (deep_json(depth), "[" * depth + "]" * depth, "[" * depth):
        for data in (text, text.encode()):
            with pytest.raises(ValueError, match=r"nested|Expecting"):
                parse_json(data)


@pytest.mark.parametrize("depth", DEPTHS[:2])
def test_deep_toml_is_an_error_of_the_document(depth: int) -> None:
    for text in (deep_toml(depth), ".".join("a" * depth) + " = 1", f"[{'.'.join('a' * depth)}]\nx = 1"):
        with pytest.raises(ValueError, match="nested"):
            parse_toml(text)


def test_what_is_not_deep_is_read() -> None:
    wide = [[{"a": [number]}] for number in range(1000)]
    assert parse_json(json.dumps(wide)) == wide
    assert parse_toml("a.b.c = [[1, {d = 2}]]") == {"a": {"b": {"c": [[1, {"d": 2}]]}}}
    deepest = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert json.dumps(parse_json(deepest)) == deepest


@pytest.fixture(scope="module", params=DEPTHS)
def project(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a run whose every document is deep, and a good one."""
    root, deep = tmp_path_factory.mktemp("project"), deep_json(request.param)
    (root / "aifx.toml").write_text("")
    for name in ("deep", "good"):
        run = root / "runs" / name
        (run / "eval").mkdir(parents=True)
        (run / "config.toml").write_text("[train]\nnum_steps = 3\n")
        (run / "metrics.jsonl").write_text('{"step": 2, "loss": 1.5}\n')
    run = root / "runs" / "deep"
    (run / "config.toml").write_text(deep_toml(request.param))
    (run / "metrics.jsonl").write_text(f'{{"step": 1, "loss": 1.0, "validation": {deep}}}\n')
    (run / "events.jsonl").write_text(deep + "\n")
    (run / "checkpoints" / "1").mkdir(parents=True)
    for name in ("provenance.json", "kernels.json", "lock", "eval/1.json", "tags.json", "digests.json"):
        (run / name).write_text(deep)
    (run / "checkpoints" / "1" / "manifest.json").write_text(deep)
    (run / "checkpoints" / "1" / "aifx.json").write_text(deep)
    return root


@pytest.mark.parametrize(
    "args", [["runs", "ls"], ["runs", "ls", "--json"], ["runs", "show", "deep", "--json"], ["runs", "show", "deep"],
             ["runs", "compare", "deep", "good", "--json"], ["ckpt", "ls", "deep"],
             ["runs", "watch", "deep", "--once"]],
)  # fmt: skip
def test_one_deep_run_breaks_no_command(project: Path, args: list[str]) -> None:
    done = inprocess.run(args, project, os.environ)
    assert done.returncode in (0, 2), done.stderr
    assert "bug" not in done.stderr + done.stdout
    if args[:2] == ["runs", "ls"]:
        assert done.returncode == 0
        assert "1.5" in done.stdout


@pytest.mark.parametrize("depth", DEPTHS)
def test_deep_sites_captures_and_configurations_are_refused(tmp_path: Path, depth: int) -> None:
    (tmp_path / "site.toml").write_text(deep_toml(min(depth, 2000)))
    with pytest.raises(ConfigError):
        read_site(tmp_path / "site.toml")
    (tmp_path / "node.json").write_text(f'{{"schema_version": 1, "facts": {deep_json(depth)}}}')
    with pytest.raises(AifxError):
        read(tmp_path / "node.json")

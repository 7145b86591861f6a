"""Mistakes and faults at the command line of the registry: an error with place and way out, and nothing half done.

The commands of every hint are parsed by the real command line.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import model_runs
import pytest
from hints import check_hint, commands_in
from registry_program import answer, run

from aifx.registry import ledger

SIGNED = """
[keys]
ann = \"\"\"{ann}\"\"\"
bob = \"\"\"{bob}\"\"\"
[roles]
admin = ["ann"]
reviewer = ["bob"]
[aliases.production]
eval = {{ split = "test", data = "table@0123", gates = ["accuracy >= 0.9"] }}
better = {{ metric = "max accuracy", margin = 0.01 }}
contamination = {{ data = "tests@0123" }}
licences = {{ allow = ["MIT"] }}
slices = {{ columns = ["colour", "amount"] }}
signature = {{ role = "reviewer" }}
bench = {{}}
drill = {{}}
file = {{ names = ["CARD.md"] }}
approval = {{ role = "reviewer" }}
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose fraud@production means v2, and meant v1 before."""
    folder = tmp_path_factory.mktemp("made") / "project"
    project = model_runs.make_project(folder, model_runs.TABLE)
    for name, width in (("main", 8), ("wide", 16)):
        model_runs.make_run(project, f"model.embed_dim={width}", name=name)
    for name, version in (("main", "v1"), ("wide", "v2")):
        answer(folder, "push", name, "fraud")
        answer(folder, "promote", f"fraud@{version}", "production")
    answer(folder, "attest", "fraud@v1", "aifx.toml")
    (folder / "runs/empty").mkdir()
    shutil.copy(folder / "runs/main/config.toml", folder / "runs/empty")
    (folder / "latin.toml").write_bytes("# caf\xe9".encode("latin-1"))
    (folder / "broken.toml").write_text("[aliases.production\n")
    (folder / "rule.toml").write_text("[aliases.production]\nevla = {}\n")
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "project")
    return tmp_path / "project"


def tree(folder: Path) -> dict[str, bytes | None]:
    """Each file of a folder with its bytes, and each folder in it, but the cache."""
    paths = (path for path in folder.rglob("*") if "cache" not in path.parts)
    return {str(path): path.read_bytes() if path.is_file() else None for path in paths}


def refused(folder: Path, *args: str, code: int = 2, **environ: str) -> str:
    """The error of a command, which changes nothing, and whose hint has commands that are there."""
    before = tree(folder)
    done = run(folder, *args, **environ)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert "Traceback" not in done.stderr
    _, hint = done.stderr[done.stderr.index("error: ") :].split("\nhint: ")
    check_hint(hint)
    assert tree(folder) == before
    return done.stderr


def test_a_hint_with_a_wrong_command_is_found() -> None:
    hint = 'aifx eval --set \'eval.slices=["a", "b"]\' > a.json, and: aifx registry show a, or else'
    assert commands_in(hint) == [["eval", "--set", 'eval.slices=["a", "b"]'], ["registry", "show", "a"]]
    assert check_hint(hint) == 2
    for wrong in ("aifx drill --json", "aifx registry show a --alias b", "ls, or: aifx registry frob"):
        with pytest.raises(Exception, match=r"Missing parameter|No such option|no command 'frob'"):
            check_hint(wrong)


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ("push empty fraud", "empty"),
        ("push mian fraud", "did you mean 'main'"),
        ("push main fraud --step 7", "7"),
        ("push main ../fraud", "cannot name a model"),
        ("push main fraud --key no.pem", "no.pem"),
        ("show frud", "did you mean 'fraud'"),
        ("show fraud@v3", "the newest is v2"),
        ("promote fraud@v9 production", "the newest is v2"),
        ("promote fraud@prodution staging", "did you mean 'production'"),
        ("promote fraud@00000000 production", "names no version"),
        ("promote fraud production", "names no version"),
        ("rollback fraud production --to v9", "'fraud@v9' names no version"),
        ("rollback fraud production --to v2x", "'fraud@v2x' names no version"),
        ("rollback fraud staging", "no alias 'staging'"),
        ("rollback frud production", "did you mean 'fraud'"),
        ("promote fraud@v1 3", "'3' cannot be an alias"),
        ("promote fraud@v1 v3", "'v3' cannot be an alias"),
        ("approve fraud@v1 2026", "'2026' cannot be an alias"),
        ("rollback fraud 3", "'3' cannot be an alias"),
        ("at fraud 3", "'3' cannot be an alias"),
        ("history fraud --alias 3", "'3' cannot be an alias"),
        ("history fraud --alias prod", "did you mean 'production'"),
        ("at fraud production --time noon", "--time noon is no time"),
        ("diff fraud@v1 fraud@v7", "'fraud@v7' names no version"),
        ("pull fraud@v7 there", "'fraud@v7' names no version"),
        ("copy fraud@v7 other", "'fraud@v7' names no version"),
        ("copy fraud@v1 nofs://other", "nofs"),
        ("rm fraud@v2 --yes", "fraud@production refers to it"),
        ("rm fraud@v7 --yes", "'fraud@v7' names no version"),
        ("tag fraud@v1", "no tag is given"),
        ("tag fraud@v1 --remove team", "fraud@v1 has no tag 'team'"),
        ("pull fraud@v1 /proc/there", "could not write /proc/there"),
        ("verify --root nowhere", "nowhere is no registry"),
        ("tag fraud@v1 risk", "'risk' is no tag"),
        ("attest fraud@v1 no.json", "no.json"),
        ("attest fraud@v1 aifx.toml --bench", "aifx.toml is no JSON document"),
        ("attest fraud@v1 --eval", "no evaluation of fraud@v1 is found"),
        ("attest fraud@v1 --comparison", "no comparison of fraud@v1 is found"),
        ("attest fraud@v1 --drill", "no file is given"),
        ("attest fraud@v1 --sign", "--sign requires --key"),
        ("attest fraud@v1 aifx.toml --bench --drill", "--bench cannot be used with --drill"),
        ("approve fraud@v1 production", "ann cannot approve fraud@v1"),
        ("init --policy no.toml", "could not read no.toml"),
        ("init --policy data", "could not read data"),
        ("init --policy aifx.toml", "aifx.toml is no policy"),
        ("init --policy latin.toml", "no text in UTF-8"),
        ("init --policy broken.toml", "broken.toml is no policy"),
        ("init --policy rule.toml", "did you mean 'eval'"),
        ("init --key a.pem", "--key requires --policy"),
        ("keygen there.pem --curve P-1", "--curve P-1 is no curve"),
        ("keygen aifx.toml", "aifx.toml is there already"),
        ("verify frud", "did you mean 'fraud'"),
        ("head frud", "did you mean 'fraud'"),
    ],
)
def test_a_mistake_is_an_error_with_a_way_out(made: Path, args: str, expected: str) -> None:
    assert expected in refused(made, *args.split())


@contextmanager
def unwritable(folder: Path, number: int) -> Iterator[None]:
    """Nothing can be made below a folder: its file system is read-only, or full."""

    def faulty(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *args: Any, **kwargs: Any) -> Any:
            makes = real.__name__ == "mkdir" or args[0] & os.O_CREAT
            at = f"/proc/self/fd/{kwargs['dir_fd']}" if kwargs.get("dir_fd") is not None else "."
            if makes and Path(os.path.realpath(at), path).is_relative_to(folder):
                raise OSError(number, os.strerror(number), str(path))
            return real(path, *args, **kwargs)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in ("open", "mkdir"):
            patch.setattr(os, name, faulty(getattr(os, name)))
        yield


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.EACCES])
def test_a_root_that_cannot_be_written_is_left_as_it_was(made: Path, number: int) -> None:
    acts = {
        "push main spare": "registry",
        "tag fraud@v1 team=risk": "registry",
        "attest fraud@v1 rule.toml": "registry",
        "approve fraud@v1 production": "registry",
        "promote fraud@v1 canary": "registry",
        "rollback fraud production": "registry",
        "rm fraud@v1 --yes": "registry",
        "init": "registry",
        "copy fraud@v1 other": "other",
        "pull fraud@v1 there": "there",
        "keygen keys/ann.pem": "keys",
    }
    for act, root in acts.items():
        with unwritable(made / root, number):
            error = refused(made, *act.split(), AIFX_ACTOR="bob")
        assert f"/{root}" in error or f" {root}/" in error, act
        assert os.strerror(number) in error or "no room to write" in error, act


def test_what_a_promotion_stands_on_was_changed(folder: Path) -> None:
    """Names the place of what is missing or damaged, and moves no alias."""
    (folder / "policy.toml").write_text('[aliases.production]\nfile = { names = ["aifx.toml"] }\napproval = {}\n')
    answer(folder, "init", "--policy", "policy.toml")
    answer(folder, "approve", "fraud@v1", "production", AIFX_ACTOR="bob")
    answer(folder, "attest", "fraud@v1", "data/table.csv")
    judged = answer(folder, "promote", "fraud@v1", "production", code=1)
    assert judged["findings"][-1]["found"].endswith(
        "bob approved before the evidence, the policy or production changed"
    )
    answer(folder, "approve", "fraud@v1", "production", AIFX_ACTOR="bob")
    assert answer(folder, "promote", "fraud@v1", "production", "--dry-run")["action"] == "promote"
    policy = answer(folder, "policy")["digest"]
    attested = answer(folder, "show", "fraud@v1")["evidence"][0]["digest"]
    for digest in (policy, attested):
        path = folder / "registry/objects" / digest
        kept = path.read_bytes()
        for changed in (None, kept[:-1]):
            path.unlink() if changed is None else path.write_bytes(changed)
            assert str(path) in refused(folder, "promote", "fraud@v1", "production")
            verified = answer(folder, "verify", code=1)
            assert digest in str(verified["problems"])
        path.write_bytes(kept)
    version = answer(folder, "show", "fraud@v1")["version"]["digest"]
    for name in ("manifest.json", "weights.safetensors"):
        path = folder / "registry/models/fraud/versions" / version[:12] / name
        path.rename(folder / name)
        way = "push RUN fraud" if name == "weights.safetensors" else "verify fraud"
        assert f"hint: aifx registry {way}" in run(folder, "pull", "fraud@v1", f"there-{name}").stderr
        assert answer(folder, "verify", code=1)["problems"]
        (folder / name).rename(path)
    assert answer(folder, "verify")["problems"] == []
    assert answer(folder, "promote", "fraud@v1", "production")["action"] == "promote"


def test_the_order_of_entries_is_the_chains_when_the_clock_runs_backwards(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime(2001, 1, 1, tzinfo=tz)

    monkeypatch.setattr(ledger, "datetime", Clock)
    assert answer(folder, "promote", "fraud@v1", "production")["previous"] == "v2"
    monkeypatch.undo()
    times = [entry["time"] for entry in answer(folder, "history", "fraud")["entries"]]
    assert times != sorted(times)
    assert answer(folder, "verify")["problems"] == []
    assert answer(folder, "at", "fraud", "production")["version"] == "v1"
    assert answer(folder, "at", "fraud", "production", "--time", "2001-01-02", code=1)["version"] is None
    assert answer(folder, "rollback", "fraud", "production")["reference"] == "fraud@v2"


def test_the_hints_of_a_refusal_are_commands(folder: Path) -> None:
    pems = {}
    for name in ("ann", "bob"):
        answer(folder, "keygen", f"{name}.pem")
        pems[name] = (folder / f"{name}.pem.pub").read_text()
    (folder / "policy.toml").write_text(SIGNED.format(**pems))
    answer(folder, "init", "--policy", "policy.toml", "--key", "ann.pem")
    refused(folder, "init", "--policy", "rule.toml")
    refused(folder, "init", "--policy", "latin.toml", "--key", "bob.pem")
    refused(folder, "approve", "fraud@v1", "production", AIFX_ACTOR="bob")
    refused(folder, "approve", "fraud@v1", "production", "--key", "ann.pem", AIFX_ACTOR="bob")
    findings = answer(folder, "promote", "fraud@v1", "production", code=1)["findings"]
    hints = {one["rule"]: check_hint(one["hint"]) for one in findings if not one["passed"]}
    once = ("signature", "file", "approval")
    twice = ("eval", "better", "contamination", "licences", "slices", "drill")
    assert hints == dict.fromkeys(once, 1) | dict.fromkeys(twice, 2) | {"bench": 3}
    (bench,) = (one["hint"] for one in findings if one["rule"] == "bench")
    assert commands_in(bench)[0] == ["serve", "--model", "fraud@v1"]  # a run may have other checkpoints, or be gone


@pytest.mark.parametrize("kind", ["link", "folder"])
def test_a_last_entry_that_is_no_file_is_damage(folder: Path, kind: str) -> None:
    """It is not passed over, as if the entry before were the last."""
    last = max((folder / "registry/models/fraud/ledger").iterdir())
    last.rename(folder / "away.json")
    if kind == "link":
        last.symlink_to(folder / "away.json")
    else:
        last.mkdir()
    (problem,) = answer(folder, "verify", code=1)["problems"]
    assert f"{last} is not a regular file" in problem["why"]
    assert f"{last} is not a regular file" in refused(folder, "show", "fraud")


def test_a_line_break_in_the_ledger_forges_no_line(folder: Path) -> None:
    forged = "eve\nfraud@production means v9"
    answer(folder, "tag", "fraud@v2", f"team={forged}")
    answer(folder, "rollback", "fraud", "production", "--reason", forged, AIFX_ACTOR=forged)
    answer(folder, "push", "main", "spare", AIFX_ACTOR=forged)
    for args in ("show fraud", "show fraud@v2", "show spare@v1", "history fraud", "at fraud production", "search team"):
        shown = run(folder, *args.split()).stdout
        assert "eve fraud@production means v9" in shown or args == "show fraud", args
        assert not any(line.startswith("fraud@production means v9") for line in shown.splitlines()), args

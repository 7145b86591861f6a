"""A line file and its folder from strangers: commands that only look at a line execute nothing of it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from unittest import mock

import pytest
import yaml
from inprocess import run
from ticking import Ticking, station

from aifx.core.errors import AifxError, ConfigError, DataError
from aifx.lines.deploying import units
from aifx.lines.file import read_line
from aifx.lines.running import Try, environment_of
from aifx.verbs.line_files import line_graph

HOSTILE = r"""
[line]
every = "1h"
[[station]]
name = "a"
run = "aifx data clean '\u001b]0;title\u0007\u202e' $(touch canary) `touch canary` ; touch x </svg><script>x</script>"
when = "changed:../../etc or changed:<script>x</script> or changed:\u001b[2J\u202e or changed:x@../../y"
environment = ["UNSET", "file:/etc/passwd", "file:/dev/zero", "file:/proc/kmsg"]
[[station]]
name = "b"
run = ["aifx train --config ../../../etc/passwd ../../../proc/kmsg", "aifx data make --recipe /dev/zero", "\u001b[2J"]
after = ["a"]
[[station]]
name = "c"
run = "touch canary"
shell = true
[[station]]
name = "d"
run = "aifx eval {data...} {models....x}"
[[notify]]
url_from = "OPS_URL"
"""
AIFX = """
[launch]
image = "registry.example/lm:1"
environment = ["UNSET=1", "OPS_URL=1", "OPS_URL_SECRET=1"]
[k8s]
runs_claim = "runs"
"""
LOOKS = [
    (["check"], 1),
    (["check", "--json"], 1),
    (["status"], 0),
    (["status", "--json"], 0),
    (["history"], 0),
    (["graph", "--html", "out/page.html", "--svg", "out/picture.svg"], 0),
    (["run", "--dry-run"], 2),
    (["unit", "--environment-file", "e", "--output", "out"], 0),
    (["k8s", "--name", "lm"], 0),
]
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]")


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    (tmp_path / "line.toml").write_text(HOSTILE)
    (tmp_path / "aifx.toml").write_text(AIFX)
    return tmp_path


@pytest.mark.parametrize(("words", "code"), LOOKS)
def test_commands_that_look_execute_nothing_and_steer_no_terminal(hostile: Path, words: list[str], code: int) -> None:
    before = sorted(hostile.iterdir())
    refuse = mock.Mock(side_effect=AssertionError("a process was started"))
    with (
        mock.patch.object(subprocess, "Popen", refuse),
        mock.patch.object(os, "posix_spawn", refuse),
        mock.patch.object(os, "fork", refuse),
        mock.patch.object(os, "execve", refuse),
    ):
        found = run(["line", *words], hostile, dict(os.environ))
    assert found.returncode == code, found.stderr
    assert not refuse.called
    assert sorted(hostile.iterdir()) == before  # no canary, and nothing of the line
    written = {path.name: path.read_text() for path in (hostile / "out").iterdir()}
    for text in (found.stdout, found.stderr, *written.values()):
        assert not CONTROL.search(text)
    for name in ("page.html", "picture.svg"):
        assert "<script" not in written.get(name, "")
    if "--json" in words:
        json.loads(found.stdout)
    if words[0] == "k8s":
        assert yaml.safe_load(found.stdout)["kind"] == "CronJob"
    if words == ["check"]:
        for fault in ("UNSET is not set", "etc/passwd:1 sets no variable", "no command", "means nothing"):
            assert fault in found.stdout


@pytest.mark.parametrize(
    "entry",
    ["X\\nExecStartPre=/bin/touch canary", "A=B", "", "$(touch canary)", "\\u001b[2J", "file:", "file:a\\nb", "X\\n"],
)
def test_an_entry_of_an_environment_is_a_name_or_a_file(hostile: Path, entry: str) -> None:
    (hostile / "line.toml").write_text(station("a") + f'environment = ["{entry}"]\n')
    with pytest.raises(ConfigError, match=r"line\.toml:5: station 'a': environment: "):
        read_line(hostile / "line.toml")


@pytest.mark.parametrize("name", ["a\nExecStartPre=x", "a\rb", "a\\"])
def test_the_name_of_a_folder_ends_no_line_of_a_unit(tmp_path: Path, name: str) -> None:
    root = tmp_path / name
    root.mkdir()
    ticking = Ticking(root)
    ticking.write('[line]\nevery = "1h"\n' + station("a"))
    one = ticking.run()
    with pytest.raises(AifxError, match="cannot be in a unit"):
        units(one.line, (), one.project, ["aifx"], name="lm", watch=False, environment_file=None)


@pytest.mark.parametrize(
    "name",
    [
        *("LD_PRELOAD", "PATH", "PYTHONPATH", "BASH_ENV", "GIT_SSH_COMMAND", "KUBECONFIG", "AWS_CONFIG_FILE", "Path"),
        *("AWS_SHARED_CREDENTIALS_FILE", "ODBCINI", "ODBCSYSINI", "PGSERVICEFILE", "PGSYSCONFDIR", "SSLKEYLOGFILE"),
        *("SBATCH_EXPORT", "CLOUDSDK_PYTHON"),
    ],
)
def test_a_file_of_secrets_sets_no_variable_that_loads_code(tmp_path: Path, name: str) -> None:
    (tmp_path / "e").write_text(f"PGPASSWORD=swordfish\nSLURM_JWT=x\nAWS_PROFILE=x\nLDAP_USER=y\n{name}=./bin\n")
    with pytest.raises(ConfigError, match=f"e sets {name}\n") as raised:
        environment_of(["file:e"], tmp_path, {})
    assert "./bin" not in str(raised.value)
    environ, _ = environment_of(["file:e"], tmp_path, {}, is_program=True)  # it may do so itself
    assert environ[name] == "./bin"
    assert environment_of([name], tmp_path, {name: "given"})[0][name] == "given"  # by the person


def test_a_program_of_an_open_attempt_does_not_begin_without_the_permission(tmp_path: Path) -> None:
    """A journal that comes with the line says that a person has allowed its program, and the attempt has begun."""
    ticking = Ticking(tmp_path)
    ticking.write(station("a") + '[[station]]\nname = "b"\nrun = "aifx config keys"\n')
    ticking.tick()
    journal = ticking.root / "line" / "journal.jsonl"
    rows = journal.read_text().splitlines(keepends=True)
    (started,) = [n for n, one in enumerate(ticking.records()) if (one.kind, one.station) == ("started", "a")]
    journal.write_text("".join(rows[: started + 1]))
    shutil.rmtree(next((ticking.root / "line" / "attempts").glob("a-*")) / "1")
    (ticking.root / "a.count").unlink()
    for _ in range(2):
        made = ticking.decisions(allows_shell=False)
        assert (made["a"].state, made["a"].hint) == ("failed", "aifx line run --allow-shell")
        assert made["b"].state in ("done", "failed")
        assert ticking.count("a") == 0
    assert ticking.tick()["a"] == "done"
    assert ticking.count("a") == 1


@pytest.mark.parametrize(("attempt", "number"), [("../../x", 1), ("a/b", 1), ("", 1), ("-x", 1), ("a", "../1")])
def test_an_attempt_of_a_journal_is_a_folder_of_the_line(tmp_path: Path, attempt: str, number: int) -> None:
    with pytest.raises(DataError, match="is no attempt"):
        Try(tmp_path / "line" / "attempts", attempt, number)


def test_the_graph_and_hints_show_no_secret_that_is_known_by_its_shape(tmp_path: Path) -> None:
    url, ticking = "postgresql://u:swordfish@h/d", Ticking(tmp_path)
    fails = station("a", f"sh -c 'printf \"error: no {url}\\nit is down\\nhint: psql {url}\\n\" >&2; exit 3'")
    text = fails + station("b", when=f"changed:{url}")
    ticking.write(text)
    made = ticking.tick()
    assert made["a"] == "failed"
    (ended,) = ticking.records("ended", "a")
    assert ended.facts["error"]["hint"] == "psql postgresql://[removed]@h/d"
    graph = line_graph(project=tmp_path)
    assert [one.when for one in graph.stations] == ["", "changed:postgresql://[removed]@h/d"]
    found = json.dumps(graph.document()) + graph.page() + graph.svg() + "".join(graph.text())
    journal = "".join(json.dumps(one.facts) for one in ticking.records())
    assert "[removed]" in found
    assert "swordfish" not in found + journal

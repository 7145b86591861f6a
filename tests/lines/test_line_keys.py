"""Names of a line in a tick, and the key of a station."""

from pathlib import Path

import pytest

from aifx.core.errors import UsageError
from aifx.core.project import Project
from aifx.lines.bindings import bind, fix_bindings, locate
from aifx.lines.file import Line, read_line
from aifx.lines.keys import ProjectCode, station_key

LINE = """
[line]
every = "1d"
timezone = "Europe/Berlin"

[[station]]
name = "make"
run = "data make"

[[station]]
name = "train"
run = "train --run lm-{key} --set data.dataset={stations.make.data_sets.0.reference} --set x={data.corpus}"

[[station]]
name = "tidy"
run = "sh tidy.sh"
shell = true
"""
IDENTITIES = {"make": {"code": 0, "reference": "corpus@1"}}
BINDINGS = {"tick": "1", "data.corpus": "corpus@1"}


@pytest.fixture
def project(tmp_path: Path) -> Project:
    (tmp_path / "aifx.toml").write_text('[datasets]\nroot = "sets"\n[train]\nnum_steps = 3\n')
    (tmp_path / "task.py").write_text("open('ran', 'w')\n")
    return Project(tmp_path)


@pytest.fixture
def line(tmp_path: Path) -> Line:
    (tmp_path / "line.toml").write_text(LINE)
    return read_line(tmp_path / "line.toml")


def test_a_tick_fixes_its_time_once_per_period_and_leaves_out_what_is_not_there(line, project):
    fixed = fix_bindings(line, project, 1_778_000_000.0)
    assert fixed == fix_bindings(line, project, 1_778_000_100.0)
    assert fixed == {"tick": "20260504T220000.000Z", "date": "2026-05-05", "time": "00-00-00"}
    assert not (project.root / "ran").exists()


def test_the_environment_says_where_data_sets_are(project):
    assert locate(project, {}).datasets == "sets"
    assert locate(project, {"AIFX_DATASETS__ROOT": "/else"}).datasets == "/else"


def test_values_are_put_into_their_words(line):
    outputs = {"make": {"data_sets": [{"reference": "corpus@ab"}]}}
    made = bind(line.stations["train"], BINDINGS, outputs, "0123456789abcdef")
    assert made == [["train", "--run", "lm-0123456789ab", "--set", "data.dataset=corpus@ab", "--set", "x=corpus@1"]]


@pytest.mark.parametrize(("outputs", "bindings"), [({}, BINDINGS), ({"make": {"data_sets": [{"reference": "a"}]}}, {})])
def test_a_name_that_means_nothing_is_named(line, outputs, bindings):
    with pytest.raises(UsageError, match=r"\{(stations|data)\."):
        bind(line.stations["train"], bindings, outputs, "0" * 64)


def test_the_key_changes_with_all_that_the_outputs_depend_on_and_nothing_else(line, project):
    train = line.stations["train"]

    def key(**given: object) -> str:
        code = ProjectCode(project)
        return station_key(line, train, given.get("bindings", BINDINGS), given.get("parents", IDENTITIES), code)  # type: ignore[arg-type]

    first = key()
    assert first == key(bindings={**BINDINGS, "tick": "2"})
    found = {first, key(bindings={**BINDINGS, "data.corpus": "corpus@2"}), key(parents={"make": {"code": 1}})}
    (project.root / "task.py").write_text('"""Words."""\n\nopen(\'ran\', \'w\')  # a comment\n')
    assert key() == first, "comments and docstrings count"
    (project.root / "task.py").write_text("pass\n")
    found.add(key())
    (project.root / "aifx.toml").write_text("[train]\nnum_steps = 4\n")
    found.add(key())
    assert len(found) == 5


def test_a_source_has_the_tick_in_its_key_and_a_program_its_script(line, project):
    def key(name: str, tick: str) -> str:
        return station_key(line, line.stations[name], {"tick": tick}, {}, ProjectCode(project))

    assert key("make", "1") != key("make", "2")
    before = key("tidy", "1")
    assert before == key("tidy", "2")
    (project.root / "tidy.sh").write_text("true\n")
    assert before != key("tidy", "1")

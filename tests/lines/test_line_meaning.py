"""What the texts of a line mean in a tick: conditions, keys that follow the data, and outputs that were removed."""

import shutil
from pathlib import Path

import pytest

import aifx
from aifx.core.project import Project
from aifx.lines.bindings import fix_bindings
from aifx.lines.file import read_line
from aifx.lines.meaning import LineMeaning

NOW = 1_778_000_000.0
LINE = """
[[station]]
name = "add"
run = "data add notes texts --license CC0-1.0"

[[station]]
name = "clean"
run = "data clean {stations.add.reference}"

[[station]]
name = "train"
run = "train --run lm-{key}"

[[station]]
name = "push"
run = "registry push {stations.train.run} lm"
when = "changed:corpus and (verdict:clean or every:1d)"
"""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    (tmp_path / "aifx.toml").write_text('[data]\ndataset = "corpus"\n')
    (tmp_path / "line.toml").write_text(LINE)
    return Project(tmp_path)


def meaning_of(project: Project, **bindings: str) -> LineMeaning:
    return LineMeaning(read_line(project.root / "line.toml"), project, {"tick": "2"} | bindings, NOW)


def outcomes(**found: str):
    return lambda name: found.get(name, "")


def test_a_condition_is_judged_by_what_the_last_start_saw(project):
    meaning = meaning_of(project, **{"data.corpus": "corpus@b"})
    push = meaning.line.stations["push"]
    before = {"tick": "1", "data.corpus": "corpus@a"}
    assert meaning.holds(push, {}, [], outcomes()) == ""  # it never ran: `every` is due
    assert meaning.holds(push, before, [NOW - 3 * 86400], outcomes()) == ""
    assert meaning.holds(push, before, [NOW], outcomes()) == f"not: {push.when}"
    assert meaning.holds(push, before, [NOW], outcomes(clean="verdict")) == ""
    assert meaning.holds(push, before, [NOW], outcomes(clean="failed")) == f"not: {push.when}"
    assert meaning.holds(push, {"tick": "1", "data.corpus": "corpus@b"}, [], outcomes()) == f"not: {push.when}"
    assert meaning_of(project).holds(push, {}, [], outcomes()) == f"not: {push.when}"  # no data set yet


def test_a_tick_gives_one_answer_to_a_station_that_it_started(project):
    meaning = meaning_of(project)
    assert meaning.holds(meaning.line.stations["push"], {"tick": "2"}, [NOW], outcomes()) == ""


def add_text(project: Project, name: str, text: str) -> str:
    """Add a text to a data set. Returns the version."""
    (project.root / "texts").mkdir(exist_ok=True)
    (project.root / f"texts/{text}.txt").write_text(f"{text}\n")
    return aifx.data_add(name, project.root / "texts", license="CC0-1.0", project=project.root).reference


def test_a_training_follows_the_data_set_that_only_its_configuration_names(project):
    keys = set()
    for text in ("one", "two"):
        made = add_text(project, "corpus", text)
        fixed = fix_bindings(meaning_of(project).line, project, NOW)
        assert fixed["data.corpus"] == made
        keys.add(meaning_of(project, **fixed).key(meaning_of(project).line.stations["train"], {}))
    assert len(keys) == 2


@pytest.mark.parametrize(
    ("run", "follows"),
    [
        ("train", True),
        ("train --set data.dataset=letters", False),
        ("train --set=data.dataset=letters", False),
        ("train --set data.dataset={data.corpus}", True),
        ("train --config other.toml", False),
        ("data clean letters", False),
    ],
)
def test_the_key_has_what_the_words_and_the_configuration_name(project, run, follows):
    (project.root / "other.toml").write_text('[data]\ndataset = "letters"\n')
    (project.root / "line.toml").write_text(f'[[station]]\nname = "one"\nrun = "{run}"\n')
    keys = set()
    for digits in "ab":
        meaning = meaning_of(project, **{"data.corpus": f"corpus@{digits}"})
        keys.add(meaning.key(meaning.line.stations["one"], {}))
    assert len(keys) == 1 + follows


def test_a_data_set_of_the_station_right_before_counts_once(project):
    text = '[[station]]\nname = "make"\nrun = "data make"\n[[station]]\nname = "train"\nrun = "train"\n'
    (project.root / "recipe.toml").write_text("[corpus]\nsteps = []\n")
    for more, count in (("", 2), ('after = ["make"]\n', 1)):
        (project.root / "line.toml").write_text(text + more)
        found = [meaning_of(project, **{"data.corpus": f"corpus@{digits}"}) for digits in "ab"]
        assert len({one.key(one.line.stations["train"], {"make": {}}) for one in found}) == count


def test_the_base_of_a_fine_tuning_is_an_alias_that_counts(project):
    (project.root / "aifx.toml").write_text('[finetune]\nbase = "lm@production"\n')
    found = [meaning_of(project, **{"models.lm.production": f"lm@{digits}"}) for digits in "ab"]
    assert len({one.key(one.line.stations["train"], {}) for one in found}) == 2


def test_outputs_that_were_removed_are_not_present(project):
    made = add_text(project, "notes", "one")
    meaning = meaning_of(project)
    add, train, push = (meaning.line.stations[name] for name in ("add", "train", "push"))
    assert meaning.is_present(add, {"reference": made})
    assert meaning.is_present(add, {"data_sets": [{"reference": made}, {"reference": None}]})
    assert not meaning.is_present(add, {"data_sets": [{"reference": made}, {"reference": "notes@000000000000"}]})
    assert not meaning.is_present(train, {"run": "lm-1"})
    (project.runs_path / "lm-1").mkdir(parents=True)
    assert meaning.is_present(train, {"run": "lm-1"})
    assert not meaning.is_present(push, {"name": "lm", "digest": "0" * 64})
    shutil.rmtree(project.root / "datasets")
    assert not meaning.is_present(add, {"reference": made})

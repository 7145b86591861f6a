"""Recipes: the versions that separate commands make, only what is missing, and errors that name the place."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

import aifx
from aifx.core.errors import AifxError, ConfigError, ExitCode, UsageError

RECIPE = """
[corpus]
steps = [
    { add = { sources = ["texts/*.txt"], license = "CC0-1.0" } },
    { dedupe = { near = 0.8 } },
    { pii = { mask = true } },
    { split = { validation = 0.2, test = 0.2 } },
]

[blend]
steps = [{ mix = { sets = ["corpus:3", "letters:1"], epochs = ["letters:2"] } }]

[[letters.steps]]
add = { sources = ["letters"], license = "MIT" }
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "aifx.toml").write_text('[datasets]\nroot = "datasets"\n')
    (tmp_path / "recipe.toml").write_text(RECIPE)
    (tmp_path / "texts").mkdir()
    for text in range(30):
        words = " ".join(f"word{text * 30 + word}" for word in range(30))
        (tmp_path / "texts" / f"{text}.txt").write_text(f"{words} ann{text}@example.com")
    (tmp_path / "texts" / "copy.txt").write_text((tmp_path / "texts" / "3.txt").read_text())
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "a.txt").write_text("Dear Mrs Smith, the parcel came.")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def meanings(project: Path) -> dict[str, str]:
    return {path.parent.name: path.read_text().strip() for path in (project / "datasets").glob("*/latest")}


def steps_to_do(plan: object) -> dict[str, list[str]]:
    assert isinstance(plan, aifx.verbs.recipes.PlannedRecipes)
    return {one.name: [step.step for step in one.steps if step.reference is None] for one in plan.data_sets}


@pytest.mark.slow
def test_it_makes_what_the_separate_commands_make_and_nothing_twice(project: Path) -> None:
    made = aifx.data_make()
    assert [one.name for one in made.data_sets] == ["corpus", "letters", "blend"]
    assert all(step.is_new for one in made.data_sets for step in one.steps)
    assert made.exit_code == ExitCode.OK
    again = aifx.data_make()
    assert not any(one.is_new or step.is_new for one in again.data_sets for step in one.steps)
    assert [one.reference for one in again.data_sets] == [one.reference for one in made.data_sets]
    assert [step.dropped for step in made.data_sets[0].steps] == [0, 1, 0, 0]
    assert len({step.reference for step in made.data_sets[0].steps}) == 2

    apart = str(project / "apart")
    aifx.data_add("corpus", "texts/*.txt", license="CC0-1.0", root=apart)
    aifx.data_dedupe("corpus", near=0.8, root=apart)
    aifx.data_pii("corpus", mask=True, root=apart)
    by_hand = aifx.data_split("corpus", validation=0.2, test=0.2, root=apart)
    rows = [aifx.data_query("corpus", "SELECT * FROM data", root=root).rows for root in ("datasets", apart)]
    assert rows[0] == rows[1]
    (project / "recipe.toml").write_text(RECIPE.replace("} },\n", "}, keep = true },\n"))
    kept = aifx.data_make("corpus").data_sets[0]
    assert kept.reference == by_hand.reference
    assert len({step.reference for step in kept.steps}) == 4


def test_a_plan_says_what_and_why_and_writes_nothing(project: Path) -> None:
    plan = aifx.data_make_plan()
    assert steps_to_do(plan) == {"corpus": ["add", "dedupe", "pii", "split"], "letters": ["add"], "blend": ["mix"]}
    assert not (project / "datasets").exists()
    aifx.data_make()
    before = meanings(project)
    assert not any(steps_to_do(aifx.data_make_plan()).values())

    (project / "recipe.toml").write_text(RECIPE.replace("near = 0.8", "near = 0.7"))
    plan = aifx.data_make_plan()
    assert steps_to_do(plan) == {"corpus": ["dedupe", "pii", "split"], "letters": [], "blend": ["mix"]}
    corpus, _, blend = plan.data_sets
    assert corpus.steps[1].why == "near changed: 0.8 before, 0.7 now"
    assert blend.steps[0].why == "corpus is made first"

    (project / "recipe.toml").write_text(RECIPE)
    (project / "texts" / "new.txt").write_text("another text")
    assert aifx.data_make_plan("corpus").data_sets[0].steps[0].why == "new or changed source files: 1"
    assert meanings(project) == before


@pytest.mark.slow
def test_a_data_set_has_the_files_of_its_recipe_alone(project: Path) -> None:
    aifx.data_make("corpus")
    (project / "texts" / "7.txt").unlink()
    why = aifx.data_make_plan("corpus").data_sets[0].steps[0].why
    assert why == "files of its rows are no longer sources"
    (made,) = aifx.data_make("corpus").data_sets
    assert made.steps[0].rows == 30
    (project / "texts" / "8.txt").write_text("changed")
    assert aifx.data_make("corpus").data_sets[0].steps[0].rows == 30


def test_decontaminate_compares_with_held_out_rows_although_the_project_trains_on_the_data_set(project: Path) -> None:
    config = (project / "aifx.toml").read_text()
    (project / "aifx.toml").write_text(f'{config}[data]\ndataset = "blend"\n')
    recipe = RECIPE.replace("test = 0.2 } },", "test = 0.2 } },\n    { decontaminate = {} },")
    (project / "recipe.toml").write_text(recipe)
    made = aifx.data_make()
    assert made.data_sets[0].steps[-1].step == "decontaminate"
    assert [one.reference for one in aifx.data_make().data_sets] == [one.reference for one in made.data_sets]


def test_erased_rows_do_not_come_back(project: Path) -> None:
    (project / "letters" / "b.txt").write_text("Dear Ann, thank you.")
    aifx.data_make("letters")
    aifx.data_erase("letters", "contains(text, 'Smith')", confirm=lambda _: None)
    assert aifx.data_make_plan("letters").data_sets[0].steps[0].why == "rows of it were erased"
    (made,) = aifx.data_make("letters").data_sets
    assert made.steps[-1].rows == 1
    assert {step.why for step in aifx.data_make_plan("letters").data_sets[0].steps} == {""}
    (project / "letters" / "a.txt").unlink()
    (made,) = aifx.data_make("letters").data_sets
    assert made.steps[-1].rows == 1


def test_what_is_read_is_made_first(project: Path) -> None:
    made = aifx.data_make("blend")
    assert [one.name for one in made.data_sets] == ["corpus", "letters", "blend"]


def test_a_step_that_breaks_its_limit_ends_it_and_the_name_keeps_its_meaning(
    project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "aifx")
    aifx.data_make()
    before = meanings(project)
    rule = 'rule = [{ id = "none", measure = "words", above = 1000, source = "this test" }]'
    (project / "rules.toml").write_text(rule)
    clean = '{ clean = { rules = ["rules.toml"] } },\n    { pii'
    (project / "recipe.toml").write_text(RECIPE.replace("{ pii", clean))
    made = aifx.data_make()
    assert made.exit_code == ExitCode.VERDICT
    assert [step.step for step in made.data_sets[-1].steps] == ["add", "dedupe", "clean"]
    assert meanings(project) == before
    assert any("still means" in message for message in caplog.messages)


def test_the_plan_ends_at_a_step_that_is_not_accepted(project: Path) -> None:
    rule = 'rule = [{ id = "none", measure = "words", above = 1000, source = "this test" }]'
    (project / "rules.toml").write_text(rule)
    (project / "recipe.toml").write_text(RECIPE.replace("{ pii", '{ clean = { rules = ["rules.toml"] } },\n    { pii'))
    aifx.data_make("blend")
    (corpus,) = aifx.data_make_plan("blend").data_sets
    assert [step.step for step in corpus.steps] == ["add", "dedupe", "clean"]
    assert corpus.steps[-1].reference is not None
    assert corpus.steps[-1].why == "it is not accepted, and nothing after it runs"


@pytest.mark.slow
def test_the_plan_says_that_a_name_gets_back_the_version_of_the_recipe(project: Path) -> None:
    aifx.data_make()
    before = meanings(project)
    aifx.data_clean("corpus", rules=[], languages=None)
    assert meanings(project) != before
    corpus, _, blend = aifx.data_make_plan().data_sets
    assert (corpus.steps[-1].reference, corpus.steps[-1].why) == (
        f"corpus@{before['corpus']}",
        "corpus will mean it",
    )
    assert blend.steps[0].why == "corpus is made first"
    aifx.data_make()
    assert meanings(project) == before


def test_the_reason_compares_a_step_that_is_there_twice_with_the_same_one_of_the_two(project: Path) -> None:
    twice = RECIPE.replace("    { split", "    { dedupe = { near = 0.9 } },\n    { split")
    (project / "recipe.toml").write_text(twice)
    aifx.data_make("corpus")
    (project / "recipe.toml").write_text(twice.replace("near = 0.8", "near = 0.7"))
    assert aifx.data_make_plan("corpus").data_sets[0].steps[1].why == "near changed: 0.8 before, 0.7 now"


@pytest.mark.slow
def test_a_version_that_is_deleted_is_made_again(project: Path) -> None:
    made = aifx.data_make("corpus").data_sets[0]
    name, _, version = made.steps[0].reference.partition("@")
    shutil.rmtree(project / "datasets" / name / version)
    plan = aifx.data_make_plan("corpus").data_sets[0]
    assert plan.steps[0].why == "a version that the current one was made from is gone"
    assert aifx.data_make("corpus").data_sets[0].reference == made.reference


def test_paths_are_relative_to_the_recipe_and_not_to_the_folder_of_the_command(project: Path) -> None:
    folder = project / "web"
    (folder / "tests").mkdir(parents=True)
    (folder / "tests" / "a.txt").write_text((project / "texts" / "3.txt").read_text())
    recipe = """[corpus]
steps = [
    { add = { sources = ["../texts/*.txt"], license = "MIT" } },
    { decontaminate = { against = ["tests"] } },
]
"""
    (folder / "recipe.toml").write_text(recipe)
    assert aifx.data_make(recipe=folder / "recipe.toml").data_sets[0].steps[1].dropped == 2
    (project / "rules.toml").write_text("")
    (folder / "recipe.toml").write_text(
        recipe.replace('decontaminate = { against = ["tests"]', 'clean = { rules = ["rules.toml"]')
    )
    with pytest.raises(ConfigError, match=r"web/rules\.toml cannot be read"):
        aifx.data_make(recipe=folder / "recipe.toml")
    (folder / "recipe.toml").write_text(recipe.replace("../texts/*.txt", "~nobody-of-this-name/a.txt"))
    with pytest.raises(UsageError, match="cannot be read"):
        aifx.data_make(recipe=folder / "recipe.toml")


def test_a_recipe_of_windows_is_read(project: Path) -> None:
    (project / "recipe.toml").write_bytes(b"\xef\xbb\xbf" + RECIPE.replace("\n", "\r\n").encode())
    assert [one.name for one in aifx.data_make_plan().data_sets] == ["corpus", "letters", "blend"]


@pytest.mark.parametrize(
    ("step", "error"),
    [
        ("pii = { mask = true, kinds = [] }", "--kinds names no kind"),
        ("split = { validation = -0.1 }", "--validation -0.1 is no share"),
        ("clean = { max_dropped = 7 }", "--max-dropped 7 cannot be used"),
        ("clean = { rules = ['none'] }", "no set of rules 'none'\n.*an empty list"),
    ],
)
def test_values_that_no_option_of_a_command_takes(project: Path, step: str, error: str) -> None:
    (project / "recipe.toml").write_text(
        f'[letters]\nsteps = [{{ add = {{ sources = ["letters"], license = "MIT" }} }}, {{ {step} }}]'
    )
    with pytest.raises(UsageError, match=error):
        aifx.data_make()


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("[corpus", r"recipe.toml:1:\d+: not TOML"),
        ("", "recipe.toml has no data set"),
        ("corpus = 3", r"\[corpus\] cannot be used"),
        ("[corpus]\nstep = []", "'step' is no key of a data set"),
        ("[corpus]\nsteps = []", "has no step"),
        ('["../corpus"]\nsteps = []', "cannot name a data set"),
        ("[corpus]\nsteps = [{ dedup = {} }]", "step 1: no step 'dedup'\n.*'dedupe'"),
        ("[corpus]\nsteps = [{ dedupe = {} }]", r"step 1 \(dedupe\) is out of place"),
        ('[corpus]\nsteps = [{ add = { sources = ["texts"] } }]', r"step 1 \(add\): 'license' is missing"),
        ('[corpus]\nsteps = [{ add = { license = "MIT" } }]', r"step 1 \(add\): 'sources' is missing"),
        (RECIPE.replace("near = 0.8", "nera = 0.8"), r"step 2 \(dedupe\): no setting 'nera'\n.*'near'"),
        (RECIPE.replace("near = 0.8", "root = '/'"), r"step 2 \(dedupe\): no setting 'root'"),
        (RECIPE.replace("near = 0.8", "near = '0.8'"), r"step 2 \(dedupe\): near = '0.8' cannot be used"),
        (
            RECIPE.replace("near = 0.8", "near = nan"),
            r"step 2 \(dedupe\): near = nan cannot be used\n.*no finite number",
        ),
        (RECIPE.replace('license = "MIT"', 'license = "MIT", max_bad = inf', 1), "max_bad = inf cannot be used"),
        (RECIPE.replace('["letters"]', '"letters"'), r"it is a list: sources = \['letters'\]"),
        (
            RECIPE.replace("{ pii", "{ expect = {} }, { pii"),
            r"corpus, step 3 \(expect\): no file .*rules.toml\n(.|\n)*--infer",
        ),
        (RECIPE.replace("mask = true", ""), "neither mask nor drop"),
        (RECIPE.replace("mask = true", "mask = true, drop = true"), r"step 3 \(pii\): mask and drop"),
        (RECIPE.replace("letters:1", "blend:1"), "blend reads itself"),
        (RECIPE.replace("{ pii", "{ decontaminate = { against = [] } }, { pii"), "has nothing to compare"),
        (RECIPE.replace("{ pii", "{ decontaminate = {} }, { pii"), r"step 3 \(decontaminate\) has nothing to compare"),
    ],
)
def test_an_error_names_the_place(project: Path, text: str, error: str) -> None:
    (project / "recipe.toml").write_text(text)
    with pytest.raises(ConfigError) as raised:
        aifx.data_make()
    assert re.search(error, str(raised.value)), raised.value
    assert not (project / "datasets").exists()


def test_warnings_of_a_contract_are_in_the_result(project: Path, caplog: pytest.LogCaptureFixture) -> None:
    rules = '{ check = "rows", at_least = 2, level = "warn" }, { check = "not_null", column = "text", level = "warn" }'
    (project / "recipe.toml").write_text(
        f"""[letters]
        steps = [{{ add = {{ sources = ["letters"], license = "MIT" }} }}, {{ expect = {{ rules = [{rules}] }} }}]"""
    )
    with caplog.at_level("INFO"):
        made = aifx.data_make()
    assert [step.warned for step in made.data_sets[0].steps] == [(), ("rows",)]
    assert f"expect: {made.data_sets[0].reference}, 1 row; warned: rows" in caplog.text


def test_a_split_of_no_rows_says_so(project: Path) -> None:
    (project / "recipe.toml").write_text(
        """[letters]
        steps = [
            { add = { sources = ["letters"], license = "MIT" } },
            { clean = { languages = ["de"], max_dropped = 1.0 } },
            { split = {} },
        ]"""
    )
    with pytest.raises(AifxError, match=r"letters, step 3 \(split\): letters.* has no row to split"):
        aifx.data_make()


@pytest.mark.parametrize("limit", [{"max_bad": float("nan")}, {"max_expansion": -1.0}])
def test_limits_that_are_no_numbers(project: Path, limit: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="cannot be used"):
        aifx.data_add("letters", "letters", license="MIT", **limit)  # type: ignore[arg-type]


def test_a_recipe_may_be_a_link(project: Path) -> None:
    (project / "recipe.toml").rename(project / "shared.toml")
    (project / "recipe.toml").symlink_to("shared.toml")
    assert [one.name for one in aifx.data_make_plan().data_sets] == ["corpus", "letters", "blend"]


def test_what_is_no_folder_is_named(project: Path) -> None:
    (project / "dangling").symlink_to("gone")
    (project / "taken").mkdir()
    (project / "taken" / "letters").write_text("")
    for root, error in (
        ("recipe.toml", "recipe.toml is not a folder"),
        ("dangling", "dangling is a link to nothing"),
        ("taken", "taken/letters is not a folder"),
    ):
        with pytest.raises(AifxError, match=error):
            aifx.data_make("letters", root=str(project / root))


def test_a_name_that_means_no_version_is_named_with_the_way_out(project: Path) -> None:
    version = aifx.data_make("letters").data_sets[0].reference
    (project / "datasets" / "letters" / "latest").write_text("garbage")
    for make in (aifx.data_make, aifx.data_make_plan):
        with pytest.raises(AifxError, match=r"letters/latest is damaged\n(.|\n)*write the version"):
            make("letters")
    (project / "datasets" / "letters" / "latest").write_text(str(version).partition("@")[2])
    assert not any(step.is_new for step in aifx.data_make("letters").data_sets[0].steps)


def test_errors_of_names_files_and_values(project: Path) -> None:
    with pytest.raises(UsageError, match=r"no data set 'corpsu'(.|\n)*'corpus'"):
        aifx.data_make("corpsu")
    with pytest.raises(ConfigError, match="cannot be read"):
        aifx.data_make(recipe="other.toml")
    (project / "recipe.toml").write_text(RECIPE.replace("near = 0.8", "near = 8.0"))
    with pytest.raises(AifxError, match=r"corpus, step 2 \(dedupe\): --near 8 is not between"):
        aifx.data_make("corpus")
    assert meanings(project) == {}, "the name moves once, at the end"

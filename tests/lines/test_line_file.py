"""line.toml: stations in order, and all mistakes at once with their places."""

from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
import typer
from hypothesis import example, given
from hypothesis import strategies as st

from aifx.commands.app import app
from aifx.core.errors import AifxError, ConfigError, UsageError
from aifx.lines.commands import COMMANDS
from aifx.lines.conditions import KINDS, Condition, Term, parse_condition
from aifx.lines.file import Line, read_line
from aifx.lines.schedule import is_due, next_start, parse_duration, period_start
from aifx.lines.words import split_command

LINE = """
[line]
every = "1h"
timezone = "Europe/Berlin"

[[station]]
name = "train"
run = "aifx train --run lm-{key} --set data.dataset={stations.make.reference}"
when = "changed:payments and not (verdict:make or every:7d)"
cooldown = "1d"
budget_per_day = 4

[[station]]
name = "make"
run = ["data add corpus 'a b' --license CC0-1.0", "data make"]
"""


def read(folder: Path, text: str) -> Line:
    path = folder / "line.toml"
    path.write_text(text)
    return read_line(path)


def test_stations_come_after_those_whose_outputs_they_name(tmp_path):
    line = read(tmp_path, LINE)
    assert list(line.stations) == ["make", "train"]
    assert line.every_s == 3600
    train = line.stations["train"]
    assert (train.parents, train.cooldown_s, train.runs_per_day) == (("make",), 86400, 4)
    assert [word.text(str) for word in line.stations["make"].words[0]][:4] == ["data", "add", "corpus", "a b"]


def test_comments_do_not_change_the_digest(tmp_path):
    assert read(tmp_path, LINE).digest == read(tmp_path, f"# a comment\n{LINE}").digest
    assert read(tmp_path, LINE).digest != read(tmp_path, LINE.replace("4", "5")).digest


def test_all_mistakes_are_named_at_once_with_their_lines(tmp_path):
    text = LINE.replace("every =", "evry =").replace("changed:", "changd:").replace("4", "0")
    text += '[[station]]\nname = "make"\nrun = "data make"\nafter = ["trian"]\nwhen = "verdict:mak"\n'
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    found = [place.removeprefix(f"{tmp_path}/line.toml:") for place in caught.value.why.splitlines()]
    expected = {
        3: "did you mean 'every'?",
        9: "did you mean 'changed'?",
        11: "budget_per_day",
        16: "two stations 'make'",
    }
    for row, part in expected.items():
        assert any(place.startswith(f"{row}: ") and part in place for place in found), (row, found)


def test_stations_that_the_file_does_not_have_are_named(tmp_path):
    more = '[[station]]\nname = "last"\nrun = "eval"\nafter = ["trian"]\nwhen = "verdict:mak"\n'
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, LINE + more)
    assert "19: station 'last': after: no station 'trian': did you mean 'train'?" in caught.value.why
    assert "20: station 'last': when: no station 'mak': did you mean 'make'?" in caught.value.why


def test_each_of_several_circles_is_named_once(tmp_path):
    """Two that have no station in common, two that share a wait, one of a single station, and none of the others."""
    waits = {"a": "b", "b": "a", "c": "d", "d": "ec", "e": "c", "f": "f", "g": "ah", "h": ""}
    text = "".join(f'[[station]]\nname = "{name}"\nrun = "doctor"\nafter = {list(on)}\n' for name, on in waits.items())
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    found = [row.partition(": the stations wait for each other: ") for row in caught.value.why.splitlines()]
    assert [circle for _, _, circle in found] == ["a -> b -> a", "c -> d -> c", "d -> e -> c -> d", "f -> f"]
    assert [place.rpartition(":")[2] for place, _, _ in found] == ["1", "9", "13", "21"]


def test_a_circle_is_named(tmp_path):
    circle = r"line.toml:\d+: the stations wait for each other: (make -> train -> make|train -> make -> train)"
    with pytest.raises(ConfigError, match=circle):
        read(tmp_path, LINE.replace("data make", "data make {stations.train.run}"))


@pytest.mark.parametrize("text", ["", "station = 3", "a =", "x = 1", "[[station]]\nname = 3\nrun = []\n", "a" * 3000])
def test_a_file_that_is_no_line_is_a_configuration_error(tmp_path, text):
    with pytest.raises(ConfigError, match=r"line\.toml"):
        read(tmp_path, text)


TERMS = st.builds(
    Term, st.sampled_from(["changed", "verdict", "failed"]), st.from_regex(r"[a-z@-]{1,8}", fullmatch=True)
)
CONDITIONS = st.recursive(
    TERMS,
    lambda inner: (
        st.builds(Condition, st.sampled_from(["and", "or"]), st.lists(inner, min_size=2, max_size=3).map(tuple))
        | st.builds(Condition, st.just("not"), st.tuples(inner))
    ),
    max_leaves=8,
)


def written(condition: Condition | Term) -> str:
    if isinstance(condition, Term):
        return str(condition)
    parts = [f"({written(part)})" for part in condition.parts]
    return f"not {parts[0]}" if condition.op == "not" else f" {condition.op} ".join(parts)


def expected(condition: Condition | Term, true: set[Term]) -> bool:
    if isinstance(condition, Term):
        return condition in true
    values = [expected(part, true) for part in condition.parts]
    return not values[0] if condition.op == "not" else all(values) if condition.op == "and" else any(values)


@given(CONDITIONS, st.data())
def test_a_condition_means_what_was_written(condition, data):
    parsed = parse_condition(written(condition))
    true = data.draw(st.sets(st.sampled_from(sorted(set(parsed.terms()), key=str))))
    assert parsed.judge(true.__contains__) == expected(condition, true)


def test_and_binds_more_than_or():
    parsed = parse_condition("changed:a or changed:b and not changed:c")
    a, _, c = parsed.terms()
    assert parsed.judge({a, c}.__contains__)
    assert not parsed.judge({c}.__contains__)
    assert parse_condition("").judge(lambda term: False)


@given(st.text("()andorchge:s ", max_size=30) | st.text(max_size=30))
def test_any_text_is_a_condition_or_a_configuration_error(text):
    try:
        assert all(term.kind in KINDS for term in parse_condition(text).terms())
    except ConfigError:
        return


@pytest.mark.parametrize("text", ["(" * 900, "not " * 200, "every:1x", "changed:", "a:b", "changed:a changed:b"])
def test_what_is_no_condition_is_refused(text):
    with pytest.raises(ConfigError, match="is no condition"):
        parse_condition(text)


@given(st.text(max_size=20), st.sampled_from(["{key}", "--run={key}", "a{key}b", "'a {key}'", "x{key}{key}"]))
@example("-x", "{key}")
@example("a b", "{key}")
def test_a_value_is_one_word_and_no_option(value, word):
    words = split_command(f"train {word} end")
    try:
        bound = [one.text(lambda binding: value) for one in words]
    except UsageError:
        assert not value or "\0" in value or (value.startswith("-") and word == "{key}")
        return
    assert len(bound) == 3
    assert bound[1].startswith("-") == word.startswith("-")
    assert value in bound[1]


@given(st.text("{}ab '\"\\.-=key", max_size=20))
def test_any_command_is_split_or_refused(text):
    try:
        words = split_command(text)
    except ConfigError:
        return
    assert all(word.text(lambda binding: "v") is not None for word in words)


@pytest.mark.parametrize(
    "text", ["train --{key}=1", "train -{key}", "train {ky}", "train {", "train }", "'", "", "a {data.}"]
)
def test_a_word_that_cannot_be_bound_is_refused(text):
    with pytest.raises(AifxError, match="run = "):
        split_command(text)


def test_two_braces_are_one():
    assert split_command("x {{date}}")[1].text(lambda binding: "no") == "{date}"


BERLIN = "Europe/Berlin"
MAY = 1_778_000_000.0


def test_missed_ticks_are_one_and_the_same_period_is_not_due_again():
    assert is_due([], MAY, 3600, BERLIN)
    assert is_due([MAY - 10 * 3600], MAY, 3600, BERLIN)
    assert not is_due([period_start(MAY, 3600, BERLIN)], MAY, 3600, BERLIN)


def test_a_clock_that_jumps_back_repeats_nothing_and_waits_no_year():
    assert not is_due([MAY], MAY - 1800, 3600, BERLIN)
    assert is_due([MAY + 365 * 86400], MAY, 3600, BERLIN)
    assert not is_due([MAY, MAY + 365 * 86400], MAY, 3600, BERLIN)


@given(
    st.floats(0, 4e9),
    st.sampled_from([60.0, 900.0, 3600.0, 86400.0, 7 * 86400.0]),
    st.sampled_from(["UTC", BERLIN, "Asia/Kathmandu"]),
)
def test_a_period_began_before_now_and_the_next_begins_after(now, every_s, timezone):
    begin, after = period_start(now, every_s, timezone), next_start(now, every_s, timezone)
    assert begin <= now < after
    assert after - now <= every_s + 3700


def test_a_day_begins_at_midnight_in_summer_time_too():
    for now in (1_774_700_000.0, MAY, 1_793_000_000.0):
        begin = datetime.fromtimestamp(period_start(now, 86400, BERLIN), ZoneInfo(BERLIN))
        assert (begin.hour, begin.minute) == (0, 0)


@pytest.mark.parametrize("text", ["", "1", "1x", "0s", "-1h", "400d", "1.5h", "9" * 30 + "s"])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(ValueError, match="is no duration"):
        parse_duration(text)


def test_only_commands_that_take_a_request_are_given_one():
    for name, one in COMMANDS.items():
        assert one.takes_request == ("--request" in options_of(name.split())), name


def options_of(words: list[str]) -> set[str]:
    """The options of a command of aifx, by its words."""
    command = typer.main.get_command(app)
    for word in words:
        command = command.get_command(None, word)
    return {option for parameter in command.params for option in parameter.opts}

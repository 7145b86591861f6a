"""Loading a configuration from its layers: which one wins, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tomli
import tomlkit
from hypothesis import given
from hypothesis import strategies as st

from aifx.config import compare
from aifx.config.checks import warn_of_warmup
from aifx.config.load import key_lines
from aifx.core.errors import ConfigError
from aifx.core.project import Project
from aifx.kinds import load_config, read_config
from aifx.models.decoder import PRESETS, DecoderSection
from aifx.models.resnet import ResnetSection


@pytest.fixture
def project(tmp_path: Path) -> Project:
    (tmp_path / "aifx.toml").write_text("")
    return Project(tmp_path)


def write(project: Project, text: str | bytes) -> Project:
    project.config_path.write_bytes(text.encode() if isinstance(text, str) else text)
    return project


def refusal(project: Project, *overrides: str, **environ: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_config(project, overrides, environ)
    assert caught.value.hint
    return caught.value


def test_an_empty_file_gives_the_defaults(project: Project) -> None:
    config = load_config(project, environ={})
    assert config.train.num_steps == 1000
    assert isinstance(config.model, DecoderSection)
    assert {origin.where for origin in config.origins.values()} == {"default"}


def test_the_command_line_wins_over_the_environment_over_the_file_over_the_preset(project: Project) -> None:
    write(project, '[model]\npreset = "gpt2-124m"\nnum_layers = 1\nembed_dim = 24\nnum_heads = 3\n')
    environ = {"AIFX_MODEL__EMBED_DIM": "36", "AIFX_MODEL__NUM_HEADS": "6"}
    config = load_config(project, ["model.num_heads=9"], environ)
    model = config.model
    assert isinstance(model, DecoderSection)
    values = (model.num_heads, model.embed_dim, model.num_layers, model.vocab_size, model.rope_theta)
    assert values == (9, 36, 1, PRESETS["gpt2-124m"]["vocab_size"], 10_000.0)
    keys = ("num_heads", "embed_dim", "num_layers", "vocab_size", "rope_theta")
    origins = [config.origin(f"model.{key}").where for key in keys]
    assert origins == ["--set", "AIFX_MODEL__EMBED_DIM", "aifx.toml:3", "preset gpt2-124m", "default"]


def test_a_preset_fills_even_where_the_command_line_names_it(project: Project) -> None:
    config = load_config(project, ["model.preset=gpt2-355m"], {})
    assert isinstance(config.model, DecoderSection)
    assert config.model.num_layers == 24


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_loads(project: Project, name: str) -> None:
    config = load_config(project, [f"model.preset={name}", "data.seq_len=16"], {})
    for key, value in PRESETS[name].items():
        assert getattr(config.model, key) == value


def test_variables_that_are_no_settings_are_left_alone(project: Project) -> None:
    load_config(project, environ={"AIFX_CACHE_DIR": "/nowhere", "AIFX_DEBUG": "1", "OTHER__KEY": "x"})


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("project.name=2026", "2026"),
        ("project.name=true", "true"),
        ("project.name=with spaces = and # signs", "with spaces = and # signs"),
        ('project.name="quoted"', "quoted"),
        ("project.name=", ""),
        ("generate.prompt=[not closed", "[not closed"),
        ("generate.prompt=a\nb", "a\nb"),
        ("generate.prompt=1\n[x]\ny=2", "1\n[x]\ny=2"),
        ("train.devices=all", "all"),
        ("train.devices=2", 2),
        ("optimizer.learning_rate=1", 1.0),
        ("optimizer.learning_rate=3e-4", 3e-4),
        ('eval.gates=["loss <= 1", "loss > 0"]', ("loss <= 1", "loss > 0")),
        (" train.seed =7", 7),
    ],
)
def test_a_set_value_is_toml_else_a_bare_string(project: Project, setting: str, value: object) -> None:
    config = load_config(project, [setting], {})
    section, _, key = setting.partition("=")[0].strip().partition(".")
    assert getattr(getattr(config, section), key) == value


def test_a_later_set_wins(project: Project) -> None:
    assert load_config(project, ["train.seed=1", "train.seed=2"], {}).train.seed == 2


SPELLINGS = {
    "table": "[train]\nseed = 3\n",
    "dotted": "train.seed = 3\n",
    "inline": "train = {seed = 3}\n",
    "quoted": '["train"]\n"seed" = 3\n',
    "byte order mark, Windows line ends": "\ufeff[train]\r\nseed = 3\r\n",
    "no last line end": "[train]\nseed = 3",
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_spellings_of_one_setting(project: Project, spelling: str) -> None:
    config = load_config(write(project, SPELLINGS[spelling]), environ={})
    assert config.train.seed == 3
    line = SPELLINGS[spelling][: SPELLINGS[spelling].index("seed")].count("\n") + 1
    assert config.origin("train.seed").where == f"aifx.toml:{line}"


REFUSED: dict[str, tuple[str | bytes, list[str]]] = {
    "unknown key": ("[train]\nnum_step = 3", ["aifx.toml:2", "'num_step'", "'num_steps'"]),
    "key of another section": ("[train]\nlearning_rate = 3", ["aifx.toml:2", "[optimizer]"]),
    "key of another task": ("[model]\nchannels = [8]", ["aifx.toml:2", "channels", "resnet"]),
    "unknown section": ("[trian]\nseed = 3", ["aifx.toml:1", "[trian]", "'train'"]),
    "outside of a section": ("# x\nseed = 3", ["aifx.toml:2", "'seed'", "[train]"]),
    "section that is a value": ("train = 3", ["aifx.toml:1", "[train]"]),
    "array of tables": ("[[train]]\nseed = 3", ["aifx.toml:1", "[[train]]"]),
    "key that is a table": ("[train.seed]\nx = 3", ["aifx.toml:1", "train.seed", "whole number"]),
    "text for a number": ('[train]\nnum_steps = "3"', ["aifx.toml:2", "train.num_steps", '"3"', "whole number"]),
    "fraction for a whole number": ("[train]\nnum_steps = 1.0", ["train.num_steps", "whole number"]),
    "truth for a number": ("[train]\nnum_steps = true", ["train.num_steps", "true", "whole number"]),
    "number for truth": ("[checkpoint]\nasynchronous = 1", ["checkpoint.asynchronous", "true or false"]),
    "number for text": ("[project]\nname = 1", ["project.name", "text"]),
    "date for a number": ("[train]\nseed = 1979-05-27", ["train.seed", "1979-05-27", "date", "whole number"]),
    "date for text": ("[project]\n\nname = 1979-05-27", ["aifx.toml:3", "project.name", 'name = "1979-05-27"']),
    "time for text": ("[project]\nname = 07:32:00", ["aifx.toml:2", "project.name", 'name = "07:32:00"']),
    "date and time for text": ("[project]\nname = 1979-05-27T07:32:00Z", ["aifx.toml:2", "project.name", "date"]),
    "date in a list": ("[data]\ntrain = [1979-05-27]", ["aifx.toml:2", "data.train", "date"]),
    "out of range": ("[train]\n\nnum_steps = 0", ["aifx.toml:3", "train.num_steps", "1 or more"]),
    "too large for the device": ("[train]\nnum_steps = 3000000000", ["train.num_steps", "2147483647"]),
    "digits by the thousand": ("[train]\nseed = 0x" + "f" * 9999, ["aifx.toml:2", "train.seed"]),
    "decimal digits by the thousand": ("[train]\nseed = " + "9" * 9999, ["aifx.toml"]),
    "not a number": ("[optimizer]\nlearning_rate = nan", ["optimizer.learning_rate", "nan", "above 0"]),
    "infinite": ("[optimizer]\nlearning_rate = inf", ["optimizer.learning_rate", "inf"]),
    "unknown choice": ('[optimizer]\nkind = "adam"', ["optimizer.kind", '"adamw"', "'adamw'"]),
    "unknown choice in a list": ('[log]\ntrackers = ["tensorbord"]', ["log.trackers", "'tensorboard'"]),
    "neither number nor word": ('[train]\ndevices = "al"', ["train.devices", "whole number", '"all"']),
    "text for a list": ('[eval]\ngates = "loss <= 1"', ["eval.gates", "a list"]),
    "list too long": ("[task]\nkind = 'vision'\n[data]\nimage_size = [1, 2, 3]", ["aifx.toml:4", "data.image_size"]),
    "empty list": ("[data]\ntrain = []", ["data.train", "1 or more"]),
    "gate that is no condition": ('[eval]\ngates = ["loss"]', ["aifx.toml:2", "eval.gates", "'loss'"]),
    "unknown preset": ('[model]\npreset = "gpt2-124"', ["aifx.toml:2", "'gpt2-124m'"]),
    "preset of another task": ('[task]\nkind = "vision"\n[model]\npreset = "gpt2-124m"', ["aifx.toml:4", "preset"]),
    "syntax": ("[train\nseed = 3", ["aifx.toml:1", "line 1, column 7"]),
    "key twice": ("[train]\nseed = 1\nseed = 2", ["aifx.toml:3"]),
    "section twice": ("[train]\nseed = 1\n[train]\n", ["aifx.toml:3"]),
    "not UTF-8": (b"[train]\n# \xff", ["aifx.toml:2", "UTF-8"]),
    "UTF-16": ("[train]\n".encode("utf-16"), ["aifx.toml:1", "UTF-8"]),
    "brackets a thousand deep": ("x = " + "[" * 5000 + "]" * 5000, ["aifx.toml"]),
    "unknown task": ('[task]\nkind = "languge"', ["aifx.toml:2", "'language'"]),
    "heads": ("[model]\nembed_dim = 32\nnum_heads = 3", ["aifx.toml:3", "model.num_heads"]),
    "key and value heads": ("[model]\nnum_kv_heads = 3", ["aifx.toml:2", "model.num_kv_heads"]),
    "odd head_dim": ("[model]\nembed_dim = 12", ["aifx.toml:2", "rotary", "even"]),
    "micro-batches": ("[train]\ngradient_accumulation = 3", ["aifx.toml:2", "train.gradient_accumulation"]),
    "everything held out": ("[data]\ntest_fraction = 0.95", ["aifx.toml:2", "data.test_fraction"]),
    "stopping without validation": ("[train]\nearly_stopping = 2\nvalidate_every = 0", ["train.validate_every"]),
    "stopping without a split": ("[train]\nearly_stopping = 2\n[data]\nvalidation_fraction = 0.0", ["early_stopping"]),
    "sequence longer than the model": ("[model]\nmax_seq_len = 8", ["aifx.toml:2", "data.seq_len"]),
    "stride longer than a sequence": ("[data]\neval_stride = 257", ["aifx.toml:2", "data.eval_stride"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(project: Project, case: str) -> None:
    text, words = REFUSED[case]
    said = str(refusal(write(project, text)))
    for word in words:
        assert word in said


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.num_steps", ["'train.num_steps'", "no value"]),
        ("", ["no value"]),
        ("=3", ["no section"]),
        ("num_steps=3", ["train.num_steps"]),
        ("num_stps=3", ["train.num_steps"]),
        ("train.=3", ["[train]"]),
        ("trian.seed=3", ["'train'"]),
        ("train.num_stps=3", ["'num_steps'"]),
        ("train.seed.x=3", ["[train]", "'seed.x'"]),
        ("train.seed=many", ["train.seed", '"many"']),
        ("train.num_steps=1e3", ["train.num_steps", "1000.0", "whole number"]),
        ("eval.gates=loss <= 1", ["eval.gates", """--set eval.gates='["loss <= 1"]'"""]),
        ("project.name=\udcff", ["project.name"]),
        ("data.train=[1979-05-27]", ["data.train", "date"]),
    ],
)
def test_refused_settings(project: Project, override: str, words: list[str]) -> None:
    said = str(refusal(project, override))
    assert said.startswith("--set")
    for word in words:
        assert word in said


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("AIFX_TRIAN__SEED", "3", ["'train'"]),
        ("AIFX_TRAIN__SED", "3", ["'seed'"]),
        ("AIFX_TRAIN__SEED", "", ["train.seed"]),
        ("AIFX_TRAIN__SEED", "-1", ["train.seed", "0 or more"]),
        ("AIFX___SEED", "1", ["section"]),
    ],
)
def test_refused_variables(project: Project, name: str, value: str, words: list[str]) -> None:
    said = str(refusal(project, **{name: value}))
    assert said.startswith(name)
    for word in words:
        assert word in said


def test_all_mistakes_are_told_together_in_order(project: Project) -> None:
    write(project, '[trian]\n[train]\nseed = "a"\nnum_steps = 0\n[log]\nevry = 1\n[task]\nkind = "languge"\n')
    said = str(refusal(project, "train.x=1", AIFX_LOG__EVERY="0"))
    places = ["aifx.toml:1", "aifx.toml:3", "aifx.toml:4", "aifx.toml:6", "aifx.toml:8", "AIFX_LOG__EVERY", "--set"]
    found = [said.index(place) for place in places]
    assert found == sorted(found)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    assert "aifx.toml cannot be read" in refusal(Project(tmp_path)).what
    (tmp_path / "aifx.toml").mkdir()
    assert "aifx.toml cannot be read" in refusal(Project(tmp_path)).what


def test_a_run_may_be_cut_short(project: Project, logged: list[str]) -> None:
    write(project, "[schedule]\nwarmup_steps = 100\n[data]\neval_stride = 128\n")
    config = load_config(project, ["train.num_steps=200", "data.seq_len=32"], {})
    warn_of_warmup(config.schedule, config.train.num_steps)
    assert logged == []
    config = load_config(project, ["train.num_steps=199", "data.seq_len=32"], {})
    warn_of_warmup(config.schedule, config.train.num_steps)
    (line,) = logged
    assert all(word in line for word in ("schedule.warmup_steps = 100", "train.num_steps = 199", "99 steps"))


def test_a_split_with_files_of_its_own_takes_no_part_of_the_rest(project: Project) -> None:
    write(project, '[data]\ntest_fraction = 0.95\ntest = ["data/test.txt"]\n')
    load_config(project, environ={})


def test_vision_has_its_own_sections(project: Project) -> None:
    config = load_config(write(project, '[task]\nkind = "vision"\n[model]\nchannels = [8, 16]\n'), environ={})
    assert isinstance(config.model, ResnetSection)
    assert config.model.channels == (8, 16)


def test_a_written_configuration_reads_back_with_its_origins(project: Project, tmp_path: Path) -> None:
    write(project, '[model]\npreset = "gpt2-10m"\n[generate]\nprompt = "a  # --set"\n')
    config = load_config(project, ["train.seed=3"], {"AIFX_LOG__EVERY": "2"})
    path = tmp_path / "runs" / "a" / "config.toml"
    path.parent.mkdir(parents=True)
    path.write_text(config.to_toml())
    read = read_config(path, project)
    assert read == config
    assert read.origins == config.origins
    assert "aifx.toml:4" in path.read_text()

    path.write_text(config.to_toml(origins=False))
    read = read_config(path, project)
    assert read == config
    assert read.origin("train.seed").where.startswith("runs/a/config.toml:")


def test_a_run_is_read_as_it_was_written_whatever_surrounds_it(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its preset may mean something else by now, and the environment is the reader's, not the run's."""
    config = load_config(write(project, '[model]\npreset = "gpt2-10m"\n'), environ={})
    path = tmp_path / "config.toml"
    path.write_text(config.to_toml())
    monkeypatch.setenv("AIFX_TRAIN__SEED", "9")
    monkeypatch.setitem(PRESETS, "gpt2-10m", {"head_dim": 7})
    assert read_config(path, project) == config


def test_overrides_of_a_run_are_checked_and_the_run_itself_is_not(project: Project, tmp_path: Path) -> None:
    config = load_config(project, ["schedule.warmup_steps=5"], {})
    path = tmp_path / "config.toml"
    path.write_text(config.to_toml(origins=False).replace("num_steps = 1000", "num_steps = 2"))
    assert read_config(path, project, ["eval.split=validation"]).eval.split == "validation"
    with pytest.raises(ConfigError, match="gate"):
        read_config(path, project, ['eval.gates=["x"]'])


@pytest.mark.parametrize("setting", ["generate.temperature=101", "generate.top_k=2147483648"])
def test_what_the_engine_would_refuse_is_no_setting(project: Project, setting: str) -> None:
    with pytest.raises(ConfigError, match=setting.partition("=")[0]):
        load_config(project, [setting], {})


def test_some_sections_of_a_run_may_be_read_as_they_are_set_now(project: Project, tmp_path: Path) -> None:
    then = '[eval]\ngates = ["loss <= 3"]\n[generate]\ntop_k = 7\n[train]\nseed = 1\n'
    path = tmp_path / "config.toml"
    path.write_text(load_config(write(project, then), environ={}).to_toml())
    write(project, '[eval]\ngates = ["loss <= 2"]\n[generate]\ntop_p = 0.5\n[train]\nseed = 2\n')
    environ = {"AIFX_GENERATE__TEMPERATURE": "0", "AIFX_TRAIN__SEED": "3"}
    read = read_config(path, project, ["generate.top_p=0.6"], current=("eval", "generate"), environ=environ)
    assert read.eval.gates == ("loss <= 2",)
    assert read.origin("eval.gates").where == "aifx.toml:2"
    assert (read.generate.top_k, read.generate.top_p, read.generate.temperature) == (7, 0.6, 0)
    assert read.train.seed == 1


def test_compare_names_what_matters_and_nothing_else(project: Project) -> None:
    old = load_config(project, environ={})
    assert compare(old, load_config(project, ["checkpoint.every=3", "project.name=x", "log.every=7"], {})) == []
    found = compare(old, load_config(project, ["train.seed=3", "model.num_layers=2"], {}))
    assert [(d.key, d.old, d.new) for d in found] == [("model.num_layers", 4, 2), ("train.seed", 0, 3)]
    keys = {difference.key for difference in compare(old, load_config(project, ["task.kind=vision"], {}))}
    assert {"task.kind", "model.num_layers", "model.channels", "data.path"} <= keys


def test_a_secret_is_taken_from_the_environment_alone(project: Project) -> None:
    assert "se-cret" not in repr(load_config(project, environ={"AIFX_SERVE__API_KEY": "se-cret"}))
    by_option = refusal(project, "serve.api_key=se-cret")
    by_file = refusal(write(project, '[serve]\nport = 1\napi_key = "se-cret"\n'))
    assert "aifx.toml:3" in str(by_file)
    for told in map(str, (by_option, by_file)):
        assert "serve.api_key is a secret" in told
        assert "export AIFX_SERVE__API_KEY=VALUE" in told
        assert "se-cret" not in told


CASES: dict[str, tuple[str, dict[tuple[str, ...], int]]] = {
    "tables": ("[a]\nx = 1\n\n[b]\n\ny = 2\n", {("a",): 1, ("a", "x"): 2, ("b",): 4, ("b", "y"): 6}),
    "dotted keys": ("a.x = 1\na.b.y = 2\n", {("a",): 1, ("a", "x"): 1, ("a", "b"): 2, ("a", "b", "y"): 2}),
    "dotted table": ("# one\n[a . b]\nx = 1", {("a",): 2, ("a", "b"): 2, ("a", "b", "x"): 3}),
    "array of tables": ("[[a]]\nx = 1\n[[a]]\nx = 2\n", {("a",): 1, ("a", "x"): 2}),
    "quoted keys": ('["a.b"]\n\'x y\' = 1\n"\\u00e9" = 2\n', {("a.b",): 1, ("a.b", "x y"): 2, ("a.b", "é"): 3}),
    "list on lines": ("x = [ # no ] here\n  1,\n  [2, 3],\n]\ny = 1\n", {("x",): 1, ("y",): 5}),
    "string on lines": ('x = """\n[no]\ny = 1\n"""\ny = 2\n', {("x",): 1, ("y",): 5}),
    "literal string on lines": ("x = '''\n'' = \\\n'''\ny = 2\n", {("x",): 1, ("y",): 4}),
    "quotes before the end": ('x = """a"""""\ny = 2\n', {("x",): 1, ("y",): 2}),
    "escaped quotes": ('x = "\\"]\\\\"\ny = "#" # z = 1\n', {("x",): 1, ("y",): 2}),
    "inline table": ("a = {x = 1, b.y = [{z = 2}]}\nc = 1\n", {("a",): 1, ("c",): 2}),
    "scalars": (
        "a = 1979-05-27 07:32:00 # b = 1\nb = -inf\nc = 0x_f".replace("_", ""),
        {("a",): 1, ("b",): 2, ("c",): 3},
    ),
    "nothing": ("\n# x = 1\n  \t\n", {}),
}


@pytest.mark.parametrize("case", CASES)
def test_lines(case: str) -> None:
    text, expected = CASES[case]
    tomli.loads(text)
    found = key_lines(text)
    assert {path: found.get(path) for path in expected} == expected
    assert {path[0] for path in found} == {path[0] for path in expected}


VALUES = st.recursive(
    st.one_of(st.integers(-(2**60), 2**60), st.booleans(), st.text(), st.floats(allow_nan=False), st.datetimes()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(min_size=1), inner, max_size=3)),
    max_leaves=8,
)


@pytest.mark.slow
@given(st.dictionaries(st.text(min_size=1), st.dictionaries(st.text(min_size=1), VALUES, max_size=4), max_size=4))
def test_every_key_of_any_document_has_the_line_that_it_stands_on(document: dict[str, Any]) -> None:
    text = tomlkit.dumps(document)
    try:
        read = tomli.loads(text.replace("\r\n", "\n"))
    except tomli.TOMLDecodeError:
        return  # tomlkit writes some strings that no reader takes
    text = text.replace("\r\n", "\n")
    lines = key_lines(text)
    rows = text.split("\n")
    for section, values in read.items():
        assert 1 <= lines[(section,)] <= len(rows)
        for key in values:
            row = rows[lines[(section, key)] - 1]
            assert "=" in row or row.startswith("["), row

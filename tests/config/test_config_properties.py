"""Properties that hold for any configuration: what is valid comes back, what is not never ends in a traceback."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from aifx.config import Config
from aifx.config.config import SECTION_NAMES, SECTION_TYPES
from aifx.config.parts import PARTS
from aifx.config.schema import properties
from aifx.config.toml import literal
from aifx.core.errors import ConfigError
from aifx.core.project import Project
from aifx.kinds import load_config, read_config, task_parts
from aifx.kinds import settings as all_settings

SETTINGS = list(all_settings())
CLASHING = {
    "data": ("dataset",),
    "finetune": ("adapter", "base_quantize"),
    "launch": ("environment", "image", "mounts"),
    "k8s": ("tpu", "tpu_topology", "tpu_slices"),
    "model": ("blocks_per_stage",),
    "slurm": ("account", "options", "partition", "qos", "setup_script", "signal_ahead_s", "time_limit"),
    "train": ("gradient_accumulation",),
}
"""Settings that seldom go with random values of others, or whose text has a form of its own."""
quick = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])


def value_of(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values that a JSON schema allows; small ones, so that settings seldom clash."""
    if "anyOf" in schema:
        return st.one_of([value_of(choice) for choice in schema["anyOf"]])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if "const" in schema:
        return st.just(schema["const"])
    match schema.get("type"):
        case "integer":
            low = schema.get("minimum", 0)
            return st.integers(low, min(schema.get("maximum", low + 9), low + 9))
        case "number":
            low = schema.get("minimum", schema.get("exclusiveMinimum"))
            bounds = {"min_value": low, "max_value": schema.get("maximum", 0.99 if (low or 0) < 0.99 else low + 1)}
            return st.floats(**bounds, exclude_min="exclusiveMinimum" in schema, allow_nan=False, allow_subnormal=False)
        case "array" if "prefixItems" in schema:
            return st.tuples(*[value_of(item) for item in schema["prefixItems"]]).map(list)
        case "array":
            return st.lists(value_of(schema["items"]), min_size=schema.get("minItems", 0), max_size=3)
        case "boolean":
            return st.booleans()
        case "null":
            return st.none()
        case "object":
            ((pattern, values),) = schema["patternProperties"].items()
            return st.dictionaries(matching(pattern), value_of(values), max_size=2)
        case "string" if "pattern" in schema:
            return matching(schema["pattern"]).filter(lambda text: len(text) <= schema["maxLength"])
    return st.text(st.characters(exclude_categories=["Cs"]), min_size=schema.get("minLength", 0), max_size=12)


def matching(pattern: str) -> st.SearchStrategy[str]:
    """Texts of a pattern. In JSON Schema `$` is the very end, in Python also the place before a last newline."""
    return st.from_regex(pattern.removesuffix("$") + r"\Z", alphabet=st.characters(codec="utf-8"))


def configurations() -> st.SearchStrategy[dict[str, dict[str, Any]]]:
    def of_kind(kind: str) -> st.SearchStrategy[dict[str, dict[str, Any]]]:
        sections = {}
        parts = task_parts(kind, {}, Project(Path())).sections
        for name in SECTION_NAMES:
            schemas = properties(parts[name] if name in parts else SECTION_TYPES[name])
            chosen = {
                k: value_of(s)
                for k, s in schemas.items()
                if k not in ("family", "kind", "preset", "gates", "best_by") or name in ("optimizer", "schedule")
            }
            if name == "mesh":
                chosen = {}  # it must be as large as train.devices
            for key in CLASHING.get(name, ()):
                chosen.pop(key, None)
            if name == "project":  # a name holds no control characters
                chosen["name"] = st.text(st.characters(categories=["L", "N", "Zs"]), max_size=12)
            sections[name] = st.fixed_dictionaries({}, optional=chosen)
        return st.fixed_dictionaries(sections).map(lambda s: {**s, "task": {"kind": kind}})

    return st.one_of(of_kind("language"), of_kind("vision"))


def load(text: bytes, overrides: list[str] | None = None, environ: dict[str, str] | None = None) -> Config:
    with tempfile.TemporaryDirectory() as folder:
        project = Project(Path(folder))
        project.config_path.write_bytes(text)
        return load_config(project, overrides or [], environ or {})


def refusal(
    text: bytes, overrides: list[str] | None = None, environ: dict[str, str] | None = None
) -> ConfigError | None:
    """The refusal of a configuration; None if it is accepted. Any other exception fails the test."""
    try:
        load(text, overrides, environ)
    except ConfigError as error:
        return error
    return None


def selection(setting: Any) -> list[str]:
    """The overrides under which the section of a setting has this setting."""
    keys = [part.path for part in PARTS if part.section == setting.section]
    return [f"{key}={setting.variant}" for key in keys]


def as_toml(sections: dict[str, dict[str, Any]]) -> bytes:
    lines = []
    for name, values in sections.items():
        lines += [f"[{name}]", *(f"{key} = {literal(value)}" for key, value in values.items() if value is not None)]
    return "\n".join(lines).encode()


@pytest.mark.slow
@quick
@given(configurations())
def test_what_is_valid_is_loaded_as_it_is_and_comes_back(sections: dict[str, dict[str, Any]]) -> None:
    try:
        config = load(as_toml(sections))
    except ConfigError as error:
        assume("cannot be used" in str(error))  # settings that clash are another test's matter
        raise
    for name, values in sections.items():
        for key, value in values.items():
            assert value is None or config.values()[name][key] == value
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.toml"
        path.write_text(config.to_toml(), encoding="utf-8")
        read = read_config(path, Project(Path(folder)))
        assert read == config
        assert read.origins == config.origins


@quick
@given(st.sampled_from(SETTINGS), st.data())
def test_a_misspelt_key_is_always_refused_with_its_line(setting: Any, data: st.DataObject) -> None:
    known = {s.key for s in SETTINGS if s.section == setting.section and s.variant == setting.variant}
    place = data.draw(st.integers(0, len(setting.key) - 1))
    letter = data.draw(st.sampled_from("abcxyz_9"))
    typo = data.draw(
        st.sampled_from(
            [
                setting.key[:place] + setting.key[place + 1 :],
                setting.key[:place] + letter + setting.key[place:],
                setting.key[:place] + letter + setting.key[place + 1 :],
            ]
        )
    )
    assume(typo and typo not in known)
    text = f"[{setting.section}]\n{typo} = 1\n"
    line = text.split("\n").index(f"{typo} = 1") + 1
    error = refusal(text.encode(), selection(setting))
    assert error is not None
    assert f"aifx.toml:{line}" in str(error)
    assert repr(typo) in str(error)
    assert error.hint


@quick
@given(st.binary(max_size=200))
def test_any_bytes_load_or_are_refused(content: bytes) -> None:
    error = refusal(content)
    assert error is None or "aifx.toml" in str(error)


WORDS = [
    "[",
    "]",
    "[[",
    "]]",
    "=",
    ".",
    ",",
    "{",
    "}",
    '"',
    "'",
    '"""',
    "'''",
    "#",
    "\n",
    " ",
    "\\",
    "1",
    "1e999",
    "nan",
    "true",
]
WORDS += ["1979-05-27", "0x", "_", "train", "model", "seed", "task", "kind", "data", "\x00", "\ud7ff", "\U0010ffff"]


@settings(deadline=None, max_examples=300)
@given(st.lists(st.sampled_from(WORDS), max_size=40).map("".join))
def test_anything_that_looks_like_toml_loads_or_is_refused(text: str) -> None:
    error = refusal(text.encode("utf-8"))
    assert error is None or error.hint


@quick
@given(
    st.sampled_from(SETTINGS),
    st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=5),
)
def test_any_value_is_taken_or_refused_by_name(setting: Any, value: Any) -> None:
    assume(value is not None and None not in (value if isinstance(value, list) else []))
    try:
        text = literal(value)
    except (TypeError, ValueError):
        return
    variant = selection(setting)
    error = refusal(b"", [*variant, f"{setting.section}.{setting.key}={text}"])
    # Preferences need a base run, whatever else is set.
    assert error is None or setting.key in str(error) or str(error) == str(refusal(b"", variant))


@quick
@given(st.text(), st.text())
def test_any_override_or_variable_is_taken_or_refused(name: str, value: str) -> None:
    for override in (f"{name}={value}", name, f"train.{name}={value}", f"train.seed={value}"):
        error = refusal(b"", [override])
        assert error is None or error.what.startswith("--set")
    for variable in (f"AIFX_{name}", f"AIFX_TRAIN__{name}"):
        error = refusal(b"", environ={variable: value})
        assert error is None or error.what.startswith("AIFX_")

"""The JSON Schema says what the loader does, and the page of settings says what the code does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import tomli

from aifx.config.schema import properties
from aifx.core.errors import ConfigError
from aifx.core.project import Project
from aifx.kinds import json_schema, load_config, settings
from aifx.models.decoder import PRESETS, DecoderSection
from aifx.scaffold.projects import scaffold

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def validator() -> Any:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize(
    "template", ["custom-task", "fine-tune", "language-model", "series", "tabular", "vision-inspection"]
)
def test_the_templates_conform(template: str, validator: Any, tmp_path: Path) -> None:
    scaffold(tmp_path / "new", template, data={}, ask=False)
    document = tomli.loads((tmp_path / "new" / "aifx.toml").read_text())
    assert len(document) > 3
    validator.validate(document)
    load_config(Project(tmp_path / "new"), environ={})


AGREEMENT = {
    "empty": "",
    "seed": "[train]\nseed = 3",
    "typo": "[train]\nsed = 3",
    "section": "[trian]\n",
    "range": "[train]\nnum_steps = 0",
    "choice": '[optimizer]\nkind = "sgd"',
    "vision model": '[task]\nkind = "vision"\n[model]\nchannels = [4]',
    "language key for vision": '[task]\nkind = "vision"\n[model]\nnum_layers = 4',
    "vision key without a kind": "[model]\nchannels = [4]",
    "vision key for language": '[task]\nkind = "language"\n[model]\nchannels = [4]',
    "another family": '[model]\nfamily = "resnet"\nchannels = [4]',
    "a key of another family": '[model]\nfamily = "resnet"\nnum_layers = 4',
    "an objective": '[task]\nkind = "vision"\n[objective]\nkind = "regression"',
    "another kind of data": '[data]\nkind = "images"\nchannels = 3',
    "a family of nothing": '[model]\nfamily = "gpt5"',
    "mesh": "[mesh]\ndata = 2",
    "no mesh": "[mesh]\ndata = 0",
    "kind of nothing": '[task]\nkind = "nothing"',
    "pair": '[task]\nkind = "vision"\n[data]\nimage_size = [4, 4]',
    "triple": '[task]\nkind = "vision"\n[data]\nimage_size = [4, 4, 4]',
    "union": "[train]\ndevices = 2",
    "other side of the union": '[train]\ndevices = "all"',
    "neither": '[train]\ndevices = "some"',
    "optional": "[model]\nnum_kv_heads = 2",
    "preset": '[model]\npreset = "gpt2-124m"\n[data]\nseq_len = 8',
    "no preset": '[model]\npreset = "gpt5"',
}


@pytest.mark.parametrize("case", AGREEMENT)
def test_schema_and_loader_agree(case: str, validator: Any, tmp_path: Path) -> None:
    (tmp_path / "aifx.toml").write_text(AGREEMENT[case])
    try:
        load_config(Project(tmp_path), environ={})
        loads = True
    except ConfigError:
        loads = False
    assert validator.is_valid(tomli.loads(AGREEMENT[case])) == loads


def test_a_task_of_ones_own_conforms_whatever_its_sections_hold(validator: Any) -> None:
    validator.validate({"task": {"kind": "mine:Task"}, "model": {"anything": 1}, "data": {}})


def test_every_key_is_described(validator: Any) -> None:
    for setting in settings():
        assert setting.description.endswith("."), setting
        assert setting.expected, setting
    definitions = validator.schema["$defs"]
    assert definitions["model_decoder"]["properties"]["num_layers"]["description"]
    assert definitions["data_images"]["additionalProperties"] is False
    assert definitions["model_decoder"]["properties"]["preset"]["enum"] == sorted(PRESETS)
    assert "aifx_" not in str(validator.schema)
    assert "null" not in str(validator.schema)
    assert properties(DecoderSection)["preset"].get("enum") is None


def test_the_page_of_settings_has_every_key_as_the_code_has_it() -> None:
    from aifx.commands.config.group import settings_table

    page = (ROOT / "docs" / "config.md").read_text()
    assert settings_table(settings()) in page, (
        "docs/config.md is behind: `aifx config keys --markdown` prints the table"
    )

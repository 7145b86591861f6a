"""`[k8s]`: what its values may hold, and which of them go together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import tomli

from aifx.config import Config
from aifx.core.errors import ConfigError
from aifx.core.project import Project
from aifx.kinds import json_schema, load_config


def load(folder: Path, text: str, *overrides: str, **environ: str) -> Config:
    (folder / "aifx.toml").write_text(text)
    return load_config(Project(folder), overrides, environ)


WRONG = {
    "no label": ("[k8s]\nqueue = 'Team_A'", 'expected text such as "team-a"'),
    "a line too many": ('[k8s]\nruns_claim = "runs\\n"', "k8s.runs_claim"),
    "a secret's value": ("[k8s.secrets]\nKEY = 'hf_abc'", "k8s.secrets"),
    "a variable's name": ("[k8s.secrets]\n'A B' = 'wandb/key'", "k8s.secrets"),
    "half a label": ("[k8s.node_selector]\n'example.com/' = 'a'", "k8s.node_selector"),
    "no quantity": ("[k8s]\nmemory = '64 GB'", 'expected text such as "64Gi"'),
    "no effect of a taint": ("[k8s]\ntolerations = ['team=a:Never']", "k8s.tolerations"),
    "a relative folder": ("[k8s]\nproject_dir = '/project/../etc'", "k8s.project_dir"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_kubernetes_would_refuse_is_refused_by_loader_and_schema(case: str, tmp_path: Path) -> None:
    text, expected = WRONG[case]
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert expected in str(caught.value)
    schema: Any = jsonschema.Draft202012Validator(json_schema())
    # In Python, unlike in JSON Schema, `$` also matches before a last newline.
    assert case == "a line too many" or not schema.is_valid(tomli.loads(text))


CONFLICTS = {
    "a type without a topology": ("[k8s]\ntpu = 'tpu-v6e-slice'", "k8s.tpu needs k8s.tpu_topology"),
    "a topology without a type": ("[k8s]\ntpu_topology = '4x4'", "needs k8s.tpu"),
    "slices of nothing": ("[k8s]\ntpu_slices = 2", "only TPUs have slices"),
    "GPUs and TPUs": ("launch.gpus_per_node = 8\n[k8s]\ntpu = 't'\ntpu_topology = '4x4'", "GPUs or TPUs"),
    "nodes and a topology": ("launch.nodes = 3\n[k8s]\ntpu = 't'\ntpu_topology = '4x4'", "how many nodes"),
    "a part of a node": ("[k8s]\ntpu = 't'\ntpu_topology = '3x3'", "it has 9 chips, and each node has 4"),
}


@pytest.mark.parametrize("case", CONFLICTS)
def test_settings_that_cannot_be_used_together(case: str, tmp_path: Path) -> None:
    text, expected = CONFLICTS[case]
    with pytest.raises(ConfigError, match=r"aifx\.toml:") as caught:
        load(tmp_path, text)
    assert expected in str(caught.value)

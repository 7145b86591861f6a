"""The Dockerfile of each template. No image is built here: the tests compare it with aifx and the project."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

from aifx.scaffold.projects import bundled_templates, scaffold

ROOT = Path(__file__).parents[2]
NAMES = sorted(template.name for template in bundled_templates())
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def projects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("projects")
    for name in NAMES:
        scaffold(folder / name, name, data={}, ask=False)
    return {name: folder / name for name in NAMES}


def instructions(project: Path) -> list[tuple[str, str]]:
    text = (project / "Dockerfile").read_text().replace("\\\n", "")
    lines = [line.split(None, 1) for line in text.splitlines() if line and not line.startswith("#")]
    return [(name, rest) for name, rest in lines]


def test_all_templates_have_the_same(projects: dict[str, Path]) -> None:
    for name in ("Dockerfile", ".dockerignore"):
        assert len({(project / name).read_text() for project in projects.values()}) == 1
    assert len(projects) >= 6


def test_the_image_is_pinned_and_no_root(projects: dict[str, Path]) -> None:
    found = instructions(projects["tabular"])
    known = "ARG FROM WORKDIR COPY RUN ENV USER VOLUME STOPSIGNAL ENTRYPOINT CMD"
    assert {name for name, _ in found} == set(known.split())
    (python,) = [rest.partition("=")[2] for name, rest in found if name == "ARG" and rest.startswith("PYTHON=")]
    version = re.fullmatch(r"python:(3\.\d+)\.\d+-slim-\w+", python)
    assert version is not None, python
    assert version[1] in ("3.11", "3.12", "3.13"), PYPROJECT["project"]["requires-python"]
    assert all(rest.split()[0] == "${PYTHON}" for name, rest in found if name == "FROM")
    after_user = [name for name, _ in found[[name for name, _ in found].index("USER") :]]
    assert not {"RUN", "COPY", "FROM"} & set(after_user)
    user = int(next(rest for name, rest in found if name == "USER"))
    assert user >= 10_000
    made = next(rest for name, rest in found if name == "RUN" and "useradd" in rest)
    assert f"--uid {user}" in made
    assert f"chown -R {user}:{user} /project /cache" in made


def test_runs_and_compiled_programs_are_on_volumes(projects: dict[str, Path]) -> None:
    found = dict(instructions(projects["tabular"]))
    volumes = json.loads(found["VOLUME"])
    variables = dict(pair.split("=", 1) for pair in found["ENV"].split())
    assert f"{found['WORKDIR']}/runs" in volumes
    assert Path(variables["AIFX_CACHE_DIR"]).parent.as_posix() in volumes
    assert (json.loads(found["ENTRYPOINT"]), json.loads(found["CMD"])) == (["aifx"], ["train"])


def test_it_installs_extras_that_there_are(projects: dict[str, Path], tmp_path: Path) -> None:
    extras = PYPROJECT["project"]["optional-dependencies"]
    text = (projects["tabular"] / "Dockerfile").read_text()
    (named,) = re.findall(r"EXTRAS=(\w+); for TPUs: (\w+)", text)
    assert set(named) <= set(extras)
    for tracker in ("tensorboard", "wandb", "mlflow"):
        scaffold(tmp_path / tracker, "series", data={"tracker": tracker}, ask=False)
        assert ("ARG", f"EXTRAS={tracker}") in instructions(tmp_path / tracker)
        assert tracker in extras
    assert ("ARG", "EXTRAS=") in instructions(projects["tabular"])


@pytest.mark.parametrize(("extras", "expected"), [("", ""), ("cuda13,wandb", "[cuda13,wandb]")])
def test_pip_gets_the_wheel_with_its_extras(
    projects: dict[str, Path], tmp_path: Path, extras: str, expected: str
) -> None:
    (command,) = [rest for name, rest in instructions(projects["tabular"]) if name == "RUN" and "pip install" in rest]
    subprocess.run(["sh", "-n", "-c", command], check=True)
    wheel = tmp_path / "aifx_toolkit-0.1.0-py3-none-any.whl"
    wheel.touch()
    script = command.replace("/wheels", str(tmp_path)).replace("python -m venv", "echo")
    script = script.replace("/opt/aifx/bin/pip", "printf '%s\\n'")
    done = subprocess.run(["sh", "-c", script], env={"EXTRAS": extras}, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == f"{wheel}{expected}"
    assert shlex.split(command)  # no quote is left open


@pytest.mark.parametrize("name", NAMES)
def test_the_context_has_what_the_project_needs_and_no_runs(projects: dict[str, Path], name: str) -> None:
    project = projects[name]
    lines = (project / ".dockerignore").read_text().splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]
    there = {path.relative_to(project).as_posix() for path in project.rglob("*") if path.is_file()}
    left_out = {path for path in there if any(fnmatch(path.partition("/")[0], pattern) for pattern in patterns)}
    assert left_out <= {".gitignore", "Dockerfile", ".dockerignore"}
    assert {"runs", ".git"} <= set(patterns)
    assert "wheels" not in patterns

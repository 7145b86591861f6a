"""The wheel holds every file of the folders that are installed, each where it belongs, and nothing else."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
INSTALLED_AS = {
    "aifx": "aifx",
    "commands": "aifx/commands",
    "templates": "aifx/templates",
    "jax_kernels": "jax_kernels",
}
NEEDED_TO_BUILD = ["pyproject.toml", "README.md", "LICENSE"]
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def installed_files() -> dict[str, Path]:
    """The file behind each path that the wheel ought to hold."""
    return {
        f"{installed}/{file.relative_to(ROOT / folder).as_posix()}": file
        for folder, installed in INSTALLED_AS.items()
        for file in (ROOT / folder).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }


def test_every_folder_with_code_is_a_listed_package() -> None:
    folders = {
        Path(path).parent.as_posix().replace("/", ".")
        for path in installed_files()
        if path.endswith(".py") and not path.startswith("aifx/templates/")
    }
    assert folders | {"aifx.templates"} == set(SETUPTOOLS["packages"])


def test_every_package_of_code_says_that_it_is_typed() -> None:
    assert (ROOT / "aifx" / "py.typed").is_file()
    assert (ROOT / "jax_kernels" / "py.typed").is_file()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built from a copy of what it is made from, so that nothing of earlier builds gets in."""
    source = tmp_path_factory.mktemp("source")
    for name in NEEDED_TO_BUILD:
        shutil.copy(ROOT / name, source)
    for folder in INSTALLED_AS:
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    # Left behind by running a template's scripts, say: not for others.
    (source / "templates" / "__pycache__").mkdir(exist_ok=True)
    (source / "templates" / "__pycache__" / "left.cpython-313.pyc").write_bytes(b"")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(source / "dist"), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = (source / "dist").glob("*.whl")
    return zipfile.ZipFile(built)


@pytest.mark.representative("the wheel's files")
def test_the_wheel_holds_each_file_and_no_other(wheel: zipfile.ZipFile) -> None:
    held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert held == set(installed_files())


@pytest.mark.representative("the wheel's files")
def test_the_wheel_holds_dotfiles_of_templates_byte_for_byte(wheel: zipfile.ZipFile) -> None:
    dotfiles = {path: file for path, file in installed_files().items() if Path(path).name.startswith(".")}
    assert dotfiles, "no template has a dotfile any more: then this test has nothing to say"
    for path, file in dotfiles.items():
        assert wheel.read(path) == file.read_bytes()


@pytest.mark.representative("the wheel's files")
def test_the_wheel_names_its_command_and_license(wheel: zipfile.ZipFile) -> None:
    info = next(name.split("/")[0] for name in wheel.namelist() if ".dist-info/" in name)
    assert "aifx = aifx.commands.main:main" in wheel.read(f"{info}/entry_points.txt").decode()
    assert "License-Expression: Apache-2.0" in wheel.read(f"{info}/METADATA").decode()
    assert wheel.read(f"{info}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()


@pytest.mark.representative("the wheel's files")
def test_the_version_and_the_name_are_the_same_everywhere(wheel: zipfile.ZipFile) -> None:
    from aifx.core.version import DISTRIBUTION, __version__

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (__version__, DISTRIBUTION) == (project["version"], project["name"])
    assert Path(str(wheel.filename)).name.startswith(f"aifx_toolkit-{__version__}-")


def test_a_missing_package_is_asked_for_by_its_own_name() -> None:
    """`aifx` in an index is another project, so no command of ours may install `aifx[...]`."""
    from aifx.core.extras import EXTRAS, install_command

    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    several = ("cuda12", "cuda13", "tpu", "plan-gpu")
    assert {name: list(requirements) for name, requirements in EXTRAS.items()} == {
        name: requirements for name, requirements in declared.items() if name not in several
    }
    assert install_command("wandb") == "pip install 'wandb>=0.18'"
    assert install_command("s3") == "pip install 's3fs>=2024.6'"
    found = [
        f"{path.relative_to(ROOT)}: {match.group()}"
        for folder in ("aifx", "commands", "jax_kernels", "templates", "docs", "scripts")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
        for match in re.finditer(r"install[^\n]*\baifx(\[|-toolkit)[^\n]*", path.read_bytes().decode("utf-8", "ignore"))
    ]
    assert not found

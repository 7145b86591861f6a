"""Setting up: which Python is believed, and that what failed half-way is never taken for whole."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
THIS_PYTHON = getattr(sys, "_base_executable", sys.executable)
THIS_VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
TOOLS = [
    "sh",
    "cat",
    "cksum",
    "dirname",
    "env",
    "grep",
    "head",
    "mkdir",
    "mv",
    "rm",
    "cp",
    "sed",
    "sleep",
    "sort",
    "tail",
]


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A folder to use as PATH: a plain system's tools, no Python and no uv."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found is not None, tool
        (folder / tool).symlink_to(found)
    return folder


def put(folder: Path, name: str, script: str) -> None:
    file = folder / name
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)


def run_script(
    script: Path, *arguments: str, path: str, home: Path, **environ: str
) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("UV_", "VIRTUAL_ENV", "PYENV_", "PYTHON"))}
    return subprocess.run(
        ["sh", str(script), *arguments],
        env={**kept, "PATH": path, "HOME": str(home), **environ},
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip


def find_python(*versions: str, path: str, home: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    return run_script(ROOT / "scripts" / "find_python.sh", *versions, path=path, home=home, **environ)


def test_a_shim_that_stands_for_nothing_is_passed_over(bare: Path, tmp_path: Path) -> None:
    put(bare, f"python{THIS_VERSION}", "echo 'command not found' >&2; exit 127")
    behind = tmp_path / "behind"
    behind.mkdir()
    (behind / f"python{THIS_VERSION}").symlink_to(THIS_PYTHON)
    done = find_python(THIS_VERSION, path=f"{bare}:{behind}", home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).resolve() == Path(THIS_PYTHON).resolve()


def test_a_name_that_lies_about_its_version_is_passed_over(bare: Path, tmp_path: Path) -> None:
    (bare / "python3.12").symlink_to(THIS_PYTHON)
    other = "3.12" if THIS_VERSION != "3.12" else "3.11"
    (bare / f"python{other}").unlink(missing_ok=True)
    (bare / f"python{other}").symlink_to(THIS_PYTHON)
    done = find_python(other, path=str(bare), home=tmp_path)
    assert done.returncode == 2
    assert f"is Python {THIS_VERSION}" in done.stderr
    assert "hint:" in done.stderr


def test_a_python_that_cannot_make_environments_is_turned_down_with_the_way_out(bare: Path, tmp_path: Path) -> None:
    # Debian's python3 without python3-venv: the module ensurepip is missing.
    put(bare, "python3", f'exec "{THIS_PYTHON}" -I -c "import sys; sys.modules[\'ensurepip\'] = None\n$3" "$4" "$5"')
    done = find_python(THIS_VERSION, path=str(bare), home=tmp_path)
    assert done.returncode == 2
    assert "cannot make environments" in done.stderr
    assert "python3-venv" in done.stderr


def test_with_uv_there_it_can(bare: Path, tmp_path: Path) -> None:
    put(bare, "python3", f'exec "{THIS_PYTHON}" -I -c "import sys; sys.modules[\'ensurepip\'] = None\n$3" "$4" "$5"')
    put(bare, "uv", "exit 1")
    done = find_python(THIS_VERSION, path=str(bare), home=tmp_path)
    assert done.returncode == 0, done.stderr


def test_no_python_at_all(bare: Path, tmp_path: Path) -> None:
    done = find_python("3.13", "3.12", path=str(bare), home=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "no such command" in done.stderr
    assert "hint:" in done.stderr


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with the files that a set-up reads."""
    folder = tmp_path / "check out"
    folder.mkdir()
    for name in ("pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "scripts", folder / "scripts")
    return folder


@pytest.mark.slow
def test_a_set_up_that_failed_starts_again(checkout: Path, bare: Path, tmp_path: Path) -> None:
    """A failed set-up leaves a marker and no stamp, and the next one makes the environment again."""
    venv = checkout / ".venv"
    venv.mkdir()
    (venv / ".aifx-environment").touch()
    (venv / "half of a package").touch()
    (tmp_path / "no wheels").mkdir()
    done = run_script(
        checkout / "scripts" / "setup.sh", "run", path=str(bare), home=tmp_path,
        PYTHON=THIS_PYTHON, WHEELHOUSE=str(tmp_path / "no wheels"),
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert f"Making .venv with Python {THIS_VERSION}" in done.stderr
    assert "hint: without a network" in done.stderr
    assert not (venv / "half of a package").exists()
    assert (venv / ".aifx-environment").exists()
    assert not (venv / ".aifx-stamp").exists()
    assert not (checkout / ".venv.lock").exists()


def test_an_environment_of_someone_elses_is_left_alone(checkout: Path, bare: Path, tmp_path: Path) -> None:
    (checkout / ".venv").mkdir()
    (checkout / ".venv" / "precious").write_text("mine")
    done = run_script(checkout / "scripts" / "setup.sh", "run", path=str(bare), home=tmp_path, PYTHON=THIS_PYTHON)
    assert done.returncode == 2
    assert "not made by" in done.stderr
    assert (checkout / ".venv" / "precious").read_text() == "mine"


def test_a_stamp_is_believed_only_while_all_it_names_is_as_it_was(checkout: Path, bare: Path, tmp_path: Path) -> None:
    """With an environment that works and a stamp as a set-up writes it, nothing is done; a changed lock is noticed."""
    scripts, venv = checkout / "scripts", checkout / ".venv"
    (venv / "bin").mkdir(parents=True)
    put(venv / "bin", "python", "exit 0")
    (venv / ".aifx-environment").touch()
    sums = subprocess.check_output(
        ["cksum", "pyproject.toml", "requirements.lock", "scripts/setup.sh"], cwd=checkout, text=True
    )
    (venv / ".aifx-stamp").write_text(f"run\nfolder {checkout}\nversions {THIS_PYTHON}\n{sums}")
    believed = run_script(scripts / "setup.sh", "run", path=str(bare), home=tmp_path, PYTHON=THIS_PYTHON)
    assert believed.returncode == 0, believed.stderr
    assert believed.stderr == ""

    with (checkout / "requirements.lock").open("a") as lock:
        lock.write("# changed\n")
    put(bare, "uv", "exit 1")  # that it begins is enough
    noticed = run_script(scripts / "setup.sh", "run", path=str(bare), home=tmp_path, PYTHON=THIS_PYTHON)
    assert "Making .venv" in noticed.stderr

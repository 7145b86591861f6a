"""requirements.lock serves each supported Python, with hashes, and names no address."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
LOCK = (ROOT / "requirements.lock").read_text()
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
RUNNING, TEST_TOOLS, DOCS_TOOLS = re.split(r"^# ---- (?:test|docs) tools.*$", LOCK, flags=re.MULTILINE)
VERSIONS = ["3.11", "3.12", "3.13"]


@dataclass(frozen=True)
class Entry:
    requirement: Requirement
    hashes: tuple[str, ...]


def entries(text: str) -> list[Entry]:
    found = []
    for block in re.findall(r"^[^#\s-].*\n(?:[ \t]+.*\n)*", text, re.MULTILINE):
        first, *rest = (line.strip().removesuffix("\\").strip() for line in block.splitlines())
        found.append(Entry(Requirement(first), tuple(rest)))
    return found


def locked(text: str, python: str, platform: str = "linux") -> dict[str, str]:
    """The version of each package that the lock gives to this Python."""
    environment = {**default_environment(), "python_version": python, "python_full_version": f"{python}.4"}
    environment |= {"sys_platform": platform, "platform_machine": "x86_64" if platform == "linux" else "arm64"}
    chosen: dict[str, str] = {}
    for entry in entries(text):
        requirement = entry.requirement
        if requirement.marker is None or requirement.marker.evaluate(environment):
            name = canonicalize_name(requirement.name)
            assert name not in chosen, f"{name} is there twice for Python {python}"
            chosen[name] = str(requirement.specifier).removeprefix("==")
    return chosen


def requirements(*groups: str) -> list[Requirement]:
    """The project's own requirements, with those of its extras or dependency groups."""
    found = list(PYPROJECT["project"]["dependencies"])
    for group in groups:
        found += PYPROJECT["project"]["optional-dependencies"].get(group, [])
        found += [r for r in PYPROJECT["dependency-groups"].get(group, []) if isinstance(r, str)]
    return [Requirement(r) for r in found]


@pytest.mark.parametrize("platform", ["linux", "darwin"])
@pytest.mark.parametrize("python", VERSIONS)
def test_the_first_section_meets_what_aifx_needs_to_run_and_to_be_built(python: str, platform: str) -> None:
    chosen = locked(RUNNING, python, platform)
    for requirement in requirements("build"):
        version = chosen.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement} is not in the lock for Python {python}: make lock"
        assert requirement.specifier.contains(version, prereleases=True), (
            f"{requirement} is locked at {version}: make lock"
        )


@pytest.mark.parametrize(
    ("sections", "groups"),
    [
        (RUNNING + TEST_TOOLS, ["lint", "test", "html", "tensorboard", "wandb", "mlflow"]),
        (LOCK, ["docs"]),
    ],
    ids=["tests", "docs"],
)
@pytest.mark.parametrize("python", VERSIONS)
def test_the_later_sections_meet_what_tests_and_docs_also_need(python: str, sections: str, groups: list[str]) -> None:
    chosen = locked(sections, python)
    for requirement in requirements(*groups):
        version = chosen.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement} is not in the lock for Python {python}: make lock"
        assert requirement.specifier.contains(version, prereleases=True), (
            f"{requirement} is locked at {version}: make lock"
        )


def test_both_ends_of_jax_are_held() -> None:
    """3.11 gets the last JAX that runs there, which is the oldest that aifx runs on; newer Pythons get a newer one."""
    assert locked(RUNNING, "3.11")["jax"] == locked(RUNNING, "3.11")["jaxlib"] == "0.10.2"
    newest = locked(RUNNING, "3.13")
    assert newest["jax"] == newest["jaxlib"] == locked(RUNNING, "3.12")["jax"]
    assert tuple(map(int, newest["jax"].split(".")[:2])) >= (0, 12)


def test_each_entry_is_exact_and_has_hashes() -> None:
    found = entries(LOCK)
    assert len(found) > 50
    for entry in found:
        (specifier,) = entry.requirement.specifier
        assert specifier.operator == "=="
        assert entry.requirement.url is None
        assert entry.hashes, f"{entry.requirement} has no hash"
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", h) for h in entry.hashes)


def test_nothing_stands_in_it_but_entries_and_comments() -> None:
    # A package without a wheel runs its own code when it is built: each is named here, and aifx itself needs none.
    assert "--no-binary" not in RUNNING
    for line in LOCK.splitlines():
        assert re.match(r"#|--no-binary jsonpath-rw$|[a-z0-9][a-z0-9.-]*==|    --hash=sha256:", line), line
    assert "://" not in LOCK


def test_each_package_is_in_one_section() -> None:
    sections = (RUNNING, TEST_TOOLS, DOCS_TOOLS)
    names = [name for part in sections for name in {canonicalize_name(e.requirement.name) for e in entries(part)}]
    assert len(names) == len(set(names))

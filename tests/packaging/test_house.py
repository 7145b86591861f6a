"""scripts/house.py sees what it counts, and fails unless each count equals its limit."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest
import tomli

SCRIPTS = Path(__file__).parents[2] / "scripts"

PROJECT = """
[tool.setuptools]
packages = ["app", "app.top", "app.base", "tools"]
package-dir = { app = "app", "app.top" = "top", tools = "tools" }

[[tool.importlinter.contracts]]
type = "layers"
containers = ["app"]
layers = ["top", "base"]

# only ever lower
[tool.house]
circles = 3
back-arrows = 2
config-signatures = 2
model-getattr = 1
hashlib = 2
"os._exit" = 1
".add_signal_handler" = 1
"""
LIMITS: dict[str, int] = tomli.loads(PROJECT)["tool"]["house"]

FILES = {
    "app/__init__.py": "",
    "app/base/__init__.py": """
from importlib import import_module

def found(name):
    return import_module(f"{__name__}.l{name}")
""",
    "app/base/config.py": "class Config: ...",
    "app/base/late.py": """
def load():
    import app.top.plain
    from app.base import text
    return text
""",
    "app/base/text.py": 'PLACE = "app.base:found"',
    "app/base/upward.py": """
def up(model):
    return getattr(model, "size", 0), getattr(up, "size", 0), ["-m", "app.top.run"]
""",
    "app/base/settings.py": """
from app.base.config import Config as Whole

def one(settings: Whole | None): ...

async def two(sizes: dict[str, int], *all: Whole): ...

def three(sizes: int) -> Whole: ...
""",
    "top/__init__.py": "",
    "top/plain.py": "",
    "top/run.py": """
from hashlib import sha256
import app.base.upward

if __name__ == "__main__":
    print(sha256, app)
""",
    "tools/__init__.py": "",
    "tools/own.py": """
import hashlib as digests
import asyncio, os as system

Config = int

def end(size: Config):
    asyncio.get_event_loop().add_signal_handler(15, system._exit)
    digests.md5()
""",
}


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def house() -> ModuleType:
    return load("house")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, text in {**FILES, "pyproject.toml": PROJECT}.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(text)
    return tmp_path


def test_each_measure_names_its_places(house: ModuleType, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def listed(name: str) -> list[str]:
        assert not house.main(["--root", str(root), "--list", name])
        return capsys.readouterr().out.splitlines()

    assert not house.main(["--root", str(root)])
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()] == [
        [name, str(count)] for name, count in LIMITS.items()
    ]
    assert listed("circles") == [
        "app/base/__init__.py:5: app.base.late",
        "app/base/late.py:4: app.base.text",
        "app/base/text.py:1: app.base",
    ]
    assert listed("back-arrows") == ["app/base/late.py:3: app.top.plain", "app/base/upward.py:3: app.top.run"]
    assert listed("config-signatures") == ["app/base/settings.py:4: one", "app/base/settings.py:6: two"]
    assert listed("model-getattr") == ["app/base/upward.py:3: getattr(model, 'size', 0)"]
    assert listed("hashlib") == ["top/run.py:2", "tools/own.py:2"]
    assert listed("os._exit") == listed(".add_signal_handler") == ["tools/own.py:8"]
    assert listed("app.base") == ["top/run.py:3"]


@pytest.mark.parametrize("name", ["circles", "back-arrows", "config-signatures", "model-getattr", "hashlib"])
def test_a_count_above_its_limit_fails_with_its_places(
    house: ModuleType, root: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    project = root / "pyproject.toml"
    project.write_text(project.read_text().replace(f"{name} = {LIMITS[name]}", f"{name} = 0"))
    before = project.read_text()
    assert house.main(["--root", str(root), "--lower"])
    error = capsys.readouterr().err.splitlines()
    assert name in error[-1]
    assert len(error) == 1 + LIMITS[name]
    assert project.read_text() == before


def test_a_count_below_its_limit_fails_until_the_limit_is_lowered(
    house: ModuleType, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "tools" / "own.py").unlink()
    project = root / "pyproject.toml"
    assert house.main(["--root", str(root)])
    assert "--lower" in capsys.readouterr().err
    assert not house.main(["--root", str(root), "--lower"])
    assert tomli.loads(project.read_text())["tool"]["house"] == LIMITS | dict.fromkeys(
        ["os._exit", ".add_signal_handler"], 0
    ) | {"hashlib": 1}
    assert "# only ever lower" in project.read_text()
    assert not house.main(["--root", str(root)])


STEPS = """
import threading

class Step:
    size = len("")

    def trace(self):
        return self.inner()

    def inner(self):
        self.inside()
        def nested():
            return 1

    def inside(self):
        def nested():
            import own_late
        nested()

def take():
    thread = threading.Thread(target=read)
    thread.start()
    thread.join()
    yield 1

def read():
    pass

def drain():
    return (
        1
    )

def unrelated():
    pass

def older(opened, done):
    opened.wait()
    unrelated()
    done.set()

def run():
    opened, done = threading.Event(), threading.Event()
    threading.Thread(target=older, args=(opened, done)).start()
    Step().trace()
    unrelated()
    for _ in take():
        opened.set()
        done.wait()
        drain()
    drain()
    unrelated()
"""
needs_monitoring = pytest.mark.skipif(sys.version_info < (3, 12), reason="Python has sys.monitoring since 3.12")


@pytest.fixture
def steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    (tmp_path / "own_steps.py").write_text(STEPS)
    (tmp_path / "own_late.py").write_text("size = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("own_steps", "own_late"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module("own_steps")


@needs_monitoring
def test_the_functions_of_a_step_are_those_entered_in_its_windows(steps: ModuleType, tmp_path: Path) -> None:
    traced = load("traced_step")
    windows = (
        traced.Window("own_steps:Step.trace", "own_steps:Step.trace"),
        traced.Window("own_steps:take", "own_steps:drain", 2),
    )
    entered = traced.entered_functions(steps.run, windows, (f"{tmp_path}{os.sep}",))
    assert {name: count for _, _, name, count in traced.lines(entered)} == {
        "Step.trace": 2,
        "Step.inner": 4,
        "Step.inside": 4,
        "take": 5,
        "read": 2,
        "drain": 4,
        "run": 11,
    }


@needs_monitoring
def test_a_window_that_never_ends_is_an_error(steps: ModuleType, tmp_path: Path) -> None:
    traced = load("traced_step")
    windows = (traced.Window("own_steps:take", "own_steps:drain", 3),)
    with pytest.raises(LookupError, match="own_steps:drain"):
        traced.entered_functions(steps.run, windows, (f"{tmp_path}{os.sep}",))

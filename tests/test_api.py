"""The names of docs/api.md: all are listed, work after every module was imported, and are imported late."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import pkgutil
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import aifx
import jax_kernels
from aifx.data.readers.pictures import FEW

PAGE = Path(__file__).parents[1] / "docs" / "api.md"
NAMES = re.findall(r"^### ((?:aifx|jax_kernels)\.\w+)$", PAGE.read_text(), re.M)

TINY = {
    "model.num_layers": 1,
    "model.embed_dim": 16,
    "model.num_heads": 2,
    "data.vocab_size": 300,
    "data.seq_len": 16,
    "train.num_steps": 3,
    "train.global_batch_size": 2,
    "train.validate_every": 3,
    "train.validation_batches": 1,
}


@pytest.fixture(scope="module")
def modules() -> list[str]:
    """Every module of the packages, imported."""
    found = list(_walk("aifx")) + list(_walk("aifx.commands")) + list(_walk("jax_kernels"))
    for name in found:
        importlib.import_module(name)
    return found


def _walk(package: str) -> Iterator[str]:
    path = importlib.import_module(package).__path__
    yield from (one.name for one in pkgutil.walk_packages(path, f"{package}.") if ".templates." not in one.name)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, modules: list[str]) -> Path:
    folder = tmp_path_factory.mktemp("api") / "project"
    assert "aifx.toml" in aifx.init(folder, "language-model", answers={"project_name": "tiny"}).files
    (text,) = folder.glob("data/*.txt")
    text.write_text(text.read_text()[:40_000])
    result = aifx.train(folder, settings=TINY)
    assert (result.status, result.step) == ("completed", 3)
    return folder


@pytest.mark.representative("each module with each Python")
def test_every_module_is_imported(modules: list[str]) -> None:
    assert {"aifx.sweeps.record", "aifx.commands.main", "jax_kernels.ops"} <= set(modules)


def test_the_page_has_every_name() -> None:
    public = [f"aifx.{name}" for name in aifx.__all__ if name != "__version__"]
    assert set(NAMES) == {*public, *(f"jax_kernels.{name}" for name in jax_kernels.__all__)}


@pytest.mark.parametrize("name", [name for name in aifx.__all__ if name != "__version__"])
def test_each_function_documents_its_arguments_with_an_example(name: str) -> None:
    function = getattr(aifx, name)
    text, first = inspect.getdoc(function) or "", (inspect.getdoc(function) or " ").split()[0]
    assert re.search(r"^Example:\n    >>> ", text, re.M)
    assert not first.endswith("s"), "a function's first word is an imperative"
    documented = set(re.findall(r"^    (\w+): ", text, re.M))
    given = inspect.signature(function).parameters.values()
    named = {one.name for one in given if one.kind is not one.VAR_KEYWORD}
    assert documented <= named
    assert documented == named or re.search(r"^The (other )?arguments are those of `(\w+)`", text, re.M)


def test_the_names_that_type_checkers_see_are_those_that_python_finds() -> None:
    tree = ast.parse(Path(aifx.__file__).read_text())
    (checked,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in checked.body for alias in node.names}  # type: ignore[attr-defined]
    assert seen == {name: getattr(aifx, name).__module__ for name in aifx.__all__ if name != "__version__"}


def train(project: Path) -> None:
    again = aifx.train(project, settings=TINY)
    assert again.already
    forked = aifx.train(project, "other", fork_from="main", fork_at=3, settings={**TINY, "train.num_steps": 4})
    assert (forked.status, forked.step) == ("completed", 4)


def evaluate(project: Path) -> None:
    run = project / "runs" / "main"
    report = aifx.evaluate(run, gates=["loss <= 99"], settings={"eval.batch_size": 64, "eval.gates": []})
    assert report.passed
    (text,) = project.glob("data/*.txt")
    (project / "new.txt").write_text(text.read_text()[:2000])
    reports = aifx.evaluate(run, data=[project / "new.txt"], step="last", settings={"eval.gates": []})
    assert reports.datasets[0].metrics["loss"] > 0


def load(project: Path) -> None:
    model = aifx.load(project / "runs" / "main", step=3)
    assert (model.run, model.step) == ("main", 3)
    assert repr(model) == "LoadedModel(run='main', step=3, task='language')"
    with pytest.raises(Exception, match="is not a step"):
        aifx.load(project / "runs" / "main", step="newest")


def predict(project: Path) -> None:
    (row,) = aifx.predict(project / "runs" / "main", [{"text": "Call me Ishmael."}])
    assert row["loss"] > 0
    assert list(aifx.predict(project / "runs" / "main", {"text": np.array(["Call me Ishmael."])})) == [row]


def generate(project: Path) -> None:
    texts = {aifx.generate(project / "runs" / "main", "Call me", max_tokens=4, seed=1).text for _ in range(2)}
    assert len(texts) == 1


def doctor(project: Path) -> None:
    report = aifx.doctor(only=["memory", "disk"])
    assert {finding.id.partition(".")[0] for finding in report.findings} <= {"memory", "disk"}


def bench(project: Path) -> None:
    settings = {name: value for name, value in TINY.items() if name != "train.num_steps"}
    report = aifx.bench("data", project=project, quick=True, settings=settings)
    assert report.find("data.read") is not None
    with pytest.raises(Exception, match="there is no suite"):
        aifx.bench("dta")


AIFX: dict[str, Callable[[Path], None]] = {
    "init": lambda project: None,  # of the fixture
    **{one.__name__: one for one in (train, evaluate, load, predict, generate, doctor, bench)},
}


def qkv(*shape: int) -> Any:
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)


def quantized(*shape: int) -> Any:
    return jnp.asarray(np.random.default_rng(0).integers(-8, 8, shape), jnp.int8)


OPS: dict[str, Callable[..., Any]] = {
    "attention": lambda op: op(qkv(1, 8, 2, 8), qkv(1, 8, 2, 8), qkv(1, 8, 2, 8), causal=True),
    "attention_with_lse": lambda op: op(qkv(1, 8, 2, 8), qkv(1, 8, 2, 8), qkv(1, 8, 2, 8))[1],
    "decode_attention": lambda op: op(
        qkv(1, 2, 8), qkv(2, 3, 4, 8), qkv(2, 3, 4, 8), jnp.array([[1, 2]]), jnp.array([5])
    ),
    "linear_cross_entropy": lambda op: op(qkv(4, 8), qkv(8, 16), jnp.array([0, 1, 2, 15])),
    "rms_norm": lambda op: op(qkv(4, 8), qkv(8)),
    "layer_norm": lambda op: op(qkv(4, 8), qkv(8), qkv(8)),
    "swiglu": lambda op: op(qkv(4, 8), qkv(8, 16), qkv(8, 16)),
    "rotary": lambda op: op(qkv(1, 4, 2, 8), qkv(1, 4, 4), qkv(1, 4, 4)),
    "quantized_matmul": lambda op: op(quantized(4, 8), quantized(8, 16), qkv(4, 1), qkv(1, 16)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", [*(f"aifx.{name}" for name in AIFX), *(f"jax_kernels.{name}" for name in OPS)])
def test_every_name_works_after_every_module_was_imported(name: str, project: Path) -> None:
    package, _, function = name.partition(".")
    if package == "aifx":
        AIFX[function](project)
    else:
        assert jnp.isfinite(OPS[function](getattr(jax_kernels, function))).all()


def test_the_packages_load_nothing_and_know_their_names() -> None:
    script = (
        "import sys; before = set(sys.modules); import aifx, jax_kernels\n"
        "new = {m.partition('.')[0] for m in set(sys.modules) - before} - set(sys.stdlib_module_names)\n"
        "assert new <= {'aifx', 'jax_kernels'}, new\n"
        "ours = {m for m in sys.modules if m.startswith(('aifx.', 'jax_kernels.'))}\n"
        "assert ours == {'aifx.core', 'aifx.core.version'}, ours\n"
        "assert {'train', 'load'} <= set(dir(aifx)) and 'attention' in dir(jax_kernels)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for package in (aifx, jax_kernels):
        with pytest.raises(AttributeError, match="nothing"):
            package.nothing  # noqa: B018


@pytest.mark.slow
def test_a_script_without_a_main_guard_trains(tmp_path: Path) -> None:
    """Processes that decode pictures do not run the script that called aifx: it prints each line once."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for number in range(FEW + 8):
        path = tmp_path / f"pictures/{('dark', 'light')[number % 2]}/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 128, (8, 8, 3), np.uint8) + np.uint8(127 * (number % 2))).save(path)
    (tmp_path / "aifx.toml").write_text(
        '[task]\nkind = "vision"\n[data]\npath = "pictures"\nimage_size = [8, 8]\nworkers = 2\n'
        "[model]\nchannels = [4, 4]\n[train]\nnum_steps = 3\nglobal_batch_size = 16\n"
    )
    script = """\
        import logging
        import aifx
        from aifx.core import processes

        start = processes.Child.of_module
        started = []
        processes.Child.of_module = lambda *args, **options: started.append(args[0]) or start(*args, **options)
        logging.basicConfig()
        print("begun")
        result = aifx.train(settings={"train.validate_every": 3})
        print(result.status, result.step, started.count("aifx.core.calls"))
        print(aifx.evaluate("runs/main").metrics["examples"] > 0)
    """
    (tmp_path / "script.py").write_text(textwrap.dedent(script))
    environ = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["begun", "completed 3 2", "True"]

"""Rules of the whole repository: nothing private is in it, and one package prints."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MADE_HERE = re.compile(r"\.git|\.venv.*|build|dist|demo|wheelhouse|shared|.*\.egg-info|\.\w+_cache|\.hypothesis")

# Put together here, so that this file does not hold what it looks for.
REGISTRIES = [
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("npmjs", "org"),
        ("deb", "debian", "org"),
        ("conda", "org"),
    )
]
HOMES = "|".join(["ro" + "ot", "wo" + "rk", "Us" + "ers", "ho" + r"me/(?!(?:user|you|me)\b)\w+"])
PRIVATE = re.compile(r"(?<![\w.~*$}-])/(?:" + HOMES + r")/[\w.]")
UNFINISHED = re.compile("|".join(["TO" + "DO", "FIX" + "ME", r"\bXX" + r"X\b", "raise NotImpl" + "emented"]))


def files(folder: Path = ROOT) -> Iterator[Path]:
    """The repository's files; by walking, so that it works in an unpacked archive too."""
    for path in sorted(folder.iterdir()):
        made_here = MADE_HERE.fullmatch(path.name) if folder == ROOT else path.name == "__pycache__"
        if made_here or path.is_symlink():
            continue
        if path.is_dir():
            yield from files(path)
        else:
            yield path


def modules(*folders: str) -> list[Path]:
    return [path for folder in folders for path in files(ROOT / folder) if path.suffix == ".py"]


def test_no_file_names_a_registry_or_a_private_path() -> None:
    found = []
    for path in files():
        text = path.read_bytes().decode("utf-8", "ignore")
        found += [f"{path.relative_to(ROOT)}: {host}" for host in REGISTRIES if host in text]
        found += [f"{path.relative_to(ROOT)}: {match.group()}" for match in PRIVATE.finditer(text)]
    assert not found


def test_the_search_for_private_paths_finds_them() -> None:
    assert PRIVATE.search("cached in /ro" + "ot/.cache")
    assert PRIVATE.search("see /wo" + "rk/notes")
    assert not PRIVATE.search("frame" + "wo" + "rk/notes, ./work/notes and /home/user/x")


@pytest.mark.slow
def test_only_the_terminal_prints() -> None:
    for path in modules("aifx", "jax_kernels"):
        for node in ast.walk(ast.parse(path.read_text(), str(path))):
            assert not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"), (
                f"{path.relative_to(ROOT)}:{node.lineno} prints"
            )


def test_nothing_is_left_to_do() -> None:
    for path in modules("aifx", "commands", "jax_kernels", "benchmarks", "scripts", "tests"):
        match = UNFINISHED.search(path.read_text())
        assert match is None, f"{path.relative_to(ROOT)}: {match.group()}"


@pytest.mark.slow
def test_benchmarks_import_what_aifx_has() -> None:
    """mypy does not read them."""
    imports = [
        (path.name, str(node.module), {alias.name for alias in node.names})
        for path in modules("benchmarks")
        for node in ast.walk(ast.parse(path.read_text(), str(path)))
        if isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] == "aifx"
    ]
    bound = {module: bound_names(module) for _, module, _ in imports}
    assert imports
    assert not [(path, module, missing) for path, module, names in imports if (missing := names - bound[module])]


def bound_names(module: str) -> set[str]:
    """The names that a module of aifx binds anywhere, and its submodules. Empty if there is no such module."""
    name = module.replace(".", "/")
    places = [ROOT / name, ROOT / name.removeprefix("aifx/")]  # commands/ and templates/ install under aifx
    names = {path.stem for place in places for path in place.glob("*.py")}
    for path in [path for place in places for path in (place.with_suffix(".py"), place / "__init__.py")]:
        for node in ast.walk(ast.parse(path.read_text() if path.exists() else "")):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
            elif isinstance(node, ast.alias):
                names.add(node.asname or node.name)
    return names


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["train", "--help"], ["config", "--help"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    heavy = ("jax", "jaxlib", "orbax", "grain", "optax", "tokenizers", "scipy", "copier", "numpy")
    program = f"""
import sys
sys.argv = ["aifx", *{arguments!r}]
from aifx.commands.main import main
code = None
try:
    main()
except SystemExit as stop:
    code = stop.code
assert not code, code
print("loaded:", [name for name in {heavy!r} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "loaded: []"


@pytest.mark.slow
def test_writing_text_loads_no_library_of_chats_or_pictures() -> None:
    """`aifx generate` takes two seconds, of which half is its start."""
    modules = "aifx.loading.restore, aifx.serving.generate, aifx.objectives.next_token, aifx.checkpoint.checkpoints"
    program = f"import sys, {modules}; print({{'jinja2', 'PIL', 'tomlkit'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout == "set()\n"

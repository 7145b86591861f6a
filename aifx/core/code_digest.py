"""The digest of the code that makes a result: a module with all that it imports of aifx, and the libraries of these.

A result that is kept under this digest is made again if its code changes, and not because aifx has another version.
Modules on the path of Python that no installed distribution has count as those beside the module do. Nothing is
imported: modules are found by their names, and parsed. Comments, docstrings and blank lines do not count.
Python 3.11 and 3.13 find the same digest. Not seen are modules whose names a program puts together.
"""

from __future__ import annotations

import ast
import io
import os
import re
import sys
import tokenize
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from aifx.core.artifact import writable_folder
from aifx.core.digests import sha256_of, sha256_of_file, sha256_of_json, sha256_of_values
from aifx.core.errors import EnvironmentFault, UsageError
from aifx.core.file_states import FileState
from aifx.core.files import UnsafeFile, read_file
from aifx.core.json_files import write_json
from aifx.core.json_values import plain
from aifx.core.parsing import parse_json
from aifx.core.project import cache_path

AIFX = Path(__file__).parents[2]
PACKAGES = ("aifx", "jax_kernels")
"""The packages of aifx, in the folder AIFX."""

UNCOUNTED = ("aifx", "aifx.core.version")
"""The first refers to all modules for the public functions, and the second changes with each release."""

CORE = "aifx.core."
"""The libraries that these modules import do not count: they open files and start processes."""

METADATA = ".dist-info"

_REFERENCE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+(:\w+)?")
"""A module, or a name in it, as strings refer to it: `DATA_KINDS` does, and `Child.of_module`."""


@dataclass(frozen=True)
class Code:
    """The code that makes a result.

    Attributes:
        sha256: of the modules, and of the files beside those of aifx that they name.
        libraries: versions of the distributions that the modules import, by name.
    """

    sha256: str
    libraries: Mapping[str, str]


def code_digest(module: str, without: tuple[str, ...] = ()) -> Code:
    """The code of a module that is imported or can be. Raises UsageError if it has no file.

    It is what this process has imported: a file that changes afterwards counts from `importlib.reload` on.

    Args:
        without: beginnings of the names of modules that do not count, such as "aifx.core.".
    """
    known = _found.get((module, without))
    if known is None or any(_spec(name) is not spec for name, spec in known[1].items()):
        start = _file_of(module)
        code, files = _find_code(module, start, without)
        loaded = {name: _spec(name) for name, one in list(sys.modules.items()) if getattr(one, "__file__", "") in files}
        known = _found[module, without] = code, loaded
    return known[0]


_found: dict[tuple[str, tuple[str, ...]], tuple[Code, dict[str, object]]] = {}
"""The code, and the specs of its modules that were imported, by the arguments of `code_digest`. A reload makes
another spec."""


def _spec(module: str) -> object:
    return getattr(sys.modules.get(module), "__spec__", None)


def _find_code(module: str, start: Path, without: tuple[str, ...]) -> tuple[Code, set[str]]:
    """The code of a module in the file `start`, and the paths of all its files."""
    place = cache_path("code") / sha256_of_values(module, str(start), without)
    with suppress(OSError, ValueError, UnsafeFile, LookupError, TypeError):
        known: Any = parse_json(read_file(place))
        before = {Path(path): FileState(**state) for path, state in known["states"].items()}
        is_still = all(state.is_still(FileState.of(path)) for path, state in before.items())
        listed = cache(_names_in)
        is_still = is_still and all(_place_of(top, listed) == place for top, place in known["places"].items())
        if is_still and known["installed"] == _installed():
            return Code(**known["code"]), {*known["states"]}
    search = _Search(start.stem if module == "__main__" else module, start, without)
    code = Code(sha256_of_json(search.digests), search.libraries())
    if all(state.is_settled for state in search.states.values()):
        with suppress(OSError, EnvironmentFault), writable_folder(place.parent):
            found = {"states": search.states, "places": search.places, "installed": search.installed, "code": code}
            write_json(place, plain(found))
    return code, {*map(str, search.states)}


def _file_of(module: str) -> Path:
    if module in sys.modules:
        found = getattr(sys.modules[module], "__file__", None)
    else:
        found = spec.origin if (spec := find_spec(module)) is not None else None
    if found is None or not os.path.isfile(found):
        raise UsageError(f"the module {module} has no file", "the digest of its code is not known", "python FILE.py")
    return Path(found).absolute()


def digest_of_file(path: Path) -> str:
    """The digest of a Python file, without comments, docstrings, and blank lines between statements.

    Of a file that cannot be parsed, all bytes count. Raises OSError.
    """
    try:
        return _parse(path, "").sha256
    except (SyntaxError, ValueError):
        return sha256_of_file(path)


def modules_below(module: str, root: Path) -> list[Path]:
    """The files of a module in the folder `root`, and of all modules in there that it imports, transitively.

    Raises UsageError if it has no file there.
    """
    place = root.joinpath(*module.split("."))
    start = next((path for path in (place.with_suffix(".py"), place / "__init__.py") if path.is_file()), None)
    if start is None:
        raise UsageError(f"the module {module} has no file in {root}", "its code cannot be copied", f"ls {root}")
    states = _Search(module, start, tuple(f"{package}." for package in PACKAGES)).states
    return sorted(path for path in states if path.suffix == ".py" and path.is_relative_to(root))


class _Search:
    """Finds all that a module imports, transitively.

    Attributes:
        digests: SHA-256 of each module by its name, and of each other file by its package's name and its own.
        states: of the files, and of the folders in which they were found, before they were read.
        places: where on the path of Python the packages and modules are that are not beside the first (`_place_of`).
        installed: see `_installed`.
    """

    def __init__(self, module: str, start: Path, without: tuple[str, ...] = ()) -> None:
        self.digests: dict[str, str] = {}
        self.states: dict[Path, FileState] = {}
        self.places: dict[str, str | None] = {}
        self.installed = _installed()
        self._foreign: set[str] = set()
        self._names_in = cache(self._list)
        self._listed = cache(_names_in)
        self._folder_of = cache(self._find_folder)
        self._root = start.parents[module.count(".") + (start.name == "__init__.py")]
        top = module.partition(".")[0]
        self._beside = {top}
        if top not in PACKAGES and not _has_libraries(self._names_in(self._root)):
            self._beside.update(name.removesuffix(".py") for name in self._names_in(self._root))
        waiting = [(module, start)]
        while waiting:
            name, path = waiting.pop()
            if name not in self.digests and name not in UNCOUNTED and not name.startswith(without):
                waiting += self._read(name, path)

    def libraries(self) -> dict[str, str]:
        """The versions of the installed distributions that have the modules which are not ours, by name."""
        names = {name for name in self._foreign if name.partition(".")[0] not in sys.stdlib_module_names}
        direct = {name for name in names if _normal(name) in self.installed}
        others = {name.partition(".")[0] for name in names} - {name.partition(".")[0] for name in direct}
        found = {*map(_normal, direct), *_owners(others, self.installed)}
        return {
            name: os.path.basename(self.installed[name]).removesuffix(METADATA).partition("-")[2]
            for name in sorted(found)
        }

    def _read(self, name: str, path: Path) -> Iterator[tuple[str, Path]]:
        """Take a module. Returns the modules that it imports, and where they are."""
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        module = _parsed(path, package, _spec(name))
        self.digests[name] = module.sha256
        self.states[path] = module.state
        for imported in module.imports:
            yield from self._find(imported)
            if self._folder_of(imported.partition(".")[0]) is None and not name.startswith(CORE):
                self._foreign |= {imported.partition(".")[0], ".".join(imported.split(".")[:2])}
        for text in module.strings:
            if _REFERENCE.fullmatch(text) and text.partition(".")[0] in (*PACKAGES, *self._beside):
                yield from self._find(text.partition(":")[0])
        if name.partition(".")[0] in PACKAGES:
            for beside in self._files_beside(path.parent, module.strings):
                self.states[beside] = FileState.of(beside)
                self.digests[f"{package}:{beside.relative_to(path.parent).as_posix()}"] = sha256_of_file(beside)

    def _list(self, folder: Path) -> frozenset[str]:
        with suppress(OSError):
            self.states[folder] = FileState.of(folder)
        return _names_in(folder)

    def _find(self, name: str) -> Iterator[tuple[str, Path]]:
        """The packages and the module of a name, which may also be one in a module."""
        parts = name.split(".")
        folder = self._folder_of(parts[0])
        for count, part in enumerate(parts, 1):
            if folder is None:
                return
            if f"{part}.py" in self._names_in(folder):
                yield ".".join(parts[:count]), folder / f"{part}.py"
                return
            if part not in self._names_in(folder):
                return
            folder /= part
            if "__init__.py" in self._names_in(folder):
                yield ".".join(parts[:count]), folder / "__init__.py"

    def _find_folder(self, top: str) -> Path | None:
        """The folder with a package or module of the first part of a name; None for a library, or if there is none."""
        if top in PACKAGES:
            return AIFX
        if top in self._beside:
            return self._root
        if top in sys.stdlib_module_names or not top.isidentifier():
            return None
        place = self.places[top] = _place_of(top, self._listed)
        return None if place is None else Path(place)

    def _files_beside(self, folder: Path, strings: frozenset[str]) -> Iterator[Path]:
        """The files in a module's folder that its strings name, and those in a folder that they name."""
        for path in (folder / name for name in strings & self._names_in(folder) if not name.endswith(".py")):
            if path.is_file():
                yield path
            elif "__init__.py" not in self._names_in(path):
                yield from (path / name for name in self._names_in(path) if (path / name).is_file())


@dataclass(frozen=True)
class _Module:
    """A module as its source has it.

    Attributes:
        sha256: of its source without comments, docstrings, and blank lines between statements.
        imports: names that it imports, in functions too, but not those for type checkers alone.
    """

    state: FileState
    sha256: str
    imports: frozenset[str]
    strings: frozenset[str]


_read_modules: dict[Path, tuple[object, _Module]] = {}
"""The module that was read, and the spec that it had then, by file."""


def _parsed(path: Path, package: str, spec: object) -> _Module:
    if (known := _read_modules.get(path)) is None or known[0] is not spec:
        known = _read_modules[path] = spec, _parse(path, package)
    return known[1]


def _parse(path: Path, package: str) -> _Module:
    state = FileState.of(path)
    with tokenize.open(path) as file:
        source = file.read()
    imports: set[str] = set()
    strings: set[str] = set()
    docstrings: list[ast.Constant] = []
    waiting: list[ast.AST] = [ast.parse(source)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Constant):
            strings |= {node.value} if isinstance(node.value, str) else set()
            continue
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            waiting += node.orelse
            continue
        waiting += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            imports.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            around = package.split(".")
            base = around[: len(around) - node.level + 1] if node.level else []
            whole = ".".join([*base, *([node.module] if node.module else [])])
            imports.update(f"{whole}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            docstrings.append(node.value)
    code = _without_comments(source, docstrings)
    return _Module(state, sha256_of(code), frozenset(imports), frozenset(strings))


def _without_comments(source: str, docstrings: Iterable[ast.Constant]) -> str:
    """The source without comments, docstrings, and blank lines between statements."""
    lines = source.split("\n")
    left_out = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE):
            row, column = token.start
            line = lines[row - 1][:column] if token.type == tokenize.COMMENT else lines[row - 1]
            lines[row - 1] = line.rstrip()
            left_out |= set() if lines[row - 1] else {row}
    for text in docstrings:
        first, last = text.lineno, text.end_lineno or text.lineno
        if not (lines[first - 1].encode()[: text.col_offset] + lines[last - 1].encode()[text.end_col_offset :]).strip():
            left_out.update(range(first, last + 1))
    return "\n".join(line for row, line in enumerate(lines, 1) if row not in left_out).rstrip("\n")


def _names_in(folder: Path) -> frozenset[str]:
    try:
        return frozenset(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return frozenset()


def _has_libraries(names: frozenset[str]) -> bool:
    """Whether a folder with these names is one in which distributions are installed."""
    return any(name.endswith(METADATA) for name in names)


def _place_of(top: str, names_in: Callable[[Path], frozenset[str]]) -> str | None:
    """The folder on the path of Python with a package or module; None if it is of a library, or if there is none.

    An editable installation may have a finder in place of a folder on the path.
    """
    parts = []
    for folder in (Path(place).absolute() for place in sys.path):
        names = names_in(folder)
        if f"{top}.py" in names or (top in names and "__init__.py" in names_in(folder / top)):
            return None if _has_libraries(names) else str(folder)
        if top in names and not _has_libraries(names) and (folder / top).is_dir():
            parts.append(folder)
    with suppress(ImportError, ValueError):
        spec = find_spec(top)
        if spec is not None and spec.origin is not None and spec.origin.endswith(".py"):
            folder = Path(spec.origin).parents[spec.submodule_search_locations is not None]
            return None if _has_libraries(names_in(folder)) else str(folder)
    return str(parts[0]) if parts else None  # without __init__.py


def _normal(distribution: str) -> str:
    """The name of a distribution in the form in which PEP 503 compares names."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def _installed() -> dict[str, str]:
    """The folder with the metadata of each installed distribution, by normal name."""
    found: dict[str, str] = {}
    for place in sys.path:
        for name in _names_in(Path(place)):
            if name.endswith(METADATA):
                found.setdefault(_normal(name.partition("-")[0]), os.path.join(place, name))
    return found


def _owners(packages: set[str], installed: Mapping[str, str]) -> Iterator[str]:
    """The distributions that have packages of another name, as pillow has `PIL`."""
    begins = [f"\n{package}{end}".encode() for package in packages for end in ("/", ".")]
    for name, folder in installed.items() if packages else ():
        with suppress(OSError):
            record = b"\n" + Path(folder, "RECORD").read_bytes()
            if any(begin in record for begin in begins):
                yield name

"""Which programs are compiled for absent hardware, and which of them were compiled before from the same sources.

    python tests/jax_kernels/compiled_programs.py record JOURNAL   add what a run of the tests compiled to TABLE
    python tests/jax_kernels/compiled_programs.py due PYTHON       list what TABLE lacks for a Python, such as 3.11

TABLE is committed. For each set of locked versions, it lists the programs of each implementation that compiled, and the
digest of the sources they were compiled from. With CHANGED=1, only what TABLE lacks is compiled. With LONG=1, every
case is compiled in every type and in each configuration that `aifx kernels tune` may choose.
"""

from __future__ import annotations

import ast
import hashlib
import io
import json
import os
import platform
import re
import sys
import tokenize
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from effort import IS_LONG
from packaging.requirements import Requirement
from tiers import read_journal

from jax_kernels.ops import OPS, compiled_cases, dtypes

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TABLE = HERE / "compiled_programs.json"

CHANGED = os.environ.get("CHANGED") == "1"

TARGETS = {
    "pallas_triton": ("h100", "a100"),
    "pallas_mosaic_gpu": ("h100",),
    "pallas_tpu": ("v5e", "v5p", "v6e"),
}
WITH_EVERY_CASE = ("h100", "v5e")
"""Targets for which the oldest Python compiles every case; for the others, it compiles the last one."""
OLDEST = "3.11"
COMPILERS = ("jax", "jaxlib", "jax-cuda12-pjrt", "jax-cuda12-plugin", "libtpu", "nvidia-cuda-nvcc-cu12")
"""Packages whose versions decide whether a program compiles."""


class Program(NamedTuple):
    """One op's implementation, compiled for a target, a case and a type."""

    op: str
    implementation: str
    target: str
    case: str
    dtype: str

    @property
    def name(self) -> str:
        return f"{self.op}, {self.implementation} for {self.target}, {self.case}, {self.dtype}"

    @property
    def group(self) -> str:
        """The programs that are compiled from the same sources."""
        return f"{self.op}, {self.implementation}"


Table = dict[str, dict[str, dict[str, Any]]]
"""By versions and group: `sources`, a digest, and `programs`, the names of those that compiled."""


def all_programs(python: str, *, every: bool = IS_LONG) -> list[Program]:
    fewer = python.startswith(OLDEST) and not every
    return [
        Program(op.name, implementation, target, case.name, dtype)
        for op in OPS.values()
        for implementation in op.implementations
        for target in TARGETS.get(implementation, ())
        for case in compiled_cases(op)[-1 if fewer and target not in WITH_EVERY_CASE else 0 :]
        for dtype in dtypes(op)[: None if every or case is compiled_cases(op)[-1] else 1]
    ]


def selected_programs() -> list[Program]:
    """All programs, or with CHANGED=1 those that TABLE lacks."""
    python = platform.python_version()
    programs = all_programs(python)
    return due_programs(programs, versions(python), read_table()) if CHANGED else programs


def due_programs(programs: list[Program], of_versions: str, table: Table) -> list[Program]:
    """Those that have not compiled under these versions from the sources as they are now."""
    groups = table.get(of_versions, {})

    def compiled(program: Program) -> bool:
        entry = groups.get(program.group, {"sources": None, "programs": []})
        current = entry["sources"] == sources_digest(program.op, program.implementation)
        return current and program.name in entry["programs"]

    return [program for program in programs if not compiled(program)]


def versions(python: str) -> str:
    """The locked versions of the compilers on Linux under a Python, such as "3.11.7"."""
    full = python if python.count(".") == 2 else f"{python}.0"
    environment = {"python_full_version": full, "sys_platform": "linux", "platform_python_implementation": "CPython"}
    found = {}
    for lock in ("requirements.lock", "requirements-compilers.lock"):
        for line in re.findall(r"^([a-zA-Z0-9].*?) *\\?$", (ROOT / lock).read_text(), flags=re.MULTILINE):
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate(environment):
                found[requirement.name] = str(requirement.specifier).removeprefix("==")
    return ", ".join(f"{name} {found[name]}" for name in COMPILERS)


@cache
def sources_digest(op: str, implementation: str) -> str:
    """A digest of the code in `source_files`."""
    digest = hashlib.sha256()
    for path in source_files(op, implementation):
        digest.update(f"{path.relative_to(ROOT)}\n{code_of(path.read_text())}\n".encode())
    return digest.hexdigest()[:16]


def source_files(op: str, implementation: str) -> list[Path]:
    """The files that an implementation's programs are made from.

    They are its modules, the op's cases and declaration, what these import of the package, and the compiling script.
    """
    package = OPS[op].package
    modules: dict[str, Path] = {}
    waiting = [f"{package}.{implementation}", f"{package}.cases", f"{package}.call"]
    while waiting:
        name = waiting.pop()
        if name not in modules and (path := _module_path(name)) is not None:
            modules[name] = path
            waiting += _imports(path)
    # The op's declaration names its workload. The other implementations that it imports do not matter.
    paths = {*modules.values(), ROOT / package.replace(".", "/") / "__init__.py", HERE / "compile_absent.py"}
    if implementation == "pallas_mosaic_gpu":
        paths.add(HERE / "ptx.py")
    return sorted(paths)


def code_of(source: str) -> str:
    """A module's source without comments, docstrings and blank lines; the same under every Python."""
    lines = source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(ast.parse(source)):
        # A string that stands alone is a docstring, or documents the name above it.
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            assert node.end_lineno is not None
            lines[node.lineno - 1 : node.end_lineno] = [""] * (node.end_lineno - node.lineno + 1)
    return "\n".join(line.rstrip() for line in lines if line.strip())


def _module_path(name: str) -> Path | None:
    base = ROOT / name.replace(".", "/")
    return next((path for path in (base / "__init__.py", base.with_suffix(".py")) if path.is_file()), None)


def _imports(path: Path) -> list[str]:
    """Names of the package's modules that a file imports. Of a folder of an op, only the modules that are named."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.startswith("jax_kernels.")]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "jax_kernels":
            module = node.module or ""
            submodules = [f"{module}.{alias.name}" for alias in node.names]
            named = [name for name in submodules if _module_path(name) is not None]
            found += named if len(named) == len(submodules) else [*named, module]
    return found


def read_table() -> Table:
    table: Table = json.loads(TABLE.read_text()) if TABLE.exists() else {}
    return table


def record(entries: Sequence[Mapping[str, Any]], table: Table) -> Table:
    """A table with the programs that compiled, by a journal. Versions that no lock names and lost ops are left out."""
    pythons = {"3.11", "3.12", "3.13"} | {entry["python"] for entry in entries}
    known = {program.name: program for program in all_programs("3.13", every=False)}
    current = {program.group for program in known.values()}
    table = {
        key: {group: entry for group, entry in groups.items() if group in current}
        for key, groups in table.items()
        if key in {versions(python) for python in pythons}
    }
    for entry in entries:
        program = known.get(entry["test"].partition("[")[2].removesuffix("]"))
        if program is None or entry["outcome"] == "failed":
            continue
        groups = table.setdefault(versions(entry["python"]), {})
        sources = entry["properties"]["sources"]
        if groups.get(program.group, {}).get("sources") != sources:
            groups[program.group] = {"sources": sources, "programs": []}
        compiled = groups[program.group]
        compiled["programs"] = sorted({*compiled["programs"], program.name} & set(known))
    return table


def main(arguments: list[str]) -> int:
    match arguments:
        case ["record", journal]:
            table = record(read_journal(Path(journal)), read_table())
            TABLE.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n")
            return 0
        case ["due", python]:
            due = due_programs(all_programs(python), versions(python), read_table())
            sys.stdout.write("".join(f"{program.name}\n" for program in due))
            return 0
    sys.stderr.write(__doc__ or "")
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

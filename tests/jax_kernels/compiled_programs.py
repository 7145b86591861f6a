"""Which programs are compiled for absent hardware, and which of them were compiled before from the same sources.

    python tests/jax_kernels/compiled_programs.py record JUNIT_XML...   add what a run of the tests compiled to TABLE
    python tests/jax_kernels/compiled_programs.py due PYTHON            list what TABLE lacks for a Python, such as 3.11

TABLE is committed. For each set of locked versions, it lists the programs of each implementation that compiled, and the
digest of the sources they were compiled from. FEWER=1 compiles every case for one GPU and one TPU, and only the last
case for the others. EVERY=1 compiles every case in every type. SAMPLE=1 compiles what TABLE lacks and one eighth of the
rest, by the commit's hash.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

from packaging.requirements import Requirement
from verified import code_of

from jax_kernels.ops import OPS, compiled_cases, dtypes

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TABLE = HERE / "compiled_programs.json"

EVERY = os.environ.get("EVERY") == "1"
FEWER = os.environ.get("FEWER") == "1" and not EVERY
SAMPLE = os.environ.get("SAMPLE") == "1" and not EVERY
SAMPLED = 8  # one program in so many is compiled, whatever changed

TARGETS = {
    "pallas_triton": ("h100", "a100"),
    "pallas_mosaic_gpu": ("h100",),
    "pallas_tpu": ("v5e", "v5p", "v6e"),
}
WITH_EVERY_CASE = ("h100", "v5e")
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


def all_programs(*, every: bool = EVERY, fewer: bool = FEWER) -> list[Program]:
    return [
        Program(op.name, implementation, target, case.name, dtype)
        for op in OPS.values()
        for implementation in op.implementations
        for target in TARGETS.get(implementation, ())
        for case in compiled_cases(op)[-1 if fewer and target not in WITH_EVERY_CASE else 0 :]
        for dtype in dtypes(op)[: None if every or case is compiled_cases(op)[-1] else 1]
    ]


def selected_programs() -> list[Program]:
    """All programs, or with SAMPLE=1 those that TABLE lacks and one eighth of the others, by the commit's hash."""
    programs = all_programs()
    if not SAMPLE:
        return programs
    commit = _commit()
    due = set(due_programs(programs, versions(platform.python_version()), read_table()))
    return [program for program in programs if program in due or in_sample(program, commit)]


def in_sample(program: Program, commit: str) -> bool:
    return hashlib.sha256(f"{commit} {program.name}".encode()).digest()[0] % SAMPLED == 0


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


def record(reports: list[Path], table: Table, of_versions: str) -> Table:
    """A table with what the JUnit reports say compiled, without versions that no lock names and ops that are gone."""
    locked = {versions(python) for python in ("3.11", "3.12", "3.13")} | {of_versions}
    known = {program.name: program for program in all_programs(every=False)}
    current = {program.group for program in known.values()}
    table = {
        key: {group: entry for group, entry in groups.items() if group in current}
        for key, groups in table.items()
        if key in locked
    }
    for report in reports:
        for case in ElementTree.parse(report).iter("testcase"):
            program = known.get((case.get("name") or "").partition("[")[2].removesuffix("]"))
            if program is None or case.find("failure") is not None or case.find("error") is not None:
                continue
            sources = next(x.get("value") for x in case.iter("property") if x.get("name") == "sources")
            groups = table.setdefault(of_versions, {})
            entry = groups.get(program.group)
            if entry is None or entry["sources"] != sources:
                entry = groups[program.group] = {"sources": sources, "programs": []}
            entry["programs"] = sorted({*entry["programs"], program.name} & set(known))
    return table


def _commit() -> str:
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def main(arguments: list[str]) -> int:
    match arguments:
        case ["record", *reports]:
            table = record([Path(report) for report in reports], read_table(), versions(platform.python_version()))
            TABLE.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n")
            return 0
        case ["due", python]:
            due = due_programs(all_programs(), versions(python), read_table())
            sys.stdout.write("".join(f"{program.name}\n" for program in due))
            return 0
    sys.stderr.write(__doc__ or "")
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Write requirements.lock from pyproject.toml: exact versions with hashes for every supported Python, and no address.

The lock has three sections: the packages that aifx needs to run and to be built, those that its tests and linters also
need, and those that its documentation also needs. scripts/setup.sh installs as many sections as a target needs.
Versions in the lock change only if a requirement did; `--upgrade` takes the newest of everything.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"
COMPILERS_LOCK = ROOT / "requirements-compilers.lock"
TEST_SECTION = "# ---- test tools: only the tests and linters need these ----\n"
DOCS_SECTION = "# ---- docs tools: only `make docs` needs these ----\n"
HEADER = """\
# Written by `make lock` from pyproject.toml. CPython 3.11 to 3.13 on Linux and macOS; JAX 0.10.2 is the last for 3.11.
# `pip install --no-deps --require-hashes -r requirements.lock` takes all; `make setup` stops before the test tools.
"""
COMPILERS_HEADER = """\
# Written by `make lock`. What compiles kernels for absent GPUs and TPUs, beside the JAX of requirements.lock, on
# Linux: XLA's GPU plugin, NVIDIA's assembler, libtpu. `pip install --no-deps --require-hashes -r` takes them.
"""
# Packages without a wheel: pip builds them, with the setuptools of the lock if there is no network. All others must
# have wheels, since scripts/setup.sh takes nothing else.
SOURCES = ("jsonpath-rw",)  # mlcroissant needs it
NO_BINARY = "".join(f"--no-binary {name}\n" for name in SOURCES)
# Beside the plugin and its runtime, which are of JAX's version.
COMPILERS = ("nvidia-cuda-nvcc-cu12>=12.8", "libtpu>=0.0.40")
RUN_GROUPS = ["--group", "build"]
TEST_GROUPS = [
    "--group",
    "dev",
    "--extra",
    "html",
    "--extra",
    "databases",
    "--extra",
    "cleanlab",
    "--extra",
    "ray",
    "--extra",
    "tensorboard",
    "--extra",
    "wandb",
    "--extra",
    "mlflow",
    "--extra",
    "serve",
    "--extra",
    "serve-otel",
    "--extra",
    "signing",
    "--extra",
    "notify",
    "--extra",
    "sweep",
    "--extra",
    "s3",
]
DOCS_GROUPS = [*TEST_GROUPS, "--group", "docs"]

# True wherever the lock applies, so not worth repeating on each of its lines.
COMMON_MARKERS = (
    "python_full_version < '3.14'",
    "platform_python_implementation == 'CPython'",
    "(sys_platform == 'darwin' or sys_platform == 'linux')",
)


def main() -> int:
    parser = argparse.ArgumentParser(description="Write the requirements' locks from pyproject.toml.")
    parser.add_argument("--upgrade", action="store_true", help="take the newest version of everything")
    upgrade = parser.parse_args().upgrade
    if not shutil.which("uv"):
        print("error: make lock needs uv, which resolves for all Python versions at once", file=sys.stderr)
        print(
            "hint: pip install uv==0.12.0    (newer ones split the markers of platforms without wheels)",
            file=sys.stderr,
        )
        return 2

    with tempfile.TemporaryDirectory() as scratch:
        everything = Path(scratch, "everything.txt")
        if LOCK.exists() and not upgrade:
            shutil.copy(LOCK, everything)  # uv keeps the versions that it finds in the file it is to write
        entries = compile_lock([*DOCS_GROUPS, "--generate-hashes"], everything)
        same = ["--constraints", str(everything)]
        to_run = {name_of(entry) for entry in compile_lock([*RUN_GROUPS, *same], Path(scratch, "running.txt"))}
        to_test = {name_of(entry) for entry in compile_lock([*TEST_GROUPS, *same], Path(scratch, "testing.txt"))}

    run = [entry for entry in entries if name_of(entry) in to_run]
    test = [entry for entry in entries if name_of(entry) in to_test - to_run]
    docs = [entry for entry in entries if name_of(entry) not in to_test | to_run]
    LOCK.write_text(HEADER + "".join([*run, TEST_SECTION, NO_BINARY, *test, DOCS_SECTION, *docs]))
    print(
        f"{LOCK.name}: {len(run)} packages to run aifx, {len(test)} more to test it, {len(docs)} more for its docs",
        file=sys.stderr,
    )
    COMPILERS_LOCK.write_text(COMPILERS_HEADER + "".join(compilers_for(run, upgrade)))
    return 0


def compilers_for(entries: list[str], upgrade: bool) -> list[str]:
    """The entries of the compilers that belong to the versions of JAX among `entries`."""
    pins = [re.match(r"jax==(\S+)(?: ; (.*?))? *\\\n", entry) for entry in entries if name_of(entry) == "jax"]
    wanted = [f"{name} ; sys_platform == 'linux'" for name in COMPILERS]
    for pin in filter(None, pins):
        marker = f"sys_platform == 'linux'{' and ' + pin[2] if pin[2] else ''}"
        wanted += [f"{name}=={pin[1]} ; {marker}" for name in ("jax-cuda12-plugin", "jax-cuda12-pjrt")]
    with tempfile.TemporaryDirectory() as scratch:
        source, output = Path(scratch, "compilers.in"), Path(scratch, "compilers.txt")
        source.write_text("\n".join(wanted))
        if COMPILERS_LOCK.exists() and not upgrade:
            shutil.copy(COMPILERS_LOCK, output)
        return compile_lock(["--no-deps", "--generate-hashes"], output, source)


def compile_lock(arguments: list[str], output: Path, source: Path = ROOT / "pyproject.toml") -> list[str]:
    """The entries of one resolution, each with its hashes."""
    command = ["uv", "pip", "compile", str(source), "--universal", "--python-version", "3.11", "--quiet"]
    command += ["--only-binary", ":all:", *NO_BINARY.split()]
    command += ["--no-header", "--no-annotate", "--no-emit-index-url", "--no-emit-find-links"]
    subprocess.run(
        [*command, *arguments, "--output-file", str(output)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL
    )
    return [simplify(entry) for entry in re.findall(r"^\S.*\n(?:[ \t]+.*\n)*", output.read_text(), re.MULTILINE)]


def name_of(entry: str) -> str:
    return entry.split("==")[0]


def simplify(entry: str) -> str:
    """The entry without the parts of its marker that hold wherever the lock applies."""
    first, newline, hashes = entry.partition("\n")
    requirement, separator, rest = first.partition(" ; ")
    if not separator:
        return entry
    continued = rest.endswith(" \\")
    marker = simplify_marker(rest.removesuffix(" \\"))
    return requirement + (f" ; {marker}" if marker else "") + (" \\" if continued else "") + newline + hashes


def simplify_marker(marker: str) -> str:
    """The marker without what always holds. uv writes a clause for each platform: the same for all of them is one."""
    platforms = [f"sys_platform == '{platform}'" for platform in ("darwin", "linux")]
    alternatives = [part.strip("()").split(" and ") for part in marker.split(" or ")]
    kept = [[c for c in clauses if c not in (*COMMON_MARKERS, *platforms)] for clauses in alternatives]
    has_each = all(any(platform in clauses for clauses in alternatives) for platform in platforms)
    if len(alternatives) == len(platforms) and has_each and kept[0] == kept[1]:
        return " and ".join(kept[0])
    clauses = [c for c in marker.split(" and ") if c not in COMMON_MARKERS]
    # A clause that was cut inside parentheses is not ours to judge: keep the whole marker then.
    return " and ".join(clauses) if all(c.count("(") == c.count(")") for c in clauses) else marker


if __name__ == "__main__":
    sys.exit(main())

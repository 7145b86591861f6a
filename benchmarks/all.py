"""Every comparison with a peer that this machine can run, and its figures in the tables of docs/performance.md.

    python benchmarks/all.py [--quick] [--only training,loading] [--rounds 3] [--torch-python PATH] [--page FILE]

`make bench ARGS="..."` runs it. Each benchmark owns one table of the page; what a peer that is not installed, or a
benchmark that fails, leaves unmeasured keeps its old rows, and the table says so. With --quick (fewer rounds, smaller
sizes) the tables are printed, and written only into a page that --page names. The machine should do nothing else.

Peers that are no dependencies: PyTorch in a Python of its own (--torch-python, or $TORCH_PYTHON), those of generation
in another ($PEERS_PYTHON: benchmarks/generation.py), llama.cpp's server ($LLAMA_SERVER: benchmarks/serving.py);
safetensors and tokamax in this one, or in a folder on $PYTHONPATH (pip install --target PEERS safetensors).

Exit 0: all ran; 1: a benchmark failed, the others are in the page; 2: the page or what was asked for is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tables

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "performance.md"
CPUINFO = "/proc/cpuinfo"


@dataclass(frozen=True)
class Part:
    """A benchmark and the table that is its own."""

    table: str
    script: str

    def command(self, given: argparse.Namespace) -> list[str]:
        command = [sys.executable, str(HERE / self.script), "--json"]
        command += ["--quick"] * given.quick + (["--rounds", str(given.rounds)] if given.rounds else [])
        if self.table == "training":
            command += ["--torch-python", given.torch_python] if given.torch_python else []
            command += ["--mkl-avx512"] * (not given.quick and mkl_needs_telling())
        return command


PARTS = (
    Part("training", "train_vs_pytorch.py"),
    Part("kernels", "kernels.py"),
    Part("ceilings", "ceilings.py"),
    Part("tokenizing", "tokenizing.py"),
    Part("loading", "loading.py"),
    Part("generation", "generation.py"),
    Part("serving", "serving.py"),
    Part("checkpoints", "checkpoints.py"),
    Part("cli_start", "cli_start.py"),
)


def main() -> None:
    given = read_arguments()
    chosen = [part for part in PARTS if not given.only or part.table in given.only]
    page = given.page or PAGE
    check(page, chosen)
    failed = []
    for part in chosen:
        began = time.monotonic()
        sys.stderr.write(f"== {part.table}\n")
        measured, why = run(part, given)
        failed += [] if measured else [f"{part.table}: {why}"]
        try:
            table = put(page, part, measured, why, keep=given.page is not None or not given.quick)
        except (OSError, tables.DamagedMarkers) as error:  # the page was edited meanwhile
            failed.append(f"{part.table}: {page}: {error}")
            table = json.dumps(measured)
        sys.stdout.write(f"{part.table} ({time.monotonic() - began:.0f} s)\n\n{table}\n\n")
        sys.stdout.flush()
    told = f"written to {page}" if given.page or not given.quick else "quick: nothing is written (--page FILE does)"
    sys.stderr.write("\n".join([*failed, told]) + "\n")
    raise SystemExit(1 if failed else 0)


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = ", ".join(part.table for part in PARTS)
    parser.add_argument("--only", type=lambda text: text.split(","), metavar="TABLES", help=f"of {every}")
    parser.add_argument("--quick", action="store_true", help="under five minutes on two cores")
    parser.add_argument("--rounds", type=int, help="of each benchmark, in place of its own number")
    parser.add_argument("--torch-python", default=os.environ.get("TORCH_PYTHON"), help="a Python that has PyTorch")
    parser.add_argument("--page", type=Path, help=f"the page with the tables (docs/{PAGE.name})")
    given = parser.parse_args()
    if unknown := set(given.only or ()) - {part.table for part in PARTS}:
        parser.error(f"no table {', '.join(sorted(unknown))}: there is {every}")
    if given.rounds is not None and given.rounds < 1:
        parser.error("--rounds: 1 or more")
    return given


def check(page: Path, parts: list[Part]) -> None:
    """Ends the program where a table has no place in the page, before anything is measured."""
    try:
        for part in parts:
            tables.not_measured(read(page), part.table, today(), "")
    except (OSError, tables.DamagedMarkers) as error:
        sys.stderr.write(f"{page}: {error}\n")
        raise SystemExit(2) from None


def run(part: Part, given: argparse.Namespace) -> tuple[dict[str, Any] | None, str]:
    """The measurements of a benchmark, or the reason that there are none."""
    last = ""
    with tempfile.TemporaryFile("w+") as answer:
        child = subprocess.Popen(part.command(given), stdout=answer, stderr=subprocess.PIPE, text=True)
        assert child.stderr is not None
        for line in child.stderr:
            sys.stderr.write(line)
            last = line.strip() or last
        code = child.wait()
        answer.seek(0)
        lines = answer.read().splitlines()
    if code or not lines:
        return None, f"{part.script} ended with {code}: {last[:300]}"
    return json.loads(lines[-1]), ""


def put(page: Path, part: Part, measured: dict[str, Any] | None, why: str, *, keep: bool) -> str:
    """The part's table with what was measured, written into the page where it is to `keep` it."""
    text = read(page)  # afresh: someone may write in it meanwhile
    now = tables.rewrite(text, measured) if measured else tables.not_measured(text, part.table, today(), why)
    if keep:
        write(page, now)
    start, end = tables.span(now, part.table)
    return now[start:end].strip()


def mkl_needs_telling() -> bool:
    """Whether MKL takes its slower path here, and can be told otherwise: another maker's AVX-512, and a compiler."""
    try:
        processor = Path(CPUINFO).read_text()
    except OSError:
        return False
    return "avx512f" in processor and "GenuineIntel" not in processor and shutil.which("cc") is not None


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def write(page: Path, text: str) -> None:
    beside = page.with_name(f".{page.name}.new")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, page)


def today() -> str:
    return time.strftime("%Y-%m-%d")


if __name__ == "__main__":
    main()

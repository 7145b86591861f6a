"""CPU seconds of `aifx score` of a million rows of a table: Parquet into a folder, and PostgreSQL into PostgreSQL.

    python benchmarks/scoring.py [--rows N]

It trains a small model of ten numbers. Needs the server programs of PostgreSQL.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
from pyarrow import csv, parquet

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from postgresql_server import PASSWORD, Server, postgresql_server

AIFX = str(Path(sys.executable).parent / "aifx")
COLUMNS = 10
TOML = """\
[task]
kind = "tabular"
[data]
path = "train.csv"
target = "label"
ignore = ["id"]
[model]
width = 64
num_layers = 2
[train]
num_steps = 5
global_batch_size = 64
validate_every = 5
[eval]
batch_size = 4096
[checkpoint]
every = 5
"""


def make_project(folder: Path, num_rows: int) -> pa.Table:
    """A project with a run, and the rows."""
    values = np.random.default_rng(0).normal(size=(COLUMNS, num_rows)).round(4)
    rows = pa.table({"id": np.arange(num_rows), **{f"c{number}": one for number, one in enumerate(values)}})
    parquet.write_table(rows, folder / "rows.parquet")
    labels = pa.array(np.where(values[0, :2000] + values[1, :2000] > 0, "up", "down"))
    csv.write_csv(rows.slice(0, 2000).append_column("label", labels), folder / "train.csv")
    (folder / "aifx.toml").write_text(TOML)
    subprocess.run([AIFX, "train"], cwd=folder, check=True, capture_output=True)
    return rows


def measure(folder: Path, *args: str) -> float:
    """CPU seconds of a command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([AIFX, "score", "main", *args, "--key", "id"], cwd=folder, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def server_seconds(server: Server) -> float:
    assert server.process is not None
    first = psutil.Process(server.process.pid)
    return sum(sum(one.cpu_times()[:4]) for one in [first, *first.children()])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=1_000_000)
    num_rows = parser.parse_args().rows
    os.environ["PGPASSWORD"] = PASSWORD
    with tempfile.TemporaryDirectory() as name, postgresql_server(is_durable=True) as server:
        folder = Path(name)
        rows = make_project(folder, num_rows)
        print(f"Parquet into a folder: {measure(folder, 'rows.parquet', 'scores'):.1f} CPU-seconds")
        with server.connect() as connection, connection.cursor() as cursor:
            cursor.adbc_ingest("rows", rows, mode="create")
        for what in ("a table into a table", "the same again", "the same again, --since-last"):
            last, before = ["--since-last"] if "last" in what else [], server_seconds(server)
            own = measure(folder, f"{server.url}/rows", f"{server.url}/scores", *last)
            print(f"{what}: {own:.1f} CPU-seconds, and {server_seconds(server) - before:.1f} of the server")
        assert server.rows("SELECT count(*), count(DISTINCT key) FROM scores") == [(num_rows, num_rows)]


if __name__ == "__main__":
    main()

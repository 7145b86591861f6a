"""Rows per second of processor time from a PostgreSQL and into it, by `aifx data add` and `aifx data push`.

    python benchmarks/databases.py [--rows N] [--rounds N]

It starts a PostgreSQL of its own. The processor time is that of aifx's processes, less that of the same command for a
single row, about a second.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

TABLE = """CREATE TABLE sales AS SELECT i::bigint AS id, md5(i::text) AS name, i * 0.5::float8 AS price,
    timestamptz '2020-01-01' + i * interval '1 second' AS at, (i % 1000)::int AS quantity
    FROM generate_series(1, {rows}) AS i"""


def processor_seconds(folder: str, environ: dict[str, str], *args: str) -> float:
    """Processor time of `aifx data ARGS` and its processes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "aifx.commands.main", "data", *args], cwd=folder, env=environ, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    from postgresql_server import postgresql_server

    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with postgresql_server() as server, tempfile.TemporaryDirectory() as folder:
        server.run(TABLE.format(rows=options.rows), "ALTER TABLE sales ADD PRIMARY KEY (id)", "ANALYZE sales")
        environ = {**os.environ, **server.environ}
        adds, pushes = [], []
        for number in range(options.rounds):
            seconds = {}
            for rows in (1, options.rows):
                name, root = f"sales_{number}_{rows}", ["--root", f"round-{number}"]
                query = ["--query", f"SELECT * FROM sales LIMIT {rows}", "--key", "id"]
                given = [*query, "--license", "CC0-1.0", "--workers", "1", *root]
                seconds["add", rows] = processor_seconds(folder, environ, "add", name, server.url, *given)
                seconds["push", rows] = processor_seconds(folder, environ, "push", name, f"{server.url}/{name}", *root)
            adds.append(seconds["add", options.rows] - seconds["add", 1])
            pushes.append(seconds["push", options.rows] - seconds["push", 1])
        for name, seconds in (("add", adds), ("push", pushes)):
            rates = [options.rows / one for one in seconds]
            print(f"data {name}: {statistics.median(rates):,.0f} rows/s ({min(rates):,.0f} to {max(rates):,.0f})")


if __name__ == "__main__":
    main()

"""`aifx score` as a station of a line: the attempt is the request."""

from __future__ import annotations

import json
import os
import sqlite3
from pathlib import Path

import inprocess
import pytest
from score_rows import write_rows

LINE = """\
[line]
[[station]]
name = "score"
run = "score main new.jsonl sqlite:///shop.db/scores --key order"
"""


@pytest.mark.slow
def test_a_station_scores_new_rows_once(project: Path) -> None:
    (project / "line.toml").write_text(LINE)
    for rows in (40, 50):
        write_rows(project, range(rows))
        done = inprocess.run(["line", "run", "--json"], project, os.environ)
        assert done.returncode == 0, done.stdout + done.stderr
        assert json.loads(done.stdout)["stations"][0]["state"] == "done"
    connection = sqlite3.connect(project / "shop.db")
    counts = connection.execute("SELECT request, count(*) FROM scores GROUP BY request ORDER BY 2").fetchall()
    requests = dict(connection.execute("SELECT request, entry FROM aifx_requests"))
    connection.close()
    assert [count for _, count in counts] == [10, 40]
    assert {request for request, _ in counts} == requests.keys()
    assert [json.loads(requests[request])["outcome"]["scored"] for request, _ in counts] == [10, 40]

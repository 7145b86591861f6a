"""A tick of a line with nothing to do, and the memory of `aifx notify` beside many events that wait.

    python benchmarks/lines.py [--stations 20] [--events 1000000] [--rounds 5]

Prints a row per command: wall seconds, CPU seconds, peak memory, and the load of the machine before it. The events are
of one run that diverged as often. A receiver on this machine accepts each.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from side_by_side import AIFX

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


class Receiver(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


def measure(name: str, words: list[str], project: Path, environ: dict[str, str]) -> None:
    load, began = os.getloadavg()[0], time.monotonic()
    process = subprocess.Popen(
        [*AIFX, *words], cwd=project, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, used = os.wait4(process.pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0, name
    wall_s, cpu_s, peak_mb = time.monotonic() - began, used.ru_utime + used.ru_stime, used.ru_maxrss / 1e3
    print(f"{name:32} {wall_s:8.2f} s {cpu_s:8.2f} s CPU {peak_mb:6.0f} MB, load {load:.1f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stations", type=int, default=20)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lines-") as folder, ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as at:
        threading.Thread(target=at.serve_forever, daemon=True).start()
        project = Path(folder)
        (project / "aifx.toml").write_text("")
        names = [f"s{number}" for number in range(arguments.stations)]
        stations = "".join(f"[[station]]\nname = '{name}'\nrun = 'true'\nshell = true\n" for name in names)
        target = "[[notify]]\nname = 'ops'\nurl_from = 'OPS_URL'\nallow = ['127.0.0.0/8']\n"
        (project / "line.toml").write_text(stations + target)
        url = f"http://127.0.0.1:{at.server_port}/"
        environ = {**os.environ, "OPS_URL": url, "OPS_URL_SECRET": SECRET}
        tick = ["line", "run", "--allow-shell"]
        measure(f"a first tick of {arguments.stations} stations", tick, project, environ)
        for _ in range(arguments.rounds):
            measure("a tick with nothing to do", tick, project, environ)
        run = project / "runs" / "main"
        run.mkdir(parents=True)
        record = {"time": time.time(), "event": "stop", "status": "diverged"}
        with open(run / "events.jsonl", "w") as file:
            file.writelines(json.dumps({**record, "step": step}) + "\n" for step in range(arguments.events))
        measure(f"notify ls, {arguments.events:,} events", ["notify", "ls"], project, environ)
        measure(f"notify run, {arguments.events:,} events", ["notify", "run"], project, environ)
        at.shutdown()


if __name__ == "__main__":
    main()

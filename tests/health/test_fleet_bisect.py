"""`aifx doctor fleet --hosts FILE --bisect`: the nodes' reports and the search among them, in one report.

Each node is an address of this machine; its ranks are processes that an `ssh` starts here and that talk over loopback.
"""

import json
import os
import signal
import stat
import subprocess
import sys
import textwrap
import time
from dataclasses import replace

import pytest
import rank_clock
from fleets import AIFX, environ, node
from published_schemas import check_document

from aifx.commands.main import run
from aifx.health import bisect, collective_launch
from aifx.health.bisect import Verdict
from aifx.health.fleet.report import Node
from aifx.verbs.health_fleet import search_among

REPORT = {"schema_version": 1, "host": "n", "status": "healthy", "findings": [], "skipped": [], "duration_s": 0.1}
NODE_9 = "127.0.0.9"

SSH = f"""\
#!/bin/sh
while [ "$1" != -- ]; do shift; done
[ "$2" = {NODE_9} ] && echo "ssh: connect to host $2 port 22: No route to host" >&2 && exit 255
exec sh -c "$3"
"""

REMOTE = f"""\
#!{sys.executable}
import os, sys
if sys.argv[2] == "collective-worker":
    from aifx.health.collective_worker import main
{textwrap.indent(rank_clock.INSTALL.strip(), "    ")}
    open(os.environ["RANKS"], "a").write(f"{{os.getpid()}}\\n")
    if "HANGS" in os.environ:
        import time
        time.sleep(600)
    sys.exit(main(sys.argv[3]))
print('''{json.dumps(REPORT)}''')
"""


@pytest.fixture
def env(tmp_path):
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in {"ssh": SSH, "aifx": REMOTE}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(stat.S_IRWXU)
    return environ(tmp_path, PATH=f"{folder}:{os.environ['PATH']}", RANKS=str(tmp_path / "ranks"))


@pytest.fixture
def checked(env, tmp_path, monkeypatch, capsys):
    """Run the command while each message of a node, or over a link, is late."""
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    run_test = collective_launch.run_test
    monkeypatch.setattr(bisect, "REPEATS", 1)

    def answer(hosts, late, *options):
        def planted(group, limit_s, options):
            return run_test(group, limit_s, replace(options, num_bytes=1 << 16, limit_s=600.0, faults=late))

        monkeypatch.setattr(collective_launch, "run_test", planted)
        (tmp_path / "hosts").write_text(hosts)
        code = run(["doctor", "fleet", "--hosts", str(tmp_path / "hosts"), "--bisect", "--json", *options])
        report = json.loads(capsys.readouterr().out)
        check_document("commands/doctor-fleet", report)
        return code, report

    return answer


@pytest.mark.slow
def test_a_slow_node_is_among_the_findings_and_the_suspects(checked, tmp_path):
    page = tmp_path / "page.html"
    code, report = checked(f"127.0.0.[1-3] {NODE_9}\n", {("127.0.0.2",): 0.03}, "--html", str(page))
    assert (code, report["status"]) == (1, "unhealthy")
    found = {(finding["id"], finding["device"]) for finding in report["findings"]}
    assert found == {("fleet.bisect.node", "127.0.0.2"), ("fleet.node.silent", NODE_9)}
    assert {suspect["node"] for suspect in report["suspects"]} == {"127.0.0.2", NODE_9}
    assert report["bisect"]["ended"] == "done"
    # Who does not answer is not tested: it would make each test of its groups wait in vain.
    assert not any(NODE_9 in test["nodes"] for test in report["bisect"]["tests"])
    assert "127.0.0.2 slows" in page.read_text()


@pytest.mark.slow
def test_a_slow_link_is_among_the_findings(checked):
    code, report = checked("127.0.0.[1-4]\n", {("127.0.0.1", "127.0.0.4"): 0.03})
    assert code == 1
    (only,) = report["findings"]
    assert (only["id"], only["device"]) == ("fleet.bisect.link", "127.0.0.1 - 127.0.0.4")
    assert all(node["status"] == "healthy" for node in report["nodes"])


@pytest.mark.slow
def test_nothing_sticks_out_of_a_healthy_fleet(checked):
    code, report = checked("127.0.0.[1-3]\n", {})
    assert (code, report["status"], report["findings"]) == (0, "healthy", [])
    assert report["bisect"]["num_tests"] > 2


@pytest.mark.slow
def test_a_budget_that_ends_makes_it_unknown(checked):
    code, report = checked("127.0.0.[1-3]\n", {}, "--budget", "0.001", "--only", "cpu")  # of the nodes' own rules
    assert (code, report["status"]) == (2, "unknown")
    assert [finding["id"] for finding in report["findings"]] == ["fleet.bisect.unclear"]
    assert len(report["bisect"]["suspects"]) == 3
    code, report = checked("127.0.0.[1-3]\n", {}, "--budget", "0.001", "--skip", "fleet.bisect.unclear")
    assert (code, report["findings"]) == (0, [])


def test_one_node_that_answers_is_compared_with_nobody(checked):
    code, report = checked(f"127.0.0.1 {NODE_9}\n", {})
    assert code == 1
    assert {finding["id"] for finding in report["findings"]} == {"fleet.node.silent", "fleet.bisect.unclear"}


@pytest.mark.parametrize(
    ("hosts", "options", "what"),
    [
        ("127.0.0.1\n", [], "127.0.0.1 cannot be tested alone"),
        ("127.0.0.1 127.0.0.2 http://127.0.0.3:9470\n", [], "http://127.0.0.3:9470 cannot run a collective test"),
        ("127.0.0.1 127.0.0.2\n", ["--slurm"], "cannot mix --hosts and --slurm"),
    ],
)
def test_what_cannot_be_tested_is_an_error_before_anybody_is_asked(
    checked, monkeypatch, tmp_path, hosts, options, what
):
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n[1-2]")
    code, report = checked(hosts, {}, *options)
    assert code == 2
    assert what in report["error"]["what"]


def test_budget_and_bisect_go_together():
    assert run(["doctor", "fleet", "--bisect"]) == 2
    assert run(["doctor", "fleet", "--agents", "http://127.0.0.1:1", "--budget", "5"]) == 2


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_who_ends_the_search_gets_the_report(env, tmp_path, number, code):
    (tmp_path / "hosts").write_text("127.0.0.[1-4]\n")
    command = [*AIFX, "doctor", "fleet", "--hosts", str(tmp_path / "hosts"), "--bisect", "--json", "--timeout", "600"]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, env=env | {"HANGS": "yes"}, stdout=pipe, stderr=subprocess.DEVNULL, text=True
    ) as process:
        deadline = time.monotonic() + 120
        while not (tmp_path / "ranks").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(number)
        out, _ = process.communicate(timeout=120)
    report = json.loads(out)
    check_document("commands/doctor-fleet", report)
    assert process.returncode == code
    assert (report["status"], report["bisect"]["why"], len(report["nodes"])) == ("unknown", "interrupted", 4)


@pytest.mark.parametrize(
    ("facts", "over"), [({"gpus": [{"device": "gpu0"}]}, "jax"), ({"gpus": []}, "tcp"), ({}, "tcp")]
)
def test_what_carries_the_collectives(monkeypatch, facts, over):
    asked = []
    monkeypatch.setattr(collective_launch, "run_test", lambda _, __, options: asked.append(options) or Verdict(1.0))
    nodes = [node("n1", facts), node("n2", {}), node("n3", {}), Node("n4", why="no key")]
    result, _ = search_among(nodes, True, "sudo aifx", 60.0)
    assert {options.over for options in asked} == {over}
    assert (asked[0].program, asked[0].over_slurm) == (["sudo", "aifx"], True)
    assert {name for trial in result.trials for name in trial.nodes} == {"n1", "n2", "n3"}

"""Nodes that are asked through an `ssh` and an `srun` that run the command here, and simulated agents."""

import json
import os
import runpy
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fleets import AIFX, environ, run
from published_schemas import check_document

from aifx.cluster.hosts import expand, read_hosts, slurm_hosts
from aifx.core.errors import UsageError

AGENTS = Path(__file__).with_name("fleet_agents.py")
BENCHMARK = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "fleet.py"))


SSH = """\
#!/bin/sh
# ssh [options] -- HOST COMMAND: runs the command here, with HOST as the node's name.
case " $* " in *" -o BatchMode=yes "*) ;; *) echo "ssh would ask" >&2; exit 255;; esac
while [ "$1" != -- ]; do shift; done
host=$2; shift 2
case $host in
  dead*) exec sleep 600;;
  deaf*) trap 'kill -INT $PPID' TERM; touch asked; sleep 60 & wait; wait; touch left;;
  down*) echo "ssh: connect to host $host port 22: No route to host" >&2; exit 255;;
  shut*) echo "me@$host: Permission denied (publickey)." >&2; exit 255;;
  bare*) echo "sh: 1: aifx: not found" >&2; exit 127;;
  loud*) echo "Welcome to $host!"; echo "{ not yet }";;
  late*) sleep 0.3;;
esac
exec sh -c "$*"
"""

SRUN = """\
#!/bin/bash
# srun --label --nodelist=A,B ... sh -c COMMAND: a task for each, whose lines are labelled and come as they come.
echo "$*" > "$HOME/srun.words"
while [ "$1" != sh ]; do case $1 in --nodelist=*) nodes=${1#*=};; esac; shift; done
number=0
for node in ${nodes//,/ }; do
  case $node in
    lost*) echo "srun: error: Task launch for StepId=1.0 failed on node $node: Communication failure" >&2;;
    *) (SLURMD_NODENAME=$node "$@" 2>&1 | fold -w 1000 | sed -u "s/^/$number: /") &;;
  esac
  number=$((number + 1))
done
wait
exit 1
"""

REPORT = {
    "schema_version": 1,
    "host": "asked",
    "status": "warning",
    "findings": [
        {"id": "cpu.governor.slow", "severity": "warning", "device": "", "summary": "slow", "evidence": "x" * 3000,
         "threshold": "t", "source": "s", "action": "speed it up", "explained_by": ""}
    ],
    "skipped": [],
    "duration_s": 0.1,
}  # fmt: skip


@pytest.fixture
def env(tmp_path):
    """PATH with `ssh`, `srun`, and an `aifx` that answers at once with REPORT."""
    programs = {"ssh": SSH, "srun": SRUN, "aifx": f"#!/bin/sh\ncat <<'END'\n{json.dumps(REPORT, indent=2)}\nEND\n"}
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in programs.items():
        (folder / name).write_text(text)
        (folder / name).chmod(stat.S_IRWXU)
    return environ(tmp_path, PATH=f"{folder}:{os.environ['PATH']}")


def asked(tmp_path, env, hosts, *options):
    (tmp_path / "hosts").write_text(hosts)
    done = run("doctor", "fleet", "--hosts", str(tmp_path / "hosts"), "--json", *options, env=env)
    return done, document_of(done)


def document_of(done):
    report = json.loads(done.stdout)
    check_document("commands/doctor-fleet", report)
    return report


def across(report):
    return {(finding["device"], finding["id"]) for finding in report["findings"]}


def test_over_ssh(tmp_path, env):
    done, report = asked(tmp_path, env, "n[01-02]\nme@n03 late1 # and one that is slow\nloud1\n\n")
    assert [node["node"] for node in report["nodes"]] == ["n01", "n02", "me@n03", "late1", "loud1"]
    assert {node["status"] for node in report["nodes"]} == {"warning"}
    assert report["status"] == "warning"
    assert report["findings"] == []
    assert len(report["suspects"]) == 5
    assert done.returncode == 0
    strict, _ = asked(tmp_path, env, "n01\n", "--strict")
    assert strict.returncode == 1


def test_the_real_check_over_ssh(tmp_path, env):
    remote = f"{sys.executable} -m aifx.commands.main"
    _, report = asked(tmp_path, env, "n1\n", "--remote", remote, "--only", "cpu", "--record", str(tmp_path / "r"))
    assert report["nodes"][0]["status"] in ("healthy", "warning")
    kept = json.loads((tmp_path / "r").read_text().splitlines()[1])
    assert isinstance(kept["document"]["snapshot"]["facts"]["kernel"]["release"], str)


def test_nodes_that_do_not_answer_and_nodes_that_cannot(tmp_path, env):
    """The first are sick, the others a matter of how they are asked."""
    done, report = asked(tmp_path, env, "n1 down1 shut1 bare1\n")
    silent, mute = "fleet.node.silent", "fleet.node.no_report"
    assert across(report) == {("down1", silent), ("shut1", mute), ("bare1", mute)}
    why = {node["node"]: node["skipped"][0]["why"] for node in report["nodes"] if node["skipped"]}
    assert "No route to host" in why["down1"]
    assert "Permission denied" in why["shut1"]
    assert "not found" in why["bare1"]
    assert done.returncode == 1
    assert report["suspects"][0]["node"] == "down1"


def test_a_node_that_hangs_is_given_up(tmp_path, env):
    done, report = asked(tmp_path, env, "dead1\n", "--timeout", "0.5")
    assert across(report) == {("dead1", "fleet.node.silent")}
    assert "0.5 s" in report["findings"][0]["evidence"]
    assert done.returncode == 1
    assert report["suspects"][0]["node"] == "dead1"


@pytest.mark.skipif(shutil.which("ssh") is None, reason="there is no ssh here")
def test_what_the_real_ssh_says(tmp_path):
    """Nothing listens on that port, and that name means nothing."""
    ssh = tmp_path / "bin" / "ssh"
    ssh.parent.mkdir()
    ssh.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -p 9 "$@"\n')
    ssh.chmod(stat.S_IRWXU)
    env = environ(tmp_path, PATH=f"{ssh.parent}:{os.environ['PATH']}")
    _, report = asked(tmp_path, env, "127.0.0.1 no-such-host.invalid\n")
    assert across(report) == {("127.0.0.1", "fleet.node.silent"), ("no-such-host.invalid", "fleet.node.no_report")}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_what_has_arrived_is_kept(tmp_path, env, number, code):
    """When it is ended by Ctrl-C or from outside."""
    (tmp_path / "hosts").write_text("n1 n2 dead1 dead2\n")
    asking = ["doctor", "fleet", "--hosts", str(tmp_path / "hosts"), "--record", str(tmp_path / "record")]
    command = [*AIFX, *asking, "--json", "--timeout", "600"]
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (tmp_path / "record").exists() or (tmp_path / "record").read_text().count("\n") < 3:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == code, err
    report = json.loads(out)
    check_document("commands/doctor-fleet", report)
    assert [node["node"] for node in report["nodes"]] == ["n1", "n2"]
    assert report["not_heard"] == ["dead1", "dead2"]
    assert report["status"] == "unknown"
    again = run("doctor", "fleet", "--replay", str(tmp_path / "record"), "--json", env=env)
    assert document_of(again)["nodes"] == report["nodes"]
    assert again.returncode == 2


def test_a_second_ctrl_c_kills_what_does_not_end(tmp_path, env):
    """This host's command sends it when the first one asks the command to end, and would leave within the grace."""
    (tmp_path / "hosts").write_text("deaf1\n")
    patient = "from aifx.health.fleet import transports; transports.GRACE_S = 600; "
    command = [*AIFX[:-1], patient + AIFX[-1], "doctor", "fleet", "--hosts", str(tmp_path / "hosts"), "--json"]
    with subprocess.Popen(command, env=env, cwd=tmp_path, stdout=subprocess.PIPE) as process:
        deadline = time.monotonic() + 120
        while not (tmp_path / "asked").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        report = json.loads(process.communicate(timeout=120)[0])
    assert (process.returncode, report["not_heard"]) == (130, ["deaf1"])
    assert not (tmp_path / "left").exists()


@pytest.mark.parametrize(
    ("words", "number", "code"),
    [
        (["fleet", "--hosts"], signal.SIGINT, 130),
        (["fleet", "--hosts"], signal.SIGTERM, 75),
        (["fleet", "--agents", "http://127.0.0.1:1", "--site"], signal.SIGINT, 130),
        (["bisect", "--hosts"], signal.SIGTERM, 75),
    ],
)
def test_a_signal_ends_it_at_once_while_it_reads_its_files(tmp_path, env, words, number, code):
    os.mkfifo(file := tmp_path / "file")
    command, pipe = [*AIFX, "doctor", *words, str(file)], subprocess.PIPE
    with subprocess.Popen(command, env=env, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            deadline = time.monotonic() + 120
            while (writer := opened(file)) is None:
                assert time.monotonic() < deadline
                assert process.poll() is None
                time.sleep(0.02)
            process.send_signal(number)
            _, err = process.communicate(timeout=20)
            os.close(writer)
        finally:
            process.kill()
    assert (process.returncode, err.splitlines()[0]) == (code, "error: interrupted")


def test_a_second_signal_ends_it_at_once_after_the_asking(tmp_path, env):
    (tmp_path / "hosts").write_text("n1 dead1\n")
    slow = "import time, pathlib; from aifx.health.fleet import assess; assess.assess = lambda *_, **__: ("
    slow += "pathlib.Path('assessed').touch(), time.sleep(600)); "
    asking = ["doctor", "fleet", "--hosts", str(tmp_path / "hosts"), "--record", str(tmp_path / "record")]
    command = [*AIFX[:-1], slow + AIFX[-1], *asking]
    with subprocess.Popen(command, env=env, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        try:
            for number, file, num_lines in ((signal.SIGINT, "record", 2), (signal.SIGTERM, "assessed", 0)):
                deadline = time.monotonic() + 120
                while not (tmp_path / file).exists() or (tmp_path / file).read_text().count("\n") < num_lines:
                    assert time.monotonic() < deadline
                    time.sleep(0.02)
                process.send_signal(number)
            process.communicate(timeout=20)
        finally:
            process.kill()
    assert process.returncode == 75


def opened(fifo):
    """Open for writing, if somebody has opened it for reading."""
    try:
        return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:
        return None


def test_a_record_that_was_cut_off_is_read(tmp_path, env):
    asked(tmp_path, env, "n1 n2\n", "--record", str(tmp_path / "record"))
    record = tmp_path / "record"
    for line in record.read_text().splitlines():
        check_document("files/fleet-record", json.loads(line))
    record.write_text(record.read_text()[:-20])
    of_a_node = run("doctor", "--replay", str(record), env=env)
    assert of_a_node.returncode == 2
    assert f"aifx doctor fleet --replay {record}" in of_a_node.stderr
    again = run("doctor", "fleet", "--replay", str(record), "--json", env=env)
    report = document_of(again)
    assert len(report["nodes"]) == 1
    assert len(report["not_heard"]) == 1


def test_with_srun(tmp_path, env):
    env |= {"SLURM_JOB_NODELIST": "n[1-2],lost1"}
    done = run("doctor", "fleet", "--slurm", "--json", env=env)
    report = document_of(done)
    words = (tmp_path / "srun.words").read_text()
    assert "--nodes=3 --nodelist=n1,n2,lost1" in words
    assert "--ntasks-per-node=1" in words
    assert "--kill-on-bad-exit=0" in words
    assert [node["status"] for node in report["nodes"]] == ["warning", "warning", "unknown"]
    assert report["nodes"][0]["findings"] == REPORT["findings"]  # lines longer than Slurm lets through
    (finding,) = report["findings"]
    assert (finding["id"], finding["device"]) == ("fleet.node.silent", "lost1")
    assert "Communication failure" in finding["evidence"]
    assert done.returncode == 1


def test_slurm_outside_an_allocation_is_an_error(env):
    done = run("doctor", "fleet", "--slurm", env=env)
    assert done.returncode == 2
    assert "salloc" in done.stderr


def test_people_see_one_screen(tmp_path, env):
    (tmp_path / "hosts").write_text("n[1-20] shut1\n")
    done = run("doctor", "fleet", "--hosts", str(tmp_path / "hosts"), "--html", str(tmp_path / "page.html"), env=env)
    assert "n17" in (tmp_path / "page.html").read_text()
    assert done.stdout.startswith("21 nodes: unknown ")
    assert "20 nodes: slow" in done.stdout
    assert "and 12 more" in done.stdout
    assert done.stdout.index("suspect ") < done.stdout.index("warning   20 nodes")
    assert done.stderr == "asking 21 nodes\n"


def test_a_node_steers_no_terminal(tmp_path, env):
    evil = REPORT | {"findings": [REPORT["findings"][0] | {"summary": "\x1b[2Jgone\x07"}]}
    (tmp_path / "bin" / "aifx").write_text(f"#!/bin/sh\ncat <<'END'\n{json.dumps(evil)}\nEND\n")
    (tmp_path / "hosts").write_text("n1\n")
    printed = run("doctor", "fleet", "--hosts", str(tmp_path / "hosts"), env=env).stdout
    assert "\x1b" not in printed
    assert "\x07" not in printed


@pytest.mark.slow
@pytest.mark.parametrize(("nodes", "slow", "dead", "outliers"), [(60, 4, 3, 3)])
def test_agents_by_the_dozen(tmp_path, nodes, slow, dead, outliers):
    """A smaller benchmarks/fleet.py: dead nodes hang up when all others have answered."""
    numbers = (nodes, slow, dead, outliers)
    command = [sys.executable, str(AGENTS), *map(str, numbers), "0.5", "hang up"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            port = int(process.stdout.readline())
            hosts = "".join(f"http://127.0.0.1:{port}/node{number}\n" for number in range(nodes))
            _, report = asked(tmp_path, environ(tmp_path), hosts)
        finally:
            process.kill()
    assert BENCHMARK["mistakes"](report, *numbers) == []
    assert report["status"] == "unhealthy"


def test_agents_that_are_not_there(env):
    """One refuses, one's name means nothing: the first may be sick, the other is a slip of the pen."""
    refusing, nameless = "http://127.0.0.1:9", "http://no-such-host.invalid:9470"
    done = run("doctor", "fleet", "--agents", refusing, "--agents", nameless, "--json", env=env)
    assert across(document_of(done)) == {(refusing, "fleet.node.silent"), (nameless, "fleet.node.no_report")}


def test_an_agent_that_hangs_is_given_up(env):
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"http://127.0.0.1:{mute.getsockname()[1]}"
        done = run("doctor", "fleet", "--agents", url, "--timeout", "0.5", "--json", env=env)
    report = document_of(done)
    assert across(report) == {(url, "fleet.node.silent")}
    assert "0.5 s" in report["findings"][0]["evidence"]


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--timeout", "3"], "no nodes are named"),
        (["--agents", "n1:9470"], "is not a URL"),
        (["--agents", "http://n1:9470", "--stress", "quick"], "--stress cannot be used with agents"),
        (["--agents", "http://n1:9470", "--root", "/"], "aifx doctor node has it"),
        (["--replay", "fleet.jsonl", "--timeout", "3"], "--timeout cannot be used with --replay"),
        (["--hosts", "/nowhere"], "cannot be read"),
        (["--agents", "http://n1:9470", "--record", "/proc/none/file"], "/proc/none/file cannot be written"),
        (["--agents", "http://n1:9470", "--only", "nothing_such"], "no rule or family"),
        (["--agents", "http://n1:9470", "--remote", "aifx 'x"], "is not a command"),
    ],
)
def test_mistakes_on_the_command_line(env, options, word):
    done = run("doctor", "fleet", *options, env=env)
    assert done.returncode == 2
    assert word in done.stderr


def test_a_list_of_hosts(tmp_path):
    file = tmp_path / "hosts"
    file.write_text("# all\nn[08-10,20] n08\nme@login.example.org\nr[1-2]n[3-4]  # four\nhttp://n1:9470\n")
    names = ["n08", "n09", "n10", "n20", "me@login.example.org", "r1n3", "r1n4", "r2n3", "r2n4", "http://n1:9470"]
    assert read_hosts(file) == names
    assert expand("a[1-2],b,c[3,5]") == ["a1", "a2", "b", "c3", "c5"]
    assert expand("fe80::1%eth0") == ["fe80::1%eth0"]
    assert slurm_hosts({"SLURM_JOB_NODELIST": "n[1-3]"}) == ["n1", "n2", "n3"]


@pytest.mark.parametrize(
    "word", ["-oProxyCommand=x", "n1;reboot", "n[3-1]", "n[1-", "$(x)", "[-o]x", "n[1-9999999]", "@all", "n1!n1"]
)
def test_what_is_no_host(word, tmp_path):
    with pytest.raises(ValueError, match=r"not the name|range|bracket|more than"):
        expand(word)
    file = tmp_path / "hosts"
    file.write_text(f"n1\n{word}\n")
    with pytest.raises(UsageError, match="line 2"):
        read_hosts(file)

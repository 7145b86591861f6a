"""`aifx doctor` as a person and a script use it: words, exit codes, one JSON document."""

import json
import re
import signal
import subprocess
import sys

import pytest
from program import environ, process, run
from published_schemas import check_document

from aifx.health import snapshot, stress
from aifx.health.host import within

CPUS = "sys/devices/system/cpu"


@pytest.fixture
def machine(tmp_path):
    """A tree in which two of four processors are off and one is driven slowly."""
    files = {
        f"{CPUS}/online": "0-1\n",
        f"{CPUS}/present": "0-3\n",
        f"{CPUS}/cpufreq/policy0/scaling_governor": "powersave\n",
        "proc/cpuinfo": "model name\t: a processor\n",
        "proc/loadavg": "0.1 0.1 0.1 1/10 9\n",
        "proc/cmdline": "ro token=s3cr3t\n",
        "proc/sys/kernel/hostname": "n7\n",
        "proc/sys/kernel/tainted": "0\n",
        "proc/sys/kernel/osrelease": "6.8.0\n",
    }
    for path, text in files.items():
        target = tmp_path / "tree" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    return tmp_path / "tree"


@pytest.fixture
def doctor(tmp_path, monkeypatch):
    """Its probes have all the time that they need."""
    monkeypatch.setattr(snapshot, "within", lambda limit_s, collect, what: within(600, collect, what))
    return lambda *arguments: run(tmp_path, "doctor", *map(str, arguments))


def document(done):
    answer = json.loads(done.stdout)
    check_document("commands/doctor", answer)
    return answer


def test_findings_come_with_evidence_and_action(doctor, machine):
    done = doctor("--root", machine, "--only", "cpu")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("n7: warning (2 warnings; ")
    for words in ("2 of 4 processors are online", "cpu.online = 2", "the governor powersave", "cpupower", "skipped"):
        assert words in done.stdout
    assert doctor("--root", machine, "--only", "cpu", "--strict").returncode == 1


def test_a_node_is_checked_if_no_command_is_named(doctor, machine, tmp_path):
    kept = tmp_path / "kept.json"
    first = doctor("--root", machine, "--only", "cpu", "--record", kept)
    for arguments in (["--replay", kept, "--only", "cpu"], ["node", "--replay", kept, "--only", "cpu"]):
        again = doctor(*arguments)
        assert again.returncode == first.returncode
        assert again.stdout.splitlines()[1:] == first.stdout.splitlines()[1:]  # the first line tells the time
    assert doctor("--help").stdout != doctor("node", "--help").stdout == doctor("--strict", "--help").stdout


@pytest.mark.parametrize("folder", ["", "proc", "photos"])
def test_a_root_without_files_of_a_machine_is_refused(doctor, folder, tmp_path):
    (tmp_path / "root" / folder).mkdir(parents=True)
    (tmp_path / "root" / "photos").mkdir(exist_ok=True)
    (tmp_path / "root" / "photos" / "1.jpg").touch()
    done = doctor("--root", tmp_path / "root")
    assert done.returncode == 2
    assert "no files of a machine" in done.stderr


def test_the_document_is_as_the_schema_says(doctor, machine):
    answer = document(doctor("--root", machine, "--only", "cpu", "--json"))
    assert (answer["host"], answer["status"]) == ("n7", "warning")
    assert [f["id"] for f in answer["findings"]] == ["cpu.cores.offline", "cpu.governor.slow"]
    assert all(skipped["why"] for skipped in answer["skipped"])


@pytest.mark.slow
def test_this_machine_gets_a_report(doctor):
    done = doctor("--json")
    answer = document(done)
    assert done.returncode == {"healthy": 0, "warning": 0, "unhealthy": 1, "unknown": 2}[answer["status"]]


def test_what_was_recorded_is_judged_the_same(doctor, machine, tmp_path):
    kept = tmp_path / "node.json"
    first = document(doctor("--root", machine, "--only", "cpu", "--record", kept, "--json"))
    again = document(doctor("--replay", kept, "--only", "cpu", "--json"))
    assert first["findings"] == again["findings"]
    assert "s3cr3t" not in kept.read_text()


def test_a_site_has_the_last_word(doctor, machine, tmp_path):
    site = tmp_path / "site.toml"
    site.write_text(
        """
        [rules."cpu.governor.slow"]
        severity = "critical"
        [[skip]]
        id = "cpu.cores"
        reason = "half of this node is another's"
        until = 2999-01-01
        [[skip]]
        id = "cpu.throttle"
        reason = "hot summer"
        until = 2020-01-01
        [[skip]]
        id = "disk"
        reason = "not among --only"
        until = 2020-01-01
        """
    )
    done = doctor("--root", machine, "--only", "cpu", "--site", site, "--json")
    assert done.returncode == 1
    answer = document(done)
    assert [f["id"] for f in answer["findings"]] == ["cpu.governor.slow", "site.skip.ended"]
    why = {skipped["id"]: skipped["why"] for skipped in answer["skipped"]}["cpu.cores.offline"]
    assert "half of this node" in why
    assert "2999-01-01" in why


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[rules.'cpu.governor.slo']\nseverity = 'info'", "did you mean 'cpu.governor.slow'?"),
        ("[rules.'cpu.governor.slow']\nseverity = 'bad'", "severity"),
        ("[[skip]]\nid = 'cpu'", "reason"),
        ("[rules.'cpu.governor.slow']\nfails_if = { abov = 1 }", "did you mean 'above'?"),
        ("expected = ", "is not TOML"),
        ("[expected]\ngpu = 8", "did you mean 'gpus'?"),
        ("[[skip]]\nid = 'cpus'\nreason = 'none'", "did you mean 'cpu'?"),
    ],
)
def test_a_mistake_in_a_sites_file_is_named(doctor, text, expected, machine, tmp_path):
    (tmp_path / "site.toml").write_text(text)
    done = doctor("--root", machine, "--site", tmp_path / "site.toml")
    assert done.returncode == 2
    assert expected in done.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--only", "cpus"], "did you mean 'cpu'?"),
        (["--replay", "nothing.json"], "nothing.json cannot be read"),
        (["--replay", "x", "--sample", "1"], "--sample cannot be used with --replay"),
        (["--root", "nowhere"], "is not a folder"),
        (["rulez"], "did you mean 'rules'?"),
        (["qqqq"], "one of: bisect, diff, fleet, node, rules, serve, slurm"),
        (["--hosts", "nodes.txt"], "aifx doctor fleet has it"),
        (["--strikt"], "did you mean '--strict'?"),
        (["--only", "qqqq"], "one of: clock, cpu, "),
        (["--only", "cpu,disk"], "name one per option"),
        (["--format", "xml"], "'xml' is not one of 'text', 'nagios', 'npd'"),
        (["--strict", "rules"], "aifx doctor rules: its options come after 'rules'"),
        (["--record", "/proc/nothing/here.json", "--only", "cpu"], "cannot be written"),
    ],
)
def test_mistakes_lead_on(doctor, arguments, expected, tmp_path):
    done = doctor(*arguments)
    assert done.returncode == 2
    assert expected in done.stderr
    assert "hint:" in done.stderr


def test_what_could_not_run_is_a_document_as_well(doctor):
    done = doctor("--only", "qqqq", "--json")
    assert document(done)["error"]["exit_code"] == done.returncode == 2


def test_findings_are_printed_even_if_they_cannot_be_saved(doctor, machine):
    done = doctor("--root", machine, "--only", "cpu", "--record", ".", "--html", "/proc/nothing.html", "--json")
    assert document(done)["status"] == "warning"
    assert done.returncode == 2
    assert done.stderr.count("cannot be written") == 2


def test_a_stream_is_written_to_and_a_link_is_not(doctor, machine, tmp_path):
    (tmp_path / "kept.json").touch()
    (tmp_path / "link").symlink_to("kept.json")
    done = doctor("--root", machine, "--only", "cpu", "--record", "link", "--html", "/dev/null", "--json")
    assert document(done)["status"] == "warning"
    assert done.returncode == 2
    assert re.search("link .*kept.json", done.stderr)
    assert (tmp_path / "kept.json").read_text() == ""
    done = process(tmp_path, "doctor", "--root", str(machine), "--only", "cpu", "--record", "/dev/stderr")
    assert done.returncode == 0
    assert json.loads(done.stderr)["host"] == "n7"


def test_a_report_in_a_file_steers_no_terminal(doctor, machine):
    (machine / "proc/sys/kernel/hostname").write_text("n7\x1b[31m\n")
    done = doctor("--root", machine, "--only", "cpu")
    assert "\x1b" not in done.stdout
    assert all(line == line.rstrip() for line in done.stdout.splitlines())


@pytest.mark.parametrize("text", ["[" * 100_000, "", "[]", "{}", '{"schema_version": 9, "facts": {}}', '{"facts": 3}'])
def test_a_file_that_is_no_snapshot(doctor, text, tmp_path):
    (tmp_path / "x.json").write_text(text)
    done = doctor("--replay", "x.json", "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["what"].startswith(("x.json is not", "x.json has"))


def test_a_rule_is_explained(doctor):
    done = doctor("rules", "cpu.governor.slow")
    assert done.returncode == 0
    for words in ("cpu.governors contains powersave", "cpupower", "gcm", "cpu.is_virtual is false"):
        assert words in done.stdout
    listed = json.loads(doctor("rules", "cpu", "--json").stdout)["rules"]
    assert {rule["id"] for rule in listed} >= {"cpu.cores.offline", "cpu.governor.slow"}


STOPPED = """
import logging, os, signal
from aifx.commands.main import main
from aifx.health import stress

class Stop(logging.Handler):
    def emit(self, record):
        os.kill(os.getpid(), signal.SIGTERM)

logging.getLogger("aifx.health.stress").addHandler(Stop())
stress.budget_of = lambda *_: 600.0
main()
"""
"""`aifx`, which gets SIGTERM when the stress test logs its first step."""


@pytest.mark.slow
def test_a_stress_that_sigterm_ends_leaves_a_report(tmp_path):
    command = [sys.executable, "-c", STOPPED, "doctor", "--stress", "quick", "--only", "stress", "--json"]
    done = subprocess.run(
        command, env=environ(tmp_path), cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 75, done.stderr
    assert_cut(json.loads(done.stdout))


@pytest.mark.representative("a stress test")
def test_a_stress_that_ctrl_c_ends_leaves_a_report(doctor, monkeypatch):
    """In the middle of its first step."""

    def begin(module, arguments, sampler, record, until):
        for event in EVENTS:
            record.take(event, 0.0)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(stress, "_run", begin)
    done = doctor("--stress", "quick", "--only", "stress", "--json")
    assert done.returncode == 130
    assert_cut(json.loads(done.stdout))


EVENTS = (
    {"event": "devices", "devices": [{"device": "cpu:0", "kind": "cpu", "platform": "cpu"}]},
    {
        "event": "begin",
        "step": 0,
        "key": "consistency cold",
        "device": "all",
        "what": "consistency check, cold",
        "limit_s": 9.0,
    },
)


def assert_cut(answer):
    assert answer["stress"]["ended"] == "interrupted"
    (cut,) = (finding for finding in answer["findings"] if finding["id"] == "stress.run.cut")
    assert "and what follows" in cut["evidence"]

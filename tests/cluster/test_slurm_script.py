"""The script of `aifx launch slurm`: what Slurm and bash read in it, whatever the settings hold, and what it does."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from aifx.cluster.slurm import SlurmJob, quoted, render_script
from aifx.config.launch_section import SLURM_OPTIONS, LaunchSection, SlurmSection, seconds_of
from aifx.core.errors import UsageError
from aifx.core.json_files import read_jsonl

HOSTILE = st.one_of(
    st.text("ab1 \t\n\r\0\x1b\x7f'\"`$(){}[]<>;&|#!\\*?~=-,:/%é", max_size=12),
    st.sampled_from(
        ["\n#SBATCH --uid=0", "$(touch pwned)", "`touch pwned`", "'; touch pwned; '", "a\\", "-n", "*", ""]
    ),
)
END_S = 300.0
WORD = r"#SBATCH --[a-z-]+(=[^\s\"'\\#]+)?"


def make_job(root: Path, arguments: tuple[str, ...] = ("train",), **changes: object) -> SlurmJob:
    launch = {name: value for name, value in changes.items() if name in LaunchSection.model_fields}
    slurm = {name: value for name, value in changes.items() if name in SlurmSection.model_fields}
    folder = Path("runs/.launched/main-1")
    return SlurmJob("main-1", root, folder, arguments, LaunchSection(**launch), SlurmSection(**slurm))  # type: ignore[arg-type]


def split(script: str) -> tuple[list[str], str]:
    """The directives of a script, and its settings, which say what the rest runs."""
    head, _, rest = script.partition("\n\n")
    return head.split("\n")[1:], rest.partition('\n\nstep=""')[0]


def bash(script: str, **options: object) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["bash", "-c", script], capture_output=True, timeout=END_S, **options)  # type: ignore[call-overload, no-any-return]


def words_of(text: str, *arrays: str) -> list[list[str]]:
    """The words that arrays have after bash has read the settings."""
    show = "; ".join(f"printf '%s\\0' \"${{{name}[@]}}\"; printf '\\1\\0'" for name in arrays)
    done = bash(f"{text}\n{show}")
    assert done.returncode == 0, done.stderr
    parts = done.stdout.decode("utf-8", "surrogateescape").split("\1\0")
    return [part.split("\0")[:-1] for part in parts[:-1]]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("a project") / "it's $(here) #1"
    folder.mkdir()
    (folder / "set up.sh").write_text("export SET_UP=yes\n")
    return folder


@settings(max_examples=120)
@given(
    words=st.lists(HOSTILE, min_size=1, max_size=4),
    values=st.lists(st.tuples(st.sampled_from(["A", "B_2", "XLA_FLAGS"]), HOSTILE), max_size=2),
    image=HOSTILE,
    mount=HOSTILE,
    option=st.tuples(st.sampled_from([*SLURM_OPTIONS, "uid", "wrap"]), HOSTILE),
    names=st.fixed_dictionaries({}, optional=dict.fromkeys(("account", "partition", "qos", "time_limit"), HOSTILE)),
)
def test_hostile_values_are_refused_or_stay_one_word(
    root: Path,
    words: list[str],
    values: list[tuple[str, str]],
    image: str,
    mount: str,
    option: tuple[str, str],
    names: dict[str, str],
) -> None:
    def kept(name: str, value: object) -> dict[str, object]:
        """The setting, if the section takes it."""
        try:
            make_job(root, **{name: value})
        except ValidationError:
            return {}
        return {name: value}

    taken = {
        **kept("environment", tuple(f"{name}={value}" for name, value in values)),
        **kept("image", image),
        **kept("mounts", (f"/{mount}:/{mount}",)),
        **kept("options", ("=".join(option),)),
        **{key: value for name, text in names.items() for key, value in kept(name, text).items()},
    }
    job = make_job(root, ("train", "--run", *words), setup_script="set up.sh", **taken)
    if re.search(r"[\x00-\x1f\x7f]", "".join(words)):
        with pytest.raises(UsageError, match="control characters"):
            render_script(job)
        return
    script = render_script(job)
    directives, text = split(script)
    assert all(re.fullmatch(WORD, line) for line in directives)
    assert not any(line.lstrip().startswith("#SBATCH") for line in script.split("\n")[len(directives) + 1 :])
    assert bash(f"exec bash -n {shlex.quote(str(write(root, script)))}").returncode == 0
    on_nodes, aifx, supervise = words_of(text, "on_nodes", "aifx", "supervise")
    assert supervise == ["launch", "node", "--id", "main-1", "-n", "1", "--", "train", "--run", *words]
    assert aifx == ["aifx"]
    if job.launch.image:
        assert f"--container-image={job.launch.image}" in on_nodes
        assert f"--container-mounts={','.join([f'{root}:{root}', *job.launch.mounts])}" in on_nodes
    for variable in job.launch.environment:
        name, _, value = variable.partition("=")
        if dict(v.split("=", 1) for v in job.launch.environment)[name] == value:  # the last one wins
            assert words_of(text, name) == [[value]]
    assert not list(root.glob("pwned*"))


def write(root: Path, script: str) -> Path:
    path = root / "script.sh"
    path.write_text(script)
    return path


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("partition", "a b", "letters, digits"),
        ("qos", "x\n#SBATCH --uid=0", "letters, digits"),
        ("account", "x#y", "letters, digits"),
        ("time_limit", "1 day", "2-12:00:00"),
        ("time_limit", "٣", "2-12:00:00"),
        ("options", ("uid=0",), "is not an option that may be set"),
        ("options", ("constrain=a100",), "did you mean 'constraint'"),
        ("options", ("nodes=2",), "launch.nodes"),
        ("options", ("exclusive=yes",), "--exclusive does not take 'yes'"),
        ("options", ("contiguous=1",), "--contiguous takes no value"),
        ("options", ("mem",), "--mem does not take ''"),
        ("options", ("mem=",), "after mem= comes a value"),
        ("environment", ("A B=1",), "NAME=VALUE"),
        ("environment", ("AIFX_PROCESS_ID=1",), "sets this variable itself"),
        ("mounts", ("/a,/b:/c",), "/FROM:/TO"),
        ("image", "a b", "the name of an image"),
    ],
)
def test_what_is_refused(tmp_path: Path, field: str, value: object, why: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(why)):
        make_job(tmp_path, **{field: value})


def test_each_setting_is_in_the_script(tmp_path: Path) -> None:
    job = make_job(
        tmp_path,
        ("train", "--run", "wide"),
        nodes=4,
        gpus_per_node=8,
        processes_per_node=2,
        account="ml",
        partition="a100,h100",
        qos="high",
        time_limit="2-12:00:00",
        signal_ahead_s=300,
        requeue=False,
        options=("constraint=a100&ib", "exclusive", "cpus-per-task=96"),
    )
    directives, text = split(render_script(job))
    assert [line.removeprefix("#SBATCH --") for line in directives] == [
        "job-name=aifx-main-1",
        "nodes=4",
        "ntasks-per-node=1",
        "gpus-per-node=8",
        "account=ml",
        "partition=a100,h100",
        "qos=high",
        "time=2-12:00:00",
        "signal=B:TERM@300",
        "no-requeue",
        "output=runs/.launched/main-1/output.log",
        "open-mode=append",
        "constraint=a100&ib",
        "exclusive",
        "cpus-per-task=96",
    ]
    on_nodes, aifx, supervise = words_of(text, "on_nodes", "aifx", "supervise")
    assert on_nodes == [
        *("srun", "--nodes=4", "--ntasks=4", "--ntasks-per-node=1", "--cpu-bind=none", "--cpus-per-task=96")
    ]
    assert aifx[0].startswith(str(Path(sys.executable).parent))
    assert supervise[4:6] == ["-n", "2"]
    assert "requeue=no" in text


@pytest.mark.parametrize(
    ("limit", "seconds"),
    [("", None), ("90", 5400), ("10:30", 630), ("1:00:00", 3600), ("2-12", 216000), ("1-0:01", 86460), ("0-0:0:5", 5)],
)
def test_time_limits(limit: str, seconds: int | None) -> None:
    assert seconds_of(limit) == seconds


def test_control_characters_are_refused() -> None:
    assert quoted(["a b", "é"]) == "'a b' 'é'"
    with pytest.raises(UsageError, match=re.escape(r"'a\nb' cannot be launched")):
        quoted(["a\nb"])


SRUN = r"""#!/bin/bash
printf '%s\0' "$@" >> argv; printf '\1\0' >> argv
touch started
code=$(head -1 codes); sed -i 1d codes
if [ "$code" = wait ]; then
    until [ -e signalled ]; do sleep 0.05; done
    exit 75
fi
exit "$code"
"""
PROGRAMS = {
    "srun": SRUN,
    "scancel": '#!/bin/bash\necho "scancel $*" >> asked; touch signalled\n',
    "scontrol": '#!/bin/bash\necho "scontrol $*" >> asked\n',
    "squeue": "#!/bin/bash\ncat state\n",
}
"""Programs that stand for Slurm's: `srun` ends with the next of the codes in a file. tests/cluster/test_slurm_jobs.py
runs the script under a real Slurm."""

Job = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start(tmp_path: Path) -> Job:
    """Run a script whose steps end with these codes, as Slurm's batch step does."""

    def run(*codes: object, state: str = "RUNNING", **changes: object) -> subprocess.Popen[bytes]:
        programs = tmp_path / "bin"
        programs.mkdir()
        for name, text in PROGRAMS.items():
            (programs / name).write_text(text)
            (programs / name).chmod(0o755)
        (tmp_path / "runs/.launched/main-1").mkdir(parents=True)
        (tmp_path / "codes").write_text("".join(f"{code}\n" for code in codes))
        (tmp_path / "state").write_text(f"{state}\n")
        script = write(tmp_path, render_script(make_job(tmp_path, **{"doctor": False, **changes})))
        environ = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
        return subprocess.Popen(["bash", str(script)], cwd=tmp_path, env=environ, stderr=subprocess.PIPE)

    return run


def asked(folder: Path) -> list[str]:
    path = folder / "asked"
    return path.read_text().splitlines() if path.exists() else []


def events(folder: Path) -> list[str]:
    found = read_jsonl(folder / "runs/.launched/main-1/events.jsonl")
    return [" ".join(str(value) for key, value in event.items() if key != "time") for event in found]


@pytest.mark.parametrize(
    ("codes", "changes", "code", "seen", "requeues"),
    [
        ([0], {}, 0, ["begin", "end 0"], False),
        ([1], {}, 1, ["begin", "end 1"], False),
        ([75, 0], {}, 0, ["begin", "end 0"], False),
        ([137, 75, 0], {}, 0, ["begin", "end 0"], False),
        ([75, 75, 75, 2], {}, 2, ["begin", "end 2"], False),
        ([75, 75], {"restarts": 1}, 75, ["begin", "requeue"], True),
        ([75], {"restarts": 0, "requeue": False}, 75, ["begin", "end 75"], False),
        ([75], {"restarts": 0, "state": "COMPLETING"}, 75, ["begin", "cancel", "end 75"], False),
        ([0, 0], {"doctor": True}, 0, ["begin", "end 0"], False),
        ([1], {"doctor": True}, 2, ["end 2"], False),
    ],
)
def test_how_the_job_ends(
    start: Job, tmp_path: Path, codes: list[int], changes: dict[str, object], code: int, seen: list[str], requeues: bool
) -> None:
    job = start(*codes, **changes)
    _, err = job.communicate(timeout=END_S)
    assert (job.returncode, events(tmp_path)) == (code, seen), err
    assert asked(tmp_path) == (["scontrol requeue 7"] if requeues else [])
    assert (tmp_path / "codes").read_text() == "", "a start too few or too many"
    assert err.count(b"on these nodes") == max(len(codes) - 1 - bool(changes.get("doctor")), 0)


@pytest.mark.parametrize(
    ("number", "seen", "requeues"),
    [
        (signal.SIGTERM, ["begin", "signal TERM", "requeue"], True),
        (signal.SIGINT, ["begin", "signal INT", "end 75"], False),
    ],
)
def test_signals_reach_the_step_and_end_the_job(
    start: Job, tmp_path: Path, number: signal.Signals, seen: list[str], requeues: bool
) -> None:
    job = start("wait", 0)
    while not (tmp_path / "started").exists():
        time.sleep(0.01)
    os.kill(job.pid, number)
    assert job.wait(END_S) == 75
    assert events(tmp_path) == seen
    expected = [f"scancel --signal={number.name.removeprefix('SIG')} 7"]
    assert asked(tmp_path) == expected + (["scontrol requeue 7"] if requeues else [])
    assert (tmp_path / "codes").read_text() == "0\n", "it was started again"


def test_the_doctor_looks_at_each_node(start: Job, tmp_path: Path) -> None:
    assert start(0, 0, doctor=True, nodes=2).wait(END_S) == 0
    doctor, supervise = ((tmp_path / "argv").read_bytes().decode().split("\1\0"))[:2]
    words = doctor.split("\0")[:-1]
    assert words[:2] == ["--nodes=2", "--ntasks=2"]
    assert words[-1] == "doctor"
    check = words[words.index("-c") + 1]
    for code, ended in ((0, 0), (1, 1), (2, 0)):  # 2: some parts are unknown, as they are to anyone but root
        done = bash(f"bash -c {shlex.quote(check)} doctor bash -c 'echo report; exit {code}'")
        assert done.returncode == ended
        assert (b"report" in done.stderr) == (code == 1)
    assert supervise.split("\0")[-2] == "train"

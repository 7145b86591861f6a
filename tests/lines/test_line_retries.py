"""Faults that pass, in commands that print no JSON document: they are repeated, and others are not."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import inprocess
import pytest
import warm_aifx
from fake_cluster import Cluster, on_slurm
from ticking import station

LAUNCHES = '[[station]]\nname = "launch"\nrun = "aifx launch k8s --apply --no-follow -- train"\nretries = 2\n'
FAILS = """#!/bin/sh
cd "${0%/bin/*}"
case " $* " in
  *" apply "*|*" --parsable "*)
    echo x >>asked.count
    [ "$(wc -l <asked.count)" -gt TIMES ] || { echo "TEXT" >&2; exit 1; }
    echo 1 ;;
esac
"""


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    (tmp_path / "aifx.toml").write_text('[launch]\nimage = "team/lm:1"\n[k8s]\nruns_claim = "runs"\n')
    return Cluster.began(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """The argv of `aifx`."""
    with warm_aifx.serving(tmp_path_factory.mktemp("warm")) as words:
        yield words


def test_a_launch_is_repeated_if_nobody_answered(
    cluster: Cluster, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    passing = {
        "kubectl": "Unable to connect to the server: dial tcp 10.0.0.1:6443: i/o timeout",
        "sbatch": "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)",
    }
    lasting = {
        "kubectl": "error: the server doesn't have a resource type jobset",
        "sbatch": "sbatch: error: Batch job submission failed: Invalid partition name specified",
    }
    cluster.program("squeue", "#!/bin/sh\n")  # a machine may have a real one, and no Slurm
    lines = {"kubectl": LAUNCHES, "sbatch": on_slurm("launch", "train", "retries = 2")}
    monkeypatch.setattr("aifx.lines.runner.AIFX", tuple(words))
    for program, text in lines.items():
        for number, (faults, tries) in enumerate(((passing, 2), (lasting, 1))):
            cluster.write(text.replace("train", f"train --set train.seed={number}"))
            cluster.program(program, FAILS.replace("TIMES", "1").replace("TEXT", faults[program]))
            repeated, ended = len(cluster.records("repeated")), len(cluster.records("ended"))
            states = cluster.tick()  # no scheduler knows the job that Slurm took
            assert states == {"launch": "done" if (program, tries) == ("kubectl", 2) else "failed"}
            assert cluster.count("asked") == tries
            assert len(cluster.records("repeated")) - repeated == tries - 1
            if tries == 1:
                error = cluster.records("ended")[ended].facts["error"]
                assert faults[program].rpartition(": ")[2] in error["why"]
            (cluster.root / "asked.count").unlink()


def test_the_document_of_a_failure_is_in_the_file_that_the_environment_names(tmp_path: Path) -> None:
    path = tmp_path / "error.json"
    done = inprocess.run(["launch", "ls"], tmp_path, {**os.environ, "AIFX_ERROR_FILE": str(path)})
    assert done.returncode == 2
    error = json.loads(path.read_text())["error"]
    assert error["what"] in done.stderr
    assert (error["exit_code"], error["transient"]) == (2, False)


def test_a_program_is_repeated_by_the_failure_of_the_aifx_in_it_alone(cluster: Cluster) -> None:
    """A failure with another exit code, or that another message follows, is not that of the program."""
    script = "sh -c 'echo x >>a.count; cp failure $AIFX_ERROR_FILE; MORE; exit 2' CODE"
    error = 'printf "error: no route\\n  to the   host\\nhint: try\\n  again\\n" >&2'
    for code, more, tries in ((2, error, 2), (75, error, 1), (2, f"{error}; echo no such row >&2", 1), (2, "true", 1)):
        failure = {"what": "no route", "why": "to the host", "hint": "try again", "exit_code": code, "transient": True}
        (cluster.root / "failure").write_text(json.dumps({"error": failure}))
        cluster.write(station("a", script.replace("MORE", more).replace("CODE", f"{code} {tries}"), retries=1))
        assert cluster.tick() == {"a": "failed"}
        assert cluster.count("a") == tries, (code, more)
        (cluster.root / "a.count").unlink()


def test_a_program_that_handled_the_failure_of_an_aifx_is_not_repeated_for_it(
    cluster: Cluster, words: list[str]
) -> None:
    (cluster.root / "failure").write_text('{"error": {"what": "no route", "exit_code": 2, "transient": true}}')
    handled = f"cp failure $AIFX_ERROR_FILE; {' '.join(words)} config keys train >keys || exit 70"
    cluster.write(station("a", f"sh -c 'echo x >>a.count; {handled}; exit 2'", retries=1))
    assert cluster.tick() == {"a": "failed"}
    assert (cluster.count("a"), (cluster.root / "keys").stat().st_size > 0) == (1, True)


def test_a_file_for_a_failure_that_is_none_stays(tmp_path: Path) -> None:
    (tmp_path / "device").symlink_to("/dev/null")
    done = inprocess.run(["config", "keys"], tmp_path, {**os.environ, "AIFX_ERROR_FILE": str(tmp_path / "device")})
    assert (done.returncode, (tmp_path / "device").is_symlink()) == (0, True)

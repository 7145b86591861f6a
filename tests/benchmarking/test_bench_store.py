"""Baselines: which reports may be one, where they lie, and what is said of those that cannot be read or written."""

import json
import re
import subprocess
import sys

import pytest
from bench_reports import report, result

from aifx.benchmarking.history import select_results
from aifx.benchmarking.results import Failure, Request, read_report, write_report
from aifx.benchmarking.runner import check_configuration
from aifx.benchmarking.store import MAX_NOISE, Store, keep_last, open_store, unfit
from aifx.core.errors import EnvironmentFault, UsageError
from aifx.verbs.benchmarks import bench_compare

DIRTY = {"commit": "aaaa111122", "branch": "main", "dirty": True}


def quiet(name="train.step", **more):
    return result(name, 0.1, launches=5, noise=0.002, **more)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "bench")


def test_a_name_has_a_history_and_its_newest_is_what_it_means(store):
    first, second = report(quiet(), commit="aaaa111122"), report(quiet(), commit="bbbb222233", time=1_795_700_000.0)
    paths = [store.save(one, "main") for one in (first, second)]
    assert store.names() == ["main"]
    assert store.history("main") == paths
    assert paths[0].name == "20261125T094640-aaaa1111.json"
    assert store.find("main") == second
    assert store.find("main@aaaa") == store.find(f"main@aaaa1111{'2' * 32}") == first  # in short and in full
    assert store.find(str(paths[0])) == first
    with pytest.raises(UsageError, match="commit cccc") as told:
        store.find("main@cccc")
    assert "bbbb2222" in told.value.why


def test_a_commit_with_changes_is_found_as_a_list_shows_it(store):
    clean = report(quiet(), commit="aaaa111122")
    dirty = clean.model_copy(update={"fingerprint": clean.fingerprint.model_copy(update={"git": DIRTY}), "time": 1e9})
    for one in (dirty, clean):
        store.save(one, "main")
    assert store.find(f"main@{dirty.fingerprint.commit}") == dirty
    assert store.find("main@aaaa1111") == clean


def test_the_nearest_name_is_told_for_one_that_is_not_there(store):
    store.save(report(quiet()), "main")
    with pytest.raises(UsageError, match="no baseline 'mian'") as told:
        store.find("mian")
    assert told.value.why == "did you mean 'main'?"


@pytest.mark.parametrize("name", ["", ".", "..", "../main", "a/b", "-x", "a b", "a" * 101, "main\n", "main@3f"])
def test_a_name_is_one_folder_below_the_store(store, name):
    with pytest.raises(UsageError, match="cannot name a baseline"):
        store.save(report(quiet()), name)
    assert not store.folder.exists()


def test_what_cannot_be_a_baseline_is_refused_with_the_reason(store):
    few = report(quiet(), result("train.forward", 0.1, launches=4, noise=0.002))
    noisy = report(result("train.step", 0.1, launches=5, noise=0.2))
    failed = report(quiet(), failure=Failure(what="the device was lost"))
    for refused, reason in (
        (few, "5 launches"), (noisy, "too noisy"), (failed, "the device was lost"), (report(), "5 launches"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match="main is not saved") as told:
            store.save(refused, "main")
        assert reason in told.value.why
    assert store.names() == []
    assert store.save(noisy, "main", max_noise=1.0).is_file()


def test_a_noisy_machine_is_refused_and_one_noisy_thing_is_not():
    noisy = [result(f"train.part{i}", 0.01, launches=5, noise=0.2) for i in range(4)]
    calm = [quiet(f"train.calm{i}") for i in range(6)]
    assert all(one.scatter > MAX_NOISE for one in noisy)
    assert unfit(report(*calm, *noisy[:2]), MAX_NOISE) == ""
    told = unfit(report(*calm, *noisy), MAX_NOISE)
    worst = max(noisy, key=lambda one: one.scatter)
    assert re.match(f"too noisy.*: {worst.title} ±{worst.scatter:.1%}", told)
    assert re.search(r"\b1 more .*±4\.0%", told)


def test_a_damaged_file_is_named_with_the_place(store):
    path = store.save(report(quiet()), "main")
    whole = path.read_text()
    for text, where in (
        (whole[: len(whole) // 2], "is no report of aifx bench"),
        ("", "is no report of aifx bench"),
        (whole.replace('"schema_version": 1', '"schema_version": 2'), "is no report of aifx bench"),
        ("[]", "is no report of aifx bench"),
    ):
        path.write_text(text)
        with pytest.raises(UsageError, match=where):
            store.find("main")
    (result,) = json.loads(whole)["results"]
    for changes, where in (
        ({"results": [{**result, "median_s": "slow"}]}, "results.0.median_s: "),
        ({"results": [{**result, "samples_s": [[]] * 5}]}, "results.0.samples_s.0: "),
        ({"time": 1e300}, "time: "),
        ({"time": "NaN"}, "time: "),
    ):
        path.write_text(json.dumps({**json.loads(whole), **changes}))
        with pytest.raises(UsageError) as told:
            store.find("main")
        assert told.value.why.startswith(where)


def test_a_report_without_results_has_no_history():
    with pytest.raises(UsageError, match="main has no results"):
        select_results("main", [report()], None)


def test_a_suite_that_this_version_lacks_is_named():
    with pytest.raises(UsageError, match="suite 'os'"):
        check_configuration(Request(suites=["hardware", "os"]))


def test_a_file_that_cannot_be_read_is_told(tmp_path):
    with pytest.raises(EnvironmentFault, match="cannot be read"):
        read_report(tmp_path)
    with pytest.raises(UsageError, match="no report at"):
        read_report(tmp_path / "none.json")


FULL = """
import resource, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from bench_reports import report, result
from aifx.benchmarking.store import Store, keep_last
from aifx.core.errors import EnvironmentFault

made = report(*(result(f"train.part{i}", 0.1, launches=5, noise=0.002) for i in range(20)))
store = Store(Path(sys.argv[2]))
kept = store.save(made, "main")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # write() then answers EFBIG
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    store.save(made.model_copy(update={"time": made.time + 60}), "main")
except EnvironmentFault as error:
    print(error)
print(keep_last(made))
"""


def test_a_disk_that_takes_no_more_leaves_no_half_a_baseline(store, tmp_path, request):
    """A limit on the size of files stands for a full disk: the write fails midway all the same."""
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(request.path.parent), str(store.folder)],
        capture_output=True, text=True, env={"PATH": "/usr/bin:/bin", "AIFX_CACHE_DIR": str(tmp_path / "cache")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].endswith("cannot be written")
    assert lines[1] == "File too large"
    assert "20 results" in lines[3]
    assert len(store.history("main")) == 1
    assert store.find("main").results
    assert [path.name for path in (store.folder / "main").iterdir()] == [store.history("main")[0].name]


def test_what_was_measured_is_kept_elsewhere_where_the_cache_takes_nothing(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("AIFX_CACHE_DIR", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    made = report(quiet())
    told = keep_last(made)
    assert re.search(r"1 result\b.*: aifx bench show ", told)
    assert read_report(tmp_path / told.rpartition("show ")[2]) == made


def test_a_project_keeps_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    assert open_store().folder == tmp_path / "data" / "aifx" / "bench"
    (tmp_path / "aifx.toml").write_text("")
    assert open_store().folder == tmp_path / "bench"


def test_a_report_is_the_same_when_it_was_written_and_read(tmp_path):
    made = report(quiet(flops=1e9, num_bytes=1e6, bound_s=0.01, figures={"energy_j": None, "mfu": 0.3}))
    write_report(made, tmp_path / "a" / "b.json")
    assert read_report(tmp_path / "a" / "b.json") == made


def test_a_list_of_baselines_loads_no_jax(tmp_path):
    code = "import sys, aifx; aifx.bench_ls(); sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


def test_reports_that_do_not_compare_name_a_suite_of_the_project(tmp_path):
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "aifx.toml").touch()
    first, second = report(quiet()), report(quiet())
    other = second.fingerprint.model_copy(update={"hardware": {**second.fingerprint.hardware, "cores": 1024}})
    for name, one in (("a", first), ("b", second.model_copy(update={"fingerprint": other}))):
        write_report(one, tmp_path / f"{name}.json")
    with pytest.raises(UsageError) as raised:
        bench_compare(str(tmp_path / "a.json"), str(tmp_path / "b.json"), project=tmp_path / "project")
    assert raised.value.hint.startswith("aifx bench train --save NAME")

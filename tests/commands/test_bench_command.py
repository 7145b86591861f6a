"""`aifx bench` as a person and a script use it: words, exit codes, one JSON document."""

import importlib
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import program
import pytest
from program import assert_three_lines, run
from published_schemas import check_document

from aifx.benchmarking.fingerprint import fingerprint
from aifx.benchmarking.results import Failure, Measured, Report, Request, Result, read_report, write_report
from aifx.verbs import benchmarks

sys.path.append(str(Path(__file__).parents[1] / "benchmarking"))
fake_suite = importlib.import_module("fake_suite")
environ = fake_suite.environ
SUITES = ("hardware", "kernels", "train", "data", "checkpoint", "startup", "serve", "all")


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    return fingerprint(tmp_path_factory.mktemp("here"))


@pytest.fixture
def bench(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    fake_suite.fork_launches(monkeypatch)
    return lambda *arguments, **env: run(tmp_path, "bench", *map(str, arguments), **env)


def spaced(done):
    return " ".join(done.stdout.split())


def thing(name, middle, launches=5, **params):
    seen = [middle * (1 + 0.002 * (i - launches // 2)) for i in range(launches)]
    return Result.of([Measured(name=name, params=params, samples_s=[s, s, s], flops=1e9) for s in seen])


def report(print_, *results, time=1_795_600_000.0, commit=None, **asked):
    if commit:
        print_ = print_.model_copy(update={"git": {"commit": commit, "branch": "main", "dirty": False}})
    request = Request(suites=list(dict.fromkeys(r.name.partition(".")[0] for r in results)), **asked)
    return Report(request=request, launches=5, time=time, duration_s=60, fingerprint=print_, results=list(results))


@pytest.fixture
def saved(tmp_path, here):
    """Two reports of the name main, the second slower in one of two things."""
    folder = tmp_path / "data" / "aifx" / "bench" / "main"
    first = report(here, thing("train.step", 0.1), thing("train.forward", 0.03), commit="aaaa1111bbbb")
    second = report(
        here, thing("train.step", 0.12), thing("train.forward", 0.03), commit="cccc2222dddd", time=first.time + 3600
    )
    for number, one in enumerate((first, second)):
        write_report(one, folder / f"2026112{number}T000000-{one.fingerprint.commit}.json")
    return first, second


def test_help_has_examples_and_needs_no_jax(tmp_path):
    """The help of all commands in one process has examples and imports nothing heavy."""
    commands = ["", *SUITES, "compare", "gate", "history", "ls", "show"]
    body = f"""
import sys
from aifx.commands.main import run
sys.argv[0] = "aifx"
for command in {commands}:
    print(">>>", command, run(["bench", *filter(None, [command]), "--help"]))
print(*{{"jax", "orbax", "scipy", "matplotlib", "numpy"}} & sys.modules.keys())
"""
    done = subprocess.run(
        [sys.executable, "-c", body], cwd=tmp_path, env=program.environ(tmp_path), text=True, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    *helps, imported = re.split(r"^>>>.* 0\n", done.stdout, flags=re.MULTILINE)
    assert len(helps) == len(commands), done.stdout
    for command, text in zip(commands, helps, strict=True):
        assert "Examples" in text
        assert f"aifx bench {command}".strip() in text
    assert not imported.strip()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["hardware", "--quik"], "--quick"),
        (["hardwear"], "did you mean 'hardware'?"),
        (["train"], "this command works inside a project"),
        (["hardware", "--save", "a/b"], "cannot name a baseline"),
        (["hardware", "--save", "main", "--launches", "3"], "--save main requires --launches 5 or more"),
        (["hardware", "--max-noise", "lots"], "--max-noise lots is not a share"),
        (["serve"], "aifx bench serve requires URL or --run NAME"),
        (["serve", "http://127.0.0.1:9", "--rate", "0"], "--rate 0 cannot be used"),
        (["serve", "http://127.0.0.1:9", "--concurrency", "1,x"], "hint: --concurrency 1,4,16"),
        (["serve", "--run", "main"], "this command works inside a project"),
        (["gate", "--baseline", "main"], "no baseline 'main'"),
        (["gate", "--baseline", "main", "--max-regression", "5"], "hint: --max-regression 5%"),
        (["gate"], "missing option '--baseline'"),
        (["compare", "main", "other"], "no baseline 'main'"),
        (["show"], "hint: aifx bench all --quick"),
        (["history", "main"], "no baseline 'main'"),
        (["show", "main"], "hint: aifx bench hardware --save main"),  # train needs a project, and here is none
    ],
)
def test_a_mistake_is_told_in_three_lines_before_anything_is_measured(bench, arguments, told):
    done = bench(*arguments)
    assert done.returncode == 2
    assert told in done.stderr.replace("Missing", "missing")
    assert_three_lines(done.stderr)


def test_a_measurement_is_printed_kept_and_as_the_schema_says(bench, tmp_path):
    env = environ(tmp_path, "yield result('first', 0.5, 0.25, 0.375, size=3)\nlogger.warning('a word')")
    done = bench("hardware", "--quick", "--json", "--output", tmp_path / "out.json", **env)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    check_document("commands/bench", answer)
    assert answer["results"][0]["median_s"] == 0.375
    assert answer["results"][0]["samples_s"] == [[0.5, 0.25, 0.375]]
    assert answer["results"][0]["flops_per_s"] == 1e9 / 0.375
    assert answer["notes"][0] == "a word"
    assert json.loads((tmp_path / "out.json").read_text()) == answer
    printed = bench("show")
    for words in ("first 3 375 ms", "2.67 GFLOP/s", "note: a word"):
        assert words in spaced(printed)
    assert json.loads(bench("show", "--json").stdout) == answer


def test_a_suite_that_fails_at_once_says_so_and_claims_no_results(bench, tmp_path):
    env = environ(tmp_path, "raise RuntimeError('no luck')\nyield")
    done = bench("hardware", "--quick", **env)
    assert done.returncode == 2
    assert "RuntimeError: no luck" in done.stderr
    assert "kept" not in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has it")
def test_a_full_disk_loses_nothing_that_was_measured(bench, tmp_path):
    env = environ(tmp_path, "yield result('first', 0.5)")
    done = bench("hardware", "--quick", "--output", "/dev/full", **env)
    assert done.returncode == 2
    assert "first 500 ms" in spaced(done)
    assert re.search("/dev/full.*\n.*No space left", done.stderr)
    assert Path("/dev/full").is_char_device()
    assert re.search("1 result.*: aifx bench show", done.stderr)
    assert "first 500 ms" in spaced(bench("show"))


def test_compare_tells_what_is_slower_and_what_else_differs(bench, saved):
    done = bench("compare", "main@aaaa", "main")
    assert done.returncode == 0, done.stderr
    assert "train.step" in done.stdout
    assert "+20.0%" in done.stdout
    assert "commit: aaaa1111 -> cccc2222" in done.stdout
    answer = json.loads(bench("compare", "main@aaaa", "main", "--json").stdout)
    step, forward = answer["results"]
    assert (step["verdict"], forward["verdict"]) == ("slower", "same")
    assert step["p"] == pytest.approx(1 / 252)
    assert step["interval"][0] <= step["ratio"] <= step["interval"][1]
    assert (answer["a"]["commit"], answer["b"]["commit"]) == ("aaaa1111", "cccc2222")


def test_what_can_not_be_compared_in_full_is_told(bench, saved, tmp_path, here):
    half = report(here, thing("train.step", 0.1, launches=1))
    half = half.model_copy(update={"launches": 1, "failure": Failure(what="the bench was interrupted")})
    write_report(half, tmp_path / "half.json")
    done = bench("compare", "half.json", "main")
    assert re.search(r"half.json: .*, 1 launch\n +not whole: .*interrupted\n", done.stdout)
    assert "lower deciles" in done.stdout  # so they need not agree
    done = bench("compare", "half.json", "main", "--only", "train.stp")
    assert done.returncode == 2
    assert re.search("'train.stp'\n.*'train.step'", done.stderr)


def test_another_machine_does_not_compare(bench, saved, tmp_path, here):
    other = here.model_copy(update={"hardware": here.hardware | {"cores": 4096}})
    write_report(report(other, thing("train.step", 0.1)), tmp_path / "other.json")
    for arguments in (["compare", "main", "other.json"], ["gate", "--baseline", "main", "--results", "other.json"]):
        done = bench(*arguments)
        assert done.returncode == 2
        assert f"cores: {here.hardware['cores']} and 4096" in done.stderr
        assert_three_lines(done.stderr)


def test_a_gate_over_results_ends_with_its_verdict(bench, saved, tmp_path, here):
    slow, quick = tmp_path / "slow.json", tmp_path / "quick.json"
    now = report(here, thing("train.step", 0.13), thing("train.forward", 0.03))
    write_report(now.model_copy(update={"notes": ["a word"]}), slow)
    write_report(report(here, thing("train.step", 0.12), quick=True), quick)
    done = bench("gate", "--baseline", "main", "--results", slow)
    assert done.returncode == 1
    assert f"note ({slow}): a word" in done.stdout
    assert re.match(r"regression: train.step .*8\.3% \(95 %: \+7\.", done.stdout.splitlines()[-1])
    done = bench("gate", "--baseline", "main", "--results", slow, "--max-regression", "10%", "--json")
    assert done.returncode == 0
    answer = json.loads(done.stdout)
    assert answer["passed"]
    assert [(r["verdict"], r["regressed"]) for r in answer["results"]] == [("slower", False), ("same", False)]
    for refused, told in (
        (["--results", quick], "quick: False -> True"),
        (["--results", slow, "--only", "train.stp"], "did you mean 'train.step'?"),
    ):
        done = bench("gate", "--baseline", "main", *refused)
        assert done.returncode == 2
        assert told in done.stderr


def test_a_gate_can_not_be_passed_by_measuring_too_little(bench, saved, tmp_path, here):
    few, other = tmp_path / "few.json", tmp_path / "other.json"
    write_report(report(here, thing("train.step", 0.2, launches=3)), few)
    write_report(report(here, thing("train.optimizer", 0.2)), other)
    for results, told in ((few, "5 and 3 launches"), (other, "have no result in common")):
        done = bench("gate", "--baseline", "main", "--results", results)
        assert done.returncode == 2
        assert told in done.stderr
        assert_three_lines(done.stderr)


@pytest.mark.representative("a benchmark")
def test_a_gate_measures_what_the_baseline_measured(bench, tmp_path, here):
    before = report(here, thing("hardware.first", 0.5), thing("hardware.second", 0.1), quick=True)
    write_report(before, tmp_path / "main.json")
    env = environ(tmp_path, "assert bench.quick\nyield result('first', 0.6, 0.61)\nyield result('second', 0.1, 0.1001)")
    done = bench("gate", "--baseline", "main.json", "--output", "now.json", "--json", **env)
    assert done.returncode == 1, done.stderr
    answer = json.loads(done.stdout)
    assert [(r["name"], r["regressed"]) for r in answer["results"]] == [
        ("hardware.first", True), ("hardware.second", False),
    ]  # fmt: skip
    assert read_report(tmp_path / "now.json").launches == 5


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has it")
@pytest.mark.slow
def test_a_gate_whose_disk_is_full_or_whose_launch_dies_keeps_what_it_measured(bench, tmp_path, here):
    write_report(report(here, thing("hardware.first", 0.5), quick=True), tmp_path / "main.json")
    for body, output, told in (
        ("yield result('first', 0.5)", "/dev/full", "error: /dev/full cannot be written"),
        (
            "yield result('first', 0.5)\nraise RuntimeError('no luck')",
            "now.json",
            "error: hardware ended before its time",
        ),
    ):
        done = bench("gate", "--baseline", "main.json", "--output", output, **environ(tmp_path, body))
        assert done.returncode == 2
        assert told in done.stderr
        assert re.search("1 result.*: aifx bench show", done.stderr)
    assert read_report(tmp_path / "now.json").failure.what.startswith("hardware ended")


@pytest.mark.representative("a benchmark")
def test_a_gate_that_so_few_launches_cannot_decide_names_its_own_option(bench, tmp_path, here):
    before = report(here, *(thing("hardware.x", 0.1, case=case) for case in range(30)), quick=True)
    write_report(before, tmp_path / "main.json")
    env = environ(tmp_path, "for case in range(30): yield result('x', 0.1 if case else 0.2, case=case)")
    done = bench("gate", "--baseline", "main.json", "--max-launches", "5", **env)
    assert done.returncode == 2
    assert re.search("hint: .*--max-launches 6.*--only hardware.x", done.stderr)


def test_a_baseline_of_too_few_launches_is_refused_before_anything_is_measured(bench, tmp_path, here):
    write_report(report(here, thing("hardware.first", 0.5, launches=3), quick=True), tmp_path / "main.json")
    done = bench("gate", "--baseline", "main.json", **environ(tmp_path, "raise RuntimeError('measured')\nyield"))
    assert done.returncode == 2
    assert re.search("main.json.*: hardware.first has 3 launches", done.stderr)
    assert_three_lines(done.stderr)


@pytest.mark.slow
def test_what_seems_slower_among_many_is_launched_again_alone(here, monkeypatch):
    """100 results of two suites, one of which is slower: five launches of five cannot tell, so that suite is launched
    until it can."""
    asked = []

    def many(launches, slower):
        return [
            thing(f"{suite}.x", slower if (suite, case) == ("kernels", 7) else 1.0, count, case=case)
            for suite, count in launches.items()
            for case in range(50)
        ]

    class Measurement:
        def __init__(self, request, folder, on_measured, accept):
            self.have = dict.fromkeys(request.suites, 0)

        def launch(self, counts):
            asked.append(counts)
            self.have.update({suite: self.have[suite] + count for suite, count in counts.items()})
            return report(here, *many(self.have, 1.2))

    monkeypatch.setattr(benchmarks, "Measurement", Measurement)
    before = report(here, *many({"hardware": 7, "kernels": 5}, 1.0))
    _, _, gated = benchmarks._measure_for_gate("main", before, 0.05, (), 20, Path(), lambda measured: None)
    assert asked == [{"hardware": 7, "kernels": 5}, {"kernels": 5}]
    assert [found.after.title for found in gated.regressed] == ["kernels.x 7"]
    assert not gated.undecided


@pytest.mark.slow
def test_a_baseline_that_is_too_noisy_is_launched_again_before_it_is_refused(bench, tmp_path):
    """Launches by turns: quiet ones after five that are not."""
    count = tmp_path / "launches"
    count.touch()
    body = f"""
        from pathlib import Path
        number = len(Path({str(count)!r}).read_text())
        Path({str(count)!r}).write_text("." * (number + 1))
        yield result("first", 0.111 if number in (1, 3) else 0.1)
    """
    env = environ(tmp_path, inspect.cleandoc(body))
    done = bench("hardware", "--save", "main", **env)
    assert done.returncode == 0, done.stderr
    assert re.search("too noisy.*hardware.first", done.stderr)
    assert "5 more launches" in done.stderr
    told = [line for line in done.stderr.splitlines() if line.startswith("hardware: launch")]
    assert [told[0], told[5], told[-1]] == [f"hardware: launch {at}" for at in ("1 of 5", "6 of 10", "10 of 10")]
    assert done.stderr.splitlines()[-1].endswith("aifx bench gate --baseline main")
    assert json.loads(bench("show", "main", "--json").stdout)["launches"] == len(count.read_text()) == 10
    count.write_text("")
    done = bench("hardware", "--save", "main", "--launches", "5", **env)
    assert done.returncode == 2
    assert "main is not saved" in done.stderr
    assert len(count.read_text()) == 5


@pytest.mark.representative("a benchmark")
def test_a_launch_that_dies_in_a_later_round_keeps_what_all_rounds_measured(bench, tmp_path):
    (tmp_path / "launches").touch()
    body = f"""
        path = {str(tmp_path / "launches")!r}
        number = len(open(path).read())
        open(path, "a").write(".")
        yield result("first", (0.1, 0.2)[number % 2])
        if number == 6:
            raise RuntimeError("no luck")
    """
    done = bench("hardware", "--save", "main", "--output", "now.json", **environ(tmp_path, inspect.cleandoc(body)))
    assert done.returncode == 2
    assert "RuntimeError: no luck" in done.stderr
    assert re.search("1 result.*: aifx bench show", done.stderr)
    assert not (tmp_path / "data" / "aifx" / "bench" / "main").exists()
    kept = json.loads(bench("show", "--json").stdout)
    assert [samples[0] for samples in kept["results"][0]["samples_s"]] == [0.1, 0.2] * 3 + [0.1]
    assert json.loads((tmp_path / "now.json").read_text()) == kept


def test_what_is_kept_is_listed_with_its_history(bench, saved, tmp_path, here):
    assert "no baselines in" in bench("ls", XDG_DATA_HOME=str(tmp_path / "none")).stdout
    listed = bench("ls")
    assert "main" in listed.stdout
    assert "cccc2222" in listed.stdout
    assert json.loads(bench("ls", "--json").stdout)["baselines"][0]["reports"] == 2
    done = bench("history", "main")
    assert done.returncode == 0, done.stderr
    assert "train.step" in done.stdout.splitlines()[0]
    assert "+20.0%" in done.stdout
    assert "[ms]" in done.stdout
    answer = json.loads(bench("history", "main", "--result", "train.forward", "--json").stdout)
    assert [series["name"] for series in answer["results"]] == ["train.forward"]
    assert [point["commit"] for point in answer["results"][0]["points"]] == ["aaaa1111", "cccc2222"]
    wrong = bench("history", "main", "--result", "train.forwrd")
    assert (wrong.returncode, "did you mean 'train.forward'?" in wrong.stderr) == (2, True)


def test_a_damaged_report_is_reported_and_the_others_are_listed(bench, saved, tmp_path):
    folder = tmp_path / "data" / "aifx" / "bench" / "main"
    (folder / "20261122T000000-eeee3333.json").write_text("{")
    done = bench("history", "main")
    assert done.returncode == 0
    assert "is no report" in done.stderr
    assert "+20.0%" in done.stdout
    assert bench("show", "main").returncode == 2


def test_the_history_is_a_page(bench, saved, tmp_path):
    done = bench("history", "main", "--html", "trend.html")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "trend.html").read_text()
    assert "train.step" in page
    assert "cccc2222" in page

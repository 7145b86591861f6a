"""The comparisons with peers, and the tables of docs/performance.md that they write."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from jax_kernels.ops import OPS, benchmark_cases

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
PAGE = BENCHMARKS.parent / "docs" / "performance.md"


@pytest.fixture(scope="module")
def scripts():
    """The modules of benchmarks/, which lie in no package."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import all
        import kernels
        import side_by_side
        import tables

        yield SimpleNamespace(all=all, kernels=kernels, side_by_side=side_by_side, tables=tables)
    finally:
        sys.path.remove(str(BENCHMARKS))


def test_each_goal_of_a_kernel_is_of_a_case_that_is_measured(scripts):
    cases = {
        f"{op.name}, {case.name}, {dtype}"
        for op in OPS.values()
        for platform, dtype in (("cpu", "float32"), ("gpu", "bfloat16"))
        for case in benchmark_cases(op, platform)
    }
    for case, peer in scripts.kernels.GOALS:
        assert case in cases
        assert peer in scripts.kernels.PEERS


def test_a_kernel_is_compared_with_cudnn_and_with_what_it_cannot_avoid(scripts):
    """None of them is ours, however fast."""
    seconds = {"xla": 5.0, "pallas_triton": 3.0, "cudnn": 2.0, "products": 1.0, "cudnn_masked": 0.5}
    results = [
        SimpleNamespace(
            name="kernels.attention",
            params={"case": "llama3-8b", "dtype": "bfloat16", "implementation": implementation},
            median_s=taken,
            samples_s=[[taken] * 3],
        )
        for implementation, taken in seconds.items()
    ]
    rows = list(scripts.kernels.rows_of(SimpleNamespace(results=results)))
    found = {row["against"]: row for row in rows}
    assert set(found) == {"cuDNN", "cuDNN with a mask", "its three products alone"}
    assert found["cuDNN"]["goal"] == 0.9
    assert found["cuDNN"]["ratio"] == pytest.approx(2 / 3)


EMPTY = """\
# Page

Before.

<!-- table training -->
<!-- end of training -->

Between.

<!-- table loading -->
<!-- end of loading -->

After.
"""


def measured(*rows, **more):
    return {
        "table": "training",
        "date": "2026-01-02",
        "machine": "2 cores of a CPU, 8 GiB",
        "versions": {"Python": "3.13.1", "jax": "0.12.0"},
        "rounds": 5,
        "quick": False,
        "rows": list(rows),
        "absent": {},
        "notes": [],
        "disturbed": [],
    } | more


def row(against, ratio, what="a step", goal=1.0):
    spread = {"interval": [ratio - 0.1, ratio + 0.1], "pairs": [ratio - 0.2, ratio + 0.2]}
    return {"what": what, "against": against, "goal": goal, "ratio": ratio, "ours": "1 s", "peer": "2 s", **spread}


def table_of(scripts, page):
    start, end = scripts.tables.span(page, "training")
    return scripts.tables.read_table(page[start:end])


def outside(scripts, page):
    start, end = scripts.tables.span(page, "training")
    return page[:start] + page[end:]


def test_what_is_measured_stands_in_its_table_and_nothing_else_changes(scripts):
    page = scripts.tables.rewrite(EMPTY, measured(row("torch", 1.5), notes=["It is the same work."]))
    assert "| a step | torch | 1 | **1.50** (1.40 to 1.60; pairs 1.30 to 1.70) | 1 s | 2 s | 2026-01-02 |\n" in page
    assert "- 2026-01-02: 2 cores of a CPU, 8 GiB; Python 3.13.1, jax 0.12.0; 5 rounds\n" in page
    assert "- It is the same work.\n" in page
    assert outside(scripts, page).replace("\n", "") == outside(scripts, EMPTY).replace("\n", "")
    assert scripts.tables.rewrite(page, measured(row("torch", 1.5), notes=["It is the same work."])) == page


def test_a_peer_that_is_not_there_keeps_its_row_and_that_is_said(scripts):
    page = scripts.tables.rewrite(EMPTY, measured(row("torch", 1.5), row("compiled", 1.2)))
    later = {"date": "2026-03-04", "machine": "16 cores of another", "absent": {"compiled": "not installed"}}
    page = scripts.tables.rewrite(page, measured(row("torch", 1.7), row("new", 2.0), **later))
    table = table_of(scripts, page)
    found = [(cells[1], cells[3][:8], cells[-1]) for cells in table.rows]
    assert found == [
        ("torch", "**1.70**", "2026-03-04"),
        ("compiled", "**1.20**", "2026-01-02"),
        ("new", "**2.00**", "2026-03-04"),
    ]
    assert set(table.conditions) == {"2026-01-02", "2026-03-04"}, "each row's machine is told"
    assert [re.findall("2026-03-04|compiled", note) for note in table.notes] == [["2026-03-04", "compiled"]]
    page = scripts.tables.rewrite(page, measured(row("torch", 1), row("new", 1), row("compiled", 1), date="2026-05-06"))
    assert set(table_of(scripts, page).conditions) == {"2026-05-06"}
    assert table_of(scripts, page).notes == []


def test_what_disturbed_is_told_of_the_rows_that_it_disturbed(scripts):
    page = scripts.tables.rewrite(EMPTY, measured(row("torch", 1.5), row("compiled", 1.2), notes=["The same work."]))
    busy = {"date": "2026-03-04", "disturbed": ["other processes used 80% of the cores"]}
    absent = {"torch": "not installed", "compiled": "not installed"}
    nothing = table_of(scripts, scripts.tables.rewrite(page, measured(**busy, absent=absent)))
    before, absences = nothing.notes
    assert before == "The same work."
    assert re.findall("2026-03-04|torch: not installed|compiled: not installed", absences) == [
        "2026-03-04", "torch: not installed", "compiled: not installed",
    ]  # fmt: skip
    assert nothing.conditions == table_of(scripts, page).conditions
    half = table_of(scripts, scripts.tables.rewrite(page, measured(row("torch", 1.7), **busy)))
    told = {date: "other processes" in condition for date, condition in half.conditions.items()}
    assert told == {"2026-01-02": False, "2026-03-04": True}


def test_one_day_with_two_machines_tells_them_apart(scripts):
    page = scripts.tables.rewrite(EMPTY, measured(row("torch", 1.5), row("compiled", 1.2)))
    page = scripts.tables.rewrite(page, measured(row("torch", 1.7), machine="another"))
    table = table_of(scripts, page)
    assert [cells[-1] for cells in table.rows] == ["2026-01-02 b", "2026-01-02"]
    assert table.conditions["2026-01-02 b"].startswith("another")
    page = scripts.tables.rewrite(page, measured(row("torch", 1.7), row("compiled", 1.2), machine="a third"))
    assert set(table_of(scripts, page).conditions) == {"2026-01-02"}


def test_a_benchmark_that_fails_leaves_its_table_with_a_word(scripts):
    page = scripts.tables.rewrite(EMPTY, measured(row("torch", 1.5), notes=["It is the same work."]))
    for day in ("2026-03-04", "2026-03-05"):
        page = scripts.tables.not_measured(page, "training", day, "it ended with 1: no | memory")
    table = table_of(scripts, page)
    assert [cells[1] for cells in table.rows] == ["torch"]
    before, failure = table.notes
    assert before == "It is the same work."
    assert re.search(r"2026-03-05: .*no \| memory", failure)


def test_cells_with_bars_survive(scripts):
    page = scripts.tables.rewrite(EMPTY, measured(row("a | b", 1.5)))
    page = scripts.tables.rewrite(page, measured(row("c", 1.5)))
    assert [cells[1] for cells in table_of(scripts, page).rows] == ["a | b", "c"]


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("<!-- end of training -->\n", "", "table loading begins, but training has not ended"),
        ("<!-- end of loading -->\n", "", "table loading has no end"),
        ("<!-- table training -->\n", "", "table training ends, but it has not begun"),
        ("<!-- table training -->\n", "<!-- tabel training -->\n", "training ends, but it has not begun"),
        ("loading", "training", "it is there already"),
        ("training", "other", "the page has no table training"),
        ("<!-- end of training -->", "| a | b |\n<!-- end of training -->", "other columns"),
    ],
)
def test_damaged_markers_are_an_error(scripts, old, new, why):
    with pytest.raises(scripts.tables.DamagedMarkers, match=why):
        scripts.tables.rewrite(EMPTY.replace(old, new), measured(row("torch", 1.5)))


def test_the_page_has_the_table_of_each_benchmark(scripts):
    page = PAGE.read_text()
    for part in scripts.all.PARTS:
        start, end = scripts.tables.span(page, part.table)
        assert scripts.tables.read_table(page[start:end]).text() == page[start:end], "rewriting would lose something"


def test_above_one_ours_is_the_faster(scripts):
    work = scripts.side_by_side.Work("step", "a step", amount=100.0, unit="tokens")
    found = scripts.side_by_side.row(work, [[1.0, 1.1, 0.9], [1.0]], [[2.0, 2.0, 2.0], [3.0]], "torch")
    assert found["ratio"] == pytest.approx(2.5)
    assert found["pairs"] == pytest.approx([2.0, 3.0])
    assert found["interval"][0] <= 2.5 <= found["interval"][1]
    assert found["ours"] == "100 tokens/s"
    assert found["peer"] == "40 tokens/s"
    assert scripts.side_by_side.Work("step", "a step", amount=2048.0, unit="tokens").speed(1e-3) == "2,048,000 tokens/s"


def test_sides_run_in_turn_in_either_order(scripts):
    ran = []

    def side(name):
        def measure():
            ran.append(name)
            return {"seconds": {"step": [float(len(ran))]}}

        return scripts.side_by_side.Side(name, measure)

    runs = scripts.side_by_side.alternate([side("aifx"), side("torch")], 3)
    assert ran == ["aifx", "torch", "torch", "aifx", "aifx", "torch"]
    assert runs.seconds("torch", "step") == [[2.0], [3.0], [6.0]]


def test_a_peer_that_is_not_installed_is_told_and_ours_has_to_run(scripts):
    frame = scripts.side_by_side

    def process(code):
        head = f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r}); import side_by_side as s\n"
        return frame.process([sys.executable, "-c", head + code])

    good = frame.Side("aifx", process("s.tell(lambda: {'seconds': {'step': [1.0]}})"))
    needs = "def work():\n    import not_a_package_of_anyone\ns.tell(work, peers={!r})"
    lacking = frame.Side("peer", process(needs.format(("not_a_package_of_anyone",))))
    broken = frame.Side("broken", process(needs.format(())))
    nowhere = frame.Side("elsewhere", frame.process(["/no/such/python", "-c", ""]))
    runs = frame.alternate([good, lacking, broken, nowhere], 2)
    assert runs.peers == []
    assert len(runs.told["aifx"]) == 2
    assert "not_a_package_of_anyone" in runs.absent["peer"]
    assert re.search(r"\b1: ModuleNotFoundError", runs.absent["broken"])
    assert "/no/such/python" in runs.absent["elsewhere"]
    with pytest.raises(SystemExit, match="peer: not_a_package_of_anyone"):
        frame.alternate([lacking, good], 1)


@pytest.mark.slow
def test_each_benchmark_tells_what_it_does(scripts):
    names = ["all.py", *(part.script for part in scripts.all.PARTS)]
    commands = [[sys.executable, str(BENCHMARKS / name), "--help"] for name in names]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
    for name, child in zip(names, started, strict=True):
        said, _ = child.communicate(timeout=300)
        assert child.returncode == 0
        assert f"benchmarks/{name}" in said
        assert "--rounds" in said


@pytest.mark.parametrize(
    ("processor", "needs"),
    [
        ("vendor_id : AuthenticAMD\nflags : avx2 avx512f", True),
        ("vendor_id : AuthenticAMD\nflags : avx2", False),
        ("vendor_id : GenuineIntel\nflags : avx2 avx512f", False),
        ("Features : asimd sve", False),
    ],
)
def test_mkl_is_told_of_another_maker_s_avx512_alone(scripts, tmp_path, monkeypatch, processor, needs):
    """Elsewhere a row "with MKL's AVX-512 path" would be of another path."""
    (tmp_path / "cpuinfo").write_text(processor)
    monkeypatch.setattr(scripts.all, "CPUINFO", str(tmp_path / "cpuinfo"))
    monkeypatch.setattr(scripts.all.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert scripts.all.mkl_needs_telling() is needs


def test_a_benchmark_that_ends_badly_is_told_with_its_last_words(scripts, tmp_path):
    script = tmp_path / "failing.py"
    script.write_text("import sys; print('{}'); sys.exit('the disk is full')")
    given = SimpleNamespace(quick=False, rounds=None)
    found, why = scripts.all.run(scripts.all.Part("training_not", str(script)), given)
    assert found is None
    assert why.endswith("1: the disk is full")


def run_all(*options):
    return subprocess.run([sys.executable, str(BENCHMARKS / "all.py"), *options], capture_output=True, text=True)


@pytest.mark.slow
def test_a_real_comparison_comes_into_the_page(scripts, tmp_path):
    page = tmp_path / "performance.md"
    page.write_text(PAGE.read_text())
    done = run_all("--only", "cli_start", "--rounds", "1", "--page", str(page))
    assert done.returncode == 0, done.stderr
    before, after = PAGE.read_text(), page.read_text()
    start, end = scripts.tables.span(after, "cli_start")
    found = scripts.tables.read_table(after[start:end])
    assert {row[:2] for row in found.rows} >= {
        (f"aifx {command}", "a bare typer program") for command in ("--help", "runs ls")
    }
    old_start, old_end = scripts.tables.span(before, "cli_start")
    assert after[:start] + after[end:] == before[:old_start] + before[old_end:]
    assert after[start:end].strip() in done.stdout


def test_what_is_wrong_is_told_before_anything_is_measured(tmp_path):
    page = tmp_path / "performance.md"
    page.write_text("# No tables\n")
    done = run_all("--only", "cli_start", "--page", str(page))
    assert (done.returncode, page.read_text()) == (2, "# No tables\n")
    assert "no table cli_start" in done.stderr
    page.write_text("<!-- table cli_start -->\n| a | b |\n<!-- end of cli_start -->\n")
    done = run_all("--only", "cli_start", "--page", str(page))
    assert (done.returncode, done.stdout) == (2, "")
    assert "other columns" in done.stderr
    done = run_all("--only", "typing")
    assert done.returncode == 2
    assert "no table typing" in done.stderr

"""The page of a bench, as a browser shows it: all of it there, nothing asked of a network, readable wide and narrow."""

import subprocess
import sys
from functools import cache
from itertools import combinations, groupby
from pathlib import Path

import bench_reports as made
import numpy as np
import pytest
from browser import CHROMIUM, Browser
from matplotlib.image import imread

from aifx.benchmarking.page import MOST_TRENDS, history_page, report_page
from aifx.benchmarking.plots import pictures
from aifx.benchmarking.results import Failure, Measured, Report, Result

NASTY = (
    '</title></svg><script>alert("1")</script><img src="http://evil.example/x.png" onerror=alert(1)>&amp;{{ 7 * 7 }}'
)
LEAST_PX = 9.0

# Every text on screen: what it says, its size there and where it is; of those in a picture, also the picture's place.
TEXTS = """
(() => {
  document.querySelectorAll("details").forEach(one => one.open = true);
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const found = [];
  while (walker.nextNode()) {
    const text = walker.currentNode, parent = text.parentElement, svg = parent.closest("svg");
    const range = document.createRange();
    range.selectNodeContents(text);
    const box = range.getBoundingClientRect();
    if (!text.data.trim() || parent.tagName === "title" || !box.width) continue;
    const scale = svg ? svg.getBoundingClientRect().width / svg.viewBox.baseVal.width : 1;
    const around = svg ? svg.getBoundingClientRect() : null;
    found.push({
      text: text.data.trim(),
      px: parseFloat(getComputedStyle(parent).fontSize) * scale,
      box: [box.left, box.top, box.right, box.bottom],
      picture: svg ? [...document.querySelectorAll("svg")].indexOf(svg) : -1,
      around: around ? [around.left, around.top, around.right, around.bottom] : null,
      turned: /rotate\\(-?(?!0[ )])\\d/.test(parent.getAttribute("transform") || ""),
    });
  }
  return found;
})()
"""


@cache
def full_report() -> Report:
    return made.report(*made.hardware(), *made.kernels(), *made.train())


@cache
def gpu_report() -> Report:
    rates = {"peak": 7e14, "memory": 2.9e12}
    results = [*made.hardware(**rates, cache=9e12), *made.kernels(**rates), *made.train()]
    return made.report(*results, machine=made.H100)


def two_roofs() -> Report:
    """Kernels that all but reach the lower one."""
    products = [
        made.result("hardware.matmul", 1.0, flops=flops, params={"dtype": dtype, "size": 1024})
        for dtype, flops in (("float32", 1e11), ("int8", 4e11))
    ]
    kernels = [
        made.result("kernels.swiglu", 0.011, flops=1e9, num_bytes=1e9 / ratio, params={"case": case, "dtype": dtype})
        for case, ratio, dtype in (("a", 400, "float32"), ("b", 1000, "float32"), ("c", 40, "int8"))
    ]
    return made.report(*products, *made.hardware()[8:28], *kernels)


def history() -> list[Report]:
    """Reports of five days; on the fourth the step is 12 % slower, on the second another machine measured."""
    days = []
    for day in range(5):
        results = [*made.train(0.134 if day >= 3 else 0.12), *made.hardware()[:2]]
        machine = made.CPU | {"cores": 64} if day == 1 else made.CPU
        commit = f"{day}{day}aa{day}{day}bb00"
        days.append(made.report(*results, machine=machine, commit=commit, time=1.79e9 + 86_400 * day))
    return days


def zeros() -> list[Result]:
    """Samples of a clock that is too coarse."""
    found = [made.result(name, 0.0, noise=0.0) for name in ("train.loop", "train.forward", "train.data_wait")]
    for axis, value in (("batch", 2), ("batch", 4), ("seq", 0), ("seq", 4), ("depth", 2), ("depth", 2)):
        seconds = float(axis != "batch")
        found.append(made.result("train.growth", seconds, noise=0.0, params={"axis": axis, "value": value}))
    for implementation in ("xla", "reference"):
        params = {"case": "a", "implementation": implementation, "dtype": "float32"}
        found.append(
            made.result(
                "kernels.rotary", 0.0, noise=0.0, num_bytes=1e6, params=params, figures={"elementwise_flops": 1e6}
            )
        )
    return found


def long_names() -> list[Result]:
    return [
        made.result("hardware.copy", 0.1, num_bytes=1e9, params={"direction": f"{name}_of_this_host" * 3, "size": 1024})
        for name in ("to_device", "to_host")
    ]


PAGES = {
    "full": lambda: report_page(full_report()),
    "gpu": lambda: report_page(gpu_report()),
    "two roofs": lambda: report_page(two_roofs()),
    "quick": lambda: report_page(
        made.report(*(r for r in made.hardware(7e14, 2.9e12) if r.params.get("size") == 1024), machine=made.H100)
    ),
    "failed": lambda: report_page(
        made.report(
            *(
                r.model_copy(update={"params": {"implementation": r.params["implementation"], "case": NASTY}})
                for r in made.kernels()[:4]
            ),
            machine=made.CPU | {"host": NASTY, "cpu": NASTY},
            notes=[NASTY],
            failure=Failure(what=NASTY, why=NASTY, hint="aifx bench hardware"),
        )
    ),
    "empty": lambda: report_page(made.report()),
    "one": lambda: report_page(made.report(made.kernels()[0].model_copy(update={"roofline_fraction": None}))),
    "zero": lambda: report_page(made.report(*zeros())),
    "long": lambda: report_page(made.report(*long_names())),
    "history": lambda: history_page("main", history()),
}


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    for name, make in PAGES.items():
        (folder / f"{name}.html").write_text(make(), "utf-8")
    return folder


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("no chromium here: pages are not looked at")
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.mark.covering(1)
@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_readable_and_asks_for_nothing(name, width, pages, browser, tmp_path):
    browser.open(pages / f"{name}.html", width)
    shot = imread(browser.screenshot(tmp_path / "shot.png"))
    assert shot.shape[1] == width // 2
    for left, top, right, bottom in browser.ask(
        """[...document.querySelectorAll("svg.picture")].map(svg => {
            const box = svg.getBoundingClientRect();
            return [box.left, box.top + scrollY, box.right, box.bottom + scrollY].map(edge => Math.round(edge / 2));
        })"""
    ):
        seen = shot[top:bottom:2, left:right, :3].reshape(-1, 3)
        assert len(np.unique((seen * 8).astype(int), axis=0)) > 3, f"nothing is drawn at {left}, {top}"
    texts = browser.ask(TEXTS)
    assert browser.requests == [(pages / f"{name}.html").as_uri()]
    assert browser.errors == []
    assert browser.ask("document.documentElement.scrollWidth") <= width
    ids = browser.ask("""[...document.querySelectorAll("[id]")].map(one => one.id)""")
    used = browser.ask("""[...document.querySelectorAll("use")].map(one => one.getAttribute("xlink:href").slice(1))""")
    assert len(ids) == len(set(ids))
    assert set(used) <= set(ids)
    assert [text for text in texts if text["box"][0] < 0 or text["box"][2] > width] == []
    assert [text for text in texts if text["px"] < LEAST_PX] == []
    for _, alike in groupby((text for text in texts if text["around"]), key=lambda text: text["picture"]):
        assert [(a["text"], b["text"]) for a, b in combinations(alike, 2) if covers(a, b)] == []
    cut = [text for text in texts if text["around"] and not is_within(text["box"], text["around"])]
    assert cut == []


def covers(one, other) -> bool:
    """Whether two texts of a picture stand in each other; what is turned has a box that is larger than itself."""
    if one["turned"] or other["turned"]:
        return False
    left, top, right, bottom = one["box"]
    least = 2.0  # a line's box is a little higher than its letters
    return (
        min(right, other["box"][2]) - max(left, other["box"][0]) > least
        and min(bottom, other["box"][3]) - max(top, other["box"][1]) > least
    )


def test_no_word_hides_a_kernel(pages, browser):
    browser.open(pages / "two roofs.html", 1280)
    words = [one for one in browser.ask(TEXTS) if one["picture"] == 0]
    assert {word["text"].split()[0] for word in words} >= {"int8", "float32"}
    marks = browser.ask(
        """[...document.querySelector("svg.picture").querySelectorAll("g > title")].map(title => {
            const box = title.parentElement.querySelector("use").getBoundingClientRect();
            return {text: title.textContent, turned: false, box: [box.left, box.top, box.right, box.bottom]};
        })"""
    )
    assert len(marks) == 3
    assert [(word["text"], mark["text"]) for word in words for mark in marks if covers(word, mark)] == []


def is_within(box, around) -> bool:
    return box[0] >= around[0] - 1 and box[1] >= around[1] - 1 and box[2] <= around[2] + 1 and box[3] <= around[3] + 1


def test_a_page_is_dark_where_the_reader_is(pages, browser, tmp_path):
    brightness = []
    for scheme in ("light", "dark"):
        browser.open(pages / "full.html", 1280, scheme=scheme)
        color = browser.ask("""getComputedStyle(document.querySelector("svg.picture text")).fill""")
        shot = imread(browser.screenshot(tmp_path / f"{scheme}.png"))[:, :, :3]
        brightness.append((shot.mean(), np.mean([int(part) for part in color[4:-1].split(",")])))
    (light, light_text), (dark, dark_text) = brightness
    assert light > 0.8
    assert dark < 0.25
    assert light_text < 128 < dark_text


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_tell_apart_and_stand_out(scheme, pages, browser):
    """Also for those who see no green (Machado, Oliveira, Fernandes, IEEE TVCG 15(6), 2009, severity 1)."""
    browser.open(pages / "full.html", 1280, scheme=scheme)
    found = browser.ask(
        """["--card", ...Array.from({length: 8}, (_, i) => `--series-${i}`)].map(
            name => getComputedStyle(document.documentElement).getPropertyValue(name).trim())"""
    )
    colors = [[int(part, 16) / 255 for part in rgb_of(color)] for color in found]
    linear = np.array(
        [[c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in color] for color in colors]
    )
    light = linear @ [0.2126, 0.7152, 0.0722] + 0.05
    assert np.all(np.maximum(light[1:] / light[0], light[0] / light[1:]) >= 4.5), "words within a bar are read"
    deutan = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]]
    for seen, least in ((np.eye(3), 25), (np.array(deutan), 12)):
        lab = lab_of(np.clip(linear[1:] @ seen.T, 0, 1))
        apart = np.linalg.norm(lab[:, None] - lab[None], axis=2)
        assert apart[np.triu_indices(8, 1)].min() > least


def rgb_of(color: str) -> list[str]:
    digits = color.removeprefix("#")
    return [digit * 2 for digit in digits] if len(digits) == 3 else [digits[i : i + 2] for i in (0, 2, 4)]


def lab_of(linear: np.ndarray) -> np.ndarray:
    """CIELAB under D65 of linear sRGB."""
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ to_xyz.T / [0.9505, 1.0, 1.089]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)


def test_what_was_measured_is_all_there(pages, browser):
    report = full_report()
    browser.open(pages / "full.html", 1280)
    rows = browser.ask("""[...document.querySelectorAll("table.results tbody tr")].map(row => row.textContent)""")
    assert len(rows) == len(report.results)
    drawn = browser.ask("""[...document.querySelectorAll("figcaption b")].map(title => title.textContent)""")
    assert drawn == [picture.title for picture in pictures(report)]
    assert len(drawn) == 7
    tips = browser.ask("""[...document.querySelectorAll("svg.picture title")].map(title => title.textContent)""")
    kernels = [result for result in report.results if result.name.startswith("kernels.")]
    assert sum("of its bound" in tip for tip in tips) == len(kernels)
    ticks = browser.ask("""[...document.querySelectorAll("svg.rug path:not(.median)")].length""")
    assert ticks == sum(len(result.samples_s) for result in report.results)


def test_what_ended_it_is_told_and_is_text(pages, browser):
    browser.open(pages / "failed.html", 1280)
    assert browser.ask("""document.querySelector(".failure").textContent""").count(NASTY) == 2
    assert browser.ask("""document.querySelector("h1").textContent""") == NASTY
    titles = browser.ask("""[...document.querySelectorAll("svg.picture title")].map(title => title.textContent)""")
    assert any(NASTY in title for title in titles)
    assert browser.ask("document.scripts.length + document.images.length") == 0


def test_a_history_tells_what_got_slower_first(pages, browser):
    browser.open(pages / "history.html", 1280)
    verdicts = browser.ask("""[...document.querySelectorAll("td .word")].map(word => word.textContent)""")
    assert browser.ask("document.querySelectorAll('figure').length") == min(MOST_TRENDS, len(verdicts))
    order = ["slower", "faster", "unsure", "same"]
    assert [min(order.index(verdict), 2) for verdict in verdicts] == sorted(
        min(order.index(verdict), 2) for verdict in verdicts
    )
    whole = browser.ask("document.body.textContent")
    assert "cores: 64 and 2" in whole


def test_a_history_of_one_has_no_empty_table():
    only = history()[0]
    for reports in ([only], [history()[1], only]):
        page = history_page("main", reports)
        assert "nothing to hold" in page
        assert "<h2>Since" not in page


@pytest.mark.slow
@pytest.mark.parametrize(("then", "now", "verdict"), [(1.0, 0.0, "faster"), (0.0, 1.0, "slower"), (0.0, 0.0, "")])
def test_a_history_of_no_time_at_all(then, now, verdict):
    reports = [
        made.report(made.result("train.step", seconds, launches=5), time=1.79e9 + day)
        for day, seconds in enumerate((then, now))
    ]
    assert verdict in history_page("main", reports)


@pytest.mark.slow
def test_a_page_names_a_command_that_can_be_run():
    report = made.report(*made.hardware()[:2], *made.train()[:2])
    assert "<code>aifx bench all</code>" in report_page(report)
    quick = report.request.model_copy(update={"suites": ["train"], "quick": True})
    assert "<code>aifx bench train --quick</code>" in report_page(report.model_copy(update={"request": quick}))


@pytest.mark.slow
def test_the_same_report_makes_the_same_page():
    report = made.report(*made.kernels()[:8], *made.train())
    assert report_page(report) == report_page(report)


@pytest.mark.slow
def test_a_picture_is_drawn_only_of_what_there_is():
    assert pictures(made.report()) == []
    parts = made.report(*made.train()[:5])
    assert [p.title for p in pictures(parts)] == ["A training step"]
    one_size = [result for result in made.hardware() if result.params.get("size") == 256]
    assert [p.title for p in pictures(made.report(*one_size))] == ["Matrix products"]
    assert pictures(made.report(*one_size[:1])) == []
    assert "data sheet" in [key.label for key in pictures(gpu_report())[0].keys]
    assert "data sheet" not in [key.label for key in pictures(full_report())[0].keys]


@pytest.mark.slow
def test_nobody_s_settings_and_no_pyplot_are_in_it(tmp_path):
    """A matplotlibrc changes nothing, and what is drawn leaves nothing behind for who draws next in this process."""
    code = (
        "import sys; from matplotlib import rcParams; names = 'font.size', 'axes.facecolor', 'svg.hashsalt'; "
        "before = [rcParams[name] for name in names]; import bench_reports as made; "
        "from aifx.benchmarking.plots import pictures; print(pictures(made.report(*made.train()))[0].svg); "
        "assert before == [rcParams[name] for name in names]; assert 'matplotlib.pyplot' not in sys.modules"
    )
    (tmp_path / "matplotlibrc").write_text("font.size: 30\naxes.facecolor: red\nsvg.fonttype: path\n")
    environ = {"PYTHONPATH": str(Path(__file__).parent), "MPLCONFIGDIR": str(tmp_path), "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True, env=environ
    )
    plain = pictures(made.report(*made.train()))[0].svg
    assert done.stdout.strip() == plain.strip()
    assert "<text" in plain


@pytest.mark.slow
def test_a_change_that_is_not_known_is_no_number():
    """A difference of two times, as the backward pass is, may come out below zero in a disturbed launch."""
    before, after = (made.report(Result.of(launches(seconds))) for seconds in (-1e-6, 1e-3))
    page = history_page("main", [before, after])
    assert "nan" not in page
    assert "-, unsure" in page


def launches(seconds: float) -> list[Measured]:
    return [Measured(name="train.backward", samples_s=[seconds, 1e-3, 1e-3]) for _ in range(5)]

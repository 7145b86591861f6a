"""The label page in a browser: by keyboard, two labellers at once, a reload, and a server that dies and comes back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from browser import CHROMIUM, Browser
from held_port import held_port
from label_rows import entries_of, labels_of, png, rows_version, texts_version
from label_server import ServedLabels

from aifx.data.versions.catalog import Catalog, open_catalog

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")]

NASTY = "</p><img src=x onerror=alert(1)> & <script>alert(2)</script>"


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return open_catalog(str(tmp_path / "datasets"))


@pytest.fixture
def port() -> Iterator[int]:
    with held_port() as found:
        yield found


@pytest.fixture
def open_browser(tmp_path: Path) -> Iterator[Callable[[str], Browser]]:
    opened: list[Browser] = []

    def start(name: str = "one") -> Browser:
        opened.append(Browser(tmp_path / name))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


def press(browser: Browser, key: str) -> None:
    for kind in ("keyDown", "keyUp"):
        browser.call(
            "Input.dispatchKeyEvent", type=kind, key=key, text=key if kind == "keyDown" and len(key) == 1 else ""
        )


def displayed_row(browser: Browser) -> str | None:
    return browser.ask("document.getElementById('card').hidden ? null : document.getElementById('card').dataset.row")


def wait_state(browser: Browser, word: str) -> None:
    browser.wait(f"document.getElementById('state').textContent.includes({word!r})")


def begin(browser: Browser, served: ServedLabels, labeller: str, width: int = 1280) -> None:
    browser.open_url("about:blank", width)
    browser.open_url(f"{served.page}&labeller={labeller}", width)
    browser.wait("document.getElementById('card')?.hidden === false")


@pytest.mark.representative("a page in the browser")
def test_fifty_labels_by_keyboard(catalog: Catalog, open_browser: Callable[..., Browser], tmp_path: Path) -> None:
    served = ServedLabels(catalog, texts_version(catalog, [NASTY, *(f"text {row}" for row in range(1, 53))]))
    browser = open_browser()
    try:
        browser.open_url(served.page, 1280)
        browser.wait("!document.getElementById('who-form').hidden")
        browser.call("Input.insertText", text="ann")
        browser.ask("document.getElementById('who-form').requestSubmit()")
        browser.wait("document.getElementById('card')?.hidden === false")
        assert browser.ask("document.querySelector('#card .text').textContent") == NASTY
        assert browser.ask("document.querySelectorAll('#card img, #card script').length") == 0
        expected = {}
        for number in range(50):
            row = displayed_row(browser)
            assert row == f"f-{number}"
            press(browser, "12"[number % 2])
            expected[row] = {"ann": ("good", "bad")[number % 2]}
            if number == 20:  # undo, and label it otherwise
                press(browser, "u")
                browser.wait("document.getElementById('card')?.dataset.row == 'f-20'")
                press(browser, "2")
                expected[row] = {"ann": "bad"}
            browser.wait(f"document.getElementById('card')?.dataset.row == 'f-{number + 1}'")
        press(browser, "s")
        browser.wait("document.getElementById('card')?.dataset.row == 'f-51'")
        press(browser, "9")  # no such label
        press(browser, "n")
        browser.call("Input.insertText", text="1 unsure")
        press(browser, "Enter")
        press(browser, "1")
        wait_state(browser, "saved")
        browser.wait(
            "document.getElementById('counts').textContent == '51 of 53 rows done; 51 labelled by you, 1 skipped'"
        )
        assert labels_of(catalog) == expected | {"f-51": {"ann": "good"}}
        entries = entries_of(catalog)
        assert [one.row for one in entries if one.action == "skip"] == ["f-50"]
        assert entries[-1].note == "1 unsure"
        assert browser.ask("document.documentElement.scrollWidth") <= 1280
        assert all(request.startswith(served.url) for request in browser.requests), browser.requests
        assert not browser.errors, browser.errors
        browser.reload()
        browser.wait("document.getElementById('card')?.dataset.row == 'f-52'")
        press(browser, "u")  # still knows what was before the reload
        browser.wait("document.getElementById('card')?.dataset.row == 'f-51'")
        press(browser, "1")
        browser.wait("document.getElementById('card')?.dataset.row == 'f-52'")
        press(browser, "1")
        browser.wait("!document.getElementById('done').hidden")
        wait_state(browser, "saved")
        assert len(labels_of(catalog)) == 52
    finally:
        served.close()


def test_two_labellers_and_a_server_that_dies(
    catalog: Catalog, open_browser: Callable[..., Browser], port: int
) -> None:
    version = texts_version(catalog, [f"text {row}" for row in range(30)])
    served = ServedLabels(catalog, version, port=port)
    browsers = {name: open_browser(name) for name in ("ann", "bob")}
    given: dict[str, list[str]] = {name: [] for name in browsers}

    def label(name: str) -> None:
        browsers[name].wait("document.getElementById('card')?.hidden === false")
        row = displayed_row(browsers[name])
        assert row is not None
        given[name].append(row)
        press(browsers[name], "1")

    try:
        for name, browser in browsers.items():
            begin(browser, served, name)
        for _ in range(4):
            for name in browsers:
                label(name)
        for browser in browsers.values():
            wait_state(browser, "saved")
        assert not set(given["ann"]) & set(given["bob"])
        served.close()
        for _ in range(3):
            label("ann")
        label("bob")
        wait_state(browsers["ann"], "connection lost: 3 kept here")
        assert len(labels_of(catalog)) == 8
        browsers["ann"].open_url("about:blank", 1280)  # even if the page is closed meanwhile
        served = ServedLabels(catalog, version, port=port)
        wait_state(browsers["bob"], "saved")
        begin(browsers["ann"], served, "ann")
        wait_state(browsers["ann"], "saved")
        found = labels_of(catalog)
        assert {row: {name: "good"} for name in given for row in given[name]} == found
        assert len(found) == 12
        assert displayed_row(browsers["ann"]) not in found
        label("ann")
        wait_state(browsers["ann"], "saved")
        assert len(entries_of(catalog)) == 13
    finally:
        served.close()


@pytest.mark.parametrize("width", [1280, 400])
def test_images_and_pairs(catalog: Catalog, open_browser: Callable[..., Browser], tmp_path: Path, width: int) -> None:
    images = [png(np.full((28, 28), shade, np.uint8)) for shade in (0, 100, 200)]
    pictures = rows_version(catalog, "pictures", {"image": images, "label": ["a", None, None]}, "images")
    texts = {"one": ["a " * 200] * 3, "two": ["b"] * 3, "ask": ["which?"] * 3}
    answers = rows_version(catalog, "answers", texts, "table")
    browser = open_browser()
    served = ServedLabels(catalog, pictures, [f"a rather long label {n}" for n in range(12)])
    try:
        begin(browser, served, "ann", width)
        browser.wait("document.querySelector('#card img').naturalWidth == 28")
        assert browser.ask("document.documentElement.scrollWidth") <= width
        assert browser.ask("document.querySelectorAll('#choices kbd').length") == 9
        browser.ask("document.querySelectorAll('#choices button')[11].click()")
        browser.wait("document.getElementById('card')?.dataset.row == 'f-1'")
        wait_state(browser, "saved")
        assert labels_of(catalog, "pictures") == {"f-0": {"ann": "a rather long label 11"}}
        assert not browser.errors, browser.errors
    finally:
        served.close()
    served = ServedLabels(catalog, answers, (), pair="one,two", labeller="eve")
    try:
        browser.open_url("about:blank", width)
        browser.open_url(f"{served.page}&labeller=eve", width)
        browser.wait("document.getElementById('card')?.hidden === false")
        better = browser.ask(
            "[...document.querySelectorAll('#card .text')].map(one => one.textContent[0]).indexOf('b')"
        )
        press(browser, str(better + 1))
        wait_state(browser, "saved")
        browser.wait("document.getElementById('counts').textContent.startsWith('1 of 3')")
        assert "which?" in browser.ask("document.getElementById('card').innerText")
        assert labels_of(catalog, "answers") == {"f-0": {"eve": "two"}}
        for _ in range(2):
            press(browser, "3")
        browser.wait("document.getElementById('counts').textContent.startsWith('3 of 3')")
        assert browser.ask("document.getElementById('undo').offsetParent !== null")  # the last label can be taken back
        assert browser.ask("document.getElementById('choices').offsetParent === null")
        assert browser.ask("document.documentElement.scrollWidth") <= width
        assert not browser.errors, browser.errors
    finally:
        served.close()

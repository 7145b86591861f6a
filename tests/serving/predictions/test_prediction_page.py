"""The page at `/` of servers of predictions, in a browser: a box for rows, and one for a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from browser import CHROMIUM, Browser

from aifx.core.project import Project

ANSWER = "document.getElementById('answer').textContent"
SEND = "document.getElementById('try').requestSubmit()"


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_rows_and_pictures_are_tried_on_the_page(
    rows_served: Any, pictures: Project, serve: Callable[..., Any], tmp_path: Path
) -> None:
    pictures_served = serve(pictures)
    browser = Browser(tmp_path / "profile")
    try:
        browser.open_url(rows_served.url, 1280)
        browser.wait("document.getElementById('label').textContent.startsWith('A row as JSON')")
        for text, answer in (
            ('{"length": 1.5, "weight": 0.5}', '"prediction": "'),
            ('{"length": 1.5}', "no field 'weight'"),
            ("{length: 1.5}", "This is not JSON: "),
        ):
            browser.ask(f"document.getElementById('prompt').value = {text!r}; {SEND}")
            browser.wait(f"{ANSWER}.includes({answer!r})")
        browser.open_url(pictures_served.url, 400)
        browser.wait("document.getElementById('label').textContent == 'A picture'")
        browser.ask(SEND)
        browser.wait(f"{ANSWER} == 'Choose a file first.'")
        root = browser.call("DOM.getDocument")["root"]["nodeId"]
        box = browser.call("DOM.querySelector", nodeId=root, selector="#file")["nodeId"]
        browser.call("DOM.setFileInputFiles", nodeId=box, files=[str(pictures.root / "data/3.png")])
        browser.ask(SEND)
        browser.wait(f"{ANSWER}.includes('probabilities')")
        assert browser.ask("document.documentElement.scrollWidth") <= 400
        assert not [error for error in browser.errors if "400" not in error], browser.errors
    finally:
        browser.close()

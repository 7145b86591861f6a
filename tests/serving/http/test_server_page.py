"""The page at `/`: strict about what it may load, silent about the model, and live in a browser."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from browser import CHROMIUM, Browser
from toy_server import Served

NASTY = "</script><img src=x onerror=alert(1)>"


def test_the_page_loads_nothing_and_needs_no_key(serve: Callable[..., Served]) -> None:
    served = serve(key="se-cret")
    answer = served.http.get("/")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for tag in ("script", "style"):
        found = re.findall(f"<{tag}>(.*?)</{tag}>", answer.text, re.DOTALL)
        assert len(found) == 1
        digest = base64.b64encode(hashlib.sha256(found[0].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", answer.text)
    assert served.state.name not in re.sub(r"<script>.*</script>", "", answer.text, flags=re.DOTALL).split()
    assert served.engine.fingerprint not in answer.text
    assert served.http.get("/status").status_code == 401


def test_the_status_is_what_the_engine_does(served: Served) -> None:
    served.http.post("/v1/completions", json={"prompt": "abc", "max_tokens": 5})
    status = served.http.get("/status").json()
    assert (status["model"], status["input"], status["route"]) == ("toy", "chat", "/v1/chat/completions")
    assert status["system_fingerprint"] == served.engine.fingerprint
    stats = served.engine.stats()
    assert {one["name"]: one["total"] for one in status["work"]}["tokens written"] == stats.generation_tokens
    latencies = {one["name"]: one for one in status["latencies"]}
    assert 0 < latencies["whole answer"]["p50_s"] <= latencies["whole answer"]["p99_s"]
    assert status["pages"]["total"] == stats.pages_total
    assert status["swaps"] == status["compilations"] == 0


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_in_a_browser(serve: Callable[..., Served], tmp_path: Path, width: int) -> None:
    served = serve(key="se-cret")
    served.state.name = NASTY
    browser = Browser(tmp_path / "profile")
    try:
        browser.open_url(served.url, width)
        browser.wait("!document.getElementById('key-form').hidden")
        browser.ask("document.getElementById('key').value = 'se-cret'")
        browser.ask("document.getElementById('key-form').requestSubmit()")
        browser.wait("document.getElementById('tiles').children.length > 5")
        assert browser.ask("document.getElementById('model').textContent") == NASTY
        assert browser.ask("document.querySelectorAll('img').length") == 0
        browser.ask("document.getElementById('prompt').value = 'abc'")
        browser.ask("document.getElementById('try').requestSubmit()")
        browser.wait("/tokens, first after/.test(document.getElementById('took').textContent)")
        assert browser.ask("document.getElementById('answer').textContent.length") > 0
        served.state.renderer, served.engine.max_model_len = None, 100  # a text, in a context of less than 256 tokens
        browser.open_url(served.url, width)
        browser.wait("document.getElementById('label').textContent == 'A text to continue'")
        browser.ask("document.getElementById('prompt').value = 'abc'")
        browser.ask("document.getElementById('try').requestSubmit()")
        browser.wait("document.getElementById('took').textContent.startsWith('97 tokens, ')")
        assert browser.ask("document.documentElement.scrollWidth") <= width
        assert all(request.startswith(served.url) for request in browser.requests), browser.requests
        assert not [error for error in browser.errors if "401" not in error], browser.errors
    finally:
        browser.close()

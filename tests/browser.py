"""A headless Chromium that is spoken to through a pipe, so that a page can be looked at with all scripts of its own
forbidden (Chrome DevTools Protocol; `--remote-debugging-pipe`: messages end with a zero byte, in on 3, out on 4)."""

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((path for name in NAMES if (path := shutil.which(name))), None)
WAIT_S = 120.0

# As 3 and 4 whatever they are here.
WIRED = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execv(sys.argv[3], sys.argv[3:])"
)


class Browser:
    """One page at a time.

    Attributes:
        requests: what was asked for since the last page began.
        errors: what it complained of: of scripts, policies, markup.
    """

    def __init__(self, profile: Path) -> None:
        assert CHROMIUM
        pipes = [fcntl.fcntl(fd, fcntl.F_DUPFD, 20) for fd in (*os.pipe(), *os.pipe())]
        commands, self._to, self._from, answers = pipes
        flags = (
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--no-first-run",
            "--disable-extensions",
        )
        self._process = subprocess.Popen(
            [sys.executable, "-c", WIRED, str(commands), str(answers), CHROMIUM, *flags,
             "--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(commands, answers), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        os.close(commands)
        os.close(answers)
        self._buffer, self._number, self._session = b"", 0, None
        self.requests: list[str] = []
        self.errors: list[str] = []
        self._session = self.call("Target.attachToTarget", targetId=self._first_page(), flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime", "Audits"):
            self.call(f"{domain}.enable")

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._to)
        os.close(self._from)

    def open(self, path: Path, width: int, height: int = 900, scheme: str = "light") -> None:
        self.open_url(path.as_uri(), width, height, scheme)

    def open_url(self, url: str, width: int, height: int = 900, scheme: str = "light") -> None:
        self.requests.clear()
        self.errors.clear()
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self._call_and_load("Page.navigate", url=url)

    def reload(self) -> None:
        self._call_and_load("Page.reload")

    def ask(self, expression: str):
        """The value of a JavaScript expression."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait(self, expression: str) -> None:
        """Wait until a JavaScript expression is true."""
        until = time.monotonic() + WAIT_S
        while not self.ask(expression):
            assert time.monotonic() < until, (expression, self.errors, self.ask("document.body.innerText"))
            time.sleep(0.1)

    def screenshot(self, path: Path) -> Path:
        """All of the page, at half its size."""
        size = self.ask("[innerWidth, document.documentElement.scrollHeight]")
        clip = {"x": 0, "y": 0, "width": size[0], "height": size[1], "scale": 0.5}
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(shot["data"]))
        return path

    def call(self, method: str, **params):
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + WAIT_S
        while True:
            answer = self._read(until)
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]

    def _call_and_load(self, method: str, **params) -> None:
        self._loaded = False
        self.call(method, **params)
        until = time.monotonic() + WAIT_S
        while not self._loaded:
            self._read(until)

    def _first_page(self) -> str:
        until = time.monotonic() + WAIT_S
        while True:
            targets = self.call("Target.getTargets")["targetInfos"]
            if pages := [target["targetId"] for target in targets if target["type"] == "page"]:
                return pages[0]
            assert time.monotonic() < until, "the browser has opened no page"
            time.sleep(0.05)

    def _read(self, until: float):
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._from], [], [], max(until - time.monotonic(), 0))
            assert ready, f"the browser says nothing for {WAIT_S:.0f} s"
            read = os.read(self._from, 1 << 20)
            assert read, "the browser has ended"
            self._buffer += read
        line, _, self._buffer = self._buffer.partition(b"\0")
        message = json.loads(line)
        match message.get("method"), message.get("params"):
            case "Network.requestWillBeSent", params:
                self.requests.append(params["request"]["url"])
            case "Page.loadEventFired", _:
                self._loaded = True
            case "Log.entryAdded", params:
                self.errors.append(params["entry"]["text"])
            case "Runtime.exceptionThrown" | "Audits.issueAdded" | "Runtime.consoleAPICalled", params:
                self.errors.append(json.dumps(params))
        return message

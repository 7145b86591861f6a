"""Signals from the entry point to the exit: one exit code, one document, no traceback, wherever they hit."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from program import environ, probe

HOOKED = """
import os, sys
class Counting:
    # Sends the signal to this process when it imports its N-th module.
    def find_spec(self, name, path=None, target=None):
        Counting.left -= 1
        if Counting.left == 0:
            os.kill(os.getpid(), Counting.number)
Counting.left, Counting.number = map(int, sys.argv[1:3])
from aifx.core import lifecycle
from aifx.commands.main import main
lifecycle.ENDING_S = 600
sys.argv[:] = ["aifx", *sys.argv[3:]]
sys.meta_path.insert(0, Counting())
main()
"""
CODES = {signal.SIGINT: 130, signal.SIGTERM: 75}


def start(folder: Path, number: int, at: int, *args: str) -> subprocess.CompletedProcess[str]:
    """`aifx args`, which gets the signal `number` at its import `at`."""
    return subprocess.run(
        [sys.executable, "-c", HOOKED, str(at), str(int(number)), *args],
        cwd=folder,
        env=environ(folder),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def assert_one_document(done: subprocess.CompletedProcess[str], code: int) -> None:
    assert done.returncode == code, done
    assert "Traceback" not in done.stderr
    document = json.loads(done.stdout)
    assert document["schema_version"] == 1
    if "error" in document:
        assert document["error"]["exit_code"] == code


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "aifx.toml").write_text('[task]\nkind = "tiny:TinyTask"\n')
    shutil.copy(Path(__file__).parents[1] / "training" / "tiny.py", tmp_path)
    return tmp_path


@pytest.mark.parametrize("number", CODES)
@pytest.mark.parametrize("at", [1, 40, 200])
def test_while_a_command_is_imported(project: Path, number: int, at: int) -> None:
    assert_one_document(start(project, number, at, "runs", "ls", "--json"), CODES[signal.Signals(number)])


@pytest.mark.parametrize(("number", "at"), [(signal.SIGINT, 90), (signal.SIGTERM, 350), (signal.SIGINT, 800)])
def test_while_training_is_imported(project: Path, number: int, at: int) -> None:
    assert_one_document(start(project, number, at, "train", "--json"), CODES[signal.Signals(number)])


def test_without_json_it_is_an_error(project: Path) -> None:
    done = start(project, signal.SIGTERM, 1, "runs", "ls")
    assert (done.returncode, done.stdout, done.stderr) == (75, "", "error: interrupted\n  SIGTERM\n")


def test_for_a_caller_with_codes_of_its_own(project: Path) -> None:
    done = start(project, signal.SIGTERM, 40, "doctor", "--format", "nagios")
    assert done.returncode == 3
    assert done.stdout.startswith("AIFX UNKNOWN - interrupted")


UNHURRIED = "from aifx.core import lifecycle; lifecycle.ENDING_S = 600\n"
"""The time for an answer is not what these tests are about."""

SENT = "import signal; os.kill(os.getpid(), signal.{})\n"
BODIES = {
    "in the body": ("SIGTERM", 75, "import time; {}time.sleep(600)"),
    "turned into another error": (
        "SIGINT",
        130,
        "import time\ntry:\n    {}    time.sleep(600)\nexcept KeyboardInterrupt:\n    raise ImportError",
    ),
    "where Python drops exceptions": (
        "SIGINT",
        130,
        "import gc, time\ndef collected(*_):\n    gc.callbacks.remove(collected)\n    {}    time.sleep(0.1)\n"
        "gc.callbacks.append(collected); gc.collect(); time.sleep(600)",
    ),
    "where Python drops exceptions, on a busy machine": (  # on which it takes long to report one
        "SIGINT",
        130,
        "import _thread, gc, time\nstart = _thread.start_new_thread\n"
        "_thread.start_new_thread = lambda *args: (start(*args), time.sleep(0.5))\n"
        "def collected(*_):\n    gc.callbacks.remove(collected)\n    {}    time.sleep(0.1)\n"
        "gc.callbacks.append(collected); gc.collect(); time.sleep(600)",
    ),
    "where Python drops exceptions, just before a sleep": (  # which the signal does not end then
        "SIGINT",
        130,
        "import _thread, gc, time, signal\nkill = signal.pthread_kill\n"
        "signal.pthread_kill = lambda to, n: _thread.interrupt_main(n) if n == signal.SIGINT else kill(to, n)\n"
        "def collected(*_):\n    gc.callbacks.remove(collected)\n    {}    time.sleep(0.1)\n"
        "gc.callbacks.append(collected); gc.collect(); time.sleep(600)",
    ),
    "SIGTERM where Python drops exceptions": (
        "SIGTERM",
        75,
        "import time\nclass Odd:\n    def __del__(self):\n        {}        time.sleep(0.1)\nOdd(); time.sleep(600)",
    ),
    "outside of the interpreter": (
        "SIGTERM",
        75,
        "import ctypes; lifecycle.MAIN_THREAD_S = 0.2\n"
        "lock = ctypes.CDLL(None).pthread_mutex_lock; mutex = ctypes.create_string_buffer(64)\n"
        "lock(mutex); __import__('threading').Timer(0.2, lambda: os.kill(os.getpid(), 15)).start(); lock(mutex)",
    ),
    "a second one": (
        "SIGTERM",
        75,
        "import time\ntry:\n    {}    time.sleep(600)\nexcept KeyboardInterrupt:\n    {}    time.sleep(600)",
    ),
}


@pytest.mark.parametrize("case", BODIES)
def test_in_a_command(tmp_path: Path, case: str) -> None:
    name, code, body = BODIES[case]
    done = probe(tmp_path, UNHURRIED + body.replace("{}", SENT.format(name)), "--json", stdin=subprocess.DEVNULL)
    assert_one_document(done, code)
    assert "error" in json.loads(done.stdout)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_while_the_process_exits_the_answer_stands(tmp_path: Path, name: str) -> None:
    """Handlers of Python's are gone when it finalizes: the system's would kill the process."""
    body = f"""
{UNHURRIED}
import atexit, signal
number = signal.{name}
atexit.register(os.kill, os.getpid(), number)
class Last:
    def __del__(self, kill=os.kill, pid=os.getpid(), number=number): kill(pid, number)
sys.modules["last of all"] = Last()
out.document({{"answer": 1}})
"""
    done = probe(tmp_path, body, "--json")
    assert_one_document(done, 0)
    assert json.loads(done.stdout)["answer"] == 1
    assert done.stderr == ""


def test_while_the_answer_is_written_a_second_one_ends_it(tmp_path: Path) -> None:
    """The reader of stdout has stalled."""
    body = f"""
import threading, signal
reader, writer = os.pipe()
os.dup2(writer, 1)
for after_s in (0.3, 0.6):
    threading.Timer(after_s, os.kill, (os.getpid(), signal.SIGTERM)).start()
out.document({{"answer": "x" * {1 << 20}}})
"""
    assert probe(tmp_path, body, "--json").returncode == 75


SERVER = """
from aifx.core.web.traffic import AccessLog, AccessRecord
from aifx.core.web.app import make_app
from aifx.core.web.policy import Policy
from aifx.core.web.server import HttpServer
from aifx.core.web.server import bind
def terminate(): os.kill(os.getpid(), signal.SIGTERM)
server = HttpServer(make_app([], Policy()), bind("127.0.0.1", 0, port_hint=""))
"""
STALLED = {
    "with an access log": (
        0,
        f"{SERVER}log = AccessLog(None); log.write(AccessRecord('id', 'client', 'GET', '/'))\n"
        "assert server.run(terminate).signum == signal.SIGTERM\nlog.close()",
    ),
    "by a second signal": (
        75,
        f"{SERVER}async def drain(server):\n    terminate(); time.sleep(600)\n"
        "HttpServer._drain = drain\nserver.run(terminate)",
    ),
    "in the body": (
        75,
        "try:\n    os.kill(os.getpid(), 15); time.sleep(600)\n"
        "except KeyboardInterrupt:\n    os.kill(os.getpid(), 15); time.sleep(600)",
    ),
    "at its limit": (124, "with lifecycle.exit_after(0.01, 124, 'too late'):\n    time.sleep(600)"),
}


@pytest.mark.parametrize("case", STALLED)
def test_a_process_ends_although_the_reader_of_stderr_has_stalled(tmp_path: Path, case: str) -> None:
    code, body = STALLED[case]
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with suppress(BlockingIOError):
        while os.write(writer, b"x" * 4096):
            pass
    os.set_blocking(writer, True)
    body = f"import signal, time\nfrom aifx.core import lifecycle\nlifecycle.ENDING_S = 0.1\n{body}"
    done = probe(tmp_path, body, env={"PYTHONUNBUFFERED": ""}, stderr=writer)
    os.close(reader)
    os.close(writer)
    assert done.returncode == code


def test_a_forked_child_ends_as_any_process_does(tmp_path: Path) -> None:
    body = """
import signal
child = os.fork()
if not child:
    os.kill(os.getpid(), signal.SIGTERM)
    os._exit(3)
assert os.waitpid(child, 0)[1] == signal.SIGTERM
out.document({"answer": 1})
"""
    assert_one_document(probe(tmp_path, body, "--json"), 0)

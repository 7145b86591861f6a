"""The processes of a job and their watch over each other, as threads and as real processes."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest

from aifx.core.errors import AifxError, DataError, EnvironmentFault
from aifx.parallel.connections import Connection, _hello
from aifx.parallel.group import Group, Limits, PeerLost
from aifx.parallel.joined_group import JoinedGroup
from aifx.parallel.processes import Membership
from aifx.parallel.progress import Progress, find_stuck

SOON = Limits(connect_s=5.0, silence_s=1.0, stuck_s=60.0)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def member(index: int, size: int, port: int) -> Membership:
    return Membership("a test", f"127.0.0.1:{port}", size, index)


class Job:
    """Several members of one job, each in a thread, and what they heard of losses."""

    def __init__(self, size: int, limits: Limits = SOON) -> None:
        self.losses: dict[int, PeerLost] = {}
        self.can_end = threading.Event()
        """Until then, process 0 is busy with a loss."""
        self.can_end.set()
        port = free_port()

        def join(index: int) -> JoinedGroup:
            def on_loss(error: PeerLost) -> None:
                self.losses[index] = error
                if index == 0:
                    self.can_end.wait(10)

            return JoinedGroup(member(index, size, port), "127.0.0.1", limits, on_loss)

        with ThreadPoolExecutor(size) as pool:
            self.groups = list(pool.map(join, reversed(range(size))))[::-1]

    def each(self, call: Callable[[JoinedGroup], Any]) -> list[Any]:
        with ThreadPoolExecutor(len(self.groups)) as pool:
            return list(pool.map(call, self.groups))

    def wait_for_losses(self, count: int) -> None:
        deadline = time.monotonic() + 10
        while len(self.losses) < count and time.monotonic() < deadline:
            time.sleep(0.005)
        assert len(self.losses) == count, self.losses


def test_messages_between_processes() -> None:
    job = Job(4)
    gathered = job.each(lambda group: group.gather({"index": group.index, "text": "é" * 100_000}))
    assert [found["index"] for found in gathered[0]] == [0, 1, 2, 3]
    assert gathered[1:] == [[], [], []]
    assert job.each(lambda group: group.broadcast([group.index])) == [[0]] * 4
    job.each(JoinedGroup.finish)
    time.sleep(0.1)
    assert job.losses == {}


def test_a_message_right_behind_the_welcome() -> None:
    for _ in range(20):
        port = free_port()

        def join(index: int, port: int = port) -> Any:
            group = JoinedGroup(member(index, 2, port), "127.0.0.1", SOON)
            found = group.broadcast(index)
            group.finish()
            return found

        with ThreadPoolExecutor(2) as pool:
            assert list(pool.map(join, range(2), timeout=10)) == [0, 0]


def test_process_0_goes_first() -> None:
    job, order = Job(3), []

    def turn(group: Group) -> None:
        with group.first_then_others():
            time.sleep(0.05 if group.is_first else 0)
            order.append(group.index)

    job.each(turn)
    assert order[0] == 0
    assert sorted(order) == [0, 1, 2]
    job.each(JoinedGroup.finish)


def test_a_job_of_one() -> None:
    alone = Group()
    assert alone.gather(3) == [3]
    assert alone.broadcast(4) == 4
    with alone.first_then_others():
        pass
    alone.finish()


def test_the_failure_of_one_ends_all_with_its_code() -> None:
    job = Job(3)
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(job.groups[index].broadcast) for index in (1,)]
        waiting.append(pool.submit(job.groups[0].gather, None))
        job.groups[2].fail(DataError("no such file: corpus.txt", "data.train names it", "ls corpus"))
        for one in waiting:
            with pytest.raises(PeerLost) as raised:
                one.result()
            assert "process 2" in raised.value.what
            assert raised.value.why == "no such file: corpus.txt: data.train names it"
            assert raised.value.hint == "ls corpus"
            assert raised.value.exit_code == 2
    job.wait_for_losses(2)
    assert sorted(job.losses) == [0, 1]


def test_the_failure_of_process_0() -> None:
    job = Job(3)
    job.groups[0].fail(AifxError("the disk is full"))
    job.wait_for_losses(2)
    assert {error.exit_code for error in job.losses.values()} == {2}


@pytest.mark.parametrize("failing", [1, 2])
def test_all_wait_until_process_0_knows_what_helps(failing: int) -> None:
    job = Job(3, Limits(connect_s=5.0, silence_s=0.3, stuck_s=60.0))
    job.can_end.clear()
    with ThreadPoolExecutor(1) as pool:
        holding = pool.submit(job.groups[failing].hold, AifxError("out of memory"))
        job.wait_for_losses(1)
        assert f"process {failing}" in job.losses[0].what
        time.sleep(0.6)  # longer than the others may be silent
        assert list(job.losses) == [0]
        assert not holding.done()
        other = job.groups[3 - failing].loss_behind(RuntimeError("Gloo: connection closed by peer"))
        assert other is not None
        job.can_end.set()
        holding.result(5)
    job.wait_for_losses(3)
    assert [error.exit_code for error in job.losses.values()] == [2, 2, 2]


def test_all_wait_for_process_0_if_that_fails_itself() -> None:
    job = Job(3)
    job.groups[0].hold(AifxError("out of memory"))
    failing = threading.Thread(target=job.groups[1].hold, args=[AifxError("out of memory, too")])
    failing.start()
    time.sleep(0.2)
    assert job.losses == {}
    assert job.groups[0].loss_behind(AifxError("its own")) is None
    job.groups[0].fail(AifxError("out of memory", "", "use less"))
    job.wait_for_losses(2)
    failing.join(5)
    assert sorted(job.losses) == [1, 2]
    assert {error.exit_code for error in job.losses.values()} == {2}


def test_all_must_come() -> None:
    port, limits = free_port(), Limits(connect_s=0.5)
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(JoinedGroup, member(i, 4, port), "127.0.0.1", limits) for i in (0, 2)]
        errors = [future.exception() for future in futures]
    for error in errors:
        assert isinstance(error, EnvironmentFault)
        assert "2 of 4 processes did not come: 1, 3" in error.what


def test_process_0_is_not_there() -> None:
    began = time.monotonic()
    with pytest.raises(EnvironmentFault, match="did not reach process 0 at 127") as raised:
        JoinedGroup(member(1, 2, free_port()), "127.0.0.1", Limits(connect_s=0.3))
    assert time.monotonic() - began < 5
    assert "AIFX_COORDINATOR" in raised.value.hint


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(EnvironmentFault, match="cannot listen"):
        JoinedGroup(member(0, 2, server.getsockname()[1]), "127.0.0.1", SOON)


def test_two_with_one_number_and_strangers() -> None:
    port = free_port()
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(JoinedGroup, member(0, 3, port), "127.0.0.1", SOON)
        second = pool.submit(JoinedGroup, member(1, 3, port), "127.0.0.1", SOON)
        time.sleep(0.2)
        for text in (b"GET / HTTP/1.1\r\n\r\n", b'{"process": "x"}\n', b"", b"\xff" * 100 + b"\n"):
            with socket.create_connection(("127.0.0.1", port)) as stranger:
                stranger.sendall(text)
        with pytest.raises(EnvironmentFault, match="two processes say that they are process 1"):
            JoinedGroup(member(1, 3, port), "127.0.0.1", SOON)
        with pytest.raises(EnvironmentFault, match=r"process 2 on .* is not of this job"):
            JoinedGroup(member(2, 4, port), "127.0.0.1", SOON)
        third = JoinedGroup(member(2, 3, port), "127.0.0.1", SOON)
        groups = [first.result(), second.result(), third]
        list(pool.map(JoinedGroup.finish, groups))


def test_who_is_stuck() -> None:
    everyone = {index: Progress(position=3, moved_at=0.0) for index in range(3)}
    assert list(find_stuck(everyone, 100.0, 10.0)) == []  # all wait for one thing
    everyone[1].advance("step 4")
    everyone[1].moved_at = 100.0
    assert list(find_stuck(everyone, 100.0, 10.0)) == []  # the others are behind since this moment
    everyone[2].position, everyone[2].moved_at = 4, 105.0
    assert list(find_stuck(everyone, 109.0, 10.0)) == []
    assert list(find_stuck(everyone, 111.0, 10.0)) == [0]
    everyone[0].waits = True  # for all others, of which none is behind the leading one
    assert list(find_stuck(everyone, 111.0, 10.0)) == []


def test_a_process_that_is_stuck() -> None:
    job = Job(2, Limits(connect_s=5.0, silence_s=1.0, stuck_s=0.6))  # process 0 hears three times in between
    job.groups[1].mark("step 5")
    for _ in range(3):
        job.groups[0].mark("step 7")
    job.wait_for_losses(2)
    assert "process 1" in job.losses[0].what
    assert "step 5" in job.losses[1].what
    assert job.losses[0].exit_code == 75


def test_a_process_that_goes_on_is_not_stuck() -> None:
    """Process 0, behind the other for longer than the limit."""
    job = Job(2, Limits(connect_s=5.0, silence_s=1.0, stuck_s=0.8))
    for step in range(50):
        job.groups[1].mark(f"step {step}")
    for step in range(10):
        time.sleep(0.15)
        job.groups[0].mark(f"step {step}")
    assert job.losses == {}
    job.each(JoinedGroup.finish)


def test_a_process_that_reports_progress_is_not_stuck() -> None:
    """Others hear of it within a phase, too."""
    job = Job(3, Limits(connect_s=5.0, silence_s=1.0, stuck_s=0.8))

    def work(group: JoinedGroup, index: int) -> None:
        for _ in range(10 if group.index == index else 0):
            time.sleep(0.15)
            group.work_on()

    def prepare(group: JoinedGroup) -> None:
        with group.first_then_others():  # process 0 works alone, then process 2 does
            work(group, 0 if group.is_first else 2)
        group.barrier()

    job.each(prepare)
    job.each(JoinedGroup.finish)
    assert job.losses == {}


def test_process_0_that_waits_is_not_the_one_that_is_stuck() -> None:
    """All wait for process 1, which works: process 0 for its value, process 2 for what process 0 makes of it."""
    job = Job(3, Limits(connect_s=5.0, silence_s=1.0, stuck_s=0.8))

    def count(group: JoinedGroup) -> dict[str, int]:
        for _ in range(10 if group.index == 1 else 0):
            time.sleep(0.15)
            group.work_on()
        return group.total({"rows": 1})

    assert job.each(count) == [{"rows": 3}] * 3
    job.each(JoinedGroup.finish)
    assert job.losses == {}


@pytest.mark.parametrize("stuck", [0, 1])
def test_a_process_that_others_wait_for_is_stuck(stuck: int) -> None:
    """In each call that needs a value of every process, also of process 0."""
    job = Job(3, Limits(connect_s=5.0, silence_s=1.0, stuck_s=0.3))

    def wait(group: Group) -> None:
        with suppress(PeerLost):
            group.barrier()

    for group in job.groups:
        if group.index != stuck:
            threading.Thread(target=wait, args=[group], daemon=True).start()
    job.wait_for_losses(3)
    assert f"process {stuck}" in job.losses[2].what
    assert "processes.stuck_timeout_s=0.6" in job.losses[2].hint


def test_a_failure_is_read_although_nothing_can_be_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job(2)
    (peer,) = job.groups[0]._peers.values()

    def fail() -> None:
        raise BrokenPipeError

    monkeypatch.setattr(peer.connection, "flush", fail)
    job.groups[1].fail(DataError("no such file: corpus.txt"))
    job.wait_for_losses(1)
    assert "corpus.txt" in job.losses[0].why
    assert job.losses[0].exit_code == 2


def test_what_came_before_a_connection_broke() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        sender = socket.create_connection(server.getsockname())
        connection = Connection(server.accept()[0])
    sender.sendall(b'{"lost": 1}\n{"lost": 2}\n')
    sender.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sender.close()  # by a reset
    time.sleep(0.05)
    assert connection.take() == [{"lost": 1}, {"lost": 2}]
    assert connection.take() == []
    assert connection.is_closed
    connection.socket.close()


def test_the_last_message_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that comes between the moments when the thread takes its orders and when it looks whether to end."""
    job = Job(2)
    group, failing = job.groups[0], []
    take_orders = group._take_orders

    def pause() -> None:
        take_orders()
        if not failing:
            failing.append(threading.Thread(target=group.fail, args=[AifxError("the disk is full")]))
            failing[0].start()
            while not group._is_over:
                time.sleep(0.001)

    monkeypatch.setattr(group, "_take_orders", pause)
    job.wait_for_losses(1)
    failing[0].join(5)
    assert "the disk is full" in job.losses[1].why
    assert job.losses[1].exit_code == 2


def test_calls_after_the_end() -> None:
    """None blocks, and those of a job that lost a process raise."""
    job = Job(2)
    job.groups[0].fail(AifxError("the disk is full"))
    job.wait_for_losses(1)
    with pytest.raises(PeerLost, match="process 0"):
        job.groups[1].gather(None)

    def mark() -> None:
        for _ in range(3000):  # more than a socket holds
            job.groups[0]._wake()

    waking = threading.Thread(target=mark, daemon=True)
    waking.start()
    waking.join(5)
    assert not waking.is_alive()


def say_hello(index: int, size: int, port: int) -> socket.socket:
    """The connection of a process that has come, and dies before all are there."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        with suppress(ConnectionRefusedError):
            connection = Connection(socket.create_connection(("127.0.0.1", port)))
            connection.put(_hello(member(index, size, port)))
            connection.socket.shutdown(socket.SHUT_WR)
            connection.socket.settimeout(5)
            return connection.socket
        time.sleep(0.01)
    raise TimeoutError


def test_a_process_that_died_and_was_started_again() -> None:
    port = free_port()
    with ThreadPoolExecutor(3) as pool:
        joining = [pool.submit(JoinedGroup, member(0, 3, port), "127.0.0.1", SOON)]
        with say_hello(1, 3, port) as died:
            time.sleep(0.1)
            joining.append(pool.submit(JoinedGroup, member(1, 3, port), "127.0.0.1", SOON))
            assert died.recv(1) == b""  # the new one has its place
        joining.append(pool.submit(JoinedGroup, member(2, 3, port), "127.0.0.1", SOON))
        list(pool.map(JoinedGroup.finish, [future.result() for future in joining]))


def test_all_others_died_before_all_were_there(monkeypatch: pytest.MonkeyPatch) -> None:
    port, losses, failed = free_port(), [], []
    monkeypatch.setattr(threading, "excepthook", failed.append)
    with ThreadPoolExecutor(1) as pool:
        joining = pool.submit(JoinedGroup, member(0, 3, port), "127.0.0.1", SOON, losses.append)
        with say_hello(1, 3, port), say_hello(2, 3, port):
            joining.result()._thread.join(5)
    assert "process 1" in losses[0].what or "process 2" in losses[0].what
    assert (len(losses), failed) == (1, [])


PROGRAM = """
import os, sys, time
from aifx.parallel.group import Limits, PeerLost
from aifx.parallel.joined_group import JoinedGroup
from aifx.parallel.processes import Membership

def leave(error):
    print(error.what, error.why, sep="; ", flush=True)
    os._exit(error.exit_code)

index, size, port, stuck_s = map(int, sys.argv[1:])
me = Membership("a test", f"127.0.0.1:{port}", size, index)
group = JoinedGroup(me, "127.0.0.1", Limits(20, 1.0, stuck_s), leave)
print("here", flush=True)
group.mark("the data")
try:
    with group.first_then_others():
        time.sleep(60)
except PeerLost:
    group.await_end()
"""


@pytest.fixture
def stuck_s() -> int:
    return 60


@pytest.fixture
def processes(stuck_s: int) -> Iterator[list[subprocess.Popen[str]]]:
    """Three processes of a job that have met. Process 0 hangs, and the others wait for it."""
    port = free_port()
    arguments = [[sys.executable, "-c", PROGRAM, str(index), "3", str(port), str(stuck_s)] for index in range(3)]
    started = [subprocess.Popen(command, text=True, stdout=subprocess.PIPE) for command in arguments]
    try:
        for process in started:
            assert process.stdout is not None
            assert process.stdout.readline() == "here\n"
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


@pytest.mark.parametrize(("victim", "how"), [(0, signal.SIGKILL), (2, signal.SIGKILL), (0, signal.SIGSTOP)])
def test_a_lost_process(processes: list[subprocess.Popen[str]], victim: int, how: signal.Signals) -> None:
    os.kill(processes[victim].pid, how)
    for index, process in enumerate(processes):
        if index != victim:
            out, _ = process.communicate(timeout=20)
            assert f"process {victim} on {socket.gethostname()} was lost" in out
            assert ("no sign of life" if how == signal.SIGSTOP else "its connection closed") in out
            assert process.returncode == 75


@pytest.mark.parametrize("stuck_s", [2])
def test_process_0_hangs_in_what_it_does_alone(processes: list[subprocess.Popen[str]]) -> None:
    for process in processes:
        out, _ = process.communicate(timeout=20)
        assert f"process 0 on {socket.gethostname()} is stuck in the data; it has not gone on for 2 s" in out
        assert process.returncode == 75


def test_a_process_that_was_stopped_does_not_accuse_the_others(processes: list[subprocess.Popen[str]]) -> None:
    for process in processes:
        os.kill(process.pid, signal.SIGSTOP)
    time.sleep(2.5)  # longer than Limits.silence_s
    for process in processes:
        os.kill(process.pid, signal.SIGCONT)
    time.sleep(1.0)
    assert [process.poll() for process in processes] == [None, None, None]


def test_threads_end() -> None:
    job = Job(2)
    job.each(JoinedGroup.finish)
    time.sleep(0.1)
    assert not [thread for thread in threading.enumerate() if thread.name == "aifx-processes"]

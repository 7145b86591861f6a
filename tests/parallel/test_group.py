"""The processes of a job and their watch over each other, as threads and as real processes."""

from __future__ import annotations

import os
import re
import select
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
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from aifx.core.errors import AifxError, DataError, EnvironmentFault
from aifx.parallel import connections
from aifx.parallel.connections import Connection, _hello
from aifx.parallel.group import Group, Limits, PeerLost, Progress, find_stuck
from aifx.parallel.joined_group import JoinedGroup
from aifx.parallel.processes import Membership

END_S = 120.0
"""Ends a test that hangs."""


class Patient(Limits):
    """Limits that no slow machine reaches, with a fast beat. Tests shorten one when only the loss can follow."""

    @property
    def beat_s(self) -> float:
        return 0.05


PATIENT = Patient(connect_s=END_S, silence_s=10 * END_S, stuck_s=10 * END_S)


def free_port() -> int:
    return connections.free_port("127.0.0.1")


def member(index: int, size: int, port: int) -> Membership:
    return Membership("a test", f"127.0.0.1:{port}", size, index)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + END_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


class Watched(JoinedGroup):
    """Counts how often it has looked for silent and stuck processes."""

    looks = 0

    def _beat(self, now: float) -> None:
        super()._beat(now)
        self.looks += 1

    def await_look(self) -> None:
        """Wait for a whole look that begins after this call."""
        before = self.looks
        wait_until(lambda: self.looks >= before + 2 or not self._thread.is_alive())


class Job:
    """Several members of one job, each in a thread, and what they heard of losses."""

    def __init__(self, size: int) -> None:
        self.losses: dict[int, PeerLost] = {}
        self.can_end = threading.Event()
        """Until then, process 0 is busy with a loss."""
        self.can_end.set()
        port = free_port()

        def join(index: int) -> Watched:
            def on_loss(error: PeerLost) -> None:
                self.losses[index] = error
                if index == 0:
                    self.can_end.wait(END_S)

            return Watched(member(index, size, port), "127.0.0.1", PATIENT, on_loss)

        with ThreadPoolExecutor(size) as pool:
            self.groups = list(pool.map(join, reversed(range(size))))[::-1]

    def each(self, call: Callable[[Watched], Any]) -> list[Any]:
        with ThreadPoolExecutor(len(self.groups)) as pool:
            return list(pool.map(call, self.groups))

    def limit(self, *indexes: int, **limits_s: float) -> None:
        for index in indexes:
            self.groups[index]._limits = replace(PATIENT, **limits_s)

    def wait_for_losses(self, count: int) -> None:
        wait_until(lambda: len(self.losses) >= count)
        assert len(self.losses) == count, self.losses

    def wait_until_received(self, index: int) -> None:
        """Wait until process 0 knows how far another process has come."""
        own = self.groups[index].progress
        wait_until(lambda: (found := self._found(index)).position == own.position and found.work == own.work)

    def wait_until_behind(self, index: int) -> None:
        """Wait until process 0 knows that all others wait for this process."""
        position, others = self.groups[index].progress.position, {*range(len(self.groups))} - {index}
        wait_until(lambda: all(self._found(other).position > position for other in others))
        if index:
            wait_until(lambda: self.groups[0].progress.waits)

    def _found(self, index: int) -> Progress:
        return self.groups[0].everyone()[index][1]

    def end(self) -> None:
        self.each(JoinedGroup.finish)
        for group in self.groups:
            group._thread.join(END_S)
            assert not group._thread.is_alive()
        assert self.losses == {}


class Clock:
    """The clock of the watch, which a test can put forward."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in ("joined_group", "group"):
        monkeypatch.setattr(f"aifx.parallel.{module}.time", clock)
    return clock


def test_messages_between_processes() -> None:
    job = Job(4)
    gathered = job.each(lambda group: group.gather({"index": group.index, "text": "é" * 100_000}))
    assert [found["index"] for found in gathered[0]] == [0, 1, 2, 3]
    assert gathered[1:] == [[], [], []]
    assert job.each(lambda group: group.broadcast([group.index])) == [[0]] * 4
    job.end()


def test_a_message_right_behind_the_welcome() -> None:
    for _ in range(20):
        port = free_port()

        def join(index: int, port: int = port) -> Any:
            group = JoinedGroup(member(index, 2, port), "127.0.0.1", PATIENT)
            found = group.broadcast(index)
            group.finish()
            return found

        with ThreadPoolExecutor(2) as pool:
            assert list(pool.map(join, range(2), timeout=END_S)) == [0, 0]


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
        error = DataError("no such file: corpus.txt", "data.train names it", "ls corpus")
        job.groups[2].fail(error)
        for one in waiting:
            with pytest.raises(PeerLost) as raised:
                one.result()
            assert "process 2" in raised.value.what
            assert raised.value.why == f"{error.what}: {error.why}"
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
    job = Job(3)
    job.can_end.clear()
    with ThreadPoolExecutor(1) as pool:
        holding = pool.submit(job.groups[failing].hold, AifxError("out of memory"))
        job.wait_for_losses(1)
        assert f"process {failing}" in job.losses[0].what
        wait_until(lambda: job.groups[3 - failing]._held is not None)
        job.limit(1, 2, silence_s=0.0)  # process 0 is silent
        for index in (1, 2):
            job.groups[index].await_look()
        assert list(job.losses) == [0]
        assert not holding.done()
        other = job.groups[3 - failing].loss_behind(RuntimeError("Gloo: connection closed by peer"))
        assert other is not None
        job.can_end.set()
        holding.result(END_S)
    job.wait_for_losses(3)
    assert [error.exit_code for error in job.losses.values()] == [2, 2, 2]


def test_all_wait_for_process_0_if_that_fails_itself() -> None:
    job = Job(3)
    job.groups[0].hold(AifxError("out of memory"))
    failing = threading.Thread(target=job.groups[1].hold, args=[AifxError("out of memory, too")])
    failing.start()
    wait_until(lambda: job.groups[1]._held is not None)
    job.groups[1].await_look()
    job.groups[0].await_look()
    assert job.losses == {}
    assert job.groups[0].loss_behind(AifxError("its own")) is None
    job.groups[0].fail(AifxError("out of memory", "", "use less"))
    job.wait_for_losses(2)
    failing.join(END_S)
    assert sorted(job.losses) == [1, 2]
    assert {error.exit_code for error in job.losses.values()} == {2}


@pytest.fixture
def greeted(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """The processes that process 0 has taken into the job."""
    greeted, greet = set[int](), connections._greet

    def greet_and_tell(connection: Connection, me: Membership, found: dict[int, Connection]) -> None:
        greet(connection, me, found)
        greeted.update(found)

    monkeypatch.setattr(connections, "_greet", greet_and_tell)
    return greeted


def test_all_must_come(greeted: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
    port, late_s = free_port(), 10 * END_S

    def monotonic() -> float:
        return time.monotonic() + (late_s if 2 in greeted else 0)

    monkeypatch.setattr(connections, "time", SimpleNamespace(monotonic=monotonic, sleep=time.sleep))
    with ThreadPoolExecutor(2) as pool:
        limits = {0: PATIENT, 2: replace(PATIENT, connect_s=2 * late_s)}
        futures = [pool.submit(JoinedGroup, member(i, 4, port), "127.0.0.1", limits[i]) for i in limits]
        errors = [future.exception() for future in futures]
    for error in errors:
        assert isinstance(error, EnvironmentFault)
        assert "2 of 4" in error.what
        assert error.what.endswith(": 1, 3")


def test_process_0_is_not_there() -> None:
    port = free_port()
    with pytest.raises(EnvironmentFault, match=rf"process 1 .*127\.0\.0\.1:{port}") as raised:
        JoinedGroup(member(1, 2, port), "127.0.0.1", Limits(connect_s=0.3))
    assert "AIFX_COORDINATOR" in raised.value.hint


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(EnvironmentFault, match="cannot listen"):
        JoinedGroup(member(0, 2, server.getsockname()[1]), "127.0.0.1", PATIENT)


def test_two_with_one_number_and_strangers(greeted: set[int]) -> None:
    port = free_port()
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(JoinedGroup, member(0, 3, port), "127.0.0.1", PATIENT)
        second = pool.submit(JoinedGroup, member(1, 3, port), "127.0.0.1", PATIENT)
        wait_until(lambda: 1 in greeted)
        for text in (b"GET / HTTP/1.1\r\n\r\n", b'{"process": "x"}\n', b"", b"\xff" * 100 + b"\n"):
            with socket.create_connection(("127.0.0.1", port)) as stranger:
                stranger.sendall(text)
        with pytest.raises(EnvironmentFault, match=r"two processes .* process 1\b"):
            JoinedGroup(member(1, 3, port), "127.0.0.1", PATIENT)
        with pytest.raises(EnvironmentFault, match=r"process 2 on .*this job"):
            JoinedGroup(member(2, 4, port), "127.0.0.1", PATIENT)
        third = JoinedGroup(member(2, 3, port), "127.0.0.1", PATIENT)
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
    job = Job(2)
    job.groups[1].mark("step 5")
    job.wait_until_received(1)
    for _ in range(3):
        job.groups[0].mark("step 7")
    job.limit(0, stuck_s=0.3)
    job.wait_for_losses(2)
    assert "process 1" in job.losses[0].what
    assert "step 5" in job.losses[1].what
    assert job.losses[0].exit_code == 75


def let_work(job: Job, clock: Clock, index: int, work_on: Callable[[Group], None] = Group.work_on) -> None:
    """Let a process that all others wait for work for longer than the limit, which each part of the work keeps."""
    job.wait_until_behind(index)
    for _ in range(4):
        clock.ahead_s += 0.7 * PATIENT.stuck_s
        job.groups[0].await_look()
        work_on(job.groups[index])
        job.wait_until_received(index)


def test_a_process_that_goes_on_is_not_stuck(clock: Clock) -> None:
    """Process 0, behind the other for longer than the limit."""
    job = Job(2)
    for step in range(50):
        job.groups[1].mark(f"step {step}")
    let_work(job, clock, 0, partial(Group.mark, phase="a step"))
    assert job.losses == {}
    job.end()


def test_a_process_that_reports_progress_is_not_stuck(clock: Clock) -> None:
    """Others hear of it within a phase, too."""
    job = Job(3)

    def prepare(group: JoinedGroup) -> None:
        with group.first_then_others():  # process 0 works alone, then process 2 does
            if group.index in (0, 2):
                let_work(job, clock, group.index)
        group.barrier()

    job.each(prepare)
    job.end()


def test_process_0_that_waits_is_not_the_one_that_is_stuck(clock: Clock) -> None:
    """All wait for process 1, which works: process 0 for its value, process 2 for what process 0 makes of it."""
    job = Job(3)

    def count(group: JoinedGroup) -> dict[str, int]:
        if group.index == 1:
            let_work(job, clock, 1)
        return group.total({"rows": 1})

    assert job.each(count) == [{"rows": 3}] * 3
    job.end()


@pytest.mark.parametrize("stuck", [0, 1])
def test_a_process_that_others_wait_for_is_stuck(stuck: int) -> None:
    """In each call that needs a value of every process, also of process 0."""
    job = Job(3)

    def wait(group: Group) -> None:
        with suppress(PeerLost):
            group.barrier()

    for group in job.groups:
        if group.index != stuck:
            threading.Thread(target=wait, args=[group], daemon=True).start()
    job.wait_until_behind(stuck)
    job.limit(0, stuck_s=0.3)
    job.wait_for_losses(3)
    assert f"process {stuck}" in job.losses[2].what
    assert "processes.stuck_timeout_s=0.6" in job.losses[2].hint


def test_a_process_that_was_stopped_does_not_accuse_the_others(clock: Clock) -> None:
    job = Job(3)
    clock.ahead_s += 2 * PATIENT.silence_s  # as if all processes had been stopped
    for group in job.groups:
        group.await_look()
    job.end()


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
    reset = select.poll()
    reset.register(connection.socket, 0)
    assert reset.poll(END_S * 1e3)
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
    failing[0].join(END_S)
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
    waking.join(END_S)
    assert not waking.is_alive()


def say_hello(index: int, size: int, port: int) -> socket.socket:
    """The connection of a process that has come, and dies before all are there."""
    deadline = time.monotonic() + END_S
    while time.monotonic() < deadline:
        with suppress(ConnectionRefusedError):
            connection = Connection(socket.create_connection(("127.0.0.1", port)))
            connection.put(_hello(member(index, size, port)))
            connection.socket.shutdown(socket.SHUT_WR)
            connection.socket.settimeout(END_S)
            return connection.socket
        time.sleep(0.01)
    raise TimeoutError


def test_a_process_that_died_and_was_started_again(greeted: set[int]) -> None:
    port = free_port()
    with ThreadPoolExecutor(3) as pool:
        joining = [pool.submit(JoinedGroup, member(0, 3, port), "127.0.0.1", PATIENT)]
        with say_hello(1, 3, port) as died:
            wait_until(lambda: 1 in greeted)
            joining.append(pool.submit(JoinedGroup, member(1, 3, port), "127.0.0.1", PATIENT))
            assert died.recv(1) == b""  # the new one has its place
        joining.append(pool.submit(JoinedGroup, member(2, 3, port), "127.0.0.1", PATIENT))
        list(pool.map(JoinedGroup.finish, [future.result() for future in joining]))


def test_all_others_died_before_all_were_there(monkeypatch: pytest.MonkeyPatch) -> None:
    port, losses, failed = free_port(), [], []
    monkeypatch.setattr(threading, "excepthook", failed.append)
    with ThreadPoolExecutor(1) as pool:
        joining = pool.submit(JoinedGroup, member(0, 3, port), "127.0.0.1", PATIENT, losses.append)
        with say_hello(1, 3, port), say_hello(2, 3, port):
            joining.result()._thread.join(END_S)
    assert "process 1" in losses[0].what or "process 2" in losses[0].what
    assert (len(losses), failed) == (1, [])


PROGRAM = """
import os, sys, threading, time
from dataclasses import replace
from aifx.parallel.group import Limits, PeerLost
from aifx.parallel.joined_group import JoinedGroup
from aifx.parallel.processes import Membership

def leave(error):
    print(error.what, error.why, sep="; ", flush=True)
    os._exit(error.exit_code)

def take_limit():
    name, value = sys.stdin.readline().split()
    group._limits = replace(group._limits, **{name: float(value)})

index, size, port = map(int, sys.argv[1:])
me = Membership("a test", f"127.0.0.1:{port}", size, index)
group = JoinedGroup(me, "127.0.0.1", Limits(300, 600, 600), leave)
threading.Thread(target=take_limit, daemon=True).start()
group.mark("the data")
try:
    with group.first_then_others():
        while not all(other.position > group.progress.position for _, other in list(group.everyone().values())[1:]):
            time.sleep(0.01)
        print("they wait", flush=True)
        time.sleep(600)
except PeerLost:
    group.await_end()
"""


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[str]]]:
    """Three processes of a job. Process 0 hangs, and the others wait for it. Each reads a limit from stdin."""
    port = free_port()
    arguments = [[sys.executable, "-c", PROGRAM, str(index), "3", str(port)] for index in range(3)]
    started = [
        subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for command in arguments
    ]
    try:
        assert started[0].stdout is not None
        assert started[0].stdout.readline() == "they wait\n"
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


SLOW_LOSSES = [pytest.param(*case, marks=pytest.mark.slow) for case in ((2, signal.SIGKILL), (0, signal.SIGSTOP))]


@pytest.mark.parametrize(("victim", "how"), [(0, signal.SIGKILL), *SLOW_LOSSES])
def test_a_lost_process(processes: list[subprocess.Popen[str]], victim: int, how: signal.Signals) -> None:
    os.kill(processes[victim].pid, how)
    others = [process for index, process in enumerate(processes) if index != victim]
    if how == signal.SIGSTOP:
        for process in others:
            assert process.stdin is not None
            process.stdin.write("silence_s 1\n")
            process.stdin.flush()
    for process in others:
        out, _ = process.communicate(timeout=END_S)
        assert f"process {victim} on {socket.gethostname()} was lost" in out
        assert ("no sign of life" if how == signal.SIGSTOP else "its connection closed") in out
        assert process.returncode == 75


def test_process_0_hangs_in_what_it_does_alone(processes: list[subprocess.Popen[str]]) -> None:
    assert processes[0].stdin is not None
    processes[0].stdin.write("stuck_s 2\n")
    processes[0].stdin.flush()
    for process in processes:
        out, _ = process.communicate(timeout=END_S)
        assert re.search(f"process 0 on {socket.gethostname()} .*the data;.* 2 s", out)
        assert process.returncode == 75

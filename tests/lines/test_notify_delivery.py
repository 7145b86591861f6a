"""Delivery of events to a real receiver: signatures, order, refusals, dead letters, kills, and addresses."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import tracemalloc
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from certificates import make_certificate
from effort import seed_of_commit
from faulty_files import failing
from webhook_receiver import LOOPBACK, SECRET, Answer, Receiver, receiver

from aifx.core.errors import ConfigError, UsageError
from aifx.core.project import Project
from aifx.lines import delivery, webhook
from aifx.lines.delivery import (
    PAUSES_S,
    Deliveries,
    deliver,
    find_again,
    list_targets,
    outbox_of,
    plan_delivery,
    send_test,
)
from aifx.lines.file import EVENT_TYPES, Target
from aifx.lines.journal import Journal
from aifx.lines.outbox import KEPT_RECORDS
from aifx.lines.webhook import is_public

TARGET = Target("ops", EVENT_TYPES, "OPS_URL", "OPS_URL_SECRET", LOOPBACK)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    (tmp_path / "aifx.toml").write_text("")
    return Project(tmp_path)


def fail(project: Project, *stations: str) -> None:
    journal = Journal(project.root / "line")
    for station in stations:
        journal.append("ended", station, "k", f"{station}-1", outcome="failed", code=2, command="train")


def environ(at: Receiver) -> dict[str, str]:
    return {"OPS_URL": at.url, "OPS_URL_SECRET": SECRET}


def send(project: Project, at: Receiver, *targets: Target, **options: Any) -> Deliveries:
    return deliver(project, targets or (TARGET,), environ(at), **options)


def subjects(at: Receiver) -> list[str]:
    return [event["subject"] for event in at.accepted]


def test_each_event_arrives_once_with_a_signature_that_the_reference_library_accepts(project: Project) -> None:
    fail(project, "train", "judge")
    with receiver() as at:
        done = send(project, at)
        assert [event.subject for event in done.targets[0].sent] == ["train", "judge"]
        assert done.exit_code == 0
        assert send(project, at).targets[0].sent == ()
        fail(project, "train")
        assert [event.subject for event in send(project, at).targets[0].sent] == ["train"]
        assert subjects(at) == ["train", "judge", "train"]
        assert at.accepted[0]["type"] == "aifx.station.failed"
        assert at.headers[0]["content-type"].startswith("application/cloudevents+json")
        assert [attempt[0] for attempt in at.attempts] == at.ids


def test_each_attempt_has_a_signature_of_its_own(project: Project) -> None:
    fail(project, "a")
    with receiver() as at:
        at.answer = lambda event: 500
        send(project, at)
        time.sleep(max(0.0, int(at.attempts[0][1]) + 1.01 - time.time()))
        send(project, at, clock=lambda: time.time() + 6)
    first, second = at.attempts
    assert first[0] == second[0]
    assert first[1] != second[1]
    assert first[2] != second[2]


def test_an_attempt_that_fails_waits_and_others_do_not(project: Project) -> None:
    fail(project, "a", "b", "a", "b")
    now = time.time()
    with receiver() as at:
        at.answer = lambda event: 500 if event["subject"] == "a" else 204
        done = send(project, at, clock=lambda: now)
        assert subjects(at) == ["b", "b"]
        (failed,) = done.targets[0].failed
        assert (failed.subject, failed.reason, failed.next_at) == ("a", "500 Internal Server Error", now + PAUSES_S[0])
        assert (done.exit_code, done.targets[0].waiting) == (1, 2)
        assert send(project, at, clock=lambda: now + 4).targets[0].failed == ()
        at.answer = lambda event: 204
        send(project, at, clock=lambda: now + 6)
        assert subjects(at) == ["b", "b", "a", "a"]
        assert [attempt[0] for attempt in at.attempts].count(failed.id) == 2


def test_after_three_days_an_event_is_a_dead_letter_and_its_subject_goes_on(project: Project) -> None:
    fail(project, "a", "a", "b")
    clock = time.time()
    began, dead_at = clock, 0.0
    with receiver() as at:
        refused = set[str]()

        def answer(event: dict[str, Any]) -> Answer:
            if event["subject"] == "a" and len(refused | {event["id"]}) == 1:
                refused.add(event["id"])
                return 500
            return 204

        at.answer = answer
        while not dead_at:
            done = deliver(project, [TARGET], environ(at), clock=partial(float, clock))
            dead_at = clock if done.targets[0].dead else 0.0
            clock = max(one.next_at for one in outbox_of(project, TARGET).read().waiting.values()) if not dead_at else 0
        assert 3 * 86400 <= dead_at - began < 4 * 86400
        assert subjects(at) == ["b", "a"]
        state = list_targets(project, [TARGET], environ(at)).targets[0]
        assert [(one.subject, one.reason) for one in state.dead] == [("a", "500 Internal Server Error")]
        assert state.dead[0].attempts == len(PAUSES_S) + 1
        at.answer = lambda event: 204
        again = find_again(project, [TARGET], [])
        send(project, at, again=again)
        assert subjects(at) == ["b", "a", "a"]
        assert list_targets(project, [TARGET], environ(at)).targets[0].dead == ()


def test_an_event_is_sent_again_by_its_id_although_the_outbox_forgot_it(project: Project) -> None:
    fail(project, "a", "b")
    with receiver() as at:
        send(project, at)
        id = at.ids[1]
        send(project, at, again=find_again(project, [TARGET], [id[:8]]))
        assert at.ids == [*at.ids[:2], id]
        with pytest.raises(UsageError, match="names no event"):
            find_again(project, [TARGET], ["0" * 64])


def test_each_target_gets_what_it_asks_for_and_has_its_own_cursor(project: Project) -> None:
    fail(project, "a")
    folder = project.runs_path / "main"
    folder.mkdir(parents=True)
    record = {"time": time.time(), "event": "stop", "status": "diverged", "step": 7}
    (folder / "events.jsonl").write_text(json.dumps(record) + "\n")
    runs = Target("runs", ("run.diverged",), "OPS_URL", "OPS_URL_SECRET", LOOPBACK)
    with receiver() as at:
        send(project, at, runs)
        assert subjects(at) == ["main"]
        send(project, at, runs, TARGET)
        assert sorted(subjects(at)) == ["a", "main", "main"]


def test_a_new_target_gets_three_days_and_a_late_sender_all_since_then(project: Project) -> None:
    folder = project.runs_path / "main"
    folder.mkdir(parents=True)
    now = time.time()
    times = [now - 5 * 86400, now - 2 * 86400]
    lines = [json.dumps({"time": at, "event": "stop", "status": "diverged", "step": 7}) + "\n" for at in times]
    (folder / "events.jsonl").write_text("".join(lines))
    with receiver() as at:
        send(project, at)
        assert len(at.accepted) == 1
        later = project.runs_path / "later"
        later.mkdir()
        (later / "events.jsonl").write_text(json.dumps({**json.loads(lines[1]), "time": now + 1}) + "\n")
        real = time.time()
        open_box = plan_delivery(project, [TARGET], environ(at), lambda: real + 30 * 86400)
        assert [event.subject for event in open_box.targets[0].sent] == ["later"]


@pytest.mark.parametrize(
    ("answer", "reason"), [(301, "301 Moved Permanently: redirects are refused"), (410, "410 Gone"), ("reset", "Read")]
)
def test_what_is_no_success_is_a_failure_with_its_reason(project: Project, answer: Answer, reason: str) -> None:
    fail(project, "a")
    with receiver() as at:
        at.answer = lambda event: answer
        (failed,) = send(project, at).targets[0].failed
        assert reason in failed.reason
        assert "secret-part" not in failed.reason
        assert len(at.attempts) == 1


def test_a_receiver_that_answers_500_for_a_day_gets_all_events_in_their_order(project: Project) -> None:
    fail(project, "a", "a", "b")
    began = clock = time.time()
    with receiver() as at:
        at.answer = lambda event: 500
        calls = 0
        while clock < began + 86400:  # as a timer would call it
            done = send(project, at, clock=partial(float, clock)).targets[0]
            assert done.waiting == 3
            calls, clock = calls + 1, clock + 3600
        assert len(at.attempts) == 2 * 7 < calls
        at.answer = lambda event: 204
        assert len(send(project, at, clock=partial(float, clock + 86400)).targets[0].sent) == 3
        assert subjects(at) == ["a", "a", "b"]


def test_a_certificate_is_verified_and_an_authority_can_be_named(project: Project) -> None:
    fail(project, "a")
    certificate = make_certificate(project.root)
    with receiver(certificate) as at:
        (failed,) = send(project, at).targets[0].failed
        assert "CERTIFICATE_VERIFY_FAILED" in failed.reason
        assert "SSL_CERT_FILE" in failed.reason
        assert at.attempts == []
        trusting = {**environ(at), "SSL_CERT_FILE": str(certificate[0])}
        assert send_test(TARGET, trusting).status == 204
        other_name = {**trusting, "OPS_URL": at.url.replace("127.0.0.1", "localhost")}
        assert "certificate is not valid for 'localhost'" in send_test(TARGET, other_name).reason
        with pytest.raises(ConfigError, match="SSL_CERT_FILE"):
            send_test(TARGET, {**trusting, "SSL_CERT_FILE": str(certificate[1])})


def test_a_full_disk_keeps_the_events_and_names_the_outbox(project: Project) -> None:
    fail(project, "a")
    folder = project.root / "line" / "notify"
    with receiver() as at:
        with failing(folder, 3, number=errno.ENOSPC, lasting=True):
            problem = send(project, at).targets[0].problem
        assert problem is not None
        assert str(folder) in problem["what"] + problem["why"]
        assert problem["hint"]
        assert problem["transient"]
        assert [event.subject for event in send(project, at).targets[0].sent] == ["a"]


def test_a_receiver_that_is_down_is_left_alone_after_some_attempts(project: Project) -> None:
    fail(project, *"abcdef")
    with receiver() as at:
        pass
    done = send(project, at)
    assert len(done.targets[0].failed) == 3
    assert done.targets[0].waiting == 6


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_an_address_is_refused_unless_its_network_is_named(project: Project, host: str, scheme: str) -> None:
    fail(project, "a")
    target = Target("ops", EVENT_TYPES, "OPS_URL", "OPS_URL_SECRET", ("10.0.0.0/8",))
    with receiver() as at:
        port = at.url.split(":")[2].split("/")[0]
        done = deliver(project, [target], {**environ(at), "OPS_URL": f"{scheme}://{host}:{port}/x"})
        assert "allow = [" in done.targets[0].failed[0].reason
        assert at.attempts == []


@pytest.mark.parametrize(
    "address",
    ["10.1.2.3", "192.168.0.1", "172.16.0.1", "127.0.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
     "255.255.255.255", "::1", "::", "fe80::1", "fc00::1", "ff02::1", "::ffff:10.0.0.1", "64:ff9b::a00:1",
     "2002:a00:1::", "::ffff:169.254.169.254"],
)  # fmt: skip
def test_addresses_that_are_not_of_the_internet(address: str) -> None:
    import ipaddress

    assert not is_public(ipaddress.ip_address(address))
    assert is_public(ipaddress.ip_address("1.1.1.1"))
    assert is_public(ipaddress.ip_address("2606:4700::1111"))
    assert is_public(ipaddress.ip_address("64:ff9b::101:101"))


def test_a_variable_that_is_unset_is_named_and_keeps_the_events(project: Project) -> None:
    fail(project, "a")
    with receiver() as at:
        done = deliver(project, [TARGET], {"OPS_URL": at.url})
        assert done.targets[0].problem is not None
        assert "OPS_URL_SECRET is not set" in done.targets[0].problem["what"]
        assert done.exit_code == 2
        assert [event.subject for event in send(project, at).targets[0].sent] == ["a"]


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("OPS_URL", "ftp://x/y"),
        ("OPS_URL", "https://"),
        ("OPS_URL", "https://xn--/"),
        ("OPS_URL", "https://1.1.1.1:99999/"),
        ("OPS_URL_SECRET", "whsec_!"),
        ("OPS_URL_SECRET", "whsec_"),
    ],
)
def test_a_variable_that_cannot_be_used_is_named_without_its_value(variable: str, value: str) -> None:
    good = {"OPS_URL": "https://example.org/x", "OPS_URL_SECRET": SECRET}
    with pytest.raises(ConfigError, match=variable) as caught:
        send_test(TARGET, {**good, variable: value})
    assert value not in str(caught.value) or value in ("https://", "whsec_")


@pytest.mark.parametrize("host", ["a" * 70 + ".example", "..", "nothing.invalid"])
def test_a_name_that_cannot_be_resolved_stops_no_other_target(project: Project, host: str) -> None:
    fail(project, "a")
    other = replace(TARGET, name="other", url_from="OTHER_URL")
    with receiver() as at:
        done = deliver(project, [other, TARGET], {**environ(at), "OTHER_URL": f"https://{host}/x"})
        assert f"{host} cannot be resolved" in done.targets[0].failed[0].reason
        assert [event.subject for event in done.targets[1].sent] == ["a"]


def test_an_unexpected_fault_of_one_target_stops_no_other(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    fail(project, "a")
    other = replace(TARGET, name="other")

    def open_or_fail(target: Target, environ: Mapping[str, str]) -> webhook.Receiver:
        if target is other:
            raise RuntimeError(environ["OPS_URL"])
        return webhook.open_receiver(target, environ)

    monkeypatch.setattr(delivery, "open_receiver", open_or_fail)
    with receiver() as at:
        done = send(project, at, other, TARGET)
    problem = done.targets[0].problem
    assert problem is not None
    assert "RuntimeError" in problem["what"]
    assert "secret-part" not in str(problem)
    assert [event.subject for event in done.targets[1].sent] == ["a"]
    assert done.exit_code == 2


def test_a_damaged_outbox_is_named_and_stops_no_other(project: Project) -> None:
    fail(project, "a")
    other = replace(TARGET, name="other")
    path = outbox_of(project, other).path
    path.parent.mkdir(parents=True)
    path.write_text('{"is": "event"}\n')
    with receiver() as at:
        done = send(project, at, other, TARGET)
        listed = list_targets(project, [other, TARGET], environ(at))
    assert done.targets[0].problem == listed.targets[0].problem
    assert f"record 1 of {path} is damaged" in str(done.targets[0].problem)
    assert [event.subject for event in done.targets[1].sent] == ["a"]


def test_a_name_that_means_another_address_when_aifx_connects_is_refused(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As DNS rebinding does: each look-up has another answer, and all connections go to a checked address."""
    fail(project, "a")
    answers, connected = iter(["1.1.1.1", "127.0.0.1", "127.0.0.1"]), list[str]()

    async def getaddrinfo(self: object, host: str, port: int, **options: object) -> list[Any]:
        address = host if host[0].isdigit() else next(answers)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    async def connect(self: object, sock: socket.socket, address: tuple[str, int]) -> None:
        connected.append(address[0])
        raise ConnectionRefusedError

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(asyncio.SelectorEventLoop, "sock_connect", connect)
    target = replace(TARGET, allow=())
    given = {"OPS_URL": "https://rebinding.example/x", "OPS_URL_SECRET": SECRET}
    deliver(project, [target], given)
    assert connected
    assert set(connected) == {"1.1.1.1"}
    (failed,) = deliver(project, [target], given, clock=lambda: time.time() + 10).targets[0].failed
    assert "127.0.0.1; it is not a public address" in failed.reason
    assert set(connected) == {"1.1.1.1"}


def test_a_test_event_is_sent_once_and_kept_nowhere(project: Project) -> None:
    with receiver() as at:
        done = send_test(TARGET, environ(at))
        assert (done.status, done.exit_code, done.place) == (204, 0, "http://127.0.0.1")
        assert at.accepted[0]["type"] == "aifx.test"
        at.answer = lambda event: 401
        assert (send_test(TARGET, environ(at)).reason, send_test(TARGET, environ(at)).exit_code) == (
            "401 Unauthorized", 1,
        )  # fmt: skip
    assert not (project.root / "line").exists()


def test_a_plan_writes_and_sends_nothing(project: Project) -> None:
    fail(project, "a")
    with receiver() as at:
        plan = plan_delivery(project, [TARGET], environ(at))
        assert ([event.subject for event in plan.targets[0].sent], plan.is_planned) == (["a"], True)
        assert at.attempts == []
    assert not (project.root / "line" / "notify").exists()


def test_an_outbox_that_is_mostly_history_is_replaced_by_a_short_one(project: Project) -> None:
    fail(project, "a", "b")
    with receiver() as at:
        at.answer = lambda event: 500 if event["subject"] == "b" else 204
        send(project, at)
        path = outbox_of(project, TARGET).path
        with path.open("a") as file:
            file.writelines(json.dumps({"is": "sent", "id": str(n)}) + "\n" for n in range(KEPT_RECORDS))
        before = outbox_of(project, TARGET).read()
        send(project, at)
        after = outbox_of(project, TARGET).read()
        assert len(path.read_text().splitlines()) < 10
        assert (after.waiting, after.positions, after.since) == (before.waiting, before.positions, before.since)
        at.answer = lambda event: 204
        send(project, at, clock=lambda: time.time() + 10)
        assert subjects(at) == ["a", "b"]


def diverge(project: Project, count: int) -> None:
    folder = project.runs_path / "main"
    folder.mkdir(parents=True)
    record = {"time": time.time(), "event": "stop", "status": "diverged"}
    (folder / "events.jsonl").write_text("".join(json.dumps({**record, "step": step}) + "\n" for step in range(count)))


def test_events_that_an_outbox_has_no_room_for_stay_in_their_sources(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "MOST_WAITING", 5)
    monkeypatch.setattr(delivery, "MOST_NEW", 3)
    diverge(project, 20)
    with receiver() as at:
        at.answer = lambda event: 500 if event["subject"] == "main" else 204
        fail(project, "a")
        (found,) = send(project, at).targets
        assert (subjects(at), found.waiting, found.has_more) == (["a"], 6, True)
        fail(project, "b")
        (found,) = send(project, at).targets
        assert (found.sent, found.waiting, found.has_more) == ((), 6, True)
        (listed,) = list_targets(project, [TARGET], environ(at)).targets
        assert (len(listed.waiting), listed.has_more) == (6 + 4, True)
        at.answer = lambda event: 204
        (found,) = send(project, at, clock=lambda: time.time() + 6).targets
        assert (found.waiting, found.has_more) == (0, False)
    assert [event["data"]["step"] for event in at.accepted if event["subject"] == "main"] == list(range(20))
    assert subjects(at).count("b") == 1


def test_the_memory_of_a_sender_does_not_grow_with_the_events_that_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "MOST_WAITING", 300)
    monkeypatch.setattr(delivery, "MOST_NEW", 200)
    peaks = []
    with receiver() as at:
        at.answer = lambda event: 500
        for count in (1_000, 10_000):
            project = Project(tmp_path / str(count))
            diverge(project, count)
            tracemalloc.start()
            assert send(project, at).targets[0].has_more
            assert list_targets(project, [TARGET], environ(at)).targets[0].has_more
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0], peaks


@pytest.mark.slow
def test_the_memory_of_a_process_that_sends_does_not_grow_with_the_events_that_wait(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    peaks = []
    with receiver() as at:
        for count in (10_000, 100_000):
            project = Project(tmp_path / str(count))
            diverge(project, count)
            at.accepted.clear()
            paths = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
            command = [sys.executable, "-c", MEASURED_SENDER, str(project.root), *paths]
            done = subprocess.run(command, env={**os.environ, **environ(at)}, capture_output=True, check=True)
            peaks.append(int(done.stdout))
            assert [event["data"]["step"] for event in at.accepted] == list(range(len(at.accepted)))
            assert at.accepted
    record_property("kB of a sender of 10,000 and of 100,000 events", peaks)
    assert peaks[1] < 1.5 * peaks[0], peaks


MEASURED_SENDER = """
import os, resource, sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from test_notify_delivery import TARGET
from aifx.core.project import Project
from aifx.lines.delivery import deliver, list_targets
from aifx.lines.file import EVENT_TYPES
from dataclasses import replace
project = Project(Path(sys.argv[1]))
others = replace(TARGET, name="others", on=tuple(set(EVENT_TYPES) - {"run.diverged"}))
for _ in range(2):  # also of a target that wants none of them
    deliver(project, [TARGET, others], os.environ, limit_s=1)  # so that each has sent as many
list_targets(project, [TARGET, others], os.environ)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_two_senders_at_once_send_each_event_once(project: Project) -> None:
    fail(project, *"abcdefgh")
    with receiver() as at, outbox_of(project, TARGET).writing():
        done = send(project, at)
        assert done.targets[0].problem is not None
        assert "in use" in done.targets[0].problem["what"]
        assert at.attempts == []
    with receiver() as at:
        send(project, at)
        assert sorted(subjects(at)) == list("abcdefgh")


def test_a_disk_that_fails_at_any_call_loses_no_event(project: Project) -> None:
    with receiver() as at:
        for call in range(60):
            fail(project, f"s{call}")
            with failing(project.root / "line" / "notify", call) as calls:
                send(project, at)
            if calls.failed is None:
                break
        send(project, at)
        assert set(subjects(at)) == {f"s{number}" for number in range(call + 1)}
        assert call > 5


SENDER = """
import os, sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from test_notify_delivery import TARGET
from aifx.core.project import Project
from aifx.lines import webhook
from aifx.lines.delivery import deliver
import time
webhook.TIMEOUT_S = 1.0
skew = float(os.environ["SKEW"])
deliver(Project(Path(sys.argv[1])), [TARGET], os.environ, clock=lambda: time.time() + skew)
"""


def start_sender(project: Project, at: Receiver, skew: float) -> subprocess.Popen[bytes]:
    paths = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
    command = [sys.executable, "-c", SENDER, str(project.root), *paths]
    return subprocess.Popen(command, env={**os.environ, **environ(at), "SKEW": str(skew)}, stderr=subprocess.PIPE)


@pytest.mark.parametrize(
    ("count", "kills"),
    [
        pytest.param(60, 3, marks=pytest.mark.representative("events among refusals and kills")),
        pytest.param(1000, 25, marks=pytest.mark.slow),
    ],
)
def test_each_event_arrives_among_refusals_time_outs_resets_lost_answers_and_kills(
    project: Project, count: int, kills: int, record_property: Callable[[str, object], None]
) -> None:
    dice = random.Random(seed := seed_of_commit())
    names = [f"s{number}" for number in range(count // 10)]
    expected = defaultdict[str, list[int]](list)
    journal = Journal(project.root / "line")
    answers: list[Answer] = [500, 503, "reset", "lost", "hang", 204]
    given = Counter[Answer]()

    def answer(event: dict[str, Any]) -> Answer:
        one = dice.choices(answers, [8, 4, 4, 4, 1, 80])[0]
        given[one] += 1
        return one

    with receiver() as at:
        at.answer = answer
        for number in range(count):
            name = dice.choice(names)
            record = journal.append("ended", name, "k", "a", outcome="failed", code=2, command="train", number=number)
            expected[name].append(record.number)
        killed = rounds = 0
        while True:
            process = start_sender(project, at, rounds * 25 * 3600)  # later than all pauses of the one before
            rounds += 1
            seen = len(at.attempts)
            wanted = seen + dice.randrange(1, max(2, count // (kills + 1)))
            while killed < kills and process.poll() is None and len(at.attempts) < wanted:
                time.sleep(0.002)
            if killed < kills and process.poll() is None:
                process.send_signal(signal.SIGKILL)
                killed += 1
                process.wait()
                continue
            assert process.wait() == 0, process.stderr.read().decode() if process.stderr else ""
            if killed >= kills:
                at.answer = lambda event: 204
            if not outbox_of(project, TARGET).read().waiting:
                break
            assert rounds < kills + 60, f"seed {seed}"
        arrived = list(dict.fromkeys(at.ids))
        assert len(arrived) == count, f"seed {seed}"
        order = {event["id"]: event for event in at.accepted}
        times = defaultdict[str, list[str]](list)
        for id in arrived:
            times[order[id]["subject"]].append(order[id]["time"])
        assert all(found == sorted(found) for found in times.values()), f"seed {seed}"
        assert {name: len(found) for name, found in times.items()} == {
            name: len(found) for name, found in expected.items() if found
        }
        assert killed == kills
        assert set(given) == set(answers) or count < 1000, given
        record_property("kills of a sender", killed)
        record_property("answers", dict(given))
        record_property("events that arrived more than once", len(at.ids) - count)


@pytest.mark.slow
def test_a_kill_before_and_after_each_write_and_request_loses_no_event(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    program = [sys.executable, str(Path(__file__).with_name("killed_sender.py")), str(tmp_path)]
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(program, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    record_property("kills", kills := int(done.stdout.split()[-1]))
    assert kills > 50

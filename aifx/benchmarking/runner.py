"""The launches of a bench: each suite in its own processes, one after the other, and their results in one report."""

from __future__ import annotations

import json
import logging
import os
import re
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from aifx.benchmarking.fingerprint import Fingerprint
from aifx.benchmarking.results import Failure, Measured, Report, Request, Result
from aifx.benchmarking.suites import SUITES
from aifx.core import units
from aifx.core.errors import ExitCode, Terminated, UsageError
from aifx.core.processes import Child
from aifx.core.progress import Progress, publish
from aifx.core.project import find_project
from aifx.kinds import load_config
from aifx.machine.huge_pages import with_huge_pages

logger = logging.getLogger(__name__)

SILENCE_S = 600.0
"""A launch that says nothing for so long hangs: no compilation of one program takes it."""

GRACE_S = 5.0
"""For a launch that is ended before its time, to remove what it wrote."""

SLOW_START = 0.05
ABOVE_ROOF = 1.05
"""A share of the roofline that chance does not explain."""

SHARE = re.compile(r"[-+]?\d+(\.\d+)? ?%")

Listener = Callable[[Fingerprint | Measured], None]
"""Called with what a launch measures on, before it measures anything, and with each result when it is there. If it
raises, that ends the bench."""


def check_configuration(request: Request, folder: Path | None = None) -> None:
    """Check a request before anything starts.

    Raises UsageError for an unknown suite, and ConfigError for mistakes in the project's configuration.
    """
    if unknown := [suite for suite in request.suites if suite not in SUITES]:
        raise UsageError(f"there is no suite {unknown[0]!r}", "the report is of another version of aifx", "aifx bench")
    if any(SUITES[suite].needs_project for suite in request.suites):
        load_config(find_project(folder), request.options.get("set") or ())


class Launches:
    """A bench on its way, of the project around `folder`, by default the working directory."""

    def __init__(self, request: Request, listener: Listener = lambda event: None, folder: Path | None = None) -> None:
        self.request = request
        self._folder = folder
        self._listener = listener
        self._seen: dict[str, list[Measured]] = {}
        self._notes: dict[str, list[str]] = {}
        self._fingerprint: Fingerprint | None = None
        self._model: str | None = None
        self._failure: Failure | None = None
        self._began, self._duration_s = time.time(), 0.0
        self._launched: Counter[str] = Counter()

    def run(self, counts: Mapping[str, int]) -> Report:
        """Launch suites so many times each, the first that fails being the last of its suite. Can be called again for
        more: what is returned is all that was measured until then."""
        started = time.monotonic()
        self._launched.update(counts)
        going = [suite for suite in self.request.suites if suite in counts]
        try:
            # Of all suites in turn: a machine that drifts affects all.
            for number in range(max(counts.values(), default=0)):
                for suite in [suite for suite in going if number < counts[suite]]:
                    total = self._launched[suite]
                    at = total - counts[suite] + number + 1
                    logger.info(f"{suite}: launch {at} of {total}" if total > 1 else suite)
                    if not self._launch(suite):
                        going.remove(suite)
        except KeyboardInterrupt as interrupt:
            by_sigterm = isinstance(interrupt, Terminated)
            why, code = ("SIGTERM", ExitCode.PREEMPTED) if by_sigterm else ("Ctrl-C", ExitCode.INTERRUPTED)
            if failed := self._failure:
                self._note(f"{failed.what}: {failed.why}")
            self._failure = Failure(what="the bench was interrupted", why=why, exit_code=int(code))
        self._duration_s += time.monotonic() - started
        results = [Result.of(launches) for launches in self._seen.values()]
        return Report(
            request=self.request,
            launches=max(self._launched.values(), default=0),
            time=self._began,
            duration_s=self._duration_s,
            fingerprint=self._fingerprint or Fingerprint(),
            results=results,
            notes=[
                *(n[0] if len(n) == 1 else f"{n[0]} ({len(n)} times)" for n in self._notes.values()),
                *_slow_starts(results),
                *_above_roofs(results),
            ],
            failure=self._failure,
            model=self._model,
        )

    def _launch(self, suite: str) -> bool:
        """Whether a launch came to its end."""
        request = json.dumps({"suite": suite, "quick": self.request.quick, "options": self.request.options})
        child = Child.of_module(
            "aifx.benchmarking.worker",
            request,
            env=with_huge_pages(os.environ),  # as training runs
            cwd=self._folder,
            silence_s=SILENCE_S,
            grace_s=GRACE_S,
        )
        try:
            with child:
                if any(self._take(event) for event in child.events()):
                    return False
        except KeyboardInterrupt:
            for event in child.take_events():  # it may report what it has when it is ended
                self._take(event)
            raise
        finally:
            publish(None)
        ended = child.wait()
        if ended.cut:
            self._fail(Failure(what=f"{suite} hangs", why=f"nothing was heard of it for {SILENCE_S:.0f} s"))
        elif not ended.succeeded:
            self._fail(Failure(what=f"{suite} ended before its time", why=ended.why))
        return ended.succeeded

    def _take(self, event: dict[str, Any]) -> bool:
        """Note an event; whether it is a failure."""
        if "result" in event:
            found = Measured.model_validate(event["result"])
            if self._model and found.model and found.model != self._model:
                why = f"{self._model[:12]} answered first, and {found.model[:12]} later"
                self._fail(Failure(what="another model was measured", why=why, hint="aifx bench serve URL"))
                return True
            self._model = self._model or found.model
            self._seen.setdefault(found.key, []).append(found)
            self._listener(found)
        elif "log" in event:
            logger.info(event["log"])
        elif "progress" in event:
            publish(event["progress"] and Progress(**event["progress"]))
        elif "note" in event:
            self._note(event["note"])
        elif "fingerprint" in event:
            before, self._fingerprint = self._fingerprint, Fingerprint.model_validate(event["fingerprint"])
            if before and (changes := before.obstacles(self._fingerprint)):
                self._fingerprint = before  # of what was measured
                self._fail(Failure(what="the devices have changed", why="; ".join(changes), hint="aifx doctor"))
                return True
            self._listener(self._fingerprint)
        elif "failure" in event:
            self._fail(Failure.model_validate(event["failure"]))
            return True
        return False

    def _fail(self, failure: Failure) -> None:
        """The first ends the bench with its code. Those of other suites become notes."""
        if self._failure is None:
            self._failure = failure
        else:
            self._note(f"{failure.what}: {failure.why}")

    def _note(self, text: str) -> None:
        """Keep a note. Notes that differ in shares alone become one, with how often it was made."""
        self._notes.setdefault(SHARE.sub("%", text), []).append(text)


def _slow_starts(results: list[Result]) -> Iterator[str]:
    """Results whose first launch was slower than each of the others, by SLOW_START of their median or more."""
    for result in results:
        first, *others = [statistics.median(launch) for launch in result.samples_s]
        if len(others) >= 2 and first > max(others) and first > (1 + SLOW_START) * statistics.median(others):
            slower = first / statistics.median(others) - 1
            yield f"{result.title}: the first launch was {slower:.0%} slower than the others"


def _above_roofs(results: list[Result]) -> Iterator[str]:
    """Results that are faster than the hardware is held to allow, the most so first."""
    shares = {result.title: result.roofline_fraction or 0.0 for result in results}
    above = sorted((title for title, share in shares.items() if share > ABOVE_ROOF), key=lambda title: -shares[title])
    if above:
        listed = units.listed([f"{title} {shares[title]:.0%}" for title in above])
        yield f"above the roofline, whose ceiling was measured too low (aifx bench hardware raises it): {listed}"

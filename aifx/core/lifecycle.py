"""The life of a process of aifx: the signals that it hears, the exit codes that they mean, and how it ends.

    with on_signals(stop):               call stop(number) in a thread for each signal; the main thread goes on
    with hear_signals(connection.interrupt): a thread hears the signals in addition to their handlers
    with sigterm_as_ctrl_c() as stop:    SIGTERM raises Terminated, as Ctrl-C raises KeyboardInterrupt
    with interrupt_or_request() as stop: both raise, except in a loop that polls `stop`
    with exit_after(60.0, 124, "..."):   a block that hangs ends the process
    exit_now(code)                       end the process here, without unwinding
    exit_soon(code)                      end it in a moment, however long what it still writes takes
    end_with(parent)                     end with the parent

Nothing else in aifx installs handlers, sets the wake-up descriptor or calls os._exit; `core/processes.py` supervises
children. Python runs a handler only between two bytecodes of the main thread, seconds late behind a compilation
(docs.python.org/3/library/signal.html, "Execution of Python signal handlers"). The C part of the handler, which runs
at once, writes the signal's number into `signal.set_wakeup_fd`; a thread reads it there. This is the self-pipe trick
(D. J. Bernstein, cr.yp.to/docs/selfpipe.html). No signal is blocked, so that processes started from here inherit
nothing.

The entry point hears signals from its first line (`enter`): SIGINT ends with 130 and SIGTERM with 75, with one answer
and no traceback. Its process goes through three phases. While it *starts* (imports, arguments) there is nothing to
finish: a signal ends it at once. While a command's *body* runs, a signal raises KeyboardInterrupt or Terminated in the
main thread, and the command may catch it. While it *ends*, the answer is being written: the first signal changes
nothing any more, a second one or `ENDING_S` ends the process at once.

This module imports little, so that it hears signals early.
"""

from __future__ import annotations

import _thread
import atexit
import os
import signal
import sys
import time
from contextlib import contextmanager, suppress

from aifx.core.errors import ExitCode, Terminated

TYPE_CHECKING = False  # importing typing takes as long as all else here
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
    from types import FrameType
    from typing import Any, NoReturn, TypeAlias

    Act: TypeAlias = Callable[[int], object]
    """Called with a signal's number."""

    Answer: TypeAlias = Callable[[int], int]
    """Called with a signal's number in any thread, while the main one may be anywhere. Returns the exit code."""

SIGNALS = (signal.SIGINT, signal.SIGTERM)

STOPS = (*SIGNALS, signal.SIGHUP)
"""The signals that stop a job: a terminal that closes sends SIGHUP."""

MAIN_THREAD_S = 5.0
"""Time that SIGTERM gives the main thread, which may be in a compiler, where Python runs no handler."""

ENDING_S = 3.0
"""Time that the answer, or the last words, may still take after a signal: their reader may have stalled."""

FOLLOW_S = 5.0
"""For a child of aifx to clean up if its parent is gone."""

MARK = 0  # no signal's number
STARTING, RUNNING, ENDING = "starting", "running", "ending"
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def exit_code_of(signum: int) -> ExitCode:
    return ExitCode.INTERRUPTED if signum == signal.SIGINT else ExitCode.PREEMPTED


def interrupt_of(signum: int) -> KeyboardInterrupt:
    """The exception of a command that a signal ends."""
    return KeyboardInterrupt() if signum == signal.SIGINT else Terminated()


def exit_now(code: int) -> NoReturn:
    """End the process here: nothing is unwound, no buffer is written, and no thread, library or child is waited for."""
    os._exit(code)


def exit_soon(code: int) -> None:
    """End the process in ENDING_S: the reader of what is written until then may have stalled.

    If no thread can start, for lack of memory or as Python finalizes, the kernel ends it then by SIGALRM.
    """

    def end() -> None:
        time.sleep(ENDING_S)
        exit_now(code)

    try:
        _thread.start_new_thread(end, ())
    except RuntimeError:
        signal.setitimer(signal.ITIMER_REAL, ENDING_S)


@contextmanager
def exit_after(limit_s: float, code: int, why: str) -> Iterator[None]:
    """End the process with `code` if the block takes longer, wherever it hangs, and write `why` to stderr."""
    import threading

    def end() -> None:
        exit_soon(code)
        os.write(2, f"{why}\n".encode())
        exit_now(code)

    timer = threading.Timer(limit_s, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def killed_after(limit_s: float) -> Iterator[None]:
    """Have the kernel end this process by SIGALRM if the block takes longer: also one that never returns to Python."""
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


class Listener:
    """A thread that calls `act` for each signal that has a handler of Python's, in order, however busy the main thread
    is. The latest listener hears, until it is closed; it is made and closed in the main thread."""

    def __init__(self, act: Act) -> None:
        import threading

        reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._act, self._marked = act, 0
        self._before = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._listen, args=(reader,), name="aifx-signals", daemon=True)
        self._thread.start()

    def take_over(self) -> None:
        """Hear again, after a library that took the descriptor of signals."""
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)

    def catch_up(self, limit_s: float) -> None:
        """Wait until `act` has returned for the signals so far: the thread may have to wait for its turn."""
        before, until = self._marked, time.monotonic() + limit_s
        with suppress(BlockingIOError):
            os.write(self._writer, bytes([MARK]))
        while self._marked == before and time.monotonic() < until:
            time.sleep(0.001)

    def close(self) -> None:
        """Hear no more, when `act` has returned."""
        signal.set_wakeup_fd(self._before)
        os.close(self._writer)
        self._thread.join()

    def _listen(self, reader: int) -> None:
        while data := os.read(reader, 1):
            if data[0] == MARK:
                self._marked += 1
                continue
            try:
                self._act(data[0])
            except Exception:  # the next signal is heard all the same
                sys.excepthook(*sys.exc_info())
        os.close(reader)


@contextmanager
def hear_signals(act: Act, numbers: Collection[int] = SIGNALS) -> Iterator[None]:
    """Call `act(number)` in a thread for each of these signals, in addition to its handler, which may come late.

    Does nothing outside of the main thread: Python gives signals to that one alone.
    """
    if not _is_main_thread():
        yield
        return
    listener = Listener(lambda number: act(number) if number in numbers else None)
    try:
        yield
    finally:
        listener.close()


@contextmanager
def on_signals(act: Act, numbers: Collection[int] = SIGNALS) -> Iterator[None]:
    """Call `act(number)` in another thread for each signal, at once. The main thread is not interrupted.

    SIGHUP ignored from the start (nohup) stays ignored. So does a SIGINT from the keyboard to a process that a shell
    started in the background; one sent on purpose to such a process is heard. Does nothing outside of the main thread.
    """
    if not _is_main_thread():
        yield
        return
    announced = _Announced(act)
    before = {number: signal.getsignal(number) for number in numbers if not _stays_ignored(number)}
    with hear_signals(announced.by_listener, before):
        try:
            for number in before:
                signal.signal(number, announced.by_handler)
                signal.siginterrupt(number, False)
            yield
        finally:
            _restore(before)


@contextmanager
def collect_signals(numbers: Collection[int] = STOPS) -> Iterator[list[int]]:
    """The signals that have come in the block, in order."""
    came: list[int] = []
    with on_signals(came.append, numbers):
        yield came


class StopRequests(list[int]):
    """The signals that have come, in order, and whether a block of `polling` is looking at them."""

    is_polled = False


@contextmanager
def interrupt_or_request() -> Iterator[StopRequests]:
    """Each signal raises KeyboardInterrupt or Terminated in here; the first one in a block of `polling` only requests.

    Ignored signals stay ignored as in `on_signals`. Does nothing outside of the main thread.
    """
    came = StopRequests()
    if not _is_main_thread():
        yield came
        return

    def handle(number: int, frame: FrameType | None) -> None:
        came.append(number)
        if not came.is_polled or len(came) > 1:
            raise interrupt_of(number)

    with own_handlers():
        for number in SIGNALS:
            if not _stays_ignored(number):
                signal.signal(number, handle)
        yield came


@contextmanager
def polling(stop: Sequence[int]) -> Iterator[None]:
    """Mark a block that polls `stop` and ends by itself, so that the first signal does not interrupt it anywhere."""
    if not isinstance(stop, StopRequests):
        yield
        return
    stop.is_polled = True
    try:
        yield
    finally:
        stop.is_polled = False


def num_acted_on() -> int:
    """The number of signals that `on_signals` has acted on so far, for code that waits: nothing interrupts it."""
    return _num_acted_on


class _Announced:
    """Signals that are announced twice, by the thread that listens and by their handler, and acted on once.

    The handler alone announces one if a library in the main thread has put a descriptor of its own in place of ours.
    Signals are counted by number: between the two announcements of one, another one may come.
    """

    def __init__(self, act: Act) -> None:
        self._act = act
        self._lock = _thread.allocate_lock()
        self._listened: dict[int, int] = {}
        self._handled: dict[int, int] = {}
        self._acted: dict[int, int] = {}

    def by_listener(self, number: int) -> None:
        self._listened[number] = self._listened.get(number, 0) + 1
        self._act_once(number)

    def by_handler(self, number: int, frame: FrameType | None) -> None:
        self._handled[number] = self._handled.get(number, 0) + 1
        if self._handled[number] > self._listened.get(number, 0):  # in a thread, since this one may hold locks
            _thread.start_new_thread(self._act_once, (number,))

    def _act_once(self, number: int) -> None:
        global _num_acted_on
        with self._lock:
            acted = self._acted.get(number, 0)
            if max(self._listened.get(number, 0), self._handled.get(number, 0)) <= acted:
                return
            self._acted[number] = acted + 1
            _num_acted_on += 1
        self._act(number)


class Stop:
    """The exit code of a command that was interrupted."""

    def __init__(self) -> None:
        self.code = ExitCode.INTERRUPTED


@contextmanager
def sigterm_as_ctrl_c() -> Iterator[Stop]:
    """SIGTERM raises Terminated in here, each time."""
    stop = Stop()

    def end(*_: object) -> NoReturn:
        stop.code = ExitCode.PREEMPTED
        raise Terminated

    with own_handlers():
        signal.signal(signal.SIGTERM, end)
        yield stop


def leave_on_sigterm() -> None:
    """SIGTERM ends this process as SystemExit does, with 75: for programs without commands."""

    def leave(*_: object) -> NoReturn:
        raise SystemExit(int(ExitCode.PREEMPTED))

    signal.signal(signal.SIGTERM, leave)


@contextmanager
def own_handlers() -> Iterator[None]:
    """Restore the handlers of signals that the block, or a library in it, replaces."""
    before = {number: signal.getsignal(number) for number in STOPS}
    try:
        yield
    finally:
        if _is_main_thread():
            _restore(before)


@contextmanager
def blocked() -> Iterator[None]:
    """Hold back signals: the program replaces itself, and hears them when it has entered again."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def on_abort(decide: Callable[[], int | None]) -> None:
    """Call `decide` in a thread of C that calls abort(). The process ends with the code that it returns; without one,
    it aborts."""
    import ctypes

    libc = ctypes.CDLL(None)

    def handle(_: int) -> None:
        if (code := decide()) is not None:
            exit_now(code)
        libc.signal(signal.SIGABRT, None)  # SIG_DFL: abort() goes on

    global _abort_handler  # C keeps a pointer to it
    _abort_handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(handle)
    libc.signal(signal.SIGABRT, _abort_handler)


def end_with(parent: int) -> None:
    """Have the kernel send SIGTERM to this process when its parent, of this number, ends. On Linux only."""
    if sys.platform.startswith("linux"):
        import ctypes

        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))
        if os.getppid() != parent:  # it has ended already
            os.kill(os.getpid(), signal.SIGTERM)


def follow(wait: Callable[[], object], *, at_once: bool = False) -> None:
    """End this process when `wait`, in a thread, returns: its parent is gone. It gets SIGTERM, and after FOLLOW_S its
    group is killed, or `at_once`."""
    import threading

    def end() -> None:
        wait()
        if at_once:
            os.killpg(0, signal.SIGKILL)
        atexit.register(os.killpg, 0, signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(FOLLOW_S)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=end, daemon=True, name="follow").start()


def enter(find_answer: Callable[[], Answer]) -> None:
    """Hear signals from the entry point on, those that came during a restart of the program included.

    Nothing is heard in a process that somebody else's program started.

    Args:
        find_answer: called while signals wait. What it returns writes the answer of a command that a signal ends
            before it has one.
    """
    global _entry
    with blocked():
        _entry = _Entry()
        _entry.install()
        atexit.register(_entry.close)  # the first one registered runs last
        os.register_at_fork(after_in_child=_forget)
        _entry.answer = find_answer()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def is_entered() -> bool:
    """Whether this process was started for this command alone."""
    return _entry is not None


def run_body() -> None:
    """Enter the body of a command: signals interrupt it from here on."""
    if _entry is not None:
        _entry.run_body()


def end_body() -> None:
    """Leave the body of a command: its answer is written from here on, and a signal does not change it."""
    if _entry is not None:
        _entry.end()


def cause_of(error: BaseException) -> BaseException:
    """The interrupt behind `error`, if a signal came: libraries turn one that hits their imports into other errors."""
    if _entry is not None and _entry.seen is None and not isinstance(error, KeyboardInterrupt):
        _entry.catch_up()
    seen = _entry.seen if _entry is not None else None
    is_told = getattr(error, "exit_code", None) in (ExitCode.INTERRUPTED, ExitCode.PREEMPTED)
    if seen is None or is_told or isinstance(error, KeyboardInterrupt):
        return error
    return interrupt_of(seen)


class _Entry:
    """The signals of a process whose only command aifx runs. Entered in the main thread, once, and never left."""

    def __init__(self) -> None:
        self.answer: Answer = exit_code_of
        self.phase = STARTING
        self.seen: int | None = None  # the first signal of the body, as the C handler heard it
        self._raised = False
        self._count = 0
        self._listener: Listener | None = None
        self._lock = _thread.allocate_lock()
        self._ignored = {number for number in SIGNALS if signal.getsignal(number) is signal.SIG_IGN}

    def install(self) -> None:
        """Install the handlers of the phase, in place of what a library left."""
        for number in SIGNALS:
            if number not in self._ignored:
                # asyncio.run cancels its tasks at Ctrl-C only if the handler is Python's own.
                is_pythons = number == signal.SIGINT and self.phase == RUNNING
                signal.signal(number, signal.default_int_handler if is_pythons else self._handle)
        if self._listener is not None:
            self._listener.take_over()

    def run_body(self) -> None:
        if self._listener is None:
            self._listener = Listener(self._on_signal)
        self.phase = RUNNING
        self.install()
        sys.unraisablehook = self._raise_again

    def end(self) -> None:
        with self._lock:  # held for good by a thread that ends the process
            self.phase = ENDING
        self.install()

    def close(self) -> None:
        """Ignore signals: aifx has finished, and Python is about to remove its handlers."""
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def catch_up(self) -> None:
        if self._listener is not None:
            self._listener.catch_up(MAIN_THREAD_S)

    def _raise_again(self, dropped: sys.UnraisableHookArgs) -> None:
        """Raise an interrupt again that hit code which lets no exception through, as JAX's in garbage collections."""
        if self.phase != RUNNING or not issubclass(dropped.exc_type, KeyboardInterrupt):
            sys.__unraisablehook__(dropped)
            return
        self._raised = False
        signal.signal(signal.SIGURG, _do_nothing)
        number = signal.SIGTERM if issubclass(dropped.exc_type, Terminated) else signal.SIGINT
        _thread.start_new_thread(_interrupt_soon, (_thread.get_ident(), number))

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        # The first SIGTERM of a body asks: the command can save, and end its children. A second one insists, so the
        # process ends at once, with its exit code. (SIGINT has Python's own handler meanwhile: each raises
        # KeyboardInterrupt.) While the answer is written, a first signal comes too late to change it, and a second
        # one ends the process.
        if self.phase == STARTING:
            self._leave(signum)
        elif self.phase == ENDING:
            self._count += 1
            if self._count > 1:
                exit_now(exit_code_of(signum))
        elif self._raised:
            self._leave(signum)
        else:
            self._raised = True
            raise Terminated

    def _on_signal(self, signum: int) -> None:
        """Act on a signal while the main thread is busy outside of the interpreter. Runs in the listener's thread."""
        if signum not in SIGNALS:
            return
        self.seen = self.seen or signum
        if self.phase == ENDING:
            exit_soon(exit_code_of(signum))
        elif signum == signal.SIGTERM and signal.getsignal(signum) == self._handle:
            _thread.start_new_thread(self._await_main, (signum,))

    def _await_main(self, signum: int) -> None:
        time.sleep(MAIN_THREAD_S)
        with self._lock:
            if self.phase == RUNNING and not self._raised:
                self._leave(signum)

    def _leave(self, signum: int) -> NoReturn:
        """End the process at once, with its one document or its error."""
        code = int(exit_code_of(signum))
        exit_soon(code)
        with suppress(BaseException):
            code = self.answer(signum)
        exit_now(code)


_entry: _Entry | None = None
_num_acted_on = 0
_abort_handler: Any = None


def _is_main_thread() -> bool:
    import threading

    return threading.current_thread() is threading.main_thread()


def _restore(handlers: Mapping[Any, Any]) -> None:
    for number, handler in handlers.items():
        if handler is not None:  # that of a library of C
            signal.signal(number, handler)


def _stays_ignored(signum: int) -> bool:
    """Whether a process that was started to ignore a signal goes on to do so."""
    if signal.getsignal(signum) is not signal.SIG_IGN:
        return False
    return signum == signal.SIGHUP or (signum == signal.SIGINT and _keyboard_reaches_us())


def _keyboard_reaches_us() -> bool:
    """Whether ^C at the terminal goes to this process: it is in the terminal's foreground group."""
    try:
        with open("/dev/tty", "rb", buffering=0) as terminal:
            return os.tcgetpgrp(terminal.fileno()) == os.getpgrp()
    except OSError:
        return False


def _do_nothing(signum: int, frame: FrameType | None) -> None:
    """Let a signal end a sleep, after which Python handles the others that came."""


def _interrupt_soon(thread: int, number: int) -> None:
    """Send a signal to the thread once it has left `_raise_again`, in which an interrupt would be dropped as well."""
    is_inside = True
    while is_inside:
        time.sleep(0.01)
        frame = innermost = sys._current_frames().get(thread)
        is_inside = False
        while frame is not None:
            is_inside = is_inside or frame.f_code is _Entry._raise_again.__code__
            frame = frame.f_back
    if innermost is None:
        return
    at = innermost.f_lasti
    signal.pthread_kill(thread, number)
    # Python does not see a signal that comes just before a system call until that call ends, which may be a long sleep.
    while sys._current_frames().get(thread) is innermost and innermost.f_lasti == at:
        time.sleep(0.05)
        signal.pthread_kill(thread, signal.SIGURG)


def _forget() -> None:
    """Restore the default handlers in a forked child, which is not aifx: signals end it as they end any process."""
    global _entry
    _entry = None
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    with suppress(ValueError):
        signal.set_wakeup_fd(-1)

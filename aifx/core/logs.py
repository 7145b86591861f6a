"""The log of aifx: each module logs to `logging.getLogger(__name__)`, and a command or a run takes the lines."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager


class LineHandler(logging.Handler):
    """Calls `write` with each record as text. The caller who logged gets what `write` raises."""

    def __init__(self, write: Callable[[str], None], formatter: logging.Formatter | None = None) -> None:
        super().__init__()
        self._write = write
        self.setFormatter(formatter)

    def emit(self, record: logging.LogRecord) -> None:
        self._write(self.format(record))


class LineFormatter(logging.Formatter):
    """The message as it is, after "warning: " if it is one."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return f"warning: {text}" if record.levelno >= logging.WARNING else text


@contextmanager
def log_lines(write: Callable[[str], None], *, propagate: bool = True) -> Iterator[None]:
    """Call `write` with each line that aifx logs. `propagate` is that of `log_to`."""
    with log_to(LineHandler(write, LineFormatter()), propagate=propagate):
        yield


@contextmanager
def log_to(handler: logging.Handler, *, propagate: bool = True) -> Iterator[None]:
    """Give `handler` what aifx and jax_kernels log at level INFO or above.

    Args:
        propagate: let the handlers of the root logger have what they would have had without `handler`. Some packages
            install one that writes to stderr when they are imported.
    """
    with ExitStack() as undo:
        for logger in map(logging.getLogger, ("aifx", "jax_kernels")):
            handlers = [handler]
            if propagate and logger.propagate:
                handlers.append(_ToRoot(logger.getEffectiveLevel()))
            undo.callback(logger.setLevel, logger.level)
            undo.callback(setattr, logger, "propagate", logger.propagate)
            if not logger.isEnabledFor(logging.INFO):
                logger.setLevel(logging.INFO)
            logger.propagate = False
            for one in handlers:
                logger.addHandler(one)
                undo.callback(logger.removeHandler, one)
        yield


@contextmanager
def at_level(name: str, level: int) -> Iterator[None]:
    """Log nothing below a level, by the logger of this name and those below it."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)


class _ToRoot(logging.Handler):
    """Passes records to the root logger, by the level that others chose for aifx: a run's log file may take more."""

    def emit(self, record: logging.LogRecord) -> None:
        logging.getLogger().handle(record)


@contextmanager
def python_warnings(write: Callable[[str], None]) -> Iterator[None]:
    """Turn Python's warnings into log records of "py.warnings", and call `write` with those that no filter takes."""
    logger = logging.getLogger("py.warnings")
    handler = LineHandler(lambda text: write(text.rstrip("\n")))
    before = logger.propagate
    logging.captureWarnings(True)
    logger.propagate = False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = before
        logging.captureWarnings(False)

"""Progress of long work: a bar on a terminal and in a notebook, occasional lines in a file, and log messages.

The start and end of all work go to `logging.getLogger("moe_probe")` at level INFO, whether progress is shown or not.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from moe_probe.shown import in_markup, printable

SECONDS_BETWEEN_LINES = 30.0
LOG = logging.getLogger("moe_probe")
LOG.addHandler(logging.NullHandler())
_QUIET: ContextVar[bool] = ContextVar("quiet", default=False)


@contextmanager
def quiet(asked: bool = True) -> Iterator[None]:
    """A context in which no progress is shown, if `asked`."""
    token = _QUIET.set(asked or _QUIET.get())
    try:
        yield
    finally:
        _QUIET.reset(token)


@contextmanager
def reporting(description: str, total: int, show: bool = True) -> Iterator[Callable[[], None]]:
    """A context that shows progress on stderr and logs it; yields a function that advances it by one step.

    Args:
        description: of the work, or of what is counted.
        total: number of steps.
        show: whether to show progress.

    Examples:
        >>> with reporting("layers", 2, show=False) as advance:
        ...     advance()
    """
    began = time.monotonic()
    LOG.info("%s: %d to do", printable(description), total)
    with _shown(description, total, show and not _QUIET.get()) as advance:
        yield advance
    LOG.info("%s: done in %.1f s", printable(description), time.monotonic() - began)


@contextmanager
def _shown(description: str, total: int, show: bool) -> Iterator[Callable[[], None]]:
    console = Console(stderr=True)
    if not show:
        yield lambda: None
    elif console.is_terminal or console.is_jupyter:
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        ) as bar:
            task = bar.add_task(in_markup(description), total=total)
            yield lambda: bar.advance(task)
    else:
        yield _Lines(description, total, console).advance


class _Lines:
    """Progress in a file: every half minute, a line with the steps done and an estimate of the time left."""

    def __init__(self, description: str, total: int, console: Console):
        self.description, self.total, self.console = printable(description), total, console
        self.done, self.began = 0, time.monotonic()
        self.said = self.began

    def advance(self) -> None:
        self.done += 1
        now = time.monotonic()
        if now - self.said >= SECONDS_BETWEEN_LINES and self.done < self.total:
            self.said = now
            left = timedelta(seconds=round((now - self.began) / self.done * (self.total - self.done)))
            line = f"{self.description}: {self.done:,} of {self.total:,}, {left} left"
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)

"""Progress of long work: a bar on a terminal and in a notebook, a line from time to time in a file."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from moe_probe.shown import in_markup, printable

SECONDS_BETWEEN_LINES = 30.0


@contextmanager
def reporting(description: str, total: int, show: bool = True) -> Iterator[Callable[[], None]]:
    """Within, progress is shown on stderr; gives what advances it by one.

    Args:
        description: of the work, or of what is counted.
        total: number of steps.
        show: whether anything is shown.

    Examples:
        >>> with reporting("layers", 2, show=False) as advance:
        ...     advance()
    """
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
    """Progress in a file: how much is done, and about how long the rest takes, every half minute."""

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

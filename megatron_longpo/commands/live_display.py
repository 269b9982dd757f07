"""What shows how a long verb goes on: a live display on a terminal, a line now and then anywhere else; on stderr."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from threading import Lock
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

SECONDS_PER_LINE = 15.0
"""How often a log file hears of the progress."""
WINDOW_SECONDS = 60.0
"""Over which tokens per second are taken, back to the answer before it."""
_BAR_CHARACTERS = 40


class LiveDisplay(ABC):
    """A context manager; what it shows are lines of a name and a text, and a bar."""

    _LOG_PREFIX = ""
    """Of its lines in a log."""

    def __init__(self, console: Console | None, clock: Callable[[], float]) -> None:
        """Begin now.

        Args:
            console: stderr if None.
            clock: tells seconds.
        """
        self._clock, self._started = clock, clock()
        self._last_line = self._started
        self._console = console or Console(stderr=True)
        self._lock = Lock()  # the live display is drawn by a thread of its own
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live = Live(get_renderable=self._drawn, console=self._console, refresh_per_second=2)
            self._live.start(refresh=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()  # draws once more

    @abstractmethod
    def _shown(self) -> list[tuple[str, str]]:
        """Name and text of every line of the display, or of every part of a log's line."""

    @abstractmethod
    def _bar(self) -> tuple[int, int]:
        """What is done, and of how much; (_, 0) where that is not known."""

    def _tell(self) -> None:
        """Something went on: a log hears of it if it has heard nothing for a while."""
        if self._live is None and self._clock() - self._last_line >= SECONDS_PER_LINE:
            self._print_progress()

    def _print_progress(self) -> None:
        self._print(self._LOG_PREFIX + "; ".join(f"{name} {text}" for name, text in self._shown()))

    def _print(self, line: str) -> None:
        self._last_line = self._clock()
        print_line(self._console, line)

    def _drawn(self) -> Table:
        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="dim", no_wrap=True)
        for name, text in self._shown():
            grid.add_row(name, text)
        done, total = self._bar()
        if total:
            grid.add_row("", ProgressBar(total, min(done, total), width=_BAR_CHARACTERS))
        return grid


class RecentRate:
    """How fast a count of tokens has grown of late."""

    def __init__(self, now: float, count: int = 0) -> None:
        self._counts = deque([(now, count)])

    def add(self, now: float, count: int) -> None:
        """The count has grown to this."""
        self._counts.append((now, count))
        while now - self._counts[1][0] >= WINDOW_SECONDS:
            self._counts.popleft()

    def per_second(self, now: float) -> float:
        """Since the start of the window."""
        (start, before), (_, count) = self._counts[0], self._counts[-1]
        return (count - before) / max(now - start, 1e-3)


def print_line(console: Console, line: str) -> None:
    """One line, however long: a log has no width."""
    console.print(line, soft_wrap=True, markup=False, highlight=False)

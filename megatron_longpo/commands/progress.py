"""Progress through input files: a bar on a terminal, a line now and then anywhere else."""

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

_SECONDS_PER_LINE = 15.0
"""How often a log file hears of the progress."""


class InputProgress:
    """Counts input bytes, pairs and tokens and shows them on stderr; a context manager."""

    def __init__(self, what: str, num_bytes: int) -> None:
        self._what, self._num_bytes = what, num_bytes
        self._done_bytes = self._num_pairs = self._num_tokens = 0
        self._started = self._last_line = time.monotonic()
        self._bar: Progress | None = None
        if sys.stderr.isatty():
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                DownloadColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._task = self._bar.add_task(what, total=num_bytes, rate="")

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    @property
    def seconds(self) -> float:
        """Since this object was made."""
        return time.monotonic() - self._started

    def advance(self, num_bytes: int, num_tokens: int) -> None:
        """One more pair is done: so much of the input, so many tokens of output."""
        self._done_bytes += num_bytes
        self._num_pairs += 1
        self._num_tokens += num_tokens
        rate = f"{self._num_pairs:,} pairs, {self._num_tokens / max(self.seconds, 1e-3):,.0f} tokens/s"
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done_bytes, rate=rate)
        elif time.monotonic() - self._last_line > _SECONDS_PER_LINE:
            self._last_line = time.monotonic()
            print(f"{self._what}: {self._done_bytes / self._num_bytes:.0%}, {rate}", file=sys.stderr, flush=True)

"""How ``megatron-longpo evaluate run`` goes on: a live display on a terminal, a line now and then anywhere else."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from threading import Lock
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from megatron_longpo.evaluate.cells import Cell
from megatron_longpo.evaluate.run.wanted import Wanted
from megatron_longpo.generate.report.summary import duration

SECONDS_PER_LINE = 15.0
"""How often a log file hears of a cell's progress."""
WINDOW_SECONDS = 60.0
"""Over which tokens per second are taken, back to the answer before it."""
_BAR_CHARACTERS = 40


class RunDisplay:
    """Watches a run (`run.Observer`) and shows on stderr how it goes on; a context manager."""

    def __init__(
        self,
        cells: Sequence[Wanted],
        num_there: int,
        *,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin with the cells that are to be made.

        Args:
            num_there: cells of the plan that were there before.
            console: stderr if None.
            clock: tells seconds.
        """
        self._num_there, self._num_cells = num_there, num_there + len(cells)
        self._tokens_left = sum(wanted.num_tokens for wanted in cells)
        self._clock, self._started = clock, clock()
        self._last_line = self._started
        self._tokens = 0
        """Answered by this process."""
        self._recent = deque([(self._started, 0)])
        self._title, self._done, self._total = "", 0, 0
        self._console = console or Console(stderr=True)
        self._lock = Lock()  # the live display is drawn by a thread of its own
        self._live: Live | None = None
        if self._console.is_terminal:
            self._live = Live(get_renderable=self._drawn, console=self._console, refresh_per_second=2)

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start(refresh=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def opening(self, wanted: Wanted) -> None:
        """The engine is being opened."""
        self._print(f"opening {wanted.model.name} ({wanted.engine}, {wanted.settings['dtype']}): {wanted.model.folder}")

    def begun(self, wanted: Wanted, num_done: int, num_tokens: int) -> None:
        """A cell is begun, or gone on with."""
        with self._lock:
            self._title, self._done, self._total = wanted.title, num_done, wanted.num_prompts
            self._tokens_left -= num_tokens
        if num_done:
            self._print(f"{wanted.title}: goes on with {num_done:,} answers of an earlier run")

    def answered(self, num_prompt_tokens: int, num_new_tokens: int) -> None:
        """A prompt was answered."""
        with self._lock:
            now = self._clock()
            self._done += 1
            self._tokens += num_prompt_tokens + num_new_tokens
            self._tokens_left -= num_prompt_tokens + num_new_tokens
            self._recent.append((now, self._tokens))
            while now - self._recent[1][0] >= WINDOW_SECONDS:
                self._recent.popleft()
        self._tell()

    def progressed(self, num_done: int, num_requests: int) -> None:
        """Requests of a short task were answered."""
        with self._lock:
            self._done, self._total = num_done, num_requests
        self._tell()

    def finished(self, wanted: Wanted, cell: Cell | None) -> None:
        """A cell is there, or in other hands."""
        if cell is None:
            with self._lock:
                self._num_cells -= 1
                self._tokens_left -= wanted.num_tokens
            self._print(f"{wanted.title}: another process makes it")
            return
        with self._lock:
            self._num_there += 1
        error = "" if cell.standard_error is None else f" ± {cell.standard_error:.1f}"
        cut = f", {cell.num_truncated} cut in the middle" if cell.num_truncated else ""
        tokens = f"{(cell.prompt_tokens + cell.new_tokens) / max(cell.seconds, 1e-3):,.0f} tokens/s"
        self._print(
            f"[{self._num_there}/{self._num_cells}] {wanted.title}: {cell.score:.1f}{error} of {cell.num:,} "
            f"({duration(cell.seconds)}, {tokens}{cut})"
        )

    def _tell(self) -> None:
        if self._live is None and self._clock() - self._last_line >= SECONDS_PER_LINE:
            self._print("; ".join(f"{name} {text}" for name, text in self._shown()))

    def _print(self, line: str) -> None:
        """One line, however long: a log has no width."""
        self._last_line = self._clock()
        self._console.print(line, soft_wrap=True, markup=False, highlight=False)

    def _drawn(self) -> Table:
        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="dim", no_wrap=True)
        for name, text in self._shown():
            grid.add_row(name, text)
        if self._total:
            grid.add_row("", ProgressBar(self._total, min(self._done, self._total), width=_BAR_CHARACTERS))
        return grid

    def _shown(self) -> list[tuple[str, str]]:
        with self._lock:
            now = self._clock()
            start, tokens = self._recent[0]
            rate = (self._tokens - tokens) / max(now - start, 1e-3)
            left = duration(max(self._tokens_left, 0) / rate) if rate else "?"
            return [
                ("cells", f"{self._num_there:,} of {self._num_cells:,}"),
                ("now", f"{self._title}, {self._done:,} of {self._total:,}" if self._title else "opening the model"),
                ("time", f"{duration(now - self._started)}, {left} left for long prompts at {rate:,.0f} tokens/s"),
            ]

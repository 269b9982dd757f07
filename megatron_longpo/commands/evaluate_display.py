"""How ``megatron-longpo evaluate run`` goes on: a live display on a terminal, a line now and then anywhere else."""

import time
from collections.abc import Callable, Sequence

from rich.console import Console

from megatron_longpo.commands.live_display import LiveDisplay, RecentRate
from megatron_longpo.evaluate.cells import Cell
from megatron_longpo.evaluate.run.wanted import Wanted
from megatron_longpo.generate.report.summary import duration


class RunDisplay(LiveDisplay):
    """Watches a run (`run.Observer`)."""

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
        super().__init__(console, clock)
        self._num_there, self._num_cells = num_there, num_there + len(cells)
        self._tokens_left = sum(wanted.num_tokens for wanted in cells)
        self._tokens = 0
        """Answered by this process."""
        self._recent = RecentRate(self._started)
        self._title, self._done, self._total = "", 0, 0

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
            self._done += 1
            self._tokens += num_prompt_tokens + num_new_tokens
            self._tokens_left -= num_prompt_tokens + num_new_tokens
            self._recent.add(self._clock(), self._tokens)
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

    def _bar(self) -> tuple[int, int]:
        return self._done, self._total

    def _shown(self) -> list[tuple[str, str]]:
        with self._lock:
            now = self._clock()
            rate = self._recent.per_second(now)
            left = duration(max(self._tokens_left, 0) / rate) if rate else "?"
            return [
                ("cells", f"{self._num_there:,} of {self._num_cells:,}"),
                ("now", f"{self._title}, {self._done:,} of {self._total:,}" if self._title else "opening the model"),
                ("time", f"{duration(now - self._started)}, {left} left for long prompts at {rate:,.0f} tokens/s"),
            ]

"""How ``megatron-longpo generate`` goes on: a live display on a terminal, a line now and then anywhere else.

And what a run gave, at its end.
"""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from megatron_longpo.generate.engine import Completion
from megatron_longpo.generate.journal import Journal
from megatron_longpo.generate.merge import Tally
from megatron_longpo.generate.procedure import Outcome
from megatron_longpo.generate.report.summary import drops, duration, num_whole_contexts

SECONDS_PER_LINE = 15.0
"""How often a log file hears of the progress."""
WINDOW_SECONDS = 60.0
"""Over which tokens per second are taken, back to the answer before it."""
_MOST_DROPS = 3
_BAR_CHARACTERS = 40


class GenerateDisplay:
    """Watches a shard's run (`run.Observer`) and shows on stderr how it goes on; a context manager."""

    def __init__(
        self,
        journal: Journal,
        min_turns: int,
        *,
        total: int | None = None,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin with what earlier sessions did, as ``journal`` has it.

        Args:
            min_turns: a context with fewer usable turns gave no pair.
            total: long contexts of the shard, the earlier sessions' among them, if that is known; it may be set later.
            console: stderr if None.
            clock: tells seconds.
        """
        self.total = total
        self._tally = tally_of(journal, min_turns)
        self._num_before, self._seconds_before, self._clock = self._tally.contexts, self._tally.seconds, clock
        self._started = self._last_line = clock()
        self._recent = deque([(self._started, self._tally.prompt_tokens, self._tally.new_tokens)])
        self._console = console or Console(stderr=True)
        self._lock = Lock()  # the live display is drawn by a thread of its own
        self._most_drops: int | None = _MOST_DROPS
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
        self._most_drops = None
        if self._live is not None:
            self._live.stop()  # draws once more
        else:
            self._print_line()

    def answered(self, completion: Completion) -> None:
        """A request was answered by the engine, now."""
        with self._lock:
            tally, now = self._tally, self._clock()
            tally.requests += 1
            tally.prompt_tokens += completion.num_prompt_tokens
            tally.new_tokens += completion.num_new_tokens
            self._recent.append((now, tally.prompt_tokens, tally.new_tokens))
            while now - self._recent[1][0] >= WINDOW_SECONDS:
                self._recent.popleft()
        self._tell()

    def finished(self, outcome: Outcome) -> None:
        """A long context is done."""
        with self._lock:
            _add(self._tally, outcome.asked, outcome.dropped, outcome.turns, outcome.pair is not None)
        self._tell()

    def _tell(self) -> None:
        if self._live is None and self._clock() - self._last_line >= SECONDS_PER_LINE:
            self._print_line()

    def _print_line(self) -> None:
        self._last_line = self._clock()
        _print(self._console, "generate: " + "; ".join(f"{name} {text}" for name, text in self._shown()))

    def _drawn(self) -> Table:
        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="dim", no_wrap=True)
        for name, text in self._shown():
            grid.add_row(name, text)
        if self.total:
            grid.add_row("", ProgressBar(self.total, min(self._tally.contexts, self.total), width=_BAR_CHARACTERS))
        return grid

    def _shown(self) -> list[tuple[str, str]]:
        """Name and text of every line of the display, or of every part of a log's line."""
        with self._lock:
            tally, now = self._tally, self._clock()
            of_total = "" if self.total is None else f" of {self.total:,}"
            kept = f" ({tally.turns / tally.asked:.0%} of {tally.asked:,} chunks)" if tally.asked else ""
            prompt_rate, new_rate = self._rates(now)
            before = f" (and {duration(self._seconds_before)} before)" if self._seconds_before else ""
            return [
                ("long contexts", f"{tally.contexts:,}{of_total}"),
                ("kept", f"pairs {tally.pairs:,}, turns {tally.turns:,}{kept}"),
                ("dropped", _listed(tally.dropped.most_common(), self._most_drops)),
                ("requests", f"{tally.requests:,} ({prompt_rate:,.0f} prompt and {new_rate:,.0f} new tokens/s)"),
                ("time", f"{duration(now - self._started)}{before}, {self._time_left(now)} left"),
            ]

    def _rates(self, now: float) -> tuple[float, float]:
        """Prompt and new tokens per second, of late."""
        start, prompt_tokens, new_tokens = self._recent[0]
        seconds = max(now - start, 1e-3)
        return (self._tally.prompt_tokens - prompt_tokens) / seconds, (self._tally.new_tokens - new_tokens) / seconds

    def _time_left(self, now: float) -> str:
        """Estimate it by the speed of this session: earlier ones may have had another machine."""
        num_done = self._tally.contexts - self._num_before
        if self.total is None or not num_done:
            return "?"
        return duration(max(self.total - self._tally.contexts, 0) * (now - self._started) / num_done)


def tally_of(journal: Journal, min_turns: int) -> Tally:
    """What a journal holds, duplicates among its turns included.

    Args:
        min_turns: a context with fewer usable turns gave no pair.
    """
    tally = Tally(seconds=journal.seconds, requests=len(journal.answers))
    tally.prompt_tokens = sum(answer.num_prompt_tokens for answer in journal.answers.values())
    tally.new_tokens = sum(answer.num_new_tokens for answer in journal.answers.values())
    for line in journal.done.values():
        _add(tally, line["asked"], line["dropped"], line["turns"], line["turns"] >= min_turns)
    return tally


def print_summary(manifest: Mapping[str, Any], output: Path, console: Console) -> None:
    """What a run gave: pairs and turns, what was dropped, tokens, time.

    Args:
        manifest: what `merge.merge` returned.
        output: the file of pairs.
    """
    counts = manifest["counts"]
    num_whole = num_whole_contexts(counts)
    left_out = f" ({num_whole:,} more held control tokens)" if num_whole else ""
    rate = f"{counts['new_tokens'] / counts['seconds']:,.1f}" if counts["seconds"] else "?"
    lines = [
        ("pairs", f"{counts['pairs']:,}, from {counts['contexts'] - num_whole:,} long contexts{left_out}"),
        ("turns", f"{counts['turns']:,} of {counts['asked']:,} chunks ({counts['turns'] / counts['asked']:.1%})"),
        ("dropped", _listed(drops(counts))),
        ("requests", f"{counts['requests']:,}"),
        ("tokens", f"{counts['prompt_tokens']:,} of prompts, {counts['new_tokens']:,} new"),
        ("time", f"{duration(counts['seconds'])}, {rate} new tokens/s"),
        ("sources", _listed(list(counts["sources"].items()))),
    ]
    _print(console, f"{output}:")
    for name, text in lines:
        _print(console, f"  {name:<8}  {text}")


def _add(tally: Tally, asked: int, dropped: Mapping[str, int], turns: int, is_pair: bool) -> None:
    tally.contexts += 1
    tally.asked += asked
    tally.dropped.update(dropped)
    tally.usable_turns += turns
    tally.pairs += is_pair
    tally.turns += turns if is_pair else 0


def _listed(numbers: Sequence[tuple[str, int]], most: int | None = None) -> str:
    """Like ``cut off 60, refusal 41, others 7``."""
    shown = [f"{name} {count:,}" for name, count in numbers[:most]]
    others = sum(count for _, count in numbers[most:]) if most is not None else 0
    return ", ".join([*shown, *([f"others {others:,}"] if others else [])]) or "none"


def _print(console: Console, line: str) -> None:
    """One line, however long: a log has no width."""
    console.print(line, soft_wrap=True, markup=False, highlight=False)

"""How ``megatron-longpo generate`` goes on: a live display on a terminal, a line now and then anywhere else.

And what a run gave, at its end.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console

from megatron_longpo.commands.live_display import LiveDisplay, RecentRate, print_line
from megatron_longpo.generate.engine import Completion
from megatron_longpo.generate.journal import Journal
from megatron_longpo.generate.merge import Tally
from megatron_longpo.generate.procedure import Outcome
from megatron_longpo.generate.report.summary import drops, duration, num_whole_contexts

_MOST_DROPS = 3


class GenerateDisplay(LiveDisplay):
    """Watches a shard's run (`run.Observer`)."""

    _LOG_PREFIX = "generate: "

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
        super().__init__(console, clock)
        self.total = total
        self._tally = tally_of(journal, min_turns)
        self._num_before, self._seconds_before = self._tally.contexts, self._tally.seconds
        self._prompt_rate = RecentRate(self._started, self._tally.prompt_tokens)
        self._new_rate = RecentRate(self._started, self._tally.new_tokens)
        self._most_drops: int | None = _MOST_DROPS

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._most_drops = None
        super().__exit__(kind, error, trace)
        if self._live is None:
            self._print_progress()

    def answered(self, completion: Completion) -> None:
        """A request was answered by the engine, now."""
        with self._lock:
            tally, now = self._tally, self._clock()
            tally.requests += 1
            tally.prompt_tokens += completion.num_prompt_tokens
            tally.new_tokens += completion.num_new_tokens
            self._prompt_rate.add(now, tally.prompt_tokens)
            self._new_rate.add(now, tally.new_tokens)
        self._tell()

    def finished(self, outcome: Outcome) -> None:
        """A long context is done."""
        with self._lock:
            _add(self._tally, outcome.asked, outcome.dropped, outcome.turns, outcome.pair is not None)
        self._tell()

    def _bar(self) -> tuple[int, int]:
        return self._tally.contexts, self.total or 0

    def _shown(self) -> list[tuple[str, str]]:
        with self._lock:
            tally, now = self._tally, self._clock()
            of_total = "" if self.total is None else f" of {self.total:,}"
            kept = f" ({tally.turns / tally.asked:.0%} of {tally.asked:,} chunks)" if tally.asked else ""
            prompt_rate, new_rate = self._prompt_rate.per_second(now), self._new_rate.per_second(now)
            before = f" (and {duration(self._seconds_before)} before)" if self._seconds_before else ""
            return [
                ("long contexts", f"{tally.contexts:,}{of_total}"),
                ("kept", f"pairs {tally.pairs:,}, turns {tally.turns:,}{kept}"),
                ("dropped", _listed(tally.dropped.most_common(), self._most_drops)),
                ("requests", f"{tally.requests:,} ({prompt_rate:,.0f} prompt and {new_rate:,.0f} new tokens/s)"),
                ("time", f"{duration(now - self._started)}{before}, {self._time_left(now)} left"),
            ]

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
    print_line(console, f"{output}:")
    for name, text in lines:
        print_line(console, f"  {name:<8}  {text}")


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

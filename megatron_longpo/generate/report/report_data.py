"""What the report shows of the pairs. Their file is read twice, line by line: for lengths, then for the pairs drawn.

Memory holds four numbers a turn and the pairs that are shown, never the other contexts.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import batched
from pathlib import Path

from megatron_longpo.data.pair import Pair, parse_pair, read_lines, read_pairs

CountTokens = Callable[[Sequence[str]], list[int]]
NUM_SHOWN = 10
"""Pairs."""
MAX_SHORT_PAIRS = 500
"""Pairs whose short contexts are counted: together those are as long as the long contexts, whose length is known."""
_TEXTS_AT_A_TIME = 1024


@dataclass(slots=True)
class Lengths:
    """Lengths of every kind of text, in `unit`; those of turns in the order of the file."""

    unit: str
    """``tokens`` or ``characters``."""
    context: list[int] = field(default_factory=list[int])
    short_context: list[int] = field(default_factory=list[int])
    """Short contexts of `num_short_pairs` pairs that were drawn."""
    instruction: list[int] = field(default_factory=list[int])
    chosen: list[int] = field(default_factory=list[int])
    rejected: list[int] = field(default_factory=list[int])
    num_short_pairs: int = 0

    @property
    def differences(self) -> list[int]:
        """Chosen minus rejected, of every turn."""
        return [chosen - rejected for chosen, rejected in zip(self.chosen, self.rejected, strict=True)]


@dataclass(frozen=True, slots=True)
class ShownPair:
    """A pair to be shown whole but for its context."""

    pair: Pair
    lengths: list[tuple[int, int, int]]
    """Lengths of short context, chosen and rejected of every turn."""


def read_report_data(
    pairs: Path, count_tokens: CountTokens | None, seed: int, *, num_shown: int = NUM_SHOWN
) -> tuple[Lengths, list[ShownPair]]:
    """Lengths of all pairs of a file, and some of the pairs, drawn by ``seed`` and in the order of the file.

    Args:
        count_tokens: tokens of each text; None: lengths are in characters.

    Raises:
        UserError: the file is missing, empty, or holds a line that is not a pair.
    """
    lengths = Lengths("characters" if count_tokens is None else "tokens")
    count = count_tokens or _count_characters
    texts = _texts_of_turns(pairs, count, lengths)
    numbers = [number for batch in batched(texts, _TEXTS_AT_A_TIME) for number in count(batch)]
    lengths.instruction, lengths.chosen, lengths.rejected = numbers[0::3], numbers[1::3], numbers[2::3]
    return lengths, _draw(pairs, count, seed, num_shown, lengths)


def _texts_of_turns(pairs: Path, count: CountTokens, lengths: Lengths) -> Iterator[str]:
    """Yield instruction, chosen and rejected of every turn; long contexts are measured on the way."""
    for _, pair in read_pairs([pairs]):
        known = pair.meta.get("num_context_tokens")
        if lengths.unit == "tokens" and isinstance(known, int):
            lengths.context.append(known)
        else:
            lengths.context += count([pair.context])
        for turn in pair.turns:
            yield from (turn.instruction, turn.chosen, turn.rejected)


def _draw(pairs: Path, count: CountTokens, seed: int, num_shown: int, lengths: Lengths) -> list[ShownPair]:
    num_pairs = len(lengths.context)
    lengths.num_short_pairs = min(MAX_SHORT_PAIRS, num_pairs)
    shown = set(random.Random(f"{seed} shown").sample(range(num_pairs), min(num_shown, num_pairs)))
    measured = set(random.Random(f"{seed} measured").sample(range(num_pairs), lengths.num_short_pairs))
    found: list[ShownPair] = []
    for index, (where, line) in enumerate(read_lines(pairs)):
        if index not in shown | measured:
            continue
        pair = parse_pair(line, where)
        short = count([turn.short_context for turn in pair.turns])
        if index in measured:
            lengths.short_context += short
        if index in shown:
            chosen = count([turn.chosen for turn in pair.turns])
            rejected = count([turn.rejected for turn in pair.turns])
            found.append(ShownPair(pair, list(zip(short, chosen, rejected, strict=True))))
    return found


def _count_characters(texts: Sequence[str]) -> list[int]:
    return [len(text) for text in texts]

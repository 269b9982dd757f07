"""Cuts a text into chunks of bounded tokens, each at the strongest border that its bounds allow.

Invariants (tests/unit/generate/test_chunk.py quotes them):
  1. the chunks follow each other without gap or overlap and give back the text;
  2. no chunk, tokenised alone, has more than ``max_tokens``;
  3. none has fewer than ``min_tokens`` but the last;
  4. a chunk ends at a border of the strongest level that has one between the two bounds, and there at the last such.
For 3 and 4 the bounds must be some tokens apart, and 4 holds as far as `Ruler.compare` knows when to count exactly.
"""

from bisect import bisect_right
from dataclasses import dataclass

from megatron_longpo.errors import UserError
from megatron_longpo.generate.corpus.borders import Borders
from megatron_longpo.generate.corpus.domains import Domain
from megatron_longpo.generate.corpus.sentences import Sentences
from megatron_longpo.generate.corpus.token_count import Ruler, TokenCounter

MIN_ROOM = 32
"""Tokens that the bounds must be apart: one character more can change a count by the longest entry of a vocabulary."""
PAGE_CHARACTERS = 8192
"""Borders are looked for from the end, so much at a time."""
SLACK_CHARACTERS = 256
"""A part of a word can have more tokens than the word, so a border just before the place where ``min_tokens`` are
reached may have as many."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A stretch of a text."""

    start: int
    """First character."""
    end: int
    """One behind the last character."""
    num_tokens: int
    """Tokens of the stretch tokenised alone, without special tokens."""


def check_bounds(min_tokens: int, max_tokens: int) -> None:
    """Raises UserError if no chunk could hold to the bounds."""
    if not 0 < min_tokens <= max_tokens - MIN_ROOM:
        raise UserError(
            f"chunks of {min_tokens} to {max_tokens} tokens: the smaller bound must be above 0, and the larger at least"
            f" {MIN_ROOM} above it"
        )


class Chunker:
    """One text, to be cut chunk by chunk, each with bounds of its own."""

    def __init__(self, text: str, domain: Domain, count: TokenCounter, sentences: Sentences) -> None:
        self._text = text
        self._borders = Borders(text, domain, sentences)
        self.ruler = Ruler(text, count)

    def chunk(self, start: int, *, min_tokens: int, max_tokens: int) -> Chunk:
        """The chunk that begins at ``start``; at least one character, whatever its tokens."""
        check_bounds(min_tokens, max_tokens)
        low, high = min_tokens, max_tokens
        while True:
            end = self._end(start, low, high)
            num_tokens = self.ruler.tokens(start, end)
            is_last = end == len(self._text)
            # Only an estimate that is further off than its margin makes another round necessary: aim by so much lower
            # or higher.
            if num_tokens > max_tokens and high > 1 and end > start + 1:
                high = max(1, high - (num_tokens - max_tokens))
                low = min(low, high)
            elif num_tokens < min_tokens and not is_last and low < high:
                low = min(high, low + min_tokens - num_tokens)
            else:
                return Chunk(start, end, num_tokens)

    def _end(self, start: int, low: int, high: int) -> int:
        """The end of the chunk, as far as the ruler's estimates hold."""
        fits, behind = self.ruler.around(start, high)
        if behind == len(self._text) and self.ruler.compare(start, behind, high) <= high:
            return behind
        first = max(start + 1, self.ruler.around(start, low)[0] - SLACK_CHARACTERS)
        for level in self._borders.levels:
            page_end = behind
            while page_end >= first:
                page_start = max(first, page_end - PAGE_CHARACTERS + 1)
                candidates = self._borders.within(level, page_start, page_end)
                index = self._num_fitting(candidates, start, high) - 1
                if index >= 0 and self.ruler.compare(start, candidates[index], low) >= low:
                    return candidates[index]
                if index >= 0:  # what stands before is shorter still
                    break
                page_end = page_start - 1
        return self._any_end(start, max(start, fits), behind, high)

    def _num_fitting(self, candidates: list[int] | range, start: int, high: int) -> int:
        return bisect_right(candidates, high, key=lambda end: self.ruler.compare(start, end, high))

    def _any_end(self, start: int, fits: int, behind: int, high: int) -> int:
        """The last character that fits; a carriage return stays with its line feed."""
        places = range(max(start, fits) + 1, behind + 1)
        end = max(start + 1, places.start - 1 + self._num_fitting(places, start, high))
        if self._text[end - 1 : end + 1] == "\r\n":
            end += 1 if end == start + 1 else -1
        return end

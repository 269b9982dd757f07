"""How many tokens a text has: exactly where that decides something, and elsewhere by an estimate that costs nothing."""

from array import array
from bisect import bisect_left
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BLOCK_CHARACTERS = 32768
BLOCKS_AT_A_TIME = 4
"""Tokenised side by side, on all cores."""
MARGIN, BLOCK_MARGIN = 8, 4
"""Tokens that an estimate may be off: at its two ends together, and at each border between blocks."""


class TokenCounter:
    """Counts tokens of texts as the tokenizer does without special tokens around them.

    Args:
        backend: `PreTrainedTokenizerFast.backend_tokenizer`; it is copied, and truncation and padding do not count.
    """

    def __init__(self, backend: "Tokenizer") -> None:
        from tokenizers import Tokenizer

        self._backend = Tokenizer.from_str(backend.to_str())
        self._backend.no_truncation()
        self._backend.no_padding()

    def __call__(self, text: str) -> int:
        """Tokens of one text."""
        return self.batch([text])[0]

    def batch(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, on all cores."""
        return [len(encoding) for encoding in self._backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def starts(self, texts: Sequence[str]) -> list[list[int]]:
        """The first character of each token of each text, on all cores."""
        encodings = self._backend.encode_batch(list(texts), add_special_tokens=False)
        return [[start for start, _ in encoding.offsets] for encoding in encodings]


class Ruler:
    """Measures parts of one text; reads it only as far as it was asked about.

    The text is tokenised once, in blocks. How many tokens begin in a part is an estimate of its own tokens: it is off
    where the part or a block begins or ends inside what would be one token.
    """

    def __init__(self, text: str, counter: TokenCounter) -> None:
        self._text = text
        self._counter = counter
        self._starts = array("I")
        """The first character of every token of the blocks that were read."""
        self._end = 0
        """End of those blocks, in characters."""
        self._exact: dict[tuple[int, int], int] = {}

    def tokens(self, start: int, end: int) -> int:
        """Tokens of ``text[start:end]`` tokenised alone."""
        if (start, end) not in self._exact:
            self._exact[start, end] = self._counter(self._text[start:end])
        return self._exact[start, end]

    def compare(self, start: int, end: int, bound: int) -> int:
        """The same where it is near ``bound``; elsewhere an estimate, which lies on the same side of it."""
        while self._end < end:
            self._extend()
        estimate = bisect_left(self._starts, end) - bisect_left(self._starts, start)
        is_near = abs(estimate - bound) <= _margin(end - start)
        return self.tokens(start, end) if is_near else estimate

    def around(self, start: int, num_tokens: int) -> tuple[int, int]:
        """Two places close to each other: from ``start`` to the first ``num_tokens`` fit, to the second they do not.

        The second is the end of the text where all of it may fit.
        """
        margin = _margin(self._place(start, num_tokens) - start)
        return self._place(start, num_tokens - margin), self._place(start, num_tokens + margin + 1)

    def _place(self, start: int, num_tokens: int) -> int:
        """Where about so many tokens end."""
        if num_tokens <= 0:
            return start
        while self._end <= start < len(self._text):
            self._extend()
        index = bisect_left(self._starts, start) + num_tokens
        while index >= len(self._starts) and self._end < len(self._text):
            self._extend()
        return self._starts[index] if index < len(self._starts) else len(self._text)

    def _extend(self) -> None:
        """Read the next blocks."""
        until = min(len(self._text), self._end + BLOCK_CHARACTERS * BLOCKS_AT_A_TIME)
        borders = range(self._end, until, BLOCK_CHARACTERS)
        blocks = [self._text[border : border + BLOCK_CHARACTERS] for border in borders]
        for border, starts in zip(borders, self._counter.starts(blocks), strict=True):
            self._starts.extend(border + start for start in starts)
        self._end = until


def _margin(num_characters: int) -> int:
    return MARGIN + BLOCK_MARGIN * (num_characters // BLOCK_CHARACTERS + 1)

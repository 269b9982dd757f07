"""How many tokens a text has: exactly, and mostly from memory.

A tokenizer does about 1 MB/s a core however its input is batched, because its time goes into single words: finding and
merging them. Most words of a corpus have been met before, so cells of text that do not depend on each other
(`cells.py`) are counted once. For a tokenizer that has no such cells, and for stretches of text without them, whole
texts are tokenised.
"""

from bisect import bisect_right
from collections.abc import Sequence, Set
from itertools import accumulate, pairwise, product
from typing import TYPE_CHECKING

from megatron_longpo.generate.corpus.cells import LINE, Cells, cells_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BLOCK_CHARACTERS = 2048
MAX_BLOCK_CHARACTERS = 32768
"""A text that has no cut for so long is tokenised whole."""
BLOCKS_AT_A_TIME = 256
"""Tokenised side by side, on all cores."""
MAX_CACHED_CELLS = 1 << 19
"""About 100 MB; then all are forgotten."""
MAX_CACHED_CHARACTERS = 64
"""Longer cells hardly come again."""

MAX_ADDED_PROBED = 50
"""Of a tokenizer's added tokens."""

_WORDS = (
    "a", "don't", "X1", "3.14", "e\u0301", "\u4e2d\u6587", "...", "-", "(x)", "<b>", "\u2019s", "_b_", "\U0001f642",
)  # fmt: skip
_SPACES = (" ", "  ", "\n", "\n\n", " \n", "\n  ", "\t", " \t ", "\n\t", "\u00a0 ", "\u3000", "\r\n", "   \n\n   ")
_CHARACTERS = "as1'(_+\u201d\u00e9"
_PROBE = "".join(left + space + right for left, space, right in product(_WORDS, _SPACES, _WORDS))
_PROBES = [_PROBE[start : start + 97] for start in range(0, len(_PROBE), 89)]
"""Every word between every two kinds of white space, cut anywhere."""
_PROBES += [" ".join(map("".join, product(first, _CHARACTERS, _CHARACTERS, "as1("))) for first in _CHARACTERS]
"""Letters, digits and marks in every order."""


class TokenCounter:
    """Counts tokens of texts as the tokenizer does without special tokens around them; for one thread at a time.

    Args:
        backend: `PreTrainedTokenizerFast.backend_tokenizer`; it is copied, and truncation and padding do not count.
    """

    def __init__(self, backend: "Tokenizer") -> None:
        from tokenizers import Tokenizer

        self._backend = Tokenizer.from_str(backend.to_str())
        self._backend.no_truncation()
        self._backend.no_padding()
        self._counts = _Counts()
        self._part_counts: dict[str, int] = {}
        self._before = dict(zip("a\n", self.whole(["a", "\n"]), strict=True))
        self.cells = self._proved_cells()
        """None: this tokenizer has no cells."""

    def __call__(self, text: str) -> int:
        """Tokens of one text, of any size."""
        return Ruler(text, self).tokens(0, len(text))

    def whole(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, by the tokenizer itself, on all cores."""
        return [len(encoding) for encoding in self._backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def in_cells(self, cells: Cells, texts: Sequence[str]) -> list[int]:
        """Tokens of texts that stand alone, by their cells."""
        rows = [cells.keys(text) for text in texts]
        firsts = self.whole([cells.first(row[0]) for row in rows])
        return [first + rest for first, rest in zip(firsts, self.sums(cells, [row[1:] for row in rows]), strict=True)]

    def sums(self, cells: Cells, rows: Sequence[list[str]]) -> list[int]:
        """Tokens of each row of keys; none of them may be the first of its text."""
        counts = self._counts
        counts.missed = new = list[str]()
        found, ends = list[int](), [0]
        for row in rows:
            found.append(sum(map(counts.__getitem__, row)))
            ends.append(len(new))
        if new:
            learned = self._learn(cells, list(set(new)))
            missed = [0, *accumulate(map(learned.__getitem__, new))]
            found = [
                count + missed[end] - missed[start] for count, (start, end) in zip(found, pairwise(ends), strict=True)
            ]
        return found

    def _learn(self, cells: Cells, keys: list[str]) -> dict[str, int]:
        """Count cells that are new, and keep those that are not too long.

        Flat lists only: with a list for each cell, Python's garbage collector would go through all of them again and
        again.
        """
        known = self._part_counts
        if len(self._counts) + len(keys) > MAX_CACHED_CELLS:
            self._counts.clear()
            known.clear()
        parts, sizes = cells.parts(keys)
        unknown = list(set(parts).difference(known))
        totals = self.whole(unknown)
        if cells.lead:
            totals = [total - self._before[part[0]] for part, total in zip(unknown, totals, strict=True)]
        known |= zip(unknown, totals, strict=True)
        tokens = [0, *accumulate(map(known.__getitem__, parts))]
        ends = accumulate(sizes, initial=0)
        learned = {key: tokens[end] - tokens[start] for key, (start, end) in zip(keys, pairwise(ends), strict=True)}
        self._counts |= learned
        for part in unknown:
            if len(part) > MAX_CACHED_CHARACTERS:
                del known[part]
        for key in keys:
            if len(key) > MAX_CACHED_CHARACTERS:
                del self._counts[key]
        return learned

    def _proved_cells(self) -> Cells | None:
        """The tokenizer's cells, with the kinds of cuts that prove right on texts full of hard places."""
        cells = cells_of(self._backend)
        if cells is None:
            return None
        added = [f"b {token} c{token}d\n{token}\n {token}'" for token in sorted(cells.atoms)[:MAX_ADDED_PROBED]]
        probes = [text for text in (*_PROBES, *added) if cells.can_cut(text)]
        counts = self.whole(probes)

        def right(kinds: Set[str]) -> Cells | None:
            tried = cells.only(kinds)
            return tried if kinds and self._is_right(tried, probes, counts) else None

        # Most have all kinds, or stumble over two line feeds only: one by one takes longer.
        return right(cells.kinds) or right(cells.kinds - {LINE}) or right({k for k in cells.kinds if right({k})})

    def _is_right(self, cells: Cells, texts: list[str], counts: list[int]) -> bool:
        """Whether the cells give the tokenizer's own ``counts`` for ``texts``; what was learned for it is forgotten."""
        found = self.in_cells(cells, texts)
        self._counts.clear()  # parts have the tokens that they have alone, whatever cut them out
        return found == counts


class _Counts(dict[str, int]):
    """Tokens by key; one that is missed counts nothing and is written down."""

    def __init__(self) -> None:
        super().__init__()
        self.missed = list[str]()

    def __missing__(self, key: str) -> int:
        self.missed.append(key)
        return 0


class Ruler:
    """Measures parts of one text; reads it only as far as it was asked about.

    The text is divided into blocks that begin at safe cuts; their tokens are added up, and only the two blocks that a
    part begins and ends in are looked at again.
    """

    def __init__(self, text: str, counter: TokenCounter) -> None:
        self._text = text
        self._counter = counter
        self._cells = counter.cells if counter.cells and counter.cells.can_cut(text) else None
        self._borders = [0]
        self._totals = [0]
        """Tokens before each border."""
        self._head = (-1, -1, 0)

    def tokens(self, start: int, end: int) -> int:
        """Tokens of ``text[start:end]`` tokenised alone."""
        count = self.estimate(start, end)
        return count if self._cells else self._counter.whole([self._text[start:end]])[0]

    def estimate(self, start: int, end: int) -> int:
        """The same, but where the text has no cells for a while: the sum over blocks, which is off by a few tokens."""
        while self._borders[-1] < end:
            self._extend()
        first = bisect_right(self._borders, start)
        last = bisect_right(self._borders, end) - 1
        if last < first:
            return self._alone(start, end)
        between = self._totals[last] - self._totals[first]
        return self._head_tokens(start, first) + between + self._continued(self._borders[last], end)

    def around(self, start: int, num_tokens: int) -> tuple[int, int]:
        """Two places close to each other: from ``start`` to the first ``num_tokens`` fit, to the second they do not.

        The second is the end of the text where all of it fits.
        """
        first = bisect_right(self._borders, start)
        while first == len(self._borders) and self._borders[-1] < len(self._text):
            self._extend()
        if first == len(self._borders):
            return start, len(self._text)
        target = num_tokens - self._head_tokens(start, first) + self._totals[first]
        while self._totals[-1] <= target and self._borders[-1] < len(self._text):
            self._extend()
        above = bisect_right(self._totals, target, lo=first)
        below = self._borders[above - 1] if above > first else start
        return below, self._borders[above] if above < len(self._borders) else len(self._text)

    def _extend(self) -> None:
        """Add the next blocks."""
        borders = [self._borders[-1]]
        while len(borders) <= BLOCKS_AT_A_TIME and borders[-1] < len(self._text):
            borders.append(self._next_border(borders[-1]))
        spans = list(pairwise(borders))
        if self._cells:
            counts = self._counter.sums(self._cells, [self._keys(*span) for span in spans])
        else:
            counts = self._counter.whole([self._text[start:end] for start, end in spans])
        self._borders += borders[1:]
        self._totals += list(accumulate(counts, initial=self._totals[-1]))[1:]

    def _next_border(self, start: int) -> int:
        end = start + BLOCK_CHARACTERS
        if end >= len(self._text):
            return len(self._text)
        if self._cells:
            if cut := self._cells.cut.search(self._text, end, start + MAX_BLOCK_CHARACTERS):
                return cut.start()
            self._cells = None  # from here on, and for good: a part may begin or end here
        return end

    def _keys(self, start: int, end: int) -> list[str]:
        """The cells of a stretch that begins at a cut: with the character before it, which makes a cell of its own."""
        assert self._cells
        return self._cells.keys(self._text[start - 1 : end] if start else self._text[:end])[1:]

    def _head_tokens(self, start: int, first: int) -> int:
        """Tokens from ``start`` to the border after it; a chunk's many possible ends share it."""
        if self._head[:2] != (start, first):
            self._head = (start, first, self._alone(start, self._borders[first]))
        return self._head[2]

    def _alone(self, start: int, end: int) -> int:
        text = self._text[start:end]
        return (self._counter.in_cells(self._cells, [text]) if self._cells else self._counter.whole([text]))[0]

    def _continued(self, border: int, end: int) -> int:
        if border == end:
            return 0
        if self._cells:
            return self._counter.sums(self._cells, [self._keys(border, end)])[0]
        return self._counter.whole([self._text[border:end]])[0]

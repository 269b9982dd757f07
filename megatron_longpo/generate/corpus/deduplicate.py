"""Documents that were there before: by the paragraphs they share with earlier ones, remembered as eight bytes each."""

from hashlib import blake2b

import numpy as np

MIN_PARAGRAPH_CHARACTERS = 40
"""Shorter ones (headings, page numbers) stand in many documents that have nothing else in common."""
MIN_MERGE = 1 << 16


class Repeats:
    """The paragraphs of all documents that were kept.

    Args:
        max_duplicate: a document is left out if more than this part of its characters stands in known paragraphs.
    """

    def __init__(self, max_duplicate: float) -> None:
        self._max_duplicate = max_duplicate
        self._sorted = np.empty(0, np.uint64)
        self._recent = set[int]()
        """Not yet merged into the array, which takes 8 bytes an entry where a set takes 60."""

    def add(self, text: str) -> bool:
        """Whether ``text`` is new enough; if so its paragraphs are known from here on."""
        paragraphs = [" ".join(part.split()) for part in text.split("\n\n")]
        total = sum(map(len, paragraphs))
        long = [paragraph for paragraph in paragraphs if len(paragraph) >= MIN_PARAGRAPH_CHARACTERS]
        # The text as a whole stands among its paragraphs, so that one of short lines alone is known again, too.
        whole, *hashes = [_hash(part) for part in (" ".join(paragraphs), *long)]
        known = sum(len(part) for part, is_known in zip(long, self._are_known(hashes), strict=True) if is_known)
        if self._are_known([whole])[0] or known > self._max_duplicate * total:
            return False
        self._recent.update(hashes)
        self._recent.add(whole)
        if len(self._recent) > max(MIN_MERGE, len(self._sorted) // 8):
            recent = np.fromiter(self._recent, np.uint64, len(self._recent))
            self._sorted = np.union1d(self._sorted, recent)
            self._recent.clear()
        return True

    def _are_known(self, hashes: list[int]) -> list[bool]:
        if not len(self._sorted):
            return [value in self._recent for value in hashes]
        values = np.array(hashes, np.uint64)
        places = np.minimum(np.searchsorted(self._sorted, values), len(self._sorted) - 1)
        return [
            bool(old) or value in self._recent
            for old, value in zip(self._sorted[places] == values, hashes, strict=True)
        ]


def _hash(text: str) -> int:
    # Not Python's own: every shard of a run must leave out the same documents.
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")

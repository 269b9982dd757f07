"""Documents as units that are long enough for contexts: long ones alone, short ones joined; repeated ones left out.

Every shard of a run walks the whole corpus and numbers the units alike. So nothing here tokenises more than a sample of
each source: how long a document is follows from its characters.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from megatron_longpo.errors import UserError
from megatron_longpo.generate.corpus.deduplicate import Repeats
from megatron_longpo.generate.corpus.documents import Counts, Document
from megatron_longpo.generate.corpus.domains import Domain

Short = Literal["join", "skip"]
SAMPLE_CHARACTERS = 100_000
"""So much of each source is tokenised to learn how many characters a token has."""
JOINED_MARGIN = 1.05
"""Joined documents are collected until they have so many times the tokens that are needed, for the estimate's error."""
SEPARATOR = "\n\n"


@dataclass(frozen=True, slots=True)
class Unit:
    """What long contexts are cut from."""

    id: str
    """The document's; for joined ones the first one's with how many follow: ``book.txt+3``."""
    text: str
    domain: Domain
    index: int
    """Number in the whole corpus, from 0; the same in every shard."""
    documents: tuple[str, ...] = ()
    """Ids of the documents in it."""


@dataclass(slots=True)
class _Joined:
    """Short documents of one domain, not yet enough."""

    documents: list[Document] = field(default_factory=list[Document])
    num_tokens: float = 0.0
    """An estimate."""


def units(
    documents: Iterable[Document],
    *,
    min_tokens: int,
    short: Short,
    shard: tuple[int, int] = (0, 1),
    count_tokens: Callable[[str], int],
    counts: Counts,
    max_duplicate: float = 0.5,
) -> Iterator[Unit]:
    """Yield the units of this shard.

    A document that has ``min_tokens`` (as estimated) is one unit. Shorter ones are left out, or joined with the next
    short ones of their domain, a blank line between, until they have enough together.

    Args:
        shard: this shard's number and how many there are; it gets the units whose index leaves that remainder.
        max_duplicate: a document with more than this part of its characters in paragraphs of earlier ones is left out.

    Raises:
        UserError: there is no such shard.
    """
    number, num_shards = shard
    if not 0 <= number < num_shards:
        raise UserError(f"shard {number} of {num_shards}: shards are numbered from 0 to {num_shards - 1}")
    for index, members in enumerate(_groups(documents, min_tokens, short, count_tokens, counts, max_duplicate)):
        counts.units += 1
        if index % num_shards == number:
            text = SEPARATOR.join(document.text for document in members)
            ids = tuple(document.id for document in members)
            yield Unit(_unit_id(members), text, members[0].domain, index, ids)


def _groups(
    documents: Iterable[Document],
    min_tokens: int,
    short: Short,
    count_tokens: Callable[[str], int],
    counts: Counts,
    max_duplicate: float,
) -> Iterator[list[Document]]:
    """The documents of every unit, in the order in which units are complete."""
    repeats = Repeats(max_duplicate)
    lengths = _Lengths(count_tokens)
    waiting: dict[Domain, _Joined] = {}
    for document in documents:
        num_tokens = lengths.estimate(document)
        is_short = num_tokens < min_tokens
        if is_short and short == "skip":
            counts.short += 1
        elif not repeats.add(document.text):
            counts.duplicate += 1
        elif not is_short:
            yield [document]
        else:
            joined = waiting.setdefault(document.domain, _Joined())
            joined.documents.append(document)
            joined.num_tokens += num_tokens
            if joined.num_tokens >= JOINED_MARGIN * min_tokens:
                counts.joined += len(joined.documents)
                yield waiting.pop(document.domain).documents
    counts.short += sum(len(joined.documents) for joined in waiting.values())


def _unit_id(members: list[Document]) -> str:
    first = members[0].id
    # A document that is called like joined ones says that it is not.
    marked = len(members) > 1 or re.search(r"\+\d+$", first)
    return f"{first}+{len(members) - 1}" if marked else first


class _Lengths:
    """Tokens of documents, from characters a token in the beginning of their source.

    Files of one document each would all be read to their end as samples, so those of a domain share one.
    """

    def __init__(self, count_tokens: Callable[[str], int]) -> None:
        self._count_tokens = count_tokens
        self._seen: dict[str, tuple[int, int]] = {}
        """Characters and tokens of the sample of each source."""

    def estimate(self, document: Document) -> float:
        """Tokens of the document, about."""
        source = document.source or f"\0{document.domain}"
        characters, tokens = self._seen.get(source, (0, 0))
        if characters < SAMPLE_CHARACTERS:
            sample = document.text[: SAMPLE_CHARACTERS - characters]
            characters, tokens = characters + len(sample), tokens + self._count_tokens(sample)
            self._seen[source] = characters, tokens
        return len(document.text) * tokens / characters

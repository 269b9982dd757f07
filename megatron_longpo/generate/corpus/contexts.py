"""Long contexts: so many consecutive chunks of a unit, an exact slice of its text."""

from collections.abc import Iterator
from dataclasses import dataclass

from megatron_longpo.errors import UserError
from megatron_longpo.generate.corpus.chunk import MIN_ROOM, Chunk, Chunker, check_bounds
from megatron_longpo.generate.corpus.document_groups import Unit
from megatron_longpo.generate.corpus.documents import Counts
from megatron_longpo.generate.corpus.domains import Domain
from megatron_longpo.generate.corpus.sentences import Sentences
from megatron_longpo.generate.corpus.token_count import TokenCounter


@dataclass(frozen=True, slots=True)
class LongContext:
    """What one pair's long context is made of."""

    id: str
    """The unit's id and which of its contexts this is, from 1: ``book.txt-1``."""
    text: str
    """A slice of the unit's text."""
    chunks: tuple[Chunk, ...]
    """Chunks of ``text``, from its first to its last character."""
    domain: Domain
    num_tokens: int
    """Tokens of ``text`` tokenised alone."""
    questions: tuple[tuple[str, ...], ...] | None = None
    """For every chunk the questions that are given about it; None: the model writes them."""

    def chunk_text(self, number: int) -> str:
        """A chunk as it is shown, without white space around it."""
        return self.text[self.chunks[number].start : self.chunks[number].end].strip()

    def askable(self) -> list[int]:
        """Numbers of the chunks that can be asked about."""
        return [n for n in range(len(self.chunks)) if self.questions is None or self.questions[n]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextShape:
    """What contexts must be like."""

    num_chunks: int
    min_tokens: int
    """The least for a chunk."""
    max_tokens: int
    """The most for a chunk."""
    context_tokens: int
    """The most for the whole context."""

    def check(self) -> None:
        """Raises UserError if no context could be like that."""
        check_bounds(self.min_tokens, self.max_tokens)
        needed = self.num_chunks * (self.min_tokens + MIN_ROOM)
        if self.num_chunks < 1 or self.context_tokens < needed:
            raise UserError(
                f"{self.num_chunks} chunks of at least {self.min_tokens} tokens need a context of {needed}, which may"
                f" have {self.context_tokens}: ask for fewer or shorter chunks, or for longer contexts"
            )


def long_contexts(
    unit: Unit, shape: ContextShape, *, count: TokenCounter, sentences: Sentences, counts: Counts
) -> Iterator[LongContext]:
    """Yield the contexts of a unit, from its beginning on; what is too short for another is counted and left.

    Raises:
        UserError: no context could be of that shape.
    """
    shape.check()
    chunker = Chunker(unit.text, unit.domain, count, sentences)
    start = number = 0
    while chunks := _chunks(chunker, start, len(unit.text), shape):
        number += 1
        counts.contexts += 1
        end = chunks[-1].end
        yield LongContext(
            id=f"{unit.id}-{number}",
            text=unit.text[start:end],
            chunks=tuple(Chunk(chunk.start - start, chunk.end - start, chunk.num_tokens) for chunk in chunks),
            domain=unit.domain,
            num_tokens=chunker.ruler.tokens(start, end),
        )
        start = end
    counts.units_too_short += number == 0
    counts.characters_cut += len(unit.text) - start


def _chunks(chunker: Chunker, start: int, text_end: int, shape: ContextShape) -> list[Chunk]:
    """The chunks of the context that begins at ``start``; none if there is too little text."""
    room = shape.context_tokens
    while True:
        chunks = _greedy_chunks(chunker, start, text_end, shape, room)
        if not chunks:
            return []
        over = chunker.ruler.tokens(start, chunks[-1].end) - shape.context_tokens
        if over <= 0:
            return chunks
        # The whole can have a few tokens more than its parts together.
        room -= over


def _greedy_chunks(chunker: Chunker, start: int, text_end: int, shape: ContextShape, room: int) -> list[Chunk]:
    """Each chunk as long as it may be when ``min_tokens`` are left for each that follows."""
    chunks = list[Chunk]()
    # How much text there is matters only where it may not do for chunks of the full length.
    wanted = min(room, shape.num_chunks * shape.max_tokens)
    _, behind = chunker.ruler.around(start, wanted)
    left = wanted if behind < text_end else min(wanted, chunker.ruler.tokens(start, text_end))
    while len(chunks) < shape.num_chunks:
        reserved = (shape.num_chunks - len(chunks) - 1) * (shape.min_tokens + MIN_ROOM)
        most = min(shape.max_tokens, left - reserved)
        if start == text_end or most < shape.min_tokens:
            return []
        most = max(most, shape.min_tokens + MIN_ROOM)
        chunk = chunker.chunk(start, min_tokens=shape.min_tokens, max_tokens=most)
        if chunk.num_tokens < shape.min_tokens:
            return []
        chunks.append(chunk)
        start, left = chunk.end, left - chunk.num_tokens
    return chunks

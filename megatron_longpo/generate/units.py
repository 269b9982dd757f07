"""Long contexts: consecutive chunks of one document."""

from dataclasses import dataclass

from megatron_longpo.generate.chunk import Chunk


@dataclass(frozen=True, slots=True)
class LongContext:
    """What a pair is made from."""

    id: str
    text: str
    chunks: tuple[Chunk, ...]
    domain: str
    num_tokens: int

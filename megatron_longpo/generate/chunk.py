"""A chunk of a document: where it lies in the text."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Chunk:
    """Characters ``start`` to ``end`` of a text."""

    start: int
    end: int
    num_tokens: int

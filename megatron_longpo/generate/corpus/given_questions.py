"""Questions that a user brings along (``generate --questions FILE``), in place of those the model would write.

JSON lines, a question each::

    {"document": "book.txt", "question": "Who built the mill?", "evidence": "The mill was built by"}

``document`` is the document's id (documents.py). ``evidence`` is one or several stretches of its text, as they stand
there: the chunk that holds all of them is the question's short context.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_longpo import strict_json
from megatron_longpo.errors import UserError
from megatron_longpo.files import reading

FIELDS = {"document", "question", "evidence"}
EXAMPLE = '{"document": "book.txt", "question": "Who built the mill?", "evidence": "The mill was built by"}'
_LIKE = f"a question is like {EXAMPLE}"


@dataclass(frozen=True, slots=True)
class GivenQuestion:
    """One line of the file."""

    question: str
    evidence: tuple[str, ...]

    def is_about(self, chunk: str) -> bool:
        """Whether all of the evidence stands in the chunk."""
        return all(stretch in chunk for stretch in self.evidence)


class GivenQuestions:
    """All questions of a file, by document."""

    def __init__(self, path: Path) -> None:
        """Read the file.

        Raises:
            UserError: it cannot be read, holds no question, or a line is not one; with file and line.
        """
        self._by_document: dict[str, list[GivenQuestion]] = {}
        for where, fields in strict_json.read_lines(path, _LIKE):
            document, question = _parse(fields, where)
            self._by_document.setdefault(document, []).append(question)
        if not self._by_document:
            raise UserError(f"{path}: holds no question; give one a line, like {EXAMPLE}")
        with reading(path, OSError), path.open("rb") as file:
            self.sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        """Of the file, for the journal."""

    def about(self, documents: Iterable[str]) -> list[GivenQuestion]:
        """The questions about documents of these ids, in the order of the file."""
        return [question for document in documents for question in self._by_document.get(document, ())]


def by_chunk(questions: Sequence[GivenQuestion], chunks: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """For every chunk, what is asked about it; a question goes to the first chunk that holds its evidence."""
    found: list[list[str]] = [[] for _ in chunks]
    for question in questions:
        number = next((number for number, chunk in enumerate(chunks) if question.is_about(chunk)), None)
        if number is not None:
            found[number].append(question.question)
    return tuple(map(tuple, found))


def _parse(fields: Any, where: str) -> tuple[str, GivenQuestion]:
    """(document, question) of a line."""
    if not strict_json.is_object(fields) or set(fields) != FIELDS:
        raise UserError(f"{where}: a question has the fields {', '.join(sorted(FIELDS))} and no others: {EXAMPLE}")
    stretches: Any = fields["evidence"] if strict_json.is_array(fields["evidence"]) else [fields["evidence"]]
    texts = [(name, fields[name]) for name in ("document", "question")]
    for name, text in (*texts, *(("evidence", stretch) for stretch in stretches)):
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"{where}: {name} is {text!r:.60}, and must be a text; {_LIKE}")
    if not stretches:
        raise UserError(f"{where}: evidence is an empty list; name a stretch of the document that the answer is in")
    return fields["document"], GivenQuestion(fields["question"].strip(), tuple(text.strip() for text in stretches))

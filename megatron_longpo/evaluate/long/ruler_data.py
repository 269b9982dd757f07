"""What RULER's tasks are made of beside random words: essays for the haystack, and questions with their paragraphs.

As RULER reads them (scripts/data/synthetic/qa.py: read_squad, read_hotpotqa; arXiv 2404.06654), from a mirror's files.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_longpo import strict_json
from megatron_longpo.errors import UserError
from megatron_longpo.files import reading


@dataclass(frozen=True, slots=True)
class Questions:
    """Questions, and all paragraphs that their contexts are put together from."""

    questions: list[dict[str, Any]]
    """In the fields that lm-eval's generator reads: query, outputs, context (numbers of paragraphs), more_context."""
    paragraphs: list[str]


def essay_words(folder: Path) -> list[str]:
    """All words of the essays, in the order of their files.

    Raises:
        UserError: there is none, or a file cannot be read.
    """
    words: list[str] = []
    for path in sorted(folder.glob("*.txt")):
        with reading(path, OSError, ValueError):
            words += path.read_text(encoding="utf-8").split()
    if not words:
        raise UserError(f"{folder}: holds no words; bring the set essays again with evaluate prepare")
    return words


def squad_questions(path: Path) -> Questions:
    """SQuAD v2's answerable questions; those of the same article are the nearest distractors.

    Raises:
        UserError: the file cannot be read or is not SQuAD's.
    """
    with reading(path, OSError, ValueError, RecursionError, KeyError, TypeError):
        articles = [article["paragraphs"] for article in strict_json.loads(path.read_text(encoding="utf-8"))["data"]]
        paragraphs = sorted({one["context"] for article in articles for one in article})
        numbers = {text: number for number, text in enumerate(paragraphs)}
        return Questions(list(_squad(articles, numbers)), paragraphs)


def hotpot_questions(path: Path) -> Questions:
    """HotpotQA's questions, each with its ten paragraphs, two of which hold the answer.

    Raises:
        UserError: the file cannot be read or is not HotpotQA's.
    """
    with reading(path, OSError, ValueError, RecursionError, KeyError, TypeError):
        rows = strict_json.loads(path.read_text(encoding="utf-8"))
        texts = [[f"{title}\n{''.join(sentences)}" for title, sentences in row["context"]] for row in rows]
        paragraphs = sorted({text for one in texts for text in one})
        numbers = {text: number for number, text in enumerate(paragraphs)}
        questions = [
            {"query": row["question"], "outputs": [row["answer"]], "context": [numbers[text] for text in own]}
            for row, own in zip(rows, texts, strict=True)
        ]
        return Questions(questions, paragraphs)


def _squad(articles: list[list[dict[str, Any]]], numbers: dict[str, int]) -> Iterator[dict[str, Any]]:
    for article in articles:
        own = [numbers[one["context"]] for one in article]
        for paragraph in article:
            number = numbers[paragraph["context"]]
            for question in paragraph["qas"]:
                if not question["is_impossible"]:
                    yield {
                        "query": question["question"],
                        "outputs": [answer["text"] for answer in question["answers"]],
                        "context": [number],
                        "more_context": [other for other in own if other != number],
                    }

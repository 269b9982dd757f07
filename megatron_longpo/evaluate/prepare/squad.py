"""SQuAD as its own release has it (dev-v2.0.json), out of rows as the Hugging Face Hub has them."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def write_squad(rows: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Write rows as one JSON object, titles and paragraphs in the order of their first rows.

    Args:
        rows: of id, title, context, question and answers, whose "text" is a list that is empty if there is no answer.
        path: the file to write.
    """
    titles: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for row in rows:
        texts = row["answers"]["text"]
        titles.setdefault(row["title"], {}).setdefault(row["context"], []).append(
            {
                "id": row["id"],
                "question": row["question"],
                "answers": [{"text": text} for text in texts],
                "is_impossible": not texts,
            }
        )
    data = [
        {"title": title, "paragraphs": [{"context": context, "qas": qas} for context, qas in paragraphs.items()]}
        for title, paragraphs in titles.items()
    ]
    path.write_text(json.dumps({"version": "v2.0", "data": data}, ensure_ascii=False), encoding="utf-8")

"""Pairs as a user would write them: JSONL records cut from the repository's licence text."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_TEXT = (Path(__file__).resolve().parents[1] / "LICENSE").read_text(encoding="utf-8")


def make_record(index: int = 0, num_turns: int = 1, context_chars: int = 2000, **changes: Any) -> dict[str, Any]:
    """One valid pair; ``changes`` replace its fields. Everything in it depends on ``index``."""
    turns = [
        {
            "short_context": _cut(100 * index + 400 * turn, 300),
            "instruction": f"Question {index}.{turn}: what does it say?",
            "chosen": _cut(130 * index + 50 * turn, 60 + 7 * index % 50),
            "rejected": _cut(170 * index + 90 * turn + 40, 80 + 11 * index % 60),
        }
        for turn in range(num_turns)
    ]
    record: dict[str, Any] = {
        "id": f"pair-{index}",
        "context": _cut(37 * index, context_chars),
        "turns": turns,
        "meta": {"n": index},
    }
    return record | changes


def make_records(num_pairs: int) -> list[dict[str, Any]]:
    """Pairs of one to three turns and of different lengths."""
    return [make_record(index, 1 + index % 3, 1000 + 300 * (index % 5)) for index in range(num_pairs)]


def write_jsonl(path: Path, records: Iterable[dict[str, Any]]) -> Path:
    """Write a preference file."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def _cut(start: int, num_chars: int) -> str:
    start %= 5000
    return _TEXT[start : start + num_chars].strip()

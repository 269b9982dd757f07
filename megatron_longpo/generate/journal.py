"""What a shard has got so far, in a journal (journal.py): every answer and every finished document.

A line is on disk before anything is done with what it says. Its kinds, after the header (settings, engine, sources,
shard):

    session    a process began to append; it has not been through all documents until an end follows
    answer     the completion of one request, under the request's key
    document   the outcome of one long context: its pair, or none, and what was dropped
    end        all documents of the shard are done; counts of what the sources held
"""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megatron_longpo import journal
from megatron_longpo.errors import UserError
from megatron_longpo.generate.engine import Completion


@dataclass(frozen=True, slots=True)
class Shard:
    """One of the parts that a corpus is divided into; every part has a journal of its own."""

    number: int
    """The first is 1."""
    of: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.of:
            raise UserError(f"--shard {self.number}/{self.of}: give i/n with i from 1 to n")

    def holds(self, index: int) -> bool:
        """Whether the unit of that number is this shard's."""
        return index % self.of == self.number - 1

    @property
    def file_name(self) -> str:
        """The name of its journal."""
        return f"shard-{self.number}-of-{self.of}.journal"


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """Where a long context stands in the corpus: the order of the output."""

    unit: int
    part: int
    """Number of the context within its unit."""


class Journal(journal.Journal):
    """One shard's journal."""

    def __init__(self, folder: Path, shard: Shard, header: Mapping[str, Any]) -> None:
        """Open it, or begin it with ``header``.

        Raises:
            UserError: another process has it open, it is damaged, or it was begun with another header.
        """
        super().__init__(folder / shard.file_name, {**header, "shard": asdict(shard)})
        self.answers: dict[str, Completion] = {}
        self.done: dict[Position, dict[str, Any]] = {}
        """Position -> its line, without the pair."""
        self.seconds = 0.0
        """That earlier sessions worked, up to what they wrote last."""
        for _, _, line in journal.journal_lines(self.path):
            self._take(line)
        self._started = time.monotonic()
        self.append({"kind": "session", "time": time.time()})

    def add_answer(self, key: str, completion: Completion) -> None:
        """Remember the answer to a request."""
        self.append({"kind": "answer", "key": key, **asdict(completion), "after": self._elapsed()})
        self.answers[key] = completion

    def add_document(self, position: Position, outcome: Mapping[str, Any]) -> None:
        """Remember that a long context is done, and its pair."""
        line = {"kind": "document", "unit": position.unit, "part": position.part, **outcome, "after": self._elapsed()}
        self.append(line)
        self.done[position] = {**line, "pair": None}

    def end(self, counts: Mapping[str, int]) -> None:
        """Remember that this session went through all documents of the shard."""
        self.append({"kind": "end", "counts": dict(counts), "after": self._elapsed()})

    def _elapsed(self) -> float:
        """Seconds of work since the journal was begun, those of earlier sessions included."""
        return round(self.seconds + time.monotonic() - self._started, 3)

    def _take(self, line: dict[str, Any]) -> None:
        if line["kind"] == "answer":
            fields = ("text", "finish", "num_prompt_tokens", "num_new_tokens")
            self.answers.setdefault(line["key"], Completion(**{name: line[name] for name in fields}))
        elif line["kind"] == "document":
            self.done[Position(line["unit"], line["part"])] = {**line, "pair": None}
        self.seconds = line.get("after", self.seconds)

"""What a shard has got so far: every answer and every finished document, one checked line each, safe against kill -9.

A line is the CRC-32 of what follows it, a blank, and one JSON object; it is appended with one write and fsynced before
anything is done with what it says. The kinds of lines:

    header     what the journal belongs to: settings, engine, sources, shard; a run with another one is refused
    session    a process began to append; it has not been through all documents until an end follows
    answer     the completion of one request, under the request's key
    document   the outcome of one long context: its pair, or none, and what was dropped
    end        all documents of the shard are done; counts of what the sources held

A last line that was cut by a kill is removed when the journal is opened; a broken line anywhere else is an error.
"""

import fcntl
import json
import os
import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from megatron_longpo.errors import UserError
from megatron_longpo.generate.engine import Completion

FORMAT_VERSION = 1
_CRC_CHARACTERS = 8


@dataclass(frozen=True, slots=True)
class Shard:
    """One of the parts that a corpus is divided into; every part has a journal of its own."""

    number: int
    """From 1."""
    of: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.of:
            raise UserError(f"--shard {self.number}/{self.of}: give i/n with i from 1 to n")

    def holds(self, index: int) -> bool:
        """Whether the unit of that number is this shard's."""
        return index % self.of == self.number - 1

    @property
    def file_name(self) -> str:
        """Of its journal."""
        return f"shard-{self.number}-of-{self.of}.journal"


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """Where a long context stands in the corpus: the order of the output."""

    unit: int
    part: int
    """Number of the context within its unit."""


class Journal:
    """One shard's journal, open for appending by this process alone; a context manager."""

    def __init__(self, folder: Path, shard: Shard, header: Mapping[str, Any]) -> None:
        """Open it, or begin it with ``header``.

        Raises:
            UserError: another process has it open, it is damaged, or it was begun with another header.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / shard.file_name
        self.answers: dict[str, Completion] = {}
        self.done: dict[Position, dict[str, Any]] = {}
        """Position -> its line, without the pair."""
        self.seconds = 0.0
        """That earlier sessions worked, up to what they wrote last."""
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            self._lock()
            self._read({**header, "shard": asdict(shard)})
        except BaseException:
            os.close(self._descriptor)
            raise
        self._started = time.monotonic()
        self._append({"kind": "session", "time": time.time()})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        os.close(self._descriptor)

    def add_answer(self, key: str, completion: Completion) -> None:
        """Remember the answer to a request."""
        self._append({"kind": "answer", "key": key, **asdict(completion), "after": self._elapsed()})
        self.answers[key] = completion

    def add_document(self, position: Position, outcome: Mapping[str, Any]) -> None:
        """Remember that a long context is done, and its pair."""
        line = {"kind": "document", "unit": position.unit, "part": position.part, **outcome, "after": self._elapsed()}
        self._append(line)
        self.done[position] = {**line, "pair": None}

    def end(self, counts: Mapping[str, int]) -> None:
        """Remember that this session went through all documents of the shard."""
        self._append({"kind": "end", "counts": dict(counts), "after": self._elapsed()})

    def _elapsed(self) -> float:
        """Seconds of work since the journal was begun, those of earlier sessions included."""
        return round(self.seconds + time.monotonic() - self._started, 3)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"{self.path}: another process is writing it; wait for that one, or stop it first"
            ) from error

    def _read(self, header: Mapping[str, Any]) -> None:
        end = 0
        for _, line_end, line in journal_lines(self.path):
            self._take(line, header)
            end = line_end
        os.ftruncate(self._descriptor, end)
        os.lseek(self._descriptor, 0, os.SEEK_END)
        if end == 0:
            self._append({"kind": "header", "format_version": FORMAT_VERSION, **header})

    def _take(self, line: dict[str, Any], header: Mapping[str, Any]) -> None:
        match line["kind"]:
            case "header":
                check_header(self.path, line, header)
            case "answer":
                fields = ("text", "finish", "num_prompt_tokens", "num_new_tokens")
                self.answers.setdefault(line["key"], Completion(**{name: line[name] for name in fields}))
            case "document":
                self.done[Position(line["unit"], line["part"])] = {**line, "pair": None}
            case _:
                pass
        self.seconds = line.get("after", self.seconds)

    def _append(self, line: Mapping[str, Any]) -> None:
        text = json.dumps(line, ensure_ascii=False)
        data = f"{_crc(text)} {text}\n".encode()
        start = os.lseek(self._descriptor, 0, os.SEEK_END)
        try:
            written = os.write(self._descriptor, data)
            if written != len(data):
                raise OSError(f"{self.path}: only {written} of {len(data)} bytes could be written; is the disk full?")
            os.fsync(self._descriptor)
        except OSError:
            os.ftruncate(self._descriptor, start)
            raise


def check_header(path: Path, line: Mapping[str, Any], header: Mapping[str, Any]) -> None:
    """Refuse a journal that was begun with another header: the message names what differs.

    Args:
        line: the journal's first line.
        header: what it should say, but for the line's own ``kind`` and ``format_version``.
    """
    begun = {name: value for name, value in line.items() if name not in ("kind", "format_version")}
    if line.get("format_version") != FORMAT_VERSION:
        raise UserError(
            f"{path}: journal of format {line.get('format_version')}, this program writes {FORMAT_VERSION}; remove it"
        )
    wanted = json.loads(json.dumps(header))
    differences = list(_differences("", begun, wanted))
    if differences:
        raise UserError(
            f"{path}: begun with other settings ({'; '.join(differences[:3])}); give the same again, or another "
            "--output, or remove the journal to start anew"
        )


def journal_lines(path: Path) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Yield (byte at which the line begins, byte after it, the line); a last line that was cut is left out.

    Raises:
        UserError: it is missing, or a line before the last is damaged.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such journal; run generate with that --shard first")
    position = 0
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            crc, text = raw[:_CRC_CHARACTERS], raw[_CRC_CHARACTERS + 1 : -1]
            if not raw.endswith(b"\n") or crc.decode("ascii", "replace") != _crc(text):
                if file.read(1):
                    raise UserError(
                        f"{path}:{number}: damaged (its checksum is wrong), and lines follow it; restore the file, or "
                        "remove it to start this shard anew"
                    )
                return
            yield position, position + len(raw), json.loads(text)
            position += len(raw)


def _crc(text: str | bytes) -> str:
    return f"{zlib.crc32(text.encode() if isinstance(text, str) else text):0{_CRC_CHARACTERS}x}"


def _differences(name: str, begun: Any, wanted: Any) -> Iterator[str]:
    if isinstance(begun, dict) and isinstance(wanted, dict):
        for key in sorted(begun.keys() | wanted.keys()):
            yield from _differences(f"{name}.{key}" if name else key, begun.get(key), wanted.get(key))
    elif begun != wanted:
        yield f"{name} was {_shown(begun)}, is {_shown(wanted)}"


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."

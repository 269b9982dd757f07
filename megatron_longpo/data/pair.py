"""The pair as text: one JSON line of a preference file, validated strictly.

Invariants of a `Pair` (tests/unit/data/test_pair.py quotes them):
  1. every text, names and meta included, encodes as UTF-8; every text that is tokenised holds a character that is not
     white space;
  2. there is at least one turn;
  3. in every turn chosen and rejected differ in more than the white space around them;
  4. the id is printable, at most 512 characters, and unique over all files that are read together.
Blank lines are refused like any other line that is not one JSON object: they hide a broken concatenation.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_longpo import strict_json
from megatron_longpo.errors import UserError
from megatron_longpo.files import shown
from megatron_longpo.strict_json import is_object

MAX_ID_CHARS = 512
_PAIR_FIELDS = {"id": str, "context": str, "turns": list, "meta": dict}
_TURN_FIELDS = {"short_context": str, "instruction": str, "chosen": str, "rejected": str}
_JSON_NAMES: dict[type, str] = {
    dict: "object",
    list: "array",
    str: "string",
    int: "number",
    float: "number",
    bool: "boolean",
}


@dataclass(frozen=True, slots=True)
class Turn:
    """One instruction and its two answers."""

    short_context: str
    """The chunk of the document that holds the evidence; the reference sees it instead of the whole document."""
    instruction: str
    chosen: str
    """The answer that was written from the short context."""
    rejected: str
    """The answer that was written from the long context."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One long document with its turns, as read from one line."""

    id: str
    context: str
    """The whole document; it opens the first user message of the long conversation."""
    turns: tuple[Turn, ...]
    meta: Mapping[str, Any]
    """Free for the user: carried into the dataset, never tokenised. May be absent in the file."""


def parse_pair(line: bytes, where: str) -> Pair:
    """Parse and validate one JSON line (DESIGN section 7 gives the schema).

    Args:
        line: the raw bytes of the line, with or without its line feed.
        where: ``FILE:LINE``, put in front of every message.

    Raises:
        UserError: the line is not UTF-8, not one JSON object, or breaks the schema or an invariant above.
    """
    record = _checked_fields(_decode(line, where), _PAIR_FIELDS, where, "the pair", optional=("meta",))
    _check_id(record["id"], where)
    _check_text(record["context"], where, "context")
    if not record["turns"]:
        raise UserError(f"{where}: turns is empty; a pair needs at least one turn")
    turns = tuple(_parse_turn(turn, where, f"turns[{index}]") for index, turn in enumerate(record["turns"]))
    return Pair(id=record["id"], context=record["context"], turns=turns, meta=record.get("meta", {}))


def read_lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield ``(FILE:LINE, raw line)`` of one preference file, one line in memory at a time.

    Raises:
        UserError: the file is missing, not a file, or empty.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a JSONL file of pairs")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty; a preference file needs at least one pair")
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            yield f"{shown(path)}:{number}", line


def read_pairs(paths: Iterable[Path]) -> Iterator[tuple[str, Pair]]:
    """Yield ``(FILE:LINE, pair)`` of all files in order, and hold the ids unique over all of them.

    Raises:
        UserError: see `parse_pair` and `read_lines`; or an id came twice (both lines are named).
    """
    ids = UniqueIds()
    for path in paths:
        for where, line in read_lines(path):
            pair = parse_pair(line, where)
            ids.add(pair.id, where)
            yield where, pair


class UniqueIds:
    """The ids met so far and where; kept apart from `read_pairs` because `build` parses in other processes."""

    def __init__(self) -> None:
        self._first_place: dict[str, str] = {}

    def add(self, pair_id: str, where: str) -> None:
        """Take note of an id; raises UserError naming both lines when it was met before."""
        first = self._first_place.setdefault(pair_id, where)
        if first != where:
            raise UserError(f"{where}: id {pair_id!r} was already used at {first}; every pair needs its own id")


def _decode(line: bytes, where: str) -> object:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        utf16 = line.startswith((b"\xff\xfe", b"\xfe\xff"))
        seen = "it is UTF-16" if utf16 else f"byte 0x{line[error.start]:02x} at position {error.start} of the line"
        raise UserError(f"{where}: not UTF-8: {seen} ({error.reason}); convert the file to UTF-8") from error
    text = text.removeprefix("\ufeff")  # the byte order mark that some editors write before a file
    if not text.strip():
        raise UserError(f"{where}: blank line; every line must hold one JSON object: remove it")
    try:
        return strict_json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not valid JSON: {error.msg} at column {error.colno}; repair the line") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not valid JSON: {error}; repair the line") from error


def _parse_turn(value: object, where: str, label: str) -> Turn:
    record = _checked_fields(value, _TURN_FIELDS, where, label)
    for name, text in record.items():
        _check_text(text, where, f"{label}.{name}")
    if record["chosen"].strip() == record["rejected"].strip():
        raise UserError(
            f"{where}: {label}.chosen equals {label}.rejected; a preference needs two different answers: drop the turn"
        )
    return Turn(**record)


def _checked_fields(
    value: object, fields: dict[str, type], where: str, label: str, optional: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Hold ``value`` to be an object with exactly these fields and JSON types."""
    if not is_object(value):
        raise UserError(f"{where}: {label} must be an object, not {_json_name(value)}")
    record = value
    missing = [name for name in fields if name not in record and name not in optional]
    if missing:
        raise UserError(f"{where}: {label} lacks the field {missing[0]!r}; it needs {', '.join(fields)}")
    unknown = [name for name in record if name not in fields]
    if unknown:
        raise UserError(
            f"{where}: {label} has the unknown field {unknown[0]!r}; it may have {', '.join(fields)}"
            " (anything else belongs into the pair's meta)"
        )
    for name, content in record.items():
        if type(content) is not fields[name]:
            raise UserError(
                f"{where}: {_field_label(label, name)} must be {_JSON_NAMES[fields[name]]}, not {_json_name(content)}"
            )
    return record


def _field_label(label: str, name: str) -> str:
    return name if label == "the pair" else f"{label}.{name}"


def _json_name(value: object) -> str:
    return "null" if value is None else _JSON_NAMES[type(value)]


def _check_id(pair_id: str, where: str) -> None:
    if not pair_id.strip() or not pair_id.isprintable() or len(pair_id) > MAX_ID_CHARS:
        raise UserError(
            f"{where}: id {pair_id[:40]!r} must be printable, not blank and at most {MAX_ID_CHARS} characters long"
        )


def _check_text(text: str, where: str, label: str) -> None:
    if not text.strip():
        raise UserError(f"{where}: {label} is empty; it needs text")

"""JSON that every reader of JSON understands.

Python's own module also reads and writes NaN and Infinity, turns 1e999 into infinity, keeps the last of two fields of
one name, and lets half a surrogate pair through, which no UTF-8 file can hold.
"""

import codecs
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeGuard

from megatron_longpo.errors import UserError
from megatron_longpo.files import reading


def loads(text: str) -> Any:
    """Read one JSON value.

    Raises:
        ValueError: it is not JSON (JSONDecodeError), or holds what the head of this file names.
        RecursionError: it is nested too deeply.
    """
    value: Any = json.loads(
        text, object_pairs_hook=_without_duplicates, parse_constant=_refuse_constant, parse_float=_finite
    )
    if "\\ud" in text.lower() and (half := half_surrogate(value)):
        raise ValueError(half)
    return value


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``.

    Raises:
        UserError: there is no such file, it is not UTF-8 JSON, or not an object.
    """
    try:
        value = loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; give a folder that holds it") from None
    except (IsADirectoryError, NotADirectoryError) as error:
        raise UserError(f"{path}: {error.strerror}; it must be a JSON file in a folder") from None
    except RecursionError:
        raise UserError(f"{path}: nested too deeply for JSON settings; restore the file from its source") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        line = f":{error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise UserError(f"{path}{line}: not valid JSON ({error}); restore the file from its source") from None
    if not is_object(value):
        raise UserError(f"{path}: holds a JSON {type(value).__name__}, needs an object")
    return value


def read_lines(path: Path, example: str) -> Iterator[tuple[str, Any]]:
    """Yield ``(FILE:LINE, value)`` of a file of JSON lines; blank ones, and a byte order mark before all, are left out.

    Args:
        example: the end of the message on a line that is not JSON, like "an answer is like {...}".

    Raises:
        UserError: the file cannot be read, or a line is not what `loads` reads.
    """
    with reading(path, OSError), path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            text = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if not text.strip():
                continue
            where = f"{path}:{number}"
            try:
                value = loads(text.decode("utf-8"))
            except (ValueError, RecursionError) as error:
                raise UserError(f"{where}: not a JSON line ({error}); {example}") from error
            yield where, value


def is_object(value: object) -> TypeGuard[dict[str, Any]]:
    """Whether a value that was read is a JSON object."""
    return isinstance(value, dict)


def is_array(value: object) -> TypeGuard[list[Any]]:
    """Whether a value that was read is a JSON array."""
    return isinstance(value, list)


def half_surrogate(value: object) -> str | None:
    """Say which text in a JSON value, field names included, holds half of a surrogate pair; None if none does."""
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            code, place = ord(value[error.start]), error.start
            return f"a text holds half of a surrogate pair (\\u{code:04x}) at character {place}, which is not UTF-8"
        return None
    parts = [*value, *value.values()] if is_object(value) else value if is_array(value) else []
    return next((found for one in parts if (found := half_surrogate(one))), None)


def _without_duplicates(items: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(items)
    if len(record) != len(items):
        names = [name for name, _ in items]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"field {repeated!r} appears twice in one object")
    return record


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _finite(digits: str) -> float:
    if not math.isfinite(number := float(digits)):
        raise ValueError(f"{digits[:40]} is too large for a number")
    return number

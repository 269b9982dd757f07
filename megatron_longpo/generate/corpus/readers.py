"""Files as rows of text: whole files, JSON lines, Arrow and parquet, compressed or not; one row in memory at a time."""

import gzip
import io
import json
import zlib
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

from megatron_longpo.errors import UserError, import_optional, one_line
from megatron_longpo.files import reading
from megatron_longpo.strict_json import is_object

Kind = Literal["text", "rows", "arrow"]
"""One document a file; one JSON object a line; a table."""

PROSE_SUFFIXES = frozenset({".txt", ".text", ".rst"})
MARKDOWN_SUFFIXES = frozenset({".md", ".markdown"})
LATEX_SUFFIXES = frozenset({".tex", ".latex"})
# fmt: off
CODE_SUFFIXES = frozenset({
    ".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".cxx", ".hpp", ".hh", ".cu", ".cuh", ".java", ".js", ".jsx", ".mjs",
    ".ts", ".tsx", ".go", ".rs", ".cs", ".kt", ".swift", ".scala", ".rb", ".php", ".lua", ".jl", ".sh",
})
# fmt: on
ROW_SUFFIXES = frozenset({".jsonl", ".ndjson", ".json"})
ARROW_SUFFIXES = frozenset({".arrow", ".parquet"})
TEXT_SUFFIXES = PROSE_SUFFIXES | MARKDOWN_SUFFIXES | LATEX_SUFFIXES | CODE_SUFFIXES
_ARROW_CODECS = {".bz2": "bz2", ".zst": "zstd"}
COMPRESSED = (".gz", *_ARROW_CODECS)


@dataclass(frozen=True, slots=True)
class Row:
    """One text as it stands in a file."""

    where: str
    number: int | None
    """Line from 1 or table row from 0; None where the file is the text."""
    text: str
    id: str | None
    """The row's own id, if it has one."""


def suffix_of(path: Path) -> str:
    """The suffix that says what is inside, in lower case: ``.md`` for ``Notes.MD.gz``."""
    name = Path(path.stem) if path.suffix.lower() in COMPRESSED else path
    return name.suffix.lower()


def kind_of(path: Path) -> Kind | None:
    """What a file holds, by its name; None: nothing that is read here."""
    suffix = suffix_of(path)
    if suffix in TEXT_SUFFIXES:
        return "text"
    if suffix in ROW_SUFFIXES:
        return "rows"
    return "arrow" if path.suffix.lower() in ARROW_SUFFIXES else None


def read_rows(path: Path, text_field: str) -> Iterator[Row]:
    """Yield the texts of one file of a known kind, as they are but for line ends, which become line feeds.

    A null text is an empty one. Blank lines between JSON lines are passed over.

    Raises:
        UserError: the file is missing, damaged or cut off, is not UTF-8, or a row has no text of that name; pyarrow is
            needed and not installed.
    """
    match kind_of(path):
        case "arrow":
            yield from _table_rows(path, text_field)
        case "rows":
            yield from _json_rows(path, text_field)
        case _:
            with _open(path) as file, _readable(path):
                content = file.read()
            yield Row(str(path), None, _text(content, str(path), 0).removeprefix("\ufeff"), None)


def _json_rows(path: Path, text_field: str) -> Iterator[Row]:
    offset = 0
    with _open(path) as file:
        number = 0
        while True:
            with _readable(path):
                line = file.readline()
            if not line:
                return
            number += 1
            where = f"{path}:{number}"
            if not line.isspace():
                fields = _fields(_text(line, where, offset), where)
                yield Row(where, number, *_text_and_id(fields, text_field, where))
            offset += len(line)


def _fields(line: str, where: str) -> dict[str, Any]:
    try:
        fields = json.loads(line.removeprefix("\ufeff"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: no JSON ({error}); each line must be one JSON object with a text") from error
    if not is_object(fields):
        raise UserError(f"{where}: a JSON {type(fields).__name__}; each line must be one JSON object with a text")
    return fields


def _table_rows(path: Path, text_field: str) -> Iterator[Row]:
    from megatron_longpo.data import arrow

    file = arrow.find_files([path])[0]
    if text_field not in file.columns:
        raise _no_field(str(path), "column", text_field, list(file.columns))
    columns = [text_field] + (["id"] if "id" in file.columns and text_field != "id" else [])
    for number, (where, scalars) in enumerate(arrow.read_rows(file, columns)):
        try:
            fields = {name: scalar.as_py() for name, scalar in scalars.items()}
        except ValueError as error:  # of UTF-8, or a date that Python has no room for
            raise UserError(f"{where}: cannot be read ({one_line(error)}); repair or drop the row") from error
        yield Row(where, number, *_text_and_id(fields, text_field, where))


def _text_and_id(fields: dict[str, Any], text_field: str, where: str) -> tuple[str, str | None]:
    if text_field not in fields:
        raise _no_field(where, "field", text_field, list(fields))
    text, row_id = fields[text_field], fields.get("id")
    if text is None:
        text = ""
    if not isinstance(text, str):
        raise UserError(
            f"{where}: {text_field!r} is of type {type(text).__name__}; name a field of text (--text-field)"
        )
    if not text.isascii() and (lone := _lone_surrogate(text)) is not None:
        raise UserError(
            f"{where}: {text_field!r} holds half a surrogate pair (character {lone}); repair or drop the row"
        )
    return text.replace("\r\n", "\n"), row_id if isinstance(row_id, str) and text_field != "id" else None


def _no_field(where: str, what: str, text_field: str, there: list[str]) -> UserError:
    names = ", ".join(map(repr, there[:20])) or "none"
    return UserError(f"{where}: no {what} {text_field!r}; there is {names}: name the one with the text (--text-field)")


def _lone_surrogate(text: str) -> int | None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return error.start
    return None


def _text(content: bytes, where: str, offset: int) -> str:
    """Decode; ``offset`` is where ``content`` begins in its file, in bytes (after decompression)."""
    # UTF-16 of plain letters is UTF-8, too, and every other byte is 0.
    if (nul := content.find(b"\0")) >= 0:
        raise UserError(f"{where}: byte {offset + nul} of the file is 0, so it is UTF-16 or no text; save it as UTF-8")
    try:
        return content.decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where}: not UTF-8 (byte {offset + error.start} of the file is {content[error.start]:#04x});"
            " save it as UTF-8"
        ) from error


@contextmanager
def _open(path: Path) -> Generator[BinaryIO]:
    with _readable(path):
        file = path.open("rb")
    with file:
        suffix = path.suffix.lower()
        if suffix == ".gz":
            yield cast(BinaryIO, gzip.GzipFile(fileobj=file))
        elif codec := _ARROW_CODECS.get(suffix):
            # pyarrow's stream goes through all frames and fails on a file that was cut off; zstandard's ends silently.
            purpose = f"{path}: {suffix} files are read with pyarrow, which cannot be imported"
            arrow = import_optional("pyarrow", purpose, extra="generate")
            stream = arrow.CompressedInputStream(arrow.PythonFile(file, "r"), codec)
            yield cast(BinaryIO, io.BufferedReader(stream, 1 << 17))
        else:
            yield file


def _readable(path: Path) -> AbstractContextManager[None]:
    return reading(path, OSError, EOFError, zlib.error)

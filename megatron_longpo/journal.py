"""An append-only file of lines that survives kill -9: what a run has paid for is never computed twice.

A line is the CRC-32 of what follows it, a blank, and one JSON object. The first line is the header: it names what the
journal belongs to, and a run that is about something else is refused. A last line that was cut by a kill is removed
when the journal is opened; a broken line anywhere else is an error. One process at a time writes a journal.
"""

import json
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from megatron_longpo.errors import UserError
from megatron_longpo.locks import Lock
from megatron_longpo.strict_json import is_object

FORMAT_VERSION = 1
_CRC_CHARACTERS = 8


class Journal:
    """One journal, open for appending by this process alone; a context manager."""

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        """Open it and drop a last line that was cut, or begin it with ``header``.

        Raises:
            UserError: another process has it open, it is damaged, or it was begun with another header.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._lock = Lock(path)
        try:
            end = 0
            for _, line_end, line in journal_lines(path):
                if line["kind"] == "header":
                    check_header(path, line, header)
                end = line_end
            os.ftruncate(self._lock.descriptor, end)
            if end == 0:
                self.append({"kind": "header", "format_version": FORMAT_VERSION, **header})
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def append(self, *lines: Mapping[str, Any]) -> None:
        """Add lines with one write, and wait until the disk has them; all of them or, on an OSError, none."""
        data = b"".join(_line(line) for line in lines)
        descriptor = self._lock.descriptor
        start = os.lseek(descriptor, 0, os.SEEK_END)
        try:
            written = os.write(descriptor, data)
            if written != len(data):
                raise OSError(f"{self.path}: only {written} of {len(data)} bytes could be written; is the disk full?")
            os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, start)
            raise

    def close(self) -> None:
        """Let another process have it."""
        self._lock.close()


def journal_lines(path: Path) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Yield (byte at which the line begins, byte after it, the line); a last line that was cut is left out.

    Raises:
        UserError: a line before the last is damaged, or the first is no header.
    """
    position = 0
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if not raw.endswith(b"\n") or raw[:_CRC_CHARACTERS] != _crc(journal_text(raw)):
                if file.read(1):
                    raise UserError(
                        f"{path}:{number}: damaged (its checksum is wrong), and lines follow it; restore the file, or "
                        "remove it to start anew"
                    )
                return
            line = json.loads(journal_text(raw))
            if number == 1 and line["kind"] != "header":
                raise UserError(f"{path}:1: no header, so nothing says what it belongs to; remove it to start anew")
            yield position, position + len(raw), line
            position += len(raw)


def journal_text(raw: bytes) -> bytes:
    """The JSON of a line as it stands in the file."""
    return raw[_CRC_CHARACTERS + 1 : -1]


def check_header(path: Path, line: Mapping[str, Any], header: Mapping[str, Any]) -> None:
    """Refuse a journal that was begun with another header: the message names what differs.

    Args:
        path: the journal, for the message.
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


def _line(fields: Mapping[str, Any]) -> bytes:
    try:
        text = json.dumps(fields, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # half a surrogate pair is no UTF-8, but an escape of JSON
        text = json.dumps(fields).encode()
    return _crc(text) + b" " + text + b"\n"


def _crc(text: bytes) -> bytes:
    return f"{zlib.crc32(text):0{_CRC_CHARACTERS}x}".encode()


def _differences(name: str, begun: Any, wanted: Any) -> Iterator[str]:
    if is_object(begun) and is_object(wanted):
        for key in sorted(begun.keys() | wanted.keys()):
            yield from _differences(f"{name}.{key}" if name else key, begun.get(key), wanted.get(key))
    elif begun != wanted:
        yield f"{name} was {_shown(begun)}, is {_shown(wanted)}"


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."

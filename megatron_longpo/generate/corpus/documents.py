"""Documents: found in files, folders and globs, read one at a time, each with an id of its own.

An id is the row's own (a field ``id``), or made of the file's name and the row's number. The name is relative to the
folder or the fixed part of the glob that was given, so that ids are the same on another machine.
"""

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from hashlib import blake2b
from pathlib import Path

from megatron_longpo.errors import UserError
from megatron_longpo.files import reading
from megatron_longpo.generate.corpus.domains import Domain, domain_of_name, domain_of_text
from megatron_longpo.generate.corpus.readers import COMPRESSED, Row, kind_of, read_rows

MAX_ID_CHARACTERS = 400
"""Joined documents and contexts append to it, and a pair's id may have 512."""
_DATASET_FILES = ("state.json", "dataset_info.json", "dataset_dict.json")
"""What `datasets.save_to_disk` writes beside its Arrow files."""
_KNOWN = (
    "text, Markdown, LaTeX and source files, .jsonl (all also .gz, .bz2, .zst), .arrow, .parquet, folders, quoted globs"
)


@dataclass(slots=True)
class Counts:
    """What became of the text, for the report; documents and units are those of the whole corpus."""

    ignored_files: int = 0
    """Files of other kinds in folders and globs, broken links, pipes, devices, links to what is read already."""
    documents: int = 0
    """Documents with text."""
    characters: int = 0
    """Characters of those documents."""
    empty: int = 0
    """Documents of nothing but white space, left out."""
    duplicate: int = 0
    """Documents left out because they mostly repeat earlier ones."""
    joined: int = 0
    """Short documents that were joined with others."""
    short: int = 0
    """Short documents left out: not to be joined, or too few were left to join."""
    units: int = 0
    """Long documents and joined short ones, of all shards."""
    units_too_short: int = 0
    """Units of this shard that gave no context."""
    contexts: int = 0
    """Contexts of this shard."""
    characters_cut: int = 0
    """Characters of this shard's units in no context, because too few were left for another."""
    questions: int = 0
    """Questions given about this shard's contexts, each with its evidence in one chunk."""


OF_A_SHARD = ("units_too_short", "contexts", "characters_cut", "questions")
"""Counts that differ from shard to shard; the others are the same in every one."""


@dataclass(frozen=True, slots=True)
class Source:
    """One file to read documents from."""

    path: Path
    name: str
    """Relative to what was given; ids are made of it."""


@dataclass(frozen=True, slots=True)
class Document:
    """One text of the corpus."""

    id: str
    """Printable, unique over the corpus, the same on every machine."""
    text: str
    """Not only white space; line ends are line feeds."""
    domain: Domain
    where: str
    """FILE, FILE:LINE or ``FILE: row N``, for messages."""
    source: str
    """Name of the file of rows it stands in; empty for a file that is one document."""


def find_sources(paths: Sequence[str], counts: Counts | None = None) -> list[Source]:
    """The files that ``paths`` name: files, folders (with all below them), globs and `save_to_disk` folders.

    What cannot be read (`Counts.ignored_files`) is an error where it is named, and counted where a folder or a glob
    brings it along; hidden files are passed over. Links to folders are followed, each folder once.

    Raises:
        UserError: a path is not there, matches nothing, is of unknown kind or given twice, or two files would give the
            same ids.
    """
    counts = counts if counts is not None else Counts()
    found: dict[Path, str] = {}
    places: dict[str, Path] = {}
    for given in paths:
        for source in _sources_of(given, counts):
            if (place := source.path.resolve()) in found:
                raise UserError(f"{source.path}: given twice (as {found[place]} and {given}); name every file once")
            if (other := places.setdefault(source.name, source.path)) != source.path:
                raise UserError(
                    f"{source.path} and {other} would both be called {source.name!r}, which ids are made of;"
                    " give one folder that holds both, or rename one"
                )
            found[place] = given
    return [Source(path, name) for name, path in places.items()]


def read_documents(
    sources: Sequence[Source],
    *,
    text_field: str = "text",
    domain: Domain | None = None,
    counts: Counts | None = None,
) -> Iterator[Document]:
    """Yield the documents of ``sources`` in order, one in memory at a time.

    Args:
        text_field: the field of JSON lines and the column of tables that holds the text.
        domain: of all documents; None: by the file's suffix, or else by a look at the text.

    Raises:
        UserError: see `readers.read_rows`; or a row's id cannot be used or was used before.
    """
    counts = counts if counts is not None else Counts()
    ids = _UniqueIds(sources)
    for index, source in enumerate(sources):
        known = domain or domain_of_name(source.path)
        for row in read_rows(source.path, text_field):
            if not row.text.strip():
                counts.empty += 1
                continue
            counts.documents += 1
            counts.characters += len(row.text)
            name = "" if row.number is None else source.name
            document_id = _document_id(row, source)
            ids.add(document_id, index, row)
            yield Document(document_id, row.text, known or domain_of_text(row.text), row.where, name)


def _sources_of(given: str, counts: Counts) -> list[Source]:
    path = Path(os.path.expanduser(given))  # noqa: PTH111 - pathlib's own fails on a file called ~x
    if path.is_dir():
        if any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
            return _dataset_sources(path)
        base, what, files = path, "holds", _files_below(path)
    elif path.is_file():
        if kind_of(path) is None:
            raise UserError(f"{given}: unknown kind {_suffixes(path)!r}; what is read: {_KNOWN}")
        return [Source(path, _printable(path.name))]
    elif path.exists():
        raise UserError(f"{given}: a pipe or device; documents are read more than once: save it as a file")
    elif path.is_symlink():
        raise UserError(f"{given}: a link to {path.readlink()}, which is not there; mend the link")
    elif glob.has_magic(given):
        base, what = _fixed_part(path), "matches"
        files = _matching(base, path.relative_to(base))
    else:
        raise UserError(f"{given}: no such file or folder; what is read: {_KNOWN}")
    found: dict[Path, Path] = {}
    for file in sorted(files, key=lambda file: (file.is_symlink(), file)):
        if kind_of(file) and file.name not in _DATASET_FILES and file.is_file():
            found.setdefault(file.resolve(), file)
    counts.ignored_files += len(files) - len(found)
    if not found:
        raise UserError(f"{given}: {what} no file to read ({len(files)} of other kinds); what is read: {_KNOWN}")
    return [Source(file, _printable(file.relative_to(base).as_posix())) for file in sorted(found.values())]


def _files_below(top: Path) -> list[Path]:
    """What is in a folder and the folders below, hidden ones aside; links to folders are followed after all others.

    A link to a folder that was gone through, or to one above, stands in the list itself.
    """
    starts, seen, found = [top], set[Path](), list[Path]()

    def fail(error: OSError) -> None:
        raise error

    for start in starts:
        with reading(start, OSError):
            for place, folders, files in os.walk(start, onerror=fail):
                here = Path(place)
                folder = here.resolve()
                if folder in seen or (here != top and top.resolve().is_relative_to(folder)):
                    folders.clear()
                    found.append(here)
                    continue
                seen.add(folder)
                folders[:] = sorted(name for name in folders if not name.startswith("."))
                starts += [here / name for name in folders if (here / name).is_symlink()]
                found += [here / name for name in files if not name.startswith(".")]
    return found


def _matching(base: Path, pattern: Path) -> list[Path]:
    if "**" in pattern.parts:
        files = _files_below(base) if base.is_dir() else []
        return [file for file in files if _matches(file.relative_to(base).parts, pattern.parts)]
    files = [file for file in base.glob(str(pattern)) if not file.is_dir()]
    return [file for file in files if not any(part.startswith(".") for part in file.relative_to(base).parts)]


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_matches(parts[skipped:], pattern[1:]) for skipped in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def _dataset_sources(folder: Path) -> list[Source]:
    from megatron_longpo.data import arrow

    return [Source(file.path, _printable(file.path.name)) for file in arrow.find_files([folder])]


def _suffixes(path: Path) -> str:
    inner = Path(path.stem).suffix if path.suffix.lower() in COMPRESSED else ""
    return inner + path.suffix or path.name


def _fixed_part(pattern: Path) -> Path:
    """The folders of a glob before its first wildcard."""
    parts = pattern.parts
    first = next(index for index, part in enumerate(parts) if glob.has_magic(part))
    return Path(*parts[:first])


def _printable(name: str) -> str:
    """The name with ``?`` for what cannot be printed (line feeds, bytes that are no UTF-8); its end where too long."""
    return "".join(character if character.isprintable() else "?" for character in name)[-MAX_ID_CHARACTERS + 32 :]


def _document_id(row: Row, source: Source) -> str:
    if row.id is None:
        return source.name if row.number is None else f"{source.name}#{row.number}"
    if not row.id.isprintable() or not 0 < len(row.id.strip()) <= len(row.id) <= MAX_ID_CHARACTERS:
        shown = repr(row.id[:40])
        raise UserError(
            f"{row.where}: id {shown} cannot be used; an id is 1 to {MAX_ID_CHARACTERS} printable characters"
        )
    return row.id


class _UniqueIds:
    """Every id met, as eight bytes, and where (which source, which row), packed into one integer."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources
        self._places: dict[bytes, int] = {}

    def add(self, document_id: str, index: int, row: Row) -> None:
        """Take note of an id; raises UserError naming both places when it was met before."""
        place = index << 40 | (row.number or 0)
        key = blake2b(document_id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        first = self._places.setdefault(key, place)
        if first != place:
            path, number = self._sources[first >> 40].path, first & (1 << 40) - 1
            kind = kind_of(path)
            other = f"{path}:{number}" if kind == "rows" else f"{path}: row {number}" if kind == "arrow" else str(path)
            raise UserError(
                f"{row.where}: id {document_id!r} was already used at {other}; every document needs its own"
            )

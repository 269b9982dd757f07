"""A folder that holds the benchmarks' data, so that everything after `evaluate prepare` needs no network.

``manifest.json`` says of each set where it is from and what its files are::

    {"format_version": 1, "sets": {"mmlu": {"source": "cais/mmlu@<revision>", "note": "",
        "files": {"cais/mmlu/all/test-00000-of-00001.parquet": {"sha256": "...", "bytes": 3504718}}}}}

A set is in the manifest once all its files are there, never before.
"""

import hashlib
import json
import shutil
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from megatron_longpo import strict_json
from megatron_longpo.errors import UserError
from megatron_longpo.files import atomic_directory, atomic_file, reading

FORMAT_VERSION = 1
MANIFEST = "manifest.json"

PLACES: dict[str, str] = {
    "mmlu": "cais/mmlu",
    "arc_challenge": "allenai/ai2_arc",
    "hellaswag": "Rowan/hellaswag",
    "winogrande": "allenai/winogrande",
    "infinitebench": "infinitebench",
    "essays": "essays",
    "squad": "squad/dev-v2.0.json",
    "hotpotqa": "hotpotqa/hotpot_dev_distractor_v1.json",
    "punkt_tab": "nltk_data",
}
"""Set -> where it lies in a mirror: a folder, or a file."""


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What a file of a set was when it was brought."""

    sha256: str
    """Hexadecimal digits."""
    bytes: int


@dataclass(frozen=True, slots=True)
class SetFacts:
    """A set as the manifest has it."""

    source: str
    """Like ``cais/mmlu@<revision>``, or what made it."""
    note: str
    """What is not whole; empty if nothing."""
    files: Mapping[str, FileFacts]
    """Path in the mirror, with slashes -> the file."""


@dataclass(frozen=True, slots=True)
class Mirror:
    """A mirror whose manifest was read; its files may have changed since."""

    folder: Path
    sets: Mapping[str, SetFacts]

    def path_of(self, name: str) -> Path:
        """Where a set lies: a folder, or the file of squad and hotpotqa. For punkt_tab, an entry of nltk.data.path.

        Raises:
            UserError: there is no such set, or one of its files is gone or has another size; with the command that
                brings it.
        """
        if changed := self.changed_files(name):
            raise UserError(
                f"{self.folder / changed[0]}: gone, or not of the size that {MANIFEST} says, so the set {name} is not "
                f"what it was; bring it again: {self._command(name)}"
            )
        return self.folder / PLACES[name]

    def sha256_of(self, name: str) -> str:
        """One digest of a set's files, in hexadecimal digits: of their names and digests as the manifest has them.

        Raises:
            UserError: there is no such set.
        """
        files = self._facts(name).files
        return hashlib.sha256("".join(f"{path} {files[path].sha256}\n" for path in sorted(files)).encode()).hexdigest()

    def changed_files(self, name: str, *, by_digest: bool = False) -> list[str]:
        """Which files of a set are gone or not what the manifest says, sorted.

        Args:
            name: the set.
            by_digest: read them whole, which takes seconds, instead of comparing sizes.

        Raises:
            UserError: there is no such set.
        """
        files = self._facts(name).files
        return sorted(path for path, file in files.items() if not _is_same(self.folder / path, file, by_digest))

    def _facts(self, name: str) -> SetFacts:
        if name not in PLACES:
            raise UserError(f"there is no set {name!r}; the sets of a mirror are {', '.join(PLACES)}")
        if name not in self.sets:
            raise UserError(f"{self.folder}: this mirror has no {name}; bring it: {self._command(name)}")
        return self.sets[name]

    def _command(self, name: str) -> str:
        return f"megatron-longpo evaluate prepare --mirror {self.folder} --sets {name}"


def open_mirror(folder: Path) -> Mirror:
    """Read a mirror's manifest.

    Raises:
        UserError: there is no such folder or no manifest in it, or the manifest is none.
    """
    path = folder / MANIFEST
    if not path.is_file():
        found = "holds no manifest.json, so it is no mirror" if folder.is_dir() else "there is no such folder"
        raise UserError(f"{folder}: {found}; make one: megatron-longpo evaluate prepare --mirror {folder}")
    return Mirror(folder, _read_manifest(path))


def recorded_mirror(folder: Path) -> Mirror:
    """A mirror that may not have been begun: then it has no sets.

    Raises:
        UserError: it has a manifest that is broken.
    """
    return open_mirror(folder) if (folder / MANIFEST).exists() else Mirror(folder, {})


@contextmanager
def new_set(folder: Path, name: str, source: str, note: str = "") -> Generator[Path]:
    """Yield an empty folder to put a set into; on success it replaces what the mirror has of that set.

    On any error the folder is removed, and the mirror is as it was but for a set that was to be replaced.

    Args:
        folder: the mirror; it is made if it is not there.
        name: one of `PLACES`.
        source: like ``cais/mmlu@<revision>``.
        note: what is not whole.

    Raises:
        UserError: another process is writing the set, or the manifest is broken.
        FileExistsError: there is something in the set's place that is in no manifest; it is never overwritten.
    """
    place = folder / PLACES[name]
    root = place.parent if place.suffix else place
    if name in recorded_mirror(folder).sets:
        shutil.rmtree(root, ignore_errors=True)
    with atomic_directory(root) as partial:
        yield partial
    record_set(folder, name, source, [path for path in root.rglob("*") if path.is_file()], note)


def record_set(folder: Path, name: str, source: str, files: Sequence[Path], note: str = "") -> None:
    """Take a set whose files are all there into the manifest, in place of what it said of that set.

    Args:
        folder: the mirror.
        name: one of `PLACES`.
        source: like ``cais/mmlu@<revision>``.
        files: all files of the set, in ``folder``; they are read whole.
        note: what is not whole.

    Raises:
        UserError: the manifest is broken, or another process is writing it.
        OSError: a file cannot be read, or the manifest not written.
    """
    facts = {path.relative_to(folder).as_posix(): _facts_of(path) for path in sorted(files)}
    path = folder / MANIFEST
    with atomic_file(path) as partial:  # which is also a lock: no other process changes the manifest meanwhile
        sets = _read_manifest(path) if path.exists() else {}
        sets[name] = SetFacts(source, note, facts)
        fields = {"format_version": FORMAT_VERSION, "sets": {name: asdict(sets[name]) for name in sorted(sets)}}
        partial.write_text(json.dumps(fields, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _facts_of(path: Path) -> FileFacts:
    with path.open("rb") as file:
        return FileFacts(hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size)


def _is_same(path: Path, file: FileFacts, by_digest: bool) -> bool:
    if not path.is_file() or path.stat().st_size != file.bytes:
        return False
    return not by_digest or _facts_of(path) == file


def _read_manifest(path: Path) -> dict[str, SetFacts]:
    with reading(path, OSError, ValueError, RecursionError):
        fields = strict_json.loads(path.read_text(encoding="utf-8"))
    version = fields.get("format_version") if strict_json.is_object(fields) else None
    if version != FORMAT_VERSION:
        raise UserError(f"{path}: of format {version}, this program reads {FORMAT_VERSION}; make the mirror again")
    try:
        return {name: _parse_set(one) for name, one in fields["sets"].items()}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{path}: not a mirror's manifest ({error!r}); remove it and make the mirror again") from error


def _parse_set(fields: Any) -> SetFacts:
    files = {path: FileFacts(str(one["sha256"]), int(one["bytes"])) for path, one in fields["files"].items()}
    if outside := [path for path in files if path.startswith("/") or ".." in PurePosixPath(path).parts]:
        raise ValueError(f"{outside[0]} lies outside")
    return SetFacts(str(fields["source"]), str(fields["note"]), files)

"""Outputs that are either whole or absent: written under a temporary name, fsynced, then renamed."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megatron_longpo.errors import UserError, one_line


@contextmanager
def reading(path: Path, *faults: type[Exception]) -> Iterator[None]:
    """Say which file the ``faults`` of its content or of the disk lie in.

    Raises:
        UserError: in the place of one of ``faults``.
    """
    try:
        yield
    except UserError:
        raise  # it is a ValueError, and says what it has to say
    except faults as error:
        raise UserError(f"{path}: cannot be read ({one_line(error)}); copy or write it again") from error


def cache_folder() -> Path:
    """The folder that all checkouts share: ``MEGATRON_LONGPO_HOME``, by default ``~/.cache/megatron-longpo``."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("MEGATRON_LONGPO_HOME") or Path(cache) / "megatron-longpo")


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it replaces ``path``, on any error it is removed.

    The temporary name is fixed per target (``.NAME.partial``), so what a killed run left behind is overwritten
    by the next one rather than collected.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        _fsync(partial)
        partial.replace(path)
        _fsync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary directory beside ``path``; on success it becomes ``path``, on any error it is removed.

    Raises:
        FileExistsError: ``path`` exists and is not an empty directory; nothing is ever overwritten.
        NotADirectoryError: it would lie in a file.
    """
    path = Path(path).resolve()  # a link cannot be replaced by a directory, what it points to can
    if path.exists() and not path.is_dir():
        raise FileExistsError(f"{path} is a file; choose another output")
    if path.exists() and any(path.iterdir()):
        raise FileExistsError(f"{path} already exists and is not empty; remove it or choose another output")
    if path.parent.exists() and not path.parent.is_dir():
        raise NotADirectoryError(f"{path}: {path.parent} is a file; choose another output")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        for entry in sorted(partial.rglob("*")):
            _fsync(entry)
        _fsync(partial)
        partial.replace(path)
        _fsync(path.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def refuse_inside(output: Path, source: Path) -> None:
    """Refuse to write into the folder that is read.

    Raises:
        FileExistsError: ``output`` lies in ``source``. It may be ``source`` itself: `atomic_directory` refuses that.
    """
    if source.resolve() in output.resolve().parents:
        raise FileExistsError(f"{output} lies in {source}, which is only read; choose another output")


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

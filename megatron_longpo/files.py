"""Outputs that are either whole or absent: written under a temporary name, fsynced, then renamed."""

import os
import shutil
from collections.abc import Generator
from contextlib import closing, contextmanager
from pathlib import Path

from megatron_longpo.errors import UserError, one_line
from megatron_longpo.locks import Lock


@contextmanager
def reading(path: Path, *faults: type[Exception]) -> Generator[None]:
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


def shown(path: Path) -> str:
    """The path as text that can be printed and stored: bytes that are not UTF-8 as ``\\xNN``."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


@contextmanager
def atomic_file(path: Path) -> Generator[Path]:
    """Yield a temporary path beside ``path``; on success it replaces ``path``, on any error it is removed.

    The temporary name is fixed per target (``.NAME.partial``), so what a killed run left behind is overwritten
    by the next one rather than collected.

    Raises:
        UserError: another process is writing it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with closing(Lock(partial, guards=path)):
        try:
            yield partial
            _fsync(partial)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        partial.replace(path)
    _fsync(path.parent)


@contextmanager
def atomic_directory(path: Path) -> Generator[Path]:
    """Yield a temporary directory beside ``path``; on success it becomes ``path``, on any error it is removed.

    Raises:
        UserError: another process is writing it.
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
    with closing(Lock(partial, directory=True, guards=path)):
        try:
            for left in partial.iterdir():  # by a run that was killed
                shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
            yield partial
            for entry in sorted(partial.rglob("*")):
                _fsync(entry)
            _fsync(partial)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        partial.replace(path)
    _fsync(path.parent)


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

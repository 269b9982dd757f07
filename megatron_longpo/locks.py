"""One writer at a time: a lock on the file or folder that is written."""

import errno
import fcntl
import logging
import os
from contextlib import suppress
from pathlib import Path

from megatron_longpo.errors import UserError

_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)
"""What flock answers on a file system without locks: some NFS and FUSE mounts."""


class InUse(UserError):
    """Another process holds the lock."""


class Lock:
    """A file or folder that one process holds; the kernel lets go of it when the process ends, however it ends."""

    def __init__(self, path: Path, *, directory: bool = False, guards: Path | None = None) -> None:
        """Create ``path`` if it is missing, and lock it.

        A file system without locks is warned of: there, two runs that write the same are not noticed.

        Args:
            path: what is locked.
            directory: a folder, not a file.
            guards: the output that the user knows of, if ``path`` is only its temporary name.

        Raises:
            InUse: another process holds it.
        """
        self.path = path
        self._guards = guards or path
        while True:
            if directory:
                path.mkdir(exist_ok=True)
            self.descriptor = os.open(path, os.O_RDONLY if directory else os.O_RDWR | os.O_CREAT, 0o666)
            try:
                self._take()
                # Its holder may have removed or renamed it between the two calls: nobody else would meet this lock.
                with suppress(FileNotFoundError):
                    if os.path.samestat(path.stat(), os.fstat(self.descriptor)):
                        return
            except BaseException:
                self.close()
                raise
            self.close()

    def _take(self) -> None:
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InUse(
                f"{self._guards}: in use by {_holder(self.descriptor)}; another process is writing it: wait for that "
                "one, or stop it first, or choose another output"
            ) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            logging.getLogger(__name__).warning(
                "%s: this file system has no locks (%s); see that no second run writes the same output",
                self._guards,
                error.strerror,
            )

    def close(self) -> None:
        """Let go of it."""
        os.close(self.descriptor)


def _holder(descriptor: int) -> str:
    """The process that holds the lock of an open file, as far as Linux tells (it does not across machines)."""
    inode = os.fstat(descriptor).st_ino
    try:
        for line in Path("/proc/locks").read_text(encoding="ascii").splitlines():
            fields = line.split()
            if fields[1] == "FLOCK" and fields[5].rsplit(":", 1)[1] == str(inode) and int(fields[4]) > 0:
                return f"process {fields[4]}"
    except (OSError, IndexError, ValueError):
        pass
    return "another process"

"""The terminal of a training run: our lines, while what Megatron prints goes to a file beside the checkpoints.

Megatron prints some fifty lines before the first step and several around each checkpoint; they matter when something
goes wrong on the way. ``--longpo-verbose`` leaves them where they are.
"""

import logging
import re
import sys
from collections.abc import Generator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, TextIO

LOG_FILE = "megatron.log"

_SHOWN = re.compile(r"successfully saved checkpoint|exiting program|^ ?WARNING|Unexpected result|(First|Second) rerun")
_ABSENT_ON_PURPOSE = re.compile(r"one_logger package|size not found in checkpoint args")
"""What an imported checkpoint does not have, and a package of NVIDIA's own."""


class Console:
    """Stands in for stdout."""

    def __init__(self, terminal: TextIO) -> None:
        self.terminal = terminal
        self._log: TextIO | None = None
        self._early: list[str] | None = []
        """What came before it was known where to keep it."""
        self._unfinished = ""

    def __getattr__(self, name: str) -> Any:
        """Whatever else a stream can do, the terminal does."""
        return getattr(self.terminal, name)

    def write(self, text: str) -> int:
        """Take what Megatron prints, which may be part of a line."""
        *lines, self._unfinished = (self._unfinished + text).split("\n")
        for line in lines:
            if self._log is not None:
                self._log.write(line + "\n")
            elif self._early is not None:
                self._early.append(line + "\n")
            if _SHOWN.search(line) and not _ABSENT_ON_PURPOSE.search(line):
                print(line, file=self.terminal, flush=True)
        return len(text)

    def flush(self) -> None:
        """Let readers of the log see what was written."""
        for stream in (self.terminal, self._log):
            if stream is not None:
                stream.flush()

    def keep_in(self, path: Path | None) -> None:
        """Append what came and comes to ``path``; None: keep nothing."""
        early, self._early = self._early or [], None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._log = path.open("a", encoding="utf-8", errors="backslashreplace")
            self._log.writelines(early)

    def close(self) -> None:
        """Write the rest."""
        if self._unfinished:
            self.write("\n")
        if self._log is not None:
            self._log.close()


@contextmanager
def quiet(verbose: bool) -> Generator[Console | None]:
    """Keep Megatron's lines and Python's warnings off the terminal; with ``verbose`` nothing changes, None comes."""
    if verbose:
        yield None
        return
    console = Console(sys.stdout)
    logging.captureWarnings(True)
    try:
        with (
            redirect_stdout(console),  # type: ignore[type-var]  # it writes and flushes, and hands on the rest
            _led_to(console, "py.warnings"),
            _led_to(console, "megatron"),
        ):
            yield console
    finally:
        logging.captureWarnings(False)
        console.close()


@contextmanager
def _led_to(console: Console, name: str) -> Generator[None]:
    """Let a logger write there and nowhere else."""
    logger, handler = logging.getLogger(name), logging.StreamHandler(console)
    logger.addHandler(handler)
    propagated, logger.propagate = logger.propagate, False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagated


def say(text: str) -> None:
    """Print a line of ours."""
    print(text, file=getattr(sys.stdout, "terminal", sys.stdout), flush=True)

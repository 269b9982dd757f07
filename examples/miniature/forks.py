"""Runs functions and verbs in processes of their own that have imported torch and Megatron already.

The processes are forked from a server that imports once, so that a job of seconds does not wait seconds to begin.
"""

import multiprocessing
import os
import pickle
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(["examples.miniature.preload"])


class JobError(RuntimeError):
    """A job failed; the message holds the end of its log."""


def call(function: Callable[..., Any], *args: Any, log: Path) -> Any:
    """What ``function(*args)`` returns; its output is appended to ``log``.

    Raises:
        JobError: it raised or its process died.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result"
        process = _server.Process(target=_main, args=(function, args, log, result))
        process.start()
        process.join()
        if process.exitcode != 0:
            raise JobError(
                f"{function.__name__}{args}: status {process.exitcode}; the end of {log}:\n{log.read_text()[-2000:]}"
            )
        return pickle.loads(result.read_bytes())


def program(main: Callable[[], Any], words: list[str], log: Path) -> None:
    """Run a program's ``main`` with those words on its command line."""
    call(_program, main, words, log=log)


def verb(*words: Any, log: Path) -> None:
    """Run ``megatron-longpo WORDS``; raises JobError where that fails."""
    call(_verb, [str(word) for word in words], log=log)


def _program(main: Callable[[], Any], words: list[str]) -> None:
    sys.argv[1:] = words
    main()


def _verb(words: list[str]) -> None:
    from megatron_longpo.commands.main import main

    if status := main(words):
        raise RuntimeError(f"megatron-longpo {' '.join(words)} ended with status {status}")


def _main(function: Callable[..., Any], args: tuple[Any, ...], log: Path, result: Path) -> None:
    import torch

    from megatron_longpo import platform

    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    platform.activate(announce=False)
    torch.set_num_threads(1)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    status = 1
    try:
        result.write_bytes(pickle.dumps(function(*args)))
        status = 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # shutting an interpreter down that was forked with threads is not worth its risks

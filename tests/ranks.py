"""Run a function on several gloo ranks, each a process of its own, and bring back what every rank returned.

The processes are forked from a server that has imported torch and Megatron once, so a call costs milliseconds.
"""

import multiprocessing
import os
import pickle
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(["tests.preload"])


def run_ranks(fn: Callable[..., Any], num_ranks: int, *args: Any, timeout: float = 300.0) -> list[Any]:
    """Call ``fn(*args)`` on ``num_ranks`` gloo ranks; returns the list of results by rank.

    ``fn`` and ``args`` must pickle. Ranks meet in a file, so no port is taken. Every rank has one thread.

    Raises:
        RuntimeError: a rank failed (its traceback is the message) or the time ran out; the other ranks are killed.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ranks = [
            _server.Process(target=_rank_main, args=(fn, args, rank, num_ranks, folder)) for rank in range(num_ranks)
        ]
        try:
            for process in ranks:
                process.start()
            _wait(ranks, folder, timeout)
        finally:
            kill(ranks)
        return [pickle.loads((folder / f"result{rank}").read_bytes()) for rank in range(num_ranks)]


@dataclass(frozen=True)
class Finished:
    """A program that ran to its end on all ranks."""

    status: int
    """The highest exit status of a rank."""
    output: str
    """What rank 0 printed on stdout and stderr."""


def launch(
    main: Callable[[], int],
    argv: list[str],
    num_ranks: int = 1,
    timeout: float = 300.0,
    kill_when: Callable[[], bool] = lambda: False,
) -> Finished:
    """Run a program's ``main`` with ``sys.argv[1:] = argv`` as torchrun would, one process a rank, on this machine.

    Args:
        kill_when: as soon as this is true, all ranks and what they started get SIGKILL.

    Raises:
        RuntimeError: the time ran out; all ranks are killed.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ranks = program(main, argv, num_ranks, folder)
        deadline = time.monotonic() + timeout
        try:
            for process in ranks:
                process.start()
            while any(p.exitcode is None for p in ranks) and not any(p.exitcode for p in ranks):
                if kill_when():
                    kill(ranks)
                    break
                if time.monotonic() > deadline:
                    raise RuntimeError(f"{argv} hangs after {timeout} s:\n{_log(folder, 0)[-3000:]}")
                time.sleep(0.01)
            grace = time.monotonic() + 15.0  # ranks that refuse the same thing say so themselves, one after the other
            while any(p.exitcode is None for p in ranks) and time.monotonic() < grace:
                time.sleep(0.01)
        finally:
            kill(ranks)
        return Finished(_status(ranks), _log(folder, 0))


def program(main: Callable[[], int], argv: list[str], num_ranks: int, folder: Path) -> list[BaseProcess]:
    """The ranks of a program, not yet started; rank 0 writes ``log0`` in ``folder``, and so on."""
    port = free_port()
    return [
        _server.Process(target=_program_main, args=(main, argv, rank, num_ranks, port, folder))
        for rank in range(num_ranks)
    ]


def kill(ranks: Sequence[BaseProcess]) -> None:
    """Kill the ranks and what they started: each leads a process group of its own."""
    for process in ranks:
        if process.pid is not None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()
            process.join()


def _status(ranks: Sequence[BaseProcess]) -> int:
    """The highest status that a rank exited with by itself; else the number of the signal that ended one, or 0."""
    codes = [process.exitcode or 0 for process in ranks]
    return max(codes) if max(codes) > 0 else -min(codes)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _program_main(main: Callable[[], int], argv: list[str], rank: int, num_ranks: int, port: int, folder: Path) -> None:
    _redirect(folder / f"log{rank}")
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(num_ranks))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    sys.argv[1:] = argv
    _exit_with(main)


def _redirect(path: Path) -> None:
    """Lead a new process group, so that kill reaches every descendant, and write to ``path``."""
    os.setsid()
    log = os.open(path, os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)


def _exit_with(main: Callable[[], int]) -> None:
    """Run and leave at once: interpreter shutdown after a fork with threads is not worth its risks."""
    import torch

    from megatron_longpo import platform

    platform.activate(announce=False)  # the server ignores it if its preload fails
    torch.set_num_threads(1)
    try:
        status = main()
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _wait(ranks: Sequence[BaseProcess], folder: Path, timeout: float) -> None:
    """Wait for all ranks; the first to fail ends the wait, because the others then hang in a collective."""
    deadline = time.monotonic() + timeout
    while any(process.exitcode is None for process in ranks) and time.monotonic() < deadline:
        if any(process.exitcode for process in ranks):
            break
        time.sleep(0.01)
    for rank, process in enumerate(ranks):
        if process.exitcode:
            raise RuntimeError(f"rank {rank} of {len(ranks)} failed:\n{_log(folder, rank)[-6000:]}")
    hanging = [rank for rank, process in enumerate(ranks) if process.exitcode is None]
    if hanging:
        raise RuntimeError(f"ranks {hanging} hang after {timeout} s:\n{_log(folder, hanging[0])[-3000:]}")


def _log(folder: Path, rank: int) -> str:
    path = folder / f"log{rank}"
    return path.read_text(errors="replace") if path.exists() else "(the rank died before it could write)"


def _rank_main(fn: Callable[..., Any], args: Any, rank: int, num_ranks: int, folder: Path) -> None:
    _redirect(folder / f"log{rank}")
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(num_ranks))

    def main() -> int:
        import torch.distributed as dist

        dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=num_ranks)
        result = fn(*args)
        (folder / f"result{rank}").write_bytes(pickle.dumps(result))
        dist.barrier()
        dist.destroy_process_group()
        return 0

    _exit_with(main)

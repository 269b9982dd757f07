"""A pipeline's stages as child processes: each one logged, timed, skipped when nothing it depends on has changed.

A stage's *digest* covers its command, the contents of its input files, the package's source and the digests of the
stages it needs. It is stamped when the stage has succeeded; a stage whose stamp and outputs are there is not run
again, so a change redoes exactly what follows from it.
"""

import contextlib
import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
LOG_LINES_SHOWN = 25
SECONDS_TO_STOP = 40
"""torchrun gives its workers 30 seconds to end before it kills them; it is killed itself only after that."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One command of the pipeline."""

    name: str
    title: str
    command: tuple[str, ...]
    outputs: tuple[Path, ...]
    """Files or folders that a complete stage has made; what a changed or failed one left is removed first."""
    inputs: tuple[Path, ...] = ()
    """Files from outside the pipeline."""
    needs: tuple[str, ...] = ()
    """Names of the stages whose outputs it reads."""
    num_processes: int = 1
    """Ranks that share the cores."""
    is_shared: bool = False
    """The outputs lie outside the work folder and the command itself knows whether they are whole: never removed."""


@dataclass(frozen=True)
class Record:
    """What a finished stage's stamp holds."""

    digest: str
    seconds: float
    peak_memory_bytes: int
    """Largest resident set of any of the stage's processes."""


class StageError(RuntimeError):
    """A stage's command failed; the message holds the end of its log."""


Finished = tuple[str, Record, bool]
"""A stage's title, its record, and whether it was done before."""


def run_example(stages: Sequence[Stage], work: Path, show: Callable[[Path, list[Finished], Console], None]) -> int:
    """Run what is not done yet, then ``show(work, finished, console)``; returns the exit status."""
    signal.signal(signal.SIGTERM, _interrupt)
    console = Console()
    try:
        finished = run_all(stages, work, console)
    except StageError as error:
        console.print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        console.print("interrupted; the next run goes on with the stage it was in")
        return 130
    show(work, finished, console)
    return 0


def run_all(stages: Sequence[Stage], work: Path, console: Console) -> list[Finished]:
    """Run the stages in order; returns (title, record, done before) of each."""
    records: dict[str, Record] = {}
    finished: list[Finished] = []
    for number, stage in enumerate(stages, start=1):
        console.rule(f"[bold]{number}/{len(stages)}  {stage.title}", align="left")
        console.print(shlex.join(stage.command), style="dim", markup=False, highlight=False, soft_wrap=True)
        records[stage.name], is_old = run_stage(stage, work, records)
        console.print("done before" if is_old else f"{records[stage.name].seconds:.1f} s", style="green")
        finished.append((stage.title, records[stage.name], is_old))
    return finished


def print_costs(console: Console, stages: Sequence[Finished]) -> None:
    """Table of (title, record, done before) of every stage, and the seconds spent in this run."""
    table = Table("stage", title="Seconds and memory", title_justify="left")
    for column in ("seconds", "peak memory of its largest process", ""):
        table.add_column(column, justify="right")
    for title, record, is_old in stages:
        memory = f"{record.peak_memory_bytes / 2**30:.2f} GiB"
        table.add_row(title, f"{record.seconds:.1f}", memory, "done before" if is_old else "")
    spent = sum(record.seconds for _, record, is_old in stages if not is_old)
    table.add_section()
    table.add_row("this run", f"{spent:.1f}", "", "")
    console.print(table)


def costs(stages: Sequence[Finished]) -> dict[str, dict[str, float]]:
    """Seconds and peak bytes of every stage, by title."""
    return {
        title: {"seconds": record.seconds, "peak_memory_bytes": record.peak_memory_bytes} for title, record, _ in stages
    }


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    """A polite kill stops the children as Ctrl-C does."""
    raise KeyboardInterrupt


def run_stage(stage: Stage, work: Path, records: Mapping[str, Record]) -> tuple[Record, bool]:
    """Run ``stage`` unless it is done.

    Args:
        stage: what to run.
        work: folder that gets ``stamps/`` and ``logs/``.
        records: of the stages it needs.

    Returns:
        (its record, whether it was done before).

    Raises:
        StageError: the command failed, or did not make its outputs.
    """
    stamp, log = work / "stamps" / f"{stage.name}.json", work / "logs" / f"{stage.name}.log"
    digest = stage_digest(stage, records)
    if stamp.exists() and all(path.exists() for path in stage.outputs):
        record = Record(**json.loads(stamp.read_text(encoding="utf-8")))
        if record.digest == digest:
            return record, True
    stamp.unlink(missing_ok=True)
    if not stage.is_shared:
        _remove(stage.outputs)
    for folder in (stamp.parent, log.parent):
        folder.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    status, peak = _run(stage, log)
    missing = [str(path) for path in stage.outputs if not path.exists()]
    if status != 0 or missing:
        what = f"ended with status {status}" if status else f"did not make {', '.join(missing)}"
        raise StageError(f"{' '.join(stage.command)}\n{what}; the end of {log}:\n{_tail(log)}")
    record = Record(digest, time.monotonic() - start, peak)
    partial = stamp.with_suffix(".partial")
    partial.write_text(json.dumps(asdict(record)), encoding="utf-8")
    partial.replace(stamp)
    return record, False


def stage_digest(stage: Stage, records: Mapping[str, Record]) -> str:
    """Of everything that decides what the stage makes."""
    files = [*sorted((ROOT / "megatron_longpo").rglob("*.py")), *stage.inputs]
    parts = [
        *stage.command,
        *(hashlib.sha256(path.read_bytes()).hexdigest() for path in files),
        *(records[name].digest for name in stage.needs),
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _run(stage: Stage, log: Path) -> tuple[int, int]:
    """Exit status and peak resident bytes; output goes to ``log`` and to the terminal."""
    process = subprocess.Popen(
        stage.command,
        cwd=ROOT,
        env=_environment(stage.num_processes),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C reaches this program alone, which then stops the stage in order
    )
    assert process.stdout is not None
    try:
        with log.open("wb") as copy:
            while chunk := os.read(process.stdout.fileno(), 1 << 16):
                copy.write(chunk)
                copy.flush()
                # As bytes and at once: a progress bar's carriage returns redraw it here as they do in the child.
                sys.stdout.buffer.write(chunk)
                sys.stdout.buffer.flush()
        _, wait_status, usage = os.wait4(process.pid, 0)
    except BaseException:
        _stop(process)
        raise
    # Linux counts kilobytes, macOS bytes; wait4 includes the child's own children, of which it takes the largest. The
    # count starts at this process's own size, which the child has until it execs: nothing large is imported here.
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    process.returncode = os.waitstatus_to_exitcode(wait_status)
    return process.returncode, peak


def _environment(num_processes: int) -> dict[str, str]:
    """The child's: no network for models, the cores shared between the ranks."""
    num_threads = max(1, (os.cpu_count() or 1) // num_processes)
    return {
        **os.environ,
        "PYTHONUNBUFFERED": "1",
        # Megatron and torch warn at every import that Apex and Transformer Engine, which need a GPU, are missing.
        "PYTHONWARNINGS": "ignore::UserWarning,ignore::FutureWarning,ignore::DeprecationWarning",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": str(num_threads),
    }


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the stage: politely, so that torchrun ends its workers, which run in sessions of their own; then surely."""
    for action, seconds in ((signal.SIGTERM, SECONDS_TO_STOP), (signal.SIGKILL, None)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, action)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=seconds)
            return


def _remove(paths: tuple[Path, ...]) -> None:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _tail(log: Path) -> str:
    """The log's last lines; under torchrun those before it tells at length that a worker failed."""
    text = log.read_text(encoding="utf-8", errors="replace").strip()
    lines = re.split(r"[\r\n]+", re.split(r"\n.* failed \(exitcode: ", text)[0])
    return "\n".join(f"    {line}" for line in lines[-LOG_LINES_SHOWN:])

"""Where a training run ends that its user can mend: one line ``megatron_longpo.train: error: ...``, exit status 2.

The user's are each UserError and OSError, a full GPU, and whatever Megatron or torch raises outside of a step: while it
reads options, sets up, loads or saves, it answers to what it was given. What fails within a step, or in a line of this
package, is our defect and keeps its traceback.
"""

import multiprocessing
import os
import shutil
import sys
import time
import traceback
from pathlib import Path

import torch
from torch.distributed import DistNetworkError, DistStoreError
from torch.distributed.checkpoint.api import CheckpointException

from megatron_longpo.errors import UserError, one_line
from megatron_longpo.hf.folder import newest_whole

STEP_FUNCTIONS = {"train_step", "evaluate"}
"""Functions of megatron/training/training.py in whose frames a step runs."""

SAVE_FUNCTIONS = {"save_checkpoint", "maybe_finalize_async_save"}
"""In whose frames a checkpoint is written, or is found not to have been written in the background."""

LOST = {
    "Timed out": "other ranks did not answer within --distributed-timeout-minutes: one hangs, or is busy alone",
    "closed by peer": "another rank has ended; its own message says why",
    "Connection reset": "another rank has ended; its own message says why",
}
"""What gloo says of a rank that it waited for, and what that means. NCCL's watchdog ends the process itself."""

DEFECTS = (TypeError, AttributeError, NameError)


def explanation(error: BaseException, save: Path | None = None) -> str | None:
    """What the user is told, in one line, or None for a defect of ours.

    Args:
        save: where checkpoints are written.
    """
    frames = traceback.extract_tb(error.__traceback__)
    functions = {frame.name for frame in frames}
    if isinstance(error, UserError):
        # Of one in a loader's process torch makes its traceback the text (torch/_utils.py, ExceptionWrapper).
        return " ".join(str(error).rpartition(f"{UserError.__module__}.UserError: ")[2].split())
    if isinstance(error, RuntimeError) and (lost := [why for sign, why in LOST.items() if sign in str(error)]):
        return f"{lost[0]} ({_said(error, frames)})"
    if isinstance(error, (DistNetworkError, DistStoreError)):
        return (
            f"the ranks cannot meet at MASTER_ADDR {os.environ.get('MASTER_ADDR')}, MASTER_PORT "
            f"{os.environ.get('MASTER_PORT')}: {_said(error, frames)}"
        )
    if isinstance(error, torch.OutOfMemoryError):
        return f"{one_line(error)}; raise --context-parallel-size, or add --longpo-recompute keep-attention"
    if "load_checkpoint" in functions:
        return f"the checkpoint cannot be resumed: {_said(error, frames)}; {_advice(str(error))}"
    if isinstance(error, SystemExit):
        return None
    if SAVE_FUNCTIONS & functions:
        return f"no checkpoint can be written: {_said(error, frames)}" + (f"; {_kept(save)}" if save else "")
    if isinstance(error, OSError):
        return one_line(error)
    if STEP_FUNCTIONS & functions or isinstance(error, DEFECTS) or _is_ours(frames):
        return None
    return f"Megatron refuses the options: {_said(error, frames)}"


def _said(error: BaseException, frames: traceback.StackSummary) -> str:
    """The error's type and text; of an assertion the text, or the line if it has none."""
    if isinstance(error, CheckpointException):  # its text is a traceback of each rank
        error = next(iter(error.failures.values()))[0]
    text = " ".join(str(error).split())[:200]
    if isinstance(error, AssertionError):
        return text or str(frames[-1].line)
    return f"{type(error).__name__}: {text}".removesuffix(": ")


def _advice(text: str) -> str:
    if "OptimizerParamScheduler" in text:
        return (
            "--override-opt_param-scheduler takes these, --use-checkpoint-opt_param-scheduler those of the checkpoint"
        )
    return (
        "give the options it was saved with, --ckpt-step STEP, or --no-load-optim --no-load-rng for its weights alone"
    )


def _kept(save: Path) -> str:
    """What there is to go on from, and the room for more."""
    step, _ = newest_whole(save)
    kept = f"; step {step} is kept" if step else ""
    return f"{shutil.disk_usage(save).free:,} bytes are free in {save}: free some, or choose another --save{kept}"


def _is_ours(frames: traceback.StackSummary) -> bool:
    return Path(frames[-1].filename).resolve().is_relative_to(Path(__file__).resolve().parent)


def report(message: str) -> None:
    """Say it once: other ranks wait to be ended by their launcher, and speak only if rank 0 did not fail."""
    rank = os.environ.get("RANK", "0")  # which need not be a number
    if message.startswith(tuple(LOST.values())):
        time.sleep(8.0)  # the cause speaks first, whatever its rank
    elif rank != "0":
        time.sleep(3.0)
    if rank != "0":
        message += f" (rank {rank})"
    print(f"megatron_longpo.train: error: {message}", file=sys.stderr, flush=True)


def leave(status: int) -> None:
    """End the process; after an error at once, for other ranks may stand in a collective that never ends."""
    if status == 0:
        sys.exit(0)
    for child in multiprocessing.active_children():
        child.terminate()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)

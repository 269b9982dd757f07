"""Where a training run ends that its user can mend: one line ``megatron_longpo.train: error: ...``, exit status 2.

The user's are each UserError and OSError, a full GPU, and whatever Megatron or torch raises outside of a step: while it
reads options, sets up, loads or saves, it answers to what it was given. What fails within a step, or in a line of this
package, is our defect and keeps its traceback.
"""

import multiprocessing
import os
import sys
import time
import traceback
from pathlib import Path

import torch
from torch.distributed.checkpoint.api import CheckpointException

from megatron_longpo.errors import UserError, one_line

STEP_FUNCTIONS = {"train_step", "evaluate"}
"""Functions of megatron/training/training.py in whose frames a step runs."""

DEFECTS = (TypeError, AttributeError, NameError)


def explanation(error: BaseException) -> str | None:
    """What the user is told, in one line, or None for a defect of ours."""
    frames = traceback.extract_tb(error.__traceback__)
    functions = {frame.name for frame in frames}
    if isinstance(error, UserError):
        return " ".join(str(error).split())
    if isinstance(error, torch.OutOfMemoryError):
        return f"{one_line(error)}; raise --context-parallel-size, or add --longpo-recompute keep-attention"
    if "load_checkpoint" in functions:
        return f"the checkpoint cannot be resumed: {_said(error, frames)}; {_advice(str(error))}"
    if isinstance(error, SystemExit):
        return None
    if isinstance(error, OSError):
        return one_line(error)
    if "save_checkpoint" in functions:
        return f"no checkpoint can be written: {_said(error, frames)}; is there room in --save?"
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


def _is_ours(frames: traceback.StackSummary) -> bool:
    return Path(frames[-1].filename).resolve().is_relative_to(Path(__file__).resolve().parent)


def report(message: str) -> None:
    """Say it once: other ranks wait to be ended by their launcher, and speak only if rank 0 did not fail."""
    rank = int(os.environ.get("RANK", "0"))
    if rank:
        time.sleep(3.0)
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

"""Which of its checkpoints a folder offers: Megatron's tracker file, ``release`` and ``iter_*``."""

import re
from pathlib import Path

from megatron_longpo.errors import UserError
from megatron_longpo.hf.config import architecture
from megatron_longpo.hf.names import name_table
from megatron_longpo.hf.sidecar import read_hf_config
from megatron_longpo.hf.torch_dist import CheckpointReader, fault_of
from megatron_longpo.hf.weights import CheckpointWeights

RELEASE = "release"
TRACKER_FILE = "latest_checkpointed_iteration.txt"


def checkpoint_folder(checkpoint: Path, iteration: int | None = None) -> Path:
    """The folder of one checkpoint, ``CHECKPOINT/release`` or ``CHECKPOINT/iter_0000012``.

    Args:
        checkpoint: the folder that holds the tracker file.
        iteration: None for the one that the tracker names, which is the last complete one.

    Raises:
        UserError: there is none.
    """
    if iteration is not None:
        name = f"iter_{iteration:07d}"
    else:
        tracker = checkpoint / TRACKER_FILE
        if not tracker.is_file():
            raise UserError(f"{tracker} does not exist; give the folder that import-hf or --save wrote")
        latest = tracker.read_text(encoding="utf-8", errors="replace").strip()
        if latest != RELEASE and not latest.isdecimal():
            raise UserError(f"{tracker}: holds {latest[:40]!r}, needs a number or 'release'; give an --iteration")
        name = RELEASE if latest == RELEASE else f"iter_{int(latest):07d}"
    if not (checkpoint / name).is_dir():
        raise UserError(f"{checkpoint / name} does not exist; there {_offer(checkpoint)}")
    return checkpoint / name


def step_of(checkpoint: Path, iteration: int | None = None) -> int:
    """How many training steps one checkpoint of a folder has behind it; 0 for an imported one.

    Raises:
        UserError: as `checkpoint_folder`.
    """
    name = checkpoint_folder(checkpoint, iteration).name
    return 0 if name == RELEASE else int(name.removeprefix("iter_"))


def newest_whole(checkpoint: Path) -> tuple[int | None, list[str]]:
    """The step of the newest whole checkpoint of a run, and what is wrong with what would have come before it.

    That is the tracker's, or else the newest one before it. Later ones than the tracker's are of a course that the run
    has left by --ckpt-step. Where there is no tracker that can be read, it is the newest of all.

    Returns:
        (the step, 0 for an imported checkpoint, None if there is none; a phrase for each that is passed over).
    """
    steps, tracker = _steps(checkpoint), checkpoint / TRACKER_FILE
    latest = tracker.read_text(encoding="utf-8", errors="replace").strip() if tracker.is_file() else None
    if latest == RELEASE:
        return 0, []
    faults: list[str] = []
    if latest is None or not latest.isdecimal():
        faults.append(f"{TRACKER_FILE} {'is not there' if latest is None else f'holds {latest[:40]!r}'}")
    elif int(latest) in steps:
        steps = steps[: steps.index(int(latest)) + 1]
    else:
        faults.append(f"iter_{int(latest):07d} is not there")
        steps = [step for step in steps if step < int(latest)]
    for step in reversed(steps):
        fault = fault_of(checkpoint / f"iter_{step:07d}")
        if fault is None:
            return step, faults
        faults.append(f"iter_{step:07d} {fault}")
    return None, faults


def has_steps(checkpoint: Path) -> bool:
    """Whether a run has begun to save there."""
    return (checkpoint / TRACKER_FILE).is_file() or bool(_steps(checkpoint))


def open_checkpoint(checkpoint: Path, iteration: int | None = None) -> CheckpointWeights:
    """The weights of one checkpoint of a folder, by their Hugging Face names; tensors are read when asked for.

    Raises:
        UserError: there is no such checkpoint, it is damaged, or not of the model in ``hf/config.json``.
    """
    shape = architecture(read_hf_config(checkpoint))
    reader = CheckpointReader(checkpoint_folder(checkpoint, iteration))
    return CheckpointWeights(reader, name_table(shape), shape.num_layers)


def _offer(checkpoint: Path) -> str:
    steps = _steps(checkpoint)
    return f"are iterations {', '.join(map(str, steps))}" if steps else "is no iteration yet"


def _steps(checkpoint: Path) -> list[int]:
    """Steps that a folder is there for, the oldest first."""
    names = (path.name for path in checkpoint.glob("iter_*"))
    return sorted(int(name.removeprefix("iter_")) for name in names if re.fullmatch(r"iter_\d{7,}", name))

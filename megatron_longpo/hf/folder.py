"""Which of its checkpoints a folder offers: Megatron's tracker file, ``release`` and ``iter_*``."""

import re
from pathlib import Path

from megatron_longpo.errors import UserError
from megatron_longpo.hf.config import architecture
from megatron_longpo.hf.names import name_table
from megatron_longpo.hf.sidecar import read_hf_config
from megatron_longpo.hf.torch_dist import CheckpointReader
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


def open_checkpoint(checkpoint: Path, iteration: int | None = None) -> CheckpointWeights:
    """The weights of one checkpoint of a folder, by their Hugging Face names; tensors are read when asked for.

    Raises:
        UserError: there is no such checkpoint, it is damaged, or not of the model in ``hf/config.json``.
    """
    shape = architecture(read_hf_config(checkpoint))
    reader = CheckpointReader(checkpoint_folder(checkpoint, iteration))
    return CheckpointWeights(reader, name_table(shape), shape.num_layers)


def _offer(checkpoint: Path) -> str:
    iterations = sorted(
        int(path.name.removeprefix("iter_"))
        for path in checkpoint.glob("iter_*")
        if re.fullmatch(r"iter_\d{7,}", path.name)
    )
    if not iterations:
        return "is no iteration yet"
    return f"are iterations {', '.join(map(str, iterations))}"

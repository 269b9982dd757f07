"""The ranks of a program as torchrun says them, in the environment; a program that was started without it is alone."""

import os

import torch

from megatron_longpo import platform
from megatron_longpo.errors import UserError

ALONE = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
"""What torchrun would set for one rank; at port 0 the system chooses one."""


def check_ranks() -> int:
    """Hold torchrun's variables to be whole, and set them where neither RANK nor WORLD_SIZE is there.

    Returns:
        The number of ranks.

    Raises:
        UserError: a variable is missing or no number, or a rank is beyond the ranks or GPUs that there are.
    """
    if "RANK" not in os.environ and "WORLD_SIZE" not in os.environ:
        os.environ.update(ALONE)
    rank, num_ranks, local_rank, port = (_number(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT"))
    _said("MASTER_ADDR")
    if rank >= num_ranks:
        raise UserError(f"RANK is {rank}, and WORLD_SIZE {num_ranks}: ranks are 0 to {num_ranks - 1}; {_ADVICE}")
    if port > 65535 or (port == 0 and num_ranks > 1):
        raise UserError(f"MASTER_PORT is {port}; ports are 1 to 65535")
    if not platform.is_cpu() and local_rank >= (found := torch.cuda.device_count()):
        raise UserError(
            f"LOCAL_RANK is {local_rank}, and {found} GPUs are visible: each rank needs its own; give torchrun "
            f"--nproc-per-node {found} at most, or see CUDA_VISIBLE_DEVICES"
        )
    return num_ranks


_ADVICE = "start with torchrun, which sets it, or unset RANK and WORLD_SIZE to run alone"


def _said(name: str) -> str:
    if name not in os.environ:
        raise UserError(f"{name} is not set, though RANK or WORLD_SIZE is; {_ADVICE}")
    return os.environ[name]


def _number(name: str) -> int:
    said = _said(name)
    if not (said.isascii() and said.isdigit()):
        raise UserError(f"{name} is {said!r}, no number; {_ADVICE}")
    return int(said)

"""One safetensors file, written tensor by tensor.

The library's own ``save_file`` wants all tensors of a file in memory at once, and a shard is gigabytes. The format
(safetensors, "Format"): 8 bytes of header length, the header as JSON, then the tensors' bytes without gaps.
"""

import json
import os
from collections.abc import Callable, Mapping
from contextlib import closing
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_longpo.hf.ahead import made_ahead

SAFETENSORS_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""Those that weights may have."""
_NAMES = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}
_ALIGNMENT = 8
_SYNC_BYTES = 2**28
"""Written between two waits for the disk."""


def write_safetensors(
    path: Path, outline: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], make: Callable[[str], Tensor]
) -> None:
    """Write the tensors that ``outline`` names; ``make`` is called for one after the other and must fit the outline.

    It is called in a thread, for the next one while one is written.

    Raises:
        OSError: the disk is full or not writable. Whatever ``make`` raises comes through.
    """
    # Wider numbers first, as the library writes them: every tensor then starts at a multiple of its item size.
    ordered = sorted(outline, key=lambda name: -outline[name][0].itemsize)
    try:
        with path.open("wb") as file, closing(made_ahead(partial(make, name) for name in ordered)) as tensors:
            unsynced = file.write(_header({name: outline[name] for name in ordered}))
            for name, tensor in zip(ordered, tensors, strict=True):
                assert (tensor.dtype, tuple(tensor.shape)) == outline[name], name
                file.write(raw_bytes(tensor))
                unsynced += tensor.nbytes
                if unsynced >= _SYNC_BYTES:  # or all of it is waited for at the end, when nothing is left to be made
                    file.flush()
                    os.fdatasync(file.fileno())
                    unsynced = 0
    except OSError as error:  # of a full disk, write() does not say which file
        raise OSError(error.errno, error.strerror, str(path)) from error


def raw_bytes(tensor: Tensor) -> memoryview:
    """The values in row-major order, as they lie in memory."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


def _header(outline: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> bytes:
    # transformers refuses a file that does not say which framework wrote it.
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in outline.items():
        start, end = end, end + prod(shape) * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": (start, end)}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % _ALIGNMENT)
    return len(encoded).to_bytes(8, "little") + encoded

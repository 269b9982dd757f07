"""What tells one set of weights from another."""

import hashlib
import json
from pathlib import Path

from torch import Tensor

from megatron_longpo.hf.folder import open_checkpoint
from megatron_longpo.hf.safetensors_file import raw_bytes


class Fingerprint:
    """SHA-256 over names, dtypes, shapes and bytes; neither the order of the tensors nor their files matter."""

    def __init__(self) -> None:
        self._digests: dict[str, bytes] = {}

    def add(self, name: str, tensor: Tensor) -> None:
        """Take in one tensor; each name once."""
        assert name not in self._digests, name
        dtype = str(tensor.dtype).removeprefix("torch.")
        digest = hashlib.sha256(json.dumps([name, dtype, list(tensor.shape)]).encode())
        digest.update(raw_bytes(tensor))
        self._digests[name] = digest.digest()

    def hexdigest(self) -> str:
        return hashlib.sha256(b"".join(self._digests[name] for name in sorted(self._digests))).hexdigest()


def weights_sha256(checkpoint: Path, iteration: int | None = None) -> str:
    """The fingerprint of the weights that ``checkpoint`` holds now, read from the tensors themselves.

    ``longpo.json`` tells the weights a folder was imported with; what training saved since differs.

    Args:
        checkpoint: the folder above ``release`` and ``iter_*``.
        iteration: None for the latest.

    Raises:
        UserError: there is no such checkpoint, or it is damaged.
    """
    weights = open_checkpoint(checkpoint, iteration)
    fingerprint = Fingerprint()
    for name in weights.names():
        fingerprint.add(name, weights.read(name))
    return fingerprint.hexdigest()

"""A quick name for the weights in a Hugging Face folder."""

import hashlib
from pathlib import Path

from megatron_longpo.errors import UserError

NUM_PIECES = 64
PIECE_BYTES = 1 << 16


def weights_sample(folder: Path) -> str:
    """Sha256 (hex) of ``config.json`` and of every ``*.safetensors`` file's size, header and evenly spaced pieces.

    Reads 4 MB a file, so it takes no time for any model. Training changes nearly every byte of the weights, so another
    checkpoint of the same shape is told apart; an edit of a single tensor may not be.

    Raises:
        UserError: the folder has no ``config.json`` or no safetensors.
    """
    config = folder / "config.json"
    if not config.is_file():
        raise UserError(f"{folder}: no config.json; give the Hugging Face folder of a model")
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"{folder}: holds no *.safetensors; save the model with transformers' save_pretrained")
    digest = hashlib.sha256(config.read_bytes())
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}:".encode())
        with path.open("rb") as file:
            digest.update(file.read(int.from_bytes(file.read(8), "little")))
            for piece in range(NUM_PIECES):
                file.seek(max(0, size - PIECE_BYTES) * piece // (NUM_PIECES - 1))
                digest.update(file.read(PIECE_BYTES))
    return digest.hexdigest()

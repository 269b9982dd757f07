"""A folder's weights are named by what is in the files."""

from pathlib import Path

import pytest

from megatron_longpo.errors import UserError
from megatron_longpo.generate.engines.weights import PIECE_BYTES, weights_sample

HEADER = (2).to_bytes(8, "little") + b"{}"


def folder(root: Path, name: str, *files: bytes, config: bytes = b"{}") -> Path:
    (root / name).mkdir()
    (root / name / "config.json").write_bytes(config)
    for number, content in enumerate(files):
        (root / name / f"model-{number}.safetensors").write_bytes(HEADER + content)
    return root / name


def test_the_same_files_have_the_same_name_and_others_another(tmp_path: Path) -> None:
    large = bytes(100 * PIECE_BYTES)
    samples = {
        weights_sample(folder(tmp_path, "a", b"xy", b"z")),
        weights_sample(folder(tmp_path, "other bytes", b"xy", b"w")),
        weights_sample(folder(tmp_path, "other configuration", b"xy", b"z", config=b'{"rope": 1}')),
        weights_sample(folder(tmp_path, "one file", b"xyz")),
        weights_sample(folder(tmp_path, "large", large)),
        weights_sample(folder(tmp_path, "last byte", large[:-1] + b"\1")),
    }
    assert len(samples) == 6
    assert weights_sample(folder(tmp_path, "elsewhere", b"xy", b"z")) in samples


def test_folders_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.json"):
        weights_sample(tmp_path)
    with pytest.raises(UserError, match=r"holds no \*\.safetensors"):
        weights_sample(folder(tmp_path, "bare"))

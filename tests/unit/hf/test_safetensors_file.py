"""The library reads what is written here, and the same tensors."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from megatron_longpo.hf.safetensors_file import write_safetensors

TENSORS: dict[str, Tensor] = {
    "odd.bf16": torch.randn(3, 5).bfloat16(),
    "scalar": torch.tensor(2.5),
    "transposed": torch.randn(4, 6).T,
    "empty": torch.empty(0, 7, dtype=torch.float16),
    "naïve ☃": torch.randn(9).half(),
    "wide": torch.randn(2, 3, 4),
}


def outline(tensors: dict[str, Tensor]) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    return {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}


def test_the_library_reads_the_same(tmp_path: Path) -> None:
    asked: list[str] = []

    def make(name: str) -> Tensor:
        asked.append(name)
        return TENSORS[name]

    path = tmp_path / "model.safetensors"
    write_safetensors(path, outline(TENSORS), make)
    read = load_file(path)
    assert read.keys() == TENSORS.keys()
    assert all(read[name].dtype == TENSORS[name].dtype and torch.equal(read[name], TENSORS[name]) for name in TENSORS)
    assert sorted(asked) == sorted(TENSORS), "each tensor is made once"
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_every_tensor_is_aligned(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_safetensors(path, outline(TENSORS), TENSORS.__getitem__)
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    assert length % 8 == 0
    for name, tensor in TENSORS.items():
        assert header[name]["data_offsets"][0] % tensor.dtype.itemsize == 0, name


def test_a_full_disk_names_the_file() -> None:
    with pytest.raises(OSError, match=r"No space left on device: '/dev/full'"):
        write_safetensors(Path("/dev/full"), outline(TENSORS), TENSORS.__getitem__)

"""The checkpoint format: lazily written, read box by box, and damage is told."""

import json
import weakref
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from megatron_longpo.errors import UserError
from megatron_longpo.hf.torch_dist import CheckpointReader, Chunk, fault_of, write_checkpoint

KEY = "decoder.layers.x.weight"


def write(directory: Path, num_layers: int = 3, rows: int = 4) -> Tensor:
    """Write one tensor ``[num_layers, rows, 5]``, a chunk a layer; returns it."""
    whole = torch.arange(num_layers * rows * 5, dtype=torch.float32).reshape(num_layers, rows, 5)
    directory.mkdir()
    chunks = [
        Chunk(KEY, tuple(whole.shape), (layer, 0, 0), (1, rows, 5), whole.dtype, partial(whole[layer].clone))
        for layer in range(num_layers)
    ]
    write_checkpoint(directory, chunks, ["a._extra_state/shard_0_1"], {"iteration": 0})
    return whole


def test_any_box_can_be_read(tmp_path: Path) -> None:
    whole = write(tmp_path / "c")
    reader = CheckpointReader(tmp_path / "c")
    assert reader.keys() == [KEY]
    assert (reader.shape(KEY), reader.dtype(KEY)) == ((3, 4, 5), torch.float32)
    assert torch.equal(reader.read(KEY, (0, 0, 0), (3, 4, 5)), whole)
    assert torch.equal(reader.read(KEY, (1, 1, 2), (2, 3, 2)), whole[1:3, 1:4, 2:4])


def test_chunks_are_made_one_by_one(tmp_path: Path) -> None:
    """Of ten chunks never more than three are alive: the one being made, and what DCP keeps of the last."""
    alive: list[weakref.ref[Tensor]] = []
    most = 0

    def make() -> Tensor:
        nonlocal most
        tensor = torch.zeros(1, 2)
        alive.append(weakref.ref(tensor))
        most = max(most, sum(reference() is not None for reference in alive))
        return tensor

    chunks = [Chunk(KEY, (10, 2), (row, 0), (1, 2), torch.float32, make) for row in range(10)]
    write_checkpoint(tmp_path, chunks, [], {})
    assert len(alive) == 10
    assert most <= 3


def chunk_of_rows(first: int, num_rows: int) -> Chunk:
    """Some rows of a ``[3, 2]`` tensor."""
    return Chunk(KEY, (3, 2), (first, 0), (num_rows, 2), torch.float32, lambda: torch.zeros(num_rows, 2))


def test_overlapping_chunks_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="overlapping chunks"):
        write_checkpoint(tmp_path, [chunk_of_rows(0, 2), chunk_of_rows(1, 2)], [], {})


def test_a_gap_is_not_read_as_numbers(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, [chunk_of_rows(0, 2)], [], {})
    reader = CheckpointReader(tmp_path)
    assert reader.read(KEY, (0, 0), (2, 2)).tolist() == [[0, 0], [0, 0]]
    with pytest.raises(UserError, match="do not cover"):
        reader.read(KEY, (1, 0), (2, 2))


def test_what_make_raises_comes_through(tmp_path: Path) -> None:
    def fail() -> Tensor:
        raise UserError("the tensor holds NaN")

    with pytest.raises(UserError, match="holds NaN"):
        write_checkpoint(tmp_path, [Chunk(KEY, (1,), (0,), (1,), torch.float32, fail)], [], {})


@pytest.mark.parametrize("missing", ["metadata.json", ".metadata"])
def test_missing_index(tmp_path: Path, missing: str) -> None:
    write(tmp_path / "c")
    (tmp_path / "c" / missing).unlink()
    with pytest.raises(UserError, match=f"lacks {missing}"):
        CheckpointReader(tmp_path / "c")


def test_broken_index(tmp_path: Path) -> None:
    write(tmp_path / "c")
    (tmp_path / "c" / ".metadata").write_bytes(b"\x80\x04nonsense")
    with pytest.raises(UserError, match=r"cannot read \.metadata"):
        CheckpointReader(tmp_path / "c")


def test_other_format(tmp_path: Path) -> None:
    write(tmp_path / "c")
    (tmp_path / "c" / "metadata.json").write_text(json.dumps({"sharded_backend": "fsdp_dtensor"}), encoding="utf-8")
    with pytest.raises(UserError, match="'fsdp_dtensor', needs 'torch_dist'"):
        CheckpointReader(tmp_path / "c")


@pytest.mark.parametrize("keep", [0, 0.5])
def test_cut_file(tmp_path: Path, keep: float) -> None:
    write(tmp_path / "c")
    (data,) = (tmp_path / "c").glob("*.distcp")
    content = data.read_bytes()
    data.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(UserError, match=f"cannot read {KEY}"):
        CheckpointReader(tmp_path / "c").read(KEY, (0, 0, 0), (3, 4, 5))


def test_missing_file(tmp_path: Path) -> None:
    write(tmp_path / "c")
    next((tmp_path / "c").glob("*.distcp")).unlink()
    with pytest.raises(UserError, match="a file is missing or damaged"):
        CheckpointReader(tmp_path / "c").read(KEY, (0, 0, 0), (3, 4, 5))


def test_what_a_folder_lacks(tmp_path: Path) -> None:
    """Of a whole checkpoint nothing; then a byte of a file, a file, and what is written last."""
    write(tmp_path / "c")
    assert fault_of(tmp_path / "c") is None
    (file,) = (tmp_path / "c").glob("*.distcp")
    file.write_bytes(file.read_bytes()[:-1])
    assert (
        fault_of(tmp_path / "c")
        == f"has a {file.name} of {file.stat().st_size:,} bytes, needs {file.stat().st_size + 1:,}"
    )
    file.unlink()
    assert fault_of(tmp_path / "c") == f"lacks {file.name}"
    (tmp_path / "c" / ".metadata").write_bytes(b"half")
    assert fault_of(tmp_path / "c") == "has a damaged .metadata (UnpicklingError)"
    (tmp_path / "c" / ".metadata").unlink()
    assert fault_of(tmp_path / "c") == "lacks .metadata"
    assert fault_of(tmp_path / "none") == "lacks metadata.json"

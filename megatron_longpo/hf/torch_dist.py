"""Megatron's ``torch_dist`` checkpoints, written and read tensor by tensor in one plain process.

The format is torch.distributed.checkpoint (DCP) with two additions of Megatron: ``metadata.json`` naming the format
(core/dist_checkpointing/core.py) and one object ``common_state`` for everything that is not a tensor
(core/dist_checkpointing/serialization.py, 0.19). This file is the only one that knows them; the tests load what it
writes with stock ``dist_checkpointing.load`` and read what stock ``save`` wrote.

Why not ``dist_checkpointing.save`` itself: it needs a process group, CUDA or a patched ``torch.cuda`` (it calls
``torch.cuda.synchronize``), starts a manager process that runs the caller's ``__main__`` again, and wants all tensors
in memory at once. Why not ``load_plain_tensors``: it fails with torch 2.15 (``empty() got an unexpected keyword
argument 'strides'``) and reads the optimizer's tensors too. DCP's own storage classes need none of that, and two
chunks are in memory at a time.
"""

import io
import json
import pickle
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, ReadItem, SavePlan, TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from megatron_longpo.errors import UserError
from megatron_longpo.hf.ahead import made_ahead
from megatron_longpo.strict_json import read_json_object

FORMAT_FILE = "metadata.json"
_FORMAT = {"sharded_backend": "torch_dist", "sharded_backend_version": 1}
_INDEX_FILE = ".metadata"
_COMMON_STATE_KEY = "common_state/shard_0_1"


@dataclass(frozen=True, slots=True)
class Chunk:
    """One box of a global tensor, made only when it is written."""

    key: str
    global_shape: tuple[int, ...]
    offsets: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], Tensor]
    """Returns the chunk's values, of the shape and dtype above; called once, in a thread."""


def write_checkpoint(
    directory: Path, chunks: Iterable[Chunk], empty_objects: Sequence[str], common_state: Mapping[str, Any]
) -> None:
    """Write a checkpoint that Megatron loads.

    Args:
        directory: an existing folder.
        chunks: together they cover every tensor once; DCP refuses overlaps, and a gap shows when it is read.
        empty_objects: keys of objects whose value is None, shard suffix included.
        common_state: plain numbers, strings and containers of them.

    Raises:
        OSError: the disk is full or not writable. Whatever a ``make`` raises comes through.
    """
    planner = _WritePlanner(list(chunks), empty_objects, common_state)
    # Nothing is on a GPU, so nothing is copied ahead; DCP then asks for, writes and forgets one chunk after the other.
    writer = FileSystemWriter(directory, per_thread_copy_ahead=0)
    writer.set_up_storage_writer(is_coordinator=True)
    plans, metadata = planner.create_global_plan([writer.prepare_local_plan(planner.create_local_plan())])
    (plan,) = writer.prepare_global_plan(plans)
    try:
        with planner.made_ahead():
            results = writer.write_data(plan, planner)
    except RuntimeError as error:
        # Of a full disk torch's zip writer only says "unexpected pos"; what the file system said is its context.
        if isinstance(error.__context__, OSError):
            raise OSError(error.__context__.errno, error.__context__.strerror, str(directory)) from error
        raise
    results.wait()
    writer.finish(metadata, [results.value()])
    (directory / FORMAT_FILE).write_text(json.dumps(_FORMAT), encoding="utf-8")


class CheckpointReader:
    """Reads boxes of the global tensors of one checkpoint folder, whatever layout wrote it.

    Raises:
        UserError: the folder holds no complete ``torch_dist`` checkpoint.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._reader = FileSystemReader(directory)
        for name in (FORMAT_FILE, _INDEX_FILE):
            if not (directory / name).exists():
                raise UserError(f"{directory} lacks {name}: no complete checkpoint; choose another iteration")
        form = read_json_object(directory / FORMAT_FILE)
        try:
            metadata = self._reader.read_metadata()
        except Exception as error:  # whatever unpickling another file raises
            self._fail(_INDEX_FILE, error)
        if form.get("sharded_backend") != _FORMAT["sharded_backend"]:
            raise UserError(
                f"{directory / FORMAT_FILE}: checkpoint format {form.get('sharded_backend')!r}, needs 'torch_dist'; "
                "save with --ckpt-format torch_dist"
            )
        self._reader.set_up_storage_reader(metadata, is_coordinator=True)
        self._tensors = {
            key: stored
            for key, stored in metadata.state_dict_metadata.items()
            if isinstance(stored, TensorStorageMetadata)
        }

    def keys(self) -> list[str]:
        """Keys of all tensors, the optimizer's too."""
        return sorted(self._tensors)

    def shape(self, key: str) -> tuple[int, ...]:
        """Global shape."""
        return tuple(self._tensors[key].size)

    def dtype(self, key: str) -> torch.dtype:
        return self._tensors[key].properties.dtype

    def read(self, key: str, offsets: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
        """The box of ``shape`` at ``offsets`` of tensor ``key``.

        Raises:
            UserError: the stored shards do not cover the box, or a file is damaged.
        """
        box = ChunkStorageMetadata(offsets=torch.Size(offsets), sizes=torch.Size(shape))
        items = create_read_items_for_chunk_list(key, self._tensors[key], [box])
        if sum(prod(item.lengths) for item in items) != prod(shape):
            raise UserError(f"{self.directory}: the shards of {key} do not cover it; the checkpoint is incomplete")
        planner = _ReadPlanner(torch.empty(shape, dtype=self.dtype(key)))
        try:
            self._reader.read_data(LoadPlan(items), planner).wait()
        # A cut or damaged file shows as any of these, from the file system, torch's zip reader or its unpickler.
        except (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError) as error:
            self._fail(key, error)
        return planner.target

    def _fail(self, what: str, error: Exception) -> NoReturn:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise UserError(f"{self.directory}: cannot read {what} ({reason}); a file is missing or damaged") from error


def fault_of(directory: Path) -> str | None:
    """What a checkpoint folder lacks of a whole one; None where every file is there and as long as it must be.

    DCP writes ``.metadata``, which says where every tensor lies, after all else (torch/distributed/checkpoint/
    filesystem.py, FileSystemWriter.finish), and Megatron its format last of all. Contents are not read.
    """
    for name in (FORMAT_FILE, _INDEX_FILE):
        if not (directory / name).is_file():
            return f"lacks {name}"
    try:
        stored = FileSystemReader(directory).read_metadata().storage_data.values()
    except Exception as error:  # whatever unpickling another file raises
        return f"has a damaged {_INDEX_FILE} ({type(error).__name__})"
    sizes: dict[str, int] = {}
    for piece in stored:
        sizes[piece.relative_path] = max(sizes.get(piece.relative_path, 0), piece.offset + piece.length)
    for name, size in sorted(sizes.items()):
        path = directory / name
        if not path.is_file():
            return f"lacks {name}"
        if (found := path.stat().st_size) < size:
            return f"has a {name} of {found:,} bytes, needs {size:,}"
    return None


class _WritePlanner(DefaultSavePlanner):
    """Plans the chunks as DCP shards, and makes the next one while the writer writes one; it keeps their order."""

    def __init__(self, chunks: list[Chunk], empty_objects: Sequence[str], common_state: Mapping[str, Any]) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self._chunks = {MetadataIndex(chunk.key, chunk.offsets): chunk for chunk in chunks}
        # Megatron stores an object as a list, because a rank may hold several with one key.
        self._objects: dict[str, Any] = {key: [None] for key in empty_objects}
        self._objects[_COMMON_STATE_KEY] = [dict(common_state)]
        self._values: Iterator[tuple[Chunk, Tensor]] = iter(())

    @contextmanager
    def made_ahead(self) -> Generator[None]:
        """Around the writing."""
        with closing(made_ahead(chunk.make for chunk in self._chunks.values())) as values:
            self._values = zip(self._chunks.values(), values, strict=True)
            yield

    def create_local_plan(self) -> SavePlan:
        objects = [WriteItem(index=MetadataIndex(key), type=WriteItemType.BYTE_IO) for key in self._objects]
        tensors = [
            WriteItem(
                index=index,
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(
                    chunk=ChunkStorageMetadata(offsets=torch.Size(chunk.offsets), sizes=torch.Size(chunk.shape)),
                    properties=TensorProperties(dtype=chunk.dtype),
                    size=torch.Size(chunk.global_shape),
                ),
            )
            for index, chunk in self._chunks.items()
        ]
        self.plan = SavePlan(objects + tensors)
        return self.plan

    def resolve_data(self, write_item: WriteItem) -> Tensor | io.BytesIO:
        if write_item.type == WriteItemType.BYTE_IO:
            stream = io.BytesIO()
            torch.save(self._objects[write_item.index.fqn], stream)
            return stream
        chunk, values = next(self._values)
        assert chunk is self._chunks[write_item.index], (chunk.key, write_item.index)
        assert values.dtype == chunk.dtype, (chunk.key, values.dtype, chunk.dtype)
        return values.reshape(chunk.shape)


class _ReadPlanner(DefaultLoadPlanner):
    """Puts what the reader finds into one target tensor."""

    def __init__(self, target: Tensor) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self.target = target

    def resolve_tensor(self, read_item: ReadItem) -> Tensor:
        box = zip(read_item.dest_offsets, read_item.lengths, strict=True)
        return self.target[tuple(slice(start, start + length) for start, length in box)]

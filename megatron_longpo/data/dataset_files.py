"""The files of a dataset: their names, and whether they are there, whole, and of one build."""

import os
import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from megatron_longpo.data.manifest import Manifest
from megatron_longpo.errors import UserError

SUFFIXES = (".manifest.json", ".pairs.jsonl", ".spans.npy", ".idx", ".bin")
"""Suffixes of a dataset's files, in the reverse of the order in which they are renamed into place."""
_IDX_HEADER = struct.Struct("<9sQBQQ")
"""Magic, version, dtype code, number of sequences, number of documents + 1: mcore 0.19.2 _IndexWriter."""


class Index(NamedTuple):
    """What ``PREFIX.idx`` says."""

    dtype_code: int
    """Megatron's DType of a stored token."""
    sequence_lengths: NDArray[np.int32]
    """In tokens; three to a conversation: trunk, chosen, rejected."""
    documents: NDArray[np.int64]
    """[pairs + 1]: the sequence that each pair begins with, and their number."""

    def all_lengths(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
        """Tokens of (trunk, chosen, rejected) of all conversations [C, 3], their pairs [C], which are long [C] (bool).

        A pair has a long conversation, then the short one of each turn.
        """
        first_P = self.documents // 3
        pair_C = np.repeat(np.arange(len(first_P) - 1), np.diff(first_P))
        is_long_C = np.isin(np.arange(len(pair_C)), first_P)
        return self.sequence_lengths.astype(np.int64).reshape(-1, 3), pair_C, is_long_C


def dataset_file(prefix: Path, suffix: str) -> Path:
    """The path of one of a dataset's files; ``suffix`` is one of `SUFFIXES`."""
    return prefix.with_name(prefix.name + suffix)


def refuse_existing(prefix: Path, overwrite: bool) -> None:
    """Raise UserError if a file of a dataset of this name exists and may not be replaced."""
    for suffix in SUFFIXES:
        if not overwrite and dataset_file(prefix, suffix).exists():
            raise UserError(
                f"{dataset_file(prefix, suffix)} already exists; choose another --output, or give --overwrite"
            )


def read_index(prefix: Path) -> Index:
    """Read ``PREFIX.idx`` without Megatron, which takes seconds to import.

    Raises:
        UserError: it is not an index of Megatron's indexed format, version 1, or not whole.
    """
    path = dataset_file(prefix, ".idx")
    with path.open("rb") as file:
        header = file.read(_IDX_HEADER.size)
        if len(header) < _IDX_HEADER.size:
            raise UserError(f"{path}: {len(header)} bytes, its header alone has {_IDX_HEADER.size}; build it again")
        magic, version, code, num_sequences, num_documents = _IDX_HEADER.unpack(header)
        if (magic, version) != (b"MMIDIDX\0\0", 1):
            raise UserError(f"{path}: not an index of Megatron's indexed format, version 1; build the dataset again")
        _check_size(path, _IDX_HEADER.size + 12 * num_sequences + 8 * num_documents)
        lengths = np.fromfile(file, np.int32, num_sequences)
        file.seek(8 * num_sequences, os.SEEK_CUR)  # where each sequence begins in .bin
        return Index(code, lengths, np.fromfile(file, np.int64, num_documents))


def check_files(prefix: Path, manifest: Manifest) -> None:
    """Hold the files to have the sizes that the index and the manifest ask for, before anything maps them.

    Raises:
        UserError: a file is missing, has another size than it must, or belongs to another build.
    """
    from megatron.core.datasets.indexed_dataset import DType  # seconds; naming files must not take them

    for suffix in SUFFIXES:
        if not dataset_file(prefix, suffix).is_file():
            raise UserError(
                f"{dataset_file(prefix, suffix)}: no such file, but the manifest is there; build the dataset again"
            )
    idx, index = dataset_file(prefix, ".idx"), read_index(prefix)
    if index.dtype_code not in [member.value for member in DType]:
        raise UserError(f"{idx}: not an index of Megatron's indexed format, version 1; build the dataset again")
    stored = int(index.sequence_lengths.sum(dtype=np.int64))
    _check_size(dataset_file(prefix, ".bin"), stored * DType.size(index.dtype_code))
    seen = (DType(index.dtype_code).name, len(index.documents) - 1, len(index.sequence_lengths), stored)
    num_tokens = sum(manifest.num_tokens.values())
    needed = (manifest.dtype, manifest.num_pairs, 3 * (manifest.num_pairs + manifest.num_turns), num_tokens)
    if seen != needed:
        raise UserError(
            f"{idx}: holds (dtype, pairs, sequences, tokens) = {seen}, the manifest says {needed}: the files are of"
            " different builds; build the dataset again"
        )
    _check_spans(dataset_file(prefix, ".spans.npy"), manifest.num_turns)


def _check_size(path: Path, num_bytes: int) -> None:
    if path.stat().st_size != num_bytes:
        raise UserError(
            f"{path}: {path.stat().st_size} bytes, but the index asks for {num_bytes}: truncated or of another build;"
            " build the dataset again"
        )


def _check_spans(path: Path, num_turns: int) -> None:
    try:
        spans = np.load(path, mmap_mode="r")
    except (ValueError, EOFError) as error:
        raise UserError(f"{path}: truncated or not an array ({error}); build the dataset again") from error
    if spans.dtype != np.int32 or spans.shape != (num_turns, 4, 2):
        raise UserError(
            f"{path}: {spans.dtype} {spans.shape}, but the manifest asks for int32 {(num_turns, 4, 2)}; build the"
            " dataset again"
        )

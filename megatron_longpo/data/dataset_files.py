"""The files of a dataset: their names, and whether they are there, whole, and of one build."""

import struct
from pathlib import Path

import numpy as np

from megatron_longpo.data.manifest import Manifest
from megatron_longpo.errors import UserError

SUFFIXES = (".manifest.json", ".pairs.jsonl", ".spans.npy", ".idx", ".bin")
"""Suffixes of a dataset's files, in the reverse of the order in which they are renamed into place."""
_IDX_HEADER = struct.Struct("<9sQBQQ")
"""Magic, version, dtype code, number of sequences, number of documents + 1: mcore 0.19.2 _IndexWriter."""


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
    idx = dataset_file(prefix, ".idx")
    with idx.open("rb") as file:
        header = file.read(_IDX_HEADER.size)
        if len(header) < _IDX_HEADER.size:
            raise UserError(f"{idx}: {len(header)} bytes, its header alone has {_IDX_HEADER.size}; build it again")
        magic, version, code, num_sequences, num_documents = _IDX_HEADER.unpack(header)
        if (magic, version) != (b"MMIDIDX\0\0", 1) or code not in [member.value for member in DType]:
            raise UserError(f"{idx}: not an index of Megatron's indexed format, version 1; build the dataset again")
        _check_size(idx, _IDX_HEADER.size + 12 * num_sequences + 8 * num_documents)
        lengths = np.fromfile(file, np.int32, num_sequences)
    _check_size(dataset_file(prefix, ".bin"), int(lengths.sum(dtype=np.int64)) * DType.size(code))
    seen = (DType(code).name, num_documents - 1, num_sequences, int(lengths.sum(dtype=np.int64)))
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

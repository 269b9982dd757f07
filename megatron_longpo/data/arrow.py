"""Rows of Arrow and parquet files: `datasets.save_to_disk` folders, ``.arrow`` and ``.parquet``, one row at a time.

Arrow files are memory-mapped and parquet files are decoded row by row, so memory does not grow with a file.
Rows are counted from 0 within their file, as `datasets` and pandas count them.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megatron_longpo.data.tokenise import IntArray
from megatron_longpo.errors import UserError, import_optional
from megatron_longpo.files import reading


@dataclass(frozen=True, slots=True)
class ArrowFile:
    """One file that was found readable."""

    path: Path
    columns: dict[str, Any]
    """Name -> pyarrow.DataType."""
    num_rows: int
    num_bytes: int


def find_files(inputs: Sequence[Path]) -> list[ArrowFile]:
    """Open the inputs, files or `save_to_disk` folders, in the order given.

    Raises:
        UserError: pyarrow is not installed; an input is missing, comes twice, is no Arrow or parquet data, is broken,
            or holds no row.
    """
    found: list[ArrowFile] = []
    for path in [file for given in inputs for file in _files_of(given)]:
        if any(path.resolve() == other.path.resolve() for other in found):
            raise UserError(f"{path}: given twice; name every input once")
        with _readable(path):
            found.append(_open(path))
        if found[-1].num_rows == 0:
            raise UserError(f"{path}: holds no row; leave it out, or check how it was written")
    return found


def read_rows(file: ArrowFile, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield ``("FILE: row N", {column: pyarrow.Scalar})``; other columns are not read."""
    number = 0
    batches = _batches(file.path, columns)
    while True:
        with _readable(file.path):
            batch = next(batches, None)
        if batch is None:
            return
        for index in range(batch.num_rows):
            yield f"{file.path}: row {number}", {name: batch.column(name)[index] for name in columns}
            number += 1


def is_integer_lists(kind: Any) -> bool:
    """Whether a pyarrow.DataType is a list of integers or a list of such lists."""
    types = _pyarrow("pyarrow.types")
    inner = kind.value_type if _is_list(kind) else None
    return inner is not None and bool(
        types.is_integer(inner) or (_is_list(inner) and types.is_integer(inner.value_type))
    )


def integer_lists(value: Any, where: str) -> list[IntArray]:
    """A pyarrow.Scalar of `is_integer_lists` type as its innermost lists, each an int64 array without a copy.

    Raises:
        UserError: it is null or holds a null.
    """
    if value.values is None or value.values.null_count:
        raise UserError(f"{where} is null or holds null; it needs integers: repair or drop the row")
    if _is_list(value.values.type):
        return [array for inner in value.values for array in integer_lists(inner, where)]
    return [np.asarray(value.values.to_numpy(zero_copy_only=True)).astype(np.int64, copy=False)]


def _files_of(given: Path) -> list[Path]:
    if given.is_file():
        return [given]
    if not given.is_dir():
        raise UserError(f"{given}: no such file or folder; give save_to_disk folders, .arrow or .parquet files")
    if (given / "dataset_dict.json").is_file():
        names = sorted(path.parent.name for path in given.glob("*/state.json"))
        example = f", like {given / names[0]}" if names else ""
        raise UserError(
            f"{given}: a folder of several splits ({', '.join(names) or 'none of them here'}); give one{example}"
        )
    state = given / "state.json"
    if not state.is_file():
        raise UserError(f"{given}: no save_to_disk folder (it has no state.json); give such a folder, or files")
    with _readable(state):
        files = [given / entry["filename"] for entry in json.loads(state.read_text(encoding="utf-8"))["_data_files"]]
    if not files:
        raise UserError(
            f"{state}: names no file, so the folder holds no row; leave it out, or check how it was written"
        )
    return files


def _open(path: Path) -> ArrowFile:
    if path.suffix.lower() == ".parquet":
        file = _pyarrow("pyarrow.parquet").ParquetFile(path)
        schema, num_rows = file.schema_arrow, file.metadata.num_rows
    else:
        schema, batches = _open_ipc(path)
        num_rows = sum(batch.num_rows for batch in batches)
    columns = dict(zip(schema.names, schema.types, strict=True))
    return ArrowFile(path, columns, num_rows, path.stat().st_size)


def _batches(path: Path, columns: Sequence[str]) -> Iterator[Any]:
    if path.suffix.lower() == ".parquet":
        # Without pre-buffering, or a whole row group is read at once.
        file = _pyarrow("pyarrow.parquet").ParquetFile(path, pre_buffer=False, buffer_size=1 << 20)
        return iter(file.iter_batches(batch_size=1, columns=list(columns)))
    return _open_ipc(path)[1]


def _open_ipc(path: Path) -> tuple[Any, Iterator[Any]]:
    """Schema and record batches; `datasets` writes Arrow's stream format, others (Feather, polars) its file format."""
    pyarrow = _pyarrow("pyarrow")
    source = pyarrow.memory_map(str(path))
    with path.open("rb") as file:
        is_file_format = file.read(6) == b"ARROW1"
    if not is_file_format:
        stream = pyarrow.ipc.open_stream(source)
        return stream.schema, iter(stream)
    reader = pyarrow.ipc.open_file(source)
    return reader.schema, (reader.get_batch(index) for index in range(reader.num_record_batches))


def _is_list(kind: Any) -> bool:
    types = _pyarrow("pyarrow.types")
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _pyarrow(module: str) -> Any:
    purpose = "Arrow and parquet files are read with pyarrow, which cannot be imported"
    return import_optional(module, purpose, extra="arrow")


def _readable(path: Path) -> AbstractContextManager[None]:
    # pyarrow's errors are OSError and ValueError
    return reading(path, OSError, ValueError, KeyError, TypeError, RecursionError)

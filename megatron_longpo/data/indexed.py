"""The dataset on disk, on Megatron's own indexed format: written whole or not at all, read memory-mapped.

    PREFIX.bin, PREFIX.idx   one document = one pair = the sequences trunk, chosen, rejected, then for every turn
                             short trunk, short chosen, short rejected (uint16 or int32)
    PREFIX.spans.npy         int32 [num_turns of all pairs, 4, 2]: half-open response spans of a turn in its long
                             chosen, long rejected, short chosen and short rejected branch
    PREFIX.pairs.jsonl       per pair: id, source (FILE:LINE), number of context tokens removed, meta
    PREFIX.manifest.json     counts and fingerprints; renamed into place last, so a dataset without it is incomplete

Source of the .bin/.idx layout: megatron/core/datasets/indexed_dataset.py (_IndexWriter, _IndexReader), mcore 0.19.2.
"""

import errno
import hashlib
import json
import shutil
from array import array
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple, Self, cast

import numpy as np
from megatron.core.datasets.indexed_dataset import DType, IndexedDataset, IndexedDatasetBuilder
from numpy.typing import NDArray

from megatron_longpo.data.dataset_files import SUFFIXES, check_files, dataset_file, read_index, refuse_existing
from megatron_longpo.data.manifest import FORMAT_VERSION, InputFile, Manifest, count_tokens, read_manifest
from megatron_longpo.data.render import Branch, Lengths, Overlong, RenderedPair, TrunkAndBranches
from megatron_longpo.data.tokenise import IntArray
from megatron_longpo.errors import UserError
from megatron_longpo.files import atomic_file, reading


class PairRecord(NamedTuple):
    """What is known of a pair apart from its tokens."""

    id: str
    source: str
    """``FILE:LINE`` of the input."""
    num_removed: int
    meta: Mapping[str, Any]


class PairWriter:
    """Writes a dataset; a context manager that removes everything again unless `finish` was reached.

    Raises:
        UserError: on entering, a file of that name exists (and ``overwrite`` is false, else it stays as it is until
            `finish`); later, the disk is full.
    """

    def __init__(
        self,
        prefix: Path,
        *,
        tokenizer_fingerprint: str,
        vocab_size: int,
        max_length: int,
        overlong: Overlong,
        overwrite: bool = False,
    ) -> None:
        self.prefix = prefix
        self._settings: dict[str, Any] = {
            "tokenizer_fingerprint": tokenizer_fingerprint,
            "vocab_size": vocab_size,
            "max_length": max_length,
            "overlong": overlong,
        }
        self._overwrite = overwrite
        self._dtype = DType.optimal_dtype(vocab_size)
        # As plain integers: a Python object for each would take over a kilobyte a pair (benchmarks/large_dataset.py).
        self._spans, self._long_lengths, self._short_lengths = array("i"), array("i"), array("i")
        self._num_skipped = self._num_truncated = self._num_removed = 0

    def __enter__(self) -> Self:
        refuse_existing(self.prefix, self._overwrite)
        self._files = ExitStack()
        # An ExitStack closes in reverse, so the manifest, first in SUFFIXES, is the last to be renamed.
        self._partial = {
            suffix: self._files.enter_context(atomic_file(dataset_file(self.prefix, suffix))) for suffix in SUFFIXES
        }
        try:
            self._records = self._partial[".pairs.jsonl"].open("w", encoding="utf-8")
            self._builder = IndexedDatasetBuilder(str(self._partial[".bin"]), dtype=self._dtype)
        except OSError as error:
            self._files.__exit__(type(error), error, error.__traceback__)
            raise
        self._finished = False
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._finished:
            return
        for stream in (self._records, cast(BinaryIO, self._builder.data_file)):
            with suppress(OSError):  # closing flushes, which fails again on a full disk
                stream.close()
        # atomic_file must see an exception, or it would put the unfinished files into place.
        cause = error or RuntimeError("left before finish()")
        self._files.__exit__(type(cause), cause, cause.__traceback__)

    def add(self, pair: RenderedPair, source: str = "", meta: Mapping[str, Any] | None = None) -> None:
        """Append one pair; ``source`` (FILE:LINE) and ``meta`` come back from `PairReader.record`."""
        conversations = (pair.long, *pair.short)
        sequences = [
            tokens for item in conversations for tokens in (item.trunk, item.chosen.tokens, item.rejected.tokens)
        ]
        tokens = np.concatenate(sequences)
        assert int(tokens.max()) < self._settings["vocab_size"], "token id outside the vocabulary"
        record = {"id": pair.id, "source": source, "num_removed": pair.num_removed, "meta": dict(meta or {})}
        with _full_disk_named(self.prefix):
            # Annotated as a Tensor, but numpy.array() is all that is done with it, and of a Tensor that is deprecated.
            self._builder.add_document(cast(Any, tokens), [len(sequence) for sequence in sequences])
            self._records.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
        long_spans = np.stack([pair.long.chosen.spans, pair.long.rejected.spans], axis=1)
        short_spans = np.stack([np.stack([item.chosen.spans[0], item.rejected.spans[0]]) for item in pair.short])
        self._spans.frombytes(np.concatenate([long_spans, short_spans], axis=1, dtype=np.int32).tobytes())
        self._long_lengths.extend(pair.long.lengths)
        for item in pair.short:
            self._short_lengths.extend(item.lengths)
        self._num_truncated += pair.num_removed > 0
        self._num_removed += pair.num_removed

    def skip(self) -> None:
        """Count a pair that was left out because it was too long."""
        self._num_skipped += 1

    def finish(self, inputs: Sequence[InputFile], num_bad: int = 0) -> Manifest:
        """Write the index, spans and manifest and put all files into place.

        Args:
            num_bad: rows that were left out because they could not be used.

        Raises:
            UserError: no pair was added, or the disk is full; nothing is left behind.
        """
        if not self._spans:
            bad = f", {num_bad} bad rows left out" if num_bad else ""
            raise UserError(
                f"{self.prefix}: no pair is left ({self._num_skipped} skipped for their length, limit"
                f" {self._settings['max_length']}{bad}); raise --max-length or choose --overlong truncate"
                f"{', and correct the rows' if num_bad else ''}"
            )
        with _full_disk_named(self.prefix):
            self._records.close()
            self._builder.finalize(str(self._partial[".idx"]))
            with self._partial[".spans.npy"].open("wb") as file:
                np.save(file, _as_array(self._spans, 4, 2))
            manifest = self._manifest(inputs, num_bad)
            self._partial[".manifest.json"].write_text(manifest.to_json(), encoding="utf-8")
            self._put_into_place()
        self._finished = True
        return manifest

    def _put_into_place(self) -> None:
        # Without its manifest an old dataset is incomplete, so old and new files never pass for one dataset.
        dataset_file(self.prefix, ".manifest.json").unlink(missing_ok=True)
        try:
            self._files.close()
        except BaseException:
            for suffix in SUFFIXES:
                dataset_file(self.prefix, suffix).unlink(missing_ok=True)
            raise

    def _manifest(self, inputs: Sequence[InputFile], num_bad: int) -> Manifest:
        long, short = _as_array(self._long_lengths, 3), _as_array(self._short_lengths, 3)
        return Manifest(
            format_version=FORMAT_VERSION,
            fingerprint=_sha256(self._partial[suffix] for suffix in (".bin", ".idx", ".spans.npy")),
            dtype=np.dtype(self._dtype).name,
            num_pairs=len(long),
            num_skipped=self._num_skipped,
            num_bad=num_bad,
            num_truncated=self._num_truncated,
            num_removed=self._num_removed,
            inputs=tuple(inputs),
            **count_tokens(long, short),
            **self._settings,
        )


class PairReader:
    """A dataset, memory-mapped: opening it reads no tokens, ``reader[i]`` reads one pair and nothing else.

    The arrays are int32 copies, not views: Megatron closes the mapping when the IndexedDataset is collected, and a view
    read after that is a segmentation fault (seen). A reader can be pickled; it is opened again.

    Raises:
        UserError: a file is missing, truncated, of another format version, or does not fit the others.
    """

    def __init__(self, prefix: Path) -> None:
        self.prefix = prefix
        self.manifest = read_manifest(dataset_file(prefix, ".manifest.json"))
        check_files(prefix, self.manifest)
        self._sequences = IndexedDataset(str(prefix), mmap=True)
        self._spans: IntArray = np.load(dataset_file(prefix, ".spans.npy"), mmap_mode="r")
        self._documents: IntArray = self._sequences.document_indices
        self._record_offsets: IntArray | None = None

    def __len__(self) -> int:
        return self.manifest.num_pairs

    def __getitem__(self, index: int) -> RenderedPair:
        start, end = self._sequence_range(index)
        sequences = [np.array(tokens, np.int32) for tokens in cast(list[IntArray], self._sequences[start:end])]
        first_turn = (start - 3 * index) // 3  # a document has 3 sequences and 3 more for every turn
        spans = np.array(self._spans[first_turn : first_turn + (end - start) // 3 - 1])
        long = _conversation(sequences[:3], spans[:, 0], spans[:, 1])
        short = tuple(
            _conversation(sequences[3 * turn + 3 : 3 * turn + 6], spans[turn : turn + 1, 2], spans[turn : turn + 1, 3])
            for turn in range(len(spans))
        )
        record = self.record(index)
        return RenderedPair(record.id, long, short, record.num_removed)

    def __reduce__(self) -> tuple[type[Self], tuple[Path]]:
        return type(self), (self.prefix,)

    def lengths(self, index: int) -> tuple[Lengths, ...]:
        """Lengths of the long conversation and of the short one of each turn; reads the index only."""
        start, end = self._sequence_range(index)
        return tuple(Lengths(*map(int, row)) for row in self._sequences.sequence_lengths[start:end].reshape(-1, 3))

    @property
    def max_turns(self) -> int:
        """The most turns that a pair has: a document has 3 sequences and 3 more for every turn."""
        return int(np.diff(self._documents).max()) // 3 - 1

    def all_lengths(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
        """See Index.all_lengths; reads the index only."""
        return read_index(self.prefix).all_lengths()

    def record(self, index: int) -> PairRecord:
        """The id, source, number of removed tokens and meta of a pair."""
        path = dataset_file(self.prefix, ".pairs.jsonl")
        with reading(path, ValueError, TypeError), path.open("rb") as file:
            if self._record_offsets is None:
                self._record_offsets = np.cumsum([0, *(len(line) for line in file)])
                if (num_lines := len(self._record_offsets) - 1) != len(self):
                    raise UserError(f"{path}: {num_lines} lines for {len(self)} pairs; build the dataset again")
            file.seek(int(self._record_offsets[index]))
            return PairRecord(**json.loads(file.readline()))

    def named(self, index: int) -> str:
        """What a message calls a pair: its id, and the line that it comes from."""
        record = self.record(index)
        return f"pair {record.id!r} ({record.source})" if record.source else f"pair {record.id!r}"

    def find(self, pair_id: str) -> int:
        """The index of the pair with this id; raises UserError if there is none."""
        path = dataset_file(self.prefix, ".pairs.jsonl")
        with reading(path, ValueError, TypeError, KeyError), path.open("rb") as file:
            for index, line in enumerate(file):
                if json.loads(line)["id"] == pair_id:
                    return index
        raise UserError(f"{self.prefix}: no pair has the id {pair_id!r}; it has {len(self)} pairs")

    def _sequence_range(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"pair {index} of a dataset of {len(self)}")
        return int(self._documents[index]), int(self._documents[index + 1])


def _conversation(sequences: Sequence[IntArray], chosen_spans: IntArray, rejected_spans: IntArray) -> TrunkAndBranches:
    trunk, chosen, rejected = sequences
    return TrunkAndBranches(trunk, Branch(chosen, chosen_spans), Branch(rejected, rejected_spans))


def _as_array(values: "array[int]", *row: int) -> NDArray[np.int32]:
    return np.frombuffer(values, np.int32).reshape(-1, *row)


def _sha256(paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


@contextmanager
def _full_disk_named(prefix: Path) -> Generator[None]:
    """Turn "no space left" into an error that says where and what to do; a write does not name its file."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        free = shutil.disk_usage(prefix.parent).free
        raise UserError(
            f"no space left for {prefix} ({free:,} bytes free in {prefix.parent}; nothing was kept); free some, or"
            " choose an --output on another disk"
        ) from error

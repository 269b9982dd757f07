"""What a built dataset says of itself: ``PREFIX.manifest.json``, written last, so that it also marks completeness."""

import dataclasses
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from megatron_longpo import strict_json
from megatron_longpo.data.render import Lengths
from megatron_longpo.data.tokenise import IntArray
from megatron_longpo.errors import UserError

FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class InputFile:
    """One preference file as it was when the dataset was built."""

    path: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """Counts and fingerprints of a dataset. All lengths and counts of tokens are in tokens."""

    format_version: int
    fingerprint: str
    """Sha256 (hex) of the content: the bytes of .bin, .idx and .spans.npy, one after the other."""
    tokenizer_fingerprint: str
    """Fingerprint of tokenizer and chat template, see `tokenizer.tokenizer_fingerprint`."""
    vocab_size: int
    """One more than the largest token id the tokenizer has; no stored token reaches it."""
    dtype: str
    """Type of a stored token: uint16 or int32, by Megatron's rule for the vocabulary size."""
    num_pairs: int
    num_turns: int
    num_tokens: dict[str, int]
    """Per kind of sequence (trunk, chosen, rejected, short_trunk, short_chosen, short_rejected): tokens in all."""
    lengths: dict[str, tuple[int, float, int]]
    """Per kind of sequence, and for ``pair`` = trunk + longer branch: least, median and greatest length."""
    histogram: tuple[tuple[int, int], ...]
    """(upper bound, number of pairs) by trunk + longer branch; bounds are powers of two, the lower bound is half."""
    max_length: int
    """The limit the dataset was built under, on trunk + longer branch."""
    overlong: str
    """What happened to conversations over the limit: refuse, truncate or skip."""
    num_skipped: int
    """Pairs left out because they were too long."""
    num_bad: int = 0
    """Rows left out because they could not be used; no field of older datasets."""
    num_truncated: int
    """Pairs that lost context tokens."""
    num_removed: int
    """Context tokens lost, long and short contexts together."""
    inputs: tuple[InputFile, ...]

    def to_json(self) -> str:
        """The content of the manifest file."""
        return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def count_tokens(long: IntArray, short: IntArray) -> dict[str, Any]:
    """The manifest's fields ``num_turns``, ``num_tokens``, ``lengths`` and ``histogram``.

    Args:
        long: [pairs, 3], the `Lengths` of every pair's long conversation; not empty.
        short: [turns of all pairs, 3], those of the short ones.
    """
    columns = dict(zip(Lengths._fields, long.T, strict=True))
    columns |= {f"short_{kind}": column for kind, column in zip(Lengths._fields, short.T, strict=True)}
    longer = long[:, 0] + long[:, 1:].max(axis=1)
    bounds = Counter(1 << (length - 1).bit_length() for length in cast(list[int], longer.tolist()))
    return {
        "num_turns": len(short),
        "num_tokens": {kind: int(column.sum(dtype=np.int64)) for kind, column in columns.items()},
        "lengths": {
            kind: (int(column.min()), float(np.median(column)), int(column.max()))
            for kind, column in {"pair": longer, **columns}.items()
        },
        "histogram": tuple(sorted(bounds.items())),
    }


def read_manifest(path: Path) -> Manifest:
    """Read and check a manifest.

    Raises:
        UserError: it is missing (the dataset is incomplete or does not exist), broken, or of another format version.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file, so there is no complete dataset here; run build, or check the prefix")
    try:
        record = cast(dict[str, Any], strict_json.loads(path.read_text(encoding="utf-8")))
        version = record["format_version"]
        if version != FORMAT_VERSION:
            raise UserError(
                f"{path}: the dataset has format version {version}, this program reads {FORMAT_VERSION}; build it again"
            )
        record["inputs"] = tuple(InputFile(**entry) for entry in record["inputs"])
        record["histogram"] = tuple((int(bound), int(count)) for bound, count in record["histogram"])
        record["lengths"] = {name: tuple(summary) for name, summary in record["lengths"].items()}
        return Manifest(**record)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: not a manifest of a dataset ({error}); build the dataset again") from error

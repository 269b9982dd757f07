"""A large dataset: how fast it is written and read at random, and that memory does not grow with it.

    python -m benchmarks.large_dataset [--pairs 500 2000] [--reads 200] [--folder FOLDER]

Pairs of 131,072 tokens (trunk and longer branch) with one short context of 4,096, made of numbers in the vocabulary of
Qwen2.5, written by PairWriter (4 bytes a token) and read by PairReader. Each size and each half has its own process.
Memory: of writing, the peak resident size beyond that after the imports. Of reading, the anonymous part alone, since
the mapped file counts as resident as far as it has been read; the kernel takes those pages back when it needs them.
Cold: the kernel was asked to forget the file's pages; a disk's own cache, or a host's below a virtual disk, may hold
them still.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import on_ranks, resident_bytes, write_result
from megatron_longpo.data.dataset_files import SUFFIXES, dataset_file
from megatron_longpo.data.indexed import PairReader, PairWriter
from megatron_longpo.data.render import Branch, RenderedPair, TrunkAndBranches

VOCAB_SIZE = 151_936
LONG, SHORT, BRANCH = 131_072, 4_096, 512
"""Tokens of a whole long and short conversation, and of a branch."""


def main() -> None:
    """Measure every size and write the raw numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, nargs="+", default=[500, 2000])
    parser.add_argument("--reads", type=int, default=200)
    parser.add_argument("--folder", type=Path, help="where the data is written and removed again (default: TMPDIR)")
    args = parser.parse_args()
    rows = []
    for num_pairs in args.pairs:
        with tempfile.TemporaryDirectory(dir=args.folder) as name:
            prefix = Path(name) / "set"
            row = {"pairs": num_pairs, **on_ranks(write, 1, prefix, num_pairs)[0]}
            row |= on_ranks(read, 1, prefix, args.reads)[0]
        rows.append(row)
        print("  ".join(f"{name} {value:,.4g}" for name, value in row.items()), flush=True)
    write_result("large_dataset", {"long": LONG, "short": SHORT, "branch": BRANCH, "rows": rows})


def write(prefix: Path, num_pairs: int) -> dict[str, float]:
    """Write the dataset: tokens a second with and without the closing pass, and memory."""
    base = np.arange(LONG + SHORT + 4 * BRANCH, dtype=np.int32) * 7919 % VOCAB_SIZE
    settings: dict[str, Any] = {"max_length": LONG, "overlong": "refuse", "tokenizer_fingerprint": "none"}
    Path("/proc/self/clear_refs").write_text("5")  # Linux: reset the peak to what is resident now
    before = resident_bytes("VmRSS")
    adding = 0.0
    started = time.perf_counter()
    with PairWriter(prefix, vocab_size=VOCAB_SIZE, **settings) as writer:
        for index in range(num_pairs):
            pair = make_pair(base, index)
            began = time.perf_counter()
            writer.add(pair, f"pairs.jsonl:{index + 1}")
            adding += time.perf_counter() - began
        manifest = writer.finish([])
    seconds = time.perf_counter() - started
    num_tokens = sum(manifest.num_tokens.values())
    return {
        "tokens": num_tokens,
        "bytes": sum(dataset_file(prefix, suffix).stat().st_size for suffix in SUFFIXES),
        "write_tokens_per_s": num_tokens / seconds,
        "add_tokens_per_s": num_tokens / adding,
        "write_peak_bytes": resident_bytes("VmHWM") - before,
    }


def read(prefix: Path, num_reads: int) -> dict[str, float]:
    """Read pairs at random, first cold, then the same ones again; every pair is checked against how it was made."""
    base = np.arange(LONG + SHORT + 4 * BRANCH, dtype=np.int32) * 7919 % VOCAB_SIZE
    for suffix in SUFFIXES:
        forget(dataset_file(prefix, suffix))
    before = anonymous = resident_bytes("RssAnon")
    started = time.perf_counter()
    reader = PairReader(prefix)
    opening = time.perf_counter() - started
    indices = np.random.default_rng(0).permutation(len(reader))[:num_reads].tolist()
    found: dict[str, float] = {"open_s": opening}
    seconds: list[float]
    for how in ("cold", "warm"):
        seconds, num_tokens = [], 0
        for index in indices:
            began = time.perf_counter()
            pair = reader[index]
            seconds.append(time.perf_counter() - began)
            anonymous = max(anonymous, resident_bytes("RssAnon"))
            num_tokens += sum(sum(item.lengths) for item in (pair.long, *pair.short))
            check(pair, make_pair(base, index))
        found |= {f"{how}_tokens_per_s": num_tokens / sum(seconds), f"{how}_ms_per_pair": 1e3 * np.mean(seconds)}
        found |= {f"{how}_ms_p{rank}": 1e3 * np.percentile(seconds, rank) for rank in (50, 99)}
    return {**found, "reads": len(indices), "read_peak_bytes": anonymous - before}


def make_pair(base: np.ndarray, index: int) -> RenderedPair:
    """A pair that depends on ``index`` in every token."""
    tokens = (base + np.int32(index)) % VOCAB_SIZE
    long, short = (LONG - BRANCH, SHORT - BRANCH)
    parts = np.split(tokens, np.cumsum([long, BRANCH, BRANCH, short, BRANCH, BRANCH]))[:-1]
    spans = np.array([[1, BRANCH]], np.int32)
    conversations = [
        TrunkAndBranches(trunk, Branch(chosen, spans), Branch(rejected, spans))
        for trunk, chosen, rejected in (parts[:3], parts[3:])
    ]
    return RenderedPair(f"pair-{index}", conversations[0], tuple(conversations[1:]))


def check(found: RenderedPair, made: RenderedPair) -> None:
    """A speed of wrong tokens is none."""
    for ours, theirs in zip((found.long, *found.short), (made.long, *made.short), strict=True):
        same = np.array_equal(ours.trunk, theirs.trunk) and np.array_equal(ours.chosen.tokens, theirs.chosen.tokens)
        if not same or not np.array_equal(ours.rejected.tokens, theirs.rejected.tokens):
            raise RuntimeError(f"{found.id} came back as other tokens than were written")


def forget(path: Path) -> None:
    """Drop a file's pages from the kernel's cache."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)  # only clean pages are dropped
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    main()

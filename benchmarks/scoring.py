"""Reference log-probs: pairs a second against TRL's, which reads chosen and rejected as two whole sequences.

    python -m benchmarks.scoring --trl PYTHON [--size 28M] [--trunk 4096] [--branch 256] [--pairs 6]

Both sides score the same token ids with the same random weights in fp32, two threads on a CPU: ours by the function of
score-reference, TRL's while it precomputes (benchmarks/peers/trl_dpo.py). The first pair is not counted. All log-probs
must agree.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import on_ranks, write_result
from benchmarks.peers.sides import AGREE, SIZES, THREADS, Bench
from megatron_longpo.data.dataset import conversation_arrays
from megatron_longpo.data.indexed import PairReader


def main() -> None:
    """Measure and write the raw numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl", type=Path, required=True, metavar="PYTHON", help="of an environment with TRL")
    parser.add_argument("--size", choices=SIZES, default="28M")
    parser.add_argument("--trunk", type=int, nargs="+", default=[1024, 4096], help="tokens")
    parser.add_argument("--branch", type=int, default=256, help="tokens")
    parser.add_argument("--pairs", type=int, default=6)
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for trunk in args.trunk:
        with tempfile.TemporaryDirectory() as name:
            bench = Bench(Path(name), args.trl, "cpu", args.size, trunk, args.branch, args.pairs)
            ours = on_ranks(score_pairs, 1, Path(name) / "data", Path(name) / "ref-imported", bench.order)[0]
            job = bench.job("trl", "dpo", steps=0, recompute=False, reference_is_precomputed=True)
            theirs = bench.run(job)["scored"]
        rows.append({"size": args.size, "trunk": trunk, "branch": args.branch, **compare(ours, theirs)})
        print({key: one for key, one in rows[-1].items() if key not in ("ours", "theirs")}, flush=True)
    write_result("scoring", rows)


def score_pairs(data: Path, checkpoint: Path, order: list[int]) -> list[dict[str, float]]:
    """As `score-reference` does, on the long context, a pair at a time."""
    from megatron_longpo.reference.frozen import load_frozen, score

    torch.set_num_threads(THREADS)
    reader = PairReader(data)
    reference = load_frozen(
        checkpoint,
        dtype=torch.float32,
        sequence_parallel=False,
        cp_comm_type=("p2p",),
        transformer_impl="local",
        longest_trunk=reader[0].long.lengths[0],
    )
    found: list[dict[str, float]] = []
    for index in order:
        conversation = conversation_arrays(reader[index].long)
        tensors = {name: torch.as_tensor(array) for name, array in conversation.items()}
        began = time.perf_counter()
        ((chosen, rejected),) = score(reference, [(tensors, ("chosen", "rejected"))])[0].tolist()
        found.append({"seconds": time.perf_counter() - began, "chosen": chosen, "rejected": rejected})
    return found


def compare(ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> dict[str, Any]:
    """The ratio of the times, after the log-probs were held against each other."""
    pairs = list(zip(ours, theirs, strict=True))
    difference = max(abs(mine[name] / one[name] - 1) for mine, one in pairs for name in ("chosen", "rejected"))
    if difference > AGREE:
        raise SystemExit(f"TRL's log-probs and ours differ by {difference:.1e}")
    ratios = [one["seconds"] / mine["seconds"] for mine, one in pairs[1:]]
    return {
        "ours": ours,
        "theirs": theirs,
        "difference": difference,
        "times": statistics.median(ratios),
        "least": min(ratios),
        "most": max(ratios),
    }


if __name__ == "__main__":
    main()

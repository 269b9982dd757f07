"""Where the time of a training step goes: every tensor operator by stage, and what of it the machine could save.

    python -m benchmarks.stages [--trunk 1024 4096 16384] [--context-parallel-size 1 2] [--branch 256]

Training as a user starts it (torchrun, longpo, one pair a step) of a random 28M-parameter Llama on this machine's two
cores, with a clock on every operator (stage_rank.py), whose own time is taken off. Attainable is, for each operator,
the longer of its FLOPs at the rate of a large matrix product and its bytes at the rate of a large copy, both measured
in the same run. Overhead is what is left of a step beside the operators, waiting for other ranks and waiting for data:
Python and dispatch; and operators of less than 64 KiB.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.common import write_result
from benchmarks.peers.sides import SIZES
from benchmarks.random_runs import imported_model, run_python, write_pairs
from benchmarks.stage_shares import overhead, shares

SHAPE = SIZES["28M"]
WARM, SEEN = 1, 2
"""Steps that are not counted, and whose operators are."""


def main() -> None:
    """Measure, and write the raw numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trunk", type=int, nargs="+", default=[1024, 4096, 16384], help="tokens")
    parser.add_argument(
        "--context-parallel-size", type=int, nargs="+", default=[1, 2], help="ranks; they share the cores"
    )
    parser.add_argument("--branch", type=int, default=256, help="tokens")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        imported = imported_model(Path(name), SHAPE)
        for trunk in args.trunk:
            data = Path(name) / str(trunk)
            write_pairs(data, imported, trunk, args.branch, SHAPE["vocab_size"])
            run_python(
                "megatron_longpo.commands.main", "score-reference", "--checkpoint", imported, "--data", data, threads=2
            )
            for ranks in args.context_parallel_size:
                of_ranks = run_ranks(imported, data, ranks)
                rows.append({"trunk": trunk, "branch": args.branch, "context_parallel_size": ranks, "ranks": of_ranks})
                print(f"trunk {trunk}, {ranks} ranks: {describe(rows[-1])}", flush=True)
    write_result("stages", rows)


def run_ranks(imported: Path, data: Path, ranks: int) -> list[dict[str, Any]]:
    """What every rank saw."""
    with tempfile.TemporaryDirectory() as name:
        result = Path(name) / "seen"
        run_python(
            "torch.distributed.run", "--standalone", "--nproc-per-node", ranks, "-m", "benchmarks.stage_rank",
            result, WARM, SEEN, "--load", imported, "--longpo-data", data, "--global-batch-size", 1,
            "--context-parallel-size", ranks, "--train-iters", WARM + SEEN, "--lr", 1e-6,
            threads=max(1, (os.cpu_count() or 1) // ranks),
        )  # fmt: skip
        return [json.loads(result.with_suffix(f".{rank}.json").read_text()) for rank in range(ranks)]


def describe(row: dict[str, Any]) -> str:
    """The table in a line."""
    found = shares(row)
    parts = [
        f"{stage} {(one['forward'] + one['backward']) / found['whole']:.1%}" for stage, one in found["stages"].items()
    ]
    data = found["data"] / found["whole"]
    return f"{found['whole']:.2f} s, {', '.join(parts)}, data {data:.2%}, overhead {overhead(found):.1%}"


if __name__ == "__main__":
    main()

"""A step of ours against what a user would run instead: TRL's DPOTrainer, and the released trainer in plain PyTorch.

    python -m benchmarks.against_peers --trl PYTHON [--size 28M ...] [--trunk 1024 ...] [--setting released ...]
    python -m benchmarks.against_peers --device cuda --size 7B-wide --trunk 32768 [--trl PYTHON]

PYTHON is the interpreter of an environment with benchmarks/peers/requirements.txt. All sides are whole programs, one
process with two threads on a CPU, on the same random Llama weights, reference and token ids, in fp32, a pair a step,
with Adam. First every side takes one step of plain gradient descent: losses and all updates must agree. Then the sides
run in turn: the first step of each run is left out, memory is the peak of the whole process. Sizes, lengths and
settings that are not asked for keep the rows of results/against_peers.json.

On a GPU all sides train in bf16 (ours with fp32 gradients), the losses of the first step must agree to 2e-2, and the
rows go to results/against_peers_cuda.json; without --trl only the released form is run there.

A *setting* is the recomputation (TRL: its gradient checkpointing, which is its default; ours: keep-attention; or none)
and where the reference's log-probs come from (computed before training, or by a model in memory in every step).
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, write_result
from benchmarks.origin import commit
from benchmarks.peers.sides import SIZES, Bench, Job

AGREE_IN_BF16 = 2e-2
"""Largest relative difference of the first losses."""
SETTINGS: dict[str, dict[str, Any]] = {
    f"trl-{'recomputed' if recompute else 'kept'}-{'before' if is_precomputed else 'online'}": {
        "peer": "trl",
        "recompute": recompute,
        "precomputed": is_precomputed,
    }
    for is_precomputed in (True, False)
    for recompute in (True, False)
} | {"released": {"peer": "released", "recompute": True, "precomputed": False}}
"""What stands in a row, by the name that --setting knows."""


def measure(bench: Bench, steps: int, settings: list[str]) -> Iterator[dict[str, Any]]:
    """DPO against TRL, LongPO against the released form; a peer is held against ours before it is timed first."""
    differences: dict[str, dict[str, float]] = {}
    for name in settings:
        setting = SETTINGS[name]
        mine, peer = jobs(bench, steps, **setting)
        if bench.device == "cpu" and peer.side not in differences:
            differences[peer.side] = bench.agree(mine, peer)
        found, theirs = bench.run(mine), bench.run(peer)
        seconds, peers_seconds = (statistics.median(one["seconds"][1:]) for one in (found, theirs))
        row = {
            **setting,
            "ours": found,
            "theirs": theirs,
            "differences": differences.get(peer.side) or agree_at_first(found, theirs),
            "times": peers_seconds / seconds,
            "memory": found["peak_bytes"] / theirs["peak_bytes"],
        }
        print({name: one for name, one in row.items() if name not in ("ours", "theirs")}, flush=True)
        yield row


def jobs(bench: Bench, steps: int, peer: str, recompute: bool, precomputed: bool) -> tuple[Job, Job]:
    """Ours and the peer's; the released form has its reference in every step where ours was computed before."""
    objective = {"trl": "dpo", "released": "longpo"}[peer]
    ours, theirs = (
        bench.job(side, objective, steps=steps, recompute=recompute, reference_is_precomputed=is_precomputed)
        for side, is_precomputed in (("ours", precomputed or peer == "released"), (peer, precomputed))
    )
    return ours, theirs


def main() -> None:
    """Measure all sizes and lengths, and write the raw numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl", type=Path, metavar="PYTHON", help="of an environment with TRL")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--size", choices=SIZES, nargs="+", default=["28M", "135M"])
    parser.add_argument("--trunk", type=int, nargs="+", default=[1024, 2048, 4096, 8192], help="tokens")
    parser.add_argument("--branch", type=int, default=256, help="tokens")
    parser.add_argument("--setting", choices=SETTINGS, nargs="+", default=list(SETTINGS))
    parser.add_argument("--steps", type=int, default=3, help="beyond the first, which is not counted (default: 3)")
    args = parser.parse_args()
    if args.device == "cpu" and not args.trl:
        parser.error("--trl PYTHON is needed: an environment with benchmarks/peers/requirements.txt")
    name = "against_peers" if args.device == "cpu" else "against_peers_cuda"
    command = f"python -m benchmarks.against_peers --device {args.device} --trl PYTHON"
    settings = [one for one in args.setting if args.trl or SETTINGS[one]["peer"] != "trl"]
    rows = kept_rows(name, {(size, trunk, one) for size in args.size for trunk in args.trunk for one in settings})
    for size in args.size:
        for trunk in args.trunk:
            with tempfile.TemporaryDirectory() as folder:
                bench = Bench(Path(folder), args.trl, args.device, size, trunk, args.branch, args.steps + 1)
                where = {"size": size, "trunk": trunk, "branch": args.branch, "commit": commit()}
                print(where, flush=True)
                for row in measure(bench, args.steps + 1, settings):
                    rows.append(where | row)
                    write_result(name, sorted(rows, key=place), command)


def agree_at_first(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, float]:
    """The relative difference of the first losses, in bf16.

    Raises:
        SystemExit: it is more than AGREE_IN_BF16.
    """
    difference = abs(ours["losses"][0] / theirs["losses"][0] - 1)
    if difference > AGREE_IN_BF16:
        raise SystemExit(f"the first losses differ: {ours['losses'][0]} and {theirs['losses'][0]}")
    return {"loss": difference}


def setting_of(row: dict[str, Any]) -> str:
    """Its name."""
    return next(name for name, one in SETTINGS.items() if all(row[key] == value for key, value in one.items()))


def place(row: dict[str, Any]) -> tuple[int, int, int]:
    """Where a row stands in the table."""
    return list(SIZES).index(row["size"]), row["trunk"], list(SETTINGS).index(setting_of(row))


def kept_rows(name: str, asked: set[tuple[str, int, str]]) -> list[dict[str, Any]]:
    """Rows of an earlier run, of other sizes, lengths and settings."""
    path = RESULTS / f"{name}.json"
    rows = json.loads(path.read_text())["measured"] if path.exists() else []
    return [row for row in rows if (row["size"], row["trunk"], setting_of(row)) not in asked]


if __name__ == "__main__":
    main()

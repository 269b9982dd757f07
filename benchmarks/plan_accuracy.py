"""Peak memory of real training runs on this machine's CPU against what was planned for them.

    python -m benchmarks.plan_accuracy [--only NAME...] [--output FILE]

Every run is training as a user starts it (torchrun, ``-m megatron_longpo.train``, two steps) on random weights and
random pairs; its last line says the most memory that a rank held, from before the model was built on, and what the
plan was. The C library hands all larger blocks back to the system at once (MALLOC_MMAP_THRESHOLD_), so that resident
memory is what tensors hold, as it is in a GPU's allocator but for gaps.
"""

import argparse
import json
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import write_result
from benchmarks.random_runs import ALLOCATOR, imported_model, run_python, write_pairs

SMALL: dict[str, Any] = {
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 8192,
}
LARGE = SMALL | {
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 12,
    "vocab_size": 32000,
}
TINY = SMALL | {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 1024}
MODELS = {"small": SMALL, "large": LARGE, "tiny": TINY}


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A training run."""

    model: str = "small"
    trunk: int = 2048
    branch: int = 256
    options: Sequence[str] = ()
    ranks: int = 1
    batch: int = 2
    """Pairs a step."""


FULL = ("--recompute-granularity", "full", "--recompute-method", "uniform", "--recompute-num-layers", "1")
CONTEXT_2, TENSOR_2 = ("--context-parallel-size", "2"), ("--tensor-model-parallel-size", "2")
DISTRIBUTED = ("--use-distributed-optimizer", "--longpo-optimizer", "rmsprop")
RUNS = {
    # What a process holds beside tensors: Python's objects, gloo's buffers, the allocator's own.
    "process, one rank": Run(model="tiny", trunk=64, branch=16),
    "process, two ranks": Run(model="tiny", trunk=64, branch=16, options=CONTEXT_2, ranks=2),
    "process, four ranks": Run(
        model="tiny", trunk=64, branch=16, options=(*CONTEXT_2, *TENSOR_2, "--sequence-parallel"), ranks=4
    ),
    "one rank": Run(),
    "one rank, full recomputation": Run(options=FULL),
    "one rank, keep-attention": Run(options=("--longpo-recompute", "keep-attention")),
    "one rank, selective": Run(options=("--recompute-granularity", "selective")),
    "one rank, RMSprop": Run(options=("--longpo-optimizer", "rmsprop")),
    "one rank, sft": Run(options=("--longpo-objective", "sft")),
    "packed": Run(trunk=1024, branch=128, batch=4, options=("--longpo-tokens-per-microbatch", "5120")),
    "cp 2": Run(trunk=4096, options=CONTEXT_2, ranks=2),
    "cp 2, all_gather, keep-attention": Run(
        trunk=4096,
        options=(
            "--context-parallel-size",
            "2",
            "--cp-comm-type",
            "all_gather",
            "--longpo-recompute",
            "keep-attention",
        ),
        ranks=2,
    ),
    "cp 2, a2a": Run(trunk=4096, options=(*CONTEXT_2, "--cp-comm-type", "a2a"), ranks=2),
    "tp 2": Run(options=(*TENSOR_2, "--sequence-parallel"), ranks=2),
    "tp 2 without sequence parallelism": Run(options=TENSOR_2, ranks=2),
    "pp 2": Run(options=("--pipeline-model-parallel-size", "2"), ranks=2),
    "dp 2, distributed optimizer": Run(options=DISTRIBUTED, ranks=2),
    "large": Run(model="large"),
    "large, short": Run(model="large", trunk=512, branch=128),
    "large, full recomputation, RMSprop": Run(
        model="large",
        trunk=4096,
        options=(
            "--recompute-granularity",
            "full",
            *["--recompute-method", "uniform", "--recompute-num-layers", "1"],
            *DISTRIBUTED[1:],
        ),
    ),
    "large, tp 2, cp 2": Run(
        model="large",
        trunk=4096,
        options=(*TENSOR_2, "--sequence-parallel", *CONTEXT_2),
        ranks=4,
    ),
    "large, cp 2, distributed optimizer": Run(model="large", options=(*CONTEXT_2, *DISTRIBUTED), ranks=2),
}


def main() -> None:
    """Run, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=RUNS, metavar="NAME", help=f"of {', '.join(RUNS)}")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/plan_accuracy.json")
    parser.add_argument("--also", type=Path, metavar="FILE", help="an --output with other runs of the same program")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = json.loads(args.also.read_text()) if args.also else []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for model in sorted({RUNS[run].model for run in args.only or RUNS}):
            imported_model(folder / model, MODELS[model])
        for run in args.only or RUNS:
            rows.append({"name": run, **asdict(RUNS[run]), **measure(folder, RUNS[run])})
            held, planned = rows[-1]["held"], rows[-1]["planned"]
            print(f"{run}: {held / 2**20:,.0f} MiB held, planned {planned / held - 1:+.1%}", flush=True)
    if args.output:
        args.output.write_text(json.dumps(rows, indent=2) + "\n")
    else:
        write_result("plan_accuracy", rows)


def measure(folder: Path, run: Run) -> dict[str, int]:
    """Bytes that a rank held and that were planned."""
    imported = folder / run.model / "imported"
    data = folder / run.model / f"{run.trunk}-{run.branch}"
    if not data.with_name(data.name + ".idx").exists():
        write_pairs(data, imported, run.trunk, run.branch, MODELS[run.model]["vocab_size"])
    objective = () if "--longpo-objective" in run.options else ("--longpo-objective", "simpo")  # needs no scores
    last = run_python(
        "torch.distributed.run", "--standalone", "--nproc-per-node", run.ranks, "-m", "megatron_longpo.train",
        "--load", imported, "--longpo-data", data, "--global-batch-size", run.batch, "--train-iters", 2, "--lr", 1e-5,
        *objective, *run.options, environment=os.environ | ALLOCATOR,
    )  # fmt: skip
    found = re.search(r"memory of a rank: ([\d.]+) GiB at most, ([\d.]+) GiB planned", last)
    assert found, last
    return {"held": int(float(found[1]) * 2**30), "planned": int(float(found[2]) * 2**30)}


if __name__ == "__main__":
    main()

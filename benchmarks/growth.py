"""How time and memory of a step grow with the trunk, and how evenly context-parallel ranks share its work.

    python -m benchmarks.growth [--trunk 1024 2048 ... 65536] [--branch 256] [--shared 8192]

A step is forward and backward of one pair through a random Mistral of two layers that keeps attention and computes all
else again. It is said to cost a * tokens + b * attended pairs of tokens: the triangle of the trunk, and of either
branch a rectangle under the trunk and a triangle of its own; its memory c + d * tokens. The four numbers are fitted to
all lengths by relative least squares, and at the shorter trunks the branches are varied too. Ranks: the FLOPs of all
operators of a step, and the bytes that they read and write.
"""

import argparse
import os
import time
from typing import Any

import numpy as np
from megatron.core import parallel_state

from benchmarks.common import on_ranks, write_result
from benchmarks.operators import Operators
from benchmarks.random_runs import ALLOCATOR
from benchmarks.recompute import peak, step
from benchmarks.small_mistral import OPTIONS, random_mistral

TRUNKS = tuple(1024 * 2**power for power in range(7))
RANKS = (1, 2, 4, 8)
SHALLOW = OPTIONS | {"num_layers": 2}
MODE = "keep-attention"


def main() -> None:
    """Measure, fit, and write the raw numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trunk", type=int, nargs="+", default=TRUNKS, help="tokens")
    parser.add_argument("--branch", type=int, default=256, help="tokens")
    parser.add_argument("--shared", type=int, default=8192, help="tokens of the trunk that ranks share")
    args = parser.parse_args()
    shapes = [(trunk, args.branch) for trunk in args.trunk]
    shapes += [(trunk, times * args.branch) for trunk in args.trunk[1:4] for times in (2, 4)]
    points = [measure(*shape) for shape in shapes]
    tokens, pairs, seconds, peaks = (
        np.array([point[name] for point in points], float)
        for name in ("tokens", "attended_pairs", "seconds", "peak_bytes")
    )
    fits = {"seconds": fit(seconds, tokens, pairs), "peak_bytes": fit(peaks, np.ones(len(points)), tokens)}
    ranks = {str(number): on_ranks(work, number, args.shared, args.branch) for number in RANKS}
    for name, one in fits.items():
        print(f"{name}: at most {one['residual']:.1%} off the fit")
    write_result("growth", {"points": points, "fits": fits, "shared": args.shared, "ranks": ranks})


def measure(trunk: int, branch: int) -> dict[str, float]:
    """A point: seconds, and peak bytes beyond model and gradients, each in a process of its own.

    For the bytes the C library hands all larger blocks back to the system, or what it keeps would be counted too.
    """
    pairs = trunk * (trunk + 1) / 2 + 2 * (branch * trunk + branch * (branch + 1) / 2)
    point = {"trunk": trunk, "branch": branch, "tokens": trunk + 2 * branch, "attended_pairs": pairs}
    point["seconds"] = on_ranks(least_seconds, 1, trunk, branch)[0]
    os.environ.update(ALLOCATOR)
    point["peak_bytes"] = on_ranks(peak, 1, MODE, trunk, branch, SHALLOW)[0]
    for name in ALLOCATOR:
        del os.environ[name]
    print(point, flush=True)
    return point


def least_seconds(trunk: int, branch: int) -> float:
    """Of a few steps, after one that is not counted."""
    model = random_mistral(options=SHALLOW)
    step(model, MODE, min(trunk, 4096), branch)
    seconds: list[float] = []
    while not seconds or (len(seconds) < 5 and sum(seconds) < 30):
        began = time.perf_counter()
        step(model, MODE, trunk, branch)
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def fit(values: np.ndarray, *terms: np.ndarray) -> dict[str, Any]:
    """Coefficients of the terms by relative least squares, and the largest relative deviation."""
    matrix = np.stack(terms, axis=1) / values[:, None]
    coefficients, *_ = np.linalg.lstsq(matrix, np.ones(len(values)), rcond=None)
    return {"coefficients": coefficients.tolist(), "residual": float(np.abs(matrix @ coefficients - 1).max())}


def work(trunk: int, branch: int) -> dict[str, int]:
    """FLOPs and bytes of this rank's part of a step."""
    model = random_mistral(parallel_state.get_context_parallel_world_size(), SHALLOW)
    with Operators() as operators:
        step(model, MODE, trunk, branch)
    return {
        "flops": sum(one.flops for one in operators.seen),
        "bytes": sum(one.num_bytes for one in operators.seen),
    }


if __name__ == "__main__":
    main()

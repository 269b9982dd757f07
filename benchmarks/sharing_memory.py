"""Peak memory of a pair's step, as two full passes and as one shared pass, forward and backward; no recomputation.

    python -m benchmarks.sharing_memory [--trunk 4096 8192] [--branch 256] [--ranks 1 2]

Both sides are those of benchmarks/sharing.py, which shows that they compute the same and times them. The peak is that
of one rank, in a fresh process, beyond model and gradients.
"""

import argparse

from megatron.core import parallel_state

from benchmarks.common import on_ranks, peak_bytes, write_result
from benchmarks.sharing import shared, two_passes
from benchmarks.small_mistral import random_mistral


def main() -> None:
    """Measure and write the raw numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trunk", type=int, nargs="+", default=[4096, 8192], help="tokens")
    parser.add_argument("--branch", type=int, default=256, help="tokens")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2], help="context-parallel ranks")
    args = parser.parse_args()
    rows = []
    for trunk in args.trunk:
        for num_ranks in args.ranks:
            sides = {
                side: max(on_ranks(peak, num_ranks, side, trunk, args.branch)) for side in ("two_passes", "shared")
            }
            rows.append({"trunk": trunk, "branch": args.branch, "num_ranks": num_ranks, "peak_bytes": sides})
            peaks = ", ".join(f"{side} {found / 2**20:,.0f} MiB" for side, found in sides.items())
            print(f"trunk {trunk}, branches {args.branch}, cp {num_ranks}: {peaks} a rank", flush=True)
    write_result("sharing_memory", rows)


def peak(side: str, trunk: int, branch: int) -> int:
    """Bytes, on this rank."""
    group = parallel_state.get_context_parallel_group()
    model = random_mistral(group.size())

    def step(trunk: int, branch: int) -> None:
        loss = shared(model, trunk, branch) if side == "shared" else two_passes(model, trunk, branch, group)
        loss.backward()

    step(64, 16)  # load kernels and threads, make the gradients
    return peak_bytes(lambda: step(trunk, branch))


if __name__ == "__main__":
    main()

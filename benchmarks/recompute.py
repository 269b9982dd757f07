"""Time and peak memory of a step without recomputation, with full recomputation, and with one that keeps attention.

    python -m benchmarks.recompute [--trunk 8192] [--branch 256] [--repeats 5]

One pair through a random 30M-parameter Mistral, forward and backward. The times are taken in turn in one process, after
the gradients of the three have been found equal to the bit; the peaks in a fresh process each: the largest resident
size during the step, less that before it.
"""

import argparse
import statistics
import time
from typing import Any

import torch
from megatron.core.models.gpt.gpt_model import GPTModel

from benchmarks.common import on_ranks, peak_bytes, write_result
from benchmarks.small_mistral import OPTIONS, random_mistral, random_pair, shared_pass

MODES = ("none", "full", "keep-attention")


def main() -> None:
    """Measure and write the raw numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trunk", type=int, default=8192, help="tokens")
    parser.add_argument("--branch", type=int, default=256, help="tokens")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    seconds = on_ranks(times, 1, args.trunk, args.branch, args.repeats)[0]
    ratios = [full / kept for full, kept in zip(seconds["full"], seconds["keep-attention"], strict=True)]
    peaks = {mode: on_ranks(peak, 1, mode, args.trunk, args.branch)[0] for mode in MODES}
    for mode in MODES:
        print(f"{mode:15} median {statistics.median(seconds[mode]):.2f} s, peak {peaks[mode] / 2**20:,.0f} MiB")
    print(f"full / keep-attention: median {statistics.median(ratios):.3f}, {min(ratios):.3f} to {max(ratios):.3f}")
    write_result(
        "recompute",
        {
            "trunk": args.trunk,
            "branch": args.branch,
            "seconds": seconds,
            "ratios": ratios,
            "median_ratio": statistics.median(ratios),
            "peak_bytes": peaks,
        },
    )


def times(trunk: int, branch: int, repeats: int) -> dict[str, list[float]]:
    """Seconds of each step, by mode.

    Raises:
        RuntimeError: the gradients of two modes differ.
    """
    model = random_mistral()
    first: list[torch.Tensor] = []
    for mode in MODES:
        step(model, mode, trunk, branch)
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        first = first or gradients
        if not all(torch.equal(one, other) for one, other in zip(first, gradients, strict=True)):
            raise RuntimeError(f"the gradients of {mode} are not those of {MODES[0]}: nothing to time")
    found: dict[str, list[float]] = {mode: [] for mode in MODES}
    for _ in range(repeats):
        for mode in MODES:
            start = time.perf_counter()
            step(model, mode, trunk, branch)
            torch.cuda.synchronize()
            found[mode].append(time.perf_counter() - start)
    return found


def peak(mode: str, trunk: int, branch: int, options: dict[str, Any] = OPTIONS) -> int:
    """Of one step, beyond model and gradients."""
    model = random_mistral(options=options)
    step(model, mode, 64, 16)  # load kernels and threads, make the gradients
    return peak_bytes(lambda: step(model, mode, trunk, branch))


def step(model: GPTModel, mode: str, trunk: int, branch: int) -> None:
    """Forward and backward; leaves the gradients in the model."""
    config: Any = model.config
    config.recompute_granularity = None if mode == "none" else "full"
    config.recompute_method, config.recompute_num_layers = "uniform", 1
    model.zero_grad(set_to_none=False)
    shared_pass(model, random_pair(trunk, branch), keep_attention=mode == "keep-attention").backward()


if __name__ == "__main__":
    main()

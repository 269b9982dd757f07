"""Peak memory of the log-prob head beyond its inputs and gradients, from 1K to 64K tokens.

    python -m benchmarks.logprob_memory [--vocab 32768] [--hidden 64] [--tokens 1024 4096 16384 65536]

Each length runs in a fresh process. "Beyond": the peak resident size during forward and backward, less the resident
size before, less what must exist at any rate: the gradients of the hidden states and of the weight. The plain way,
log_softmax over the whole logits, stands beside it where it fits.
"""

import argparse

import torch
import torch.distributed as dist

from benchmarks.common import on_ranks, peak_bytes, write_result
from megatron_longpo.model.logprob import token_logprobs

LARGEST_PLAIN = 16384
"""Tokens; beyond, the plain way needs more memory than a small machine has."""


def main() -> None:
    """Measure every length and write the raw numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", type=int, default=32768)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 4096, 16384, 65536])
    args = parser.parse_args()
    rows = []
    for tokens in args.tokens:
        row = {"tokens": tokens, "vocab": args.vocab, "hidden": args.hidden}
        for side in ("head", "plain") if tokens <= LARGEST_PLAIN else ("head",):
            row[side] = on_ranks(beyond_gradients, 1, side, tokens, args.vocab, args.hidden)[0]
        rows.append(row)
        print("  ".join(f"{name} {value:,}" for name, value in row.items()), flush=True)
    head = [row["head"] for row in rows]
    spread = max(head) / min(head) - 1
    print(f"head: {min(head) / 2**20:.0f} to {max(head) / 2**20:.0f} MiB, spread {spread:.1%}")
    write_result("logprob_memory", {"bytes_beyond_inputs_and_gradients": rows, "head_spread": spread})


def beyond_gradients(side: str, tokens: int, vocab: int, hidden: int) -> int:
    """Bytes beyond inputs and gradients."""
    torch.manual_seed(0)
    states = torch.randn(tokens, 1, hidden, requires_grad=True)
    weight = torch.randn(vocab, hidden, requires_grad=True)
    labels, rows = torch.randint(vocab, (tokens,)), torch.arange(tokens)
    _run(side, states[:8], weight[:16], labels[:8] % 16, rows[:8])  # load kernels and threads before counting
    states.grad = weight.grad = None
    gradients = (states.numel() + weight.numel()) * 4
    return peak_bytes(lambda: _run(side, states, weight, labels, rows)) - gradients


def _run(side: str, states: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, rows: torch.Tensor) -> None:
    if side == "head":
        logp = token_logprobs(
            states, weight, rows, labels, weight.shape[0], dist.distributed_c10d._get_default_group(), False
        )
    else:
        logp = (states[:, 0] @ weight.t()).float().log_softmax(-1).gather(1, labels[:, None])
    logp.sum().backward()


if __name__ == "__main__":
    main()

"""The options that training has besides Megatron's own."""

import argparse

from megatron_longpo.model.kernels import AUTO, NAMES
from megatron_longpo.objective.objectives import OBJECTIVES, OPTIONS, default_text, option_name
from megatron_longpo.reference.options import add_reference_options


def add_longpo_options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add and return the group ``LongPO``."""
    group = parser.add_argument_group("LongPO")
    group.add_argument("--longpo-data", metavar="PREFIX", help="dataset that `megatron-longpo build` wrote")
    add_reference_options(group.add_argument)
    group.add_argument(
        "--longpo-objective",
        choices=OBJECTIVES,
        default="longpo",
        metavar="NAME",
        help=f"what is trained (default: longpo): {', '.join(OBJECTIVES)}; see docs/objectives.md",
    )
    for name, option in OPTIONS.items():
        text = f"{option.help} (default: {default_text(name)})"
        group.add_argument(option_name(name), type=float, metavar="X", help=text)
    group.add_argument(
        "--longpo-nll-tokens",
        choices=("all", "response"),
        help="NLL over every predicted token of trunk + first branch, or over that branch's response tokens only "
        "(default: all; response where --longpo-nll-coef is 0, so that no token is scored for a number alone)",
    )
    group.add_argument(
        "--longpo-recompute",
        choices=("keep-attention",),
        help="recompute every layer in the backward pass but keep attention's output, its dearest part",
    )
    group.add_argument(
        "--longpo-attention-kernel",
        choices=NAMES,
        default=AUTO,
        metavar="NAME",
        help=f"{', '.join(NAMES)} (default: auto, the first that runs here and is right on a small case)",
    )
    group.add_argument(
        "--longpo-tokens-per-microbatch",
        type=int,
        metavar="N",
        help="let pairs share a micro-batch of at most N tokens, over all context-parallel ranks (default: one pair)",
    )
    group.add_argument(
        "--longpo-trunk-multiple",
        type=int,
        metavar="N",
        help="pad every trunk to a multiple of N tokens (default: 1, or for Transformer Engine and the kernel "
        "cudnn, which plan for every length, what leaves 128 lengths at most)",
    )
    group.add_argument(
        "--longpo-rope-scaling",
        metavar="JSON",
        help="RoPE scaling of the policy, as rope_scaling of a config.json: default, linear, llama3 or yarn (default: "
        "the checkpoint's); the base is --rotary-base",
    )
    group.add_argument(
        "--longpo-optimizer",
        choices=("rmsprop",),
        help="torch's RMSprop in the place of Megatron's Adam; its epsilon is --adam-eps, its --weight-decay (default "
        "here: 0) is added to the gradient",
    )
    group.add_argument(
        "--longpo-rmsprop-alpha",
        type=float,
        metavar="ALPHA",
        help="decay of the squared gradient's mean (default: 0.99)",
    )
    group.add_argument(
        "--longpo-skip-steps",
        type=int,
        default=0,
        metavar="N",
        help="leave steps out whose loss or gradient is not finite, so many in a start of the program, and name their "
        "pairs (default: 0, stop at the first)",
    )
    group.add_argument(
        "--longpo-peak-tflops",
        type=float,
        metavar="X",
        help="TFLOP/s of a GPU at its best, of which MFU is the share that is reached (default: that of H100, H200, "
        "A100 and B200 in bf16, by the device's name; elsewhere MFU is left out)",
    )
    group.add_argument("--longpo-metrics", metavar="FILE", help="append a JSON line a step, as always in --save")
    group.add_argument(
        "--longpo-allow-changes",
        action="store_true",
        help="go on from a checkpoint of this run with another dataset, reference, objective, batch size or seed",
    )
    return group

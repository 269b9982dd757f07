"""``megatron-longpo score-reference``: reference log-probs of a dataset, in one process (reference/score.py)."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of reference/score.py."""
    from megatron_longpo.reference import score

    score.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Score in this process; for many ranks start ``-m megatron_longpo.reference.score`` under torchrun."""
    from megatron_longpo.reference import score

    return score.run(args)

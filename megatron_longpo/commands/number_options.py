"""Numbers on the command line that several verbs take, held against what they may be."""

import argparse

from megatron_longpo.errors import UserError


def require_at_least_1(args: argparse.Namespace, *names: str) -> None:
    """Raise UserError for the first option that is given and below 1."""
    for name in names:
        if vars(args)[name] is not None and vars(args)[name] < 1:
            raise UserError(f"--{name.replace('_', '-')} {vars(args)[name]}: needs at least 1")


def require_seconds(args: argparse.Namespace, *names: str) -> None:
    """Raise UserError for the first option that is no time: not above 0, infinite, or no number."""
    for name in names:
        if not 0 < vars(args)[name] < float("inf"):
            raise UserError(f"--{name.replace('_', '-')} {vars(args)[name]}: needs more than 0 seconds")

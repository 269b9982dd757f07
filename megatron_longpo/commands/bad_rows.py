"""Rows that cannot be used: ``--bad-rows refuse|skip``. What is left out is counted and named, never silently."""

import argparse
import sys
from typing import Literal

from megatron_longpo.errors import UserError

_MOST_NAMED = 20
"""So many are named on the terminal; all others are the gaps in the numbers of the kept pairs."""


def add_bad_rows_option(parser: argparse.ArgumentParser) -> None:
    """``--bad-rows``."""
    parser.add_argument(
        "--bad-rows",
        choices=("refuse", "skip"),
        default="refuse",
        help="a row that cannot be used: stop; leave it out, count it and say why (default: refuse); files that cannot"
        " be read are always refused, pairs over the limit are a matter of --overlong",
    )


class BadRows:
    """The bad rows met so far."""

    def __init__(self, policy: Literal["refuse", "skip"]) -> None:
        self._policy = policy
        self._named: list[str] = []
        self.count = 0

    def add(self, error: UserError) -> None:
        """Take note of a row; raises ``error``, which names it, where bad rows are refused."""
        if self._policy == "refuse":
            raise error
        self.count += 1
        if len(self._named) < _MOST_NAMED:
            self._named.append(str(error))

    def print_report(self, verb: str) -> None:
        """Say on stderr how many were left out, and why the first of them."""
        if not self.count:
            return
        rows = "1 bad row" if self.count == 1 else f"{self.count:,} bad rows"
        lines = [f"megatron-longpo {verb}: left out {rows}:", *(f"  {one}" for one in self._named)]
        if self.count > len(self._named):
            lines.append(f"  and {self.count - len(self._named):,} more: the numbers that no kept pair (row-N) has")
        print("\n".join(lines), file=sys.stderr)

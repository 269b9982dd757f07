"""What ``--help`` and a mistake on the command line look like: Megatron has 800 options, and they are not ours."""

import argparse
from typing import Any, NoReturn

from megatron_longpo.console import say
from megatron_longpo.errors import UserError


class _Formatter(argparse.HelpFormatter):
    """Shows a help text as it stands where it is no format: Megatron's own hold a bare ``%``."""

    def _expand_help(self, action: argparse.Action) -> str:
        try:
            return super()._expand_help(action)
        except (ValueError, TypeError, KeyError):
            return action.help or ""


def prepare(parser: argparse.ArgumentParser, ours: Any) -> None:
    """Put our group of options first, add those of this module, and let a mistake be a UserError of one line."""
    ours.add_argument("--longpo-verbose", action="store_true", help="show all that Megatron prints, and tracebacks")
    groups = parser._action_groups  # argparse has no other way to reorder them
    groups.insert(0, groups.pop(groups.index(ours)))
    parser.prog, parser.formatter_class = "megatron_longpo.train", _Formatter
    parser.usage = (
        "torchrun ... -m megatron_longpo.train --load DIR --longpo-data PREFIX --global-batch-size N [options]"
    )
    parser.error = _refuse  # type: ignore[method-assign]
    parser.print_help = lambda *_: say(parser.format_help())  # type: ignore[method-assign]


def _refuse(message: str) -> NoReturn:
    raise UserError(message)

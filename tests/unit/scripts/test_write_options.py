"""docs/options.md is what the parsers say, and an option without a help text is one of training."""

import argparse

from megatron_longpo.commands.main import VERBS, verb_parser
from scripts.write_options import PAGE, actions, page, steps, table, training_parser


def test_the_committed_page_is_that_of_the_parsers() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "renew it with: python -m scripts.write_options"


def test_an_option_without_help_is_one_of_training() -> None:
    training = {name for _, action in actions(training_parser()) for name in action.option_strings}
    parsers = [verb_parser(verb) for verb in VERBS]
    parsers += [step for parser in parsers for step in steps(parser).values()]
    bare = {name for one in parsers for _, action in actions(one) if not action.help for name in action.option_strings}
    assert bare and bare <= training


def test_a_table() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folders", nargs="+", help="one | many")
    parser.add_argument("--name", required=True, metavar="N", help="like `a|b*`, not *")
    parser.add_argument("--size", type=int, default=3)
    parser.add_argument("--kind", choices=("a", "b"), default="a", help="the kind (default: %(default)s)")
    parser.add_argument("--check", action=argparse.BooleanOptionalAction)
    parser.add_argument("--hidden", help=argparse.SUPPRESS)
    group = parser.add_argument_group("Others")
    group.add_argument("--two", nargs=2, metavar=("A", "B"), help="100%%")
    assert table(parser).splitlines()[2:] == [
        "| `FOLDERS ...` | one \\| many |",
        "| `--name N` | like `a\\|b*`, not \\* (needed) |",
        "| `--size SIZE` | as in training (default: 3) |",
        "| `--kind {a,b}` | the kind (default: a) |",
        "| `--check, --no-check` | as in training |",
        "| `--two A B` | 100% |",
    ]
    assert table(parser, "Others").count("\n") == 3

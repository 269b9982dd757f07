"""``megatron-longpo evaluate report``: tables, differences and plots of what ``evaluate run`` wrote."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the step."""
    parser.add_argument("output", type=Path, metavar="DIR", help="folder that evaluate run wrote (its --output)")
    parser.add_argument(
        "--models",
        type=_names,
        metavar="NAME,...",
        help="which models, in which order; the others are compared with the first (default: all, as evaluate run "
        "was given them)",
    )
    parser.add_argument(
        "--published",
        type=_names,
        default=["all"],
        metavar="all|none|NAME,...",
        help="rows of LongPO's own model card to stand beside them (default: all)",
    )


def run(options: argparse.Namespace) -> None:
    """Write report.md, report.json and report.html into the folder and print the first."""
    from megatron_longpo.evaluate.report.report import write_report  # jinja2 and matplotlib are slow to import

    print(write_report(options.output, options.models, options.published), end="")


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]

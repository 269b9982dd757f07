"""Write docs/options.md, every option of every verb and of training: ``python -m scripts.write_options``.

tests/unit/scripts/test_write_options.py holds the page to the parsers.
"""

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

from megatron_longpo import platform
from megatron_longpo.commands.main import VERBS, verb_parser
from megatron_longpo.quiet import quiet_libraries

PAGE = Path(__file__).resolve().parents[1] / "docs" / "options.md"

HEAD = """# Every option

Written from the parsers by `python -m scripts.write_options`. *As in training* is an option that training has too, with
the same meaning. In a recipe of [launch](launch.md) the options are keys, without their hyphens in front.
"""
TRAINING = """## Training

`torchrun ... -m megatron_longpo.train`: {usage}

These are the options that this package adds; [training](training.md) and [objectives](objectives.md) explain them.

{table}
All other options are Megatron's own, about {megatron} of them. Behind ours they are listed by

    python -m megatron_longpo.train --help
"""


def main() -> None:
    """Write the page."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    quiet_libraries()
    PAGE.write_text(page(), encoding="utf-8")


def page() -> str:
    """The whole page."""
    training = _training()  # first, or another parser would bring Megatron, and say that there is no GPU
    return "\n".join((HEAD, *map(_verb, VERBS), training))


def training_parser() -> argparse.ArgumentParser:
    """The parser of training, Megatron's options and ours."""
    platform.activate(announce=False)  # before Megatron is imported
    from megatron_longpo.arguments.parse import training_parser as made

    return made()


def actions(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.Action]]:
    """The heading and the action of every option of a parser, in the order of its help."""
    # argparse has no other way to ask.
    for group in parser._action_groups:
        for action in group._group_actions:
            is_shown = action.dest != "help" and action.help != argparse.SUPPRESS
            if is_shown and not isinstance(action, argparse._SubParsersAction):
                yield group.title or "", action


def steps(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parsers of the steps of a verb that has steps."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def _verb(name: str) -> str:
    parser = verb_parser(name)
    parts = [f"## {parser.prog}\n\n{VERBS[name][0].upper()}{VERBS[name][1:]}.\n"]
    for step, its_parser in steps(parser).items():
        parts.append(f"### {parser.prog} {step}\n\n{its_parser.description}\n\n{table(its_parser)}")
    return "\n".join(parts if steps(parser) else (*parts, table(parser)))


def _training() -> str:
    parser = training_parser()
    num_megatron = sum(group != "LongPO" for group, _ in actions(parser))
    usage = f"{_code(str(parser.usage).partition('train ')[2])}."
    return TRAINING.format(usage=usage, table=table(parser, "LongPO"), megatron=num_megatron // 100 * 100)


def table(parser: argparse.ArgumentParser, only: str = "") -> str:
    """The options of a parser, or of one group of it, as Markdown."""
    rows = [
        f"| {_code(_written(action))} | {_meaning(action)} |"
        for group, action in actions(parser)
        if only in ("", group)
    ]
    return "\n".join(("| option | what it does |", "|---|---|", *rows)) + "\n"


def _written(action: argparse.Action) -> str:
    """An option with its values, as on a command line."""
    if isinstance(action, argparse.BooleanOptionalAction):
        return ", ".join(action.option_strings)
    name = max(action.option_strings, key=len, default="")
    value = action.metavar or (f"{{{','.join(map(str, action.choices))}}}" if action.choices else action.dest.upper())
    if action.nargs == 0:
        return name
    value = " ".join(value) if isinstance(value, tuple) else value
    many = {"+": f"{value} ...", "*": f"[{value} ...]", "?": f"[{value}]"}
    return f"{name} {many.get(str(action.nargs), value)}".strip()


def _meaning(action: argparse.Action) -> str:
    """Its help, and its default where that does not say it."""
    text = (action.help or "as in training") % vars(action)
    shown = " ".join(map(str, action.default)) if isinstance(action.default, list | tuple) else action.default
    if action.required and action.option_strings:
        text += " (needed)"
    elif action.nargs != 0 and shown not in (None, "") and "default" not in text:
        text += f" (default: {shown})"
    # Stars and angles are no Markdown here, but for what stands in backquotes; a bar is never a border of the table.
    parts = re.split(r"(`[^`]*`)", text.replace("|", "\\|"))
    return "".join(part if part[:1] == "`" else re.sub(r"([*<])", r"\\\1", part) for part in parts)


def _code(text: str) -> str:
    return f"`{text.replace('|', chr(92) + '|')}`"


if __name__ == "__main__":
    main()

"""The commands in the pages and examples have the options that the programs have, and the pages have all of ours."""

import argparse
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_longpo.commands.main import VERBS
from megatron_longpo.objective.objectives import OBJECTIVES, OPTIONS, option_name

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "examples").glob("*/README.md"))]


def commands() -> Iterator[list[str]]:
    """Every ``megatron-longpo VERB ...`` at the start of a line of a page, as words; continued lines are joined."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for command in re.findall(r"^ *(megatron-longpo [a-z-]+(?: [\w./-]+)? --?\w.*)$", text, re.MULTILINE):
            yield shlex.split(command, comments=True)


def our_options() -> set[str]:
    """The options of training that start with ``--longpo``."""
    found = {option_name(name) for name in OPTIONS}
    for path in (ROOT / "megatron_longpo").rglob("*.py"):
        source = path.read_text(encoding="utf-8")
        found |= set(re.findall(r"(?:^ +|add\w*\()\"(--longpo-[a-z-]+)\",", source, re.MULTILINE))
    return found


@pytest.mark.parametrize("words", list(commands()), ids=" ".join)
def test_a_documented_command_is_read(words: list[str]) -> None:
    _, verb, *options = words
    assert verb in VERBS
    parser = argparse.ArgumentParser(exit_on_error=False)
    importlib.import_module(f"megatron_longpo.commands.{verb.replace('-', '_')}").add_arguments(parser)
    parser.parse_args(options)


def test_the_pages_have_a_command_of_every_verb() -> None:
    assert {words[1] for words in commands()} == set(VERBS)


def test_the_training_page_has_our_options_and_no_others() -> None:
    options = our_options()
    assert len(options) > 10
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    table = "\n".join(line for line in page.splitlines() if line.startswith("| `--longpo"))
    assert set(re.findall(r"--longpo-[a-z-]+", table)) == options


def test_no_page_and_no_example_has_an_option_of_training_that_is_not_there() -> None:
    texts = [*PAGES, *(path for path in (ROOT / "examples").rglob("*") if path.suffix in (".sh", ".py", ".sbatch"))]
    found = {option for path in texts for option in re.findall(r"--longpo-[a-z-]+\b", path.read_text(encoding="utf-8"))}
    assert found <= our_options()


def test_the_page_of_objectives_has_them_all() -> None:
    page = (ROOT / "docs" / "objectives.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `([a-z-]+)`", page, re.MULTILINE)) == set(OBJECTIVES)

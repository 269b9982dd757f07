"""The commands in the pages and examples have the options that the programs have, and the pages have all of ours."""

import argparse
import functools
import itertools
import re
import shlex
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser

from megatron_longpo.commands.main import VERBS, verb_parser
from megatron_longpo.errors import UserError
from megatron_longpo.objective.objectives import OBJECTIVES, OPTIONS, option_name
from scripts.write_options import training_parser

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    *(ROOT / "README.md", ROOT / "CONTRIBUTING.md"),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "examples").glob("*/README.md")),
]

RUN_BY = {
    "launch": "tests/integration/test_launch.py",
    "generate": "tests/integration/test_generate.py",
    "build": "tests/workspace.py",
    "import-data": "tests/unit/commands/test_import_data.py",
    "inspect": "tests/unit/commands/test_inspect.py",
    "import-hf": "tests/workspace.py",
    "export-hf": "tests/integration/test_train.py",
    "score-reference": "tests/workspace.py",
    "plan": "tests/unit/plan/test_plan.py",
    "report": "tests/unit/report/test_page.py",
    "evaluate": "tests/integration/test_evaluate_scripts.py",
}
"""Verb -> what runs it, on small models and without a GPU. The commands of the pages themselves are parsed here."""

NOT_PARSED = {
    "megatron-longpo --help": "tests/test_help.py runs it",
    "pip": "needs a package registry",
    "uv": "needs a package registry",
    "vllm/bin/vllm": "needs a GPU, and vLLM",
    "APEX_CPP_EXT=1": "needs CUDA's compiler",
    "export": "a setting of the shell",
    "source": "the shell's own",
    "OMP_NUM_THREADS=1 pytest": "pytest's own options",
}
"""How a command of a page begins that none of our parsers reads -> why; what has run on a GPU: docs/gpu-status.md."""

NEEDS_GPUS = re.compile(r"--nproc-per-node 8|--preset |vllm serve|megatron-longpo launch (?!--list|--dry-run).*toml")
"""In a command that no machine without GPUs can do."""
BLOCK = re.compile(r"^ *```bash\n(.*?)^ *```", re.MULTILINE | re.DOTALL)


def commands() -> Iterator[list[str]]:
    """The words of every command of the pages, in ```bash blocks and in indented ones; continued lines are joined."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        blocks = BLOCK.findall(text)
        blocks += re.findall(r"^    (?:megatron-longpo|torchrun|python -m|make|export) .*$", text, re.MULTILINE)
        for line in "\n".join(blocks).splitlines():
            words = shlex.split(line, comments=True)
            for is_and, part in itertools.groupby(words, "&&".__eq__):
                if not is_and:
                    yield list(part)


COMMANDS = list({" ".join(words): words for words in commands()}.values())


@functools.cache
def parser_of(module: str) -> argparse.ArgumentParser:
    """The parser of a program that runs under torchrun."""
    return training_parser() if module == "megatron_longpo.train" else verb_parser("score-reference")


def targets() -> set[str]:
    """The targets of the Makefile."""
    return set(re.findall(r"^([a-z-]+[a-z0-9-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def our_options() -> set[str]:
    """The options of training that start with ``--longpo``."""
    found = {option_name(name) for name in OPTIONS}
    for path in (ROOT / "megatron_longpo").rglob("*.py"):
        source = path.read_text(encoding="utf-8")
        found |= set(re.findall(r"(?:^ +|add\w*\()\"(--longpo-[a-z-]+)\",", source, re.MULTILINE))
    return found


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_documented_command_is_read(words: list[str]) -> None:
    if any(" ".join(words).startswith(f"{known} ") or " ".join(words) == known for known in NOT_PARSED):
        return
    match words:
        case ["megatron-longpo", verb, *options]:
            verb_parser(verb).parse_args(options)
        case ["torchrun", *options]:
            torchrun = get_args_parser().parse_args(options)
            assert torchrun.module and find_spec(torchrun.training_script)
            parser_of(torchrun.training_script).parse_args(torchrun.training_script_args)
        case ["python", "-m", module, *_]:
            assert find_spec(module)  # its options are those of its --help (tests/test_help.py)
        case ["make", *asked]:
            assert {word for word in asked if "=" not in word} <= targets()
        case [option, *_] if option.startswith("--"):  # options of training alone
            training_parser().parse_args(words)
        case _:
            raise AssertionError(f"no parser reads {' '.join(words)!r}, and NOT_PARSED does not say why")


def test_a_command_that_needs_gpus_says_so() -> None:
    blocks = [block for page in PAGES for block in BLOCK.findall(page.read_text(encoding="utf-8"))]
    need = [block for block in blocks if NEEDS_GPUS.search(block)]
    assert len(need) > 5 and [block for block in need if not re.search(r"# .*GPU", block)] == []


def test_an_option_that_is_not_there_would_be_found() -> None:
    for wrong in (["megatron-longpo", "build", "--inputs", "x"], ["torchrun", "-m", "megatron_longpo.train", "--bf61"]):
        with pytest.raises((SystemExit, UserError)):
            test_a_documented_command_is_read(wrong)


def test_programs_and_targets_in_the_text_are_there() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    modules = set(re.findall(r"python -m ([a-z_][a-z0-9_]*(?:\.[a-z0-9_]+)*)\b(?!\.[A-Z])", text))
    assert len(modules) > 20 and {module for module in modules if not find_spec(module)} == set()
    assert set(re.findall(r"`make ([a-z][a-z0-9-]*)", text)) <= targets()


def test_the_pages_have_a_command_of_every_verb_and_a_test_runs_it() -> None:
    assert {words[1] for words in COMMANDS if words[0] == "megatron-longpo"} - {"--help"} == set(VERBS) == set(RUN_BY)
    for verb, file in RUN_BY.items():
        assert f'"{verb}"' in (ROOT / file).read_text(encoding="utf-8"), (verb, file)


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

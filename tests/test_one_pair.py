"""docs/one-pair.md names real functions, in the order of the layers, and counts them right.

tests/integration/test_one_pair.py holds the order against a real step.
"""

import ast
import re
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = ("data", "model", "objective")
"""In the order in which a pair passes them; files outside these folders call into several."""


def sections() -> list[list[str]]:
    """The functions of each section of the page, in its order."""
    page = (ROOT / "docs" / "one-pair.md").read_text(encoding="utf-8")
    found = [re.findall(r"^\d+\. `([\w.]+)`", section, re.MULTILINE) for section in page.split("\n## ")]
    return [names for names in found if names]


def definitions(name: str) -> tuple[Path, list[str]]:
    """The file that a dotted name lies in, and the names to look for in it, outermost first."""
    parts = name.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        path = ROOT.joinpath("megatron_longpo", *parts[:cut]).with_suffix(".py")
        if path.is_file():
            return path, parts[cut:]
    raise AssertionError(f"docs/one-pair.md: {name} is in no file of the package")


def is_defined(path: Path, names: list[str]) -> bool:
    """Whether the file defines this function, or this method of a class."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    for name in names:
        found = [node for node in body if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name]
        if not found:
            return False
        body = found[0].body
    return True


@pytest.mark.parametrize("name", [name for names in sections() for name in names])
def test_the_function_is_there(name: str) -> None:
    assert is_defined(*definitions(name))


@pytest.mark.parametrize("name", ["data.pair.parse", "data.indexed.PairWriter.append"])
def test_a_function_that_is_not_there_would_be_found(name: str) -> None:
    assert not is_defined(*definitions(name))


def test_the_steps_are_numbered_one_after_the_other() -> None:
    page = (ROOT / "docs" / "one-pair.md").read_text(encoding="utf-8")
    numbers = [int(number) for number in re.findall(r"^(\d+)\. ", page, re.MULTILINE)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) == sum(map(len, sections()))


def test_the_pair_passes_the_layers_in_order_and_back_again() -> None:
    *forward, backward = [[name.split(".")[0] for name in names] for names in sections()]
    ranks = [LAYERS.index(layer) for layers in forward for layer in layers if layer in LAYERS]
    assert all(before <= after for before, after in pairwise(ranks)) and set(ranks) == {0, 1, 2}
    assert set(backward) == {"model"}


def test_the_page_counts_what_a_pair_passes() -> None:
    names = [name for part in sections() for name in part]
    page = (ROOT / "docs" / "one-pair.md").read_text(encoding="utf-8")
    assert f"passed {len(names)} functions in {len({definitions(name)[0] for name in names})} files" in page

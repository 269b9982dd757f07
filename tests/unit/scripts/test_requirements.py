"""requirements.txt: all of setup.py's requirements, pinned to versions that they allow, by hash, from anywhere."""

import ast
import re
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[3]
NOT_LOCKED = {"gpu", "evaluate"}  # Transformer Engine is compiled against the torch at hand; lm-eval is the user's


def lists_of_setup() -> dict[str, Any]:
    """REQUIREMENTS and EXTRAS of setup.py."""
    return {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in ast.parse((ROOT / "setup.py").read_text(encoding="utf-8")).body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and node.targets[0].id in ("REQUIREMENTS", "EXTRAS")
    }


def requirements() -> list[Requirement]:
    """Of the package and of the extras that the checkout uses."""
    lists = lists_of_setup()
    extras = [entry for name, entries in lists["EXTRAS"].items() if name not in NOT_LOCKED for entry in entries]
    return [Requirement(entry) for entry in (*lists["REQUIREMENTS"], *extras)]


def locked() -> dict[str, list[str]]:
    """Name -> [its line, its hashes]: an entry is a line and those that follow a backslash."""
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    plain = re.sub(r" *#.*", "", text)
    entries = [entry.split(" \\\n") for entry in re.split(r"\n(?=\S)", plain.strip())]
    return {canonicalize_name(entry[0].partition("==")[0]): entry for entry in entries}


def test_every_requirement_is_locked_at_a_version_that_it_allows() -> None:
    pins = locked()
    for requirement in requirements():
        version = re.match(r"\S+==(\S+)", pins[canonicalize_name(requirement.name)][0])
        assert version, requirement
        assert requirement.specifier.contains(version[1]), (str(requirement), version[1])


def test_every_package_has_hashes_and_nothing_else() -> None:
    pins = locked()
    assert len(pins) > 100
    for line, *hashes in pins.values():
        assert re.fullmatch(r"[\w.-]+==[\w.!+]+( ; .*)?", line)
        assert hashes
        assert all(re.fullmatch(r" *--hash=sha256:[0-9a-f]{64}\s*", part) for part in hashes), line


def test_the_file_says_how_to_renew_it_and_names_no_place() -> None:
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    assert "#    make lock\n" in text[:200]
    assert not re.search(r"://|index|find-links|file:", re.sub(r"# via .*", "", text))


def test_uv_can_be_cut_out_as_the_set_up_does() -> None:
    inside = re.search(r"^uv==.*?[^\\]$", (ROOT / "requirements.txt").read_text(encoding="utf-8"), re.M | re.S)
    assert inside
    assert inside[0].count("--hash") > 5
    assert inside[0].count("==") == 1

"""What the site makes of a page, and that `make check` refuses one whose links lead nowhere."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from scripts.site_hooks import on_page_markdown

ROOT = Path(__file__).resolve().parents[3]
PAGE = SimpleNamespace(file=SimpleNamespace(src_uri="results.md"))


def test_a_link_out_of_the_folder_becomes_a_path() -> None:
    page = "[one](../examples/x/README.md) [two](data.md#a) [three](../docs/data.md) [four](../CHANGELOG.md#unreleased)"
    shown = "one (`examples/x/README.md`) [two](data.md#a) [three](../docs/data.md) four (`CHANGELOG.md`)"
    assert on_page_markdown(page, PAGE) == shown


def test_bars_in_code_of_a_table() -> None:
    page = "a `b \\| c`\n\n| h |\n|---|\n| `all\\|none` and \\| |\n"
    assert on_page_markdown(page, PAGE) == page.replace("all\\|none", "all|none")


@pytest.mark.parametrize("line", ["[x](nowhere.md)", "[x](data.md#no-such-heading)"])
def test_a_broken_link_ends_the_build(tmp_path: Path, line: str) -> None:
    """With --quiet mkdocs counts no warnings, so that --strict would refuse nothing."""
    command = re.search(r"^site := .*\$\(python\) (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    assert command
    for name in ("docs", "scripts", "mkdocs.yml"):
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, tmp_path / name)
    faq = tmp_path / "docs" / "faq.md"
    faq.write_text(f"{faq.read_text(encoding='utf-8')}\n{line}\n", encoding="utf-8")
    built = subprocess.run([sys.executable, *command[1].split()], cwd=tmp_path, capture_output=True, check=False)
    assert built.returncode == 1 and b"Aborted with 1 warnings in strict mode!" in built.stdout + built.stderr

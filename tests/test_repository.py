"""What holds for the files of this repository: sizes, no machine's paths, no hosts, documents that match the tree."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from benchmarks.report import BEGIN, END, GPU_STATUS, PAGES, between, gpu_page
from megatron_longpo import __version__
from megatron_longpo.commands.main import VERBS

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("megatron_longpo", "scripts", "tools", "tests", "examples", "benchmarks", ".ci")
SOURCE_SUFFIXES = {".py", ".sh", ".toml", ".yaml", ".yml", ".txt", ""}
MAX_LINES = 300

# A folder that exists on one machine only, at the start of a path.
MACHINE_PATH = re.compile(r"(?<![\w./~}-])/(root|home|work|Users|opt|mnt|srv|scratch)/\w")
# The name of SVG's namespace looks like an address and is none.
HOST = re.compile(r"\b(https?|ftp|ssh)://(?!localhost|127\.0\.0\.1|www\.w3\.org/2000/svg)\w|\bgit@\w", re.IGNORECASE)


def source_files() -> Iterator[Path]:
    """Every file that a person wrote and a machine reads."""
    top = (path for path in ROOT.iterdir() if path.name not in ("LICENSE", ".git"))  # .git: a worktree's pointer
    for path in (*top, *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*"))):
        if path.is_file() and path.suffix in SOURCE_SUFFIXES and "__pycache__" not in path.parts:
            yield path


def names_a_machine(text: str) -> list[str]:
    """The lines of ``text`` that name a host or a path of one machine."""
    return [line.strip() for line in text.splitlines() if MACHINE_PATH.search(line) or HOST.search(line)]


def test_no_source_names_a_host_or_a_machines_path() -> None:
    found = {str(path.relative_to(ROOT)): names_a_machine(path.read_text(encoding="utf-8")) for path in source_files()}
    assert len(found) > 20
    assert {path: lines for path, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    "line",
    ["data = '/" + "root/model'", "path: /" + "home/me/x", "see https:/" + "/example.org/x", "'/" + "work/main'"],
)
def test_a_machine_named_would_be_found(line: str) -> None:
    assert names_a_machine(f"first\n{line}\nlast") == [line]


@pytest.mark.parametrize("line", ["#!/usr/bin/env bash", "http://localhost:6006", "build/work/x", "~/.pyenv/versions/"])
def test_what_every_machine_has_passes(line: str) -> None:
    assert names_a_machine(line) == []


def test_no_file_of_the_package_is_too_long() -> None:
    sizes = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for path in (ROOT / "megatron_longpo").rglob("*.py")
    }
    assert sizes
    assert {path: size for path, size in sizes.items() if size > MAX_LINES} == {}


def tree_in_docs() -> set[str]:
    """The files of the package that the tree in docs/code.md names, as paths below ``megatron_longpo/``."""
    page = (ROOT / "docs" / "code.md").read_text(encoding="utf-8")
    block = re.search(r"```text\nmegatron_longpo/\n(.*?)```", page, re.DOTALL)
    assert block, "docs/code.md has no ```text block that starts with megatron_longpo/"
    found, folders = set[str](), list[str]()
    for line in block[1].splitlines():
        indent, name = re.match(r"( *)(\S+)", line).groups()  # type: ignore[union-attr]
        del folders[len(indent) // 2 - 1 :]  # two blanks a level
        if name.endswith("/"):
            folders.append(name)
        else:
            found.add("".join(folders) + name)
    return found


def test_the_docs_name_every_file_of_the_package() -> None:
    package = ROOT / "megatron_longpo"
    files = {str(path.relative_to(package)) for path in package.rglob("*.py") if path.name != "__init__.py"}
    assert tree_in_docs() == files


def test_what_lies_around_the_package_is_there() -> None:
    page = (ROOT / "docs" / "code.md").read_text(encoding="utf-8")
    names = re.findall(r"^(\S+)  ", page.split("Around it:")[1], re.MULTILINE)
    assert len(names) > 20
    assert [name for name in names if not (ROOT / name.replace("<verb>", "build")).exists()] == []


def broken_links(page: Path) -> list[str]:
    """Relative links and pictures of a Markdown page whose file, or whose heading in a page, is not there."""
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    found = []
    for link in re.findall(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"", text):
        path, _, heading = "".join(link).partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (heading and heading not in headings(target)):
            found.append("".join(link))
    return found


def headings(page: Path) -> set[str]:
    """What a link to a heading of a Markdown page says behind ``#``, in GitHub's form."""
    lines = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", line.lower()).strip().replace(" ", "-") for line in lines}


def test_the_links_of_the_pages_lead_somewhere() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")]
    assert len(pages) > 8
    found = {str(page.relative_to(ROOT)): broken_links(page) for page in pages}
    assert {page: links for page, links in found.items() if links} == {}


def test_a_broken_link_would_be_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A heading, here\n[good](page.md) [good](#a-heading-here) `[code](no.md)`\n"
        '[bad](no.md) [bad](page.md#no) <img src="no.svg">\n'
    )
    assert broken_links(page) == ["no.md", "page.md#no", "no.svg"]


def test_every_verb_has_a_tool() -> None:
    assert {path.stem.replace("_", "-") for path in (ROOT / "tools").glob("*.py")} == set(VERBS)


@pytest.mark.parametrize("page", PAGES)
def test_the_pages_show_the_committed_results(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert between(text, BEGIN, END, PAGES[page]()) == text


def test_the_gpu_status_shows_the_committed_results() -> None:
    assert GPU_STATUS.read_text(encoding="utf-8") == gpu_page()


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


def test_the_citation_names_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__
    assert [reference["title"][:6] for reference in citation["references"]] == ["LongPO"]

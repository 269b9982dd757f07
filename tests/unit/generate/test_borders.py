"""Borders of every kind, shown on texts, and the same whatever stretch is asked for."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_longpo.generate.corpus.borders import LEVELS, Borders, Level
from megatron_longpo.generate.corpus.domains import Domain, domain_of_text
from megatron_longpo.generate.corpus.sentences import Sentences

MARK = "|"
PIECES = (
    "# H\n",
    "==\n",
    "```\n",
    "\\section{x}\n",
    "def f(\n",
    "# c\n",
    "@d\n",
    "Mr. X. Y. ",
    "\n",
    " \n",
    "\u3002",
    "a",
    " ",
)


@pytest.fixture(scope="module")
def sentences(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEGATRON_LONGPO_HOME", str(tmp_path_factory.mktemp("home")))
        yield Sentences(lambda: "Mr. Smith came. He left. Mr. Jones stayed. Then he went.\n\n" * 50)


def borders_of(marked: str, domain: Domain, level: Level, sentences: Sentences) -> str:
    """The text with a mark at each of its borders."""
    text = marked.replace(MARK, "")
    places = Borders(text, domain, sentences).within(level, 0, len(text))
    return MARK.join(text[start:end] for start, end in zip([0, *places], [*places, len(text)], strict=True))


@pytest.mark.parametrize(
    ("domain", "level", "marked"),
    [
        ("prose", "paragraph", "One\ntwo\n\n|  three\n \t\n\n|four\n\n"),
        ("prose", "sentence", "Mr. Smith came. |He left! |\u201cWho?\u201d |Mr. Jones.\n\n|Then he went"),
        ("prose", "sentence", "\u4e00\u4e8c\u3002|\u4e09\u56db\uff1f\u300d |\u4e94, \u516d"),
        ("prose", "line", "a\n| b\n\n|c"),
        ("prose", "word", " |a |b\n |c"),
        ("markdown", "section", "# A\nx\n|## B ##\n#no\n    # code\n```sh\n# not\n~~~\n```\n|# C\n"),
        ("markdown", "section", "a\n\n|Title\n=====\nb\nno\n---\n\n- list\n---\n\n|Two\n--\n"),
        ("markdown", "section", "````\n```\n# in\n```\n````\n|# out\n``` a`b\n|# out\n"),
        (
            "latex",
            "section",
            "\\title{x}\n|\\begin{document}\n|\\chapter*{A}\nsee \\section{x}\n|  \\section[s]{B}\n|\\appendix\n",
        ),
        (
            "code",
            "definition",
            "import x\n\n|# about f\n# more\n@cached\ndef f():\n    def inner(): pass\n\n|class A:\n    x = 1\n",
        ),
        (
            "code",
            "definition",
            "#include <a>\nint x;\n|int main(void) {\n  call(1);\n}\n|/* b */\nstatic void b(int a,\n  int c)\n{\n}\n",
        ),
        ("code", "definition", "use a;\n\n|/// doc\n#[inline]\npub fn f() {}\n|impl<T> A for B {\n  fn g() {}\n}\n"),
        ("code", "definition", "a\n|func (r *T) F() {\n}\n|export const f = (x) => 1\n|export default class A {}\n"),
        ("code", "definition", "for (;;) {}\nreturn f (x)\nwhile x(y) {\n}\nprint f (x)\nx = f(y)\n"),
    ],
)
def test_borders(sentences: Sentences, domain: Domain, level: Level, marked: str) -> None:
    assert borders_of(marked, domain, level, sentences) == marked


@pytest.mark.parametrize("domain", LEVELS)
@given(text=st.lists(st.sampled_from(PIECES), max_size=60).map("".join), data=st.data())
def test_a_place_is_a_border_whatever_stretch_is_asked_for(
    sentences: Sentences, domain: Domain, text: str, data: Any
) -> None:
    start, end = sorted(data.draw(st.tuples(*[st.integers(0, len(text))] * 2)))
    borders = Borders(text, domain, sentences)
    for level in LEVELS[domain]:
        everywhere = borders.within(level, 0, len(text))
        assert borders.within(level, start, end) == [place for place in everywhere if start <= place <= end]


@pytest.mark.parametrize(
    ("text", "domain"),
    [
        ("Once upon a time.\n\nThe end. See [1].\n", "prose"),
        ("# One\n\nSome text with a [link](x).\n\n## Two\n\nmore\n", "markdown"),
        ("\\documentclass{article}\n\\usepackage{x}\n\\begin{document}\nhello\n", "latex"),
        ("import os\n\ndef f(x):\n    if x:\n        return 1\n\ndef g():\n    return 2\n", "code"),
        ("#include <stdio.h>\n\nint main(void) {\n  f();\n}\n\nint f(void) {\n  return 1;\n}\n", "code"),
    ],
)
def test_the_domain_of_a_text(text: str, domain: Domain) -> None:
    assert domain_of_text(text) == domain


def test_this_projects_own_files() -> None:
    root = Path(__file__).resolve().parents[3]
    assert domain_of_text((root / "README.md").read_text(encoding="utf-8")) == "markdown"
    assert domain_of_text((root / "LICENSE").read_text(encoding="utf-8")) == "prose"
    assert domain_of_text((root / "megatron_longpo" / "files.py").read_text(encoding="utf-8")) == "code"

"""The places where a document may be cut, from the strongest to the weakest, by its domain.

A border is where the next piece begins: white space before it belongs to the piece before. Whether a place is a border
does not depend on the stretch that is asked for.
"""

import re
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from functools import cached_property
from typing import Literal

from megatron_longpo.generate.corpus.domains import DEFINITION, Domain
from megatron_longpo.generate.corpus.sentences import Sentences

Level = Literal["section", "definition", "paragraph", "sentence", "line", "word"]
LEVELS: dict[Domain, tuple[Level, ...]] = {
    "prose": ("paragraph", "sentence", "line", "word"),
    "markdown": ("section", "paragraph", "sentence", "line", "word"),
    "latex": ("section", "paragraph", "sentence", "line", "word"),
    "code": ("definition", "paragraph", "line", "word"),
}
"""Strongest first. Between two characters anything may be cut, but for a carriage return and its line feed."""

MAX_LINES_ABOVE = 200
"""Comments and decorators that are taken for a definition's own."""
_BEYOND = 4096
"""Characters looked at beyond the end of a stretch: blank lines, and what stands above a definition."""

_PARAGRAPH = re.compile(r"\n[^\S\n]*\n(?:[^\S\n]*\n)*")
_LINE = re.compile(r"\n(?=[^\n])")
_WORD = re.compile(r"\s(?=\S)")
_LATEX_SECTION = re.compile(
    r"^[ \t]*\\(?:(?:part|chapter|section|subsection)\*?[ \t]*[\[{]|begin\{document\}|appendix\b)", re.MULTILINE
)
_MARKDOWN_LINE = re.compile(
    r"^ {0,3}(?:(?P<fence>`{3,}|~{3,})(?P<info>[^\n]*)$|(?P<atx>#{1,6}(?:[ \t]|$))"
    # A heading that is underlined: no list, quote or table.
    r"|(?P<setext>[^\s#>|*+`~=-][^\n]*\n {0,3}(?:=+|-+)[ \t]*$))",
    re.MULTILINE,
)
_ABOVE = re.compile(r"[ \t]*(?://|/\*|\*|#|--|@|template\b)")
"""Lines that belong to the definition below them."""


class Borders:
    """The borders of one text."""

    def __init__(self, text: str, domain: Domain, sentences: Sentences) -> None:
        self._text = text
        self._levels = LEVELS[domain]
        self._is_markdown = domain == "markdown"
        self._sentences = sentences

    @property
    def levels(self) -> tuple[Level, ...]:
        """Those of the domain, strongest first."""
        return self._levels

    def within(self, level: Level, start: int, end: int) -> list[int]:
        """Borders of a level, ``start <= border <= end``, ascending; neither end of the text is one."""
        match level:
            case "section":
                found = self._sections(start, end)
            case "definition":
                found = self._definitions(start, end)
            case "paragraph":
                found = self._ends(_PARAGRAPH, start, end)
            case "sentence":
                found = self._sentences.within(self._text, start, end)
            case "line":
                found = self._ends(_LINE, start, end)
            case "word":
                found = self._ends(_WORD, start, end)
        return sorted({place for place in found if max(1, start) <= place <= min(end, len(self._text) - 1)})

    def _ends(self, pattern: re.Pattern[str], start: int, end: int) -> list[int]:
        """Ends of the matches; one that begins before ``start`` may end behind it."""
        first = max(0, self._text.rfind("\n", 0, max(0, start - 1)))
        return [match.end() for match in pattern.finditer(self._text, first, end + _BEYOND) if match.end() <= end]

    def _sections(self, start: int, end: int) -> list[int]:
        if self._is_markdown:
            found = self._markdown_headings
            return list(found[bisect_left(found, start) : bisect_right(found, end)])
        first = self._text.rfind("\n", 0, start) + 1
        return [match.start() for match in _LATEX_SECTION.finditer(self._text, first, end + _BEYOND)]

    @cached_property
    def _markdown_headings(self) -> "array[int]":
        return array("q", _markdown_headings(self._text))

    def _definitions(self, start: int, end: int) -> list[int]:
        first = self._text.rfind("\n", 0, start) + 1
        return [
            self._with_lines_above(match.start()) for match in DEFINITION.finditer(self._text, first, end + _BEYOND)
        ]

    def _with_lines_above(self, place: int) -> int:
        """Where the comments and decorators directly above the definition at ``place`` begin."""
        for _ in range(MAX_LINES_ABOVE):
            line = self._text.rfind("\n", 0, max(0, place - 1)) + 1
            if place == 0 or not _ABOVE.match(self._text, line):
                break
            place = line
        return place


def _markdown_headings(text: str) -> Iterator[int]:
    """Where lines that are headings begin; lines inside fenced code are none (CommonMark 0.31, sections 4.2 to 4.5)."""
    fence = ""
    for match in _MARKDOWN_LINE.finditer(text):
        marks, info = match["fence"] or "", (match["info"] or "").strip()
        if fence:
            if marks.startswith(fence) and not info:
                fence = ""
        elif marks and not (marks[0] == "`" and "`" in info):
            fence = marks
        elif match["atx"] or (match["setext"] and _follows_blank_line(text, match.start())):
            yield match.start()


def _follows_blank_line(text: str, place: int) -> bool:
    return place == 0 or not text[text.rfind("\n", 0, place - 1) + 1 : place].strip()

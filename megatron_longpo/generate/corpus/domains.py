"""What kind of text a document is: by its file's suffix, or by a look at its beginning."""

import re
from pathlib import Path
from typing import Literal

from megatron_longpo.generate.corpus.readers import CODE_SUFFIXES, LATEX_SUFFIXES, MARKDOWN_SUFFIXES, suffix_of

Domain = Literal["prose", "markdown", "latex", "code"]

MAX_CHARACTERS_LOOKED_AT = 20_000

_KEYWORDS = (
    "if|else|elif|for|while|switch|case|return|do|try|catch|with|print|assert|raise|yield|await|del|not|import|from"
)
DEFINITION = re.compile(
    # Words that may stand before one, and the words that open one.
    r"^(?:(?:export|default|public|private|protected|internal|static|final|abstract|sealed|async|unsafe|extern|inline"
    r"|constexpr|virtual|partial|data|open|override|local|pub(?:\([^)\n]*\))?)[ \t]+)*"
    r"(?:(?:def|class|struct|union|enum|interface|trait|impl|mod|module|namespace|fn|func|fun|function|type|typedef"
    r"|object|protocol|extension|record|macro_rules!)\b"
    # JavaScript's functions that are values.
    r"|(?:const|let|var)[ \t]+[\w$]+[ \t]*=[ \t]*(?:async\b|function\b|\(|[\w$]+[ \t]*=>)"
    # C-like: a type, a name, a bracket, and no semicolon, which would make it a call or a declaration.
    rf"|(?!(?:{_KEYWORDS})\b)[A-Za-z_][\w:<>,*&\[\] \t]*[ \t*&][A-Za-z_~][\w:]*[ \t]*\([^;\n]*$)",
    re.MULTILINE,
)
"""A definition at the margin, in the languages of `CODE_SUFFIXES`; by shape, not by grammar."""

_LATEX = re.compile(r"\\(?:documentclass|usepackage|begin|(?:sub)*section|chapter)\*?\s*[\[{]")
_HEADING = re.compile(r"^#{1,6} \S", re.MULTILINE)
_FENCE_OR_LINK = re.compile(r"^(?:```|~~~)|\]\([^)\s]+\)", re.MULTILINE)
_CODE_LINE = re.compile(
    r"^(?:(?:import|from|using|use|package)\s+[\w.:{}*, ]+;?|#include\s.+|.*[{};]|[ \t]*(?:def|class|if|for|while)\b.*:"
    r"|[ \t]*(?:return|raise|yield)\b.*|[ \t]*[\w.]+ [+*-]?= .*)$",
    re.MULTILINE,
)


def domain_of_name(path: Path) -> Domain | None:
    """What the suffix says; None where it leaves open what the text is (``.txt``, rows)."""
    suffix = suffix_of(path)
    if suffix in MARKDOWN_SUFFIXES:
        return "markdown"
    if suffix in LATEX_SUFFIXES:
        return "latex"
    return "code" if suffix in CODE_SUFFIXES else None


def domain_of_text(text: str) -> Domain:
    """What the beginning of a text looks like; ``prose`` when in doubt, whose borders every text has."""
    start = text[:MAX_CHARACTERS_LOOKED_AT]
    if len(_LATEX.findall(start)) >= 3:
        return "latex"
    num_lines = sum(1 for line in start.split("\n") if line.strip())
    if len(DEFINITION.findall(start)) >= 2 and len(_CODE_LINE.findall(start)) > 0.2 * num_lines:
        return "code"
    num_headings = len(_HEADING.findall(start))
    if num_headings >= 2 and (_FENCE_OR_LINK.search(start) or num_headings < 0.3 * num_lines):
        return "markdown"
    return "prose"

"""Where a text can be cut without changing how it is tokenised, and the cells between such cuts.

A cut between two characters is safe where no entry of the vocabulary spans it: a BPE merge never crosses such a place,
nor does a piece of a unigram model, so the tokens on either side do not depend on the other. Considered are places
before a blank, before and after a line feed, and (inside cells) between letters, digits and marks. Which of them a
tokenizer has is read from its vocabulary; `token_count.py` then holds each kind against the tokenizer itself.
"""

import json
import re
import string
from collections.abc import Collection, Iterator, Sequence, Set
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_BLANK, _BEFORE, _AFTER, _PART, _END = "\ufdd0", "\ufdd1", "\ufdd2", "\ufdd3", "\ufdd4"
"""In keys: a blank that is no cut; opens a cell cut off before, or after, a line feed; between parts; between cells.
Unicode promises that they are never characters of a text."""
_ASCII_SPACE = "\n\t\r\x0b\x0c\x1c\x1d\x1e\x1f"
_OTHER_SPACE = _ASCII_SPACE + "\x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
"""White space (to `str.isspace`) but the blank."""

BLANK = r"(?<=\S)(?= )"
LINE_FEED = r"(?<=\S)(?=\n)"
LINE_FEED_AFTER_WORD = r"(?<=[A-Za-z0-9])(?=\n)"
LINE = r"(?<=\n)(?=\S)"
BETWEEN = (BLANK, LINE_FEED, LINE_FEED_AFTER_WORD, LINE)
"""Kinds of cuts between cells, as patterns that match between two characters."""

_MARKS = string.punctuation + "\u201c\u201d\u2013\u2014"
# Of those four in UTF-8 (as `_texts` writes a single byte) the first byte, and the last ones.
_OPENING_BYTE, _CLOSING_BYTES = "\udce2", "\udc93\udc94\udc9c\udc9d"
_SIDES = (
    (string.ascii_letters, _MARKS + string.digits + "\u2018\u2019" + _OPENING_BYTE),
    (string.digits, _MARKS + string.ascii_letters + _OPENING_BYTE),
    (_MARKS.replace("'", "") + _CLOSING_BYTES, string.ascii_letters + string.digits),  # many vocabularies hold "'s"
)
"""What stands left and right of a cut."""
LETTER, DIGIT, MARK = (rf"(?<=[{re.escape(left)}])(?=[{re.escape(right)}])" for left, right in _SIDES)
INSIDE = (LETTER, DIGIT, MARK)
"""The same within cells."""

# Pre-tokenizers and normalisers that decide by what stands next to a place, and take nothing away between two blanks.
_LOCAL_STEPS = {
    "Sequence", "ByteLevel", "Split", "Digits", "Metaspace", "Punctuation", "Whitespace", "WhitespaceSplit",
    "BertPreTokenizer", "Prepend", "Replace", "NFC", "NFD", "NFKC", "NFKD", "Lowercase",
}  # fmt: skip
_BLANKS_MARKED = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
"""The only replacement that is known to be harmless."""


class Cells:
    """Cuts texts at the given kinds of places.

    Args:
        kinds: those of the constants above that are safe.
        uncut: texts that a cut could fall into, or that swallow the white space around them.
        atoms: texts that are no longer what they are when cut after a word (added tokens).
        prepends: the tokenizer puts a blank before a text, so that its beginning is unlike what follows.
    """

    def __init__(self, kinds: frozenset[str], uncut: frozenset[str], atoms: frozenset[str], prepends: bool) -> None:
        self.lead = "a" if prepends else ""
        """What the parts of cells open with; its own tokens have to be subtracted."""
        if prepends:
            kinds -= {DIGIT, MARK}  # whose right side may be a letter, which the lead would join
        self.kinds = kinds
        self._uncut = uncut | {_BLANK, _BEFORE, _AFTER, _PART, _END}
        self._atoms = atoms
        self._atom = re.compile("|".join(map(re.escape, sorted(atoms))) or r"(?!)")
        self.cut = re.compile("|".join(kind for kind in BETWEEN if kind in kinds) or r"(?!)")
        """Matches (nothing, between two characters) where one cell ends and the next begins."""
        line_feed = LINE_FEED if LINE_FEED in kinds else LINE_FEED_AFTER_WORD if LINE_FEED_AFTER_WORD in kinds else None
        left = {LINE_FEED: rf"[^\s{_BLANK}]", LINE_FEED_AFTER_WORD: "[A-Za-z0-9]", None: ""}[line_feed]
        # The line feed comes first in the pattern, so that the search skips to the next one.
        self._line_feed = re.compile(rf"\n(?<={left}\n)") if line_feed else None
        self._line = re.compile(rf"\n(?=[^\s{_BLANK}])") if LINE in kinds else None
        self._sides = np.zeros(0x10000, np.uint8)
        """Of a character (the last stands for those above): four bits for the kinds of cuts that may follow it, and
        four for those that may stand before it."""
        for bit, (kind, (left, right)) in enumerate(zip(INSIDE, _SIDES, strict=True)):
            if kind in kinds:
                self._sides[list(map(ord, left))] |= 1 << bit
                self._sides[list(map(ord, right))] |= 16 << bit

    @property
    def atoms(self) -> frozenset[str]:
        """The tokenizer's added tokens."""
        return self._atoms

    def only(self, kinds: Set[str]) -> "Cells":
        """The same with those of its kinds that are in ``kinds``."""
        return Cells(self.kinds & kinds, self._uncut, self._atoms, bool(self.lead))

    def can_cut(self, text: str) -> bool:
        """Whether ``text`` holds nothing that must not be cut."""
        return not any(uncut in text for uncut in self._uncut)

    def keys(self, text: str) -> list[str]:
        """The cells of ``text`` as keys: equal keys have equally many tokens. See `parts`.

        Made of `str.replace` and one `str.split`, because a regular expression takes ten times as long for it.
        """
        if BLANK not in self.kinds:
            text = text.replace(" ", _BLANK)
        else:
            if "  " in text:
                text = text.replace("  ", f" {_BLANK}").replace(f"{_BLANK} ", _BLANK * 2)
            for space in _ASCII_SPACE if text.isascii() else _OTHER_SPACE:
                if space in text:
                    text = text.replace(f"{space} ", f"{space}{_BLANK}")
            if text.startswith(" "):
                text = _BLANK + text[1:]
        if self._line_feed:
            text = self._line_feed.sub(f" {_BEFORE}\n", text)
        if self._line:
            text = self._line.sub(f"\n {_AFTER}", text)
        return text.split(" ")

    def first(self, key: str) -> str:
        """The text of the first key, which nothing stands before."""
        return key.replace(_BLANK, " ")

    def parts(self, keys: Sequence[str]) -> tuple[list[str], list[int]]:
        """The keys' cells, cut up where that is safe, because words come again more often than cells.

        Args:
            keys: none may be the first of its text. All are cut in one string, which is many times faster.

        Returns:
            The parts of all, one after the other, and how many each key has.
        """
        lead = self.lead
        joined = _END.join([f"{lead} {key}" for key in keys])
        # After a line feed stands a part that opens a line: with a lead of its own it would be a word's end.
        joined = joined.replace(f"{lead} {_BEFORE}", lead).replace(f"{lead} {_AFTER}", lead and "\n")
        joined = joined.replace(_BLANK, " ")
        cells = self._marked(joined).split(_END)
        if self._atom.search(joined):
            wholes = joined.split(_END)
            cells = [whole if self._atom.search(whole) else cell for whole, cell in zip(wholes, cells, strict=True)]
        return _PART.join(cells).split(_PART), [cell.count(_PART) + 1 for cell in cells]

    def _marked(self, text: str) -> str:
        """``text`` with `_PART` and the lead at cuts inside cells; a regular expression takes five times as long."""
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        sides = self._sides[np.minimum(codes, len(self._sides) - 1)]
        cuts = np.flatnonzero(sides[:-1] & (sides[1:] >> 4)) + 1
        marked = np.insert(codes, cuts, ord(_PART)).tobytes().decode("utf-32-le", "surrogatepass")
        return marked.replace(_PART, _PART + self.lead) if self.lead else marked


def cells_of(backend: "Tokenizer") -> Cells | None:
    """The cuts that no entry of the tokenizer's vocabulary spans; None if it may look further than at two characters.

    What a vocabulary cannot show, `token_count.py` tries out.
    """
    settings = json.loads(backend.to_str())
    steps = (settings["normalizer"], settings["pre_tokenizer"])
    types = {step["type"] for step in _flat(steps)}
    replaces = any(step["type"] == "Replace" and step != _BLANKS_MARKED for step in _flat(steps))
    if types - _LOCAL_STEPS or replaces or settings["model"].get("dropout") or any(map(_looks_around, steps)):
        return None
    added = {token["content"]: token["lstrip"] or token["rstrip"] for token in settings["added_tokens"]}
    entries = _texts(backend, "ByteLevel" in types, added.keys())
    kinds = frozenset(kind for kind in (*BETWEEN, *INSIDE) if not re.search(kind, entries))
    # Some tokenizers put a blank before what follows an added token, as before the text.
    prepends = bool(types & {"Prepend", "Metaspace"}) or '"add_prefix_space": true' in json.dumps(steps)
    uncut = {
        text for text, strips in added.items() if prepends or strips or any(re.search(kind, text) for kind in BETWEEN)
    }
    if "ByteLevel" not in types:
        uncut.add("\u2581")  # which stands for a blank, and would be one beside a real one
    return Cells(kinds, frozenset(uncut), frozenset(added), prepends)


def _texts(backend: "Tokenizer", is_byte_level: bool, added: Collection[str]) -> str:
    """What the entries of the vocabulary stand for, with tabs between them.

    A byte of a character that an entry holds a part of becomes a lone surrogate, U+DC00 and its number
    (`surrogateescape`).
    """
    from tokenizers import pre_tokenizers

    entries = "\t".join(entry for entry in backend.get_vocab(with_added_tokens=True) if entry not in added)
    if not is_byte_level:
        return entries.replace("\u2581", " ")
    # GPT-2 writes a byte as the character of its number, or, one that cannot be seen, as the next one above U+00FF.
    alphabet = set(map(ord, pre_tokenizers.ByteLevel.alphabet()))
    unseen = sorted(set(range(256)) - alphabet)
    of_byte = dict(zip(sorted(alphabet - set(range(256))), unseen, strict=True))
    return entries.translate(of_byte).encode("latin-1", "replace").decode("utf-8", "surrogateescape")


def _flat(steps: Sequence[Any]) -> Iterator[dict[str, Any]]:
    for step in steps:
        if step is not None:
            yield step
            yield from _flat(step.get("normalizers", ()))
            yield from _flat(step.get("pretokenizers", ()))


def _looks_around(step: Any) -> bool:
    """Whether a pattern asks for what stands before its match, or for an end of the text."""
    return bool(re.search(r"\(\?<[=!]|\\\\[AzZGbB]|(?<!\[)\^|(?<!\\)\$", json.dumps(step)))

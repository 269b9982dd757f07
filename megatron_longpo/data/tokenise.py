"""A rendered conversation as token ids, with its character ranges translated to token ranges.

The conversation is tokenised once, as a whole and without added special tokens (the template wrote them), exactly as
``apply_chat_template(tokenize=True)`` does. A border between characters that is not a border between tokens is an
error, never rounded.

Chosen and rejected answer begin after the same hundreds of thousands of characters, which are tokenised once: of the
second text only the end is, from some tokens before the answer on, and it is joined to the first one's tokens where
both agree. That is exact for byte-pair encoding: merges are applied by rank and never undone, so where a token ends,
no merge has crossed, and what stands on either side is tokenised as if it stood alone. Where a text's beginning is
treated apart (sentencepiece's leading blank, a pattern of words that matches from there), the first tokens differ, and
the join comes after them. Other models of tokens, and ends that never agree, are tokenised whole.
"""

import functools
import re
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from megatron_longpo.data.chat import RenderedText, check_chat_template, render_text
from megatron_longpo.data.tokenizer import chat_template_of
from megatron_longpo.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

IntArray = NDArray[np.integer[Any]]

_OVERLAP, _AGREEING = 128, 16
"""Tokens before the answer that are tokenised again, and how many must be the same where the ends are joined."""


@dataclass(frozen=True, slots=True, eq=False)
class Codec:
    """What tokenising needs of a tokenizer, prepared once per process."""

    tokenizer: "PreTrainedTokenizerFast"
    backend: Any
    """A private copy of the ``tokenizers.Tokenizer``: the same ids, and offsets that keep white space."""
    added_ids: frozenset[int]
    control_token: re.Pattern[str] | None
    merges: bool
    """Byte-pair encoding without chance (dropout)."""


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """A tokenised conversation; ``starts`` and ``ends`` are the tokens' character ranges in its text."""

    ids: IntArray
    starts: IntArray
    ends: IntArray
    spans: IntArray
    """[num_turns, 2], counted in the whole conversation."""
    context: tuple[int, int]
    """The tokens that lie wholly inside the context."""


@functools.lru_cache(maxsize=4)
def codec_of(tokenizer: "PreTrainedTokenizerFast", template: str | None) -> Codec:
    """Check the chat template (see `check_chat_template` for the errors) and prepare the tokenizer.

    ``template`` is there only for the cache: a tokenizer whose template was changed is checked again.
    """
    from tokenizers import Tokenizer
    from tokenizers.models import BPE

    del template
    check_chat_template(tokenizer)
    # Without add_special_tokens a post-processor adds no ids, but a byte-level one trims white space from the offsets.
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.post_processor = None  # pyright: ignore[reportAttributeAccessIssue]
    backend.no_padding()
    backend.no_truncation()
    added = tokenizer.added_tokens_decoder
    control = [re.escape(str(token)) for token in added.values() if token.special]
    pattern = re.compile("|".join(sorted(control, key=len, reverse=True))) if control else None
    model: Any = backend.model
    merges = isinstance(model, BPE) and not model.dropout
    return Codec(tokenizer, backend, frozenset(added), pattern, merges)


def tokenise(codec: Codec, rendered: RenderedText, like: tuple[RenderedText, Tokens] | None = None) -> Tokens:
    """Tokenise a rendered conversation and translate its character ranges to token ranges.

    Args:
        like: another conversation with its tokens, which may begin with the same text; it changes the time only.
    """
    joined = None if like is None else _encode_end(codec, rendered, *like)
    ids, starts, ends = joined or _encode(codec, rendered.text)
    if (np.diff(starts) < 0).any() or (np.diff(ends) < 0).any():
        raise UserError("the tokenizer's offsets do not follow the text, so spans cannot be computed; use another one")
    context = (
        int(np.searchsorted(starts, rendered.context[0])),
        int(np.searchsorted(ends, rendered.context[1], "right")),
    )
    spans = [
        (
            _first_response_token(rendered.text, starts, ends, start),
            _end_of_turn(codec, rendered.text, ids, starts, ends, end) + 1,
        )
        for start, end in rendered.responses
    ]
    return Tokens(ids, starts, ends, np.array(spans, np.int32), context)


def _encode(codec: Codec, text: str) -> tuple[IntArray, IntArray, IntArray]:
    """(ids, starts, ends): the tokens' ids, int32, and their character ranges, int64."""
    encoding = codec.backend.encode(text, add_special_tokens=False)
    ids = np.array(encoding.ids, np.int32)
    offsets: list[tuple[int, int]] = encoding.offsets
    borders = np.fromiter(chain.from_iterable(offsets), np.int64, 2 * len(ids))  # twice as fast as np.array
    return ids, borders[::2], borders[1::2]


def _encode_end(
    codec: Codec, rendered: RenderedText, other: RenderedText, known: Tokens
) -> tuple[IntArray, IntArray, IntArray] | None:
    """As `_encode`, with the tokens of what both texts begin with taken over; None where that cannot be done.

    Args:
        other, known: the text that was tokenised before, and its tokens.
    """
    shared = min(rendered.responses[0][0], other.responses[0][0])
    last = int(np.searchsorted(known.ends, shared, "right"))
    first = last - _OVERLAP
    while first > 0 and known.starts[first] < known.ends[first - 1]:  # inside a character of several tokens
        first -= 1
    if not codec.merges or first <= 0 or rendered.text[:shared] != other.text[:shared]:
        return None
    cut = int(known.starts[first])
    ids, starts, ends = _encode(codec, rendered.text[cut:])
    end: tuple[IntArray, IntArray, IntArray] = (ids, starts + cut, ends + cut)
    parts: list[tuple[IntArray, IntArray]] = list(zip((known.ids, known.starts, known.ends), end, strict=True))
    for index in range(first, last - _AGREEING):
        at = int(np.searchsorted(end[1], int(known.starts[index])))
        here, there = slice(index, index + _AGREEING), slice(at, at + _AGREEING)
        if all(np.array_equal(old[here], new[there]) for old, new in parts):
            ids, starts, ends = (np.concatenate([old[:index], new[at:]]) for old, new in parts)
            return ids, starts, ends
    return None


def end_of_turn_id(tokenizer: "PreTrainedTokenizerFast") -> int:
    """The token with which the chat template closes an answer: the last of every response span.

    Raises:
        UserError: there is no chat template, or it is not usable (see `check_chat_template`).
    """
    codec = codec_of(tokenizer, chat_template_of(tokenizer))
    tokens = tokenise(codec, render_text(tokenizer, "A line.", ["Which?"], ["This one."]))
    return int(tokens.ids[tokens.spans[0, 1] - 1])


def _first_response_token(text: str, starts: IntArray, ends: IntArray, start: int) -> int:
    """The first token at or after character ``start``, which must be a border between tokens.

    A token of no width at ``start`` belongs to the response: sentencepiece puts its ``_`` in front of a text there.
    """
    first = int(min(np.searchsorted(starts, start), np.searchsorted(ends, start, "right")))
    if starts[first] < start:
        raise UserError(
            f"the answer beginning {text[start : start + 16]!r} and the text before it share the token"
            f" {text[starts[first] : ends[first]]!r}, so its span has no exact start; change how the answer begins"
        )
    return first


def _end_of_turn(codec: Codec, text: str, ids: IntArray, starts: IntArray, ends: IntArray, end: int) -> int:
    """The added token that closes the answer whose own text ends at character ``end``; only white space may precede."""
    for index in range(int(np.searchsorted(ends, end, "right")), len(ids)):
        if int(ids[index]) in codec.added_ids:
            return index
        if text[max(starts[index], end) : ends[index]].strip():
            break
    raise UserError(
        f"the chat template does not close an answer with an end-of-turn token of the tokenizer (what follows is"
        f" {text[end : end + 24]!r}); use a template that does"
    )

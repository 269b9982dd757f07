"""A rendered conversation as token ids, with its character ranges translated to token ranges.

The conversation is tokenised once, as a whole and without added special tokens (the template wrote them), exactly as
``apply_chat_template(tokenize=True)`` does. A border between characters that is not a border between tokens is an
error, never rounded.
"""

import functools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from megatron_longpo.data.chat import RenderedText, check_chat_template, render_text
from megatron_longpo.data.tokenizer import chat_template_of
from megatron_longpo.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

IntArray = NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class Codec:
    """What tokenising needs of a tokenizer, prepared once per process."""

    tokenizer: "PreTrainedTokenizerFast"
    backend: Any
    """A private copy of the ``tokenizers.Tokenizer``: the same ids, and offsets that keep white space."""
    added_ids: frozenset[int]
    control_token: re.Pattern[str] | None


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
    return Codec(tokenizer, backend, frozenset(added), pattern)


def tokenise(codec: Codec, rendered: RenderedText) -> Tokens:
    """Tokenise a rendered conversation and translate its character ranges to token ranges."""
    encoding = codec.backend.encode(rendered.text, add_special_tokens=False)
    ids = np.array(encoding.ids, np.int32)
    starts, ends = np.array(encoding.offsets, np.int64).reshape(-1, 2).T
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

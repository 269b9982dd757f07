"""Conversations in token ids with labels, as the LongPO release and transformers' trainers store them: their responses.

The release's labels are the ids themselves, not shifted, and -100 outside the responses. They are wider than a response
here: they may begin inside the assistant's header (with the line feed after ``<|im_start|>assistant``), go on behind
the end of turn with what the template closes a message with, and for the last answer with a whole generation prompt;
and they lack an end of turn that is also the padding token. What the template writes around an answer is therefore
learnt from the tokenizer, and a response is what stands between:

  1. it begins where the template's text before an answer ends: at the beginning of a labelled range, or as far in it as
     the header reaches;
  2. it ends with the first end-of-turn token from there on, inside the range or right behind it;
  3. anything else that is labelled is how the template closes a message, or the conversation is refused.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from megatron_longpo.data.chat import Message, apply_template, render_text
from megatron_longpo.data.tokenise import IntArray, codec_of, tokenise
from megatron_longpo.data.tokenizer import chat_template_of, vocabulary_size
from megatron_longpo.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

IGNORED = -100
"""The label of a token that is no response: torch's and transformers' own number."""
_INSTRUCTION_ENDINGS = ("a", "1", ".", ")", "é", "a ", "a\n")
"""Ends that merge differently with what follows; what is the same after all of them is the template's."""


@dataclass(frozen=True, slots=True, eq=False)
class Template:
    """What a chat template writes around an answer, in tokens."""

    header: IntArray
    """Before an answer, back to the end of the instruction."""
    end_of_turn: int
    closing: IntArray
    """After the end of turn: how a message is closed, then the generation prompt."""
    vocab_size: int


@dataclass(frozen=True, slots=True, eq=False)
class Conversation:
    """One conversation without padding, cut after its last response."""

    ids: IntArray
    """[num_tokens] int32"""
    spans: IntArray
    """[num_turns, 2] int32: half-open ranges of ``ids``; the responses, end-of-turn token included."""


def learn_template(tokenizer: "PreTrainedTokenizerFast") -> Template:
    """What the tokenizer's chat template writes around an answer, from conversations made for it.

    Raises:
        UserError: the chat template is missing or unusable (see `chat.check_chat_template`), or it closes answers with
            different tokens.
    """
    codec = codec_of(tokenizer, chat_template_of(tokenizer))
    before: list[IntArray] = []
    ends: set[int] = set()
    for ending in _INSTRUCTION_ENDINGS:
        tokens = tokenise(codec, render_text(tokenizer, "A text.", [f"Which {ending}"] * 2, ["This.", "That."]))
        before += [tokens.ids[:start] for start in tokens.spans[:, 0]]
        ends |= {int(tokens.ids[end - 1]) for end in tokens.spans[:, 1]}
    if len(ends) > 1:
        raise UserError(f"the chat template closes answers with different tokens ({sorted(ends)}); use another one")
    num_common = min(num_equal(before[0][::-1], ids[::-1]) for ids in before[1:])
    messages: list[Message] = [{"role": "user", "content": "Which?"}, {"role": "assistant", "content": "This."}]
    prompted = codec.backend.encode(apply_template(tokenizer, messages, True), add_special_tokens=False)
    ids = np.array(prompted.ids, np.int64)
    last = int(np.flatnonzero(np.isin(ids, list(ends)))[-1])
    return Template(
        header=before[0][len(before[0]) - num_common :],
        end_of_turn=ends.pop(),
        closing=ids[last + 1 :],
        vocab_size=vocabulary_size(tokenizer),
    )


def read_conversation(ids: IntArray, mask: IntArray, labels: IntArray, template: Template) -> Conversation:
    """The responses of one conversation, all arguments [num_tokens].

    Args:
        mask: 0 where ``ids`` is padding.
        labels: the id where it belongs to a response, else -100.

    Raises:
        UserError: the arrays do not fit each other or the tokenizer, or a response cannot be told exactly.
    """
    if not len(ids) == len(mask) == len(labels):
        raise UserError(
            f"{len(ids)} input_ids, {len(mask)} of attention_mask, {len(labels)} labels; lengths must agree"
        )
    kept = np.flatnonzero(mask)
    if len(kept) and kept[-1] - kept[0] + 1 != len(kept):
        raise UserError("attention_mask is 0 between tokens; it may be 0 for padding before or after them only")
    ids, labels = ids[kept], labels[kept]
    outside = np.flatnonzero((ids < 0) | (ids >= template.vocab_size))
    if len(outside):
        raise UserError(
            f"token {outside[0]} is {ids[outside[0]]}, but the tokenizer's ids end at {template.vocab_size - 1}; give"
            " the --tokenizer that the data was made with"
        )
    labelled = labels != IGNORED
    wrong = np.flatnonzero(labelled & (labels != ids))
    if len(wrong):
        raise UserError(
            f"token {wrong[0]} is {ids[wrong[0]]} and its label {labels[wrong[0]]}; a label must be the token itself,"
            f" not shifted, or {IGNORED}"
        )
    spans = _response_spans(ids, labelled, template)
    return Conversation(ids[: spans[-1, 1]].astype(np.int32), spans)


def _response_spans(ids: IntArray, labelled: IntArray, template: Template) -> IntArray:
    edges = np.flatnonzero(np.diff(labelled, prepend=False, append=False)).reshape(-1, 2).tolist()
    spans: list[tuple[int, int]] = []
    for start, end in edges:
        if spans and start == spans[-1][1] and _is_closing(ids[start:end], template):
            continue  # the end of turn has no label, so how the message is closed is a range of its own
        first = _response_start(ids, start, end, template)
        last = _response_end(ids, first, end, template)
        if not _is_closing(ids[last:end], template):
            raise UserError(
                f"{end - last} labelled tokens follow the end of turn at token {last - 1} that the chat template does"
                " not write there; give the --tokenizer that the data was made with, or repair the labels"
            )
        spans.append((first, last))
    if not spans:
        raise UserError(f"no response: every label is {IGNORED}; drop the row")
    return np.array(spans, np.int32)


def _response_start(ids: IntArray, start: int, end: int, template: Template) -> int:
    """Where the header ends: at ``start``, or behind the part of it that is labelled."""
    num_header = len(template.header)
    for first in range(max(start, num_header), min(start + num_header, end) + 1):
        if np.array_equal(ids[first - num_header : first], template.header):
            return first
    raise UserError(
        f"the labels that begin at token {start} do not begin where the chat template's text before an answer ends;"
        " give the --tokenizer that the data was made with, or repair the labels"
    )


def _response_end(ids: IntArray, first: int, end: int, template: Template) -> int:
    ends = np.flatnonzero(ids[first : end + 1] == template.end_of_turn)
    if not len(ends):
        raise UserError(
            f"the response at token {first} is not closed with the end-of-turn token {template.end_of_turn}; it was cut"
            " off, or the --tokenizer is another: drop the row, or give the right one"
        )
    if ends[0] == 0:
        raise UserError(f"the response at token {first} is empty; drop the row")
    return first + int(ends[0]) + 1


def _is_closing(ids: IntArray, template: Template) -> bool:
    return np.array_equal(ids, template.closing[: len(ids)])


def num_equal(a: IntArray, b: IntArray) -> int:
    """Length of the longest common beginning."""
    shorter = min(len(a), len(b))
    differing = np.flatnonzero(a[:shorter] != b[:shorter])
    return int(differing[0]) if len(differing) else shorter

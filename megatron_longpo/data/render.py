"""From a pair's text to token ids: trunk, branches, and the exact response spans (DESIGN section 7).

Each conversation is rendered whole and tokenised once; spans come from the tokenizer's character offsets.

    trunk   = everything before the token just before the first answer
    branch  = that token (the *last prompt token*: each branch continues it differently), answer 1, instruction 2, ...

Invariants (tests/unit/data/test_render.py quotes them):
  1. trunk + branch is the tokenisation of the rendered conversation, cut after its last response token;
  2. a span holds the tokens of one answer and the end-of-turn token that closes it, nothing before, nothing after;
  3. chosen and rejected share the trunk and the last prompt token;
  4. only tokens that lie wholly inside the context are ever removed.

What is too long: `max_length` limits one conversation, that is trunk + the longer branch, for the long conversation and
for each short one alike. `overlong` says what happens then, to whichever of them is too long:
  refuse    an error;
  skip      the whole pair is left out, because the reference needs every turn;
  truncate  tokens go from the middle of the (long or short) context, between two characters, as few as possible; an
            error if that would leave less than one token at either end of the context.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from megatron_longpo.data.chat import render_text
from megatron_longpo.data.pair import Pair
from megatron_longpo.data.tokenise import Codec, IntArray, Tokens, codec_of, tokenise
from megatron_longpo.data.tokenizer import chat_template_of
from megatron_longpo.errors import TooLong, UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Overlong = Literal["refuse", "truncate", "skip"]
Context = Literal["short", "long"]
"""What stands before an answer: the chunk of the document with the evidence, or the whole document."""


@dataclass(frozen=True, slots=True, eq=False)
class Branch:
    """One alternative continuation of a trunk."""

    tokens: IntArray
    """[num_tokens]: a copy of the last prompt token (just before the first answer), and all up to the last response."""
    spans: IntArray
    """[num_turns, 2]: half-open ranges of ``tokens``; the response tokens of each turn, end-of-turn token included."""


class Lengths(NamedTuple):
    """Numbers of tokens of a trunk and its branches (each branch with its last prompt token)."""

    trunk: int
    chosen: int
    rejected: int

    @property
    def longer(self) -> int:
        """The longer of the two conversations: trunk + longer branch."""
        return self.trunk + max(self.chosen, self.rejected)


@dataclass(frozen=True, slots=True, eq=False)
class TrunkAndBranches:
    """One conversation context and its two alternative continuations."""

    trunk: IntArray
    """[num_tokens]: all tokens before the last prompt token."""
    chosen: Branch
    rejected: Branch

    @property
    def lengths(self) -> Lengths:
        """Numbers of tokens of the trunk and of either branch."""
        return Lengths(len(self.trunk), len(self.chosen.tokens), len(self.rejected.tokens))


@dataclass(frozen=True, slots=True, eq=False)
class RenderedPair:
    """A pair as token ids."""

    id: str
    long: TrunkAndBranches
    short: tuple[TrunkAndBranches, ...]
    """One per turn, each with exactly one span per branch."""
    num_removed: int = 0
    """Context tokens that ``truncate`` removed, long and short contexts together."""

    def conversations(self, context: Context) -> tuple[TrunkAndBranches, ...]:
        """All turns on that context: one conversation with all of them, or one a turn."""
        return self.short if context == "short" else (self.long,)


def render_pair(
    pair: Pair, tokenizer: "PreTrainedTokenizerFast", max_length: int, overlong: Overlong
) -> RenderedPair | None:
    """Render and tokenise all conversations of a pair; None if it is too long and ``overlong`` is ``skip``.

    Args:
        max_length: the limit in tokens; see the head of this file for what it limits and what ``overlong`` does.

    Raises:
        UserError: the template is unusable, a text holds a control token of the tokenizer, an answer's border is not
            a border between tokens, or (`TooLong`) the pair is too long. The message names the pair.
    """
    codec = codec_of(tokenizer, chat_template_of(tokenizer))
    try:
        _refuse_control_tokens(pair, codec)
        conversations = [
            _Conversation("the long conversation", pair.context, range(len(pair.turns))),
            *(
                _Conversation(f"the short conversation of turns[{index}]", turn.short_context, range(index, index + 1))
                for index, turn in enumerate(pair.turns)
            ),
        ]
        rendered = [_render_conversation(pair, what, codec, max_length, overlong) for what in conversations]
    except UserError as error:
        raise type(error)(f"pair {pair.id!r}: {error}") from error
    if overlong == "skip" and any(conversation.lengths.longer > max_length for conversation, _ in rendered):
        return None
    (long, _), *shorts = rendered
    num_removed = sum(removed for _, removed in rendered)
    return RenderedPair(pair.id, long, tuple(short for short, _ in shorts), num_removed)


@dataclass(frozen=True, slots=True)
class _Conversation:
    name: str
    context: str
    turns: range


def _render_conversation(
    pair: Pair, conversation: _Conversation, codec: Codec, max_length: int, overlong: Overlong
) -> tuple[TrunkAndBranches, int]:
    """Both branches over one context; returns them and the number of context tokens removed."""
    turns = [pair.turns[index] for index in conversation.turns]
    instructions = [turn.instruction for turn in turns]
    try:
        texts = [
            render_text(codec.tokenizer, conversation.context, instructions, answers)
            for answers in ([turn.chosen for turn in turns], [turn.rejected for turn in turns])
        ]
        chosen = tokenise(codec, texts[0])
        rejected = tokenise(codec, texts[1], like=(texts[0], chosen))
        last_prompt = int(chosen.spans[0, 0]) - 1
        if not np.array_equal(chosen.ids[: last_prompt + 1], rejected.ids[: rejected.spans[0, 0]]):
            raise UserError(
                "chosen and rejected are tokenised differently before the first answer, so they cannot share a trunk;"
                " an answer's first characters merge with the template's: change how it begins"
            )
        _require_different_answers(chosen, rejected)
        both = TrunkAndBranches(chosen.ids[:last_prompt], _branch(chosen, last_prompt), _branch(rejected, last_prompt))
        num_excess = both.lengths.longer - max_length
        if num_excess <= 0 or overlong == "skip":
            return both, 0
        if overlong == "refuse":
            raise TooLong(
                f"{both.lengths.longer} tokens, more than the limit of {max_length} (--max-length): shorten the"
                " context, raise the limit, or choose --overlong truncate or skip"
            )
        cut, cut_end = _middle_of_context(chosen, num_excess, max_length)
    except UserError as error:
        raise type(error)(f"{conversation.name}: {error}") from error
    trunk = np.concatenate([both.trunk[:cut], both.trunk[cut_end:]])
    return TrunkAndBranches(trunk, both.chosen, both.rejected), cut_end - cut


def _require_different_answers(chosen: Tokens, rejected: Tokens) -> None:
    """Texts that differ can be the same tokens: a tokenizer may normalise Unicode, or drop what it does not know."""
    for turn, spans in enumerate(zip(chosen.spans.tolist(), rejected.spans.tolist(), strict=True)):
        ours, theirs = (tokens.ids[slice(*span)] for tokens, span in zip((chosen, rejected), spans, strict=True))
        if np.array_equal(ours, theirs):
            raise UserError(
                f"chosen and rejected of its turn {turn} are the same tokens, though their texts differ; a preference "
                "needs two different answers: drop the turn"
            )


def _branch(tokens: Tokens, last_prompt: int) -> Branch:
    return Branch(tokens.ids[last_prompt : tokens.spans[-1, 1]], tokens.spans - np.int32(last_prompt))


def _middle_of_context(tokens: Tokens, num_excess: int, max_length: int) -> tuple[int, int]:
    """The range of at least ``num_excess`` tokens around the context's middle, cut between whole characters."""
    first, last = tokens.context
    cut = first + (last - first - num_excess) // 2
    cut_end = cut + num_excess
    # Tokens that share a character (a character of several bytes) start before their predecessor ends.
    while cut > first and tokens.starts[cut] < tokens.ends[cut - 1]:
        cut -= 1
    while cut_end < last and tokens.starts[cut_end] < tokens.ends[cut_end - 1]:
        cut_end += 1
    if cut <= first or cut_end >= last:
        raise TooLong(
            f"{num_excess} tokens must go to fit the limit of {max_length} (--max-length), but the context has only"
            f" {max(last - first, 0)}: shorten the instructions or answers, raise the limit, or choose --overlong skip"
        )
    return cut, cut_end


def _refuse_control_tokens(pair: Pair, codec: Codec) -> None:
    """A text that spells a control token would be read as one: an end of turn inside a context, for example."""
    if codec.control_token is None:
        return
    texts = [("context", pair.context)]
    for index, turn in enumerate(pair.turns):
        texts += [
            (f"turns[{index}].{name}", getattr(turn, name))
            for name in ("short_context", "instruction", "chosen", "rejected")
        ]
    for name, text in texts:
        if match := codec.control_token.search(text):
            raise UserError(
                f"{name} holds the control token {match.group()!r} at character {match.start()}, which the tokenizer"
                " would not read as text; remove or rewrite it"
            )

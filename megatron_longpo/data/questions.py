"""Whether the long and the short conversation of a turn ask the same, told from their tokens.

Tokens do not say where a context ends and an instruction begins, and the first ones of an instruction may be others
after another context. So the texts before the assistant's header are compared, as decoded from the tokens:

  first turn    both end with ``"\\n\\n"`` + instruction, after different contexts: what they have in common at the end
                must reach back to an empty line. Where an instruction has empty lines itself, a difference before its
                last one is not seen.
  later turns   the long conversation has the instruction alone, between the template's own text and the header: the
                short one must end with an empty line and all of it.

White space before an instruction is not compared: some templates strip it where it begins a message.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from megatron_longpo.data.chat import num_common, render_text
from megatron_longpo.data.labels import Template
from megatron_longpo.data.render import TrunkAndBranches
from megatron_longpo.data.tokenise import IntArray, codec_of, tokenise
from megatron_longpo.data.tokenizer import chat_template_of
from megatron_longpo.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_WINDOW = 4096  # tokens before the header that are decoded; of a longer instruction the end is compared
_INSTRUCTIONS = ("Which one?", "a", "9", "é", "-")
"""Beginnings that have nothing in common; what is the same before all of them is the template's."""


@dataclass(frozen=True, slots=True, eq=False)
class Questions:
    """What it takes to read the instructions out of tokens."""

    backend: Any
    """``tokenizers.Tokenizer``"""
    num_header: int
    """Tokens of the template before an answer."""
    before: str
    """What stands between an end of turn and the next instruction."""

    def check(self, long: TrunkAndBranches, short: Sequence[TrunkAndBranches]) -> None:
        """Compare every turn of ``long`` with its conversation in ``short``.

        Raises:
            UserError: a turn's instruction is not the same in both, with its number.
        """
        for turn, item in enumerate(short):
            ours, theirs = self._text(_asked(long, turn)), self._text(_asked(item, 0))
            same = _end_alike(ours, theirs) if turn == 0 else self._is_end_of(ours, theirs)
            if not same:
                raise UserError(
                    f"turn {turn} asks {ours[-60:]!r} in the long conversation and {theirs[-60:]!r} in the short one;"
                    " the same instruction must stand at the end of both: drop the row"
                )

    def _text(self, ids: IntArray) -> str:
        asked = ids[: len(ids) - self.num_header][-_WINDOW:]
        return self.backend.decode(asked.tolist(), skip_special_tokens=False)

    def _is_end_of(self, ours: str, theirs: str) -> bool:
        instruction = ours.removeprefix(self.before).lstrip()
        if not ours.startswith(self.before):  # cut by the window
            return theirs.endswith(instruction) or instruction.endswith(theirs)
        if not theirs.endswith(instruction):
            return False
        context = theirs.removesuffix(instruction)
        return "\n\n" in context[len(context.rstrip()) :]


def learn_questions(tokenizer: "PreTrainedTokenizerFast", template: Template) -> Questions:
    """What the chat template writes before an instruction, from conversations made for it.

    Raises:
        UserError: the chat template is missing or unusable (see `chat.check_chat_template`).
    """
    codec = codec_of(tokenizer, chat_template_of(tokenizer))
    num_header = len(template.header)
    texts: list[str] = []
    for instruction in _INSTRUCTIONS:
        tokens = tokenise(codec, render_text(tokenizer, "A text.", ["Which?", instruction], ["This.", "That."]))
        (_, start), (end, _) = tokens.spans
        texts.append(codec.backend.decode(tokens.ids[start : end - num_header].tolist(), skip_special_tokens=False))
    num_before = min(num_common(texts[0], text) for text in texts[1:])
    return Questions(codec.backend, num_header, texts[0][:num_before])


def _asked(both: TrunkAndBranches, turn: int) -> IntArray:
    """All tokens before a response, back to the response before it; the same in chosen and rejected."""
    tokens, spans = both.chosen.tokens, both.chosen.spans
    if turn == 0:
        return np.concatenate([both.trunk, tokens[: spans[0, 0]]])
    return tokens[spans[turn - 1, 1] : spans[turn, 0]]


def _end_alike(ours: str, theirs: str) -> bool:
    length = num_common(ours[::-1], theirs[::-1])
    return "\n\n" in ours[len(ours) - length :] or length == min(len(ours), len(theirs))

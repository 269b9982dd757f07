"""How many tokens a conversation is for the engine that continues it, and whether its answer still has room."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from megatron_longpo.data.chat import apply_template, begin_answer
from megatron_longpo.data.render import Context
from megatron_longpo.data.tokenise import codec_of
from megatron_longpo.data.tokenizer import chat_template_of
from megatron_longpo.errors import TooLong
from megatron_longpo.generate.engine import Message, Request

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def prompt_tokens(tokenizer: "PreTrainedTokenizerFast", messages: Sequence[Message], answer_start: str = "") -> int:
    """Tokens of the whole prompt: contents, the template's words around them, and the header of the answer to come.

    Not of the answer, but for its given beginning. The same count that an engine holds against its context limit.

    Raises:
        UserError: no usable chat template, or one that fails on these messages.
    """
    return len(prompt_ids(tokenizer, messages, answer_start))


def prompt_ids(tokenizer: "PreTrainedTokenizerFast", messages: Sequence[Message], answer_start: str = "") -> list[int]:
    """The prompt's token ids; see `prompt_tokens`."""
    codec = codec_of(tokenizer, chat_template_of(tokenizer))
    text = prompt_text(tokenizer, messages, answer_start)
    return codec.backend.encode(text, add_special_tokens=False).ids


def prompt_text(tokenizer: "PreTrainedTokenizerFast", messages: Sequence[Message], answer_start: str = "") -> str:
    """The prompt in the template's words; see `prompt_tokens`."""
    if answer_start:
        return begin_answer(tokenizer, messages, answer_start)
    return apply_template(tokenizer, list(messages), add_generation_prompt=True)


def require_room(request: Request, num_prompt_tokens: int, limits: Mapping[Context, int]) -> None:
    """Refuse a request that its engine's context cannot hold.

    Raises:
        TooLong: prompt and answer together are longer than ``limits[request.context]``.
    """
    wanted = num_prompt_tokens + request.sampling.max_new_tokens
    limit = limits[request.context]
    if wanted > limit:
        raise TooLong(
            f"a prompt of {num_prompt_tokens} tokens and an answer of up to {request.sampling.max_new_tokens} need a"
            f" {request.context} context of {wanted}, and the model has {limit}; use smaller chunks or documents,"
            " shorter answers, or a model with a longer context"
        )

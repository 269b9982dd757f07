"""Before the first question: has the server the model, does it count tokens as we do, does it draw when asked to?"""

import asyncio
import logging
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from megatron_longpo.errors import UserError
from megatron_longpo.generate.engines.prompt_length import prompt_tokens
from megatron_longpo.generate.engines.retries import (
    BrokenAnswerError,
    Patience,
    ask_until_answered,
    read_object,
    whole_number,
)
from megatron_longpo.strict_json import is_object

if TYPE_CHECKING:
    from openai import AsyncOpenAI
    from transformers import PreTrainedTokenizerFast

TOLERANCE = 8
"""Tokens by which the counts may differ: a beginning of sequence, a date in the template."""

PROBE = """Tokenizers of different families agree on plain words and part on the rest. \
def f(x: int) -> list[float]:\n\t\treturn [x ** 0.5, 3.14159265358979, 0x7FFF_FFFF]\n\n\
1234567890 + 9876543210 = 11111111100; 2024-02-29T23:59:59.999Z; \u20ac 1.234.567,89.
Stra\u00dfenbahnhaltestelle, \u0441\u043e\u0431\u0430\u043a\u0430, \u6771\u4eac\u90fd, \u0645\u0631\u062d\u0628\u0627, \
\u03b4\u03b5\u03bd\u03b4\u03c1\u03bf, \U0001f600\U0001f680.
antidisestablishmentarianism hippopotomonstrosesquipedalian \
qzxjkvw lorem IPSUM DoLoR sit-amet        eight blanks, <b>markup</b> &amp; {"json": [null, true, -1e-9]}."""

OPEN_ENDED = "Write down twelve words that have nothing to do with each other."
"""What no model that draws its words answers alike three times."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What a server says of the model to ask for."""

    name: str
    limit: int | None
    """Its context length in tokens, if the server says it (vLLM does)."""
    listed: tuple[str, ...]
    """All names that the server lists."""


async def choose_model(client: "AsyncOpenAI", endpoint: str, name: str | None, patience: Patience) -> ServedModel:
    """The given model, or the only one.

    A given name that the server does not list is taken all the same: `transformers serve` lists no model that lies in
    a folder. If it is wrong, `check_tokens` finds out.

    Raises:
        UserError: no OpenAI-compatible server there; no name given, and not exactly one model listed.
    """
    try:
        models = await ask_until_answered(endpoint, patience, lambda: _list_models(client, name is not None))
    except UserError as error:
        raise UserError(f"{error}; an endpoint looks like http://localhost:8000/v1") from error
    if name is None:
        if len(models) != 1:
            listed = f"the server lists the models {', '.join(models)}" if models else "the server lists no model"
            raise UserError(f"{endpoint}: {listed}; say which with --model-name")
        name = next(iter(models))
    return ServedModel(name, whole_number(models.get(name, {}).get("max_model_len")), tuple(models))


async def check_tokens(
    client: "AsyncOpenAI",
    endpoint: str,
    model: ServedModel,
    tokenizer: "PreTrainedTokenizerFast",
    patience: Patience,
) -> None:
    """Ask for one token and compare the server's count of the prompt with ours.

    Raises:
        UserError: the server does not serve ``model``, or with another tokenizer or chat template.
    """
    expected = prompt_tokens(tokenizer, _messages(PROBE))
    try:
        counted = await ask_until_answered(endpoint, patience, lambda: _count(client, model.name))
    except UserError as error:
        if model.name in model.listed or not model.listed:
            raise
        raise UserError(f"{error}; the server lists the models {', '.join(model.listed)}") from error
    if counted is None:
        logging.getLogger(__name__).warning(
            "%s: the server does not count tokens, so its tokenizer and chat template could not be checked", endpoint
        )
    elif abs(counted - expected) > TOLERANCE:
        raise UserError(
            f"{endpoint}: {model.name} counts {counted} tokens where the given tokenizer and chat template count"
            f" {expected}; give the folder of the model that is served, or its template with --chat-template"
        )


async def check_draws(client: "AsyncOpenAI", endpoint: str, model: ServedModel, patience: Patience) -> None:
    """Ask the same with three seeds: a server may ignore the temperature.

    `transformers serve` does (5.23), unless the model's generation_config.json says ``do_sample``.

    Raises:
        UserError: it answers all three alike.
    """
    draws = [partial(_draw, client, model.name, seed) for seed in range(3)]
    texts = await asyncio.gather(*(ask_until_answered(endpoint, patience, draw) for draw in draws))
    if len(set(texts)) == 1 and texts[0].strip():
        raise UserError(
            f"{endpoint}: {model.name} answers the same to three seeds at temperature 1 ({texts[0][:60]!r}), so it does"
            ' not draw; let it (transformers serve: "do_sample": true in the model\'s generation_config.json), or ask'
            " with --question-temperature 0 --answer-temperature 0"
        )


async def _list_models(client: "AsyncOpenAI", may_be_missing: bool) -> dict[str, dict[str, Any]]:
    """Name -> what is said of it; nothing from a server that cannot list them, if that will do.

    `transformers serve` answers 500 on a machine without a Hugging Face cache (transformers 5.23).
    """
    import openai

    try:
        answer = await client.models.with_raw_response.list()
    except openai.APIStatusError:
        if may_be_missing:
            return {}
        raise
    models = read_object(answer.http_response.content, "list of models", "data")["data"]
    return {str(model["id"]): model for model in models if is_object(model) and "id" in model}


async def _count(client: "AsyncOpenAI", model: str) -> int | None:
    fields = await chat(client, model, _messages(PROBE), max_tokens=1, temperature=0, seed=0)
    if (answering := fields.get("model")) not in (None, model):
        logging.getLogger(__name__).warning("asked for the model %s, the server says that %r answers", model, answering)
    return usage_of(fields, "prompt_tokens")


async def _draw(client: "AsyncOpenAI", model: str, seed: int) -> str:
    fields = await chat(client, model, _messages(OPEN_ENDED), max_tokens=24, temperature=1, top_p=1, seed=seed)
    return text_of(message_of(fields))


async def chat(client: "AsyncOpenAI", model: str, messages: Any, **sampling: Any) -> dict[str, Any]:
    """Ask for a chat completion once.

    Raises:
        BrokenAnswerError: what came is none.
    """
    completions: Any = client.chat.completions.with_raw_response
    answer = await completions.create(model=model, messages=messages, **sampling)
    return read_object(answer.http_response.content, "chat completion", "choices")


def message_of(fields: dict[str, Any]) -> dict[str, Any]:
    """The message of a chat completion's one choice.

    Raises:
        BrokenAnswerError: there is not exactly one.
    """
    match fields["choices"]:
        case [{"message": message}] if is_object(message):
            return message
        case _:
            raise BrokenAnswerError("the answer is no chat completion with one message")


def text_of(message: dict[str, Any]) -> str:
    """What the model says in a message; empty where that is nothing, a refusal, or a thought alone.

    Some servers give a list of parts. Thoughts that a server keeps apart (``reasoning_content``, ``reasoning``, parts
    of the type ``thinking``) are no part of the answer.

    Raises:
        BrokenAnswerError: the content is of another type.
    """
    match message.get("content"):
        case None:
            return ""
        case str() as text:
            return text
        case [*parts]:
            return "".join(_text_of_part(part) for part in parts)
        case other:
            raise BrokenAnswerError(f"the answer's content is of the type {type(other).__name__}")


def usage_of(fields: dict[str, Any], name: str) -> int | None:
    """A count of tokens in a chat completion, if the server gives a usable one."""
    usage = fields.get("usage")
    return whole_number(usage.get(name)) if is_object(usage) else None


def _text_of_part(part: object) -> str:
    match part:
        case {"type": "text", "text": str() as text}:
            return text
        case {"type": "thinking" | "reasoning" | "refusal"}:
            return ""
        case _:
            raise BrokenAnswerError(f"the answer's content holds a part that is no text ({str(part)[:60]!r})")


def _messages(content: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": content}]

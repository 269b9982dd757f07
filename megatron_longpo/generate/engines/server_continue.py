"""Answers that a server is to continue: the completions endpoint, with the conversation rendered here.

The chat endpoint closes every assistant's message, so a beginning given there would count as a finished answer.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from megatron_longpo.data.tokenise import end_of_turn_id
from megatron_longpo.errors import UserError
from megatron_longpo.generate.engine import Request
from megatron_longpo.generate.engines.prompt_length import prompt_text, prompt_tokens
from megatron_longpo.generate.engines.retries import BrokenAnswerError, Patience, ask_until_answered, read_object
from megatron_longpo.generate.engines.server_check import PROBE, ServedModel, usage_of

if TYPE_CHECKING:
    from openai import AsyncOpenAI
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True, slots=True)
class Continuation:
    """How a server is asked to continue a rendered conversation."""

    bos: str
    """What the server puts before a prompt by itself, and so is left out of ours; empty if nothing."""
    end_of_turn: str
    """Where the model's answer ends."""
    no_penalty: Mapping[str, float]
    """What takes back a repetition penalty of the folder's generation config, as vLLM has it; empty for a server that
    refuses the field. `transformers serve` does, and makes a repetition penalty of 1 from a frequency penalty of 0."""

    def prompt(self, tokenizer: "PreTrainedTokenizerFast", messages: Any, answer_start: str) -> str:
        """What is sent."""
        return prompt_text(tokenizer, messages, answer_start).removeprefix(self.bos)


async def find_continuation(
    client: "AsyncOpenAI",
    endpoint: str,
    model: ServedModel,
    tokenizer: "PreTrainedTokenizerFast",
    patience: Patience,
) -> Continuation:
    """Ask for one token behind the beginning of an answer, and compare the server's count of the prompt with ours.

    Raises:
        UserError: the server has no completions endpoint, or reads another prompt than it is sent.
    """
    untyped: Any = tokenizer
    end_of_turn: str = untyped.convert_ids_to_tokens(end_of_turn_id(tokenizer))
    messages, start = [{"role": "user", "content": PROBE}], "The answer"
    expected = prompt_tokens(tokenizer, messages, start)
    counts: list[int] = []
    for bos in dict.fromkeys(["", untyped.bos_token or ""]):
        way = Continuation(bos, end_of_turn, {"repetition_penalty": 1.0})
        prompt = way.prompt(tokenizer, messages, start)
        try:
            way, counted = await _try(client, endpoint, model, way, prompt, patience)
        except UserError as error:
            raise UserError(
                f"{error}; the completions endpoint is needed to continue a begun answer, which RULER's are: serve "
                "with vLLM or transformers serve, or leave RULER out"
            ) from error
        if counted in (expected, None):
            return way
        counts.append(counted)
    raise UserError(
        f"{endpoint}: {model.name} counts {' or '.join(map(str, counts))} tokens in a prompt of {expected}, so it does "
        "not read what it is sent; give the folder of the model that is served"
    )


async def continued(
    client: "AsyncOpenAI", model: str, way: Continuation, tokenizer: "PreTrainedTokenizerFast", request: Request
) -> dict[str, Any]:
    """Ask once for the continuation of a conversation and of its ``answer_start``; see `_complete`."""
    sampling = request.sampling
    return await _complete(
        client,
        model,
        way,
        way.prompt(tokenizer, request.messages, request.answer_start),
        max_tokens=sampling.max_new_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        seed=request.seed,
    )


async def _try(
    client: "AsyncOpenAI", endpoint: str, model: ServedModel, way: Continuation, prompt: str, patience: Patience
) -> tuple[Continuation, int | None]:
    """Ask for one token: the way that the server takes, and its count of the prompt's tokens."""

    async def ask(way: Continuation) -> dict[str, Any]:
        sampling = {"max_tokens": 1, "temperature": 0.0, "seed": 0}
        return await ask_until_answered(
            endpoint, patience, lambda: _complete(client, model.name, way, prompt, **sampling)
        )

    try:
        fields = await ask(way)
    except UserError:
        way = replace(way, no_penalty={})
        fields = await ask(way)
    return way, usage_of(fields, "prompt_tokens")


async def _complete(
    client: "AsyncOpenAI", model: str, way: Continuation, prompt: str, **sampling: Any
) -> dict[str, Any]:
    """Ask once for what follows ``prompt``: the fields of a text completion with one choice.

    Without a stop text `transformers serve` fails under concurrent requests (transformers 5.23).

    Raises:
        BrokenAnswerError: what came is none.
    """
    completions: Any = client.completions.with_raw_response
    answer = await completions.create(
        model=model,
        prompt=prompt,
        stop=[way.end_of_turn],
        frequency_penalty=0.0,
        extra_body=dict(way.no_penalty),
        **sampling,
    )
    fields = read_object(answer.http_response.content, "text completion", "choices")
    match fields["choices"]:
        case [{"text": str()}]:
            return fields
        case _:
            raise BrokenAnswerError("the answer is no text completion with one text")

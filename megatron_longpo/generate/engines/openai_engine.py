"""Any OpenAI-compatible server: completions over HTTP, many at a time, as long as it takes.

Requests are sent in the order in which they are asked for, so that the questions about one document, which are asked
together, meet in the server's prefix cache.
"""

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from megatron_longpo import strict_json
from megatron_longpo.data.render import Context
from megatron_longpo.data.tokenizer import tokenizer_fingerprint
from megatron_longpo.errors import UserError, import_optional
from megatron_longpo.files import reading
from megatron_longpo.generate.engine import Completion, FinishReason, Request
from megatron_longpo.generate.engines.prompt_length import prompt_tokens, require_room
from megatron_longpo.generate.engines.retries import BrokenAnswerError, Patience, ask_until_answered
from megatron_longpo.generate.engines.server_check import (
    chat,
    check_draws,
    check_tokens,
    choose_model,
    message_of,
    text_of,
    usage_of,
)
from megatron_longpo.generate.engines.server_continue import Continuation, continued, find_continuation

if TYPE_CHECKING:
    from openai import AsyncOpenAI
    from transformers import PreTrainedTokenizerFast

FINISH_REASONS: dict[str, FinishReason] = {"stop": "stop", "length": "length", "content_filter": "length"}
"""A filter withholds the rest of an answer: what came is an answer that was cut."""


@dataclass(frozen=True, slots=True, eq=False)
class _Server:
    """One endpoint."""

    endpoint: str
    client: "AsyncOpenAI"
    model: str
    limit: int
    gate: asyncio.Semaphore
    """First come, first served."""
    continuation: Continuation | None
    """How it continues a begun answer; None if it will not be asked to."""


async def open_openai_engine(
    endpoint: str,
    *,
    tokenizer: "PreTrainedTokenizerFast",
    model_folder: Path | None = None,
    model_name: str | None = None,
    context_limit: int | None = None,
    long_endpoint: str | None = None,
    long_model_name: str | None = None,
    max_concurrent: int = 32,
    request_timeout_s: float = 600.0,
    retry_for_s: float = 600.0,
    first_answer_s: float = 30.0,
    draws: bool = False,
    continues: bool = False,
) -> "OpenAIEngine":
    """Connect, find the model, and hold its tokenizer against ours with small requests.

    The key is the environment's OPENAI_API_KEY, if it is set. What a request does not say (top-k, penalties) is the
    server's own setting.

    Args:
        endpoint: like ``http://localhost:8000/v1``.
        tokenizer: the model's, to count tokens with.
        model_folder: whose config.json says the context length, where neither the server nor ``context_limit`` does.
        model_name: by default the only one that the server lists.
        context_limit: tokens of prompt and answer together, if smaller than what the server says, or it says nothing.
        long_endpoint: where the long context is answered, if that takes another RoPE.
        max_concurrent: requests in flight, for each endpoint.
        request_timeout_s: see `Patience`.
        retry_for_s: see `Patience`.
        first_answer_s: ``retry_for_s`` of the requests made here: how long a server may take to come up; a wrong
            address should not take as long as ``retry_for_s`` to be noticed.
        draws: requests will have a temperature; a server that ignores it is refused.
        continues: requests will have an ``answer_start``, so all are sent to the completions endpoint; a server
            without it is refused.

    Raises:
        UserError: the package openai is missing; no such server or model; no context length; another tokenizer;
            no drawing; no continuing.
    """
    opening = Patience(request_timeout_s=request_timeout_s, retry_for_s=min(first_answer_s, retry_for_s))
    given: list[tuple[Context, str, str | None]] = [("short", endpoint, model_name)]
    if long_endpoint is not None:
        given.append(("long", long_endpoint, long_model_name or model_name))
    clients = [_client(url, request_timeout_s) for _, url, _ in given]
    servers: dict[Context, _Server] = {}
    try:
        for (context, url, name), client in zip(given, clients, strict=True):
            model = await choose_model(client, url, name, opening)
            limit = _limit(url, model.limit, context_limit, model_folder)
            await check_tokens(client, url, model, tokenizer, opening)
            if draws:
                await check_draws(client, url, model, opening)
            way = await find_continuation(client, url, model, tokenizer, opening) if continues else None
            servers[context] = _Server(url, client, model.name, limit, asyncio.Semaphore(max_concurrent), way)
    except BaseException:
        for client in clients:
            await client.close()
        raise
    patience = Patience(request_timeout_s=request_timeout_s, retry_for_s=retry_for_s)
    return OpenAIEngine(servers, tokenizer, patience, max_concurrent)


class OpenAIEngine:
    """An `Engine`; made by `open_openai_engine`."""

    def __init__(
        self,
        servers: Mapping[Context, _Server],
        tokenizer: "PreTrainedTokenizerFast",
        patience: Patience,
        max_concurrent: int,
    ) -> None:
        """Take over connected servers: ``short``, and ``long`` if that is another one."""
        short, long = servers["short"], servers.get("long", servers["short"])
        self.identity: Mapping[str, str] = {
            "engine": "openai",
            "model": _public_name(short.model),
            "long_model": _public_name(long.model),
            "tokenizer": tokenizer_fingerprint(tokenizer),
        }
        self.context_limits: Mapping[Context, int] = {"short": short.limit, "long": long.limit}
        self.num_concurrent = max_concurrent * len(servers)
        self._servers: dict[Context, _Server] = {"short": short, "long": long}
        self._tokenizer = tokenizer
        self._patience = patience

    async def complete(self, request: Request) -> Completion:
        """The server's answer.

        Raises:
            UserError: the context is too small; the server refuses; it fails for longer than the patience.
        """
        # In a thread: the tokens of a long context take a good part of a second, and other answers are on their way.
        num_prompt_tokens = await asyncio.to_thread(
            prompt_tokens, self._tokenizer, request.messages, request.answer_start
        )
        require_room(request, num_prompt_tokens, self.context_limits)
        server = self._servers[request.context]
        async with server.gate:
            return await ask_until_answered(server.endpoint, self._patience, lambda: self._ask(server, request))

    async def _ask(self, server: _Server, request: Request) -> Completion:
        assert server.continuation or not request.answer_start, "opened without continues"
        if server.continuation is not None:
            fields = await continued(server.client, server.model, server.continuation, self._tokenizer, request)
            return _completion(fields, fields["choices"][0]["text"], server.endpoint, request, self._tokenizer)
        fields = await chat(
            server.client,
            server.model,
            request.messages,
            temperature=request.sampling.temperature,
            top_p=request.sampling.top_p,
            max_tokens=request.sampling.max_new_tokens,
            seed=request.seed,
        )
        return _completion(fields, _chat_text(fields, server.endpoint), server.endpoint, request, self._tokenizer)

    async def aclose(self) -> None:
        """Close the connections."""
        for server in {id(server): server for server in self._servers.values()}.values():
            await server.client.close()


def _chat_text(fields: dict[str, Any], endpoint: str) -> str:
    """What the message of a chat completion says."""
    message, reason = message_of(fields), fields["choices"][0].get("finish_reason")
    text = text_of(message)
    if reason in ("tool_calls", "function_call") or (message.get("tool_calls") and not text):
        raise UserError(f"{endpoint}: the model calls a tool in place of an answer; serve it without tools")
    return text


def _completion(
    fields: dict[str, Any], text: str, endpoint: str, request: Request, tokenizer: "PreTrainedTokenizerFast"
) -> Completion:
    """The answer as ours; nothing of what servers send is taken for granted."""
    reason = fields["choices"][0].get("finish_reason")
    if not isinstance(reason, str) or reason not in FINISH_REASONS:
        raise BrokenAnswerError(f"the answer ends with the reason {reason!r}")
    return Completion(
        text=text,
        finish=FINISH_REASONS[reason],
        num_prompt_tokens=usage_of(fields, "prompt_tokens")
        or prompt_tokens(tokenizer, request.messages, request.answer_start),
        num_new_tokens=usage_of(fields, "completion_tokens") or _num_tokens(tokenizer, text),
    )


def _num_tokens(tokenizer: "PreTrainedTokenizerFast", text: str) -> int:
    whole = text.encode("utf-8", "replace").decode()  # the tokenizer takes no half of a surrogate pair
    return len(tokenizer.encode(whole, add_special_tokens=False))  # pyright: ignore[reportUnknownMemberType]


def _client(endpoint: str, request_timeout_s: float) -> "AsyncOpenAI":
    purpose = "servers are asked with the package openai, which cannot be imported"
    openai = import_optional("openai", purpose, extra="generate")
    try:
        url = urlsplit(endpoint)
        usable = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:  # a broken IPv6 address, a port above 65535
        usable = False
    if not usable:
        raise UserError(f"--endpoint {endpoint}: not a URL; give one like http://localhost:8000/v1")
    return openai.AsyncOpenAI(
        base_url=endpoint,
        api_key=os.environ.get("OPENAI_API_KEY", "").strip()
        or "none",  # local servers want none, the package wants some
        timeout=openai.Timeout(request_timeout_s, connect=min(10.0, request_timeout_s)),
        max_retries=0,
    )


def _limit(endpoint: str, served: int | None, given: int | None, folder: Path | None) -> int:
    known = [limit for limit in (served, given) if limit is not None]
    if known:
        return min(known)
    config = folder / "config.json" if folder is not None else None
    if config is not None and config.is_file():
        with reading(config, OSError, ValueError, RecursionError):
            fields: object = strict_json.loads(config.read_text(encoding="utf-8"))
        if strict_json.is_object(fields) and isinstance(limit := fields.get("max_position_embeddings"), int):
            return limit
    raise UserError(f"{endpoint}: the server does not say how long its context is; say it with --context-limit")


def _public_name(model: str) -> str:
    """Servers of a local folder call the model by its path, which is another one elsewhere."""
    return PurePath(model).name if model.startswith(("/", ".", "~")) else model

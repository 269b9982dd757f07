"""The engine that the options of ``generate`` name, opened and held against the lengths it must answer."""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_longpo.commands.dataset_output import given_template
from megatron_longpo.commands.generate_options import policy_rope_of
from megatron_longpo.commands.number_options import require_at_least_1, require_seconds
from megatron_longpo.data.render import Context
from megatron_longpo.errors import UserError
from megatron_longpo.generate.engine import Engine
from megatron_longpo.generate.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """What opens an engine, here or in another process."""

    engine: str
    model: Path
    chat_template: str | None
    """Jinja source."""
    policy_rope: dict[str, Any] | None
    length: int
    """Tokens of a long conversation."""
    dtype: str | None
    device: str
    batch_size: int
    endpoint: str | None
    long_endpoint: str | None
    served_model: str | None
    long_served_model: str | None
    context_limit: int | None
    max_concurrent: int
    request_timeout_s: float
    retry_for_s: float
    tensor_parallel_size: int
    draws: bool
    """Some temperature is above 0."""


def engine_options(args: argparse.Namespace, settings: Settings) -> EngineOptions:
    """Read them from the command line; raises UserError for options that the engine does not have."""
    _check(args)
    return EngineOptions(
        engine=args.engine,
        model=args.model,
        chat_template=given_template(args),
        policy_rope=policy_rope_of(args),
        length=settings.length,
        dtype=args.dtype,
        device=args.device,
        batch_size=args.batch_size,
        endpoint=args.endpoint,
        long_endpoint=args.long_endpoint,
        served_model=args.served_model,
        long_served_model=args.long_served_model,
        context_limit=args.context_limit,
        max_concurrent=args.max_concurrent,
        request_timeout_s=args.request_timeout,
        retry_for_s=args.retry_for,
        tensor_parallel_size=args.tensor_parallel_size,
        draws=settings.question.temperature > 0 or settings.answer.temperature > 0,
    )


async def open_engine(options: EngineOptions) -> Engine:
    """Load the model or connect to the server.

    Raises:
        UserError: it cannot be opened; what was seen and what to change.
    """
    if options.engine == "openai":
        from megatron_longpo.data.tokenizer import load_tokenizer
        from megatron_longpo.generate.engines.openai_engine import open_openai_engine

        assert options.endpoint is not None  # _check
        return await open_openai_engine(
            options.endpoint,
            tokenizer=load_tokenizer(options.model, options.chat_template),
            model_folder=options.model,
            model_name=options.served_model,
            context_limit=options.context_limit,
            long_endpoint=options.long_endpoint,
            long_model_name=options.long_served_model,
            max_concurrent=options.max_concurrent,
            request_timeout_s=options.request_timeout_s,
            retry_for_s=options.retry_for_s,
            draws=options.draws,
        )
    from megatron_longpo.generate.engines.local_load import PolicyRope

    rope = None
    if options.policy_rope:
        rope = PolicyRope(rope_parameters=options.policy_rope, max_position_embeddings=options.length)
    if options.engine == "vllm":
        from megatron_longpo.generate.engines.vllm_engine import open_vllm_engine

        return open_vllm_engine(
            options.model,
            chat_template=options.chat_template,
            dtype=options.dtype or "auto",
            tensor_parallel_size=options.tensor_parallel_size,
            context_limit=options.context_limit,
            num_concurrent=options.max_concurrent,
            policy_rope=rope,
        )
    from transformers.utils import logging

    from megatron_longpo.generate.engines.local_engine import open_local_engine

    logging.disable_progress_bar()  # of the weights: it would stand in the display
    return open_local_engine(
        options.model,
        chat_template=options.chat_template,
        batch_size=options.batch_size,
        dtype=options.dtype,
        device=options.device,
        policy_rope=rope,
    )


def check_limits(limits: Mapping[Context, int], settings: Settings, asks: bool) -> None:
    """Refuse an engine whose context is too small for what it will be asked.

    Args:
        asks: the model writes the questions.

    Raises:
        UserError: which option needs how much, and what the engine has.
    """
    answer = max(settings.question.max_new_tokens if asks else 0, settings.answer.max_new_tokens)
    short = settings.max_chunk_tokens + settings.question_room + answer
    if short > limits["short"]:
        raise UserError(
            f"--max-chunk-tokens {settings.max_chunk_tokens} with an instruction and an answer needs a context of "
            f"{short} tokens, and the model has {limits['short']}; lower --max-chunk-tokens"
        )
    if settings.length > limits["long"]:
        raise UserError(
            f"--length {settings.length} is more than the {limits['long']} tokens of the model's context; lower it, or "
            "give the policy's RoPE with --policy-rope (--engine transformers) or the server that has it with "
            "--long-endpoint (--engine openai)"
        )


def _check(args: argparse.Namespace) -> None:
    if args.engine == "openai" and args.endpoint is None:
        raise UserError("--engine openai needs --endpoint URL, like http://localhost:8000/v1")
    if args.engine != "openai":
        for name in ("endpoint", "long_endpoint", "served_model", "long_served_model"):
            if vars(args)[name] is not None:
                raise UserError(f"--{name.replace('_', '-')} is for --engine openai, not for --engine {args.engine}")
    elif args.policy_rope is not None:
        raise UserError(
            "--policy-rope cannot change a server's model; serve one with the policy's RoPE and give it as "
            "--long-endpoint"
        )
    if args.engine == "transformers" and args.context_limit is not None:
        raise UserError("--context-limit is for --engine openai and vllm; here the model's config says it")
    require_at_least_1(args, "batch_size", "max_concurrent", "num_engines", "tensor_parallel_size")
    require_seconds(args, "request_timeout", "retry_for")
    if not 0 <= args.gpus_per_engine < float("inf"):
        raise UserError(f"--gpus-per-engine {args.gpus_per_engine}: needs at least 0")

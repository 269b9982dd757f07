"""The engine that the options of ``generate`` name, opened and held against the lengths it must answer."""

import argparse
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

from megatron_longpo.commands.engine_options import SERVER_OPTIONS, engine_choice
from megatron_longpo.commands.generate_options import policy_rope_of
from megatron_longpo.commands.number_options import require_at_least_1
from megatron_longpo.data.render import Context
from megatron_longpo.errors import UserError
from megatron_longpo.generate.engine import Engine
from megatron_longpo.generate.settings import Settings

OpenEngine = Callable[[], Awaitable[Engine]]


def engine_opening(args: argparse.Namespace, settings: Settings) -> OpenEngine:
    """What opens the engine, here or in another process; raises UserError for options that it does not have."""
    choice = engine_choice(args, (*SERVER_OPTIONS, "long_endpoint", "long_served_model"))
    _check(args)
    from megatron_longpo.generate.engines.local_load import PolicyRope
    from megatron_longpo.generate.engines.opening import open_engine

    rope = policy_rope_of(args)
    return partial(
        open_engine,
        choice,
        args.model,
        policy_rope=PolicyRope(rope_parameters=rope, max_position_embeddings=settings.length) if rope else None,
        long_endpoint=args.long_endpoint,
        long_served_model=args.long_served_model,
        draws=settings.question.temperature > 0 or settings.answer.temperature > 0,
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
            "give the policy's RoPE with --policy-rope (--engine hf) or the server that has it with "
            "--long-endpoint (--engine openai)"
        )


def _check(args: argparse.Namespace) -> None:
    if args.engine == "openai" and args.policy_rope is not None:
        raise UserError(
            "--policy-rope cannot change a server's model; serve one with the policy's RoPE and give it as "
            "--long-endpoint"
        )
    if args.engine == "hf" and args.context_limit is not None:
        raise UserError("--context-limit is for --engine openai and vllm; here the model's config says it")
    require_at_least_1(args, "num_engines")
    if not 0 <= args.gpus_per_engine < float("inf"):
        raise UserError(f"--gpus-per-engine {args.gpus_per_engine}: needs at least 0")

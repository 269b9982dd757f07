"""The options of every verb that asks a model, and the engine that they choose."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_longpo.commands.dataset_output import given_template
from megatron_longpo.commands.number_options import require_at_least_1, require_seconds
from megatron_longpo.errors import UserError

if TYPE_CHECKING:
    from megatron_longpo.generate.engines.opening import EngineChoice

SERVER_OPTIONS = ("endpoint", "served_model")


def add_engine_options(group: argparse._ArgumentGroup) -> None:
    """Declare them."""
    group.add_argument(
        "--engine",
        type=lambda name: "hf" if name == "transformers" else name,  # its old name
        choices=("hf", "openai", "vllm"),
        default="hf",
        help="hf: transformers in this process (default); openai: a server; vllm: vLLM in this process",
    )
    group.add_argument(
        "--chat-template", type=Path, metavar="FILE", help="Jinja template in place of the model folder's"
    )
    group.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        help="of the weights (default: float32 on a CPU, else the checkpoint's)",
    )
    group.add_argument("--device", default="auto", metavar="NAME", help="of hf: auto, cpu, cuda, cuda:N")
    group.add_argument("--batch-size", type=int, default=8, metavar="N", help="prompts in one pass of hf (default: 8)")
    group.add_argument(
        "--tensor-parallel-size", type=int, default=1, metavar="N", help="GPUs of one vLLM engine (default: 1)"
    )
    group.add_argument(
        "--endpoint", metavar="URL", help="of an OpenAI-compatible server, like http://localhost:8000/v1"
    )
    group.add_argument("--served-model", metavar="NAME", help="the server's name of the model (default: its only one)")
    group.add_argument(
        "--context-limit", type=int, metavar="N", help="tokens, where a server does not tell, or less is to be used"
    )
    group.add_argument(
        "--max-concurrent", type=int, default=64, metavar="N", help="requests in flight, openai and vllm (default: 64)"
    )
    group.add_argument(
        "--request-timeout", type=float, default=600, metavar="S", help="seconds for one attempt (default: 600)"
    )
    group.add_argument(
        "--retry-for", type=float, default=1800, metavar="S", help="seconds until a request is given up (default: 1800)"
    )


def engine_choice(args: argparse.Namespace, server_options: tuple[str, ...] = SERVER_OPTIONS) -> "EngineChoice":
    """What they choose.

    Args:
        server_options: those that only a server has.

    Raises:
        UserError: an option that the engine needs is missing, or that it does not have is given; a number is out of its
            range.
    """
    if args.engine == "openai" and args.endpoint is None:
        raise UserError("--engine openai needs --endpoint URL, like http://localhost:8000/v1")
    if args.engine != "openai" and (given := [name for name in server_options if vars(args)[name] is not None]):
        raise UserError(f"--{given[0].replace('_', '-')} is for --engine openai, not for --engine {args.engine}")
    require_at_least_1(args, "context_limit", "batch_size", "max_concurrent", "tensor_parallel_size")
    require_seconds(args, "request_timeout", "retry_for")
    from megatron_longpo.generate.engines.opening import EngineChoice

    return EngineChoice(
        engine=args.engine,
        chat_template=given_template(args),
        dtype=args.dtype,
        device=args.device,
        batch_size=args.batch_size,
        context_limit=args.context_limit,
        endpoint=args.endpoint,
        served_model=args.served_model,
        max_concurrent=args.max_concurrent,
        request_timeout_s=args.request_timeout,
        retry_for_s=args.retry_for,
        tensor_parallel_size=args.tensor_parallel_size,
    )

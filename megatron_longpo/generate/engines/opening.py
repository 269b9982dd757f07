"""An engine, by the name and the options that every verb has for it (commands/engine_options.py)."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from megatron_longpo.data.tokenizer import load_tokenizer
from megatron_longpo.generate.engine import Engine
from megatron_longpo.generate.engines.local_load import PolicyRope

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineChoice:
    """What opens an engine on a model, here or in another process."""

    engine: Literal["hf", "vllm", "openai"]
    """hf: transformers in this process."""
    chat_template: str | None = None
    """Jinja source in place of the folder's own."""
    dtype: str | None = None
    """Of hf and vllm."""
    device: str = "auto"
    """Of hf."""
    batch_size: int = 8
    """Prompts in one pass (hf)."""
    context_limit: int | None = None
    """Tokens, where a server does not tell its own, or less than the model's is to be used."""
    endpoint: str | None = None
    served_model: str | None = None
    max_concurrent: int = 64
    """Requests in flight (vllm, openai)."""
    request_timeout_s: float = 600.0
    retry_for_s: float = 1800.0
    tensor_parallel_size: int = 1
    """GPUs of one model (vllm)."""


async def open_engine(
    choice: EngineChoice,
    folder: Path,
    *,
    tokenizer: "PreTrainedTokenizerFast | None" = None,
    policy_rope: PolicyRope | None = None,
    long_endpoint: str | None = None,
    long_served_model: str | None = None,
    draws: bool = False,
    continues: bool = False,
) -> Engine:
    """Load the model or connect to the server.

    Args:
        folder: of the model; of a server, for its tokenizer.
        tokenizer: the folder's with the chat template, where it is there already.
        policy_rope: for answers from the long context (hf, vllm).
        long_endpoint: of a second server, for the same (openai), with long_served_model.
        draws: some temperature is above 0.
        continues: begun answers are to be continued.

    Raises:
        UserError: it cannot be opened; what was seen and what to change.
    """
    if choice.engine == "openai":
        from megatron_longpo.generate.engines.openai_engine import open_openai_engine

        assert choice.endpoint is not None  # as the options were read
        return await open_openai_engine(
            choice.endpoint,
            tokenizer=tokenizer or load_tokenizer(folder, choice.chat_template),
            model_folder=folder,
            model_name=choice.served_model,
            context_limit=choice.context_limit,
            long_endpoint=long_endpoint,
            long_model_name=long_served_model,
            max_concurrent=choice.max_concurrent,
            request_timeout_s=choice.request_timeout_s,
            retry_for_s=choice.retry_for_s,
            draws=draws,
            continues=continues,
        )
    if choice.engine == "vllm":
        from megatron_longpo.generate.engines.vllm_engine import open_vllm_engine

        return open_vllm_engine(
            folder,
            chat_template=choice.chat_template,
            dtype=choice.dtype or "auto",
            tensor_parallel_size=choice.tensor_parallel_size,
            context_limit=choice.context_limit,
            num_concurrent=choice.max_concurrent,
            policy_rope=policy_rope,
        )
    from transformers.utils import logging

    from megatron_longpo.generate.engines.local_engine import open_local_engine

    logging.disable_progress_bar()  # of the weights: it would stand in the display
    return open_local_engine(
        folder,
        chat_template=choice.chat_template,
        batch_size=choice.batch_size,
        dtype=choice.dtype,
        device=choice.device,
        policy_rope=policy_rope,
    )

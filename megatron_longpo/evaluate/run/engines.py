"""The engine that a run asks: opened once for all long-context cells of a model, and once for its short ones."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from megatron_longpo.errors import UserError
from megatron_longpo.evaluate.run.models import Model
from megatron_longpo.generate.engine import Engine

if TYPE_CHECKING:
    from megatron_longpo.evaluate.short.tasks import ShortModel


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineChoice:
    """What opens an engine on any of the models."""

    name: str
    """hf, vllm or openai."""
    chat_template: str | None = None
    """Jinja source in place of the folders' own."""
    dtype: str | None = None
    device: str = "auto"
    batch_size: int = 8
    """Prompts in one pass (hf)."""
    context_limit: int | None = None
    """Tokens, where less than the model's configuration says is to be used."""
    endpoint: str | None = None
    served_model: str | None = None
    max_concurrent: int = 32
    """Requests in flight (vllm, openai)."""
    request_timeout_s: float = 600.0
    retry_for_s: float = 600.0
    tensor_parallel_size: int = 1

    def dtype_of(self, model: Model) -> str:
        """What its weights will be computed in, known before they are loaded."""
        from megatron_longpo.generate.engines.local_load import default_dtype, find_device

        if self.name == "openai":
            return "as served"
        dtype = default_dtype(self.dtype, find_device(self.device)) if self.name == "hf" else self.dtype or "auto"
        return model.dtype if dtype == "auto" else dtype

    def context_of(self, model: Model) -> int:
        """Tokens that prompt and answer may have together; a server may have less, and says so when it is opened."""
        return min(model.context, self.context_limit or model.context)


async def open_long(choice: EngineChoice, model: Model, continues: bool) -> Engine:
    """Open the engine for long-context tasks.

    Args:
        continues: a begun answer is to be continued (RULER); else a server may have chats alone.

    Raises:
        UserError: it cannot be opened; what was seen and what to change.
    """
    if choice.name == "openai":
        return await _open_server(choice, model, continues)
    if choice.name == "vllm":
        from megatron_longpo.generate.engines.vllm_engine import open_vllm_engine

        return open_vllm_engine(
            model.folder,
            chat_template=choice.chat_template,
            dtype=choice.dtype or "auto",
            tensor_parallel_size=choice.tensor_parallel_size,
            context_limit=choice.context_limit,
            num_concurrent=choice.max_concurrent,
        )
    from transformers.utils import logging

    from megatron_longpo.generate.engines.local_engine import open_local_engine

    logging.disable_progress_bar()  # of the weights: it would stand in the display
    return open_local_engine(
        model.folder,
        chat_template=choice.chat_template,
        batch_size=choice.batch_size,
        dtype=choice.dtype,
        device=choice.device,
    )


async def _open_server(choice: EngineChoice, model: Model, continues: bool) -> Engine:
    from megatron_longpo.generate.engines.openai_engine import open_openai_engine

    assert choice.endpoint is not None
    return await open_openai_engine(
        choice.endpoint,
        tokenizer=model.tokenizer,
        model_folder=model.folder,
        model_name=choice.served_model,
        context_limit=choice.context_limit,
        max_concurrent=choice.max_concurrent,
        request_timeout_s=choice.request_timeout_s,
        retry_for_s=choice.retry_for_s,
        continues=continues,
    )


def open_short(choice: EngineChoice, model: Model) -> "ShortModel":
    """Open the engine for short tasks: it gives log-probabilities.

    Raises:
        UserError: it cannot be opened; a server that gives no log-probabilities of prompts.
    """
    from megatron_longpo.evaluate.short import engines as short_engines

    context = choice.context_of(model)
    if choice.name == "openai":
        assert choice.endpoint is not None
        if choice.served_model is None:
            raise UserError("the short tasks need the server's name of the model; give --served-model")
        return short_engines.served_short_model(
            choice.endpoint,
            choice.served_model,
            model.tokenizer,
            context_limit=context,
            num_concurrent=choice.max_concurrent,
            timeout_s=int(choice.request_timeout_s),
        )
    if choice.name == "vllm":
        dtype = choice.dtype or "auto"
        return short_engines.vllm_short_model(model.folder, model.tokenizer, dtype=dtype, context_limit=context)
    from transformers.utils import logging

    from megatron_longpo.generate.engines.local_load import default_dtype, find_device, load_weights

    logging.disable_progress_bar()
    device = find_device(choice.device)
    weights = load_weights(model.folder, default_dtype(choice.dtype, device), device)
    return short_engines.local_short_model(
        weights, model.tokenizer, batch_size=choice.batch_size, context_limit=context
    )

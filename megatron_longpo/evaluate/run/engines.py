"""The engine that a run asks: opened once for all long-context cells of a model, and once for its short ones."""

from typing import TYPE_CHECKING

from megatron_longpo.errors import UserError
from megatron_longpo.evaluate.run.models import Model
from megatron_longpo.generate.engine import Engine
from megatron_longpo.generate.engines.opening import EngineChoice, open_engine

if TYPE_CHECKING:
    from megatron_longpo.evaluate.short.tasks import ShortModel


def dtype_of(choice: EngineChoice, model: Model) -> str:
    """What a model's weights will be computed in, known before they are loaded."""
    from megatron_longpo.generate.engines.local_load import default_dtype, find_device

    if choice.engine == "openai":
        return "as served"
    dtype = default_dtype(choice.dtype, find_device(choice.device)) if choice.engine == "hf" else choice.dtype or "auto"
    return model.dtype if dtype == "auto" else dtype


def context_of(choice: EngineChoice, model: Model) -> int:
    """Tokens that prompt and answer may have together; a server may have less, and says so when it is opened."""
    return min(model.context, choice.context_limit or model.context)


async def open_long(choice: EngineChoice, model: Model, continues: bool) -> Engine:
    """Open the engine for long-context tasks.

    Args:
        continues: a begun answer is to be continued (RULER); else a server may have chats alone.

    Raises:
        UserError: it cannot be opened; what was seen and what to change.
    """
    return await open_engine(choice, model.folder, tokenizer=model.tokenizer, continues=continues)


def open_short(choice: EngineChoice, model: Model) -> "ShortModel":
    """Open the engine for short tasks: it gives log-probabilities.

    Raises:
        UserError: it cannot be opened; a server that gives no log-probabilities of prompts.
    """
    from megatron_longpo.evaluate.short import engines as short_engines

    context = context_of(choice, model)
    if choice.engine == "openai":
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
    if choice.engine == "vllm":
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

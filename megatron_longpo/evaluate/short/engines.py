"""A model that answers lm-eval's requests: in this process by transformers or vLLM, or behind a server.

lm-eval's own classes do the work. What is told to all of them is where the context ends, and that a text begins as the
tokenizer begins every text: with one beginning-of-sequence token (Llama, Mistral) or none (Qwen).
"""

from pathlib import Path
from typing import Any

from megatron_longpo.errors import UserError, import_optional
from megatron_longpo.evaluate.short.tasks import PURPOSE, ShortModel, quiet_lm_eval

_REQUESTS_PER_SLOT = 16
"""So many are sent to a server for each that it works on at a time, before all of them are waited for."""
_VLLM_REQUESTS = 512


def local_short_model(model: Any, tokenizer: Any, *, batch_size: int, context_limit: int) -> ShortModel:
    """Wrap a model that is loaded.

    Args:
        model: transformers' causal language model, on its device.
        tokenizer: its PreTrainedTokenizerFast; left as it is.
        batch_size: prompts in one pass, at most: halved wherever the memory does not hold them.
        context_limit: tokens.

    Raises:
        UserError: lm-eval is not installed, or the tokenizer ends every text.
    """
    import_optional("lm_eval", PURPOSE, extra="evaluate")
    from megatron_longpo.evaluate.short.local import LocalLM

    _check_tokenizer(tokenizer)
    with quiet_lm_eval():
        lm = LocalLM(model, tokenizer, batch_size=batch_size, max_length=context_limit)
    # A question with four options of a token each is one prompt: four requests for each place of a batch fill it.
    return ShortModel(lm, context_limit + 1, 4 * batch_size)


def served_short_model(
    endpoint: str, name: str, tokenizer: Any, *, context_limit: int, num_concurrent: int, timeout_s: int
) -> ShortModel:
    """Ask a server's completions for the log-probabilities of prompts; it is tried with one first.

    Args:
        endpoint: like ``http://localhost:8000/v1``.
        name: what the server calls the model.
        tokenizer: PreTrainedTokenizerFast of the served model: it is sent tokens.
        context_limit: tokens that the server takes.
        num_concurrent: requests at a time.
        timeout_s: seconds until a request counts as failed.

    Raises:
        UserError: lm-eval is not installed; no server answers; it does not give log-probabilities of prompts (servers
            of chats alone, and `transformers serve`); the tokenizer ends every text.
    """
    import_optional("lm_eval", PURPOSE, extra="evaluate")
    from megatron_longpo.evaluate.short.served import ServedLM

    _check_tokenizer(tokenizer)
    options = {"max_length": context_limit, "num_concurrent": num_concurrent, "timeout": timeout_s}
    with quiet_lm_eval():
        lm = ServedLM(endpoint, name, tokenizer, **options)
        lm.probe()
    return ShortModel(lm, context_limit - 1, _REQUESTS_PER_SLOT * num_concurrent)


def vllm_short_model(folder: Path, tokenizer: Any, *, dtype: str, context_limit: int) -> ShortModel:
    """Load a folder by vLLM, as lm-eval does. Not yet run: vLLM 0.33 does not install beside our requirements.

    Raises:
        UserError: lm-eval or vLLM is not installed, or the tokenizer ends every text.
    """
    import_optional("vllm", "the engine vllm needs vLLM, which cannot be imported", advice="use --engine openai")
    models: Any = import_optional("lm_eval.models.vllm_causallms", PURPOSE, extra="evaluate")
    _check_tokenizer(tokenizer)
    lm = models.VLLM(
        str(folder), dtype=dtype, max_model_len=context_limit, batch_size=_VLLM_REQUESTS, trust_remote_code=False
    )
    return ShortModel(lm, context_limit - 1, _VLLM_REQUESTS)


def _check_tokenizer(tokenizer: Any) -> None:
    """Refuse one that ends every text with a token: a prompt must be the beginning of the prompt with its option."""
    last = tokenizer("a").input_ids[-1]
    if last in tokenizer.all_special_ids:
        raise UserError(
            f"{tokenizer.name_or_path}: the tokenizer ends every text with {tokenizer.decode(last)!r}, so no text can "
            'be gone on with; set "add_eos_token": false in its tokenizer_config.json, or mend its tokenizer.json'
        )

"""vLLM in this process: its own batching and prefix cache.

Not yet run: written against vLLM's sources (vllm/v1/engine/async_llm.py: AsyncLLM; vllm/engine/arg_utils.py:
AsyncEngineArgs; vllm/sampling_params.py: SamplingParams; vllm/outputs.py: RequestOutput).
"""

import importlib
import importlib.metadata
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_longpo.data.chat import check_chat_template
from megatron_longpo.data.render import Context
from megatron_longpo.data.tokenise import end_of_turn_id
from megatron_longpo.data.tokenizer import load_tokenizer, tokenizer_fingerprint
from megatron_longpo.errors import UserError, import_optional, one_line
from megatron_longpo.generate.engine import Completion, FinishReason, Request
from megatron_longpo.generate.engines.local_load import PolicyRope
from megatron_longpo.generate.engines.prompt_length import prompt_ids, require_room
from megatron_longpo.generate.engines.weights import weights_sample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

FINISH_REASONS: dict[str, FinishReason] = {"stop": "stop", "length": "length"}


def open_vllm_engine(
    model: Path,
    *,
    chat_template: str | None = None,
    dtype: str = "auto",
    tensor_parallel_size: int = 1,
    gpu_memory_utilization: float = 0.9,
    context_limit: int | None = None,
    num_concurrent: int = 256,
    policy_rope: PolicyRope | None = None,
) -> "VllmEngine":
    """Start vLLM on a Hugging Face folder; to be called in the event loop that will use it.

    Args:
        chat_template: Jinja source in place of the folder's template.
        dtype: as vLLM's own option of this name; so the three after it (``context_limit`` is ``max_model_len``).
        policy_rope: must be None.

    Raises:
        UserError: vLLM is missing or does not start; no usable folder; a second RoPE is asked for.
    """
    if policy_rope is not None:
        raise UserError(
            "vLLM has one RoPE a model, and long contexts are to have another; serve two and use --endpoint and"
            " --long-endpoint"
        )
    vllm_args, vllm_async = _vllm("vllm.engine.arg_utils"), _vllm("vllm.v1.engine.async_llm")
    tokenizer = load_tokenizer(model, chat_template)
    check_chat_template(tokenizer)
    weights = weights_sample(model)
    try:
        arguments = vllm_args.AsyncEngineArgs(
            model=str(model),
            dtype=dtype,
            tensor_parallel_size=tensor_parallel_size,
            gpu_memory_utilization=gpu_memory_utilization,
            max_model_len=context_limit,
            enable_prefix_caching=True,
            generation_config="vllm",  # the folder's sampling defaults do not apply
        )
        engine = vllm_async.AsyncLLM.from_engine_args(arguments)
    except Exception as error:  # vLLM raises whatever the device, the folder or an option makes it raise
        raise UserError(f"{model}: vLLM does not start ({one_line(error)}); its log above says more") from error
    identity = {
        "engine": "vllm",
        "model": model.resolve().name,
        "weights": weights,
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "dtype": str(engine.model_config.dtype).removeprefix("torch."),
        "vllm": importlib.metadata.version("vllm"),
    }
    return VllmEngine(engine, tokenizer, identity, engine.model_config.max_model_len, num_concurrent)


class VllmEngine:
    """An `Engine`; made by `open_vllm_engine`."""

    def __init__(
        self,
        engine: Any,
        tokenizer: "PreTrainedTokenizerFast",
        identity: Mapping[str, str],
        limit: int,
        num_concurrent: int,
    ) -> None:
        """Take over a started ``AsyncLLM``."""
        self.identity = identity
        self.context_limits: Mapping[Context, int] = {"short": limit, "long": limit}
        self.num_concurrent = num_concurrent
        self._engine = engine
        self._tokenizer = tokenizer
        self._end_of_turn = end_of_turn_id(tokenizer)
        self._numbers = itertools.count()

    async def complete(self, request: Request) -> Completion:
        """The model's answer; vLLM stops working on it when the caller is cancelled.

        Raises:
            UserError: the context is too small, or vLLM fails.
        """
        ids = prompt_ids(self._tokenizer, request.messages, request.answer_start)
        require_room(request, len(ids), self.context_limits)
        parameters = _vllm("vllm.sampling_params")
        sampling = parameters.SamplingParams(
            temperature=request.sampling.temperature,
            top_p=request.sampling.top_p,
            max_tokens=request.sampling.max_new_tokens,
            seed=request.seed,
            stop_token_ids=[self._end_of_turn],  # beside the ends of sequence that the folder knows
            output_kind=parameters.RequestOutputKind.FINAL_ONLY,
        )
        try:
            outputs = [
                output
                async for output in self._engine.generate(
                    prompt={"prompt_token_ids": ids}, sampling_params=sampling, request_id=str(next(self._numbers))
                )
            ]
        except Exception as error:  # EngineDeadError, EngineGenerateError, ValueError of a request
            raise UserError(f"vLLM cannot answer ({one_line(error)}); its log above says more") from error
        answer = outputs[-1].outputs[0]
        if answer.finish_reason not in FINISH_REASONS:
            raise UserError(f"vLLM ended an answer with the reason {answer.finish_reason!r}; its log above says why")
        return Completion(
            text=answer.text,
            finish=FINISH_REASONS[answer.finish_reason],
            num_prompt_tokens=len(ids),
            num_new_tokens=len(answer.token_ids),
        )

    async def aclose(self) -> None:
        """End vLLM's processes."""
        self._engine.shutdown()


def _vllm(module: str) -> Any:
    advice = (
        "its pins of torch and transformers are not this package's: serve the model from an environment of vLLM's own "
        "and give --engine openai --endpoint URL"
    )
    return import_optional(module, "vLLM cannot be imported", advice=advice)

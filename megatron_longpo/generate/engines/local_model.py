"""A transformers model that answers a batch of prompts, each as if it were alone.

Imports torch and transformers, so it is imported only where a model is to answer in this process.
Shapes: B = prompts of the batch, T = tokens of the longest.

Invariants (tests/unit/generate/test_local_model.py):
  1. a prompt's answer is a function of the prompt, its sampling and its seed, up to rounding: the other prompts of the
     batch change the shapes of the matrix products and nothing else;
  2. sharing the computation of a common beginning changes nothing but time.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, StoppingCriteria
from transformers.cache_utils import DynamicLayer
from transformers.modeling_layers import GradientCheckpointingLayer

from megatron_longpo.data.render import Context
from megatron_longpo.data.tokenise import end_of_turn_id
from megatron_longpo.generate.engine import Completion
from megatron_longpo.generate.engines.batching import Prompt, num_common
from megatron_longpo.generate.engines.seeded_sampling import SeededSampling
from megatron_longpo.strict_json import is_array

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MIN_SHARED_TOKENS = 32
"""A shorter common beginning (a system prompt) is not worth a pass of its own."""


class BatchTooLarge(Exception):
    """The device's memory does not hold this batch; nothing of it was answered."""


class Unwanted(Exception):
    """Nobody waits for the batch any more."""


class LocalModel:
    """One copy of the weights, with the rotary angles of both contexts."""

    def __init__(self, model: Any, tokenizer: "PreTrainedTokenizerFast", long_config: Any) -> None:
        """Take over a loaded model.

        Args:
            model: transformers' causal language model, on its device.
            long_config: its configuration with the long context's RoPE, or None if that has the same.
        """
        self._model = model
        self._tokenizer = tokenizer
        self._stop_ids = _stop_ids(model, tokenizer)
        # What the folder says about sampling (top_k, penalties) would apply wherever we say nothing.
        model.generation_config = GenerationConfig()
        self._rotaries: dict[Context, Any] = {}
        if long_config is not None:
            rotary = model.base_model.rotary_emb
            self._rotaries = {"short": rotary, "long": type(rotary)(config=long_config).to(model.device)}
        self._is_wanted: Callable[[], bool] = lambda: True
        for module in model.modules():
            if isinstance(module, GradientCheckpointingLayer):  # every decoder layer of transformers 5
                module.register_forward_pre_hook(self._stop_if_unwanted)

    @property
    def dtype(self) -> str:
        """``float32``, ``bfloat16`` or ``float16``."""
        return str(self._model.dtype).removeprefix("torch.")

    @torch.inference_mode()
    def answer(self, prompts: Sequence[Prompt], is_wanted: Callable[[], bool] = lambda: True) -> list[Completion]:
        """Answer prompts of one context.

        Args:
            is_wanted: asked before every layer; False ends the work.

        Raises:
            BatchTooLarge: out of memory.
            Unwanted: ``is_wanted`` said so.
        """
        if self._rotaries:
            self._model.base_model.rotary_emb = self._rotaries[prompts[0].request.context]
        self._is_wanted = is_wanted
        try:
            rows = self._generate(prompts)
        except torch.OutOfMemoryError as error:
            raise BatchTooLarge(str(error)) from None  # without the traceback, which holds the tensors
        finally:
            self._is_wanted = lambda: True
        return [self._completion(prompt, row) for prompt, row in zip(prompts, rows, strict=True)]

    def _generate(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        num_shared = self._num_shared(prompts)
        ids_BT, mask_BT = _padded(prompts, num_shared, pad_id=self._stop_ids[0], device=self._model.device)
        limits_B = torch.tensor([prompt.request.sampling.max_new_tokens for prompt in prompts], device=ids_BT.device)
        config = GenerationConfig(
            do_sample=False,
            max_new_tokens=int(limits_B.max()),
            eos_token_id=self._stop_ids,
            pad_token_id=self._stop_ids[0],
        )
        sequences = self._model.generate(
            input_ids=ids_BT,
            attention_mask=mask_BT,
            past_key_values=self._shared_cache(prompts, num_shared),
            generation_config=config,
            logits_processor=[SeededSampling([prompt.request for prompt in prompts], ids_BT.device)],
            stopping_criteria=[_RowLimits(ids_BT.shape[1], limits_B)],
        )
        return sequences[:, ids_BT.shape[1] :].tolist()

    def _num_shared(self, prompts: Sequence[Prompt]) -> int:
        """Tokens to compute once for all; 0 if few, or if the padding behind them would shift a sliding window."""
        if len(prompts) == 1 or not self._has_full_attention():
            return 0
        shortest = min(len(prompt.ids) for prompt in prompts)
        common = min(num_common(prompts[0].ids, prompt.ids) for prompt in prompts)
        shared = min(common, shortest - 1)  # the last token's logits are needed, row by row
        return shared if shared >= MIN_SHARED_TOKENS else 0

    def _has_full_attention(self) -> bool:
        return all(type(layer) is DynamicLayer for layer in DynamicCache(config=self._model.config).layers)

    def _shared_cache(self, prompts: Sequence[Prompt], num_shared: int) -> DynamicCache | None:
        if num_shared == 0:
            return None
        cache = DynamicCache(config=self._model.config)
        ids = torch.as_tensor(prompts[0].ids[None, :num_shared], dtype=torch.long, device=self._model.device)
        self._model.base_model(input_ids=ids, past_key_values=cache, use_cache=True)
        cache.batch_repeat_interleave(len(prompts))
        return cache

    def _completion(self, prompt: Prompt, row: list[int]) -> Completion:
        # Behind a row's own end stands padding, which is a stop id too.
        row = row[: prompt.request.sampling.max_new_tokens]
        end = next((index for index, token in enumerate(row) if token in self._stop_ids), None)
        untyped: Any = self._tokenizer
        text = untyped.decode(row[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return Completion(
            text=cast(str, text),
            finish="length" if end is None else "stop",
            num_prompt_tokens=len(prompt.ids),
            num_new_tokens=len(row) if end is None else end + 1,
        )

    def _stop_if_unwanted(self, *_: Any) -> None:
        if not self._is_wanted():
            raise Unwanted


class _RowLimits(StoppingCriteria):
    """Ends each row at its own number of new tokens."""

    def __init__(self, num_prompt: int, limits_B: Tensor) -> None:
        self._num_prompt = num_prompt
        self._limits_B = limits_B

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self._limits_B <= input_ids.shape[1] - self._num_prompt


def _padded(prompts: Sequence[Prompt], num_shared: int, pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and mask [B, T]: what is shared, then padding on the left of what is not."""
    longest = max(len(prompt.ids) for prompt in prompts)
    ids_BT = torch.full((len(prompts), longest), pad_id)
    mask_BT = torch.zeros_like(ids_BT)
    for row, prompt in enumerate(prompts):
        ids = torch.as_tensor(prompt.ids, dtype=torch.long)
        start = longest - (len(ids) - num_shared)
        ids_BT[row, :num_shared], ids_BT[row, start:] = ids[:num_shared], ids[num_shared:]
        mask_BT[row, :num_shared] = 1
        mask_BT[row, start:] = 1
    return ids_BT.to(device), mask_BT.to(device)


def _stop_ids(model: Any, tokenizer: "PreTrainedTokenizerFast") -> list[int]:
    """The template's end of turn first, then what the folder's generation config knows."""
    known = model.generation_config.eos_token_id
    others = known if is_array(known) else [] if known is None else [known]
    return list(dict.fromkeys([end_of_turn_id(tokenizer), *others]))

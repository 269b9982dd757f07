"""The model in this process: requests of many coroutines, answered in batches by one thread."""

import asyncio
import importlib.metadata
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from megatron_longpo.data.chat import check_chat_template
from megatron_longpo.data.render import Context
from megatron_longpo.data.tokenizer import load_tokenizer, tokenizer_fingerprint
from megatron_longpo.errors import UserError
from megatron_longpo.generate.engine import Completion, Request
from megatron_longpo.generate.engines.batching import Prompt, choose_batch, padded_tokens
from megatron_longpo.generate.engines.local_load import PolicyRope, load_local_model
from megatron_longpo.generate.engines.prompt_length import prompt_ids, require_room
from megatron_longpo.generate.engines.weights import weights_sample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from megatron_longpo.generate.engines.local_model import LocalModel

COLLECT_S = 0.02
"""How long an idle engine waits for more requests before it starts on the first."""


def open_local_engine(
    model: Path,
    *,
    chat_template: str | None = None,
    batch_size: int = 8,
    max_batch_tokens: int = 65536,
    dtype: str | None = None,
    device: str = "auto",
    policy_rope: PolicyRope | None = None,
) -> "LocalEngine":
    """Load a Hugging Face folder; no network, no code from the folder.

    Args:
        chat_template: Jinja source in place of the folder's template.
        batch_size: prompts answered together, at most.
        max_batch_tokens: bound of their keys and values: prompts times the longest prompt with its answer. A single
            prompt may be longer. Halved whenever the device runs out of memory.
        dtype: float32, bfloat16, float16 or auto (the checkpoint's); by default float32 on a CPU, else auto.
        device: auto (the GPU, if there is one), cpu, cuda or cuda:N.
        policy_rope: the policy's RoPE, with which requests of the long context are answered.

    Raises:
        UserError: no usable model, tokenizer or chat template in the folder; no such device.
    """
    weights = weights_sample(model)
    tokenizer = load_tokenizer(model, chat_template)
    check_chat_template(tokenizer)
    loaded, limits = load_local_model(model, tokenizer, dtype=dtype, device=device, policy_rope=policy_rope)
    identity = {
        "engine": "transformers",
        "model": model.resolve().name,
        "weights": weights,
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "dtype": loaded.dtype,
        "policy_rope": json.dumps(policy_rope.rope_parameters, sort_keys=True) if policy_rope else "the model's own",
        "transformers": importlib.metadata.version("transformers"),
    }
    return LocalEngine(loaded, tokenizer, identity, limits, batch_size, max_batch_tokens)


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    prompt: Prompt
    answer: asyncio.Future[Completion]


class LocalEngine:
    """An `Engine`; made by `open_local_engine`."""

    def __init__(
        self,
        model: "LocalModel",
        tokenizer: "PreTrainedTokenizerFast",
        identity: Mapping[str, str],
        context_limits: Mapping[Context, int],
        batch_size: int,
        max_batch_tokens: int,
    ) -> None:
        """Take over a loaded model; see `open_local_engine`."""
        self.identity = identity
        self.context_limits = context_limits
        self.num_concurrent = 4 * batch_size  # so that there is a choice of prompts that go well together
        self._model = model
        self._tokenizer = tokenizer
        self._batch_size = batch_size
        self._max_batch_tokens = max_batch_tokens
        self._waiting: list[_Job] = []
        self._arrived = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, "local-engine")

    async def complete(self, request: Request) -> Completion:
        """The model's answer.

        Raises:
            UserError: the context is too small, or the device's memory is, even for this request alone.
        """
        ids = np.array(prompt_ids(self._tokenizer, request.messages, request.answer_start))
        require_room(request, len(ids), self.context_limits)
        job = _Job(Prompt(request, ids), asyncio.get_running_loop().create_future())
        self._waiting.append(job)
        self._arrived.set()
        if self._worker is None:
            self._worker = asyncio.create_task(self._work())
        return await job.answer

    async def aclose(self) -> None:
        """Stop within a layer's time and let go of the model."""
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.gather(self._worker, return_exceptions=True)
        for job in self._waiting:
            job.answer.cancel()
        await asyncio.to_thread(self._thread.shutdown)

    async def _work(self) -> None:
        while True:
            await self._arrived.wait()
            if len(self._waiting) < self._batch_size:
                await asyncio.sleep(COLLECT_S)
            self._waiting = [job for job in self._waiting if not job.answer.done()]  # the others were cancelled
            if not self._waiting:
                self._arrived.clear()
                continue
            prompts = [job.prompt for job in self._waiting]
            batch = [self._waiting[i] for i in choose_batch(prompts, self._batch_size, self._max_batch_tokens)]
            self._waiting = [job for job in self._waiting if job not in batch]
            await self._answer(batch)

    async def _answer(self, batch: list[_Job]) -> None:
        from megatron_longpo.generate.engines.local_model import BatchTooLarge, Unwanted

        prompts = [job.prompt for job in batch]
        loop = asyncio.get_running_loop()
        try:
            completions = await loop.run_in_executor(
                self._thread, self._model.answer, prompts, lambda: not all(job.answer.done() for job in batch)
            )
        except Unwanted:
            return
        except BatchTooLarge as error:
            self._make_smaller(batch, str(error))
        except asyncio.CancelledError:
            for job in batch:  # which tells the thread
                job.answer.cancel()
            raise
        except Exception as error:  # whoever asked shall see it, and the others go on
            for job in batch:
                if not job.answer.done():
                    job.answer.set_exception(error)
        else:
            for job, completion in zip(batch, completions, strict=True):
                if not job.answer.done():
                    job.answer.set_result(completion)

    def _make_smaller(self, batch: list[_Job], reason: str) -> None:
        if len(batch) > 1:
            self._max_batch_tokens = padded_tokens([job.prompt for job in batch]) // 2
            self._waiting = [*batch, *self._waiting]
            return
        if not batch[0].answer.done():
            batch[0].answer.set_exception(
                UserError(
                    f"out of memory with a single prompt of {len(batch[0].prompt.ids)} tokens"
                    f" ({' '.join(reason.split())[:120]}); use shorter documents, a smaller --dtype, or a server"
                )
            )

"""lm-eval's client of an OpenAI-compatible server, for log-probabilities of prompts.

Imports lm-eval: imported only where a short task is asked of a server.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from lm_eval.models.openai_completions import LocalCompletionsAPI
from requests import HTTPError, RequestException

from megatron_longpo.errors import UserError, one_line
from megatron_longpo.evaluate.short.tasks import Answer, Request
from megatron_longpo.strict_json import is_array

_PROBE = "The capital of France is Paris, the capital of Italy is"
_MAX_TRIES = 8
"""Of a request; with lm-eval's waits in between, half a minute."""


class ServedLM(LocalCompletionsAPI):
    """LocalCompletionsAPI of lm-eval 0.4.13, sent tokens; what comes back must fit to what was sent."""

    def __init__(
        self, endpoint: str, name: str, tokenizer: Any, *, max_length: int, num_concurrent: int, timeout: int
    ) -> None:
        self._endpoint = endpoint
        super().__init__(
            base_url=f"{endpoint.rstrip('/')}/completions",
            model=name,
            tokenizer_backend=None,  # "huggingface" would read one from a folder
            add_bos_token=True,  # that is: let the tokenizer add what it adds
            max_length=max_length,
            timeout=timeout,
            max_retries=_MAX_TRIES,
        )
        self._num_concurrent = num_concurrent
        self.tokenizer, self.tokenizer_backend, self.tokenized_requests = tokenizer, "huggingface", True

    def probe(self) -> None:
        """Ask for one short prompt.

        Raises:
            UserError: no server answers, or it does not give log-probabilities of prompts.
        """
        sent = self.tok_encode(_PROBE)
        try:
            self.parse_logprobs(self.model_call([sent], generate=False), [sent], [len(sent) - 1])
            return
        except HTTPError as error:
            answer: Any = error.response
            reason = f"it answers {answer.status_code}: {' '.join(answer.text.split())[:200]}"
        except RequestException as error:
            raise UserError(
                f"{self._endpoint}: no server answers ({one_line(error)}); an endpoint looks like "
                "http://localhost:8000/v1"
            ) from error
        except (LookupError, TypeError, AttributeError, ValueError) as error:
            reason = f"not in what it answers: {one_line(error)}"
        raise UserError(
            f"{self._endpoint}: the short tasks need the log-probabilities of a prompt's tokens, and this server does "
            f"not give them for {self.model} ({reason}); serve it with vLLM, which does, or use --engine hf"
        )

    def _loglikelihood_tokens(self, requests: list[Request], **options: Any) -> list[Answer]:
        """Ask for all, so many at a time; lm-eval's own way to do so leaves failures that asyncio prints later."""
        ask = super()._loglikelihood_tokens
        try:
            with ThreadPoolExecutor(self._num_concurrent) as pool:
                return [answer for found in pool.map(lambda one: ask([one], **options), requests) for answer in found]
        except (RequestException, LookupError, TypeError, ValueError) as error:
            raise UserError(
                f"{self._endpoint}: the server failed ({one_line(error)}); what it answered before is kept: see "
                "that it runs, and give the same command again"
            ) from error

    @staticmethod
    def parse_logprobs(
        outputs: Any, tokens: list[list[int]] | None = None, ctxlens: list[int] | None = None, **options: Any
    ) -> list[Answer]:
        """Read answers, which must have a log-probability for each token sent and one new.

        Raises:
            ValueError: it has another number. Others where it is of another form.
        """
        whole = outputs if is_array(outputs) else [outputs]
        for one, sent in zip((choice for each in whole for choice in each["choices"]), tokens or (), strict=True):
            if (num := len(one["logprobs"]["token_logprobs"])) != len(sent) + 1:
                raise ValueError(f"{num} log-probabilities for a prompt of {len(sent)} tokens and one new")
        return LocalCompletionsAPI.parse_logprobs(outputs, tokens, ctxlens, **options)
